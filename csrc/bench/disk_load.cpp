// What bench/disk.py runs: puts and gets of a disk tier with a bounded number in flight, one line of JSON at the end.
//
//   disk_load put|get FOLDER CAPACITY_BYTES SEGMENT_BYTES ENGINE PAYLOAD_BYTES FIRST COUNT IN_FLIGHT [kill]
//
// Shards have the numbers FIRST .. FIRST + COUNT - 1; get takes them in a shuffled order. kill: the process ends by
// SIGKILL after its line, so that nothing is sealed or flushed in order.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/tiers/disk_tier.h"
#include "core/xxh3.h"

namespace {

using namespace kvcommons;
using Clock = std::chrono::steady_clock;

struct Arguments {
  bool put = false, kill = false;
  DiskConfig config;
  std::uint64_t payload_bytes = 0, first = 0, count = 0, in_flight = 0;
};

Arguments parse(int argc, char** argv) {
  if (argc < 10) throw std::invalid_argument("usage: see the head of disk_load.cpp");
  Arguments a;
  a.put = std::strcmp(argv[1], "put") == 0;
  a.config.devices = {{argv[2], std::stoull(argv[3])}};
  a.config.segment_bytes = std::stoull(argv[4]);
  a.config.engine = std::strcmp(argv[5], "threads") == 0 ? DiskEngine::Threads : DiskEngine::IoUring;
  a.config.lock_wait_ms = 30'000;
  a.payload_bytes = std::stoull(argv[6]);
  a.first = std::stoull(argv[7]);
  a.count = std::stoull(argv[8]);
  a.in_flight = std::stoull(argv[9]);
  a.config.queue_bytes_max = 2 * a.in_flight * a.payload_bytes + (1 << 20);
  a.config.op_deadline_ms = 60'000;
  a.kill = argc > 10 && std::strcmp(argv[10], "kill") == 0;
  return a;
}

ShardId id_of(std::uint64_t number) {
  ShardId id;
  id.fingerprint.bytes.fill(7);
  for (std::size_t i = 0; i < kKeyBytes; i += 8) {
    const std::uint64_t part = xxh3_64(&number, sizeof number, i);
    std::memcpy(id.key.bytes.data() + i, &part, sizeof part);
  }
  id.rect = {0, 32, 0, 8};
  return id;
}

// Buffers, each in one operation at a time, and how many operations are out.
class Slots {
 public:
  Slots(std::uint64_t count, std::uint64_t payload_bytes)
      : room_bytes_((payload_bytes + kSlotAlignBytes - 1) / kSlotAlignBytes * kSlotAlignBytes),
        file_(make_memfd("disk_load", count * room_bytes_, {}, &notes_)),
        memory_(map_shared(file_.get(), 0, count * room_bytes_, PROT_READ | PROT_WRITE)) {
    if (memory_ == nullptr) throw std::bad_alloc();
    std::mt19937_64 random(1);
    for (std::uint64_t i = 0; i < count * room_bytes_; i += 8) {
      const std::uint64_t word = random();
      std::memcpy(memory_ + i, &word, sizeof word);
    }
    for (std::uint64_t i = 0; i < count; ++i) {
      free_.push_back(memory_ + i * room_bytes_);
      checksums_.push_back(xxh3_64(free_.back(), payload_bytes));
    }
  }
  std::byte* take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !free_.empty(); });
    std::byte* slot = free_.back();
    free_.pop_back();
    return slot;
  }
  void give(std::byte* slot, bool ok) {
    const std::lock_guard lock(mutex_);
    free_.push_back(slot);
    ok_ += ok ? 1 : 0;
    changed_.notify_one();
  }
  std::uint64_t wait_all(std::uint64_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return free_.size() == count; });
    return ok_;
  }
  [[nodiscard]] std::uint64_t checksum(const std::byte* slot) const {
    return checksums_[static_cast<std::size_t>(slot - memory_) / room_bytes_];
  }
  [[nodiscard]] std::uint64_t room_bytes() const { return room_bytes_; }

 private:
  std::uint64_t room_bytes_;
  std::vector<std::string> notes_;
  UniqueFd file_;
  std::byte* memory_;  // as an arena's; the end of the process unmaps it
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::byte*> free_;
  std::vector<std::uint64_t> checksums_;
  std::uint64_t ok_ = 0;
};

void put(Tier& tier, Slots* slots, std::uint64_t number, std::uint64_t payload_bytes) {
  std::byte* slot = slots->take();
  ShardMeta meta;
  meta.id = id_of(number);
  meta.payload_bytes = payload_bytes;
  meta.checksum = slots->checksum(slot);
  meta.chunk_tokens = 256;
  meta.text_keys = {number};
  if (!tier.put({{std::move(meta), slot}}, [slots, slot](std::span<const TierStatus> result) {
        slots->give(slot, result[0] == TierStatus::Ok);
      })) {
    slots->give(slot, false);
  }
}

void get(Tier& tier, Slots* slots, std::uint64_t number) {
  std::byte* slot = slots->take();
  if (!tier.get({{id_of(number), slot, slots->room_bytes()}}, [slots, slot](std::span<const GetResult> result) {
        slots->give(slot, result[0].status == TierStatus::Ok);
      })) {
    slots->give(slot, false);
  }
}

double seconds_since(Clock::time_point begun) { return std::chrono::duration<double>(Clock::now() - begun).count(); }

void run(const Arguments& a) {
  const auto opened = Clock::now();
  const auto tier = make_disk_tier(a.config);
  const double open_seconds = seconds_since(opened);
  std::vector<std::uint64_t> numbers(a.count);
  for (std::uint64_t i = 0; i < a.count; ++i) numbers[i] = a.first + i;
  if (!a.put) std::shuffle(numbers.begin(), numbers.end(), std::mt19937_64(2));
  Slots slots(a.in_flight, a.payload_bytes);
  const auto begun = Clock::now();
  for (const std::uint64_t number : numbers) {
    if (a.put) {
      put(*tier, &slots, number, a.payload_bytes);
    } else {
      get(*tier, &slots, number);
    }
  }
  const std::uint64_t ok = slots.wait_all(a.in_flight);
  const double seconds = seconds_since(begun);
  const TierStats stats = tier->stats();
  std::printf(
      "{\"seconds\": %.6f, \"bytes\": %llu, \"ok\": %llu, \"open_seconds\": %.6f, \"recovered\": %llu, \"shards\": "
      "%llu, \"metadata_bytes\": %llu}\n",
      seconds, static_cast<unsigned long long>(a.count * a.payload_bytes), static_cast<unsigned long long>(ok),
      open_seconds, static_cast<unsigned long long>(stats.recovered), static_cast<unsigned long long>(stats.shards),
      static_cast<unsigned long long>(stats.metadata_bytes));
  std::fflush(stdout);
  if (a.kill) (void)::kill(::getpid(), SIGKILL);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "disk_load: %s\n", error.what());
    return 1;
  }
  return 0;
}
