#include "tiers/disk_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace kvcommons::disk {
namespace {

constexpr const char* kFileName = "segments.kvc";
constexpr std::uint32_t kLockTickMs = 20;

[[noreturn]] void refuse(const std::string& field, const std::string& value, const std::string& remedy) {
  throw std::invalid_argument(field + " is " + value + ": " + remedy);
}

[[noreturn]] void refuse(const std::string& field, std::uint64_t value, const std::string& remedy) {
  refuse(field, std::to_string(value), remedy);
}

std::string field_of(std::size_t device, const char* name) { return "devices[" + std::to_string(device) + "]." + name; }

std::string text_of(int error) { return std::generic_category().message(error); }

std::string file_of(const std::string& field, const std::string& path) {
  struct stat st{};
  if (::stat(path.c_str(), &st) != 0) {
    refuse(field, path, "there is no such folder (" + text_of(errno) + "): mount or make it first");
  }
  if (!S_ISDIR(st.st_mode)) refuse(field, path, "it is no folder: give one on the device");
  return path + "/" + kFileName;
}

int open_with(const std::string& path, int flags, bool direct) {
  return ::open(path.c_str(), flags | O_CLOEXEC | (direct ? O_DIRECT : 0), 0600);
}

// One block written and read back through a file of its own beside the segments.
int probe(const std::string& path, bool direct) {
  const std::string name = path + ".probe";
  ::unlink(name.c_str());
  const UniqueFd fd(open_with(name, O_RDWR | O_CREAT | O_EXCL, direct));
  if (!fd) return errno;
  const AlignedBlocks blocks(2);
  std::memset(blocks.data(), 0xa5, kBlockBytes);
  std::memset(blocks.data() + kBlockBytes, 0, kBlockBytes);
  int error = 0;
  if (!write_whole(fd.get(), blocks.block(0), 0) || !read_whole(fd.get(), blocks.block(1), 0)) {
    error = errno;
  } else if (std::memcmp(blocks.data(), blocks.data() + kBlockBytes, kBlockBytes) != 0) {
    error = EIO;
  }
  ::unlink(name.c_str());
  return error;
}

[[noreturn]] void refuse_open(const std::string& field, const std::string& path, int error) {
  if (error == EACCES || error == EPERM || error == EROFS) {
    refuse(field, path, "no write access (" + text_of(error) + "): give this process a volume that it may write to");
  }
  if (error == ENOSPC || error == EDQUOT) refuse(field, path, "no space at all: free some or give another volume");
  refuse(field, path, "it cannot be opened for reading and writing: " + text_of(error));
}

// The process before may still be ending: its last writes hold the lock.
void lock(const DiskConfig& config, const std::string& field, const DeviceFile& file) {
  for (std::uint32_t waited_ms = 0; ::flock(file.fd.get(), LOCK_EX | LOCK_NB) != 0; waited_ms += kLockTickMs) {
    if (errno != EWOULDBLOCK) {
      refuse(field, file.path, "it cannot be locked (" + text_of(errno) + "): give a local file system");
    }
    if (waited_ms >= config.lock_wait_ms) {
      refuse(field, file.path, "another process has it: give each node a folder of its own");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(kLockTickMs));
  }
}

// EINVAL, from the open or from the probe, is how a file system says that it has no O_DIRECT.
void open_and_probe(const DiskConfig& config, const std::string& field, DeviceFile* file,
                    std::vector<std::string>* notes) {
  for (const bool direct : {true, false}) {
    int error = 0;
    file->direct = direct;
    file->fd.reset(open_with(file->path, O_RDWR | O_CREAT, direct));
    if (file->fd) {
      lock(config, field, *file);
      error = probe(file->path, direct);
    } else {
      error = errno;
    }
    if (error == 0) return;
    if (error != EINVAL && error != EOPNOTSUPP) refuse_open(field, file->path, error);
    if (!direct) break;
    if (!config.buffered) {
      refuse(field, file->path,
             "its file system has no O_DIRECT with 4 KiB blocks: give one that has (ext4, XFS), or allow buffered I/O");
    }
    notes->push_back(file->path + ": no O_DIRECT here; buffered, as allowed: it takes page cache and CPU time");
  }
  refuse(field, file->path, "its file system takes no aligned reads and writes");
}

void start_over(const std::string& field, const DeviceFile& file, const std::string& why,
                std::vector<std::string>* notes) {
  if (::ftruncate(file.fd.get(), 0) != 0) refuse(field, file.path, "it cannot be emptied: " + text_of(errno));
  notes->push_back(file.path + ": " + why + ": it starts empty");
}

// What was written by other rules is not read by ours: a cache starts empty rather than not at all.
void look_at_the_first(const std::string& field, const DeviceFile& file, std::vector<std::string>* notes) {
  const AlignedBlocks block(1);
  struct stat st{};
  if (::fstat(file.fd.get(), &st) != 0 || st.st_size == 0) return;
  if (st.st_size > static_cast<off_t>(file.bytes())) {
    return start_over(field, file, "made for a larger capacity_bytes", notes);
  }
  if (!read_whole(file.fd.get(), block.span(), 0)) return;  // recovery counts it
  SegmentLife found;
  switch (read_segment_header(block.block(), &found)) {
    case HeaderState::OtherVersion:
      return start_over(field, file, "of another format version than this node's " + std::to_string(kFormatVersion),
                        notes);
    case HeaderState::Ours:
      if (found.segment_bytes == file.segment_bytes) return;
      return start_over(field, file, "made with segment_bytes " + std::to_string(found.segment_bytes), notes);
    case HeaderState::Empty:
    case HeaderState::Damaged:
      return;
  }
}

void allocate(const DiskConfig& config, std::size_t device, DeviceFile* file, std::vector<std::string>* notes) {
  const std::string field = field_of(device, "capacity_bytes");
  struct stat st{};
  if (::fstat(file->fd.get(), &st) != 0 || !S_ISREG(st.st_mode)) {
    refuse(field_of(device, "path"), file->path, "it is no regular file: remove it");
  }
  const auto wanted = static_cast<off_t>(file->bytes());
  if (::fallocate(file->fd.get(), 0, 0, wanted) == 0) return;
  const int error = errno;
  if ((error == EOPNOTSUPP || error == ENOSYS) && config.buffered) {
    if (::ftruncate(file->fd.get(), wanted) != 0) refuse(field, file->bytes(), text_of(errno));
    notes->push_back(file->path + ": nothing can be preallocated here: the device may turn out to be full later");
    return;
  }
  if (::ftruncate(file->fd.get(), st.st_size) != 0 || st.st_size == 0) ::unlink(file->path.c_str());
  if (error == ENOSPC || error == EDQUOT) {
    refuse(field, file->bytes(), "there is no space for it at " + file->path + ": free some or give less");
  }
  if (error == EFBIG) refuse(field, file->bytes(), "a file may not be that long here: give less or lift the limit");
  if (error == EOPNOTSUPP || error == ENOSYS) {
    refuse(field_of(device, "path"), file->path,
           "its file system cannot preallocate: give one that can (ext4, XFS), or allow buffered I/O");
  }
  refuse(field, file->bytes(), "preallocation failed: " + text_of(error));
}

}  // namespace

bool read_whole(int fd, std::span<std::byte> into, std::uint64_t offset_bytes) noexcept {
  while (!into.empty()) {
    const ssize_t got = ::pread(fd, into.data(), into.size(), static_cast<off_t>(offset_bytes));
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) errno = EIO;
    if (got <= 0) return false;
    into = into.subspan(static_cast<std::size_t>(got));
    offset_bytes += static_cast<std::uint64_t>(got);
  }
  return true;
}

bool write_whole(int fd, std::span<const std::byte> from, std::uint64_t offset_bytes) noexcept {
  while (!from.empty()) {
    const ssize_t put = ::pwrite(fd, from.data(), from.size(), static_cast<off_t>(offset_bytes));
    if (put < 0 && errno == EINTR) continue;
    if (put == 0) errno = EIO;
    if (put <= 0) return false;
    from = from.subspan(static_cast<std::size_t>(put));
    offset_bytes += static_cast<std::uint64_t>(put);
  }
  return true;
}

void check_config(const DiskConfig& c) {
  if (c.devices.empty() || c.devices.size() > kDevicesMax) {
    refuse("devices", c.devices.size(), "give between 1 and " + std::to_string(kDevicesMax) + " devices");
  }
  if (c.segment_bytes < kSegmentBytesMin || c.segment_bytes > kSegmentBytesMax || c.segment_bytes % kBlockBytes != 0) {
    refuse("segment_bytes", c.segment_bytes,
           "give a multiple of " + std::to_string(kBlockBytes) + " between " + std::to_string(kSegmentBytesMin) +
               " and " + std::to_string(kSegmentBytesMax));
  }
  for (std::size_t i = 0; i < c.devices.size(); ++i) {
    const std::uint64_t segments = c.devices[i].capacity_bytes / c.segment_bytes;
    const std::string field = field_of(i, "capacity_bytes");
    if (segments < kSegmentsMin) {
      refuse(field, c.devices[i].capacity_bytes,
             "give at least " + std::to_string(kSegmentsMin * c.segment_bytes) + " (" + std::to_string(kSegmentsMin) +
                 " segments), or a smaller segment_bytes");
    }
    if (segments > kSegmentsMax) refuse(field, c.devices[i].capacity_bytes, "give a larger segment_bytes or less");
    if (c.devices[i].path.empty()) refuse(field_of(i, "path"), "empty", "give a folder on the device");
  }
  if (c.threads_per_device == 0 || c.threads_per_device > 256) {
    refuse("threads_per_device", c.threads_per_device, "give between 1 and 256");
  }
  if (c.ring_depth == 0 || c.ring_depth > 1024) refuse("ring_depth", c.ring_depth, "give between 1 and 1024");
  if (c.queue_bytes_max == 0) refuse("queue_bytes_max", 0, "give at least the bytes of one shard");
  if (c.op_deadline_ms == 0) refuse("op_deadline_ms", 0, "give at least 1");
  if (!(c.reinsert_share >= 0.0 && c.reinsert_share <= 0.5)) {
    refuse("reinsert_share", std::to_string(c.reinsert_share), "give between 0 and 0.5, so that room is always made");
  }
  if (c.recovery_threads_max == 0 || c.recovery_threads_max > 64) {
    refuse("recovery_threads_max", c.recovery_threads_max, "give between 1 and 64");
  }
}

DeviceFile open_device_file(const DiskConfig& config, std::size_t device, std::vector<std::string>* notes) {
  const DiskDevice& wanted = config.devices[device];
  DeviceFile file;
  const std::string field = field_of(device, "path");
  file.path = file_of(field, wanted.path);
  file.segment_bytes = config.segment_bytes;
  file.segments = static_cast<std::uint32_t>(wanted.capacity_bytes / config.segment_bytes);
  open_and_probe(config, field, &file, notes);
  look_at_the_first(field, file, notes);
  allocate(config, device, &file, notes);
  return file;
}

}  // namespace kvcommons::disk
