// Reading the records of a former life. Runs once, alone, before the store is seen by anybody.
#include <algorithm>
#include <unordered_set>

#include "store_impl.h"

namespace kvcommons {

using internal::Slabs;

struct Store::Impl::Adoption {
  struct Sealed {
    std::uint32_t slot;
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
  slabs_.adopt([&](std::uint32_t slot, std::uint64_t) { return adopt_slot(adoption, slot); });
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
bool Store::Impl::adopt_slot(Adoption& adoption, std::uint32_t slot) {
  SlotRecord& record = records_.slot(slot);
  SlotState state = record.state();
  const std::uint32_t readers = record.readers.load(std::memory_order_acquire);
  const bool filling = state == SlotState::Filling || state == SlotState::Quarantined;
  if (filling) {
    const auto owner = former_.find(record.owner());
    state = owner == former_.end() ? SlotState::Free : SlotState::Quarantined;
    if (owner != former_.end()) {
      owner->second.filling.push_back(slot);
    }
  } else if (state == SlotState::Sealed && record.crc == records_.compute_crc(slot, record.generation())) {
    const auto rect = fingerprints_.adopt_rect(record.fingerprint, {record.rect, record.payload_bytes});
    if (rect) {
      adoption.sealed.push_back({slot, *rect});
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
    return records_.slot(a.slot).sealed_ms() < records_.slot(b.slot).sealed_ms();
  });
  for (const auto& sealed : adoption.sealed) {
    if (!adopt_part(sealed.slot, sealed.rect)) {
      adopt_refused(adoption, sealed.slot);
    }
  }
  link_adopted();
  drop_unreachable(adoption);
  for (std::uint32_t i = 0; i < internal::Index::kShards; ++i) {
    index_.at(i).each([&](const Entry& e) {
      if (e.announced) {
        internal::add(counters_.chunks);
        fingerprints_.chunk_came(e.fingerprint);
      }
      internal::add(counters_.pinned_chunks, e.pinned ? 1 : 0);
    });
  }
  for (FormerRead& read : former_reads_) {
    const Key key = records_.slot(read.slot).get_key();
    IndexShard& shard = index_.of(key);
    Entry* e = shard.find(key);
    if (e != nullptr && shard.any_part(*e, [&](const Part& p) { return p.slot == read.slot; })) {
      e->holds = (e->holds + 1) & internal::kHoldsMax;
      read.entry_id = IndexShard::id_of(*e);
    }
  }
  for (std::uint32_t i = 0; i < internal::Index::kShards; ++i) {
    IndexShard& shard = index_.at(i);
    shard.each([&](Entry& e) { shard.refresh(e); });
  }
}

// Of any of its slots: they agree in what names the chunk and what it follows.
const internal::SlotRecord& Store::Impl::record_of(const IndexShard& shard, const Entry& e) const {
  std::uint32_t slot = internal::kNoSlot;
  shard.each_part(e, [&](const Part& part) { slot = part.slot; });
  return records_.slot(slot);
}

bool Store::Impl::adopt_part(std::uint32_t slot, std::uint16_t rect) {
  const SlotRecord& record = records_.slot(slot);
  const Key key = record.get_key();
  IndexShard& shard = index_.of(key);
  Entry* e = shard.find(key);
  const bool inserted = e == nullptr;
  const auto pages = static_cast<std::uint32_t>(Slabs::stride_of(record.payload_bytes) / kSlotAlignBytes);
  if (inserted) {
    e = shard.make();
    if (e == nullptr) {
      return false;
    }
    e->fingerprint = record.fingerprint;
    shard.place(*e, key, record.tenant);
  } else {
    const SlotRecord& other = record_of(shard, *e);
    const bool alike = e->fingerprint == record.fingerprint && other.parent == record.parent &&
                       other.first == record.first && !shard.part_of(*e, rect);
    if (!alike) {
      return false;
    }
  }
  shard.add_part(*e, {internal::kNoSlot, pages, rect, true});
  if (inserted) {
    shard.came(*e, pages, 0, next_ticks(1));
  } else {
    policy_.grew(e->use, pages);
  }
  shard.set_slot(*e, rect, slot);
  e->announced = e->announced || record.completes != 0 ? 1 : 0;
  e->pinned = e->pinned || record.pinned.load(std::memory_order_relaxed) != 0 ? 1 : 0;
  slabs_.touch(slot, e->use.tick);
  return true;
}

void Store::Impl::link_adopted() {
  for (std::uint32_t i = 0; i < internal::Index::kShards; ++i) {
    IndexShard& shard = index_.at(i);
    shard.each([&](Entry& e) {
      const SlotRecord& record = record_of(shard, e);
      Entry* parent =
          record.first != 0 ? nullptr : index_.at(internal::Index::shard_of(record.parent)).find_hash(record.parent);
      if (parent != nullptr && parent != &e && parent->fingerprint == e.fingerprint) {
        index_.link(*parent, e);
        e.parent_id = IndexShard::id_of(*parent);
      }
    });
  }
}

// What no chain leads to any more (its prefix's record was torn) can never be hit.
void Store::Impl::drop_unreachable(Adoption& adoption) {
  std::vector<EntryId> todo;
  std::unordered_set<const Entry*> reached;
  for (std::uint32_t i = 0; i < internal::Index::kShards; ++i) {
    IndexShard& shard = index_.at(i);
    shard.each([&](const Entry& e) {
      if (record_of(shard, e).first != 0) todo.push_back(IndexShard::id_of(e));
    });
  }
  while (!todo.empty()) {
    const Entry& e = *index_.of(todo.back()).find(todo.back());
    todo.pop_back();
    if (reached.insert(&e).second) {
      for (const EntryId child : index_.children(e)) {  // each is reached by its parent, and only after it
        index_.of(child).find(child)->use.set_position(e.use.position + 1U);
        todo.push_back(child);
      }
    }
  }
  for (std::uint32_t i = 0; i < internal::Index::kShards; ++i) {
    IndexShard& shard = index_.at(i);
    std::vector<Entry*> lost;
    shard.each([&](Entry& e) {
      if (!reached.contains(&e)) lost.push_back(&e);
    });
    for (Entry* e : lost) {  // with all of their chains: no link to them is left elsewhere
      shard.each_part(*e, [&](const Part& part) { adopt_refused(adoption, part.slot); });
      shard.went(*e);
      shard.remove(*e);
      shard.drop(*e);
    }
  }
}

}  // namespace kvcommons
