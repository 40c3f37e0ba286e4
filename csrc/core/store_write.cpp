// Reserve, commit, abort.
#include <algorithm>
#include <cstring>
#include <utility>

#include "store_impl.h"

namespace kvcommons {

using internal::Filling;
using internal::kNoSlot;
using internal::kTextKeysPerSlotMax;

namespace {

// The session's right to seal or to give up this slot, taken out of it: used once. None for a slot of another life.
std::optional<Filling> take_filling(internal::Session& s, const SlotRef& slot) {
  const auto it = s.filling.find(slot.offset_bytes);
  if (it == s.filling.end() || it->second.grant.generation != slot.generation) {
    return std::nullopt;
  }
  const Filling filling = it->second;
  s.filling.erase(it);
  return filling;
}

}  // namespace

// Puts the chunk into the index without a slot yet, so that no second writer looks for room and nobody evicts it.
// `fresh` is a place for it, linked to its parent already; what is not used goes stale here, while the shard is locked.
ReserveStatus Store::Impl::place(const Session& s, const Wanted& wanted, const Below& below, const Key& key,
                                 Entry* fresh, EntryId* entry_id, bool* used) {
  IndexShard& shard = index_.of(key);
  const std::lock_guard lock(shard.mutex);
  const auto status = [&] {
    if (fingerprints_.epoch(s.fingerprint) != wanted.epoch) {
      return ReserveStatus::Busy;  // cleared meanwhile: what was computed before must not be placed
    }
    Part part;
    part.rect = *s.own_rect;
    part.stride_pages = static_cast<std::uint32_t>(internal::Slabs::stride_of(s.own.slot_bytes) / kSlotAlignBytes);
    if (Entry* e = shard.find(key)) {
      if (e->fingerprint != s.fingerprint || e->parent_id != below.id) {
        return ReserveStatus::Busy;  // a key has one parent: this one is forged, or left by a chunk just removed
      }
      if (const auto other = shard.part_of(*e, part.rect)) {
        return other->sealed ? ReserveStatus::Exists : ReserveStatus::Busy;
      }
      shard.forget(*e);
      shard.add_part(*e, part);
      policy_.grew(e->use, part.stride_pages);
      *entry_id = IndexShard::id_of(*e);
      return ReserveStatus::Granted;
    }
    Entry& e = *fresh;
    e.parent_id = below.id;
    e.fingerprint = static_cast<std::uint16_t>(s.fingerprint);
    shard.place(e, key, wanted.tenant);
    shard.add_part(e, part);
    e.use.set_priority(wanted.hints.priority);
    shard.came(e, part.stride_pages, below.position, next_ticks(1));
    e.use.first = wanted.hints.one_shot;
    shard.expire_after(e, wanted.hints.ttl_seconds);
    internal::add(counters_.hinted, wanted.hints == eviction::Hints{} ? 0 : 1);
    *entry_id = IndexShard::id_of(e);
    *used = true;
    return ReserveStatus::Granted;
  }();
  if (!*used) fresh->life.fetch_add(1, std::memory_order_relaxed);
  return status;
}

void Store::Impl::write_grant(const Session& s, std::uint64_t tenant, const Key& parent, const Filling& filling) {
  records_.session(s.row).filling.fetch_add(1, std::memory_order_acq_rel);
  SlotRecord& record = records_.slot(filling.grant.slot);
  record.checksum = s.id;
  record.tenant = tenant;
  record.set_key(filling.key);
  record.first = parent.zero() ? 1 : 0;
  record.parent = internal::key_hash(parent);
  record.payload_bytes = static_cast<std::uint32_t>(s.own.slot_bytes);
  record.rect = s.own.rect;
  record.fingerprint = static_cast<std::uint16_t>(s.fingerprint);
  record.text_keys = 0;
  record.completes = 0;
  record.readers.store(0, std::memory_order_relaxed);
  record.pinned.store(0, std::memory_order_relaxed);
  record.set(SlotState::Free, filling.grant.generation);
  set_state(filling.grant.slot, SlotState::Filling);
}

// The slot goes back although it was granted: given up by its writer, or its chunk was cleared meanwhile.
void Store::Impl::free_granted(Session& s, const Filling& filling) {
  set_state(filling.grant.slot, SlotState::Free);
  records_.session(s.row).filling.fetch_sub(1, std::memory_order_acq_rel);
  slabs_.free(std::span(&filling.grant.slot, 1));
}

void Store::Impl::drop_part(EntryId entry_id, std::uint16_t rect, std::uint32_t slot) {
  std::optional<Removed> removed;
  {
    IndexShard& shard = index_.of(entry_id);
    const std::lock_guard lock(shard.mutex);
    Entry* e = shard.find(entry_id);
    if (e == nullptr) {
      return;
    }
    const auto part = shard.part_of(*e, rect);
    if (part && part->slot == slot && !part->sealed) {
      shard.drop_part(*e, rect);
    }
    drop_if_empty_locked(shard, *e, &removed);
  }
  if (removed) {
    after_removal(*removed);
  }
}

Reservation Store::Impl::reserve_one(Session& s, const Wanted& wanted, const Key& parent, const Key& key) {
  Entry* fresh = nullptr;
  {
    IndexShard& shard = index_.of(key);
    const std::lock_guard lock(shard.mutex);
    fresh = shard.make();
  }
  if (fresh == nullptr) {
    return {ReserveStatus::Full, {}};
  }
  Below below;
  if (!parent.zero()) {
    IndexShard& shard = index_.of(parent);
    const std::lock_guard lock(shard.mutex);
    Entry* p = shard.find(parent);
    if (p != nullptr && p->fingerprint == s.fingerprint) {
      below = {IndexShard::id_of(*p), static_cast<std::uint32_t>(p->use.position) + 1U};
      index_.link(*p, *fresh);
      shard.refresh(*p);
    }
  }
  if (!parent.zero() && below.id == 0) {
    unlink(0, fresh);
    return {ReserveStatus::ParentMissing, {}};
  }
  seq_point(SeqPoint::ReserveLinked);
  Filling filling{{}, key, 0};
  bool used = false;
  const ReserveStatus placed = place(s, wanted, below, key, fresh, &filling.entry_id, &used);
  if (!used) {
    unlink(below.id, fresh);
  }
  if (placed != ReserveStatus::Granted) {
    return {placed, {}};
  }
  seq_point(SeqPoint::ReservePlaced);
  const auto grant = alloc(s.fingerprint, internal::Slabs::stride_of(s.own.slot_bytes));
  if (!grant) {
    drop_part(filling.entry_id, *s.own_rect, kNoSlot);
    return {ReserveStatus::Full, {}};
  }
  filling.grant = *grant;
  write_grant(s, wanted.tenant, parent, filling);
  {
    IndexShard& shard = index_.of(key);
    const std::lock_guard lock(shard.mutex);
    Entry* e = shard.find(filling.entry_id);
    if (e != nullptr && shard.part_of(*e, *s.own_rect)) {
      shard.set_slot(*e, *s.own_rect, grant->slot);
      s.filling.emplace(grant->offset_bytes, filling);
      return {ReserveStatus::Granted, {grant->offset_bytes, grant->generation}};
    }
  }
  free_granted(s, filling);
  return {ReserveStatus::Busy, {}};
}

Status Store::Impl::reserve(SessionId id, std::uint64_t tenant, const Key& parent, std::span<const Key> keys,
                            std::vector<Reservation>* out, const eviction::Hints& hints) {
  out->clear();
  if (keys.size() > kChunksPerReserveMax) {
    return Status::TooLarge;
  }
  const SessionPtr s = find_session(id);
  if (!s) {
    return Status::Gone;
  }
  const std::lock_guard session_lock(s->mutex);
  if (s->closed || !s->own_rect) {
    return s->closed ? Status::Gone : Status::Denied;
  }
  const Wanted wanted{tenant, fingerprints_.epoch(s->fingerprint), hints};
  if (watch_ && !s->of_node && *s->own_rect == s->layout.front()) {
    watch_->stored(parent, keys, s->chunk_pages, hints);
  }
  out->reserve(keys.size());
  const Key* previous = &parent;
  for (const Key& key : keys) {
    const bool full = !out->empty() && out->back().status == ReserveStatus::Full;
    out->push_back(full ? out->back() : reserve_one(*s, wanted, *previous, key));
    previous = &key;
    switch (out->back().status) {
      case ReserveStatus::Granted:
        internal::add(counters_.reserved);
        break;
      case ReserveStatus::Exists:
        internal::add(counters_.reserve_exists);
        break;
      case ReserveStatus::Busy:
        internal::add(counters_.reserve_busy);
        break;
      case ReserveStatus::Full:
        internal::add(counters_.reserve_full);
        break;
      case ReserveStatus::ParentMissing:
        break;
    }
  }
  if (hints.session_end && !keys.empty()) {
    end_of_session(*s, keys.back(), keys.size());
  }
  return Status::Ok;
}

bool Store::Impl::complete(const Session& s, const IndexShard& shard, const Entry& e) const {
  return std::all_of(s.layout.begin(), s.layout.end(), [&](std::uint16_t rect) {
    const auto part = shard.part_of(e, rect);
    return part && part->sealed;
  });
}

// False: the chunk was cleared since the reservation; the slot was freed.
bool Store::Impl::seal(Session& s, const Filling& filling, const CommitItem& item) {
  IndexShard& shard = index_.of(filling.key);
  std::unique_lock lock(shard.mutex);
  Entry* e = shard.find(filling.entry_id);
  const auto part = e != nullptr ? shard.part_of(*e, *s.own_rect) : std::nullopt;
  if (!part || part->slot != filling.grant.slot) {
    lock.unlock();
    free_granted(s, filling);
    return false;
  }
  const std::size_t kept = std::min<std::size_t>(item.text_keys.size(), kTextKeysPerSlotMax);
  internal::add(counters_.text_keys_dropped, item.text_keys.size() - kept);
  shard.set_sealed(*e, *s.own_rect);
  const bool completes = !e->announced && complete(s, shard, *e);
  SlotRecord& record = records_.slot(filling.grant.slot);
  record.checksum = item.checksum;
  record.set_sealed_ms(now_ms());
  record.text_keys = static_cast<std::uint8_t>(kept);
  for (std::uint32_t i = 0; i < kept; ++i) {
    records_.text(filling.grant.slot, i) = item.text_keys[i];
  }
  record.completes = completes ? 1 : 0;
  record.pinned.store(e->pinned ? 1 : 0, std::memory_order_relaxed);
  record.crc = records_.compute_crc(filling.grant.slot, filling.grant.generation);
  set_state(filling.grant.slot, SlotState::Sealed);
  records_.session(s.row).filling.fetch_sub(1, std::memory_order_acq_rel);
  slabs_.touch(filling.grant.slot, e->use.tick);
  shard.refresh(*e);
  if (completes) {
    e->announced = 1;
    internal::add(counters_.chunks);
    fingerprints_.chunk_came(e->fingerprint);
    Event event;
    event.kind = Event::Kind::Committed;
    event.key = filling.key;
    event.fingerprint = fingerprints_.key(e->fingerprint);
    event.text_keys = text_keys(shard, *e);
    events_.push(std::move(event));  // under the shard's mutex: a Freed of this key can only come after
  }
  return true;
}

Status Store::Impl::commit(SessionId id, std::span<const CommitItem> items, std::uint32_t* accepted) {
  *accepted = 0;
  const SessionPtr s = find_session(id);
  if (!s) {
    return Status::Gone;
  }
  const std::lock_guard session_lock(s->mutex);
  if (s->closed) {
    return Status::Gone;
  }
  std::vector<SealedShard> told;
  const bool tell = on_sealed_ && !s->of_node;
  const Key fingerprint = tell ? fingerprints_.key(s->fingerprint) : Key{};
  for (const CommitItem& item : items) {
    const auto filling = take_filling(*s, item.slot);
    if (!filling) {
      continue;
    }
    seq_point(SeqPoint::CommitClaimed);
    if (seal(*s, *filling, item)) {
      ++*accepted;
      internal::add(counters_.committed);
      if (tell) {
        told.push_back({fingerprint, filling->key, s->own.rect, s->own.slot_bytes});
      }
    }
  }
  if (!told.empty()) {
    on_sealed_(told);
  }
  return Status::Ok;
}

Status Store::Impl::abort(SessionId id, std::span<const SlotRef> slots) {
  const SessionPtr s = find_session(id);
  if (!s) {
    return Status::Gone;
  }
  const std::lock_guard session_lock(s->mutex);
  if (s->closed) {
    return Status::Gone;
  }
  for (const SlotRef& slot : slots) {
    const auto filling = take_filling(*s, slot);
    if (!filling) {
      continue;
    }
    drop_part(filling->entry_id, *s->own_rect, filling->grant.slot);
    free_granted(*s, *filling);
    internal::add(counters_.aborted);
  }
  return Status::Ok;
}

}  // namespace kvcommons
