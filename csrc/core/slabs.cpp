#include "slabs.h"

#include <algorithm>

namespace kvcommons::internal {
namespace {
constexpr std::uint32_t kSpanSlabsMax = 8;       // unless one slot needs more
constexpr std::uint64_t kWasteDenominator = 16;  // a span may waste a sixteenth; else a longer one is tried
}  // namespace

Slabs::Slabs(Records& records)
    : records_(records),
      slab_bytes_(records.geometry().slab_bytes),
      slabs_(records.geometry().slabs),
      last_access_(std::make_unique<std::atomic<std::uint64_t>[]>(records.geometry().slabs)) {}

bool Slabs::fits(std::uint64_t stride) const noexcept { return stride != 0 && stride <= slab_bytes_ * slabs_.size(); }

std::uint32_t Slabs::span_slabs(std::uint64_t stride) const noexcept {
  const auto total = static_cast<std::uint32_t>(slabs_.size());
  const auto least = static_cast<std::uint32_t>((stride + slab_bytes_ - 1) / slab_bytes_);
  const std::uint32_t most = std::max(least, std::min(kSpanSlabsMax, total / 4));
  std::uint32_t best = least;
  std::uint64_t best_waste_ppm = ~0ULL;
  for (std::uint32_t k = least; k <= most; ++k) {
    const std::uint64_t bytes = k * slab_bytes_;
    const std::uint64_t waste = bytes % stride;
    if (waste * kWasteDenominator <= bytes) {
      return k;
    }
    if (const std::uint64_t ppm = waste * 1'000'000 / bytes; ppm < best_waste_ppm) {
      best = k;
      best_waste_ppm = ppm;
    }
  }
  return best;
}

std::optional<std::uint32_t> Slabs::find_free(std::uint32_t count) const {
  std::uint32_t run = 0;
  for (std::uint32_t i = 0; i < slabs_.size(); ++i) {
    run = slabs_[i].given ? 0 : run + 1;
    if (run == count) {
      return i + 1 - count;
    }
  }
  return std::nullopt;
}

void Slabs::shape(std::uint32_t head, std::uint32_t count, std::uint32_t fingerprint, std::uint64_t stride) {
  for (std::uint32_t i = head; i < head + count; ++i) {
    slabs_[i].head = head;
    slabs_[i].given = true;
  }
  Slab& s = slabs_[head];
  s.span = count;
  s.stride = stride;
  s.fingerprint = fingerprint;
  s.slots = static_cast<std::uint32_t>(count * slab_bytes_ / stride);
  s.evacuating = false;
  s.in_partial = false;
  s.fresh = 0;
  s.free.clear();
}

void Slabs::give(std::uint32_t head, std::uint32_t count, std::uint32_t fingerprint, std::uint64_t stride) {
  SlabRecord& record = records_.slab(head);
  // Generations of a place must never recur, whichever slab headed the span that it was in.
  std::uint32_t generation = 0;
  for (std::uint32_t i = head; i < head + count; ++i) {
    generation = std::max(generation, records_.slab(i).generation.load(std::memory_order_relaxed));
  }
  record.generation.store(generation, std::memory_order_release);
  record.stride_bytes = stride;
  record.span_slabs = count;
  record.fingerprint = fingerprint;
  record.assigned.store(1, std::memory_order_release);
  shape(head, count, fingerprint, stride);
  offer(head);
}

void Slabs::take_back(std::uint32_t head) {
  Slab& s = slabs_[head];
  SlabRecord& record = records_.slab(head);
  // Generations first: killed in between, the next life must not grant one again.
  const std::uint32_t generation = record.generation.load(std::memory_order_relaxed);
  for (std::uint32_t i = head; i < head + s.span; ++i) {
    records_.slab(i).generation.store(generation, std::memory_order_release);
  }
  record.assigned.store(0, std::memory_order_release);
  if (auto it = classes_.find({s.fingerprint, s.stride}); it != classes_.end()) {
    std::erase(it->second.partial, head);
    if (it->second.partial.empty()) {
      classes_.erase(it);
    }
  }
  const std::uint32_t count = s.span;
  for (std::uint32_t i = head; i < head + count; ++i) {
    slabs_[i].given = false;
    slabs_[i].span = 0;
    last_access_[i].store(0, std::memory_order_relaxed);
  }
  s.in_partial = false;
  s.evacuating = false;
  s.free = {};
}

void Slabs::offer(std::uint32_t head) {
  Slab& s = slabs_[head];
  if (!s.in_partial && !s.evacuating && s.free_slots() != 0) {
    s.in_partial = true;
    classes_[{s.fingerprint, s.stride}].partial.push_back(head);
  }
}

std::optional<SlotGrant> Slabs::try_alloc(std::uint32_t fingerprint, std::uint64_t stride) {
  const std::lock_guard lock(mutex_);
  const ClassId id{fingerprint, stride};
  for (;;) {
    auto it = classes_.find(id);
    if (it == classes_.end() || it->second.partial.empty()) {
      const std::uint32_t count = span_slabs(stride);
      const auto head = find_free(count);
      if (!head) {
        return std::nullopt;
      }
      give(*head, count, fingerprint, stride);
      continue;
    }
    const std::uint32_t head = it->second.partial.back();
    Slab& s = slabs_[head];
    if (s.evacuating || s.free_slots() == 0) {
      s.in_partial = false;
      it->second.partial.pop_back();
      continue;
    }
    std::uint32_t index = s.fresh;
    if (s.free.empty()) {
      ++s.fresh;
    } else {
      index = s.free.back();
      s.free.pop_back();
    }
    SlabRecord& record = records_.slab(head);
    std::uint32_t generation = record.generation.load(std::memory_order_relaxed) + 1;
    generation += generation == 0 ? 1 : 0;
    record.generation.store(generation, std::memory_order_release);
    return SlotGrant{head * records_.geometry().slots_per_slab + index, generation,
                     records_.geometry().offset_of(head * records_.geometry().slots_per_slab + index, stride)};
  }
}

void Slabs::free(std::span<const std::uint32_t> slots) {
  if (slots.empty()) {
    return;
  }
  const std::lock_guard lock(mutex_);
  const std::uint32_t per_slab = records_.geometry().slots_per_slab;
  for (const std::uint32_t slot : slots) {
    const std::uint32_t head = slabs_[slot / per_slab].head;
    Slab& s = slabs_[head];
    s.free.push_back(slot - head * per_slab);
    if (s.free_slots() == s.slots && !s.evacuating) {
      take_back(head);
    } else {
      offer(head);
    }
  }
}

void Slabs::touch(std::uint32_t slot, std::uint64_t tick) noexcept {
  last_access_[slot / records_.geometry().slots_per_slab].store(tick, std::memory_order_relaxed);
}

bool Slabs::holds_fingerprint(std::uint32_t fingerprint) const {
  const std::lock_guard lock(mutex_);
  return std::any_of(slabs_.begin(), slabs_.end(),
                     [&](const Slab& s) { return s.span != 0 && s.fingerprint == fingerprint; });
}

bool Slabs::next_given(std::uint64_t from, std::uint32_t* slot) const {
  const std::lock_guard lock(mutex_);
  const std::uint32_t per_slab = records_.geometry().slots_per_slab;
  for (std::uint64_t slab = from / per_slab; slab < slabs_.size();) {
    if (!slabs_[slab].given) {
      from = ++slab * per_slab;
      continue;
    }
    const std::uint32_t head = slabs_[slab].head;
    const std::uint64_t end = std::uint64_t{head} * per_slab + slabs_[head].slots;
    from = std::max(from, std::uint64_t{head} * per_slab);
    if (from < end) {
      *slot = static_cast<std::uint32_t>(from);
      return true;
    }
    slab = std::uint64_t{head} + slabs_[head].span;
    from = slab * per_slab;
  }
  return false;
}

std::map<std::uint32_t, std::uint64_t> Slabs::used_by_fingerprint() const {
  const std::lock_guard lock(mutex_);
  std::map<std::uint32_t, std::uint64_t> used;
  for (const Slab& s : slabs_) {
    if (s.span != 0) {
      used[s.fingerprint] += std::uint64_t{s.slots - s.free_slots()} * s.stride;
    }
  }
  return used;
}

Slabs::Usage Slabs::usage() const {
  const std::lock_guard lock(mutex_);
  Usage u;
  for (const Slab& s : slabs_) {
    u.slabs_free += s.given ? 0 : 1;
    if (s.span != 0) {
      u.slots_free += s.free_slots();
      u.used_bytes += std::uint64_t{s.slots - s.free_slots()} * s.stride;
    }
  }
  return u;
}

}  // namespace kvcommons::internal
