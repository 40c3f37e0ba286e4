// What a remote tier asks of what others have put there, and what it takes away.
#include <algorithm>

#include "tiers/remote_tier_impl.h"

namespace kvcommons::tiers {
namespace {

constexpr std::size_t kFencesMax = 4'096, kOwedMax = 65'536;

}  // namespace

std::size_t RemoteTier::Impl::ask(std::span<const ShardId> ids) {
  const std::lock_guard lock(mutex_);
  if (open_ || closing_) return 0;
  const std::uint64_t now = now_ms();
  std::vector<ShardId> unknown;
  std::size_t expected = 0;
  for (std::size_t i = 0; i < ids.size() && unknown.size() < config_.ask_keys_max; ++i) {
    const ShardId& id = ids[i];
    const Entry* entry = known_.find(id, now);
    if (fenced(id.fingerprint)) break;
    if (entry == nullptr) {
      if (asked_ + unknown.size() >= config_.asked_shards_max) break;
      unknown.push_back(id);
      expected = i + 1;
    } else if (entry->state == State::Asked && entry->until_ms > now) {
      expected = i + 1;
    } else if (entry->state != State::Here) {
      break;
    }
  }
  for (const ShardId& id : unknown) {
    ShardMeta meta;
    meta.id = id;
    know(meta, State::Asked, false, now + config_.ask_wait_ms);
  }
  queue_questions(unknown);
  return expected;
}

void RemoteTier::Impl::queue_questions(const std::vector<ShardId>& ids) {
  for (std::size_t from = 0; from < ids.size(); from += config_.ask_keys_max) {
    const std::size_t to = std::min(ids.size(), from + config_.ask_keys_max);
    Pending& pending = queue(RemoteOp::Ask, std::nullopt);
    pending.ids.assign(ids.begin() + static_cast<std::ptrdiff_t>(from), ids.begin() + static_cast<std::ptrdiff_t>(to));
    for (const ShardId& id : pending.ids) pending.job.names.push_back(object_name(config_.prefix, id));
  }
  asked_ += ids.size();
}

std::uint64_t RemoteTier::Impl::remove(std::span<const ShardId> ids) {
  const std::lock_guard lock(mutex_);
  std::uint64_t removed = 0;
  std::vector<ShardId> own;
  for (const ShardId& id : ids) {
    const Entry* entry = known_.find(id, now_ms());
    if (entry == nullptr || (entry->state != State::Here && entry->state != State::Putting)) continue;
    removed += entry->state == State::Here ? 1 : 0;
    if (entry->own || entry->state == State::Putting) {
      know(ShardMeta(entry->meta), State::Leaving, false, 0);
      own.push_back(id);
    } else {
      know(ShardMeta(entry->meta), State::Absent, false, now_ms() + config_.ttl_ms);  // another's: left alone
    }
  }
  queue_removal(std::move(own));
  return removed;
}

void RemoteTier::Impl::queue_removal(std::vector<ShardId> ids) {
  if (open_) {
    const std::size_t room = kOwedMax - std::min(kOwedMax, owed_.size());
    owed_.insert(owed_.end(), ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(std::min(room, ids.size())));
    return;
  }
  std::vector<std::vector<ShardId>> of_lane(config_.lanes);
  for (const ShardId& id : ids) of_lane[lane_of(id)].push_back(id);
  for (unsigned lane = 0; lane < config_.lanes; ++lane) {
    if (of_lane[lane].empty()) continue;
    Pending& pending = queue(RemoteOp::Remove, lane);
    for (const ShardId& id : of_lane[lane]) pending.job.names.push_back(object_name(config_.prefix, id));
    pending.ids = std::move(of_lane[lane]);
  }
}

std::uint64_t RemoteTier::Impl::clear_known(const std::optional<Key>& fingerprint) {
  const std::vector<ShardMeta> own = known_.forget(fingerprint ? &*fingerprint : nullptr);
  tell_dropped(own);
  return own.size();
}

std::uint64_t RemoteTier::Impl::clear(const Key* fingerprint) {
  const std::lock_guard lock(mutex_);
  const auto of = fingerprint == nullptr ? std::nullopt : std::optional<Key>(*fingerprint);
  const std::uint64_t removed = clear_known(of);
  std::erase_if(fences_, [&](const Fence& fence) { return !of || fence.fingerprint == of; });
  if (fences_.size() >= kFencesMax) fences_.erase(fences_.begin());
  fences_.push_back({of, 0});
  if (!open_ && !closing_) queue_clear(&fences_.back());
  return removed;
}

// Behind all that was queued before, and before all that comes: every lane waits until it is done.
void RemoteTier::Impl::queue_clear(Fence* fence) {
  Pending& pending = queue(RemoteOp::Clear, 0u);
  for (unsigned lane = 1; lane < config_.lanes; ++lane) writes_[lane].push_back(pending.job.id);
  pending.job.names = {object_prefix(config_.prefix, fence->fingerprint ? &*fence->fingerprint : nullptr)};
  pending.job.time_out_ms = config_.clear_ms_max;
  pending.deadline_ms = now_ms() + config_.clear_ms_max;
  pending.fingerprint = fence->fingerprint;
  fence->job = pending.job.id;
}

}  // namespace kvcommons::tiers
