// Slabs that change hands: which could be taken back for another fingerprint, the taking itself, and what a restarted
// node finds.
#include <algorithm>

#include "slabs.h"

namespace kvcommons::internal {

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
    if (s.free_slots() == s.slots) {
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
                      stride != 0 && stride % kSlotAlignBytes == 0 && stride <= count * slab_bytes_ &&
                      (count == 1 || count * slab_bytes_ / stride <= records_.geometry().slots_per_slab);
    if (!sane) {
      record.assigned.store(0, std::memory_order_relaxed);
      ++head;
      continue;
    }
    shape(head, count, record.fingerprint, stride);
    Slab& s = slabs_[head];
    s.fresh = s.slots;
    for (std::uint32_t i = s.slots; i-- > 0;) {
      if (!visit(head * records_.geometry().slots_per_slab + i, head * slab_bytes_ + i * stride)) {
        s.free.push_back(i);
      }
    }
    if (s.free_slots() == s.slots) {
      take_back(head);
    } else {
      offer(head);
    }
    head += count;
  }
}

}  // namespace kvcommons::internal
