#include "index.h"

#include <algorithm>

namespace kvcommons::internal {
namespace {
constexpr int kCandidatesSeenMax = 32;  // of other strides, before the search for a victim gives up in a shard
constexpr int kRankedAnewMax = 256;     // a search, after a change of policy: one must not wait for all
}  // namespace

Index::Index(const Records* records, eviction::Policy* policy, const std::atomic<std::uint64_t>* now_s,
             bool by_tenant) {
  for (std::uint32_t i = 0; i < kShards; ++i) {
    shards_[i].records = records;
    shards_[i].policy = policy;
    shards_[i].now_s = now_s;
    shards_[i].by_tenant = by_tenant;
    shards_[i].number = i;
  }
}

void Index::link(Entry& parent, Entry& child) noexcept {
  child.previous = kNowhere;
  child.next = parent.first_child;
  if (child.next != kNowhere) entry(child.next).previous = child.where;
  parent.first_child = child.where;
}

void Index::unlink(Entry& parent, std::uint32_t child) noexcept {
  const Entry& gone = entry(child);
  if (gone.next != kNowhere) entry(gone.next).previous = gone.previous;
  (gone.previous != kNowhere ? entry(gone.previous).next : parent.first_child) = gone.next;
}

std::vector<EntryId> Index::children(const Entry& parent) const {
  std::vector<EntryId> out;
  for (std::uint32_t where = parent.first_child; where != kNowhere; where = entry(where).next) {
    out.push_back(IndexShard::id_of(entry(where)));
  }
  return out;
}

EntryId Index::any_child(const Entry& parent) const noexcept {
  return parent.first_child == kNowhere ? 0 : IndexShard::id_of(entry(parent.first_child));
}

bool Index::several_children(const Entry& parent) const noexcept {
  return parent.first_child != kNowhere && entry(parent.first_child).next != kNowhere;
}

template <typename Visit>
void IndexShard::each_group(const Entry& e, Visit visit) {
  visit(Group{e.fingerprint, false, 0});
  if (by_tenant) {
    visit(Group{e.fingerprint, true, tenant_of(e)});
  }
}

void IndexShard::came(Entry& e, std::uint32_t pages, std::uint32_t position, std::uint64_t tick) {
  e.use.pages = pages;
  e.use.set_position(position);
  policy->came(e.use, key_of(e).prefix64(), tick);
}

void IndexShard::went(Entry& e) {
  forget(e);
  expire_after(e, 0);
  policy->went(e.use);
}

void IndexShard::forget(Entry& e) {
  if (e.candidate == Entry::kNoCandidate) {
    return;
  }
  const auto rank = eviction::Policy::rank(e.use, static_cast<eviction::Kind>(e.candidate));
  each_group(e, [&](const Group& group) {
    const auto it = candidates.find(group);
    it->second[e.candidate].erase({rank, &e});
    if (std::all_of(it->second.begin(), it->second.end(), [](const Ranked& ranked) { return ranked.empty(); })) {
      candidates.erase(it);
    }
  });
  e.candidate = Entry::kNoCandidate;
}

void IndexShard::refresh(Entry& e) {
  const bool wanted = evictable(e);
  if (wanted && e.candidate == Entry::kNoCandidate) {
    const eviction::Kind kind = policy->kind();
    e.candidate = static_cast<std::uint32_t>(kind) & Entry::kNoCandidate;
    const auto rank = eviction::Policy::rank(e.use, kind);
    each_group(e, [&](const Group& group) { candidates[group][e.candidate].insert({rank, &e}); });
  } else if (!wanted) {
    forget(e);
  }
}

void IndexShard::access(Entry& e, std::uint64_t tick) {
  if (e.expires) {
    expire_after(e, due_of.at(&e).ttl_s);
  }
  if (e.candidate == Entry::kNoCandidate) {
    policy->used(e.use, tick);
    return;
  }
  const auto before = eviction::Policy::rank(e.use, static_cast<eviction::Kind>(e.candidate));
  policy->used(e.use, tick);
  const auto after = eviction::Policy::rank(e.use, static_cast<eviction::Kind>(e.candidate));
  each_group(e, [&](const Group& group) {
    Ranked& ranked = candidates[group][e.candidate];
    auto node = ranked.extract({before, &e});
    node.value().first = after;
    ranked.insert(std::move(node));
  });
}

void IndexShard::mark(Entry& e) {
  forget(e);
  e.use.first = true;
  refresh(e);
}

void IndexShard::expire_after(Entry& e, std::uint16_t ttl_s) {
  if (e.expires) {
    const auto it = due_of.find(&e);
    due.erase({it->second.at_s, &e});
    due_of.erase(it);
  }
  e.expires = ttl_s != 0;
  if (e.expires) {
    const std::uint64_t at_s = now_s->load(std::memory_order_relaxed) + ttl_s;
    due.insert({at_s, &e});
    due_of.insert({&e, {at_s, ttl_s}});
  }
}

std::size_t IndexShard::mark_due(std::size_t max) {
  const std::uint64_t now = now_s->load(std::memory_order_relaxed);
  std::size_t marked = 0;
  while (marked < max && !due.empty() && due.begin()->first < now) {
    Entry& e = *due.begin()->second;
    expire_after(e, 0);
    mark(e);
    ++marked;
  }
  return marked;
}

void IndexShard::rank_anew(Candidates& ranked, eviction::Kind kind) {
  int left = kRankedAnewMax;
  for (std::size_t former = 0; former < ranked.size(); ++former) {
    Ranked& from = ranked[former];
    while (former != static_cast<std::size_t>(kind) && !from.empty() && left-- > 0) {
      Entry& e = *from.begin()->second;
      const bool last = from.size() == 1;
      forget(e);  // the group itself stays while it has others, and is found again by the caller
      refresh(e);
      if (last) {
        return;
      }
    }
  }
}

Turn IndexShard::turn(const Entry& e) const noexcept {
  const eviction::Rank rank = policy->rank(e.use);
  return {static_cast<std::uint8_t>(e.use.first ? 0 : rank >= policy->start() ? 1 : 2), rank};
}

Entry* IndexShard::victim(const Group& group, std::uint32_t stride_pages) {
  const eviction::Kind kind = policy->kind();
  auto it = candidates.find(group);
  if (it == candidates.end()) {
    return nullptr;
  }
  rank_anew(it->second, kind);
  it = candidates.find(group);
  int seen = 0;
  const auto first_of = [&](const Ranked& ranked, const eviction::Rank& from) -> Entry* {
    for (auto at = ranked.lower_bound({from, nullptr}); at != ranked.end() && seen < kCandidatesSeenMax; ++at, ++seen) {
      Entry* e = at->second;
      if (any_part(*e, [&](const Part& p) { return p.stride_pages == stride_pages; })) {
        return e;
      }
    }
    return nullptr;
  };
  const Ranked& ranked = it->second[static_cast<std::size_t>(kind)];
  const bool marked = !ranked.empty() && ranked.begin()->second->use.first;
  if (!marked) {
    if (Entry* e = first_of(ranked, policy->start())) {
      return e;
    }
    seen = 0;
  }
  if (Entry* e = first_of(ranked, {})) {
    return e;
  }
  for (const Ranked& former : it->second) {
    seen = 0;
    if (Entry* e = first_of(former, {})) {
      return e;
    }
  }
  return nullptr;
}

}  // namespace kvcommons::internal
