// Reading the records of a former life. Runs once, alone, before the store is seen by anybody.
#include <algorithm>
#include <unordered_set>

#include "store_impl.h"

namespace kvcommons {

using internal::Slabs;

struct Store::Impl::Adoption {
  struct Sealed {
    std::uint32_t slot;
    std::uint64_t offset_bytes;
    std::uint16_t rect;
  };
  std::vector<Sealed> sealed;
  std::vector<std::uint32_t> freed;  // found unusable after the slabs were laid out
};

void Store::Impl::adopt() {
  Adoption adoption;
  const std::uint32_t rows = records_.geometry().session_rows;
  for (std::uint32_t row = rows; row-- > 0;) {
    const internal::SessionRecord& record = records_.session(row);
    const SessionId id = record.id.load(std::memory_order_acquire);
    const bool holds =
        record.reading.load(std::memory_order_relaxed) != 0 || record.filling.load(std::memory_order_relaxed) != 0;
    if (id != 0 && holds) {
      former_[id] = Former{row, {}, record.internal != 0};
    } else {
      drop_row(row);
    }
  }
  slabs_.adopt([&](std::uint32_t slot, std::uint64_t offset) { return adopt_slot(adoption, slot, offset); });
  adopt_entries(adoption);
  slabs_.free(adoption.freed);
  const bool readers_left = std::any_of(former_.begin(), former_.end(), [&](const auto& f) {
    return records_.session(f.second.row).reading.load(std::memory_order_relaxed) != 0;
  });
  if (!readers_left) {
    release_former_reads();
  }
}

// True if the slot is in use.
bool Store::Impl::adopt_slot(Adoption& adoption, std::uint32_t slot, std::uint64_t offset) {
  SlotRecord& record = records_.slot(slot);
  SlotState state = record.state();
  const std::uint32_t readers = record.readers.load(std::memory_order_acquire);
  const bool filling = state == SlotState::Filling || state == SlotState::Quarantined;
  if (filling) {
    const auto owner = former_.find(record.owner);
    state = owner == former_.end() ? SlotState::Free : SlotState::Quarantined;
    if (owner != former_.end()) {
      owner->second.filling.push_back(slot);
    }
  } else if (state == SlotState::Sealed && record.crc == record.compute_crc(record.generation())) {
    const auto rect = fingerprints_.adopt_rect(record.fingerprint, {record.rect, record.payload_bytes});
    if (rect) {
      adoption.sealed.push_back({slot, offset, *rect});
    } else {
      state = SlotState::Draining;
    }
  } else if (state != SlotState::Free) {
    state = SlotState::Draining;  // also what a flipped bit made of a sealed one: whoever reads it is waited for
  }
  if (state == SlotState::Draining && readers == 0) {
    state = SlotState::Free;
  }
  if (readers != 0 && (state == SlotState::Sealed || state == SlotState::Draining)) {
    former_reads_.push_back({slot, readers, 0});
  } else {
    record.readers.store(0, std::memory_order_relaxed);
  }
  record.set(state, record.generation());
  if (auto* counter = counters_.of(state)) {
    internal::add(*counter);
  }
  if (state != SlotState::Free) {
    tenants_.took(record.tenant, Slabs::stride_of(record.payload_bytes));
  }
  return state != SlotState::Free;
}

// A sealed slot that cannot be served: freed, or left to those who read it.
void Store::Impl::adopt_refused(Adoption& adoption, std::uint32_t slot) {
  if (records_.slot(slot).readers.load(std::memory_order_relaxed) != 0) {
    set_state(slot, SlotState::Draining);
  } else {
    set_state(slot, SlotState::Free);
    adoption.freed.push_back(slot);
  }
}

void Store::Impl::adopt_entries(Adoption& adoption) {
  // Least recently sealed first, so that ticks follow the order of the former life as far as it is known.
  std::sort(adoption.sealed.begin(), adoption.sealed.end(), [&](const auto& a, const auto& b) {
    return records_.slot(a.slot).sealed_ms < records_.slot(b.slot).sealed_ms;
  });
  for (const auto& sealed : adoption.sealed) {
    if (!adopt_part(sealed.slot, sealed.offset_bytes, sealed.rect)) {
      adopt_refused(adoption, sealed.slot);
    }
  }
  link_adopted();
  drop_unreachable(adoption);
  for (std::uint32_t i = 0; i < internal::Index::kShards; ++i) {
    IndexShard& shard = index_.at(i);
    for (auto& [key, e] : shard.entries) {
      if (e.announced) {
        internal::add(counters_.chunks);
        fingerprints_.chunk_came(e.fingerprint);
      }
      internal::add(counters_.pinned_chunks, e.pinned ? 1 : 0);
    }
  }
  for (FormerRead& read : former_reads_) {
    const Key key = records_.slot(read.slot).get_key();
    Entry* e = index_.of(key).find(key);
    const bool its_own = e != nullptr && std::any_of(e->parts.begin(), e->parts.end(),
                                                     [&](const Part& p) { return p.slot == read.slot; });
    if (its_own) {
      ++e->holds;
      read.entry_id = e->id;
    }
  }
  for (std::uint32_t i = 0; i < internal::Index::kShards; ++i) {
    for (auto& [key, e] : index_.at(i).entries) {
      index_.at(i).refresh(e);
    }
  }
}

bool Store::Impl::adopt_part(std::uint32_t slot, std::uint64_t offset, std::uint16_t rect) {
  const SlotRecord& record = records_.slot(slot);
  const Key key = record.get_key();
  const auto [it, inserted] = index_.of(key).entries.try_emplace(key);
  Entry& e = it->second;
  if (inserted) {
    e.key = &it->first;
    e.parent = record.parent;
    e.id = next_entry_id_.fetch_add(1, std::memory_order_relaxed);
    e.fingerprint = record.fingerprint;
    e.tenant = record.tenant;
  } else if (e.fingerprint != record.fingerprint || e.parent != record.parent || e.find(rect) != nullptr) {
    return false;
  }
  const auto pages = static_cast<std::uint32_t>(Slabs::stride_of(record.payload_bytes) / kSlotAlignBytes);
  e.parts.push_back({offset, slot, record.generation(), pages, rect, true});
  if (inserted) {
    index_.of(key).came(e, pages, 0, next_ticks(1));
  } else {
    policy_.grew(e.use, pages);
  }
  e.announced = e.announced || record.completes != 0;
  e.commit_ms = std::max(e.commit_ms, record.sealed_ms);
  e.pinned = e.pinned || record.pinned.load(std::memory_order_relaxed) != 0;
  slabs_.touch(slot, e.use.tick);
  return true;
}

void Store::Impl::link_adopted() {
  for (std::uint32_t i = 0; i < internal::Index::kShards; ++i) {
    for (auto& [key, e] : index_.at(i).entries) {
      Entry* parent = e.parent.zero() ? nullptr : index_.of(e.parent).find(e.parent);
      if (parent != nullptr && parent->fingerprint == e.fingerprint) {
        parent->children.add(key);
        e.parent_id = parent->id;
      }
    }
  }
}

// What no chain leads to any more (its prefix's record was torn) can never be hit.
void Store::Impl::drop_unreachable(Adoption& adoption) {
  std::vector<Key> todo;
  std::unordered_set<Key, KeyHash> reached;
  for (std::uint32_t i = 0; i < internal::Index::kShards; ++i) {
    for (const auto& [key, e] : index_.at(i).entries) {
      if (e.parent.zero()) {
        todo.push_back(key);
      }
    }
  }
  while (!todo.empty()) {
    const Key key = todo.back();
    todo.pop_back();
    if (reached.insert(key).second) {
      const Entry& e = *index_.of(key).find(key);
      const auto children = e.children.list();
      for (const Key& child : children) {  // each is reached by its parent, and only after it
        index_.of(child).find(child)->use.position =
            static_cast<std::uint16_t>(std::min<std::uint32_t>(e.use.position + 1U, eviction::kPositionMax));
      }
      todo.insert(todo.end(), children.begin(), children.end());
    }
  }
  for (std::uint32_t i = 0; i < internal::Index::kShards; ++i) {
    std::erase_if(index_.at(i).entries, [&](const auto& item) {
      if (reached.contains(item.first)) {
        return false;
      }
      index_.at(i).went(*index_.at(i).find(item.first));
      for (const Part& part : item.second.parts) {
        adopt_refused(adoption, part.slot);
      }
      return true;
    });
  }
}

}  // namespace kvcommons
