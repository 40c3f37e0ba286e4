// Loads into a device's memory: two pieces on its stream, so that it never waits for this thread between them.
#include <limits>

#include "transfer_loads.h"
#include "transfer_runs.h"

namespace kvcommons {

bool LoadQueue::step_on_device(std::unique_lock<std::mutex>* lock) {
  Piece piece;
  if (!stop_ && under_way_.size() < kUnderWayMax && take(sequence_, layout_.layers(), kDevicePieceBytes, &piece)) {
    lock->unlock();
    if (under_way_.empty()) ended_at_ = Stopwatch();
    const bool on_stream = put_on_stream(&piece);
    lock->lock();
    if (on_stream) {
      under_way_.push_back(piece);
    } else {
      finish(piece, 0, Device::State::Failed);
    }
    return true;
  }
  if (under_way_.empty()) return false;
  piece = under_way_.front();
  lock->unlock();
  const Device::State state = device_->wait(Device::Way::Load, piece.mark);
  const std::uint64_t ns = ended_at_.ns();
  ended_at_ = Stopwatch();
  lock->lock();
  under_way_.pop_front();
  finish(piece, ns, state);
  return true;
}

bool LoadQueue::put_on_stream(Piece* piece) {
  Load& load = *piece->load;
  each_runs(*piece, &runs_, std::numeric_limits<std::size_t>::max(), [&](std::span<const kernels::CopyRun> runs) {
    const auto cut = cut_at_pins(Device::Way::Load, runs, load.attached.arena.get(), &cut_);
    piece->mark = device_->copy(Device::Way::Load, cut, load.after.take());
  });
  return piece->mark != 0;
}

}  // namespace kvcommons
