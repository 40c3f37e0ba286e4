#include "peers/peer_jobs.h"

#include "peers/peer_greeting.h"
#include "xxh3.h"

namespace kvcommons::peers {
namespace {

using wire::Answer;
using wire::Type;

constexpr std::uint64_t kRequest = 1;  // answers come in order: the number only tells them from noise

bool is(const Received& got, Type type) {
  return got.header.type == static_cast<std::uint16_t>(type) && got.header.request == kRequest;
}

Answer answer_of(const Received& got) { return static_cast<Answer>(got.header.answer); }

}  // namespace

bool FetchJob::run(Stream& stream, Deadline deadline) {
  wire::Fetch head{items_.front().wanted.id.fingerprint, epoch_, 0};
  std::vector<wire::Item> wanted;
  for (std::size_t i = next_; i < items_.size(); ++i) {
    wanted.push_back({items_[i].wanted.id.key, items_[i].wanted.id.rect, items_[i].generation, 0});
  }
  head.items = static_cast<std::uint32_t>(wanted.size());
  wire::Out out;
  wire::put_fetch(&out, kRequest, head, wanted);
  if (!stream.write(out, deadline)) return false;
  while (next_ < items_.size()) {
    GetResult result;
    if (!take(stream, deadline, items_[next_], &result)) return false;
    settle(std::move(result));
  }
  return true;
}

bool FetchJob::take(Stream& stream, Deadline deadline, const FetchItem& item, GetResult* result) {
  Received got;
  if (!receive(stream, deadline, &got) || !is(got, Type::Shard)) return false;
  if (answer_of(got) != Answer::Ok) return got.payload.empty();
  wire::ShardHead head;
  if (!wire::decode_shard(got.payload, false, &head)) return false;
  if (!(head.meta.id == item.wanted.id) || head.meta.payload_bytes > item.wanted.room_bytes) return false;
  const std::span<std::byte> into(item.wanted.data, head.meta.payload_bytes);
  if (!stream.read(into, deadline)) return false;
  const bool right = head.meta.checksum != 0 && xxh3_64(into.data(), into.size()) == head.meta.checksum;
  result->status = right ? TierStatus::Ok : TierStatus::Corrupt;
  if (right) result->meta = std::move(head.meta);
  return true;
}

void FetchJob::settle(GetResult result) {
  const FetchItem& item = items_[next_++];
  on_ended_(item, result);
  gets_->results[item.place] = std::move(result);
  gets_->ended(1);
}

void FetchJob::end(TierStatus status) {
  while (next_ < items_.size()) settle({status, {}});
}

bool LocateJob::run(Stream& stream, Deadline deadline) {
  wire::Out out;
  wire::put_locate(&out, kRequest, request_.head, request_.shards, request_.keys);
  Received got;
  if (!stream.write(out, deadline) || !receive(stream, deadline, &got) || !is(got, Type::Located)) return false;
  wire::LocatedReply reply;
  if (answer_of(got) == Answer::Ok &&
      !wire::decode(got.payload, request_.shards.size(), request_.keys.size(), &reply)) {
    return false;
  }
  over_ = true;
  on_ended_(answer_of(got) == Answer::Ok ? &reply : nullptr);
  return true;
}

void LocateJob::end(TierStatus) {
  if (!over_) on_ended_(nullptr);
  over_ = true;
}

bool PushJob::run(Stream& stream, Deadline deadline) {
  while (next_ < items_.size()) {
    const PushItem& item = items_[next_];
    const ShardMeta& meta = item.given.meta;
    wire::Out out;
    wire::put_shard(&out, Type::Push, kRequest, meta, layout_);
    Received got;
    if (!stream.write(out, deadline) || !stream.write({item.given.data, meta.payload_bytes}, deadline) ||
        !receive(stream, deadline, &got) || !is(got, Type::Pushed)) {
      return false;
    }
    ++next_;
    puts_->results[item.place] = on_ended_(item, answer_of(got));
    puts_->ended(1);
  }
  return true;
}

void PushJob::end(TierStatus status) {
  while (next_ < items_.size()) {
    puts_->results[items_[next_++].place] = status;
    puts_->ended(1);
  }
}

bool RemoveJob::run(Stream& stream, Deadline deadline) {
  for (std::size_t at = 0; at < ids_.size();) {
    wire::Remove head{ids_[at].fingerprint, 0, 0};
    std::vector<wire::Item> items;
    for (; at < ids_.size() && items.size() < wire::kItemsMax && ids_[at].fingerprint == head.fingerprint; ++at) {
      items.push_back({ids_[at].key, ids_[at].rect, wire::kAnyGeneration, 0});
    }
    head.items = static_cast<std::uint32_t>(items.size());
    wire::Out out;
    wire::put_remove(&out, kRequest, head, items);
    Received got;
    if (!stream.write(out, deadline) || !receive(stream, deadline, &got) || !is(got, Type::Removed)) return false;
  }
  return true;
}

}  // namespace kvcommons::peers
