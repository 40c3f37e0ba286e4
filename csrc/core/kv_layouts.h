// What the engines said of how their slots lie in memory: what the codecs must know beyond bytes, by fingerprint.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "kv_codec.h"
#include "types.h"

namespace kvcommons {

// Of every shard of a session, as its engine declares it; layers and heads are the rectangle's.
struct KvForm {
  kernels::Element element = kernels::Element::Bf16;
  kvcodec::BlockOrder order = kvcodec::BlockOrder::PHN;
  std::uint32_t block_tokens = 0;
  std::uint32_t k_size = 0;
  std::uint32_t v_size = 0;  // 0: a latent
  friend bool operator==(const KvForm&, const KvForm&) = default;
};

// nullopt where the numbers do not give slot_bytes: it is not what it says.
[[nodiscard]] std::optional<kvcodec::KvShape> shape_of(const KvForm& layout, std::uint32_t chunk_tokens,
                                                       const Rect& rect, std::uint64_t slot_bytes);
// Elements of two bytes without an order: enough for the lossless codec. nullopt where so many bytes cannot be said so.
[[nodiscard]] std::optional<kvcodec::KvShape> flat_shape(std::uint64_t slot_bytes);

// Thread-safe.
class KvLayouts {
 public:
  static constexpr std::size_t kFingerprintsMax = 4'096;  // more are not known, so they are kept without loss

  // Two engines that say different things of one fingerprint: nothing is known of it then.
  void declare(const Key& fingerprint, const KvForm& layout);
  // This fingerprint is a namespace of `lossy`: what that codec gives back may answer there.
  void allow(const Key& fingerprint, const kvcodec::CodecSpec& lossy);

  [[nodiscard]] std::optional<KvForm> find(const Key& fingerprint) const;
  [[nodiscard]] bool allows(const Key& fingerprint, const kvcodec::CodecSpec& lossy) const;

 private:
  struct Known {
    std::optional<KvForm> layout;
    bool differ = false;
    kvcodec::CodecSpec lossy;
  };
  Known* of_locked(const Key& fingerprint);

  mutable std::mutex mutex_;
  std::unordered_map<Key, Known, KeyHash> known_;
};

}  // namespace kvcommons
