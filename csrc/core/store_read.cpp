// Lookup, leases and their readers.
#include <algorithm>
#include <utility>

#include "store_impl.h"

namespace kvcommons {

using internal::LeasedSlot;

namespace {
constexpr std::size_t kMarkedMax = 4'096;  // of chunks past their time, for each shard at a time: nobody waits for long
constexpr int kWalksMax = 4;               // a walk whose deepest chunk was evicted meanwhile is repeated so often
}  // namespace

// Whether every shard of the session's layout is sealed. Touches, and appends to the lease if there is one.
bool Store::Impl::present(const Session& s, const IndexShard& shard, const Entry& e, Lease* lease, std::uint64_t tick) {
  if (s.layout.empty()) {
    return e.announced;
  }
  if (s.layout.size() != 1) {
    const auto missing = [&](std::uint16_t rect) {
      const auto part = shard.part_of(e, rect);
      return !part || !part->sealed;
    };
    if (std::any_of(s.layout.begin(), s.layout.end(), missing)) {
      return false;
    }
  }
  for (const std::uint16_t rect : s.layout) {
    const auto part = shard.part_of(e, rect);
    if (!part || !part->sealed) {
      return false;
    }
    slabs_.touch(part->slot, tick);
    if (lease != nullptr) {
      const std::uint64_t offset =
          records_.geometry().offset_of(part->slot, std::uint64_t{part->stride_pages} * kSlotAlignBytes);
      lease->slots.push_back({static_cast<std::uint32_t>(offset / kSlotAlignBytes), part->slot,
                              records_.slot(part->slot).generation(), shard.number});
    }
  }
  return true;
}

std::uint32_t Store::Impl::walk(const Session& s, std::span<const Key> keys, Lease* lease) {
  // The shallowest chunk gets the newest tick: the suffix is older than its prefix.
  const std::uint64_t first_tick = next_ticks(keys.size());
  std::uint64_t previous_id = 0;
  std::uint32_t hit = 0;
  for (; hit < keys.size(); ++hit) {
    const std::uint64_t hash = internal::key_hash(keys[hit]);
    IndexShard& shard = index_.at(internal::Index::shard_of(hash));
    const std::lock_guard lock(shard.mutex);
    Entry* e = shard.find(keys[hit], hash);
    const bool linked = e != nullptr && (hit == 0 || e->parent_id == previous_id);
    const std::uint64_t tick = first_tick + keys.size() - 1 - hit;
    if (!linked || e->fingerprint != s.fingerprint || !present(s, shard, *e, lease, tick)) {
      break;
    }
    shard.access(*e, tick);
    previous_id = IndexShard::id_of(*e);
    if (lease != nullptr) {
      lease->held_id = previous_id;
    }
  }
  return hit;
}

bool Store::Impl::hold(EntryId id) {
  IndexShard& shard = index_.of(id);
  const std::lock_guard lock(shard.mutex);
  Entry* e = shard.find(id);
  if (e == nullptr || e->holds == internal::kHoldsMax) {
    return false;
  }
  e->holds = (e->holds + 1) & internal::kHoldsMax;
  shard.refresh(*e);
  return true;
}

void Store::Impl::end_lease(const LeasePtr& lease) {
  seq_point(SeqPoint::ExpireRevoked);
  IndexShard& shard = index_.of(lease->held_id);
  const std::lock_guard lock(shard.mutex);
  if (Entry* e = shard.find(lease->held_id)) {
    e->holds = (e->holds - 1) & internal::kHoldsMax;
    shard.refresh(*e);
  }
}

LookupResult Store::Impl::lookup(SessionId id, std::span<const Key> keys, bool lease) {
  LookupResult result;
  const SessionPtr s = find_session(id);
  if (!s || keys.empty() || keys.size() > kKeysPerFrameMax) {
    return result;
  }
  const std::lock_guard session_lock(s->mutex);
  if (s->closed) {
    return result;
  }
  internal::add(counters_.lookups);
  internal::add(counters_.lookup_chunks, keys.size());
  if (!lease || s->layout.empty()) {
    result.hit_chunks = walk(*s, keys, nullptr);
    internal::add(counters_.hit_chunks, result.hit_chunks);
    return result;
  }
  auto made = std::make_shared<Lease>();
  made->slots.reserve(keys.size() * s->layout.size());
  for (int attempt = 0; attempt < kWalksMax; ++attempt) {
    made->slots.clear();
    made->chunks = walk(*s, keys, made.get());
    seq_point(SeqPoint::LookupWalked);
    if (made->chunks == 0 || hold(made->held_id)) {
      break;
    }
    made->chunks = 0;
  }
  result.hit_chunks = made->chunks;
  internal::add(counters_.hit_chunks, result.hit_chunks);
  if (watch_ && !s->of_node) {
    watch_->asked(keys, result.hit_chunks, s->chunk_pages);
  }
  if (made->chunks == 0) {
    return result;
  }
  seq_point(SeqPoint::LookupHeld);
  made->session = id;
  made->fingerprint = s->fingerprint;
  made->created_ms = now_ms();
  for (const std::uint16_t rect : s->layout) {
    made->parts.push_back({rect, s->readers_per_shard, {}});
  }
  result.lease = leases_.add(made);
  if (result.lease == 0) {
    end_lease(made);
  }
  return result;
}

bool Store::Impl::add_readers(const Lease& lease, std::size_t part, std::uint32_t* added) {
  const std::size_t parts = lease.parts.size();
  for (*added = 0; *added < lease.chunks; ++*added) {
    const LeasedSlot& leased = lease.slots[*added * parts + part];
    const std::lock_guard lock(index_.at(leased.index_shard).mutex);
    SlotRecord& record = records_.slot(leased.slot);
    if (record.word.load(std::memory_order_acquire) != SlotRecord::pack(SlotState::Sealed, leased.generation)) {
      return false;
    }
    record.readers.fetch_add(1, std::memory_order_acq_rel);
  }
  return true;
}

// The slot's shard is locked. Freed slots still have to go back to the slabs.
void Store::Impl::drop_reader_locked(std::uint32_t slot, std::uint32_t count, std::vector<std::uint32_t>* freed) {
  SlotRecord& record = records_.slot(slot);
  if (record.readers.fetch_sub(count, std::memory_order_acq_rel) == count && record.state() == SlotState::Draining) {
    set_state(slot, SlotState::Free);
    freed->push_back(slot);
  }
}

void Store::Impl::drop_readers(const Lease& lease, std::size_t part, std::uint32_t count) {
  const std::size_t parts = lease.parts.size();
  std::vector<std::uint32_t> freed;
  for (std::uint32_t i = 0; i < count; ++i) {
    const LeasedSlot& leased = lease.slots[i * parts + part];
    const std::lock_guard lock(index_.at(leased.index_shard).mutex);
    drop_reader_locked(leased.slot, 1, &freed);
  }
  slabs_.free(freed);
}

Status Store::Impl::begin(SessionId id, LeaseId lease_id, std::vector<SlotRef>* out) {
  out->clear();
  const SessionPtr s = find_session(id);
  if (!s) {
    return Status::Gone;
  }
  const std::lock_guard session_lock(s->mutex);
  if (s->closed || !s->own_rect) {
    return s->closed ? Status::Gone : Status::Denied;
  }
  LeasePtr lease;
  std::size_t part = 0;
  switch (leases_.claim(lease_id, id, s->fingerprint, *s->own_rect, &lease, &part)) {
    case internal::Leases::Claim::Gone:
      return Status::Gone;
    case internal::Leases::Claim::Busy:
      return Status::Busy;
    case internal::Leases::Claim::Denied:
      return Status::Denied;
    case internal::Leases::Claim::Ok:
      break;
  }
  seq_point(SeqPoint::BeginClaimed);
  auto& reading = records_.session(s->row).reading;
  reading.fetch_add(lease->chunks, std::memory_order_acq_rel);
  std::uint32_t added = 0;
  const bool intact = add_readers(*lease, part, &added);
  const std::optional<Key> corrupt = intact ? find_corrupt(*lease, part) : std::nullopt;
  if (!intact || corrupt) {
    drop_readers(*lease, part, added);
    reading.fetch_sub(lease->chunks, std::memory_order_acq_rel);
    if (const LeasePtr ended = leases_.finished({lease, part}, id, true)) {
      end_lease(ended);
    }
    if (corrupt) {
      internal::add(counters_.checksum_failures);
      remove_tree(*corrupt, nullptr);
    }
    return Status::Gone;
  }
  seq_point(SeqPoint::BeginVerified);
  out->reserve(lease->chunks);
  for (std::uint32_t i = 0; i < lease->chunks; ++i) {
    const LeasedSlot& leased = lease->slots[i * lease->parts.size() + part];
    out->push_back({leased.offset_bytes(), leased.generation});
  }
  return Status::Ok;
}

Status Store::Impl::release(SessionId id, LeaseId lease_id) {
  const SessionPtr s = find_session(id);
  if (!s) {
    return Status::Gone;
  }
  const std::lock_guard session_lock(s->mutex);
  bool found = false;
  if (const auto copying = leases_.copying(lease_id, id)) {
    found = true;
    drop_readers(*copying->lease, copying->part, copying->lease->chunks);
    records_.session(s->row).reading.fetch_sub(copying->lease->chunks, std::memory_order_acq_rel);
    if (const LeasePtr ended = leases_.finished(*copying, id, false)) {
      end_lease(ended);
      return Status::Ok;
    }
    if (copying->lease->session != id) {
      return Status::Ok;
    }
  }
  bool in_table = false;
  if (const LeasePtr ended = leases_.revoke(lease_id, id, s->fingerprint, s->own_rect, &in_table)) {
    end_lease(ended);
  }
  return found || in_table ? Status::Ok : Status::Gone;
}

void Store::Impl::touch(SessionId id, std::span<const Key> keys, const eviction::Hints& hints) {
  const SessionPtr s = find_session(id);
  if (!s || keys.empty() || keys.size() > kKeysPerFrameMax) {
    return;
  }
  const std::uint64_t first_tick = next_ticks(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    IndexShard& shard = index_.of(keys[i]);
    const std::lock_guard lock(shard.mutex);
    Entry* e = shard.find(keys[i]);
    if (e != nullptr && e->fingerprint == s->fingerprint) {
      const std::uint64_t tick = first_tick + keys.size() - 1 - i;
      shard.access(*e, tick);
      shard.each_part(*e, [&](const Part& part) {
        if (part.slot != internal::kNoSlot) {
          slabs_.touch(part.slot, tick);
        }
      });
      if (hints.one_shot) {
        shard.mark(*e);
        internal::add(counters_.hinted);
      }
    }
  }
  if (hints.session_end) {
    end_of_session(*s, keys.back(), keys.size());
  }
}

void Store::Impl::expire_leases() {
  const std::uint64_t now = now_ms();
  now_s_.store(now / 1'000, std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < internal::Index::kShards; ++i) {
    IndexShard& shard = index_.at(i);
    const std::lock_guard lock(shard.mutex);
    internal::add(counters_.expired, shard.mark_due(kMarkedMax));
  }
  if (now < config_.lease_pending_ms_max) {
    return;
  }
  for (const LeasePtr& lease : leases_.expire(now - config_.lease_pending_ms_max)) {
    end_lease(lease);
  }
}

}  // namespace kvcommons
