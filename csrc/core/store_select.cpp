// Some of the chunks, as the control API names them: what is here, what is to go.
#include <algorithm>
#include <utility>

#include "store_impl.h"

namespace kvcommons {

bool Store::Impl::meant(const IndexShard& shard, const Entry& e, const Selection& selection,
                        std::optional<std::uint32_t> row) const {
  if ((row && e.fingerprint != *row) || (selection.tenant && shard.tenant_of(e) != *selection.tenant)) {
    return false;
  }
  if (selection.age_ms_min == 0) {
    return true;
  }
  const std::uint64_t now = now_ms(), then = sealed_ms(shard, e);
  return e.announced && now >= then && now - then >= selection.age_ms_min;
}

std::vector<Key> Store::Impl::meant_in(std::uint32_t shard_number, const Selection& selection,
                                       std::optional<std::uint32_t> row) const {
  std::vector<Key> out;
  const IndexShard& shard = index_.at(shard_number);
  const std::lock_guard lock(shard.mutex);
  if (selection.keys.empty()) {
    shard.each([&](const Entry& e) {
      if (meant(shard, e, selection, row)) {
        out.push_back(shard.key_of(e));
      }
    });
  }
  for (const Key& key : selection.keys) {
    const bool its_own = internal::Index::shard_of(internal::key_hash(key)) == shard_number;
    const Entry* e = its_own ? shard.find(key) : nullptr;
    if (e != nullptr && meant(shard, *e, selection, row)) {
      out.push_back(key);
    }
  }
  return out;
}

// What is placed under a chunk while that goes is refused by the fence that its removal sets; what was being filled
// finds its slot gone, as with a clear of all.
std::uint64_t Store::Impl::clear(const Selection& selection, std::vector<Key>* removed) {
  if (selection.whole()) {
    return clear(selection.fingerprint ? &*selection.fingerprint : nullptr);
  }
  std::optional<std::uint32_t> row;
  if (selection.fingerprint) {
    row = fingerprints_.find(*selection.fingerprint);
    if (!row) {
      return 0;
    }
  }
  for (std::uint32_t of = 0; of < fingerprints_.count(); ++of) {
    if (!row || *row == of) {
      fingerprints_.fence(of);
    }
  }
  seq_point(SeqPoint::ClearFenced);
  std::uint64_t count = 0;
  for (std::uint32_t i = 0; i < internal::Index::kShards; ++i) {
    for (const Key& key : meant_in(i, selection, row)) {
      count += remove_tree(key, removed);
    }
  }
  internal::add(counters_.cleared, count);
  return count;
}

std::vector<std::uint8_t> Store::Impl::present(const Key& fingerprint, std::span<const Key> keys) const {
  std::vector<std::uint8_t> out(keys.size(), 0);
  const auto row = fingerprints_.find(fingerprint);
  for (std::size_t i = 0; row && i < keys.size(); ++i) {
    const IndexShard& shard = index_.of(keys[i]);
    const std::lock_guard lock(shard.mutex);
    const Entry* e = shard.find(keys[i]);
    out[i] = e != nullptr && e->fingerprint == *row && e->announced ? 1 : 0;
  }
  return out;
}

std::uint32_t Store::Impl::let_go(const Key& fingerprint, std::span<const Key> keys) {
  const auto row = fingerprints_.find(fingerprint);
  std::uint32_t gone = 0;
  for (std::size_t i = keys.size(); row && i-- > 0;) {
    Removed removed;
    {
      IndexShard& shard = index_.of(keys[i]);
      const std::lock_guard lock(shard.mutex);
      Entry* e = shard.find(keys[i]);
      if (e == nullptr || e->fingerprint != *row) {
        continue;
      }
      if (!shard.evictable(*e)) {
        break;  // nor is any before it
      }
      removed = remove_locked(shard, *e);
    }
    internal::add(counters_.evicted);
    after_removal(removed);
    ++gone;
  }
  return gone;
}

}  // namespace kvcommons
