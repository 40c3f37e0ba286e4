// Taking chunks out of the index, and what the control API asks for.
#include <algorithm>
#include <utility>

#include "store_impl.h"

namespace kvcommons {

using internal::kNoSlot;

// Who calls owns the transition: it holds the slot's shard, or the session's claim on it.
void Store::Impl::set_state(std::uint32_t slot, SlotState to) {
  SlotRecord& record = records_.slot(slot);
  if (to == SlotState::Filling) {
    tenants_.took(record.tenant, internal::Slabs::stride_of(record.payload_bytes));
  } else if (to == SlotState::Free) {
    tenants_.gave(record.tenant, internal::Slabs::stride_of(record.payload_bytes));
  }
  if (auto* from = counters_.of(record.state())) {
    from->fetch_sub(1, std::memory_order_relaxed);
  }
  if (auto* counter = counters_.of(to)) {
    internal::add(*counter);
  }
  record.set(to, record.generation());
}

std::vector<std::uint64_t> Store::Impl::text_keys(const Entry& e) const {
  std::vector<std::uint64_t> keys;
  for (const Part& part : e.parts) {
    if (part.sealed) {
      const SlotRecord& record = records_.slot(part.slot);
      keys.insert(keys.end(), record.text, record.text + record.text_keys);
    }
  }
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  return keys;
}

// Slots that are copied from become DRAINING, those being filled stay their writer's, the others are free at once.
Store::Impl::Removed Store::Impl::remove_locked(IndexShard& shard, Entry& e) {
  Removed removed{*e.key, e.parent, e.id, e.parent_id, {}, false};
  if (e.announced) {
    Event event;
    event.kind = Event::Kind::Freed;
    event.key = removed.key;
    event.fingerprint = fingerprints_.key(e.fingerprint);
    event.text_keys = text_keys(e);
    const std::uint64_t now = now_ms();
    event.age_ms = now > e.commit_ms ? now - e.commit_ms : 0;
    events_.push(std::move(event));
    counters_.chunks.fetch_sub(1, std::memory_order_relaxed);
    fingerprints_.chunk_went(e.fingerprint);
  }
  counters_.pinned_chunks.fetch_sub(e.pinned ? 1 : 0, std::memory_order_relaxed);
  for (const Part& part : e.parts) {
    if (!part.sealed) {
      continue;
    }
    removed.had_content = true;
    if (records_.slot(part.slot).readers.load(std::memory_order_acquire) == 0) {
      set_state(part.slot, SlotState::Free);
      removed.freed.push_back(part.slot);
    } else {
      set_state(part.slot, SlotState::Draining);
    }
  }
  shard.went(e);
  shard.entries.erase(removed.key);
  return removed;
}

void Store::Impl::after_removal(const Removed& removed) {
  slabs_.free(removed.freed);
  if (removed.parent_id != 0) {
    unlink(removed.parent, removed.parent_id, removed.key);
  }
}

// A chunk without a slot stays only as long as something hangs on it.
void Store::Impl::drop_if_empty_locked(IndexShard& shard, Entry& e, std::optional<Removed>* removed) {
  if (e.parts.empty() && e.children.empty()) {
    *removed = remove_locked(shard, e);
  } else {
    shard.refresh(e);
  }
}

void Store::Impl::unlink(Key parent, std::uint64_t parent_id, Key child) {
  while (parent_id != 0) {
    std::optional<Removed> removed;
    {
      IndexShard& shard = index_.of(parent);
      const std::lock_guard lock(shard.mutex);
      Entry* p = shard.find(parent, parent_id);
      if (p == nullptr || !p->children.remove(child)) {
        return;  // the parent was removed by force, and its links with it
      }
      drop_if_empty_locked(shard, *p, &removed);
    }
    if (!removed) {
      return;
    }
    child = removed->key;
    parent = removed->parent;
    parent_id = removed->parent_id;
  }
}

// A chunk and all that follows it: where its bytes are not what was committed, they may have been computed from them,
// and without it they could never be hit. Returns how many had content; each key is added to *gone.
std::uint64_t Store::Impl::remove_tree(const Key& root, std::vector<Key>* gone) {
  std::uint64_t count = 0;
  struct Step {
    Key key;
    std::uint64_t parent_id;  // 0 for the root: whatever its parent is
  };
  std::vector<Step> todo{{root, 0}};
  while (!todo.empty()) {
    const Step step = todo.back();
    todo.pop_back();
    Removed removed;
    {
      IndexShard& shard = index_.of(step.key);
      const std::lock_guard lock(shard.mutex);
      Entry* e = shard.find(step.key);
      if (e == nullptr || (step.parent_id != 0 && e->parent_id != step.parent_id)) {
        continue;
      }
      fingerprints_.fence(e->fingerprint);  // a child that is being placed under it right now is refused
      for (const Key& child : e->children.list()) {
        todo.push_back({child, e->id});
      }
      removed = remove_locked(shard, *e);
    }
    count += removed.had_content ? 1 : 0;
    if (gone != nullptr) gone->push_back(step.key);
    after_removal(removed);
  }
  return count;
}

std::uint64_t Store::Impl::clear(const Key* fingerprint) {
  std::optional<std::uint32_t> only;
  if (fingerprint != nullptr) {
    only = fingerprints_.find(*fingerprint);
    if (!only) {
      return 0;
    }
  }
  for (std::uint32_t row = 0; row < fingerprints_.count(); ++row) {
    if (!only || *only == row) {
      fingerprints_.fence(row);
    }
  }
  seq_point(SeqPoint::ClearFenced);
  std::uint64_t count = 0;
  for (std::uint32_t i = 0; i < internal::Index::kShards; ++i) {
    std::vector<std::uint32_t> freed;
    {
      IndexShard& shard = index_.at(i);
      const std::lock_guard lock(shard.mutex);
      for (auto it = shard.entries.begin(); it != shard.entries.end();) {
        Entry& e = (it++)->second;
        if (only && e.fingerprint != *only) {
          continue;
        }
        // Links are not cut: the other end goes too, in this sweep.
        const Removed removed = remove_locked(shard, e);
        count += removed.had_content ? 1 : 0;
        freed.insert(freed.end(), removed.freed.begin(), removed.freed.end());
      }
    }
    slabs_.free(freed);
  }
  internal::add(counters_.cleared, count);
  return count;
}

std::uint32_t Store::Impl::pin(std::span<const Key> keys, bool pinned) {
  std::uint32_t found = 0;
  for (const Key& key : keys) {
    IndexShard& shard = index_.of(key);
    const std::lock_guard lock(shard.mutex);
    Entry* e = shard.find(key);
    const bool content =
        e != nullptr && std::any_of(e->parts.begin(), e->parts.end(), [](const Part& p) { return p.sealed; });
    if (!content) {
      continue;
    }
    ++found;
    if (e->pinned == pinned) {
      continue;
    }
    e->pinned = pinned;
    counters_.pinned_chunks.fetch_add(pinned ? 1 : ~std::uint64_t{0}, std::memory_order_relaxed);
    for (const Part& part : e->parts) {
      if (part.sealed) {
        records_.slot(part.slot).pinned.store(pinned ? 1 : 0, std::memory_order_release);
      }
    }
    shard.refresh(*e);
  }
  return found;
}

}  // namespace kvcommons
