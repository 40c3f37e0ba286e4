#include "tiers/recode.h"

#include <algorithm>
#include <chrono>
#include <future>
#include <stdexcept>
#include <unordered_map>

namespace kvcommons::tiers {
namespace {

using State = RecodeProgress::State;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kPageShards = 256;
constexpr std::uint64_t kBatchBytes = 8ull << 20;  // of memory's, or one shard
constexpr std::uint64_t kRetryMs = 5;
constexpr std::uint64_t kWaitingMax = 1'024;   // shards in the queue of writes, beyond which engines' own come first
constexpr std::uint64_t kOfferMsMax = 10'000;  // for so long a queue of writes that does not move is waited for

bool lossy(const kvcodec::CodecSpec& codec) {
  const kvcodec::CodecInfo* info = kvcodec::codec_info(codec.id);
  return info != nullptr && info->lossy;
}

bool has_form(const ShardMeta& meta, const kvcodec::CodecSpec& codec) {
  return meta.codec == static_cast<std::uint16_t>(codec.id) && meta.codec_group == codec.group;
}

// A call of the tier, waited for: its answer comes from another thread.
template <typename Result, typename Begin>
std::optional<std::vector<Result>> answer_of(Begin begin) {
  const auto promise = std::make_shared<std::promise<std::vector<Result>>>();  // it ends after its answer is taken
  auto answer = promise->get_future();
  const bool taken =
      begin([promise](std::span<const Result> results) { promise->set_value({results.begin(), results.end()}); });
  if (!taken) return std::nullopt;
  return answer.get();
}

}  // namespace

Recoder::Recoder(Store* store, TierManager* manager, KvLayouts* layouts, std::vector<std::shared_ptr<CodecTier>> tiers)
    : store_(store), manager_(manager), layouts_(layouts), tiers_(std::move(tiers)), pool_(2 * kBatchBytes) {
  progress_.state = State::Done;
}

Recoder::~Recoder() {
  cancelled_.store(true);
  {
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

template <typename Change>
void Recoder::note(Change change) {
  const std::lock_guard lock(mutex_);
  change(progress_);
}

std::uint64_t Recoder::start(const RecodeRequest& request, std::string_view tier) {
  const auto found =
      std::find_if(tiers_.begin(), tiers_.end(), [&](const auto& one) { return tier.empty() || one->name() == tier; });
  if (found == tiers_.end()) {
    throw std::invalid_argument("tier '" + std::string(tier) + "': this node has no such tier with codecs");
  }
  if (lossy(request.codec) && request.codec != (*found)->codec()) {
    throw std::invalid_argument(
        "codec " + std::string(kvcodec::codec_info(request.codec.id)->name) +
        " gives back other numbers than the engine computed: set it as the tier's codec with lossy "
        "at allow, or choose lossless");
  }
  const std::lock_guard lock(mutex_);
  if (progress_.state == State::Running)
    throw std::runtime_error("another run is under way: wait for it, or cancel it");
  if (thread_.joinable()) thread_.join();
  const std::uint64_t id = progress_.id + 1;
  progress_ = {};
  progress_.id = id;
  cancelled_.store(false);
  keys_ = {request.keys.begin(), request.keys.end()};
  thread_ = std::thread([this, request, tier = *found] { run(request, tier); });
  return id;
}

std::optional<RecodeProgress> Recoder::progress(std::uint64_t id) const {
  const std::lock_guard lock(mutex_);
  if (id != progress_.id || id == 0) return std::nullopt;
  return progress_;
}

bool Recoder::cancel(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  if (id != progress_.id || progress_.state != State::Running) return false;
  cancelled_.store(true);
  changed_.notify_all();
  return true;
}

bool Recoder::pause(std::uint64_t ms) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::milliseconds(ms), [this] { return cancelled_.load(); });
  return !cancelled_.load();
}

bool Recoder::wanted(const RecodeRequest& request, const Key& fingerprint, const Key& key) const {
  return (!request.fingerprint || *request.fingerprint == fingerprint) && (keys_.empty() || keys_.contains(key));
}

void Recoder::run(RecodeRequest request, std::shared_ptr<CodecTier> tier) {
  State state = State::Done;
  std::string why;
  try {
    if (request.from_memory) offer_memory(request, *tier);
    rewrite_all(request, *tier);
  } catch (const std::exception& error) {  // out of memory: the node serves on
    state = State::Failed;
    why = error.what();
  }
  note([&](RecodeProgress& p) {
    p.state = state == State::Done && cancelled_.load() ? State::Cancelled : state;
    p.why = why;
  });
}

// What the tier has not is put into the queue of writes, and waited for as long as that moves.
void Recoder::offer_memory(const RecodeRequest& request, CodecTier& tier) {
  std::uint64_t cursor = 0;
  do {
    std::unordered_map<Key, std::vector<Key>, KeyHash> missing;
    for (const InventoryItem& item : store_->inventory(&cursor, kPageShards)) {
      if (!wanted(request, item.fingerprint, item.key)) continue;
      const std::vector<Rect> rects = manager_->rects(item.fingerprint);
      const bool there = std::all_of(rects.begin(), rects.end(), [&](const Rect& rect) {
        const ShardId id{item.fingerprint, item.key, rect};
        std::uint64_t bytes = 0;
        tier.find(std::span(&id, 1), std::span(&bytes, 1));
        return bytes != 0;
      });
      if (!there) missing[item.fingerprint].push_back(item.key);
    }
    while (manager_->stats().write_waiting > kWaitingMax) {
      if (!pause(kRetryMs)) return;
    }
    for (const auto& [fingerprint, keys] : missing) {
      const std::uint64_t taken = manager_->write(fingerprint, keys);
      note([&](RecodeProgress& p) { p.offered += taken; });
    }
  } while (cursor != 0 && !cancelled_.load());
  const auto until = Clock::now() + std::chrono::milliseconds(kOfferMsMax);
  for (auto stats = manager_->stats(); stats.write_waiting + stats.write_in_flight_bytes > 0;
       stats = manager_->stats()) {
    if (Clock::now() > until || !pause(kRetryMs)) return;
  }
}

bool Recoder::refuses(const RecodeRequest& request, const ShardMeta& meta) const {
  if (!lossy(request.codec)) return false;
  if (!layouts_->allows(meta.id.fingerprint, request.codec)) return true;
  const auto layout = layouts_->find(meta.id.fingerprint);
  const auto shape = layout ? shape_of(*layout, meta.chunk_tokens, meta.id.rect, memory_bytes(meta)) : std::nullopt;
  return !shape || !kvcodec::why_not(request.codec, *shape).empty();
}

void Recoder::rewrite_all(const RecodeRequest& request, CodecTier& tier) {
  std::uint64_t cursor = 0;
  do {
    note([&, total = tier.stats().shards](RecodeProgress& p) { p.shards_total = total; });
    std::vector<ShardMeta> some;
    std::uint64_t bytes = 0;
    for (ShardMeta& meta : tier.inventory(&cursor, kPageShards)) {
      note([](RecodeProgress& p) { ++p.shards_seen; });
      if (!wanted(request, meta.id.fingerprint, meta.id.key)) continue;
      if (has_form(meta, request.codec)) {
        note([](RecodeProgress& p) { ++p.unchanged; });
        continue;
      }
      if (refuses(request, meta)) {
        note([](RecodeProgress& p) { ++p.refused; });
        continue;
      }
      if (!some.empty() && bytes + memory_bytes(meta) > kBatchBytes) {
        if (!rewrite(request, tier, std::exchange(some, {}))) return;
        bytes = 0;
      }
      bytes += memory_bytes(meta);
      some.push_back(std::move(meta));
    }
    if (!some.empty() && !rewrite(request, tier, std::move(some))) return;
  } while (cursor != 0 && !cancelled_.load());
}

// False: cancelled.
bool Recoder::rewrite(const RecodeRequest& request, CodecTier& tier, std::vector<ShardMeta> some) {
  const auto began = Clock::now();
  std::vector<AlignedPool::Block> blocks;
  std::vector<GetItem> gets;
  std::uint64_t bytes = 0;
  for (const ShardMeta& meta : some) {
    bytes += memory_bytes(meta);
    blocks.push_back(pool_.take(memory_bytes(meta)));
    gets.push_back({meta.id, blocks.back().data(), blocks.back().bytes()});
  }
  std::optional<std::vector<GetResult>> got;
  while (!(got = answer_of<GetResult>([&](auto done) { return tier.get(gets, std::move(done)); }))) {
    if (!pause(kRetryMs)) return false;
  }
  std::vector<PutItem> puts;
  std::vector<std::uint64_t> before;
  for (std::size_t i = 0; i < some.size(); ++i) {
    const GetResult& result = (*got)[i];
    if (result.status != TierStatus::Ok) {
      note([&](RecodeProgress& p) { ++(result.status == TierStatus::Failed ? p.failed : p.gone); });
      continue;
    }
    puts.push_back({result.meta, blocks[i].data(), true});
    before.push_back(some[i].payload_bytes);
  }
  std::optional<std::vector<TierStatus>> put;
  while (!puts.empty() &&
         !(put = answer_of<TierStatus>([&](auto done) { return tier.put_as(request.codec, puts, std::move(done)); }))) {
    if (!pause(kRetryMs)) return false;
  }
  for (std::size_t i = 0; i < puts.size(); ++i) {
    ShardMeta now;
    const bool here = (*put)[i] == TierStatus::Ok && tier.describe(puts[i].meta.id, &now);
    note([&](RecodeProgress& p) {
      if (!here) {
        ++((*put)[i] == TierStatus::Missing || (*put)[i] == TierStatus::Ok ? p.gone : p.failed);
      } else if (!has_form(now, request.codec)) {
        ++p.unchanged;
      } else {
        ++p.rewritten;
        p.bytes_before += before[i];
        p.bytes_after += now.payload_bytes;
      }
    });
  }
  for (AlignedPool::Block& block : blocks) pool_.give_back(std::move(block));
  if (request.bytes_per_second_max == 0) return !cancelled_.load();
  const auto spent =
      static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - began).count());
  const std::uint64_t due = bytes * 1'000 / request.bytes_per_second_max;
  return due <= spent ? !cancelled_.load() : pause(due - spent);
}

}  // namespace kvcommons::tiers
