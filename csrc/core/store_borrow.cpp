// What the node itself does with chunks: it reads sealed ones to write them to a tier, and fills slots from a tier
// through sessions of its own.
#include <utility>

#include "store_impl.h"

namespace kvcommons {

bool Store::Impl::session_spec(SessionId id, SessionSpec* out) const {
  const SessionPtr s = find_session(id);
  if (!s) {
    return false;
  }
  out->fingerprint = fingerprints_.key(s->fingerprint);
  out->chunk_tokens = fingerprints_.chunk_tokens(s->fingerprint);
  out->shards = fingerprints_.specs(s->fingerprint, s->layout);
  out->own_shard.reset();
  out->readers_per_shard = s->readers_per_shard;
  return true;
}

std::vector<std::uint8_t> Store::Impl::sealed_shards(SessionId id, std::span<const Key> keys) const {
  std::vector<std::uint8_t> out;
  const SessionPtr s = find_session(id);
  if (!s) {
    return out;
  }
  out.reserve(keys.size() * s->layout.size());
  for (const Key& key : keys) {
    const IndexShard& shard = index_.of(key);
    const std::lock_guard lock(shard.mutex);
    const Entry* e = shard.find(key);
    const bool its_own = e != nullptr && e->fingerprint == s->fingerprint;
    for (const std::uint16_t rect : s->layout) {
      const auto part = its_own ? shard.part_of(*e, rect) : std::nullopt;
      out.push_back(part && part->sealed ? 1 : 0);
    }
  }
  return out;
}

std::vector<SealedShard> Store::Impl::sealed(std::uint64_t* cursor, std::size_t max) const {
  std::vector<SealedShard> out;
  std::uint64_t next = *cursor;
  std::uint32_t slot = 0;
  while (out.size() < max && slabs_.next_given(next, &slot)) {
    next = std::uint64_t{slot} + 1;
    const auto key = sealed_key(slot);
    if (!key) {
      continue;
    }
    const IndexShard& shard = index_.of(*key);
    const std::lock_guard lock(shard.mutex);
    const Entry* e = shard.find(*key);
    if (e != nullptr && shard.any_part(*e, [&](const Part& p) { return p.slot == slot && p.sealed; })) {
      const SlotRecord& record = records_.slot(slot);
      out.push_back({fingerprints_.key(e->fingerprint), *key, record.rect, record.payload_bytes});
    }
  }
  *cursor = slabs_.next_given(next, &slot) ? next : 0;
  return out;
}

// A reader of the slot and a hold of the chunk: as a lease's, without the lease. After a crash of the daemon the reader
// is nobody's, and adoption lets it go with those of the sessions of that life.
bool Store::Impl::borrow(const Key& fingerprint, const Key& key, const Rect& rect, Borrowed* out) {
  const auto row = fingerprints_.find(fingerprint);
  const auto number = row ? fingerprints_.find_rect(*row, rect) : std::nullopt;
  if (!number) {
    return false;
  }
  EntryId parent_id = 0;
  {
    IndexShard& shard = index_.of(key);
    const std::lock_guard lock(shard.mutex);
    Entry* e = shard.find(key);
    const auto part = e != nullptr && e->fingerprint == *row ? shard.part_of(*e, *number) : std::nullopt;
    if (!part || !part->sealed || e->holds == internal::kHoldsMax) {
      return false;
    }
    SlotRecord& record = records_.slot(part->slot);
    record.readers.fetch_add(1, std::memory_order_acq_rel);
    e->holds = (e->holds + 1) & internal::kHoldsMax;
    shard.refresh(*e);
    out->fingerprint = fingerprint;
    out->key = key;
    out->slot = {records_.geometry().offset_of(part->slot, std::uint64_t{part->stride_pages} * kSlotAlignBytes),
                 record.generation()};
    out->tenant = record.tenant;
    out->payload_bytes = record.payload_bytes;
    out->checksum = record.checksum;
    out->chunk_tokens = fingerprints_.chunk_tokens(*row);
    out->text_keys.clear();
    for (std::uint32_t i = 0; i < record.text_keys; ++i) {
      out->text_keys.push_back(records_.text(part->slot, i));
    }
    out->entry_id = IndexShard::id_of(*e);
    out->slot_id = part->slot;
    parent_id = e->parent_id;
  }
  out->parent = {};
  if (parent_id == 0) {
    return true;
  }
  {
    IndexShard& shard = index_.of(parent_id);
    const std::lock_guard lock(shard.mutex);
    if (const Entry* p = shard.find(parent_id)) {
      out->parent = shard.key_of(*p);
      return true;
    }
  }
  give_back(*out);  // its prefix was removed by force, and it is going too
  return false;
}

void Store::Impl::give_back(const Borrowed& borrowed) {
  std::vector<std::uint32_t> freed;
  {
    IndexShard& shard = index_.of(borrowed.key);
    const std::lock_guard lock(shard.mutex);
    drop_reader_locked(borrowed.slot_id, 1, &freed);
    if (Entry* e = shard.find(borrowed.entry_id)) {
      e->holds = (e->holds - 1) & internal::kHoldsMax;
      shard.refresh(*e);
    }
  }
  slabs_.free(freed);
}

void Store::Impl::resolve_former_internal() {
  std::vector<SessionId> own;
  {
    const std::shared_lock lock(sessions_mutex_);
    for (const auto& [id, former] : former_) {
      if (former.of_node) {
        own.push_back(id);
      }
    }
  }
  for (const SessionId id : own) {
    resolve_former(id);
  }
}

}  // namespace kvcommons
