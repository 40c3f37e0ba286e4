// Inside of the peer tier. One mutex guards what is known; it is never held over a call of a link that may answer.
#pragma once

#include <deque>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "peers/directory.h"
#include "peers/peer_jobs.h"
#include "peers/peer_tier.h"
#include "tiers/tier_thread.h"

namespace kvcommons::peers {

class PeerTier::Impl {
 public:
  explicit Impl(PeerTierConfig config);
  ~Impl();
  Impl(const Impl&) = delete;  // owns connections

  // peer_tier.cpp
  void set_peers(std::vector<PeerAddress> peers);
  bool put(std::vector<PutItem> batch, PutDone done);
  bool get(std::vector<GetItem> batch, GetDone done);
  void find(std::span<const ShardId> ids, std::span<std::uint64_t> payload_bytes);
  bool spare(const ShardId& id);
  bool describe(const ShardId& id, ShardMeta* out);
  std::uint64_t remove(std::span<const ShardId> ids);
  std::uint64_t clear(const Key* fingerprint);
  std::vector<ShardMeta> inventory(std::uint64_t* cursor, std::size_t max);
  std::vector<TierEvent> drain_events(std::size_t max, bool* gap);
  TierHealth health(std::string* why) const;
  TierStats stats() const;
  PeerTierStats peer_stats() const;
  std::vector<PeerStatus> peers() const;
  // peer_seek.cpp
  bool seek(const Sought& sought);
  std::vector<Question> questions(std::size_t max);
  void answer(std::uint64_t question, std::vector<Candidate> candidates);

 private:
  // One question and what becomes of it.
  struct Search {
    std::uint64_t id = 0;
    Sought sought;  // its spans are those of the two below
    std::vector<ShardSpec> shards;
    std::vector<Key> keys;
    std::uint64_t until_ms = 0;
    std::uint64_t again_ms = 0;  // 0: somebody has yet to answer. Else: when to ask the same peer again
    std::vector<Candidate> candidates;
    std::size_t holders = 0;  // that the index tells of
    std::size_t next = 0;     // of the candidates
    bool meant = false;       // one was named: it is asked, however slow
  };
  using SearchPtr = std::shared_ptr<Search>;

  // peer_tier.cpp
  struct Part {
    LinkPtr link;
    std::uint32_t epoch = 0;
    Key fingerprint;
    std::vector<FetchItem> items;
    std::uint64_t bytes = 0;
  };
  std::vector<Part> parts_of(const std::vector<GetItem>& batch, std::vector<GetResult>* results);
  void post_part(const Part& part, const Gets& gets);
  void end_elsewhere(JobPtr job, TierStatus status);
  bool admit_locked(std::uint64_t bytes);
  void admitted_over(std::uint64_t bytes);
  void fetched(const FetchItem& item, const GetResult& result, PeerLink* link);
  TierStatus pushed(const PushItem& item, wire::Answer answer, const LinkPtr& link);
  LinkPtr link_locked(std::uint32_t slot);
  LinkPtr link_for_put();
  void retire_locked(std::map<std::uint32_t, LinkPtr>::iterator link);
  void tell_locked(TierEvent::Kind kind, const ShardMeta& meta);
  void drop_copies(const std::vector<Directory::Copy>& copies);
  // peer_seek.cpp
  SearchPtr begin_locked(const Sought& sought, const ShardId& first, std::uint64_t now);
  void ask_next(const SearchPtr& search);
  JobPtr locate_job(const SearchPtr& search, const PeerAddress& address, const LinkPtr& link);
  void located(const SearchPtr& search, const PeerAddress& address, const LinkPtr& link,
               const wire::LocatedReply* reply);
  bool worth_locked(const Search& search, const LinkPtr& link);
  void over_locked(const SearchPtr& search, bool found);
  void expire_locked(std::uint64_t now);
  static ShardId first_of(const Search& search) {
    return {search.sought.fingerprint, search.keys.front(), search.shards.front().rect};
  }

  [[nodiscard]] std::uint64_t now_ms() const { return config_.now_ms(); }

  PeerTierConfig config_;
  Key greeting_key_;
  std::unique_ptr<TlsContext> tls_;

  mutable std::mutex mutex_;
  bool closing_ = false;
  std::map<std::uint32_t, PeerAddress> peers_;  // by slot
  std::map<std::uint32_t, LinkPtr> links_;
  Directory directory_;
  std::unordered_map<ShardId, SearchPtr, tiers::ShardIdHash> searches_;
  std::unordered_map<std::uint64_t, SearchPtr> by_id_;
  std::unordered_map<ShardId, std::uint64_t, tiers::ShardIdHash> quiet_;  // until when nobody asks for it again
  std::deque<Question> questions_;
  std::uint64_t next_question_ = 1, seek_off_until_ms_ = 0, slow_in_row_ = 0;
  std::deque<TierEvent> events_;
  bool gap_ = false;
  TierStats stats_;
  PeerTierStats peer_stats_{};
  std::uint64_t admitted_bytes_ = 0, batches_ = 0;
  tiers::TierThread thread_;  // last: its jobs use the others
};

}  // namespace kvcommons::peers
