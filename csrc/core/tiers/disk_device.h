// One device of a disk tier. A thread of its own takes jobs, decides and keeps the segments' books; it never waits for
// the medium: every transfer runs in the engine, and its end comes back as a message.
//
// Life of a segment: Free -> Open (its header is written, extents are appended) -> Sealing (full; once its writes are
// over, table and trailer are written and synced) -> Sealed -> Cleaning (the oldest one: what is hot is written anew,
// the index forgets the rest) -> Free once nobody reads from it. So it goes round, oldest first.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "tiers/disk_batch.h"
#include "tiers/disk_budget.h"
#include "tiers/disk_file.h"
#include "tiers/disk_health.h"
#include "tiers/disk_io.h"
#include "tiers/disk_recovery.h"

namespace kvcommons::disk {

class Device {
 public:
  Device(Shared* shared, DeviceFile file, Recovered recovered, std::unique_ptr<DiskIo> io, std::uint32_t first_segment);
  ~Device();                       // what was begun ends, what waits is answered Closed
  Device(const Device&) = delete;  // owns threads and the file

  void put(std::vector<PutJob> jobs);
  void get(std::vector<GetJob> jobs);
  void answer(std::function<void()> call);  // on the device's thread
  void note_removed(std::vector<RemovedId> ids);
  void note_cleared(const Key* fingerprint);

  [[nodiscard]] bool holds(std::uint32_t segment) const noexcept {
    return segment >= first_ && segment - first_ < file_.segments;
  }
  [[nodiscard]] bool writable() const { return health_.may_write(now_ms()); }
  [[nodiscard]] std::uint64_t waiting_put_bytes() const noexcept { return waiting_put_bytes_; }
  [[nodiscard]] TierHealth health(std::string* why) const { return health_.get(why); }
  [[nodiscard]] std::uint64_t capacity_bytes() const noexcept { return file_.bytes(); }
  [[nodiscard]] std::uint64_t now_ms() const;

 private:
  enum class State : std::uint8_t { Free, Open, Sealing, Sealed, Cleaning, Draining };
  struct Segment {
    std::uint64_t generation = 0;
    State state = State::Free;
    bool ready = false;  // Open: its header is on the medium
    std::uint32_t next_block = 1;
    std::uint32_t extents = 0;
    std::uint32_t reads = 0, writes = 0;  // in flight
    std::uint64_t table_reserved = 0;     // of extents that have their place
    std::vector<std::byte> table;         // of extents that are written
  };
  // A record of the log that is no shard: what was removed.
  struct Tombstone {
    ExtentKind kind = ExtentKind::Cleared;
    Key fingerprint;
    std::vector<RemovedId> ids;
  };
  struct Transfer : IoOp {
    enum class Purpose : std::uint8_t { Put, Get, MoveRead, MoveWrite, Tombstone, Header, Footer, Sync };
    Device* device = nullptr;
    Purpose purpose = Purpose::Get;
    std::uint32_t segment = 0, block = 0;
    std::uint64_t expected_bytes = 0, started_ms = 0;
    bool bad = false;  // Get, MoveRead: it came, but is not what it should be
    PutJob put;
    GetJob get;
    Resident shard;  // Get, MoveRead, MoveWrite: as the index knows it
    Tombstone tombstone;
    AlignedBlocks head;  // one block, kept from use to use
    AlignedBlocks body;
  };
  using Own = std::unique_ptr<Transfer>;
  struct Inbox {
    std::vector<PutJob> puts;
    std::vector<GetJob> gets;
    std::vector<Tombstone> tombstones;
    std::vector<std::function<void()>> calls;
    std::vector<Transfer*> ended;
    bool closing = false;
    [[nodiscard]] bool empty() const {
      return puts.empty() && gets.empty() && tombstones.empty() && calls.empty() && ended.empty();
    }
  };

  // disk_device.cpp: the thread, its messages and reads
  bool step();  // false: over
  bool last_sync();
  void sleep(std::unique_lock<std::mutex>* lock);
  void take_in(Inbox* inbox);
  [[nodiscard]] bool idle() const;
  static void on_done(IoOp* op);
  void verify(Transfer* t);
  Own transfer(Transfer::Purpose purpose, std::uint32_t segment, std::uint32_t block);
  void start(Own t, IoOp::Kind kind);
  void ended(Own t);
  void judge(const Transfer& t, bool ok);
  void get_ended(Transfer* t, bool ok);
  void start_gets();
  void start_get(GetJob job);
  void answer_get(const GetJob& job, TierStatus status);
  void answer_put(const PutJob& job, TierStatus status);
  void expire();
  void look_after_health();
  void refuse_all(TierStatus status);
  // disk_device_write.cpp: puts, tombstones
  void start_puts();
  bool start_put(PutJob* job);  // false: no place yet
  [[nodiscard]] TierStatus before_put(const PutJob& job);
  void put_ended(Transfer* t, bool ok);
  static Extent extent_of_record(const Transfer& t);
  void start_tombstones();
  bool start_tombstone(Tombstone* tombstone);
  void write_extent(Own t, const Extent& extent, const std::byte* payload);
  [[nodiscard]] std::uint32_t write_slots() const;
  // disk_segments.cpp: places, sealing
  std::optional<Place> place_for(std::uint64_t payload_bytes, std::size_t text_keys);
  [[nodiscard]] bool fits(const Segment& s, std::uint64_t payload_bytes, std::size_t text_keys) const;
  bool open_segment();
  void header_ended(Transfer* t, bool ok);
  void extent_ended(std::uint32_t segment, bool ok, const Extent& extent);
  void seal_if_over(std::uint32_t segment);
  void footer_ended(Own t, bool ok);
  void sync_ended(Transfer* t);
  void restore(Recovered* recovered);
  void seal_restored(std::uint32_t segment);
  [[nodiscard]] SegmentLife life(std::uint32_t segment) const {
    return {file_.segment_bytes, segments_[segment].generation, segment, id_};
  }
  // disk_clean.cpp: reuse
  void clean();
  void pump_moves();
  void move_read(Own t, bool ok);
  void begin_moves(std::vector<Resident> residents);
  bool write_move(Own* t);
  void move_ended(Transfer* t, bool ok);
  void finish_cleaning();
  void read_ended(std::uint32_t segment);
  void free_if_unread(std::uint32_t segment);

  static constexpr std::uint32_t kNoSegment = 0xffff'ffff;
  static constexpr std::uint32_t kMovesMax = 4;  // at once
  static constexpr std::size_t kTombstonesMax = 4'096;
  static constexpr std::size_t kIdsPerTombstone = 4'096;

  Shared* const shared_;
  const DeviceFile file_;
  const std::uint32_t first_;
  DeviceId id_{};
  DeviceHealth health_;
  std::unique_ptr<DiskIo> io_;
  std::atomic<std::uint64_t> waiting_put_bytes_{0};

  std::mutex mutex_;
  std::condition_variable wake_;
  Inbox inbox_;

  // The thread's own.
  std::deque<PutJob> puts_;
  std::deque<GetJob> gets_;
  std::deque<Tombstone> tombstones_;
  std::vector<Segment> segments_;
  std::deque<std::uint32_t> free_, sealed_;  // sealed_: Sealing ones too, by generation
  std::uint32_t open_ = kNoSegment;
  std::uint64_t generation_ = 0;
  std::uint32_t cleaning_ = kNoSegment;
  std::deque<Resident> moves_;
  std::deque<Own> moves_read_;  // have their bytes, wait for a place
  std::uint32_t moves_in_flight_ = 0;
  std::vector<Own> spare_;
  std::vector<IoOp*> to_submit_;
  std::unordered_map<const IoOp*, Own> in_flight_;
  std::uint32_t reads_ = 0, writes_ = 0;  // in flight
  Budget read_budget_, write_budget_, wear_budget_;
  bool closing_ = false, forgotten_ = false, unsynced_ = false;
  std::uint64_t closing_since_ms_ = 0;

  std::thread thread_;  // last: it uses the others
};

}  // namespace kvcommons::disk
