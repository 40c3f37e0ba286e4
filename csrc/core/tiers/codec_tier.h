// A tier whose payloads are smaller: what is put is encoded before the tier behind it has it, and what comes back is
// decoded, by threads of its own. What is on that tier in any form is read, whatever was set when it was written.
//
// A codec with loss is used, and what it made is handed out, only under fingerprints that are namespaces of it
// (KvLayouts::allow); everything else goes through the lossless one. What nothing makes smaller stays as it is.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string_view>
#include <thread>
#include <vector>

#include "kv_codec.h"
#include "kv_layouts.h"
#include "tier.h"
#include "tiers/aligned_pool.h"

namespace kvcommons::tiers {

struct CodecTierConfig {
  kvcodec::CodecSpec codec;                       // of what is put; None: as it is
  std::uint32_t decoders = 0;                     // threads; 0: half of the cores, 4 at most
  std::uint64_t encode_bytes_max = 64ull << 20;   // of batches that wait to be encoded or written
  std::uint64_t decode_bytes_max = 256ull << 20;  // of encoded payloads on their way in
  std::uint32_t inner_busy_ms_max = 1'000;        // for so long an encoded batch is offered again
};

struct CodecStats {
  std::uint64_t encoded, encoded_raw_bytes, encoded_bytes, encode_us;
  std::uint64_t decoded, decoded_raw_bytes, decoded_bytes, decode_us;
  std::uint64_t kept_raw;        // shards that no codec makes smaller
  std::uint64_t layout_unknown;  // shards kept without loss for want of their layout
  std::uint64_t not_finite;      // the same, for values that no codec with loss takes
  std::uint64_t decode_failed, lossy_refused;
};

class CodecTier final : public Tier {
 public:
  // layouts outlives it.
  CodecTier(std::shared_ptr<Tier> inner, KvLayouts* layouts, const CodecTierConfig& config);
  ~CodecTier() override;

  [[nodiscard]] std::string_view name() const noexcept override { return inner_->name(); }
  bool put(std::vector<PutItem> batch, PutDone done) override;
  bool get(std::vector<GetItem> batch, GetDone done) override;
  void find(std::span<const ShardId> ids, std::span<std::uint64_t> bytes) override { inner_->find(ids, bytes); }
  bool seek(const Sought& sought) override { return inner_->seek(sought); }
  bool spare(const ShardId& id) override { return inner_->spare(id); }
  [[nodiscard]] bool takes_writes() const noexcept override { return inner_->takes_writes(); }
  [[nodiscard]] bool shared() const noexcept override { return inner_->shared(); }
  [[nodiscard]] bool others() const noexcept override { return inner_->others(); }
  // As it is kept: codec, and payload_bytes and checksum of the encoded payload.
  bool describe(const ShardId& id, ShardMeta* out) override { return inner_->describe(id, out); }
  void touch(std::span<const ShardId> ids) override { inner_->touch(ids); }
  std::uint64_t remove(std::span<const ShardId> ids) override { return inner_->remove(ids); }
  std::uint64_t clear(const Key* fingerprint) override { return inner_->clear(fingerprint); }
  std::vector<ShardMeta> inventory(std::uint64_t* cursor, std::size_t max) override {
    return inner_->inventory(cursor, max);
  }
  std::vector<TierEvent> drain_events(std::size_t max, bool* gap) override { return inner_->drain_events(max, gap); }
  [[nodiscard]] TierHealth health(std::string* why) const override { return inner_->health(why); }
  [[nodiscard]] TierStats stats() const override;

  // put() by another codec than the tier's own; None: as it is.
  bool put_as(const kvcodec::CodecSpec& codec, std::vector<PutItem> batch, PutDone done);
  [[nodiscard]] const kvcodec::CodecSpec& codec() const noexcept { return config_.codec; }
  [[nodiscard]] CodecStats codec_stats() const;

 private:
  struct Encode {
    kvcodec::CodecSpec codec;
    std::vector<PutItem> items;
    PutDone done;
    std::uint64_t bytes = 0;
  };
  struct Decode;
  using DecodePtr = std::shared_ptr<Decode>;
  struct Buffers {
    std::vector<AlignedPool::Block> blocks;
  };
  struct Counters {
    std::atomic<std::uint64_t> encoded{0}, encoded_raw_bytes{0}, encoded_bytes{0}, encode_us{0}, decoded{0},
        decoded_raw_bytes{0}, decoded_bytes{0}, decode_us{0}, kept_raw{0}, layout_unknown{0}, not_finite{0},
        decode_failed{0}, lossy_refused{0}, refused_busy{0};
  };

  void encode_loop();
  void encode_batch(Encode job);
  TierStatus encode_item(const kvcodec::CodecSpec& codec, PutItem* item, Buffers* buffers);
  [[nodiscard]] kvcodec::CodecSpec codec_for(const kvcodec::CodecSpec& wanted, const ShardMeta& meta,
                                             kvcodec::KvShape* shape);
  void submit(const std::vector<PutItem>& items, const PutDone& done);
  void decode_loop();
  void got(const DecodePtr& decode, std::span<const GetResult> results);
  void decode_item(Decode& decode, std::size_t item);
  [[nodiscard]] bool admit(std::uint64_t* waiting, std::uint64_t bytes, std::uint64_t bytes_max, std::size_t items);
  void ended(std::uint64_t* waiting, std::uint64_t bytes);

  const CodecTierConfig config_;
  std::shared_ptr<Tier> inner_;
  KvLayouts* layouts_;
  AlignedPool pool_;
  Counters counters_;

  mutable std::mutex mutex_;
  std::condition_variable encodes_changed_, decodes_changed_, ended_changed_;
  std::deque<Encode> encodes_;
  std::deque<std::pair<DecodePtr, std::size_t>> decodes_;
  std::uint64_t encode_bytes_ = 0, decode_bytes_ = 0;
  std::uint64_t under_way_ = 0;  // batches that were taken and are not answered
  bool closing_ = false, ending_ = false;
  std::thread encoder_;
  std::vector<std::thread> decoders_;  // last: they use the others
};

template <typename Visit>
void visit_counters(const CodecStats& s, Visit visit) {
#define KVCOMMONS_COUNTER(name) visit(std::string_view("codec_" #name), s.name)
  KVCOMMONS_COUNTER(encoded);
  KVCOMMONS_COUNTER(encoded_raw_bytes);
  KVCOMMONS_COUNTER(encoded_bytes);
  KVCOMMONS_COUNTER(encode_us);
  KVCOMMONS_COUNTER(decoded);
  KVCOMMONS_COUNTER(decoded_raw_bytes);
  KVCOMMONS_COUNTER(decoded_bytes);
  KVCOMMONS_COUNTER(decode_us);
  KVCOMMONS_COUNTER(kept_raw);
  KVCOMMONS_COUNTER(layout_unknown);
  KVCOMMONS_COUNTER(not_finite);
  KVCOMMONS_COUNTER(decode_failed);
  KVCOMMONS_COUNTER(lossy_refused);
#undef KVCOMMONS_COUNTER
}
static_assert(sizeof(CodecStats) == 13 * sizeof(std::uint64_t), "a counter is missing above");

}  // namespace kvcommons::tiers
