#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <fstream>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <system_error>
#include <thread>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; the C library's headers may be older than the kernel
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1
#endif

namespace kvcommons {
namespace {

constexpr std::uint64_t kPieceBytes = 64ull << 20;
constexpr std::uint64_t kHugePageBytes = 2ull << 20;
constexpr unsigned kPopulateThreadsMax = 8;
constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();

std::uint64_t meminfo_bytes(const std::string& field) {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    std::uint64_t kib = 0;
    if (words >> name >> kib && name == field + ":") return kib << 10;
  }
  return 0;
}

std::uint64_t limit_in(const std::string& path) {
  std::ifstream file(path);
  std::uint64_t bytes = 0;
  return file >> bytes && bytes > 0 ? bytes : kNoLimit;  // "max" is no number
}

// Takes the limits of `path` and of every cgroup above it. A container sees its own cgroup as the root.
void take_cgroup_limits(std::string root, std::string path, const char* file, MemoryRoom* room) {
  constexpr int kDepthMax = 64;
  for (int depth = 0; depth < kDepthMax; ++depth) {
    const std::string name = root + path + "/" + file;
    if (const std::uint64_t bytes = limit_in(name); bytes < room->limit_bytes) {
      room->limit_bytes = bytes;
      room->limited_by = name;
    }
    const auto slash = path.rfind('/');
    if (slash == std::string::npos) return;
    path.resize(slash);
  }
}

void take_cgroups(MemoryRoom* room) {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    if (controllers.empty()) take_cgroup_limits("/sys/fs/cgroup", path, "memory.max", room);
    if (controllers == "memory") take_cgroup_limits("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes", room);
  }
  take_cgroup_limits("/sys/fs/cgroup", "", "memory.max", room);
  take_cgroup_limits("/sys/fs/cgroup/memory", "", "memory.limit_in_bytes", room);
}

std::string mib(std::uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

// Makes transparent huge pages of what nobody has written yet, whatever shmem_enabled says. False where 2 MiB in a row
// are not to be had, and before Linux 6.1.
bool make_huge(std::byte* address, std::uint64_t bytes) {
  const std::uint64_t whole = bytes / kHugePageBytes * kHugePageBytes;
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  for (std::uint64_t at = 0; at < whole; at += kHugePageBytes) {
    // Of a range without any page the kernel makes nothing.
    if (::madvise(address + at, page, MADV_POPULATE_WRITE) != 0) return false;
  }
  return whole == 0 || ::madvise(address, whole, MADV_COLLAPSE) == 0;
}

// Touches one piece; the error number, or 0. `*huge`: whether huge pages are still asked for; looking for memory in a
// row takes time, so the first refusal ends it for the whole arena, and ordinary pages do.
int populate_piece(int fd, std::uint64_t offset, std::uint64_t bytes, std::atomic<bool>* huge) {
  std::byte* address = map_shared(fd, offset, bytes, PROT_READ | PROT_WRITE);
  if (address == nullptr) return errno;
  if (huge->load() && !make_huge(address, bytes)) huge->store(false);
  int error = ::madvise(address, bytes, MADV_POPULATE_WRITE) == 0 ? 0 : errno;
  ::munmap(address, bytes);
  // Before Linux 5.14: the file system allocates the pages instead.
  if (error == EINVAL) error = ::posix_fallocate(fd, static_cast<off_t>(offset), static_cast<off_t>(bytes));
  return error;
}

void populate(int fd, std::uint64_t bytes) {
  const std::uint64_t pieces = (bytes + kPieceBytes - 1) / kPieceBytes;
  std::atomic<std::uint64_t> next{0};
  std::atomic<int> error{0};
  std::atomic<bool> huge{true};
  const auto work = [&] {
    for (std::uint64_t i = next++; i < pieces && error.load() == 0; i = next++) {
      const std::uint64_t offset = i * kPieceBytes;
      if (const int failed = populate_piece(fd, offset, std::min(kPieceBytes, bytes - offset), &huge); failed != 0) {
        error.store(failed);
      }
    }
  };
  const unsigned processors = std::clamp(std::thread::hardware_concurrency(), 1u, kPopulateThreadsMax);
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < std::min<std::uint64_t>(processors, pieces); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (error.load() != 0) {
    throw std::system_error(error.load(), std::generic_category(),
                            "the arena's " + mib(bytes) + " could not be populated: set a smaller arena_bytes");
  }
}

UniqueFd open_memfd(const char* name, std::uint64_t* bytes, bool huge_pages, std::vector<std::string>* notes) {
  if (huge_pages) {
    const std::uint64_t rounded = (*bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
    UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB));
    if (fd && meminfo_bytes("Hugepagesize") == kHugePageBytes &&
        meminfo_bytes("HugePages_Free") / 1024 * kHugePageBytes >= rounded &&  // a count, though read as KiB
        ::ftruncate(fd.get(), static_cast<off_t>(rounded)) == 0) {
      *bytes = rounded;
      return fd;
    }
    notes->push_back("no " + mib(rounded) + " of 2 MiB huge pages are free (vm.nr_hugepages): using ordinary pages");
  }
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) throw_errno("memfd_create");
  if (::ftruncate(fd.get(), static_cast<off_t>(*bytes)) != 0) throw_errno("size of " + mib(*bytes) + " for a memfd");
  return fd;
}

}  // namespace

MemoryRoom memory_room() {
  MemoryRoom room{meminfo_bytes("MemTotal"), meminfo_bytes("MemAvailable"), "the machine's memory"};
  if (room.limit_bytes == 0) room.limit_bytes = kNoLimit;
  if (room.available_bytes == 0) room.available_bytes = kNoLimit;
  take_cgroups(&room);
  return room;
}

void check_capacity(std::uint64_t bytes, const MemoryRoom& room) {
  // What the daemon itself needs, so small that a limit of the arena and 10 % passes for any arena worth having.
  const std::uint64_t own_bytes = std::min<std::uint64_t>(64ull << 20, room.limit_bytes / 16);
  const auto refuse = [&](std::uint64_t have, const std::string& what) {
    throw std::invalid_argument("arena_bytes of " + mib(bytes) + " does not fit: " + what + " is " + mib(have) +
                                " and the node itself needs " + mib(own_bytes) + "; set at most " +
                                mib(have > own_bytes ? have - own_bytes : 0));
  };
  if (bytes > room.limit_bytes || room.limit_bytes - bytes < own_bytes) refuse(room.limit_bytes, room.limited_by);
  if (bytes > room.available_bytes || room.available_bytes - bytes < own_bytes) {
    refuse(room.available_bytes, "the memory that is available now");
  }
}

UniqueFd make_memfd(const char* name, std::uint64_t bytes, const MemfdOptions& options,
                    std::vector<std::string>* notes) {
  UniqueFd fd = open_memfd(name, &bytes, options.huge_pages, notes);
  if (options.populate) populate(fd.get(), bytes);
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) throw_errno("seals of a memfd");
  return fd;
}

void populate_memfd(int fd, std::uint64_t bytes) { populate(fd, bytes); }

std::byte* map_shared(int fd, std::uint64_t offset, std::uint64_t bytes, int protection) {
  // A range with room for the border, into which the file is put; what is left on both sides goes back.
  const std::uint64_t room = bytes + kHugePageBytes;
  void* reserved = ::mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return nullptr;
  auto* const start = static_cast<std::byte*>(reserved);
  const auto round_up = [](std::uint64_t value, std::uint64_t unit) { return (value + unit - 1) / unit * unit; };
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t head =
      round_up(reinterpret_cast<std::uintptr_t>(start), kHugePageBytes) - reinterpret_cast<std::uintptr_t>(start);
  void* const at = ::mmap(start + head, bytes, protection, MAP_SHARED | MAP_FIXED, fd, static_cast<off_t>(offset));
  if (at == MAP_FAILED) {
    const int error = errno;
    ::munmap(start, room);
    errno = error;
    return nullptr;
  }
  if (head != 0) ::munmap(start, head);
  // hugetlbfs maps whole pages of its own and lets none of them be cut.
  for (const std::uint64_t unit : {page, kHugePageBytes}) {
    const std::uint64_t end = head + round_up(bytes, unit);
    if (end >= room || ::munmap(start + end, room - end) == 0) break;
  }
  return static_cast<std::byte*>(at);
}

std::uint64_t file_bytes(int fd) {
  struct stat info{};
  return ::fstat(fd, &info) == 0 && info.st_size > 0 ? static_cast<std::uint64_t>(info.st_size) : 0;
}

std::uint64_t allocated_bytes(int fd) {
  constexpr std::uint64_t kBlockBytes = 512;
  struct stat info{};
  return ::fstat(fd, &info) == 0 ? static_cast<std::uint64_t>(info.st_blocks) * kBlockBytes : 0;
}

}  // namespace kvcommons
