// Promotion, done: from a tier to memory.
#include <algorithm>

#include "seq_points.h"
#include "tiers/manager_impl.h"

namespace kvcommons {
namespace {

constexpr std::size_t kSourMax = 4'096;
constexpr std::size_t kReadsPerChain = 4;  // batches at one time: the medium is busy while one is committed

}  // namespace

bool TierManager::Impl::read_some() {
  const ChainPtr chain = next_chain();
  if (!chain) return false;
  const ReadPtr read = reserve_batch(chain);
  if (!read) {
    end_if_over(chain);
    return chain->given_up.load();
  }
  seq_point(SeqPoint::PromoteReserved);
  return begin(read);
}

// The next whose turn it is: they take turns batch by batch. One whose first chunk follows another chain's waits for
// it.
TierManager::Impl::ChainPtr TierManager::Impl::next_chain() {
  std::vector<ChainPtr> over;
  ChainPtr chosen;
  {
    const std::lock_guard lock(mutex_);
    const bool fenced = fenced_locked() || quiet_;
    for (std::size_t i = 0; i < chains_.size() && !chosen; ++i) {
      const ChainPtr chain = chains_.front();
      chains_.pop_front();
      chains_.push_back(chain);
      if (chain->given_up.load()) {
        if (chain->reads.empty()) over.push_back(chain);
      } else if (!fenced && chain->next < chain->keys.size() && chain->reads.size() < kReadsPerChain &&
                 (chain->next > 0 || !chain->layout->coming.contains(chain->parent))) {
        chosen = chain;
      }
    }
  }
  for (const ChainPtr& chain : over) end_if_over(chain);
  return chosen;
}

bool TierManager::Impl::open_sessions(Layout& layout) {
  SessionSpec spec = layout.spec;
  while (layout.sessions.size() < spec.shards.size()) {
    spec.own_shard = static_cast<std::uint32_t>(layout.sessions.size());
    SessionId session = 0;
    if (store_->open_internal(spec, &session) != Status::Ok) return false;
    layout.sessions.push_back(session);
  }
  return true;
}

// Slots for as many of the chunks as there are for every shard; the others' are given back.
std::size_t TierManager::Impl::reserve_shards(Chain& chain, std::size_t chunks, std::vector<Read::Slot>* slots) {
  const Layout& layout = *chain.layout;
  const std::span<const Key> keys = std::span<const Key>(chain.keys).subspan(chain.next, chunks);
  std::size_t good = chunks;
  std::vector<Reservation> out;
  eviction::Hints hints;
  hints.one_shot =
      tiers_[chain.tier[chain.next]]->spare({layout.spec.fingerprint, keys.front(), layout.spec.shards.front().rect});
  for (std::size_t shard = 0; shard < layout.sessions.size() && good > 0; ++shard) {
    out.clear();
    const Status status = store_->reserve(layout.sessions[shard], chain.tenant, chain.parent_of(chain.next),
                                          keys.first(good), &out, hints);
    if (status != Status::Ok) out.clear();
    good = std::min(good, out.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (out[i].status == ReserveStatus::Granted) slots->push_back({chain.next + i, shard, out[i].slot});
      const bool usable = out[i].status == ReserveStatus::Granted || out[i].status == ReserveStatus::Exists;
      if (!usable) good = std::min(good, i);
      if (out[i].status == ReserveStatus::Full) add(counters_.read_no_room);
    }
  }
  abort_slots(chain, *slots, chain.next + good);
  std::erase_if(*slots, [&](const Read::Slot& slot) { return slot.chunk >= chain.next + good; });
  return good;
}

// Null: the budget is used up, or there is no room; then the chain ends here.
TierManager::Impl::ReadPtr TierManager::Impl::reserve_batch(const ChainPtr& chain) {
  const std::uint64_t chunk_bytes = room_of(chain->layout->spec);
  std::size_t chunks = 0;
  while (chain->next + chunks < chain->keys.size() && chain->tier[chain->next + chunks] == chain->tier[chain->next] &&
         (chunks == 0 || (chunks + 1) * chunk_bytes <= config_.batch_bytes) &&
         read_budget_.allows((chunks + 1) * chunk_bytes, chunks == 0, now_ms())) {
    ++chunks;
  }
  if (chunks == 0) return nullptr;
  const auto read = std::make_shared<Read>();
  read->chain = chain;
  read->first = chain->next;
  read->chunks = open_sessions(*chain->layout) ? reserve_shards(*chain, chunks, &read->slots) : 0;
  if (read->chunks < chunks) give_up(*chain, chain->next + read->chunks);
  if (read->chunks == 0) return nullptr;
  for (const Read::Slot& slot : read->slots) read->bytes += room_of(chain->layout->spec.shards[slot.shard]);
  return read;
}

// Nothing more of it is begun, and nobody expects its rest for a while.
void TierManager::Impl::give_up(Chain& chain, std::size_t at_chunk) {
  chain.given_up.store(true);
  const std::lock_guard lock(mutex_);
  auto& sour = chain.layout->sour;
  const std::uint64_t now = now_ms();
  if (sour.size() >= kSourMax) std::erase_if(sour, [&](const auto& one) { return one.second <= now; });
  if (sour.size() < kSourMax && at_chunk < chain.keys.size()) sour[chain.keys[at_chunk]] = now + config_.failed_ms;
}

// False: the tier's queue is full; the slots are given back, and the chain tries again.
bool TierManager::Impl::begin(const ReadPtr& read) {
  Chain& chain = *read->chain;
  std::vector<GetItem> items;
  for (const Read::Slot& slot : read->slots) {
    const ShardSpec& shard = chain.layout->spec.shards[slot.shard];
    items.push_back({{chain.layout->spec.fingerprint, chain.keys[slot.chunk], shard.rect},
                     config_.arena + slot.slot.offset_bytes,
                     room_of(shard)});
  }
  Tier& tier = *tiers_[chain.tier[read->first]];
  read_budget_.begun(read->bytes);
  {
    const std::lock_guard lock(mutex_);
    ++under_way_;
  }
  chain.reads.push_back(read);
  chain.next += read->chunks;
  const auto ended = [this, read](std::span<const GetResult> results) {
    read->results.assign(results.begin(), results.end());
    const std::lock_guard lock(mutex_);
    ended_reads_.push_back(read);
    wake_locked();
  };
  if (items.empty()) {  // others have stored all of it meanwhile
    ended({});
  } else if (!tier.get(std::move(items), ended)) {
    chain.reads.pop_back();
    chain.next -= read->chunks;
    read_budget_.ended(read->bytes);
    abort_slots(chain, read->slots, 0);
    const std::lock_guard lock(mutex_);
    --under_way_;
    if (!chain.busy_since_ms) chain.busy_since_ms = now_ms();
    if (now_ms() - *chain.busy_since_ms >= config_.failed_ms) chain.given_up.store(true);
    return false;
  }
  chain.busy_since_ms.reset();
  counters_.read_in_flight_bytes.store(read_budget_.in_flight());
  return true;
}

bool TierManager::Impl::whole(const Read& read, std::size_t item) const {
  const Chain& chain = *read.chain;
  const Read::Slot& slot = read.slots[item];
  const SessionSpec& spec = chain.layout->spec;
  if (item >= read.results.size() || read.results[item].status != TierStatus::Ok) return false;
  const ShardMeta& meta = read.results[item].meta;
  return meta.payload_bytes == spec.shards[slot.shard].slot_bytes && meta.parent == chain.parent_of(slot.chunk) &&
         meta.codec == 0 && meta.checksum != 0;
}

void TierManager::Impl::abort_slots(const Chain& chain, std::span<const Read::Slot> slots, std::size_t from_chunk) {
  for (std::size_t shard = 0; shard < chain.layout->sessions.size(); ++shard) {
    std::vector<SlotRef> own;
    // The last chunk first: nothing is left behind that only a child keeps.
    for (auto slot = slots.rbegin(); slot != slots.rend(); ++slot) {
      if (slot->shard == shard && slot->chunk >= from_chunk) own.push_back(slot->slot);
    }
    if (!own.empty()) store_->abort(chain.layout->sessions[shard], own);
  }
}

// How many of its leading chunks are in memory now.
std::size_t TierManager::Impl::commit_batch(Read& read) {
  Chain& chain = *read.chain;
  std::size_t good = read.chunks;
  bool all_accepted = true;
  for (std::size_t i = 0; i < read.slots.size(); ++i) {
    if (!whole(read, i)) good = std::min(good, read.slots[i].chunk - read.first);
  }
  for (std::size_t shard = 0; shard < chain.layout->sessions.size(); ++shard) {
    std::vector<CommitItem> items;
    for (std::size_t i = 0; i < read.slots.size(); ++i) {
      const Read::Slot& slot = read.slots[i];
      if (slot.shard != shard || slot.chunk >= read.first + good) continue;
      const ShardMeta& meta = read.results[i].meta;
      items.push_back({slot.slot, meta.checksum, meta.text_keys});
      add(counters_.promoted_bytes, meta.payload_bytes);
    }
    std::uint32_t accepted = 0;
    if (!items.empty()) store_->commit(chain.layout->sessions[shard], items, &accepted);
    add(counters_.promoted, accepted);
    all_accepted = all_accepted && accepted == items.size();
    seq_point(SeqPoint::PromoteCommitted);
  }
  abort_slots(chain, read.slots, read.first + good);
  return all_accepted ? good : 0;  // else it was cleared meanwhile
}

// In order, so that no chunk is seen before what it follows.
void TierManager::Impl::settle_reads(const ChainPtr& chain) {
  while (!chain->reads.empty() && chain->reads.front()->over) {
    const ReadPtr read = chain->reads.front();
    chain->reads.pop_front();
    std::size_t good = 0;
    if (chain->broken) {
      abort_slots(*chain, read->slots, 0);
    } else {
      seq_point(SeqPoint::PromoteRead);
      good = commit_batch(*read);
      seq_point(SeqPoint::PromoteEnded);
      add(counters_.promoted_chunks, good);
    }
    if (good < read->chunks && !chain->broken) {
      chain->broken = true;
      add(counters_.read_failed);
      give_up(*chain, read->first + good);
    }
    read_budget_.ended(read->bytes);
    counters_.read_in_flight_bytes.store(read_budget_.in_flight());
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < read->chunks; ++i) chain->layout->coming.erase(chain->keys[read->first + i]);
    --under_way_;
  }
  end_if_over(chain);
}

void TierManager::Impl::end_if_over(const ChainPtr& chain) {
  if (!chain->reads.empty() || (chain->next < chain->keys.size() && !chain->given_up.load())) return;
  Layout& layout = *chain->layout;
  bool last = false;
  {
    const std::lock_guard lock(mutex_);
    if (std::erase(chains_, chain) == 0) return;
    for (std::size_t i = chain->next; i < chain->keys.size(); ++i) layout.coming.erase(chain->keys[i]);
    last = --layout.chains == 0;
  }
  if (!last) return;
  // A chain that comes right now opens them again.
  for (const SessionId session : layout.sessions) store_->close_internal(session);
  layout.sessions.clear();
}

}  // namespace kvcommons
