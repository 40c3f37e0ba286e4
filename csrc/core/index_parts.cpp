// A chunk's key, tenant and parts: in the record of its only slot, or aside.
#include <algorithm>
#include <stdexcept>
#include <utility>

#include "index.h"

namespace kvcommons::internal {

Entry* IndexShard::find(const Key& key, std::uint64_t hash) noexcept {
  const std::uint32_t where =
      table.find(hash, [&](std::uint32_t one) { return is_key(pool.at(one >> kShardBits), key); });
  return where == kNowhere ? nullptr : &pool.at(where >> kShardBits);
}

Entry* IndexShard::find_hash(std::uint64_t hash) noexcept {
  const std::uint32_t where =
      table.find(hash, [&](std::uint32_t one) { return key_hash(key_of(pool.at(one >> kShardBits))) == hash; });
  return where == kNowhere ? nullptr : &pool.at(where >> kShardBits);
}

void IndexShard::place(Entry& e, const Key& key, std::uint64_t tenant) {
  aside[&e] = {key, tenant, {}};
  e.aside = 1;
  e.placed = 1;
  table.insert(key_hash(key), e.where);
}

void IndexShard::remove(Entry& e) {
  table.erase(key_hash(key_of(e)), e.where);
  if (e.aside) aside.erase(&e);
  e.aside = 0;
  e.placed = 0;
  e.life.fetch_add(1, std::memory_order_relaxed);
}

bool IndexShard::is_key(const Entry& e, const Key& key) const noexcept {
  if (e.aside) return aside.find(&e)->second.key == key;
  return records->slot(e.slot).is_key(key);
}

Key IndexShard::key_of(const Entry& e) const { return e.aside ? aside.at(&e).key : records->slot(e.slot).get_key(); }

std::uint64_t IndexShard::tenant_of(const Entry& e) const {
  return e.aside ? aside.at(&e).tenant : records->slot(e.slot).tenant;
}

std::optional<Part> IndexShard::aside_part(const Entry& e, std::uint16_t rect) const {
  for (const Part& part : aside.at(&e).parts) {
    if (part.rect == rect) return part;
  }
  return std::nullopt;
}

bool IndexShard::evictable(const Entry& e) const {
  if (e.first_child != kNowhere || e.holds != 0 || e.pinned) return false;
  if (!e.aside) return e.sealed != 0;
  const auto& parts = aside.at(&e).parts;
  return !parts.empty() && std::all_of(parts.begin(), parts.end(), [](const Part& p) { return p.sealed; });
}

Aside& IndexShard::unfold(Entry& e) {
  if (!e.aside) {
    Aside all{key_of(e), tenant_of(e), {plain_part(e)}};
    aside[&e] = std::move(all);
    e.aside = 1;
  }
  return aside.at(&e);
}

// Where that is all there is to say of it. What lost a part has more pages than the one that is left.
void IndexShard::fold(Entry& e) {
  const auto& parts = aside.at(&e).parts;
  if (parts.size() != 1 || parts[0].slot == kNoSlot || parts[0].stride_pages != e.use.pages) return;
  e.slot = parts[0].slot;
  e.rect = parts[0].rect;
  e.sealed = parts[0].sealed ? 1 : 0;
  e.aside = 0;
  aside.erase(&e);
}

void IndexShard::add_part(Entry& e, const Part& part) { unfold(e).parts.push_back(part); }

void IndexShard::set_slot(Entry& e, std::uint16_t rect, std::uint32_t slot) {
  for (Part& part : unfold(e).parts) {
    if (part.rect == rect) part.slot = slot;
  }
  fold(e);
}

void IndexShard::set_sealed(Entry& e, std::uint16_t rect) {
  if (!e.aside) {
    e.sealed = 1;
    return;
  }
  for (Part& part : aside.at(&e).parts) part.sealed = part.sealed || part.rect == rect;
}

void IndexShard::drop_part(Entry& e, std::uint16_t rect) {
  std::erase_if(unfold(e).parts, [&](const Part& part) { return part.rect == rect; });
  fold(e);
}

}  // namespace kvcommons::internal
