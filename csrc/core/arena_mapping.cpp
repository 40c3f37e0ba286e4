#include "arena_mapping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "memory.h"

namespace kvcommons {

std::shared_ptr<std::byte> map_arena(int fd, std::uint64_t bytes, std::string* why) {
  struct stat info{};
  if (::fstat(fd, &info) != 0 || bytes == 0 || static_cast<std::uint64_t>(info.st_size) < bytes) {
    *why = "the node's arena is smaller than it said";
    return nullptr;
  }
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    *why = "the node's arena is not sealed against shrinking";
    return nullptr;
  }
  std::byte* const address = map_shared(fd, 0, bytes, PROT_READ | PROT_WRITE);
  if (address == nullptr) {
    *why = std::string("the node's arena could not be mapped: ") + std::strerror(errno);
    return nullptr;
  }
  ::madvise(address, bytes, MADV_DONTFORK);
  return {address, [bytes](std::byte* start) { ::munmap(start, bytes); }};
}

}  // namespace kvcommons
