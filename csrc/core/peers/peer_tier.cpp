#include "peers/peer_tier.h"

#include <algorithm>
#include <chrono>
#include <set>
#include <utility>

#include "peers/peer_greeting.h"
#include "peers/peer_tier_impl.h"

namespace kvcommons::peers {
namespace {

constexpr std::size_t kBatchesMax = 4'096;
constexpr std::size_t kThreadJobsMax = 1u << 20;  // of kBatchesMax batches, each in as many parts as there may be
constexpr std::size_t kEventsMax = 65'536;
constexpr std::uint64_t kPartBytesMin = 256u << 10;  // less is not cut further

std::uint64_t steady_ms() {
  const auto now = Clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

PeerTierConfig filled(PeerTierConfig config) {
  if (!config.now_ms) config.now_ms = steady_ms;
  return config;
}

}  // namespace

PeerTier::Impl::Impl(PeerTierConfig config)
    : config_(filled(std::move(config))),
      greeting_key_(greeting_key(config_.secret)),
      directory_(config_.locations_max, config_.copies_bytes_max),
      thread_(kThreadJobsMax) {
  if (config_.tls) tls_ = std::make_unique<TlsContext>(*config_.tls);
  stats_.capacity_bytes = config_.copies_bytes_max;
}

PeerTier::Impl::~Impl() {
  std::map<std::uint32_t, LinkPtr> links;
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    links.swap(links_);
  }
  for (const auto& [slot, link] : links) link->close();
  thread_.close();
}

void PeerTier::Impl::set_peers(std::vector<PeerAddress> peers) {
  const std::lock_guard lock(mutex_);
  if (closing_) return;
  std::map<std::uint32_t, PeerAddress> table;
  for (PeerAddress& peer : peers) table[peer.slot] = std::move(peer);
  for (auto link = links_.begin(); link != links_.end();) {
    const auto following = std::next(link);
    const PeerAddress& before = link->second->address();
    const auto now = table.find(link->first);
    const bool same = now != table.end() && now->second.host == before.host && now->second.port == before.port &&
                      now->second.name == before.name;
    const auto known = peers_.find(link->first);
    if (!same) {
      retire_locked(link);
    } else if (known == peers_.end() || known->second.epoch != now->second.epoch) {
      directory_.forget_if([&](const ShardId&, const Location& at) { return at.link == link->second; });
    }
    link = following;
  }
  peers_ = std::move(table);
}

// Closed on the tier's own thread: its threads may be in the middle of something.
void PeerTier::Impl::retire_locked(std::map<std::uint32_t, LinkPtr>::iterator link) {
  directory_.forget_if([&](const ShardId&, const Location& at) { return at.link == link->second; });
  (void)thread_.post([retired = link->second](bool) { retired->close(); });
  links_.erase(link);
}

LinkPtr PeerTier::Impl::link_locked(std::uint32_t slot) {
  const auto known = links_.find(slot);
  if (known != links_.end()) return known->second;
  const auto peer = peers_.find(slot);
  if (peer == peers_.end() || closing_) return nullptr;
  if (links_.size() >= config_.peers_max) {
    const auto idle = std::find_if(links_.begin(), links_.end(), [](const auto& one) { return one.second->idle(); });
    if (idle == links_.end()) return nullptr;
    retire_locked(idle);
  }
  PeerLinkConfig link;
  link.greeting_key = greeting_key_;
  link.tls = tls_.get();
  link.sockets = config_.sockets_per_peer;
  link.connect_ms_max = config_.connect_ms_max;
  link.breaker_ms_min = config_.breaker_ms_min;
  link.breaker_ms_max = config_.breaker_ms_max;
  return links_[slot] = std::make_shared<PeerLink>(link, peer->second);
}

// A batch at a time is let in up to a bound of bytes, or one alone.
bool PeerTier::Impl::admit_locked(std::uint64_t bytes) {
  const bool room = batches_ == 0 || admitted_bytes_ + bytes <= config_.queue_bytes_max;
  if (closing_ || !room || batches_ >= kBatchesMax) return false;
  ++batches_;
  admitted_bytes_ += bytes;
  return true;
}

void PeerTier::Impl::admitted_over(std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  --batches_;
  admitted_bytes_ -= bytes;
}

// By where they are; each part a connection's work. What is nowhere stays Missing.
std::vector<PeerTier::Impl::Part> PeerTier::Impl::parts_of(const std::vector<GetItem>& batch,
                                                           std::vector<GetResult>* results) {
  std::vector<Part> whole;
  const std::lock_guard lock(mutex_);
  const std::uint64_t now = now_ms();
  for (std::size_t i = 0; i < batch.size(); ++i) {
    ++stats_.gets;
    const Directory::Copy* copy = directory_.copy(batch[i].id);
    const Location* at = copy == nullptr ? directory_.at(batch[i].id, now) : nullptr;
    if (copy == nullptr && at == nullptr) {
      ++stats_.misses;
      continue;
    }
    const std::uint64_t bytes = copy != nullptr ? copy->meta.payload_bytes : at->payload_bytes;
    if (bytes > batch[i].room_bytes) {
      (*results)[i].status = TierStatus::Failed;
      ++stats_.failed;
      continue;
    }
    const LinkPtr& link = copy != nullptr ? copy->link : at->link;
    const std::uint32_t epoch = copy != nullptr ? wire::kAnyEpoch : at->epoch;
    const Key& fingerprint = batch[i].id.fingerprint;
    auto part = std::find_if(whole.begin(), whole.end(), [&](const Part& one) {
      return one.link == link && one.epoch == epoch && one.fingerprint == fingerprint;
    });
    if (part == whole.end()) part = whole.insert(whole.end(), Part{link, epoch, fingerprint, {}, 0});
    part->items.push_back({batch[i], copy != nullptr ? wire::kAnyGeneration : at->generation, i});
    part->bytes += bytes;
  }
  std::vector<Part> parts;
  for (Part& part : whole) {
    const auto pieces = std::clamp<std::uint64_t>(part.bytes / kPartBytesMin, 1, config_.sockets_per_peer);
    const std::size_t each = std::min<std::size_t>((part.items.size() + pieces - 1) / pieces, wire::kItemsMax);
    const std::uint64_t share = part.bytes / part.items.size();
    for (std::size_t at = 0; at < part.items.size(); at += each) {
      const std::size_t end = std::min(part.items.size(), at + each);
      Part piece{part.link, part.epoch, part.fingerprint, {}, share * (end - at)};
      for (std::size_t i = at; i < end; ++i) piece.items.push_back(part.items[i]);
      parts.push_back(std::move(piece));
    }
  }
  return parts;
}

bool PeerTier::Impl::get(std::vector<GetItem> batch, GetDone done) {
  std::uint64_t bytes = 0;
  for (const GetItem& item : batch) bytes += item.room_bytes;
  {
    const std::lock_guard lock(mutex_);
    if (!admit_locked(bytes)) {
      stats_.refused_busy += batch.size();
      return false;
    }
  }
  const auto gets = std::make_shared<Batch<GetResult>>(batch.size(), GetResult{}, std::move(done));
  gets->on_end = [this, bytes] { admitted_over(bytes); };
  const std::vector<Part> parts = parts_of(batch, &gets->results);
  std::size_t items = 1;  // one for this call, so that the answer comes on another thread
  for (const Part& part : parts) items += part.items.size();
  gets->left.store(items);
  for (const Part& part : parts) post_part(part, gets);
  if (parts.empty()) {
    if (!thread_.post([gets](bool) { gets->ended(1); })) std::thread([gets] { gets->ended(1); }).join();
  } else if (gets->left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    gets->left.store(1);  // all others were faster
    if (!thread_.post([gets](bool) { gets->ended(1); })) std::thread([gets] { gets->ended(1); }).join();
  }
  return true;
}

void PeerTier::Impl::post_part(const Part& part, const Gets& gets) {
  PeerLink* link = part.link.get();
  auto job = std::make_unique<FetchJob>(
      part.items, part.epoch, gets,
      [this, link](const FetchItem& item, const GetResult& result) { fetched(item, result, link); });
  job->bytes = part.bytes;
  job->ms_max = config_.fetch_ms_max;
  if (JobPtr back = part.link->post(std::move(job))) end_elsewhere(std::move(back), TierStatus::Failed);
}

void PeerTier::Impl::end_elsewhere(JobPtr job, TierStatus status) {
  const std::shared_ptr<PeerJob> shared = std::move(job);
  if (!thread_.post([shared, status](bool) { shared->end(status); })) {
    std::thread([&] { shared->end(status); }).join();
  }
}

void PeerTier::Impl::fetched(const FetchItem& item, const GetResult& result, PeerLink* link) {
  if (result.status == TierStatus::Ok) link->received(1, result.meta.payload_bytes);
  const std::lock_guard lock(mutex_);
  if (result.status == TierStatus::Ok) {
    stats_.get_bytes += result.meta.payload_bytes;
    ++peer_stats_.fetched;
    peer_stats_.fetched_bytes += result.meta.payload_bytes;
    return;
  }
  directory_.forget(item.wanted.id);
  Directory::Copy copy;
  if (result.status == TierStatus::Missing) {
    ++peer_stats_.gone;
    ++stats_.misses;
    if (directory_.uncopy(item.wanted.id, &copy)) tell_locked(TierEvent::Kind::Dropped, copy.meta);
  } else if (result.status == TierStatus::Corrupt) {
    ++stats_.corrupt;
    if (directory_.uncopy(item.wanted.id, &copy)) tell_locked(TierEvent::Kind::Dropped, copy.meta);
  } else {
    ++stats_.failed;
    ++peer_stats_.failed;
  }
}

LinkPtr PeerTier::Impl::link_for_put() {
  const std::lock_guard lock(mutex_);
  for (const auto& [slot, peer] : peers_) {
    if (LinkPtr link = link_locked(slot); link && link->usable()) return link;
  }
  return nullptr;
}

bool PeerTier::Impl::put(std::vector<PutItem> batch, PutDone done) {
  const LinkPtr link = link_for_put();
  std::uint64_t bytes = 0;
  for (const PutItem& item : batch) bytes += item.meta.payload_bytes;
  const auto puts = std::make_shared<Batch<TierStatus>>(batch.size(), TierStatus::Ok, std::move(done));
  std::vector<PushItem> items;
  {
    const std::lock_guard lock(mutex_);
    if (!admit_locked(bytes)) {
      stats_.refused_busy += batch.size();
      return false;
    }
    for (std::size_t i = 0; i < batch.size(); ++i) {
      ++stats_.puts;
      if (directory_.copy(batch[i].meta.id) != nullptr) continue;
      if (!link || Directory::room(batch[i].meta.payload_bytes) > config_.copies_bytes_max) {
        puts->results[i] = link ? TierStatus::Full : TierStatus::Failed;
        ++stats_.refused_full;
      } else {
        items.push_back({std::move(batch[i]), i});
      }
    }
  }
  puts->on_end = [this, bytes] { admitted_over(bytes); };
  puts->left.store(std::max<std::size_t>(1, items.size()));
  if (items.empty()) {
    if (!thread_.post([puts](bool) { puts->ended(1); })) std::thread([puts] { puts->ended(1); }).join();
    return true;
  }
  auto job = std::make_unique<PushJob>(
      std::move(items), std::vector<ShardSpec>{}, puts,
      [this, link](const PushItem& item, wire::Answer answer) { return pushed(item, answer, link); });
  job->bytes = bytes;
  job->ms_max = config_.fetch_ms_max;
  if (JobPtr back = link->post(std::move(job), true)) end_elsewhere(std::move(back), TierStatus::Failed);
  return true;
}

TierStatus PeerTier::Impl::pushed(const PushItem& item, wire::Answer answer, const LinkPtr& link) {
  if (answer != wire::Answer::Ok) {
    const std::lock_guard lock(mutex_);
    ++stats_.refused_full;
    return answer == wire::Answer::Busy ? TierStatus::Full : TierStatus::Failed;
  }
  std::vector<Directory::Copy> evicted;
  {
    const std::lock_guard lock(mutex_);
    if (directory_.copy(item.given.meta.id) == nullptr && directory_.copied(item.given.meta, link, &evicted)) {
      for (const Directory::Copy& copy : evicted) tell_locked(TierEvent::Kind::Dropped, copy.meta);
      tell_locked(TierEvent::Kind::Stored, item.given.meta);
      stats_.evicted += evicted.size();
      stats_.put_bytes += item.given.meta.payload_bytes;
    }
  }
  drop_copies(evicted);
  return TierStatus::Ok;
}

// Told to whom they were given, after all that was put there before.
void PeerTier::Impl::drop_copies(const std::vector<Directory::Copy>& copies) {
  std::map<LinkPtr, std::vector<ShardId>> by_link;
  for (const Directory::Copy& copy : copies) by_link[copy.link].push_back(copy.meta.id);
  for (auto& [link, ids] : by_link) {
    auto job = std::make_unique<RemoveJob>(std::move(ids));
    job->ms_max = config_.fetch_ms_max;
    (void)link->post(std::move(job), true);
  }
}

void PeerTier::Impl::find(std::span<const ShardId> ids, std::span<std::uint64_t> payload_bytes) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t now = now_ms();
  const PeerLink* asked = nullptr;
  bool usable = false;
  const auto reached = [&](const LinkPtr& link) {
    if (link.get() != asked) {
      asked = link.get();
      usable = link->usable();
    }
    return usable;
  };
  for (std::size_t i = 0; i < ids.size(); ++i) {
    payload_bytes[i] = 0;
    if (const Directory::Copy* copy = directory_.copy(ids[i])) {
      if (reached(copy->link)) payload_bytes[i] = copy->meta.payload_bytes;
    } else if (const Location* at = directory_.at(ids[i], now)) {
      if (reached(at->link)) payload_bytes[i] = at->payload_bytes;
    }
  }
}

bool PeerTier::Impl::spare(const ShardId& id) {
  const std::lock_guard lock(mutex_);
  const Location* at = directory_.at(id, now_ms());
  return at != nullptr && at->spare;
}

bool PeerTier::Impl::describe(const ShardId& id, ShardMeta* out) {
  const std::lock_guard lock(mutex_);
  const Directory::Copy* copy = directory_.copy(id);
  if (copy != nullptr) *out = copy->meta;
  return copy != nullptr;
}

std::uint64_t PeerTier::Impl::remove(std::span<const ShardId> ids) {
  std::vector<Directory::Copy> removed;
  {
    const std::lock_guard lock(mutex_);
    for (const ShardId& id : ids) {
      directory_.forget(id);
      Directory::Copy copy;
      if (!directory_.uncopy(id, &copy)) continue;
      tell_locked(TierEvent::Kind::Dropped, copy.meta);
      removed.push_back(std::move(copy));
    }
  }
  drop_copies(removed);
  return removed.size();
}

std::uint64_t PeerTier::Impl::clear(const Key* fingerprint) {
  const auto meant = [&](const ShardId& id) { return fingerprint == nullptr || id.fingerprint == *fingerprint; };
  std::vector<ShardId> ids;
  {
    const std::lock_guard lock(mutex_);
    directory_.forget_if([&](const ShardId& id, const Location&) { return meant(id); });
    for (const Directory::Copy& copy : directory_.copies()) {
      if (meant(copy.meta.id)) ids.push_back(copy.meta.id);
    }
  }
  return remove(ids);
}

std::vector<ShardMeta> PeerTier::Impl::inventory(std::uint64_t* cursor, std::size_t max) {
  const std::lock_guard lock(mutex_);
  std::vector<ShardMeta> out;
  std::uint64_t last = 0;
  for (const Directory::Copy& copy : directory_.copies()) {
    if (copy.number <= *cursor) continue;
    if (out.size() == max) {
      *cursor = last;
      return out;
    }
    out.push_back(copy.meta);
    last = copy.number;
  }
  *cursor = 0;
  return out;
}

void PeerTier::Impl::tell_locked(TierEvent::Kind kind, const ShardMeta& meta) {
  if (events_.size() >= kEventsMax) {
    events_.clear();
    gap_ = true;
  }
  events_.push_back({kind, meta});
}

std::vector<TierEvent> PeerTier::Impl::drain_events(std::size_t max, bool* gap) {
  const std::lock_guard lock(mutex_);
  *gap = std::exchange(gap_, false);
  const auto count = static_cast<std::ptrdiff_t>(std::min(max, events_.size()));
  std::vector<TierEvent> out(events_.begin(), events_.begin() + count);
  events_.erase(events_.begin(), events_.begin() + count);
  return out;
}

TierHealth PeerTier::Impl::health(std::string* why) const {
  const std::lock_guard lock(mutex_);
  why->clear();
  std::string name;
  std::size_t open = 0;
  for (const auto& [slot, link] : links_) {
    const PeerLinkStats stats = link->stats();
    if (!stats.open) continue;
    if (open++ == 0) name = link->address().name + ": " + stats.why;
  }
  if (open == 0) return TierHealth::Serving;
  *why = std::to_string(open) + " of " + std::to_string(links_.size()) + " peers are not asked for now; " + name;
  return TierHealth::Degraded;
}

TierStats PeerTier::Impl::stats() const {
  const std::lock_guard lock(mutex_);
  TierStats s = stats_;
  s.used_bytes = directory_.used_bytes();
  s.shards = directory_.copies().size();
  s.queued_gets = batches_;
  s.metadata_bytes = (directory_.locations() + s.shards) * 256;
  return s;
}

PeerTierStats PeerTier::Impl::peer_stats() const {
  const std::lock_guard lock(mutex_);
  PeerTierStats s = peer_stats_;
  s.locations = directory_.locations();
  s.peers = peers_.size();
  s.links = links_.size();
  for (const auto& [slot, link] : links_) s.open_links += link->stats().open ? 1 : 0;
  return s;
}

std::vector<PeerStatus> PeerTier::Impl::peers() const {
  const std::lock_guard lock(mutex_);
  std::vector<PeerStatus> out;
  for (const auto& [slot, peer] : peers_) {
    const auto link = links_.find(slot);
    out.push_back({peer, link == links_.end() ? PeerLinkStats{} : link->second->stats()});
  }
  return out;
}

PeerTier::PeerTier(PeerTierConfig config) : impl_(std::make_unique<Impl>(std::move(config))) {}
PeerTier::~PeerTier() = default;
void PeerTier::set_peers(std::vector<PeerAddress> peers) { impl_->set_peers(std::move(peers)); }
std::vector<Question> PeerTier::questions(std::size_t max) { return impl_->questions(max); }
void PeerTier::answer(std::uint64_t question, std::vector<Candidate> candidates) {
  impl_->answer(question, std::move(candidates));
}
PeerTierStats PeerTier::peer_stats() const { return impl_->peer_stats(); }
std::vector<PeerStatus> PeerTier::peers() const { return impl_->peers(); }
bool PeerTier::put(std::vector<PutItem> batch, PutDone done) { return impl_->put(std::move(batch), std::move(done)); }
bool PeerTier::get(std::vector<GetItem> batch, GetDone done) { return impl_->get(std::move(batch), std::move(done)); }
void PeerTier::find(std::span<const ShardId> ids, std::span<std::uint64_t> payload_bytes) {
  impl_->find(ids, payload_bytes);
}
bool PeerTier::seek(const Sought& sought) { return impl_->seek(sought); }
bool PeerTier::spare(const ShardId& id) { return impl_->spare(id); }
bool PeerTier::describe(const ShardId& id, ShardMeta* out) { return impl_->describe(id, out); }
void PeerTier::touch(std::span<const ShardId>) {}
std::uint64_t PeerTier::remove(std::span<const ShardId> ids) { return impl_->remove(ids); }
std::uint64_t PeerTier::clear(const Key* fingerprint) { return impl_->clear(fingerprint); }
std::vector<ShardMeta> PeerTier::inventory(std::uint64_t* cursor, std::size_t max) {
  return impl_->inventory(cursor, max);
}
std::vector<TierEvent> PeerTier::drain_events(std::size_t max, bool* gap) { return impl_->drain_events(max, gap); }
TierHealth PeerTier::health(std::string* why) const { return impl_->health(why); }
TierStats PeerTier::stats() const { return impl_->stats(); }

}  // namespace kvcommons::peers
