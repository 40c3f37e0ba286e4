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
      const Part* part = its_own ? e->find(rect) : nullptr;
      out.push_back(part != nullptr && part->sealed ? 1 : 0);
    }
  }
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
  IndexShard& shard = index_.of(key);
  const std::lock_guard lock(shard.mutex);
  Entry* e = shard.find(key);
  const Part* part = e != nullptr && e->fingerprint == *row ? e->find(*number) : nullptr;
  if (part == nullptr || !part->sealed) {
    return false;
  }
  SlotRecord& record = records_.slot(part->slot);
  record.readers.fetch_add(1, std::memory_order_acq_rel);
  ++e->holds;
  shard.refresh(*e);
  out->fingerprint = fingerprint;
  out->key = key;
  out->slot = {part->offset_bytes, part->generation};
  out->parent = e->parent;
  out->tenant = record.tenant;
  out->payload_bytes = record.payload_bytes;
  out->checksum = record.checksum;
  out->chunk_tokens = fingerprints_.chunk_tokens(*row);
  out->text_keys.assign(record.text, record.text + record.text_keys);
  out->entry_id = e->id;
  out->slot_id = part->slot;
  return true;
}

void Store::Impl::give_back(const Borrowed& borrowed) {
  std::vector<std::uint32_t> freed;
  {
    IndexShard& shard = index_.of(borrowed.key);
    const std::lock_guard lock(shard.mutex);
    drop_reader_locked(borrowed.slot_id, 1, &freed);
    if (Entry* e = shard.find(borrowed.key, borrowed.entry_id)) {
      --e->holds;
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
