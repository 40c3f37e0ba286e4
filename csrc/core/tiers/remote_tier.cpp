// The remote tier as its users see it: what it knows, and what it queues.
#include "tiers/remote_tier.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "tiers/remote_tier_impl.h"

namespace kvcommons::tiers {
namespace {

constexpr std::uint32_t kLanesMax = 64;
constexpr std::size_t kSoughtMax = 64;  // shards of one lookup that are asked for at one time

template <typename Clock>
std::uint64_t clock_ms() {
  const auto now = Clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

RemoteConfig checked(RemoteConfig config) {
  if (config.capacity_bytes <= kObjectHeaderBytes) {
    throw std::invalid_argument(config.name + ".capacity_bytes " + std::to_string(config.capacity_bytes) +
                                " holds nothing: give a few GiB");
  }
  if (config.lanes == 0 || config.lanes > kLanesMax) {
    throw std::invalid_argument(config.name + ".connections " + std::to_string(config.lanes) + ": give 1 to " +
                                std::to_string(kLanesMax));
  }
  if (config.time_out_ms == 0 || config.ttl_ms == 0) {
    throw std::invalid_argument(config.name + ": time_out_ms and ttl_seconds must be more than 0");
  }
  if (!config.now_ms) config.now_ms = clock_ms<std::chrono::steady_clock>;
  if (!config.unix_ms) config.unix_ms = clock_ms<std::chrono::system_clock>;
  return config;
}

}  // namespace

RemoteTier::Impl::Impl(RemoteConfig config)
    : config_(checked(std::move(config))),
      known_(config_.known_shards_max),
      writes_(config_.lanes),
      at_gate_(config_.lanes),
      retry_ms_(config_.retry_ms_min) {
  stats_.capacity_bytes = config_.capacity_bytes;
}

unsigned RemoteTier::Impl::lane_of(const ShardId& id) const {
  return static_cast<unsigned>((ShardIdHash{}(id) >> 17) % config_.lanes);
}

bool RemoteTier::Impl::fenced(const Key& fingerprint) const {
  return std::any_of(fences_.begin(), fences_.end(),
                     [&](const Fence& fence) { return !fence.fingerprint || *fence.fingerprint == fingerprint; });
}

void RemoteTier::Impl::tell(TierEvent::Kind kind, const ShardMeta& meta) {
  if (events_.size() >= config_.events_max) {
    events_.clear();
    gap_ = true;
  }
  events_.push_back({kind, meta});
}

void RemoteTier::Impl::tell_dropped(const std::vector<ShardMeta>& metas) {
  for (const ShardMeta& meta : metas) tell(TierEvent::Kind::Dropped, meta);
}

RemoteTier::Impl::Entry& RemoteTier::Impl::know(const ShardMeta& meta, State state, bool own, std::uint64_t until_ms) {
  const Entry* before = known_.find(meta.id, now_ms());
  if (before != nullptr && before->own && !own) tell(TierEvent::Kind::Dropped, before->meta);
  std::vector<ShardMeta> dropped;
  Entry& entry = known_.set(meta, state, own, until_ms, &dropped);
  tell_dropped(dropped);
  return entry;
}

// It is not there any more, and unknown.
void RemoteTier::Impl::drop(const ShardId& id) {
  const Entry* entry = known_.find(id, now_ms());
  if (entry != nullptr && entry->own) tell(TierEvent::Kind::Dropped, entry->meta);
  known_.erase(id);
}

// What may be read now; null for everything else.
RemoteTier::Impl::Entry* RemoteTier::Impl::here(const ShardId& id) {
  if (open_ || closing_) return nullptr;
  Entry* entry = known_.find(id, now_ms());
  if (entry == nullptr || entry->state != State::Here || entry->until_ms <= now_ms()) return nullptr;
  return fences_.empty() || !fenced(id.fingerprint) ? entry : nullptr;
}

RemoteTier::Impl::Pending& RemoteTier::Impl::queue(RemoteOp op, std::optional<unsigned> lane) {
  const std::uint64_t id = next_job_++;
  Pending& pending = jobs_[id];
  pending.job.id = id;
  pending.job.op = op;
  pending.job.time_out_ms = config_.time_out_ms;
  // A write may wait for others; a read that comes too late is of no use.
  pending.deadline_ms = now_ms() + (lane ? 10ull * config_.time_out_ms : config_.time_out_ms);
  (lane ? writes_[*lane] : reads_).push_back(id);
  wanted_.notify_all();
  changed_.notify_all();
  return pending;
}

bool RemoteTier::Impl::make_room(std::uint64_t bytes) {
  if (bytes > config_.capacity_bytes) return false;
  while (known_.own_bytes() + reserved_bytes_ + bytes > config_.capacity_bytes) {
    const Entry* oldest = known_.oldest_own();
    if (oldest == nullptr) return false;
    const ShardMeta meta = oldest->meta;
    ++stats_.evicted;
    know(meta, State::Leaving, false, 0);
    queue_removal({meta.id});
  }
  return true;
}

// Ok: it is there. Missing: it is on its way, and `batch` will be answered.
TierStatus RemoteTier::Impl::begin_put(const PutItem& item, const PutBatch& batch, std::size_t at) {
  ++stats_.puts;
  const ShardId& id = item.meta.id;
  if (here(id) != nullptr) return TierStatus::Ok;
  if (open_) return TierStatus::Failed;
  const Entry* entry = known_.find(id, now_ms());
  if (entry != nullptr && entry->state == State::Putting) {
    const auto same = std::find_if(jobs_.begin(), jobs_.end(), [&](const auto& job) {
      return job.second.job.op == RemoteOp::Put && job.second.number == entry->number;
    });
    if (same != jobs_.end()) {
      same->second.puts.emplace_back(batch, at);
      return TierStatus::Missing;
    }
  }
  const auto waits = [&](const Fence& f) { return f.job == 0 && (!f.fingerprint || *f.fingerprint == id.fingerprint); };
  if (std::any_of(fences_.begin(), fences_.end(), waits)) return TierStatus::Failed;
  const std::uint64_t bytes = RemoteKnown::object_bytes(item.meta);
  if (full_until_ms_ > now_ms() || !make_room(bytes)) {
    ++stats_.refused_full;
    return TierStatus::Full;
  }
  const std::uint64_t number = know(item.meta, State::Putting, false, 0).number;
  reserved_bytes_ += bytes;
  put_bytes_ += bytes;
  Pending& pending = queue(RemoteOp::Put, lane_of(id));
  pending.job.names = {object_name(config_.prefix, id)};
  pending.job.bytes = bytes;
  pending.job.ttl_ms = config_.ttl_ms;
  pending.meta = item.meta;
  pending.data = item.data;
  pending.number = number;
  pending.puts.emplace_back(batch, at);
  return TierStatus::Missing;
}

bool RemoteTier::Impl::put(std::vector<PutItem> batch, PutDone done) {
  const std::lock_guard lock(mutex_);
  if (closing_ || put_bytes_ >= config_.queue_bytes_max) {
    stats_.refused_busy += batch.size();
    return false;
  }
  const auto state = std::make_shared<RemoteBatch<TierStatus, PutDone>>();
  state->results.resize(batch.size(), TierStatus::Closed);
  state->left = batch.size() + 1;
  state->done = std::move(done);
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const TierStatus status = begin_put(batch[i], state, i);
    if (status != TierStatus::Missing) answer(state, i, status);
  }
  answer(state, batch.size(), TierStatus::Ok);  // from here on it may end
  return true;
}

bool RemoteTier::Impl::get(std::vector<GetItem> batch, GetDone done) {
  const std::lock_guard lock(mutex_);
  if (closing_ || get_bytes_ >= config_.queue_bytes_max) {
    stats_.refused_busy += batch.size();
    return false;
  }
  const auto state = std::make_shared<RemoteBatch<GetResult, GetDone>>();
  state->results.resize(batch.size(), GetResult{TierStatus::Closed, {}});
  state->left = batch.size() + 1;
  state->done = std::move(done);
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const GetItem& item = batch[i];
    ++stats_.gets;
    if (here(item.id) == nullptr) {
      ++stats_.misses;
      answer(state, i, {TierStatus::Missing, {}});
      continue;
    }
    Pending& pending = queue(RemoteOp::Get, std::nullopt);
    pending.job.names = {object_name(config_.prefix, item.id)};
    pending.job.bytes = kObjectHeaderBytes + item.room_bytes;
    pending.item = item;
    pending.ids = {item.id};
    pending.get = {state, i};
    get_bytes_ += pending.job.bytes;
  }
  answer(state, batch.size(), {TierStatus::Ok, {}});
  return true;
}

void RemoteTier::Impl::find(std::span<const ShardId> ids, std::span<std::uint64_t> payload_bytes) {
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const Entry* entry = here(ids[i]);
    payload_bytes[i] = entry == nullptr ? 0 : entry->meta.payload_bytes;
  }
}

bool RemoteTier::Impl::describe(const ShardId& id, ShardMeta* out) {
  const std::lock_guard lock(mutex_);
  const Entry* entry = here(id);
  if (entry == nullptr || entry->meta.checksum == 0) return false;  // of another's nothing but the size is known
  *out = entry->meta;
  return true;
}

std::vector<ShardMeta> RemoteTier::Impl::inventory(std::uint64_t* cursor, std::size_t max) const {
  const std::lock_guard lock(mutex_);
  return known_.own_page(cursor, max);
}

std::vector<TierEvent> RemoteTier::Impl::drain_events(std::size_t max, bool* gap) {
  const std::lock_guard lock(mutex_);
  *gap = std::exchange(gap_, false);
  const auto count = static_cast<std::ptrdiff_t>(std::min(max, events_.size()));
  std::vector<TierEvent> out(events_.begin(), events_.begin() + count);
  events_.erase(events_.begin(), events_.begin() + count);
  return out;
}

TierStats RemoteTier::Impl::stats() const {
  const std::lock_guard lock(mutex_);
  TierStats stats = stats_;
  stats.used_bytes = known_.own_bytes() + reserved_bytes_;
  stats.shards = known_.own_shards();
  stats.metadata_bytes = known_.metadata_bytes();
  stats.queued_gets = reads_.size();
  for (const auto& lane : writes_) stats.queued_puts += lane.size();
  return stats;
}

RemoteTier::RemoteTier(RemoteConfig config) : impl_(std::make_shared<Impl>(std::move(config))) { impl_->start(impl_); }
RemoteTier::~RemoteTier() { impl_->close(); }
std::shared_ptr<RemotePort> RemoteTier::port() const { return impl_; }
std::string_view RemoteTier::name() const noexcept { return impl_->name(); }
bool RemoteTier::put(std::vector<PutItem> batch, PutDone done) { return impl_->put(std::move(batch), std::move(done)); }
bool RemoteTier::get(std::vector<GetItem> batch, GetDone done) { return impl_->get(std::move(batch), std::move(done)); }
void RemoteTier::find(std::span<const ShardId> ids, std::span<std::uint64_t> payload_bytes) {
  impl_->find(ids, payload_bytes);
}
std::size_t RemoteTier::ask(std::span<const ShardId> ids) { return impl_->ask(ids); }
bool RemoteTier::seek(const Sought& sought) {
  const std::size_t chunks = std::min(sought.keys.size(), std::max<std::size_t>(1, kSoughtMax / sought.shards.size()));
  std::vector<ShardId> ids;
  for (const Key& key : sought.keys.first(chunks)) {
    for (const ShardSpec& shard : sought.shards) ids.push_back({sought.fingerprint, key, shard.rect});
  }
  return impl_->ask(ids) != 0;
}
bool RemoteTier::describe(const ShardId& id, ShardMeta* out) { return impl_->describe(id, out); }
void RemoteTier::touch(std::span<const ShardId>) {}  // the ttl is a hard one
std::uint64_t RemoteTier::remove(std::span<const ShardId> ids) { return impl_->remove(ids); }
std::uint64_t RemoteTier::clear(const Key* fingerprint) { return impl_->clear(fingerprint); }
std::vector<ShardMeta> RemoteTier::inventory(std::uint64_t* cursor, std::size_t max) {
  return impl_->inventory(cursor, max);
}
std::vector<TierEvent> RemoteTier::drain_events(std::size_t max, bool* gap) { return impl_->drain_events(max, gap); }
TierHealth RemoteTier::health(std::string* why) const { return impl_->health(why); }
TierStats RemoteTier::stats() const { return impl_->stats(); }

}  // namespace kvcommons::tiers
