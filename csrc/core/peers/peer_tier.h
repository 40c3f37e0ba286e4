// Other nodes of the pool as a tier: what one of them holds is read from there instead of being computed again.
//
// Nobody is asked on a lookup's way. What find() does not know, seek() takes down as a question; whoever has the index
// (the daemon) takes questions() and says by answer() which members may hold it; the best of them is asked, and says
// under its epoch which leading chunks it has, and in which generation. Only then find() knows of them, for a moment.
// A fetch names epoch and generation again, so that the owner hands out that life of that place or nothing, and its
// bytes are checked against the checksum before they count.
//
// put() places copies on peers, up to a capacity; those, and those alone, are this tier's own to list and to remove.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "peers/peer_job.h"
#include "peers/peer_link.h"
#include "peers/tls_library.h"
#include "tier.h"

namespace kvcommons::peers {

struct PeerTierConfig {
  Key secret;  // the pool's
  std::optional<TlsConfig> tls;
  std::uint32_t sockets_per_peer = 4;
  std::uint32_t peers_max = 64;  // that connections are kept to
  std::uint32_t connect_ms_max = 500;
  std::uint32_t fetch_ms_max = 1'500;  // for one batch
  std::uint32_t locate_ms_max = 250;   // from a question to its answer
  std::uint32_t location_ms = 2'000;   // for so long what a peer said of itself is believed
  std::uint32_t empty_ms = 500;        // for so long nobody asks again where nobody had anything
  std::uint32_t breaker_ms_min = 1'000, breaker_ms_max = 30'000;
  std::uint64_t queue_bytes_max = 256ull << 20;
  std::size_t locations_max = 65'536;     // shards
  std::size_t questions_max = 1'024;      // open at one time
  std::uint64_t copies_bytes_max = 0;     // put on peers; 0: nothing is put
  std::uint32_t replicas_max = 2;         // where so many have a chunk, one more copy is what leaves first; 0: no limit
  bool gate = true;                       // do not fetch what would take longer than computing it
  std::function<void()> on_questions;     // questions() has something; from any thread
  std::function<std::uint64_t()> now_ms;  // monotonic; injected by tests
};

struct Question {
  std::uint64_t id = 0;
  Key fingerprint;
  std::vector<Key> keys;  // a chain's next chunks, the first of which nobody here has
};
// A member that the index tells of, and how many of the question's leading chunks it may have.
struct Candidate {
  std::uint32_t slot = 0, epoch = 0, chunks = 0;
};

struct PeerTierStats {
  std::uint64_t questions, unanswered, candidates, located, located_chunks, nowhere, fetched, fetched_bytes;
  std::uint64_t failed, gone, skipped_slow, locations, peers, links, open_links;
};
struct PeerStatus {
  PeerAddress address;
  PeerLinkStats link;
};

class PeerTier final : public Tier {
 public:
  explicit PeerTier(PeerTierConfig config);  // throws as TlsContext does
  ~PeerTier() override;

  // All that live, without this node itself. What is known of others is forgotten.
  void set_peers(std::vector<PeerAddress> peers);
  [[nodiscard]] std::vector<Question> questions(std::size_t max);
  // Once for each question; no candidates: nobody has it.
  void answer(std::uint64_t question, std::vector<Candidate> candidates);
  [[nodiscard]] PeerTierStats peer_stats() const;
  [[nodiscard]] std::vector<PeerStatus> peers() const;  // with those that were used

  [[nodiscard]] std::string_view name() const noexcept override { return "peer"; }
  [[nodiscard]] bool others() const noexcept override { return true; }
  [[nodiscard]] bool takes_writes() const noexcept override { return false; }
  bool put(std::vector<PutItem> batch, PutDone done) override;
  bool get(std::vector<GetItem> batch, GetDone done) override;
  void find(std::span<const ShardId> ids, std::span<std::uint64_t> payload_bytes) override;
  bool seek(const Sought& sought) override;
  bool spare(const ShardId& id) override;
  bool describe(const ShardId& id, ShardMeta* out) override;
  void touch(std::span<const ShardId> ids) override;
  std::uint64_t remove(std::span<const ShardId> ids) override;
  std::uint64_t clear(const Key* fingerprint) override;
  std::vector<ShardMeta> inventory(std::uint64_t* cursor, std::size_t max) override;
  std::vector<TierEvent> drain_events(std::size_t max, bool* gap) override;
  [[nodiscard]] TierHealth health(std::string* why) const override;
  [[nodiscard]] TierStats stats() const override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

template <typename Visit>
void visit_counters(const PeerTierStats& s, Visit visit) {
#define KVCOMMONS_COUNTER(name) visit(std::string_view("peer_" #name), s.name)
  KVCOMMONS_COUNTER(questions);
  KVCOMMONS_COUNTER(unanswered);
  KVCOMMONS_COUNTER(candidates);
  KVCOMMONS_COUNTER(located);
  KVCOMMONS_COUNTER(located_chunks);
  KVCOMMONS_COUNTER(nowhere);
  KVCOMMONS_COUNTER(fetched);
  KVCOMMONS_COUNTER(fetched_bytes);
  KVCOMMONS_COUNTER(failed);
  KVCOMMONS_COUNTER(gone);
  KVCOMMONS_COUNTER(skipped_slow);
  KVCOMMONS_COUNTER(locations);
  KVCOMMONS_COUNTER(peers);
  KVCOMMONS_COUNTER(links);
  KVCOMMONS_COUNTER(open_links);
#undef KVCOMMONS_COUNTER
}
static_assert(sizeof(PeerTierStats) == 15 * sizeof(std::uint64_t), "a counter is missing above");

}  // namespace kvcommons::peers
