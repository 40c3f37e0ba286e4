#include "tiers/disk_recovery.h"

#include <sys/random.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <map>
#include <system_error>
#include <thread>

#include "seq_points.h"
#include "xxh3.h"

namespace kvcommons::disk {
namespace {

constexpr std::uint64_t kScanBlocks = 32;   // read at once: large extents are stepped over, small ones come together
constexpr std::size_t kSegmentsAtOnce = 2;  // for each thread

struct Read {
  enum class Outcome : std::uint8_t { Table, Scanned, BadTable, Unreadable } outcome = Outcome::Unreadable;
  AlignedBlocks table;
  std::vector<std::byte> scanned;  // a table made from the headers
  std::vector<Extent> extents;     // in the order of their blocks; they point into one of the two
};

void each_in_parallel(std::size_t count, std::uint32_t threads_max, const std::function<void(std::size_t)>& act) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < count; i = next++) act(i);
  };
  std::vector<std::jthread> threads;
  for (std::size_t t = 1; t < std::min<std::size_t>(threads_max, count); ++t) threads.emplace_back(work);
  work();
}

class Recovery {
 public:
  Recovery(const DeviceFile& file, std::uint32_t first, std::uint32_t threads_max, DiskIndex* index)
      : file_(file), first_(first), mine_{first, file.segments}, threads_max_(threads_max), index_(index) {
    out_.segments.resize(file.segments);
  }

  Recovered run() {
    read_headers();
    std::vector<std::uint32_t> order;
    for (std::uint32_t s = 0; s < file_.segments; ++s) {
      if (out_.segments[s].generation != 0) order.push_back(s);
    }
    std::sort(order.begin(), order.end(),
              [this](auto a, auto b) { return out_.segments[a].generation < out_.segments[b].generation; });
    const std::size_t step = kSegmentsAtOnce * threads_max_;
    for (std::size_t from = 0; from < order.size(); from += step) {
      const std::size_t count = std::min(step, order.size() - from);
      std::vector<Read> reads(count);
      each_in_parallel(count, threads_max_, [&](std::size_t i) { read_segment(order[from + i], &reads[i]); });
      for (std::size_t i = 0; i < count; ++i) take(order[from + i], &reads[i]);
      seq_point(SeqPoint::DiskRecovering);
    }
    return std::move(out_);
  }

 private:
  [[nodiscard]] std::uint64_t offset(std::uint32_t segment, std::uint64_t block) const {
    return segment * file_.segment_bytes + block * kBlockBytes;
  }
  [[nodiscard]] SegmentLife life(std::uint32_t segment) const {
    return {file_.segment_bytes, out_.segments[segment].generation, segment, out_.device};
  }

  // The newest header says which file this is: one of another device, or of another cut, is none of ours.
  void read_headers() {
    std::vector<SegmentLife> lives(file_.segments);
    std::atomic<std::uint64_t> damaged{0};
    each_in_parallel(file_.segments, threads_max_, [&](std::size_t i) {
      const AlignedBlocks block(1);
      const auto segment = static_cast<std::uint32_t>(i);
      SegmentLife found;
      if (!read_whole(file_.fd.get(), block.span(), offset(segment, 0))) {
        ++damaged;
        return;
      }
      const HeaderState state = read_segment_header(block.block(), &found);
      const bool here = found.segment == segment && found.segment_bytes == file_.segment_bytes;
      if (state == HeaderState::Ours && here) {
        lives[i] = found;
      } else if (state != HeaderState::Empty) {
        ++damaged;
      }
    });
    const auto newest =
        std::max_element(lives.begin(), lives.end(), [](auto& a, auto& b) { return a.generation < b.generation; });
    out_.headers_dropped = damaged;
    // Headers newer than those that can be read may be lost, one a segment at most: their numbers never come again.
    out_.generation = newest->generation == 0 ? 0 : newest->generation + file_.segments;
    out_.device = newest->generation != 0 ? newest->device : fresh_id();
    for (std::size_t i = 0; i < lives.size(); ++i) {
      if (lives[i].generation != 0 && lives[i].device == out_.device) out_.segments[i].generation = lives[i].generation;
    }
  }

  static DeviceId fresh_id() {
    DeviceId id{};
    // Not std::random_device: the library's own needs a newer glibc than engines' images have.
    if (::getrandom(id.data(), id.size(), 0) != static_cast<ssize_t>(id.size())) {
      throw std::system_error(errno, std::generic_category(), "getrandom");
    }
    return id;
  }

  void read_segment(std::uint32_t segment, Read* out) const {
    const SegmentLife which = life(segment);
    const AlignedBlocks last(1);
    Trailer trailer{};
    const std::uint64_t blocks = file_.segment_bytes / kBlockBytes;
    if (!read_whole(file_.fd.get(), last.span(), offset(segment, blocks - 1))) return;
    const bool sealed = read_trailer(last.block(), which, &trailer);
    if (sealed) {
      out->table = AlignedBlocks(std::max<std::uint64_t>(blocks_of(trailer.table_bytes), 1));
      if (read_whole(file_.fd.get(), out->table.span().first(blocks_of(trailer.table_bytes) * kBlockBytes),
                     offset(segment, trailer.table_block)) &&
          read_table(out->table.span().first(trailer.table_bytes), trailer, which, &out->extents)) {
        std::sort(out->extents.begin(), out->extents.end(), [](auto& a, auto& b) { return a.block < b.block; });
        out->outcome = Read::Outcome::Table;
        return;
      }
    }
    if (scan(segment, which, out)) out->outcome = sealed ? Read::Outcome::BadTable : Read::Outcome::Scanned;
  }

  // Header after header. Where none is, block after block: writes end in any order, so that one may lie behind a gap.
  bool scan(std::uint32_t segment, const SegmentLife& which, Read* out) const {
    const AlignedBlocks window(kScanBlocks);
    const std::uint64_t blocks = file_.segment_bytes / kBlockBytes;
    std::uint64_t from = 0, have = 0;
    Extent extent;
    for (std::uint64_t block = 1; block < blocks;) {
      if (block >= from + have) {
        from = block;
        have = std::min(kScanBlocks, blocks - block);
        if (!read_whole(file_.fd.get(), window.span().first(have * kBlockBytes), offset(segment, block))) return false;
      }
      if (read_extent_header(window.block(block - from), which, static_cast<std::uint32_t>(block), &extent)) {
        append_table(&out->scanned, extent);
        block += extent_blocks(extent.payload_bytes);
      } else {
        ++block;
      }
    }
    // Read back as any table is: the spans then point into what stays.
    Trailer trailer{};
    trailer.table_bytes = out->scanned.size();
    trailer.table_checksum = xxh3_64(out->scanned.data(), out->scanned.size());
    trailer.table_block = static_cast<std::uint32_t>(blocks - 1);
    for (std::size_t at = 0; at < out->scanned.size(); ++trailer.extents) {
      TableEntry entry;
      std::memcpy(&entry, out->scanned.data() + at, sizeof entry);
      at += table_entry_bytes(entry.text_keys);
    }
    return read_table(out->scanned, trailer, which, &out->extents);
  }

  void take(std::uint32_t segment, Read* read) {
    RecoveredSegment& state = out_.segments[segment];
    if (read->outcome == Read::Outcome::Unreadable) {
      ++out_.unreadable;
      state.generation = 0;
      return;
    }
    state.sealed = read->outcome == Read::Outcome::Table;
    out_.scanned += state.sealed ? 0 : 1;
    out_.tables_dropped += read->outcome == Read::Outcome::BadTable ? 1 : 0;
    for (const Extent& extent : read->extents) {
      ++out_.extents;
      apply(segment, extent);
      state.next_block = static_cast<std::uint32_t>(extent.block + extent_blocks(extent.payload_bytes));
    }
    if (state.sealed) return;
    state.extents = static_cast<std::uint32_t>(read->extents.size());
    state.table = std::move(read->scanned);
  }

  void apply(std::uint32_t segment, const Extent& extent) {
    switch (extent.kind) {
      case ExtentKind::Shard:
        index_->restore(extent, {first_ + segment, extent.block}, mine_);
        return;
      case ExtentKind::Cleared:
        (void)index_->clear(extent.id.fingerprint.zero() ? nullptr : &extent.id.fingerprint, mine_);
        return;
      case ExtentKind::Removed:
        forget(segment, extent);
        return;
    }
  }

  void forget(std::uint32_t segment, const Extent& extent) {
    const AlignedBlocks ids(blocks_of(extent.payload_bytes));
    if (!read_whole(file_.fd.get(), ids.span(), offset(segment, extent.block + 1))) return;
    if (xxh3_64(ids.data(), extent.payload_bytes) != extent.checksum) return;
    for (std::uint64_t at = 0; at + sizeof(RemovedId) <= extent.payload_bytes; at += sizeof(RemovedId)) {
      RemovedId id;
      std::memcpy(&id, ids.data() + at, sizeof id);
      (void)index_->erase_within({id.fingerprint, id.key, id.rect}, mine_);
    }
  }

  const DeviceFile& file_;
  const std::uint32_t first_;
  const SegmentRange mine_;  // other devices have records of their own, and an order of their own
  const std::uint32_t threads_max_;
  DiskIndex* const index_;
  Recovered out_;
};

}  // namespace

Recovered recover(const DeviceFile& file, std::uint32_t first_segment, std::uint32_t threads_max, DiskIndex* index) {
  return Recovery(file, first_segment, threads_max, index).run();
}

}  // namespace kvcommons::disk
