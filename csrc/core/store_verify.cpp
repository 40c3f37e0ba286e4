// Checksums of what is read from memory: a sample, bounded for each begin().
#include "store_impl.h"
#include "xxh3.h"

namespace kvcommons {

using internal::LeasedSlot;

bool Store::Impl::sampled() {
  if (config_.verify_one_in <= 1) {
    return config_.verify_one_in == 1;
  }
  // Spread, not every n-th: a fixed step would look at the same chunk of equally long prompts for ever.
  std::uint64_t x = sample_.fetch_add(0x9e37'79b9'7f4a'7c15ULL, std::memory_order_relaxed);
  x = (x ^ (x >> 30)) * 0xbf58'476d'1ce4'e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d0'49bb'1331'11ebULL;
  return (x ^ (x >> 31)) % config_.verify_one_in == 0;
}

// No lock is held: the readers keep the slots as they are. Begins at another chunk each time, so that the ends of long
// leases are looked at as often as their beginnings.
std::optional<Key> Store::Impl::find_corrupt(const Lease& lease, std::size_t part) {
  const std::size_t parts = lease.parts.size();
  const bool all = config_.verify_one_in == 1;
  const std::uint64_t first = sample_.load(std::memory_order_relaxed) >> 32;
  std::uint64_t checked_bytes = 0;
  for (std::uint32_t i = 0; i < lease.chunks; ++i) {
    const LeasedSlot& leased = lease.slots[(first + i) % lease.chunks * parts + part];
    const SlotRecord& record = records_.slot(leased.slot);
    if (record.checksum == 0 || !sampled()) {
      continue;
    }
    if (!all && checked_bytes != 0 && checked_bytes + record.payload_bytes > config_.verify_bytes_max) {
      break;
    }
    checked_bytes += record.payload_bytes;
    if (xxh3_64(arena_ + leased.offset_bytes(), record.payload_bytes) != record.checksum) {
      return record.get_key();
    }
  }
  return std::nullopt;
}

}  // namespace kvcommons
