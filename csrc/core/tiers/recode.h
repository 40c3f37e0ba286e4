// Chunks that are stored already, brought into another form: compressed, or back to the engine's own bytes. One thread
// of its own goes through a tier's inventory; engines are served meanwhile, and find each shard in one form or the
// other.
//
// A shard is written anew beside its old form and takes its place when it is whole on the medium; what is evicted or
// cleared meanwhile stays gone. What only memory holds is first written behind it, where that is asked for.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_set>
#include <vector>

#include "store.h"
#include "tiers/codec_tier.h"
#include "tiers/manager.h"

namespace kvcommons::tiers {

struct RecodeRequest {
  kvcodec::CodecSpec codec;  // None: the engine's own bytes
  std::optional<Key> fingerprint;
  std::vector<Key> keys;                   // empty: all
  bool from_memory = true;                 // also what only memory holds; it is written in the tier's own form first
  std::uint64_t bytes_per_second_max = 0;  // of memory's bytes; 0: as fast as the tier and one thread are
};

struct RecodeProgress {
  enum class State : std::uint8_t { Running, Done, Cancelled, Failed } state = State::Running;
  std::uint64_t id = 0;
  std::uint64_t shards_total = 0;  // an estimate while it runs
  std::uint64_t shards_seen = 0;
  std::uint64_t offered = 0;    // from memory, to be written
  std::uint64_t rewritten = 0;  // now in the form that was asked for
  std::uint64_t unchanged = 0;  // were in that form already, or nothing makes them smaller
  std::uint64_t refused = 0;    // loss is not allowed in their namespace, or their layout is not known
  std::uint64_t gone = 0;       // evicted, cleared or found damaged meanwhile
  std::uint64_t failed = 0;
  std::uint64_t bytes_before = 0, bytes_after = 0;  // of what was rewritten, on the tier
  std::string why;                                  // where Failed
};

class Recoder {
 public:
  // All outlive it.
  Recoder(Store* store, TierManager* manager, KvLayouts* layouts, std::vector<std::shared_ptr<CodecTier>> tiers);
  ~Recoder();                        // cancels, and waits for what is under way
  Recoder(const Recoder&) = delete;  // owns its thread

  // The tier of this name, or the first one that has codecs where it is empty. Returns the run's number, never 0.
  // Throws std::invalid_argument (field, value, remedy), and std::runtime_error while another run is under way.
  std::uint64_t start(const RecodeRequest& request, std::string_view tier);
  // Of the last run; nullopt where it has another number.
  [[nodiscard]] std::optional<RecodeProgress> progress(std::uint64_t id) const;
  // Begins nothing more; false where no such run is under way.
  bool cancel(std::uint64_t id);

 private:
  struct Work;
  void run(RecodeRequest request, std::shared_ptr<CodecTier> tier);
  void offer_memory(const RecodeRequest& request, CodecTier& tier);
  void rewrite_all(const RecodeRequest& request, CodecTier& tier);
  bool rewrite(const RecodeRequest& request, CodecTier& tier, std::vector<ShardMeta> some);
  [[nodiscard]] bool refuses(const RecodeRequest& request, const ShardMeta& meta) const;
  [[nodiscard]] bool wanted(const RecodeRequest& request, const Key& fingerprint, const Key& key) const;
  bool pause(std::uint64_t ms);  // false: cancelled
  template <typename Change>
  void note(Change change);

  Store* store_;
  TierManager* manager_;
  KvLayouts* layouts_;
  const std::vector<std::shared_ptr<CodecTier>> tiers_;
  AlignedPool pool_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  RecodeProgress progress_;
  std::unordered_set<Key, KeyHash> keys_;  // of the run
  std::atomic<bool> cancelled_{false};
  std::thread thread_;  // last: it uses the others
};

}  // namespace kvcommons::tiers
