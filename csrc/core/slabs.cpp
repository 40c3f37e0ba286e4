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
  s.free.clear();
  s.free.reserve(s.slots);
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
  Slab& s = slabs_[head];
  for (std::uint32_t i = s.slots; i-- > 0;) {
    s.free.push_back(i);
  }
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
  if (!s.in_partial && !s.evacuating && !s.free.empty()) {
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
    if (s.evacuating || s.free.empty()) {
      s.in_partial = false;
      it->second.partial.pop_back();
      continue;
    }
    const std::uint32_t index = s.free.back();
    s.free.pop_back();
    SlabRecord& record = records_.slab(head);
    std::uint32_t generation = record.generation.load(std::memory_order_relaxed) + 1;
    generation += generation == 0 ? 1 : 0;
    record.generation.store(generation, std::memory_order_release);
    return SlotGrant{head * records_.geometry().slots_per_slab + index, generation,
                     head * slab_bytes_ + index * stride};
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
    if (s.free.size() == s.slots && !s.evacuating) {
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

std::vector<Window> Slabs::victims(std::uint32_t fingerprint, std::uint64_t stride, std::size_t max,
                                   const std::function<bool(std::uint32_t)>& accept_fingerprint) const {
  const std::lock_guard lock(mutex_);
  const auto total = static_cast<std::uint32_t>(slabs_.size());
  const std::uint32_t count = span_slabs(stride);
  constexpr std::uint64_t kBarred = ~0ULL;
  std::vector<std::uint64_t> score(total, 0);  // by slab: last access of its span, or barred
  for (std::uint32_t head = 0; head < total;) {
    const Slab& s = slabs_[head];
    const std::uint32_t end = head + std::max<std::uint32_t>(1, s.given ? s.span : 1);
    if (s.given) {
      std::uint64_t last = 0;
      for (std::uint32_t i = head; i < end; ++i) {
        last = std::max(last, last_access_[i].load(std::memory_order_relaxed));
      }
      const bool own = s.fingerprint == fingerprint && s.stride == stride;
      const bool barred = own || s.evacuating || !accept_fingerprint(s.fingerprint);
      std::fill(score.begin() + head, score.begin() + end, barred ? kBarred : last);
    }
    head = end;
  }
  std::vector<Window> out;
  for (std::uint32_t first = 0; first + count <= total; ++first) {
    const auto begin = score.begin() + first;
    const std::uint64_t worst = *std::max_element(begin, begin + count);
    const bool repeats = count == 1 && slabs_[first].given && slabs_[first].head != first;
    const bool given =
        std::any_of(slabs_.begin() + first, slabs_.begin() + first + count, [](const Slab& s) { return s.given; });
    if (worst != kBarred && !repeats && given) {
      out.push_back({first, count, worst});
    }
  }
  const std::size_t keep = std::min(max, out.size());
  std::partial_sort(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(keep), out.end(),
                    [](const Window& a, const Window& b) { return a.last_access < b.last_access; });
  out.resize(keep);
  return out;
}

std::vector<std::uint32_t> Slabs::heads_in(const Window& window) const {
  std::vector<std::uint32_t> heads;
  for (std::uint32_t i = window.first_slab; i < window.first_slab + window.slabs; ++i) {
    if (slabs_[i].given && (heads.empty() || heads.back() != slabs_[i].head)) {
      heads.push_back(slabs_[i].head);
    }
  }
  return heads;
}

bool Slabs::begin_evacuation(const Window& window, std::vector<std::uint32_t>* slots) {
  const std::lock_guard lock(mutex_);
  const auto heads = heads_in(window);
  if (std::any_of(heads.begin(), heads.end(), [&](std::uint32_t h) { return slabs_[h].evacuating; })) {
    return false;
  }
  for (const std::uint32_t head : heads) {
    slabs_[head].evacuating = true;
    for (std::uint32_t i = 0; i < slabs_[head].slots; ++i) {
      slots->push_back(head * records_.geometry().slots_per_slab + i);
    }
  }
  return true;
}

bool Slabs::end_evacuation(const Window& window) {
  const std::lock_guard lock(mutex_);
  for (const std::uint32_t head : heads_in(window)) {
    Slab& s = slabs_[head];
    s.evacuating = false;
    if (s.free.size() == s.slots) {
      take_back(head);
    } else {
      offer(head);
    }
  }
  return heads_in(window).empty();
}

void Slabs::adopt(const std::function<bool(std::uint32_t, std::uint64_t)>& visit) {
  const auto total = static_cast<std::uint32_t>(slabs_.size());
  for (std::uint32_t head = 0; head < total;) {
    SlabRecord& record = records_.slab(head);
    const std::uint64_t stride = record.stride_bytes;
    const std::uint32_t count = record.span_slabs;
    const bool sane = record.assigned.load(std::memory_order_acquire) == 1 && count != 0 && count <= total - head &&
                      stride != 0 && stride % kSlotAlignBytes == 0 && stride <= count * slab_bytes_;
    if (!sane) {
      record.assigned.store(0, std::memory_order_relaxed);
      ++head;
      continue;
    }
    shape(head, count, record.fingerprint, stride);
    Slab& s = slabs_[head];
    for (std::uint32_t i = s.slots; i-- > 0;) {
      if (!visit(head * records_.geometry().slots_per_slab + i, head * slab_bytes_ + i * stride)) {
        s.free.push_back(i);
      }
    }
    if (s.free.size() == s.slots) {
      take_back(head);
    } else {
      offer(head);
    }
    head += count;
  }
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

Slabs::Usage Slabs::usage() const {
  const std::lock_guard lock(mutex_);
  Usage u;
  for (const Slab& s : slabs_) {
    u.slabs_free += s.given ? 0 : 1;
    if (s.span != 0) {
      u.slots_free += s.free.size();
      u.used_bytes += (s.slots - s.free.size()) * s.stride;
    }
  }
  return u;
}

}  // namespace kvcommons::internal
