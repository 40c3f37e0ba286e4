// Taking chunks out of the index, and what the control API asks for.
#include <algorithm>
#include <utility>

#include "store_impl.h"

namespace kvcommons {

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

std::vector<std::uint64_t> Store::Impl::text_keys(const IndexShard& shard, const Entry& e) const {
  std::vector<std::uint64_t> keys;
  shard.each_part(e, [&](const Part& part) {
    const std::uint32_t count = part.sealed ? records_.slot(part.slot).text_keys : 0;
    for (std::uint32_t i = 0; i < count; ++i) {
      keys.push_back(records_.text(part.slot, i));
    }
  });
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  return keys;
}

// Of the shard that was sealed last.
std::uint64_t Store::Impl::sealed_ms(const IndexShard& shard, const Entry& e) const {
  std::uint64_t last = 0;
  shard.each_part(e, [&](const Part& part) {
    if (part.sealed) last = std::max(last, records_.slot(part.slot).sealed_ms());
  });
  return last;
}

// Slots that are copied from become DRAINING, those being filled stay their writer's, the others are free at once.
Store::Impl::Removed Store::Impl::remove_locked(IndexShard& shard, Entry& e) {
  Removed removed{e.parent_id, &e, {}, false};
  if (e.announced) {
    Event event;
    event.kind = Event::Kind::Freed;
    event.key = shard.key_of(e);
    event.fingerprint = fingerprints_.key(e.fingerprint);
    event.text_keys = text_keys(shard, e);
    const std::uint64_t now = now_ms();
    const std::uint64_t then = sealed_ms(shard, e);
    event.age_ms = now > then ? now - then : 0;
    events_.push(std::move(event));
    counters_.chunks.fetch_sub(1, std::memory_order_relaxed);
    fingerprints_.chunk_went(e.fingerprint);
  }
  counters_.pinned_chunks.fetch_sub(e.pinned ? 1 : 0, std::memory_order_relaxed);
  std::vector<std::uint32_t> sealed;
  shard.each_part(e, [&](const Part& part) {
    if (part.sealed) sealed.push_back(part.slot);
  });
  shard.went(e);
  shard.remove(e);  // before its slots are anybody else's: their records have its key
  removed.had_content = !sealed.empty();
  for (const std::uint32_t slot : sealed) {
    if (records_.slot(slot).readers.load(std::memory_order_acquire) == 0) {
      set_state(slot, SlotState::Free);
      removed.freed.push_back(slot);
    } else {
      set_state(slot, SlotState::Draining);
    }
  }
  return removed;
}

void Store::Impl::after_removal(const Removed& removed) {
  slabs_.free(removed.freed);
  unlink(removed.parent_id, removed.entry);
}

// A chunk without a slot stays only as long as something hangs on it.
void Store::Impl::drop_if_empty_locked(IndexShard& shard, Entry& e, std::optional<Removed>* removed) {
  if (shard.no_parts(e) && e.first_child == internal::kNowhere) {
    *removed = remove_locked(shard, e);
  } else {
    shard.refresh(e);
  }
}

// Takes what nobody finds (any more) from its parent, if that is still there, and gives its place back. A parent that
// was only there for it goes too.
void Store::Impl::unlink(EntryId parent_id, Entry* child) {
  while (child != nullptr) {
    std::optional<Removed> removed;
    if (parent_id != 0) {
      IndexShard& shard = index_.of(parent_id);
      const std::lock_guard lock(shard.mutex);
      if (Entry* p = shard.find(parent_id)) {
        index_.unlink(*p, child->where);
        drop_if_empty_locked(shard, *p, &removed);
      }
    }
    {
      IndexShard& shard = index_.of(internal::entry_id(child->where, 0));
      const std::lock_guard lock(shard.mutex);
      shard.drop(*child);
    }
    child = removed ? removed->entry : nullptr;
    parent_id = removed ? removed->parent_id : 0;
  }
}

// A chunk and all that follows it: where its bytes are not what was committed, they may have been computed from them,
// and without it they could never be hit. Returns how many had content; each key is added to *gone.
std::uint64_t Store::Impl::remove_tree(const Key& root, std::vector<Key>* gone) {
  std::uint64_t count = 0;
  std::vector<EntryId> todo{find_id(root)};
  while (!todo.empty()) {
    const EntryId id = todo.back();
    todo.pop_back();
    Key key;
    Removed removed;
    {
      IndexShard& shard = index_.of(id);
      const std::lock_guard lock(shard.mutex);
      Entry* e = shard.find(id);
      if (e == nullptr) {
        continue;
      }
      key = shard.key_of(*e);
      fingerprints_.fence(e->fingerprint);  // a child that is being placed under it right now is refused
      const auto children = index_.children(*e);
      todo.insert(todo.end(), children.begin(), children.end());
      removed = remove_locked(shard, *e);
    }
    count += removed.had_content ? 1 : 0;
    if (gone != nullptr) gone->push_back(key);
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
    std::vector<Removed> all;
    {
      IndexShard& shard = index_.at(i);
      const std::lock_guard lock(shard.mutex);
      std::vector<Entry*> meant;
      shard.each([&](Entry& e) {
        if (!only || e.fingerprint == *only) meant.push_back(&e);
      });
      for (Entry* e : meant) {
        all.push_back(remove_locked(shard, *e));
        count += all.back().had_content ? 1 : 0;
      }
    }
    for (const Removed& removed : all) {
      after_removal(removed);
    }
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
    const bool content = e != nullptr && shard.any_part(*e, [](const Part& p) { return p.sealed; });
    if (!content) {
      continue;
    }
    ++found;
    if ((e->pinned != 0) == pinned) {
      continue;
    }
    e->pinned = pinned ? 1 : 0;
    counters_.pinned_chunks.fetch_add(pinned ? 1 : ~std::uint64_t{0}, std::memory_order_relaxed);
    shard.each_part(*e, [&](const Part& part) {
      if (part.sealed) {
        records_.slot(part.slot).pinned.store(pinned ? 1 : 0, std::memory_order_release);
      }
    });
    shard.refresh(*e);
  }
  return found;
}

}  // namespace kvcommons
