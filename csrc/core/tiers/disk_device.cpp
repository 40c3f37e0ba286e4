#include "tiers/disk_device.h"

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "seq_points.h"
#include "xxh3.h"

namespace kvcommons::disk {
namespace {

constexpr double kRateReserveSeconds = 0.05;     // of a rate budget: more would come in bursts
constexpr double kWearReserveSeconds = 3'600.0;  // of the wear limit: a burst of an hour's share
constexpr double kSecondsPerDay = 86'400.0;
constexpr auto kBudgetTick = std::chrono::milliseconds(2);

double reserve(std::uint64_t bytes_per_second) { return static_cast<double>(bytes_per_second) * kRateReserveSeconds; }

}  // namespace

Device::Device(Shared* shared, DeviceFile file, Recovered recovered, std::unique_ptr<DiskIo> io,
               std::uint32_t first_segment)
    : shared_(shared),
      file_(std::move(file)),
      first_(first_segment),
      health_(file_.path, shared->config.op_deadline_ms, shared->config.write_retry_ms),
      io_(std::move(io)),
      read_budget_(static_cast<double>(shared->config.read_bytes_per_second_max),
                   reserve(shared->config.read_bytes_per_second_max), now_ms()),
      write_budget_(static_cast<double>(shared->config.write_bytes_per_second_max),
                    reserve(shared->config.write_bytes_per_second_max), now_ms()),
      wear_budget_(static_cast<double>(shared->config.wear_bytes_per_day) / kSecondsPerDay,
                   static_cast<double>(shared->config.wear_bytes_per_day) / kSecondsPerDay * kWearReserveSeconds,
                   now_ms()) {
  restore(&recovered);
  thread_ = std::thread([this] {
    while (step()) {
    }
  });
}

Device::~Device() {
  {
    const std::lock_guard lock(mutex_);
    inbox_.closing = true;
    wake_.notify_one();
  }
  thread_.join();
  io_.reset();  // its threads may still be on their way out of on_done
}

std::uint64_t Device::now_ms() const { return shared_->config.now_ms(); }

void Device::put(std::vector<PutJob> jobs) {
  for (const PutJob& job : jobs) waiting_put_bytes_ += job.bytes;
  const std::lock_guard lock(mutex_);
  std::move(jobs.begin(), jobs.end(), std::back_inserter(inbox_.puts));
  wake_.notify_one();
}

void Device::get(std::vector<GetJob> jobs) {
  const std::lock_guard lock(mutex_);
  std::move(jobs.begin(), jobs.end(), std::back_inserter(inbox_.gets));
  wake_.notify_one();
}

void Device::answer(std::function<void()> call) {
  const std::lock_guard lock(mutex_);
  inbox_.calls.push_back(std::move(call));
  wake_.notify_one();
}

void Device::note_removed(std::vector<RemovedId> ids) {
  const std::lock_guard lock(mutex_);
  for (std::size_t from = 0; from < ids.size(); from += kIdsPerTombstone) {
    const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(from);
    const auto count = static_cast<std::ptrdiff_t>(std::min(kIdsPerTombstone, ids.size() - from));
    inbox_.tombstones.push_back({ExtentKind::Removed, {}, {begin, begin + count}});
  }
  wake_.notify_one();
}

void Device::note_cleared(const Key* fingerprint) {
  const std::lock_guard lock(mutex_);
  inbox_.tombstones.push_back({ExtentKind::Cleared, fingerprint == nullptr ? Key{} : *fingerprint, {}});
  wake_.notify_one();
}

bool Device::idle() const {
  return in_flight_.empty() && puts_.empty() && gets_.empty() && tombstones_.empty() && cleaning_ == kNoSegment;
}

void Device::sleep(std::unique_lock<std::mutex>* lock) {
  if (!inbox_.empty() || !to_submit_.empty() || inbox_.closing != closing_) return;
  const DiskConfig& c = shared_->config;
  std::string why;
  if (idle() && !closing_ && health_.get(&why) == TierHealth::Serving) {
    wake_.wait(*lock, [this] { return !inbox_.empty() || inbox_.closing; });
    return;
  }
  const bool limited = c.read_bytes_per_second_max != 0 || c.write_bytes_per_second_max != 0;
  std::chrono::milliseconds tick(std::clamp<std::uint32_t>(c.op_deadline_ms / 4, 1, 100));
  if (limited) tick = kBudgetTick;
  wake_.wait_for(*lock, tick, [this] { return !inbox_.empty() || inbox_.closing != closing_; });
}

bool Device::step() {
  Inbox inbox;
  {
    std::unique_lock lock(mutex_);
    sleep(&lock);
    inbox.closing = inbox_.closing;
    std::swap(inbox, inbox_);
    inbox_.closing = inbox.closing;
  }
  take_in(&inbox);
  look_after_health();
  expire();
  if (!health_.gone()) {
    start_gets();
    if (free_.empty()) clean();
    start_tombstones();
    pump_moves();
    start_puts();
  }
  if (!to_submit_.empty()) io_->submit(to_submit_);
  to_submit_.clear();
  if (!closing_ || !in_flight_.empty()) return true;
  const bool late = now_ms() > closing_since_ms_ + shared_->config.op_deadline_ms;
  if (!tombstones_.empty() && health_.may_write(now_ms()) && !late) return true;
  return last_sync();
}

// Once, when all that was written is written: what is in the open segment survives a loss of power as well.
bool Device::last_sync() {
  if (!std::exchange(unsynced_, false) || health_.gone()) return false;
  start(transfer(Transfer::Purpose::Sync, kNoSegment, 0), IoOp::Kind::Sync);
  return true;
}

void Device::take_in(Inbox* inbox) {
  for (auto& call : inbox->calls) call();
  std::move(inbox->puts.begin(), inbox->puts.end(), std::back_inserter(puts_));
  std::move(inbox->gets.begin(), inbox->gets.end(), std::back_inserter(gets_));
  std::move(inbox->tombstones.begin(), inbox->tombstones.end(), std::back_inserter(tombstones_));
  if (tombstones_.size() > kTombstonesMax) {
    // Bounded, and what was removed must not come back: the next life begins with nothing from before.
    tombstones_.assign(1, {ExtentKind::Cleared, {}, {}});
  }
  if (inbox->closing && !closing_) {
    closing_ = true;
    closing_since_ms_ = now_ms();
  }
  for (Transfer* t : inbox->ended) {
    const auto found = in_flight_.find(t);
    Own own = std::move(found->second);
    in_flight_.erase(found);
    ended(std::move(own));
  }
}

Device::Own Device::transfer(Transfer::Purpose purpose, std::uint32_t segment, std::uint32_t block) {
  Own t;
  if (spare_.empty()) {
    t = std::make_unique<Transfer>();
    t->head = AlignedBlocks(1);
  } else {
    t = std::move(spare_.back());
    spare_.pop_back();
  }
  static_cast<IoOp&>(*t) = IoOp{};
  t->device = this;
  t->purpose = purpose;
  t->segment = segment;
  t->block = block;
  t->bad = false;
  return t;
}

void Device::start(Own t, IoOp::Kind kind) {
  t->kind = kind;
  t->fd = file_.fd.get();
  t->offset_bytes = t->segment * file_.segment_bytes + t->block * kBlockBytes;
  t->expected_bytes = t->bytes();
  t->started_ms = now_ms();
  t->done = &Device::on_done;
  reads_ += kind == IoOp::Kind::Read ? 1 : 0;
  writes_ += kind == IoOp::Kind::Write ? 1 : 0;
  to_submit_.push_back(t.get());
  in_flight_.emplace(t.get(), std::move(t));
}

// On a thread of the engine. Bytes are checked here: several at once, and beside the device's own thread.
void Device::on_done(IoOp* op) {
  auto* t = static_cast<Transfer*>(op);
  Device* const device = t->device;
  const bool whole = op->result >= 0 && static_cast<std::uint64_t>(op->result) == t->expected_bytes;
  if (whole && op->kind == IoOp::Kind::Read) device->verify(t);
  const std::lock_guard lock(device->mutex_);
  device->inbox_.ended.push_back(t);
  device->wake_.notify_one();
}

void Device::verify(Transfer* t) {
  const ShardMeta& meta = t->shard.meta;
  const bool get = t->purpose == Transfer::Purpose::Get;
  const std::byte* data = get ? (*t->get.batch)[t->get.item].data : t->body.data();
  t->bad = xxh3_64(data, meta.payload_bytes) != meta.checksum;
  if (t->bad || !get) return;
  Counters& c = shared_->counters;
  c.get_bytes += meta.payload_bytes;
  c.queued_gets -= 1;
  c.queued_get_bytes -= t->get.bytes;
  shared_->index.touch(meta.id);
  const auto batch = std::move(t->get.batch);
  batch->finish(t->get.item, {TierStatus::Ok, std::move(t->shard.meta)});
}

void Device::judge(const Transfer& t, bool ok) {
  const std::uint64_t now = now_ms();
  const bool write = t.kind != IoOp::Kind::Read;
  if (ok) return health_.worked(write, now - std::min(now, t.started_ms));
  health_.failed(write, t.result < 0 ? -t.result : EIO, now);
}

void Device::ended(Own t) {
  const bool ok = t->result >= 0 && static_cast<std::uint64_t>(t->result) == t->expected_bytes;
  reads_ -= t->kind == IoOp::Kind::Read ? 1 : 0;
  writes_ -= t->kind == IoOp::Kind::Write ? 1 : 0;
  unsynced_ |= ok && t->kind == IoOp::Kind::Write;
  judge(*t, ok);
  switch (t->purpose) {
    case Transfer::Purpose::Get:
      get_ended(t.get(), ok);
      break;
    case Transfer::Purpose::Put:
      put_ended(t.get(), ok);
      break;
    case Transfer::Purpose::Tombstone:
      extent_ended(t->segment, ok, extent_of_record(*t));
      if (!ok) tombstones_.push_front(std::move(t->tombstone));
      break;
    case Transfer::Purpose::Header:
      header_ended(t.get(), ok);
      break;
    case Transfer::Purpose::Footer:
      return footer_ended(std::move(t), ok);
    case Transfer::Purpose::Sync:
      sync_ended(t.get());
      break;
    case Transfer::Purpose::MoveRead:
      return move_read(std::move(t), ok);
    case Transfer::Purpose::MoveWrite:
      move_ended(t.get(), ok);
      break;
  }
  t->body = {};
  t->put = {};
  t->get = {};
  t->tombstone = {};
  spare_.push_back(std::move(t));
}

}  // namespace kvcommons::disk
