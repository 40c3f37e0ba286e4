// Write-behind: from memory to a tier.
#include <algorithm>

#include "tiers/manager_impl.h"
#include "xxh3.h"

namespace kvcommons {

// On the thread of whoever commits: only the queues are touched.
void TierManager::Impl::sealed(std::span<const SealedShard> shards) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t now = now_ms();
  for (const SealedShard& shard : shards) {
    know_rect_locked(shard.fingerprint, shard.rect);
    meter_.sealed(shard.key, now);
    for (WayOut& way : ways_) {
      if (way.waiting.size() >= config_.write_queue_max || quiet_) {
        add(counters_.write_dropped);
      } else {
        way.waiting.push_back(shard);
      }
    }
  }
  wake_locked();
}

Tier* TierManager::Impl::writable(const WayOut& way) const {
  std::string why;
  const auto serves = [&](const std::shared_ptr<Tier>& tier) { return tier->health(&why) == TierHealth::Serving; };
  if (way.shared) return serves(way.shared) ? way.shared.get() : nullptr;
  const auto found = std::find_if(tiers_.begin(), tiers_.end(), [&](const auto& tier) {
    return tier->takes_writes() && !tier->shared() && serves(tier);
  });
  return found == tiers_.end() ? nullptr : found->get();
}

bool TierManager::Impl::write_some() {
  bool some = false;
  for (std::size_t way = 0; way < ways_.size(); ++way) some = write_some(way) || some;
  return some;
}

bool TierManager::Impl::write_some(std::size_t at) {
  WayOut& way = ways_[at];
  {
    const std::lock_guard lock(mutex_);
    if (quiet_ || way.waiting.empty() || clearing_ != 0) return false;
  }
  const auto write = std::make_shared<Write>();
  write->tier = writable(way);
  write->way = at;
  std::vector<SealedShard> shards;
  {
    const std::lock_guard lock(mutex_);
    if (clearing_ != 0) return false;
    if (write->tier == nullptr) {
      add(counters_.write_refused, way.waiting.size());
      way.waiting.clear();
      return false;
    }
    std::uint64_t bytes = 0;
    while (!way.waiting.empty() && (bytes == 0 || bytes + way.waiting.front().payload_bytes <= config_.batch_bytes) &&
           way.budget.allows(bytes + way.waiting.front().payload_bytes, bytes == 0, now_ms())) {
      bytes += way.waiting.front().payload_bytes;
      shards.push_back(way.waiting.front());
      way.waiting.pop_front();
    }
    if (shards.empty()) return false;
    // Before anything is borrowed: a clear() from here on sees that this write may bring back what it clears.
    write->epoch = epoch_;
    writing_.insert(epoch_);
    ++under_way_;
  }
  std::vector<PutItem> items;
  prepare(shards, write.get(), &items);
  way.budget.begun(write->bytes);
  count_in_flight();
  if (items.empty()) {
    write_ended(*write);
    return true;
  }
  const bool taken = write->tier->put(std::move(items), [this, write](std::span<const TierStatus> statuses) {
    write->statuses.assign(statuses.begin(), statuses.end());
    const std::lock_guard lock(mutex_);
    ended_writes_.push_back(write);
    wake_locked();
  });
  if (!taken) not_written(*write, shards);
  return taken;
}

void TierManager::Impl::count_in_flight() {
  std::uint64_t bytes = 0;
  for (const WayOut& way : ways_) bytes += way.budget.in_flight();
  counters_.write_in_flight_bytes.store(bytes);
}

// Borrows what is to be written and is not there yet.
void TierManager::Impl::prepare(const std::vector<SealedShard>& shards, Write* write, std::vector<PutItem>* items) {
  std::vector<ShardId> ids;
  for (const SealedShard& shard : shards) ids.push_back({shard.fingerprint, shard.key, shard.rect});
  std::vector<std::uint64_t> there(ids.size());
  write->tier->find(ids, there);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    Borrowed borrowed;
    if (there[i] != 0) {
      add(counters_.write_there);
    } else if (!store_->borrow(ids[i].fingerprint, ids[i].key, ids[i].rect, &borrowed)) {
      add(counters_.write_missed);  // evicted or cleared before its turn
    } else {
      const std::byte* data = config_.arena + borrowed.slot.offset_bytes;
      if (borrowed.checksum == 0) borrowed.checksum = xxh3_64(data, borrowed.payload_bytes);
      items->push_back({{ids[i], borrowed.parent, borrowed.tenant, borrowed.payload_bytes, borrowed.checksum,
                         borrowed.chunk_tokens, 0, borrowed.text_keys},
                        data});
      write->bytes += borrowed.payload_bytes;
      write->ids.push_back(ids[i]);
      write->borrowed.push_back(std::move(borrowed));
    }
  }
}

void TierManager::Impl::write_ended(Write& write) {
  for (std::size_t i = 0; i < write.borrowed.size(); ++i) {
    if (i < write.statuses.size() && write.statuses[i] == TierStatus::Ok) {
      add(counters_.written);
      add(counters_.written_bytes, write.borrowed[i].payload_bytes);
    } else {
      add(counters_.write_refused);
    }
    store_->give_back(write.borrowed[i]);
  }
  ways_[write.way].budget.ended(write.bytes);
  count_in_flight();
  remove_cleared(write);
  const std::lock_guard lock(mutex_);
  writing_.erase(writing_.find(write.epoch));
  const std::uint64_t oldest = writing_.empty() ? epoch_ : *writing_.begin();
  std::erase_if(cleared_, [&](const Cleared& cleared) { return cleared.epoch <= oldest; });
  --under_way_;
}

// The tier had no room in its queue: the same shards are tried again.
void TierManager::Impl::not_written(const Write& write, const std::vector<SealedShard>& shards) {
  for (const Borrowed& borrowed : write.borrowed) store_->give_back(borrowed);
  ways_[write.way].budget.ended(write.bytes);
  count_in_flight();
  const std::lock_guard lock(mutex_);
  auto& waiting = ways_[write.way].waiting;
  waiting.insert(waiting.begin(), shards.begin(), shards.end());
  writing_.erase(writing_.find(write.epoch));
  --under_way_;
}

// What was cleared while it was being written.
void TierManager::Impl::remove_cleared(const Write& write) {
  std::vector<ShardId> gone;
  {
    const std::lock_guard lock(mutex_);
    if (quiet_) return;  // the tiers are being let go
    const auto at =
        std::find_if(tiers_.begin(), tiers_.end(), [&](const auto& one) { return one.get() == write.tier; });
    const Places place = place_of_tier(static_cast<std::size_t>(at - tiers_.begin()));
    for (std::size_t i = 0; i < write.ids.size(); ++i) {
      const auto covers = [&](const Cleared& cleared) {
        return cleared.epoch > write.epoch && (cleared.places & place) != 0 &&
               cleared.covers(write.ids[i], write.borrowed[i].tenant);
      };
      if (std::any_of(cleared_.begin(), cleared_.end(), covers)) gone.push_back(write.ids[i]);
    }
  }
  if (!gone.empty()) write.tier->remove(gone);
}

}  // namespace kvcommons
