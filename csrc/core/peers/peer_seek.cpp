// How it is found out who has a chunk: a question, the members that the index tells of, and what one of them says.
#include <algorithm>
#include <utility>

#include "peers/peer_tier_impl.h"

namespace kvcommons::peers {
namespace {

constexpr std::uint64_t kAgainMs = 10;            // until a peer that reads from its disk is asked again
constexpr std::uint64_t kSeekOffMs = 1'000;       // after a question that nobody took
constexpr std::uint64_t kProbeOneIn = 16;         // of those that are too slow one is tried: the way may be better now
constexpr std::size_t kKeysPerQuestionMax = 512;  // the rest of a chain is asked for when it is wanted
constexpr std::size_t kQuietMax = 65'536;
constexpr std::size_t kCandidatesMax = 4;  // of one question

}  // namespace

bool PeerTier::Impl::seek(const Sought& sought) {
  const bool meant = !sought.from.empty();
  if (sought.keys.empty() || sought.shards.empty() || (!meant && !config_.on_questions)) return false;
  const ShardId first{sought.fingerprint, sought.keys.front(), sought.shards.front().rect};
  SearchPtr ask;
  {
    const std::lock_guard lock(mutex_);
    const std::uint64_t now = now_ms();
    if (closing_ || peers_.empty() || (!meant && now < seek_off_until_ms_)) return false;
    if (const auto known = searches_.find(first); known != searches_.end()) {
      const SearchPtr& search = known->second;
      if (now >= search->until_ms) {
        ++peer_stats_.unanswered;
        if (search->candidates.empty()) seek_off_until_ms_ = now + kSeekOffMs;
        over_locked(SearchPtr(search), false);
        return false;
      }
      if (search->again_ms == 0 || now < search->again_ms) return true;
      search->again_ms = 0;
      ask = search;
    } else {
      const SearchPtr begun = begin_locked(sought, first, now);
      if (!begun) return false;
      if (meant) ask = begun;
    }
  }
  if (ask) {
    ask_next(ask);
  } else {
    config_.on_questions();
  }
  return true;
}

// Null where nobody is to be asked now. With a name, the one of that name is the only candidate, and nobody needs to
// be asked who there is.
PeerTier::Impl::SearchPtr PeerTier::Impl::begin_locked(const Sought& sought, const ShardId& first, std::uint64_t now) {
  const auto named = [&](const auto& one) { return one.second.name == sought.from; };
  const bool meant = !sought.from.empty();
  const auto peer = meant ? std::find_if(peers_.begin(), peers_.end(), named) : peers_.end();
  if (meant && peer == peers_.end()) return nullptr;
  if (const auto quiet = quiet_.find(first); !meant && quiet != quiet_.end() && now < quiet->second) return nullptr;
  if (searches_.size() >= config_.questions_max) expire_locked(now);
  if (searches_.size() >= config_.questions_max) return nullptr;
  const auto search = std::make_shared<Search>();
  const std::size_t count =
      std::min<std::size_t>({sought.keys.size(), kKeysPerQuestionMax, wire::keys_max(sought.shards.size())});
  search->id = next_question_++;
  search->shards.assign(sought.shards.begin(), sought.shards.end());
  search->keys.assign(sought.keys.begin(), sought.keys.begin() + static_cast<std::ptrdiff_t>(count));
  search->sought = sought;
  search->sought.shards = search->shards;
  search->sought.keys = search->keys;
  search->sought.from = {};  // the caller's
  search->until_ms = now + config_.locate_ms_max;
  searches_[first] = search;
  by_id_[search->id] = search;
  if (meant) {
    search->meant = true;
    search->holders = 1;
    search->candidates.push_back({peer->first, peer->second.epoch, static_cast<std::uint32_t>(count)});
  } else {
    questions_.push_back({search->id, sought.fingerprint, search->keys});
    ++peer_stats_.questions;
  }
  return search;
}

std::vector<Question> PeerTier::Impl::questions(std::size_t max) {
  const std::lock_guard lock(mutex_);
  std::vector<Question> out;
  while (!questions_.empty() && out.size() < max) {
    out.push_back(std::move(questions_.front()));
    questions_.pop_front();
  }
  return out;
}

// Those that nobody came back to ask about.
void PeerTier::Impl::expire_locked(std::uint64_t now) {
  std::vector<SearchPtr> old;
  for (const auto& [id, search] : by_id_) {
    if (now >= search->until_ms) old.push_back(search);
  }
  for (const SearchPtr& search : old) over_locked(search, false);
}

void PeerTier::Impl::over_locked(const SearchPtr& search, bool found) {
  const ShardId first = first_of(*search);
  searches_.erase(first);
  by_id_.erase(search->id);
  if (found) {
    quiet_.erase(first);
    return;
  }
  const std::uint64_t now = now_ms();
  if (quiet_.size() >= kQuietMax) std::erase_if(quiet_, [&](const auto& one) { return one.second <= now; });
  if (quiet_.size() < kQuietMax) quiet_[first] = now + config_.empty_ms;
}

void PeerTier::Impl::answer(std::uint64_t question, std::vector<Candidate> candidates) {
  SearchPtr search;
  {
    const std::lock_guard lock(mutex_);
    const auto known = by_id_.find(question);
    if (known == by_id_.end()) return;
    search = known->second;
    std::erase_if(candidates, [&](const Candidate& one) {
      const auto peer = peers_.find(one.slot);
      return one.chunks == 0 || peer == peers_.end() || peer->second.epoch != one.epoch;
    });
    peer_stats_.candidates += candidates.size();
    search->holders = candidates.size();
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Candidate& a, const Candidate& b) { return a.chunks > b.chunks; });
    if (candidates.size() > kCandidatesMax) candidates.resize(kCandidatesMax);
    search->candidates = std::move(candidates);
  }
  ask_next(search);
}

// Whether to fetch a chunk over this link takes less time than to compute it.
bool PeerTier::Impl::worth_locked(const Search& search, const LinkPtr& link) {
  const double rate = link->stats().bytes_per_second;
  const double tokens = search.sought.tokens_per_second;
  if (!config_.gate || search.meant || rate <= 0 || tokens <= 0) return true;
  double bytes = 0;
  for (const ShardSpec& shard : search.shards) bytes += static_cast<double>(shard.slot_bytes);
  if (bytes / rate <= static_cast<double>(search.sought.chunk_tokens) / tokens) return true;
  if (++slow_in_row_ % kProbeOneIn == 0) return true;
  ++peer_stats_.skipped_slow;
  return false;
}

void PeerTier::Impl::ask_next(const SearchPtr& search) {
  for (;;) {
    LinkPtr link;
    PeerAddress address;
    {
      const std::lock_guard lock(mutex_);
      if (closing_ || !by_id_.contains(search->id)) return;
      if (search->next >= search->candidates.size()) {
        ++peer_stats_.nowhere;
        over_locked(search, false);
        return;
      }
      const Candidate& candidate = search->candidates[search->next++];
      const auto peer = peers_.find(candidate.slot);
      if (peer == peers_.end() || peer->second.epoch != candidate.epoch) continue;
      address = peer->second;
      link = link_locked(candidate.slot);
      if (!link || !link->usable() || !worth_locked(*search, link)) continue;
    }
    if (!link->post(locate_job(search, address, link))) return;
  }
}

JobPtr PeerTier::Impl::locate_job(const SearchPtr& search, const PeerAddress& address, const LinkPtr& link) {
  wire::LocateRequest request;
  request.head = {search->sought.fingerprint, address.epoch, search->sought.chunk_tokens,
                  static_cast<std::uint32_t>(search->shards.size()), static_cast<std::uint32_t>(search->keys.size())};
  request.shards = search->shards;
  request.keys = search->keys;
  auto job = std::make_unique<LocateJob>(
      std::move(request),
      [this, search, address, link](const wire::LocatedReply* reply) { located(search, address, link, reply); });
  job->ms_max = config_.locate_ms_max;
  return job;
}

void PeerTier::Impl::located(const SearchPtr& search, const PeerAddress& address, const LinkPtr& link,
                             const wire::LocatedReply* reply) {
  {
    const std::lock_guard lock(mutex_);
    if (closing_ || !by_id_.contains(search->id)) return;
    const auto peer = peers_.find(address.slot);
    if (peer == peers_.end() || peer->second.epoch != address.epoch) reply = nullptr;  // what it was asked as is over
    const std::uint64_t now = now_ms();
    const std::size_t shards = search->shards.size();
    std::size_t chunks = 0;
    for (; reply != nullptr && chunks < reply->head.chunks; ++chunks) {
      const auto place = [&](std::size_t s) { return reply->places[chunks * shards + s]; };
      bool whole = true;
      for (std::size_t s = 0; s < shards; ++s) whole &= place(s).payload_bytes == search->shards[s].slot_bytes;
      if (!whole) break;
      for (std::size_t s = 0; s < shards; ++s) {
        directory_.found({search->sought.fingerprint, search->keys[chunks], search->shards[s].rect},
                         {link, address.epoch, place(s).generation, place(s).payload_bytes, now + config_.location_ms,
                          !search->meant && config_.replicas_max != 0 && search->holders >= config_.replicas_max});
      }
    }
    if (chunks > 0) {
      ++peer_stats_.located;
      peer_stats_.located_chunks += chunks;
      over_locked(search, true);
      return;
    }
    if (reply != nullptr && reply->head.coming > 0) {  // from its disk: the same one again
      --search->next;
      if (search->again_ms == 0) search->until_ms = std::max(search->until_ms, now + config_.locate_ms_max);
      search->again_ms = now + kAgainMs;
      return;
    }
  }
  ask_next(search);
}

}  // namespace kvcommons::peers
