// The remote tier's jobs: how drivers get them, and what becomes of their answers.
#include <algorithm>
#include <cstring>

#include "tiers/remote_tier_impl.h"

namespace kvcommons::tiers {

bool RemoteTier::Impl::closed() const {
  const std::lock_guard lock(mutex_);
  return closing_;
}

// The next write of one lane; 0: none, or a clear is to come first.
std::uint64_t RemoteTier::Impl::next_of_lane(unsigned lane) {
  auto& own = writes_[lane];
  if (at_gate_[lane] != 0 || own.empty()) return 0;
  const std::uint64_t id = own.front();
  own.pop_front();
  Pending& pending = jobs_.at(id);
  if (pending.job.op != RemoteOp::Clear) return id;
  at_gate_[lane] = id;
  if (++pending.arrived_lanes < config_.lanes) return 0;
  return id;
}

std::uint64_t RemoteTier::Impl::next_of(unsigned lane) {
  if (ping_ != 0 && !jobs_.at(ping_).taken) return ping_;
  if (open_) return 0;
  if (!reads_.empty()) {
    const std::uint64_t id = reads_.front();
    reads_.pop_front();
    return id;
  }
  return next_of_lane(lane);
}

bool RemoteTier::Impl::take(unsigned lane, std::uint32_t wait_ms, RemoteJob* job) {
  if (lane >= config_.lanes) return false;
  std::unique_lock lock(mutex_);
  std::uint64_t id = 0;
  wanted_.wait_for(lock, std::chrono::milliseconds(wait_ms), [&] { return closing_ || (id = next_of(lane)) != 0; });
  if (closing_ || id == 0) return false;
  Pending& pending = jobs_.at(id);
  pending.taken = true;
  if (pending.job.op == RemoteOp::Put || pending.job.op == RemoteOp::Remove) {
    pending.deadline_ms = now_ms() + config_.time_out_ms;
  } else if (pending.job.op == RemoteOp::Clear) {
    pending.deadline_ms = now_ms() + config_.clear_ms_max;
  }
  *job = pending.job;
  changed_.notify_all();
  return true;
}

bool RemoteTier::Impl::object(std::uint64_t id, std::byte* out) {
  std::unique_lock lock(mutex_);
  const auto found = jobs_.find(id);
  if (closing_ || found == jobs_.end() || found->second.job.op != RemoteOp::Put) return false;
  Pending& pending = found->second;  // stays: nobody takes away what is being copied
  pending.copying = true;
  lock.unlock();
  encode_object_header(pending.meta, config_.unix_ms() + config_.ttl_ms, out);
  std::memcpy(out + kObjectHeaderBytes, pending.data, pending.meta.payload_bytes);
  lock.lock();
  pending.copying = false;
  changed_.notify_all();
  return true;
}

// Without the lock: what was read is checked, and copied to where it was wanted.
GetResult RemoteTier::Impl::judge(const Pending& pending, const RemoteAnswer& said) {
  if (said.outcome == RemoteOutcome::Missing) return {TierStatus::Missing, {}};
  if (said.outcome != RemoteOutcome::Ok) return {TierStatus::Failed, {}};
  ShardMeta meta;
  switch (check_object(said.object, pending.item.id, config_.unix_ms(), &meta)) {
    case ObjectVerdict::Wrong:
      return {TierStatus::Corrupt, {}};
    case ObjectVerdict::Foreign:
      return {TierStatus::Missing, {}};
    case ObjectVerdict::Right:
      break;
  }
  if (meta.payload_bytes > pending.item.room_bytes) return {TierStatus::Failed, {}};
  std::memcpy(pending.item.data, said.object.data() + kObjectHeaderBytes, meta.payload_bytes);
  return {TierStatus::Ok, std::move(meta)};
}

void RemoteTier::Impl::done(std::uint64_t id, const RemoteAnswer& said) {
  std::unique_lock lock(mutex_);
  const auto found = jobs_.find(id);
  if (found == jobs_.end() || !found->second.taken) return;  // given up meanwhile
  Pending pending = std::move(found->second);
  jobs_.erase(found);
  if (pending.job.op == RemoteOp::Get) {
    ++claimed_;  // its buffer is ours until it is answered
    lock.unlock();
    GetResult result = judge(pending, said);
    lock.lock();
    --claimed_;
    settle_get(pending, std::move(result));
  } else {
    settle(pending, said);
  }
  heard(pending, said);
  changed_.notify_all();
  wanted_.notify_all();  // its lane may go on
}

void RemoteTier::Impl::answer(const PutBatch& batch, std::size_t at, TierStatus status) {
  if (at < batch->results.size()) batch->results[at] = status;
  if (--batch->left != 0) return;
  answers_.emplace_back([batch] { batch->done(batch->results); });
  changed_.notify_all();
}

void RemoteTier::Impl::answer(const GetBatch& batch, std::size_t at, GetResult result) {
  if (at < batch->results.size()) batch->results[at] = std::move(result);
  if (--batch->left != 0) return;
  answers_.emplace_back([batch] { batch->done(batch->results); });
  changed_.notify_all();
}

// Whatever it is, its waiters are answered, and what is known is brought up to date.
void RemoteTier::Impl::settle(Pending& pending, const RemoteAnswer& said) {
  switch (pending.job.op) {
    case RemoteOp::Put:
      return settle_put(pending, said);
    case RemoteOp::Get:
      return settle_get(pending, {closing_ ? TierStatus::Closed : TierStatus::Failed, {}});
    case RemoteOp::Ask:
      return settle_asked(pending, said);
    case RemoteOp::Remove:
      return settle_removed(pending, said.outcome == RemoteOutcome::Ok);
    case RemoteOp::Clear:
      return settle_cleared(pending, said);
    case RemoteOp::Ping:
      ping_ = 0;
      return;
  }
}

void RemoteTier::Impl::settle_put(Pending& pending, const RemoteAnswer& said) {
  put_bytes_ -= pending.job.bytes;
  reserved_bytes_ -= pending.job.bytes;
  const Entry* entry = known_.find(pending.meta.id, now_ms());
  const bool same = entry != nullptr && entry->state == State::Putting && entry->number == pending.number;
  TierStatus status = closing_ ? TierStatus::Closed : TierStatus::Failed;
  if (said.outcome == RemoteOutcome::Ok) {
    status = TierStatus::Ok;
    stats_.put_bytes += pending.meta.payload_bytes;
    if (same) {
      know(pending.meta, State::Here, true, now_ms() + config_.ttl_ms);
      tell(TierEvent::Kind::Stored, pending.meta);
    }
  } else if (said.outcome == RemoteOutcome::Exists) {
    status = TierStatus::Ok;
    if (same) know(pending.meta, State::Here, false, now_ms() + config_.present_ms);
  } else {
    if (said.outcome == RemoteOutcome::Full) {
      status = TierStatus::Full;
      ++stats_.refused_full;
    } else if (!closing_) {
      ++stats_.failed;
    }
    if (same) known_.erase(pending.meta.id);
  }
  for (const auto& [batch, at] : pending.puts) answer(batch, at, status);
}

void RemoteTier::Impl::settle_get(Pending& pending, GetResult result) {
  get_bytes_ -= pending.job.bytes;
  const ShardId& id = pending.item.id;
  Entry* entry = known_.find(id, now_ms());
  const bool known = entry != nullptr && entry->state == State::Here;
  switch (result.status) {
    case TierStatus::Ok:
      stats_.get_bytes += result.meta.payload_bytes;
      if (known && !entry->own) entry->meta = result.meta;
      break;
    case TierStatus::Missing:
      ++stats_.misses;
      if (known) know(ShardMeta(entry->meta), State::Absent, false, now_ms() + config_.absent_ms);
      break;
    case TierStatus::Corrupt:
      // Nobody can use it, and it would keep a right one away.
      ++stats_.corrupt;
      if (known) know(ShardMeta(entry->meta), State::Leaving, false, 0);
      if (known) queue_removal({id});
      break;
    default:
      if (result.status == TierStatus::Failed) ++stats_.failed;
  }
  answer(pending.get.first, pending.get.second, std::move(result));
}

void RemoteTier::Impl::settle_asked(const Pending& pending, const RemoteAnswer& said) {
  asked_ -= pending.ids.size();
  const bool told = said.outcome == RemoteOutcome::Ok && said.sizes.size() == pending.ids.size();
  for (std::size_t i = 0; i < pending.ids.size(); ++i) {
    const Entry* entry = known_.find(pending.ids[i], now_ms());
    if (entry == nullptr || entry->state != State::Asked) continue;  // put, or cleared, meanwhile
    ShardMeta meta = entry->meta;
    if (!told) {
      known_.erase(meta.id);
    } else if (said.sizes[i] > kObjectHeaderBytes) {
      meta.payload_bytes = said.sizes[i] - kObjectHeaderBytes;
      know(meta, State::Here, false, now_ms() + config_.present_ms);
    } else {
      know(meta, State::Absent, false, now_ms() + config_.absent_ms);
    }
  }
}

void RemoteTier::Impl::settle_removed(const Pending& pending, bool ok) {
  std::vector<ShardId> left;
  for (const ShardId& id : pending.ids) {
    const Entry* entry = known_.find(id, now_ms());
    if (!ok) {
      left.push_back(id);
    } else if (entry != nullptr && entry->state == State::Leaving) {
      known_.erase(id);
    }
  }
  if (left.empty() || closing_) return;
  owed_.insert(owed_.end(), left.begin(), left.end());
}

void RemoteTier::Impl::settle_cleared(const Pending& pending, const RemoteAnswer& said) {
  for (std::uint64_t& gate : at_gate_) gate = gate == pending.job.id ? 0 : gate;
  const auto fence =
      std::find_if(fences_.begin(), fences_.end(), [&](const Fence& one) { return one.job == pending.job.id; });
  if (fence == fences_.end()) return;  // cleared once more meanwhile
  if (said.outcome == RemoteOutcome::Ok) {
    fences_.erase(fence);
  } else {
    fence->job = 0;
  }
}

}  // namespace kvcommons::tiers
