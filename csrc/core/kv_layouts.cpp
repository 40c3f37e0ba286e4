#include "kv_layouts.h"

#include <algorithm>
#include <numeric>

namespace kvcommons {

using kvcodec::CodecId;
using kvcodec::KvShape;

std::optional<KvShape> shape_of(const KvForm& layout, std::uint32_t chunk_tokens, const Rect& rect,
                                std::uint64_t slot_bytes) {
  if (layout.block_tokens == 0 || chunk_tokens % layout.block_tokens != 0) return std::nullopt;
  if (rect.layer_end <= rect.layer_begin || rect.head_end <= rect.head_begin) return std::nullopt;
  const KvShape shape{.element = layout.element,
                      .order = layout.order,
                      .layers = static_cast<std::uint32_t>(rect.layer_end - rect.layer_begin),
                      .blocks = chunk_tokens / layout.block_tokens,
                      .block_tokens = layout.block_tokens,
                      .heads = static_cast<std::uint32_t>(rect.head_end - rect.head_begin),
                      .k_size = layout.k_size,
                      .v_size = layout.v_size};
  if (!kvcodec::why_not({CodecId::Lossless, 0}, shape).empty() || shape.raw_bytes() != slot_bytes) return std::nullopt;
  return shape;
}

std::optional<KvShape> flat_shape(std::uint64_t slot_bytes) {
  constexpr std::uint64_t kItem = 2;
  if (slot_bytes == 0 || slot_bytes % kItem != 0) return std::nullopt;
  const std::uint64_t items = slot_bytes / kItem;
  const std::uint64_t tokens = std::gcd(items, std::uint64_t{kvcodec::kBlockTokensMax});
  KvShape shape{.layers = 1, .blocks = 1, .block_tokens = static_cast<std::uint32_t>(tokens), .heads = 1};
  const std::uint64_t rest = items / tokens;
  if (rest > 65'536) return std::nullopt;
  shape.blocks = static_cast<std::uint32_t>(rest);
  shape.k_size = 1;
  if (!kvcodec::why_not({CodecId::Lossless, 0}, shape).empty()) return std::nullopt;
  return shape;
}

KvLayouts::Known* KvLayouts::of_locked(const Key& fingerprint) {
  const auto found = known_.find(fingerprint);
  if (found == known_.end() && known_.size() >= kFingerprintsMax) return nullptr;
  return &known_[fingerprint];
}

void KvLayouts::declare(const Key& fingerprint, const KvForm& layout) {
  const std::lock_guard lock(mutex_);
  Known* known = of_locked(fingerprint);
  if (known == nullptr || known->differ) return;
  known->differ = known->layout && *known->layout != layout;
  known->layout = known->differ ? std::nullopt : std::optional(layout);
}

void KvLayouts::allow(const Key& fingerprint, const kvcodec::CodecSpec& lossy) {
  const std::lock_guard lock(mutex_);
  if (Known* known = of_locked(fingerprint)) known->lossy = lossy;
}

std::optional<KvForm> KvLayouts::find(const Key& fingerprint) const {
  const std::lock_guard lock(mutex_);
  const auto found = known_.find(fingerprint);
  return found == known_.end() ? std::nullopt : found->second.layout;
}

bool KvLayouts::allows(const Key& fingerprint, const kvcodec::CodecSpec& lossy) const {
  const std::lock_guard lock(mutex_);
  const auto found = known_.find(fingerprint);
  return found != known_.end() && found->second.lossy.id != CodecId::None && found->second.lossy == lossy;
}

}  // namespace kvcommons
