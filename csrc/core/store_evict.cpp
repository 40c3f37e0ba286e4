// Making room. The chunk of the own class whose turn it is, or another's oldest slab, whichever was used longer ago;
// slabs of fingerprints that no engine uses go before either. A chunk with a child, a lease, a pin or a writer is never
// taken.
#include <algorithm>
#include <unordered_set>
#include <utility>

#include "store_impl.h"

namespace kvcommons {
namespace {
constexpr int kAttemptsMax = 64;        // to find room for one slot, while others take what was freed
constexpr std::size_t kWindowsMax = 4;  // slabs tried at a time
}  // namespace

using internal::SlotGrant;
using internal::Window;

std::optional<Store::Impl::Victim> Store::Impl::victim_in(const internal::Group& group, std::uint64_t stride) {
  std::optional<Victim> best;
  const auto pages = static_cast<std::uint32_t>(stride / kSlotAlignBytes);
  for (std::uint32_t i = 0; i < internal::Index::kShards; ++i) {
    IndexShard& shard = index_.at(i);
    const std::lock_guard lock(shard.mutex);
    const Entry* e = shard.victim(group, pages);
    if (e != nullptr && (!best || shard.turn(*e) < best->turn)) {
      best = {group, i, shard.turn(*e), e->use.tick};
    }
  }
  return best;
}

std::optional<Store::Impl::Victim> Store::Impl::victim(std::uint32_t fingerprint, std::uint64_t stride) {
  for (const std::uint64_t tenant : tenants_.over()) {
    if (auto found = unspared({fingerprint, true, tenant}, stride)) {
      found->tick = 0;  // nobody else's slab goes before it
      return found;
    }
  }
  auto found = unspared({fingerprint, false, 0}, stride);
  if (found && found->turn.when == 0) {
    found->tick = 0;
  }
  return found;
}

// Those that the policy gives another chance are put back on the way. All shards are compared each time: what is next
// in one of them may be far from next of all.
std::optional<Store::Impl::Victim> Store::Impl::unspared(const internal::Group& group, std::uint64_t stride) {
  auto found = victim_in(group, stride);
  for (int spared = 0; found && spared < eviction::kSparedMax; ++spared) {
    {
      IndexShard& shard = index_.at(found->shard);
      const std::lock_guard lock(shard.mutex);
      Entry* e = shard.victim(group, static_cast<std::uint32_t>(stride / kSlotAlignBytes));
      if (e == nullptr || !policy_.spares(e->use)) {
        return found;
      }
      shard.forget(*e);
      (void)policy_.spared(e->use, next_ticks(1));
      shard.refresh(*e);
    }
    found = victim_in(group, stride);
  }
  return found;
}

bool Store::Impl::evict(const Victim& victim, std::uint64_t stride) {
  Removed removed;
  {
    IndexShard& shard = index_.at(victim.shard);
    const std::lock_guard lock(shard.mutex);
    const auto pages = static_cast<std::uint32_t>(stride / kSlotAlignBytes);
    Entry* e = shard.victim(victim.group, pages);
    if (e == nullptr) {
      return false;  // somebody took it, or took hold of it
    }
    policy_.evicted(e->use, shard.key_of(*e).prefix64());
    removed = remove_locked(shard, *e);
  }
  seq_point(SeqPoint::EvictRemoved);
  internal::add(counters_.evicted);
  after_removal(removed);
  return true;
}

std::optional<SlotGrant> Store::Impl::alloc(std::uint32_t fingerprint, std::uint64_t stride) {
  bool dead_left = true;
  for (int attempt = 0; attempt < kAttemptsMax; ++attempt) {
    if (auto grant = slabs_.try_alloc(fingerprint, stride)) {
      return grant;
    }
    if (dead_left && take_back(fingerprint, stride, true, ~0ULL)) {
      continue;
    }
    dead_left = false;
    const auto own = victim(fingerprint, stride);
    seq_point(SeqPoint::EvictChosen);
    if (take_back(fingerprint, stride, false, own ? own->tick : ~0ULL)) {
      continue;
    }
    if (!own) {
      break;
    }
    evict(*own, stride);
  }
  return slabs_.try_alloc(fingerprint, stride);
}

// Frees a window of slabs that were last used before `older_than`.
bool Store::Impl::take_back(std::uint32_t fingerprint, std::uint64_t stride, bool dead_only, std::uint64_t older_than) {
  const auto accept = [&](std::uint32_t row) { return !dead_only || fingerprints_.dead(row); };
  for (const Window& window : slabs_.victims(fingerprint, stride, kWindowsMax, accept)) {
    if (window.last_access >= older_than) {
      return false;
    }
    if (evacuate(window)) {
      internal::add(counters_.slabs_taken_back, window.slabs);
      return true;
    }
  }
  return false;
}

bool Store::Impl::evacuate(const Window& window) {
  std::vector<std::uint32_t> slots;
  if (!slabs_.begin_evacuation(window, &slots)) {
    return false;
  }
  if (subtree_evictable(slots)) {
    for (const std::uint32_t slot : slots) {
      const auto key = sealed_key(slot);
      const EntryId id = key ? find_id(*key) : 0;
      if (id != 0 && !evict_subtree(id)) {
        break;
      }
    }
  }
  return slabs_.end_evacuation(window);
}

internal::EntryId Store::Impl::find_id(const Key& key) {
  IndexShard& shard = index_.of(key);
  const std::lock_guard lock(shard.mutex);
  const Entry* e = shard.find(key);
  return e == nullptr ? 0 : IndexShard::id_of(*e);
}

std::optional<Key> Store::Impl::sealed_key(std::uint32_t slot) const {
  const SlotRecord& record = records_.slot(slot);
  const std::uint64_t before = record.word.load(std::memory_order_acquire);
  const Key key = record.get_key();
  const bool steady = record.word.load(std::memory_order_relaxed) == before;
  if (!steady || SlotRecord::state_of(before) != SlotState::Sealed) {
    return std::nullopt;
  }
  return key;
}

// Whether everything in these slots, and all that follows it in its chains, could be evicted now. Others may change it
// meanwhile; then the eviction stops half way, which costs some hits and nothing else.
bool Store::Impl::subtree_evictable(std::span<const std::uint32_t> slots) {
  std::unordered_set<EntryId> seen;
  std::vector<EntryId> todo;
  for (const std::uint32_t slot : slots) {
    const SlotState state = records_.slot(slot).state();
    if (state == SlotState::Free) {
      continue;
    }
    const auto key = sealed_key(slot);
    if (!key) {
      return false;  // being filled, drained or in quarantine
    }
    todo.push_back(find_id(*key));
  }
  while (!todo.empty()) {
    const EntryId id = todo.back();
    todo.pop_back();
    if (!seen.insert(id).second) {
      continue;
    }
    IndexShard& shard = index_.of(id);
    const std::lock_guard lock(shard.mutex);
    const Entry* e = shard.find(id);
    if (e == nullptr) {
      continue;
    }
    const bool filling = shard.any_part(*e, [](const Part& p) { return !p.sealed; });
    if (e->holds != 0 || e->pinned || filling) {
      return false;
    }
    const auto children = index_.children(*e);
    todo.insert(todo.end(), children.begin(), children.end());
  }
  return true;
}

// Children before parents. False: something in it may not be evicted, or others are changing it right now.
bool Store::Impl::evict_subtree(EntryId root) {
  std::vector<EntryId> path{root};
  while (!path.empty()) {
    const EntryId id = path.back();
    Removed removed;
    {
      IndexShard& shard = index_.of(id);
      const std::lock_guard lock(shard.mutex);
      Entry* e = shard.find(id);
      if (e == nullptr) {
        return path.size() == 1;  // gone with another of its slots; below the root it is a link of an unfinished change
      }
      if (const EntryId child = index_.any_child(*e); child != 0) {
        path.push_back(child);
        continue;
      }
      if (!shard.evictable(*e)) {
        return false;
      }
      policy_.evicted(e->use, shard.key_of(*e).prefix64());
      removed = remove_locked(shard, *e);
    }
    internal::add(counters_.evicted);
    after_removal(removed);
    path.pop_back();
  }
  return true;
}

// Marks the chunks of a chain that is over, from its end to the last one that another chain goes on from, or that was
// marked before the `fresh` ones.
void Store::Impl::end_of_session(const Session& s, const Key& key, std::size_t fresh) {
  EntryId id = find_id(key);
  for (std::uint32_t i = 0; i < kChunksPerReserveMax && id != 0; ++i) {
    IndexShard& shard = index_.of(id);
    const std::lock_guard lock(shard.mutex);
    Entry* e = shard.find(id);
    const bool its_own = e != nullptr && e->fingerprint == s.fingerprint;
    if (!its_own || index_.several_children(*e) || (i >= fresh && e->use.first)) {
      return;
    }
    shard.mark(*e);
    internal::add(counters_.hinted);
    id = e->parent_id;
  }
}

}  // namespace kvcommons
