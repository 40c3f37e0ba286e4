#include "fingerprints.h"

#include <algorithm>

namespace kvcommons::internal {

Fingerprints::Fingerprints(Records& records)
    : records_(records),
      count_(records.geometry().fingerprint_rows),
      rows_(std::make_unique<Row[]>(records.geometry().fingerprint_rows)) {
  for (std::uint32_t i = 0; i < count_; ++i) {
    const FingerprintRecord& r = records.fingerprint(i);
    if (r.used.load(std::memory_order_acquire) == 1) {
      rows_[i].used = true;
      rows_[i].key = r.key;
      rows_[i].chunk_tokens = r.chunk_tokens;
    }
  }
}

std::optional<std::uint32_t> Fingerprints::find_locked(const Key& fingerprint) const {
  for (std::uint32_t i = 0; i < count_; ++i) {
    if (rows_[i].used && rows_[i].key == fingerprint) {
      return i;
    }
  }
  return std::nullopt;
}

std::optional<std::uint32_t> Fingerprints::find(const Key& fingerprint) const {
  const std::lock_guard lock(mutex_);
  return find_locked(fingerprint);
}

std::optional<std::uint16_t> Fingerprints::find_rect(std::uint32_t row, const Rect& rect) const {
  const std::lock_guard lock(mutex_);
  const auto& rects = rows_[row].rects;
  const auto it = std::find_if(rects.begin(), rects.end(), [&](const ShardSpec& s) { return s.rect == rect; });
  if (it == rects.end()) {
    return std::nullopt;
  }
  return static_cast<std::uint16_t>(it - rects.begin());
}

std::uint32_t Fingerprints::chunk_tokens(std::uint32_t row) const {
  const std::lock_guard lock(mutex_);
  return rows_[row].chunk_tokens;
}

std::vector<ShardSpec> Fingerprints::specs(std::uint32_t row, const std::vector<std::uint16_t>& rects) const {
  const std::lock_guard lock(mutex_);
  std::vector<ShardSpec> out;
  for (const std::uint16_t rect : rects) {
    out.push_back(rows_[row].rects[rect]);
  }
  return out;
}

Key Fingerprints::key(std::uint32_t row) const {
  const std::lock_guard lock(mutex_);
  return rows_[row].key;
}

std::uint64_t Fingerprints::in_use() const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::uint64_t>(
      std::count_if(rows_.get(), rows_.get() + count_, [](const Row& r) { return r.used; }));
}

std::vector<Fingerprints::Known> Fingerprints::known() const {
  const std::lock_guard lock(mutex_);
  std::vector<Known> out;
  for (std::uint32_t i = 0; i < count_; ++i) {
    if (rows_[i].used) {
      out.push_back({i, rows_[i].key, rows_[i].chunks.load(std::memory_order_relaxed)});
    }
  }
  return out;
}

std::optional<std::uint32_t> Fingerprints::make_row(const std::function<bool(std::uint32_t)>& holds_slabs) {
  for (std::uint32_t i = 0; i < count_; ++i) {
    if (!rows_[i].used) {
      return i;
    }
  }
  for (std::uint32_t i = 0; i < count_; ++i) {
    if (dead(i) && !holds_slabs(i)) {
      fence(i);
      return i;
    }
  }
  return std::nullopt;
}

Status Fingerprints::open(const SessionSpec& spec, const std::function<bool(std::uint32_t)>& holds_slabs,
                          std::uint32_t* row, std::vector<std::uint16_t>* rects) {
  const std::lock_guard lock(mutex_);
  auto index = find_locked(spec.fingerprint);
  if (!index) {
    index = make_row(holds_slabs);
    if (!index) {
      return Status::Full;
    }
    FingerprintRecord& record = records_.fingerprint(*index);
    record.used.store(0, std::memory_order_release);
    record.key = spec.fingerprint;
    record.chunk_tokens = spec.chunk_tokens;
    record.used.store(1, std::memory_order_release);
    Row& fresh = rows_[*index];
    fresh.key = spec.fingerprint;
    fresh.used = true;
    fresh.chunk_tokens = spec.chunk_tokens;
    fresh.rects.clear();
  }
  Row& r = rows_[*index];
  if (r.chunk_tokens == 0) {  // declared by a tool, which does not know
    r.chunk_tokens = spec.chunk_tokens;
    records_.fingerprint(*index).chunk_tokens = spec.chunk_tokens;
  } else if (spec.chunk_tokens != 0 && spec.chunk_tokens != r.chunk_tokens) {
    return Status::BadFingerprint;
  }
  auto all = r.rects;  // nothing is kept of a declaration that is refused
  for (const ShardSpec& shard : spec.shards) {
    auto it = std::find_if(all.begin(), all.end(), [&](const ShardSpec& s) { return s.rect == shard.rect; });
    if (it == all.end()) {
      it = all.insert(all.end(), shard);
    } else if (it->slot_bytes != shard.slot_bytes) {
      return Status::BadFingerprint;
    }
    rects->push_back(static_cast<std::uint16_t>(it - all.begin()));
  }
  if (all.size() > kRectsPerFingerprintMax) {
    return Status::Full;
  }
  r.rects = std::move(all);
  r.sessions.fetch_add(1, std::memory_order_relaxed);
  *row = *index;
  return Status::Ok;
}

std::optional<std::uint16_t> Fingerprints::adopt_rect(std::uint32_t row, const ShardSpec& shard) {
  const std::lock_guard lock(mutex_);
  if (row >= count_ || !rows_[row].used) {
    return std::nullopt;
  }
  auto& rects = rows_[row].rects;
  auto it = std::find_if(rects.begin(), rects.end(), [&](const ShardSpec& s) { return s.rect == shard.rect; });
  if (it == rects.end() && rects.size() < kRectsPerFingerprintMax) {
    it = rects.insert(rects.end(), shard);
  }
  if (it == rects.end() || it->slot_bytes != shard.slot_bytes) {
    return std::nullopt;
  }
  return static_cast<std::uint16_t>(it - rects.begin());
}

}  // namespace kvcommons::internal
