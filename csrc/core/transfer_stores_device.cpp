// Stores out of a device's memory: a few slots on its stream, the oldest hashed when it is full.
#include "transfer_runs.h"
#include "transfer_stores.h"
#include "transfer_thread.h"
#include "xxh3.h"

namespace kvcommons {

bool StoreQueue::copy_by_device(Queued* queued, Batch* batch) {
  std::deque<UnderWay> under_way;
  std::size_t next = 0;
  bool ok = true;
  Stopwatch watch;
  std::byte* const arena = batch->attached.arena.get();
  const auto slot_of = [&](std::size_t item) { return arena + batch->items[item].slot.offset_bytes; };
  for (;;) {
    ok = ok && !stopping();
    if (ok && next < batch->granted.size() && under_way.size() < kUnderWayMax) {
      const Device::Mark mark = put_on_stream(queued, batch->granted[next], slot_of(next), arena);
      if (mark != 0) under_way.push_back({next++, mark});
      ok = mark != 0;
      continue;
    }
    if (under_way.empty()) break;
    const auto [item, mark] = under_way.front();
    under_way.pop_front();
    const Device::State state = device_->wait(Device::Way::Store, mark);
    ok = ok && state == Device::State::Done;
    batch->lost |= state == Device::State::Lost;
    if (ok) batch->items[item].checksum = xxh3_64(slot_of(item), layout_.slot_bytes());
  }
  const std::lock_guard lock(mutex_);
  if (batch->lost) lost_arenas_.push_back(batch->attached.arena);
  if (!ok) return false;
  stats_.store_bytes += batch->granted.size() * layout_.slot_bytes();
  stats_.store_ns += watch.ns();
  return true;
}

Device::Mark StoreQueue::put_on_stream(Queued* queued, std::size_t chunk, std::byte* slot, const std::byte* arena) {
  const std::size_t blocks = layout_.blocks_per_chunk();
  const auto ids = std::span(queued->job.block_ids).subspan(chunk * blocks, blocks);
  for (std::uint32_t layer = 0; layer < layout_.layers(); ++layer) {
    for (std::uint32_t i = 0; i < ids.size(); ++i) layout_.gather(layer, ids[i], slot, i, &runs_);
  }
  const Device::Mark mark = device_->copy(
      Device::Way::Store, cut_at_pins(Device::Way::Store, runs_.runs(), arena, &cut_), queued->after.take());
  runs_.clear();
  return mark;
}

}  // namespace kvcommons
