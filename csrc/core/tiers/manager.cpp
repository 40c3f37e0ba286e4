#include "tiers/manager.h"

#include <algorithm>
#include <chrono>

#include "tiers/manager_impl.h"

namespace kvcommons {
namespace {

constexpr std::chrono::milliseconds kRetry{5};     // of a tier that was busy, or a budget that was used up
constexpr std::chrono::milliseconds kIdle{1'000};  // nothing waits
constexpr std::size_t kListedMax = 1'024;          // at a time, of what is in memory since a former life
constexpr std::size_t kRectsMax = 64, kFingerprintsMax = 4'096;

std::uint64_t steady_ms() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

TierManagerConfig filled(TierManagerConfig config) {
  if (!config.now_ms) config.now_ms = steady_ms;
  if (config.write_bytes_in_flight_max == 0) config.write_bytes_in_flight_max = config.arena_bytes / 8;
  if (config.read_bytes_in_flight_max == 0) config.read_bytes_in_flight_max = config.arena_bytes / 4;
  config.batch_bytes = std::min(config.batch_bytes, config.read_bytes_in_flight_max / 2);
  return config;
}

}  // namespace

TierManager::Impl::Impl(const TierManagerConfig& config, Store* store, std::vector<std::shared_ptr<Tier>> tiers)
    : config_(filled(config)),
      store_(store),
      tiers_(std::move(tiers)),
      read_budget_(config_.read_bytes_in_flight_max, config_.read_bytes_per_second_max, config_.now_ms()),
      resolve_at_ms_(config_.now_ms() + config_.former_ms) {
  std::vector<std::shared_ptr<Tier>> written;  // null: the node's own
  for (const auto& tier : tiers_) {
    if (!tier->takes_writes()) continue;
    if (tier->shared()) {
      written.push_back(tier);
    } else if (written.empty() || written.front()) {
      written.insert(written.begin(), nullptr);
    }
  }
  for (auto& tier : written) {
    const std::uint64_t bytes = config_.write_bytes_in_flight_max / written.size();
    ways_.push_back({std::move(tier), {}, {bytes, config_.write_bytes_per_second_max, config_.now_ms()}});
  }
  if (store_->adopted() && !ways_.empty()) listed_to_ = 0;
}

void TierManager::Impl::start() {
  store_->set_sealed_hook([this](std::span<const SealedShard> shards) { sealed(shards); });
  thread_ = std::thread([this] { run(); });
}

void TierManager::Impl::stop() {
  if (!thread_.joinable()) return;
  {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    stop_at_ms_ = now_ms() + config_.stop_ms_max;
    wake_locked();
    quiet_changed_.wait(lock, [this] { return quiet_; });
  }
  // What they still have is answered now: Ok, or Closed.
  for (WayOut& way : ways_) way.shared.reset();
  tiers_.clear();
  thread_.join();
  store_->set_sealed_hook({});
}

void TierManager::Impl::wake_locked() {
  woken_ = true;
  changed_.notify_one();
}

bool TierManager::Impl::idle_locked() const {
  return writes_waiting_locked() == 0 && chains_.empty() && touches_.empty() && under_way_ == 0 &&
         ended_writes_.empty() && ended_reads_.empty() && !listed_to_;
}

std::size_t TierManager::Impl::writes_waiting_locked() const {
  std::size_t shards = 0;
  for (const WayOut& way : ways_) shards += way.waiting.size();
  return shards;
}

bool TierManager::Impl::idle() const {
  const std::lock_guard lock(mutex_);
  return idle_locked();
}

// A write that was under way when its chunk was cleared has yet to be removed: until then a tier may show what is gone.
bool TierManager::Impl::fenced_locked() const {
  return clearing_ != 0 || (!cleared_.empty() && !writing_.empty() && *writing_.begin() < cleared_.back().epoch);
}

void TierManager::Impl::run() {
  for (std::unique_lock lock(mutex_);;) {
    woken_ = false;
    std::vector<WritePtr> writes;
    std::vector<ReadPtr> reads;
    if (clearing_ == 0) writes.swap(ended_writes_);  // else it could not be said which of them to remove again
    reads.swap(ended_reads_);
    const bool some_ended = !writes.empty() || !reads.empty();
    lock.unlock();
    settle_ended(std::move(writes), std::move(reads));
    const bool moved = step() || some_ended;
    lock.lock();
    if (stopping_) end_stopping_locked();
    if (quiet_ && under_way_ == 0 && chains_.empty() && ended_reads_.empty() && ended_writes_.empty()) return;
    if (moved || woken_) continue;
    changed_.wait_for(lock, idle_locked() ? kIdle : kRetry, [this] { return woken_; });
  }
}

void TierManager::Impl::end_stopping_locked() {
  for (const ChainPtr& chain : chains_) chain->given_up.store(true);
  const std::size_t waiting = writes_waiting_locked();
  if ((waiting != 0 || !cleared_.empty()) && now_ms() < stop_at_ms_) return;
  add(counters_.write_dropped, waiting);
  for (WayOut& way : ways_) way.waiting.clear();
  quiet_ = true;
  quiet_changed_.notify_all();
  woken_ = woken_ || !chains_.empty();  // they end in the next round
}

void TierManager::Impl::settle_ended(std::vector<WritePtr> writes, std::vector<ReadPtr> reads) {
  for (const WritePtr& write : writes) write_ended(*write);
  if (!writes.empty() && config_.on_events) config_.on_events();
  for (const ReadPtr& read : reads) {
    read->over = true;
    settle_reads(read->chain);
  }
}

// One batch of each direction. False: nothing could be done.
bool TierManager::Impl::step() {
  if (resolve_at_ms_ && now_ms() >= *resolve_at_ms_) {
    resolve_at_ms_.reset();
    store_->resolve_former_internal();
  }
  const bool read = read_some(), touched = touch_some(), listed = list_some();
  return write_some() || read || touched || listed;
}

// What the former life had in memory is written as if it were stored now, some at a time; the tier knows what it has.
bool TierManager::Impl::list_some() {
  std::uint64_t from = 0;
  {
    const std::lock_guard lock(mutex_);
    if (quiet_) listed_to_.reset();
    if (!listed_to_ || clearing_ != 0 || writes_waiting_locked() >= kListedMax * ways_.size()) return false;
    from = *listed_to_;
  }
  const auto shards = store_->sealed(&from, kListedMax);
  const std::lock_guard lock(mutex_);
  for (const SealedShard& shard : shards) {  // not as if an engine had just computed them: no rate is learnt from these
    know_rect_locked(shard.fingerprint, shard.rect);
    for (WayOut& way : ways_) {
      if (way.waiting.size() >= config_.write_queue_max) {
        add(counters_.write_dropped);
      } else {
        way.waiting.push_back(shard);
      }
    }
  }
  listed_to_ = from != 0 ? std::optional(from) : std::nullopt;
  return true;
}

void TierManager::Impl::know(const ShardId& id) {
  const std::lock_guard lock(mutex_);
  know_rect_locked(id.fingerprint, id.rect);
}

void TierManager::Impl::know_rect_locked(const Key& fingerprint, const Rect& rect) {
  const auto known = rects_.find(fingerprint);
  if (known == rects_.end() && rects_.size() >= kFingerprintsMax) return;
  auto& rects = rects_[fingerprint];
  if (rects.size() < kRectsMax && std::find(rects.begin(), rects.end(), rect) == rects.end()) rects.push_back(rect);
}

int TierManager::Impl::where(const Key& fingerprint, const Key& key) {
  std::vector<ShardId> ids;
  {
    const std::lock_guard lock(mutex_);
    const auto known = rects_.find(fingerprint);
    if (known == rects_.end()) return -1;
    for (const Rect& rect : known->second) ids.push_back({fingerprint, key, rect});
  }
  std::vector<std::uint64_t> bytes(ids.size());
  for (std::size_t i = 0; i < tiers_.size(); ++i) {
    if (tiers_[i]->others()) continue;
    tiers_[i]->find(ids, bytes);
    if (std::any_of(bytes.begin(), bytes.end(), [](std::uint64_t n) { return n != 0; })) return static_cast<int>(i);
  }
  return -1;
}

TierManagerStats TierManager::Impl::stats() const {
  TierManagerStats s{};
  const Counters& c = counters_;
  s.write_in_flight_bytes = c.write_in_flight_bytes.load();
  s.written = c.written.load();
  s.written_bytes = c.written_bytes.load();
  s.write_dropped = c.write_dropped.load();
  s.write_missed = c.write_missed.load();
  s.write_refused = c.write_refused.load();
  s.write_there = c.write_there.load();
  s.read_in_flight_bytes = c.read_in_flight_bytes.load();
  s.promoted = c.promoted.load();
  s.promoted_bytes = c.promoted_bytes.load();
  s.promoted_chunks = c.promoted_chunks.load();
  s.read_failed = c.read_failed.load();
  s.read_refused = c.read_refused.load();
  s.read_no_room = c.read_no_room.load();
  s.clears = c.clears.load();
  s.read_chains = c.read_chains.load();
  const std::lock_guard lock(mutex_);
  s.write_waiting = writes_waiting_locked();
  return s;
}

TierManager::TierManager(const TierManagerConfig& config, Store* store, std::vector<std::shared_ptr<Tier>> tiers)
    : impl_(std::make_unique<Impl>(config, store, std::move(tiers))) {}
TierManager::~TierManager() = default;
void TierManager::start() { impl_->start(); }
void TierManager::stop() { impl_->stop(); }
Expected TierManager::wanted(SessionId session, std::uint64_t tenant, std::span<const Key> keys,
                             std::uint32_t hit_chunks) {
  return impl_->wanted(session, tenant, keys, hit_chunks);
}
Expected TierManager::wanted_by_peer(const SessionSpec& spec, std::span<const Key> keys, std::uint32_t hit_chunks) {
  return impl_->wanted_by_peer(spec, keys, hit_chunks);
}
double TierManager::tokens_per_second() const { return impl_->tokens_per_second(); }
std::uint64_t TierManager::clear(const Key* fingerprint, std::uint64_t* tier_shards) {
  Selection selection;
  if (fingerprint != nullptr) selection.fingerprint = *fingerprint;
  std::vector<std::uint64_t> shards(impl_->tiers().size());
  const std::uint64_t chunks = impl_->clear(selection, kEverywhere, shards);
  for (const std::uint64_t of_tier : shards) *tier_shards += of_tier;
  return chunks;
}
std::uint64_t TierManager::clear(const Selection& selection, Places places, std::span<std::uint64_t> tier_shards) {
  return impl_->clear(selection, places, tier_shards);
}
std::uint64_t TierManager::write(const Key& fingerprint, std::span<const Key> keys) {
  return impl_->write(fingerprint, keys);
}
Expected TierManager::bring(const Key& fingerprint, std::span<const Key> keys) {
  return impl_->bring(fingerprint, keys);
}
Expected TierManager::bring_from(std::string_view peer, const SessionSpec& spec, std::uint64_t tenant,
                                 std::span<const Key> keys) {
  return impl_->bring_from(peer, spec, tenant, keys);
}
bool TierManager::layout_of(const Key& fingerprint, const Key& key, SessionSpec* spec, std::uint64_t* tenant) {
  return impl_->layout_of(fingerprint, key, spec, tenant);
}
std::uint64_t TierManager::remove(std::size_t tier, const Key& fingerprint, std::span<const Key> keys) {
  return impl_->remove(tier, fingerprint, keys);
}
std::vector<Places> TierManager::places(const Key& fingerprint, std::span<const Key> keys) {
  return impl_->places(fingerprint, keys);
}
int TierManager::where(const Key& fingerprint, const Key& key) { return impl_->where(fingerprint, key); }
void TierManager::know(const ShardId& id) { impl_->know(id); }
std::vector<Rect> TierManager::rects(const Key& fingerprint) { return impl_->rects_of(fingerprint); }
std::span<const std::shared_ptr<Tier>> TierManager::tiers() const { return impl_->tiers(); }
TierManagerStats TierManager::stats() const { return impl_->stats(); }
bool TierManager::idle() const { return impl_->idle(); }

}  // namespace kvcommons
