// Sessions of this life and of former ones: opened, closed, resolved.
#include <algorithm>
#include <utility>

#include "store_impl.h"

namespace kvcommons {
namespace {

constexpr std::size_t kFeedbackBytesMax = 4096;
constexpr std::uint64_t kSlotBytesMax = ~std::uint32_t{0};  // as records have it

Status check(const SessionSpec& spec, const internal::Slabs& slabs) {
  if (spec.shards.size() > kShardsPerChunkMax) {
    return Status::TooLarge;
  }
  if (spec.own_shard && *spec.own_shard >= spec.shards.size()) {
    return Status::BadFrame;
  }
  for (std::size_t i = 0; i < spec.shards.size(); ++i) {
    const ShardSpec& s = spec.shards[i];
    if (s.slot_bytes == 0 || s.rect.layer_begin >= s.rect.layer_end || s.rect.head_begin >= s.rect.head_end) {
      return Status::BadFrame;
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (spec.shards[j].rect == s.rect) {
        return Status::BadFrame;
      }
    }
    if (s.slot_bytes > kSlotBytesMax || !slabs.fits(internal::Slabs::stride_of(s.slot_bytes))) {
      return Status::TooLarge;
    }
  }
  return Status::Ok;
}

// Length of the UTF-8 sequence at s[i] as RFC 3629 allows it; 0 = malformed.
std::size_t utf8_sequence(std::string_view s, std::size_t i) {
  const auto at = [&](std::size_t k) -> unsigned { return k < s.size() ? static_cast<unsigned char>(s[k]) : 0u; };
  const unsigned a = at(i);
  const unsigned b = at(i + 1);
  const auto tail = [](unsigned c) { return (c & 0xc0) == 0x80; };
  if (a < 0x80) {
    return 1;
  }
  if (a >= 0xc2 && a <= 0xdf) {
    return tail(b) ? 2 : 0;
  }
  if (a >= 0xe0 && a <= 0xef) {
    const bool overlong = a == 0xe0 && b < 0xa0;
    const bool surrogate = a == 0xed && b > 0x9f;
    return tail(b) && tail(at(i + 2)) && !overlong && !surrogate ? 3 : 0;
  }
  if (a >= 0xf0 && a <= 0xf4) {
    const bool overlong = a == 0xf0 && b < 0x90;
    const bool beyond = a == 0xf4 && b > 0x8f;
    return tail(b) && tail(at(i + 2)) && tail(at(i + 3)) && !overlong && !beyond ? 4 : 0;
  }
  return 0;
}

bool is_utf8(std::string_view s) {
  for (std::size_t i = 0; i < s.size();) {
    const std::size_t n = utf8_sequence(s, i);
    if (n == 0) {
      return false;
    }
    i += n;
  }
  return true;
}

Event session_event(Event::Kind kind, const Key& fingerprint) {
  Event e;
  e.kind = kind;
  e.fingerprint = fingerprint;
  return e;
}

}  // namespace

using internal::Filling;

Status Store::Impl::open_session(const SessionSpec& spec, bool of_node, SessionId* out) {
  if (const Status status = check(spec, slabs_); status != Status::Ok) {
    return status;
  }
  auto s = std::make_shared<Session>();
  const auto holds_slabs = [this](std::uint32_t row) { return slabs_.holds_fingerprint(row); };
  {
    const std::unique_lock lock(sessions_mutex_);
    if (open_sessions_ >= config_.sessions_max || free_rows_.empty()) {
      return Status::Full;
    }
    const Status status = fingerprints_.open(spec, holds_slabs, &s->fingerprint, &s->layout);
    if (status != Status::Ok) {
      return status;
    }
    if (spec.own_shard) {
      s->own_rect = s->layout[*spec.own_shard];
      s->own = spec.shards[*spec.own_shard];
    }
    s->readers_per_shard = std::max<std::uint32_t>(1, spec.readers_per_shard);
    s->of_node = of_node;
    for (const ShardSpec& shard : spec.shards) {
      s->chunk_pages += static_cast<std::uint32_t>(internal::Slabs::stride_of(shard.slot_bytes) / kSlotAlignBytes);
    }
    do {
      s->id = internal::random_id();
    } while (sessions_.contains(s->id) || former_.contains(s->id));
    s->row = free_rows_.back();
    free_rows_.pop_back();
    ++(of_node ? internal_sessions_ : open_sessions_);
    if (!of_node && !spec.own_shard) ++open_engines_;
    internal::SessionRecord& row = records_.session(s->row);
    row.internal = of_node ? 1 : 0;
    row.pid.store(0, std::memory_order_relaxed);
    row.reading.store(0, std::memory_order_relaxed);
    row.filling.store(0, std::memory_order_relaxed);
    row.id.store(s->id, std::memory_order_release);
    sessions_.emplace(s->id, s);
  }
  *out = s->id;
  if (!of_node) events_.push(session_event(Event::Kind::SessionOpened, spec.fingerprint));
  return Status::Ok;
}

Store::Impl::SessionPtr Store::Impl::find_session(SessionId id) const {
  const std::shared_lock lock(sessions_mutex_);
  const auto it = sessions_.find(id);
  return it == sessions_.end() ? nullptr : it->second;
}

void Store::Impl::drop_row(std::uint32_t row) {
  records_.session(row).id.store(0, std::memory_order_release);
  free_rows_.push_back(row);
}

void Store::Impl::drop_session(const Session& s) {
  const std::unique_lock lock(sessions_mutex_);
  if (sessions_.erase(s.id) != 0) {
    drop_row(s.row);
  }
}

void Store::Impl::quarantine_filling(Session& s) {
  for (const auto& [offset, filling] : s.filling) {
    set_state(filling.grant.slot, SlotState::Quarantined);
    s.quarantined.push_back(filling.grant.slot);
    drop_part(filling.entry_id, *s.own_rect, filling.grant.slot);
  }
  s.filling.clear();
}

void Store::Impl::close_locked(Session& s) {
  s.closed = true;
  for (const LeasePtr& lease : leases_.revoke_of(s.id)) {
    end_lease(lease);
  }
  quarantine_filling(s);
  fingerprints_.close(s.fingerprint);
  {
    const std::unique_lock lock(sessions_mutex_);
    --(s.of_node ? internal_sessions_ : open_sessions_);
    if (!s.of_node && !s.own_rect) --open_engines_;
  }
  if (!s.of_node) events_.push(session_event(Event::Kind::SessionClosed, fingerprints_.key(s.fingerprint)));
}

void Store::Impl::close_session(SessionId id) {
  const SessionPtr s = find_session(id);
  if (!s) {
    return;
  }
  const std::lock_guard lock(s->mutex);
  if (s->closed) {
    return;
  }
  close_locked(*s);
  if (s->quarantined.empty() && leases_.copying_all(id).empty()) {
    drop_session(*s);
  }
}

void Store::Impl::resolve_session(SessionId id) {
  const SessionPtr s = find_session(id);
  if (!s) {
    resolve_former(id);
    return;
  }
  const std::lock_guard lock(s->mutex);
  if (!s->closed) {
    close_locked(*s);
  }
  for (const auto& copying : leases_.copying_all(id)) {
    drop_readers(*copying.lease, copying.part, copying.lease->chunks);
    if (const LeasePtr ended = leases_.finished(copying, id, true)) {
      end_lease(ended);
    }
  }
  for (const std::uint32_t slot : s->quarantined) {
    set_state(slot, SlotState::Free);
  }
  slabs_.free(s->quarantined);
  s->quarantined.clear();
  drop_session(*s);
}

bool Store::Impl::resolve_former(SessionId id) {
  Former former;
  bool readers_left = false;
  {
    const std::unique_lock lock(sessions_mutex_);
    auto node = former_.extract(id);
    if (node.empty()) {
      return false;
    }
    former = std::move(node.mapped());
    for (const auto& [other, f] : former_) {
      readers_left = readers_left || records_.session(f.row).reading.load(std::memory_order_relaxed) != 0;
    }
  }
  for (const std::uint32_t slot : former.filling) {
    set_state(slot, SlotState::Free);
  }
  slabs_.free(former.filling);
  if (!readers_left) {
    release_former_reads();
  }
  // Last: killed before, the next life asks for the proof once more.
  const std::unique_lock lock(sessions_mutex_);
  drop_row(former.row);
  return true;
}

void Store::Impl::release_former_reads() {
  std::vector<FormerRead> reads;
  {
    const std::unique_lock lock(sessions_mutex_);
    reads.swap(former_reads_);
  }
  std::vector<std::uint32_t> freed;
  for (const FormerRead& read : reads) {
    const Key key = records_.slot(read.slot).get_key();
    IndexShard& shard = index_.of(key);
    const std::lock_guard lock(shard.mutex);
    drop_reader_locked(read.slot, read.readers, &freed);
    if (Entry* e = shard.find(read.entry_id)) {
      e->holds = (e->holds - 1) & internal::kHoldsMax;
      shard.refresh(*e);
    }
  }
  slabs_.free(freed);
}

std::vector<SessionId> Store::Impl::unresolved_sessions() const {
  const std::shared_lock lock(sessions_mutex_);
  std::vector<SessionId> out;
  for (const auto& [id, former] : former_) {
    if (!former.of_node) {
      out.push_back(id);
    }
  }
  return out;
}

void Store::Impl::note_process(SessionId id, std::uint32_t pid) {
  const std::shared_lock lock(sessions_mutex_);
  if (const auto it = sessions_.find(id); it != sessions_.end()) {
    records_.session(it->second->row).pid.store(pid, std::memory_order_release);
  }
}

void Store::Impl::feedback(SessionId id, std::string json) {
  const SessionPtr s = find_session(id);
  if (!s || json.size() > kFeedbackBytesMax || json.empty() || json.front() != '{' || !is_utf8(json)) {
    return;
  }
  Event e = session_event(Event::Kind::Feedback, fingerprints_.key(s->fingerprint));
  e.json = std::move(json);
  events_.push(std::move(e));
}

}  // namespace kvcommons
