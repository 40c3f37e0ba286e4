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
ReserveStatus Store::Impl::place(const Session& s, const Wanted& wanted, const Key& parent, const Below& below,
                                 const Key& key, std::uint64_t* entry_id, bool* link_used) {
  IndexShard& shard = index_.of(key);
  const std::lock_guard lock(shard.mutex);
  if (fingerprints_.epoch(s.fingerprint) != wanted.epoch) {
    return ReserveStatus::Busy;  // cleared meanwhile: what was computed before must not be placed
  }
  Part part;
  part.rect = *s.own_rect;
  part.stride_pages = static_cast<std::uint32_t>(internal::Slabs::stride_of(s.own.slot_bytes) / kSlotAlignBytes);
  if (Entry* e = shard.find(key)) {
    if (e->fingerprint != s.fingerprint || e->parent != parent || e->parent_id != below.id) {
      return ReserveStatus::Busy;  // a key has one parent: this one is forged, or left behind by a chunk just removed
    }
    if (const Part* other = e->find(part.rect)) {
      return other->sealed ? ReserveStatus::Exists : ReserveStatus::Busy;
    }
    shard.forget(*e);
    e->parts.push_back(part);
    policy_.grew(e->use, part.stride_pages);
    *entry_id = e->id;
    return ReserveStatus::Granted;
  }
  const auto [it, inserted] = shard.entries.try_emplace(key);
  Entry& e = it->second;
  e.key = &it->first;
  e.parent = parent;
  e.parent_id = below.id;
  e.id = next_entry_id_.fetch_add(1, std::memory_order_relaxed);
  e.fingerprint = s.fingerprint;
  e.tenant = wanted.tenant;
  e.parts.push_back(part);
  e.use.priority = wanted.hints.priority;
  shard.came(e, part.stride_pages, below.position, next_ticks(1));
  e.use.first = wanted.hints.one_shot;
  shard.expire_after(e, wanted.hints.ttl_seconds);
  internal::add(counters_.hinted, wanted.hints == eviction::Hints{} ? 0 : 1);
  *entry_id = e.id;
  *link_used = true;
  return ReserveStatus::Granted;
}

void Store::Impl::write_grant(const Session& s, std::uint64_t tenant, const Key& parent, const Filling& filling) {
  records_.session(s.row).filling.fetch_add(1, std::memory_order_acq_rel);
  SlotRecord& record = records_.slot(filling.grant.slot);
  record.owner = s.id;
  record.tenant = tenant;
  record.set_key(filling.key);
  record.parent = parent;
  record.payload_bytes = s.own.slot_bytes;
  record.rect = s.own.rect;
  record.fingerprint = s.fingerprint;
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

void Store::Impl::drop_part(const Key& key, std::uint64_t entry_id, std::uint16_t rect, std::uint32_t slot) {
  std::optional<Removed> removed;
  {
    IndexShard& shard = index_.of(key);
    const std::lock_guard lock(shard.mutex);
    Entry* e = shard.find(key, entry_id);
    if (e == nullptr) {
      return;
    }
    const Part* part = e->find(rect);
    if (part != nullptr && part->slot == slot && !part->sealed) {
      e->parts.erase(part);
    }
    drop_if_empty_locked(shard, *e, &removed);
  }
  if (removed) {
    after_removal(*removed);
  }
}

Reservation Store::Impl::reserve_one(Session& s, const Wanted& wanted, const Key& parent, const Key& key) {
  Below below;
  if (!parent.zero()) {
    IndexShard& shard = index_.of(parent);
    const std::lock_guard lock(shard.mutex);
    Entry* p = shard.find(parent);
    if (p == nullptr || p->fingerprint != s.fingerprint) {
      return {ReserveStatus::ParentMissing, {}};
    }
    below = {p->id, p->use.position + 1U};
    p->children.add(key);
    shard.refresh(*p);
  }
  seq_point(SeqPoint::ReserveLinked);
  Filling filling{{}, key, 0};
  bool link_used = false;
  const ReserveStatus placed = place(s, wanted, parent, below, key, &filling.entry_id, &link_used);
  if (!link_used && below.id != 0) {
    unlink(parent, below.id, key);
  }
  if (placed != ReserveStatus::Granted) {
    return {placed, {}};
  }
  seq_point(SeqPoint::ReservePlaced);
  const auto grant = alloc(s.fingerprint, internal::Slabs::stride_of(s.own.slot_bytes));
  if (!grant) {
    drop_part(key, filling.entry_id, *s.own_rect, kNoSlot);
    return {ReserveStatus::Full, {}};
  }
  filling.grant = *grant;
  write_grant(s, wanted.tenant, parent, filling);
  {
    IndexShard& shard = index_.of(key);
    const std::lock_guard lock(shard.mutex);
    Entry* e = shard.find(key, filling.entry_id);
    if (Part* part = e != nullptr ? e->find(*s.own_rect) : nullptr) {
      part->slot = grant->slot;
      part->generation = grant->generation;
      part->offset_bytes = grant->offset_bytes;
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

bool Store::Impl::complete(const Session& s, const Entry& e) const {
  return std::all_of(s.layout.begin(), s.layout.end(), [&](std::uint16_t rect) {
    const Part* part = e.find(rect);
    return part != nullptr && part->sealed;
  });
}

// False: the chunk was cleared since the reservation; the slot was freed.
bool Store::Impl::seal(Session& s, const Filling& filling, const CommitItem& item) {
  IndexShard& shard = index_.of(filling.key);
  std::unique_lock lock(shard.mutex);
  Entry* e = shard.find(filling.key, filling.entry_id);
  Part* part = e != nullptr ? e->find(*s.own_rect) : nullptr;
  if (part == nullptr || part->slot != filling.grant.slot) {
    lock.unlock();
    free_granted(s, filling);
    return false;
  }
  const std::size_t kept = std::min<std::size_t>(item.text_keys.size(), kTextKeysPerSlotMax);
  internal::add(counters_.text_keys_dropped, item.text_keys.size() - kept);
  part->sealed = true;
  const bool completes = !e->announced && complete(s, *e);
  SlotRecord& record = records_.slot(filling.grant.slot);
  record.checksum = item.checksum;
  record.sealed_ms = now_ms();
  record.text_keys = static_cast<std::uint16_t>(kept);
  std::copy_n(item.text_keys.begin(), kept, record.text);
  record.completes = completes ? 1 : 0;
  record.pinned.store(e->pinned ? 1 : 0, std::memory_order_relaxed);
  record.crc = record.compute_crc(filling.grant.generation);
  set_state(filling.grant.slot, SlotState::Sealed);
  records_.session(s.row).filling.fetch_sub(1, std::memory_order_acq_rel);
  slabs_.touch(filling.grant.slot, e->use.tick);
  shard.refresh(*e);
  if (completes) {
    e->announced = true;
    e->commit_ms = record.sealed_ms;
    internal::add(counters_.chunks);
    fingerprints_.chunk_came(e->fingerprint);
    Event event;
    event.kind = Event::Kind::Committed;
    event.key = filling.key;
    event.fingerprint = fingerprints_.key(e->fingerprint);
    event.text_keys = text_keys(*e);
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
    drop_part(filling->key, filling->entry_id, *s->own_rect, filling->grant.slot);
    free_granted(*s, *filling);
    internal::add(counters_.aborted);
  }
  return Status::Ok;
}

}  // namespace kvcommons
