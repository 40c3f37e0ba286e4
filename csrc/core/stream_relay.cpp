#include "core/stream_relay.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>

namespace kvcommons {
namespace {

constexpr std::size_t kSizeDigitsMax = 12;
constexpr std::uint64_t kCrlfBytes = 2;

int hex_digit(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Reads "HEX\r\n" and drops it from the piece; 0 if it is not one, or the last one.
std::uint64_t take_size_line(std::string_view& piece) noexcept {
  std::uint64_t size = 0;
  std::size_t at = 0;
  for (; at < piece.size() && at < kSizeDigitsMax; ++at) {
    const int digit = hex_digit(piece[at]);
    if (digit < 0) break;
    size = size * 16 + static_cast<std::uint64_t>(digit);
  }
  if (piece.size() - at < kCrlfBytes || piece[at] != '\r' || piece[at + 1] != '\n') return 0;
  piece.remove_prefix(at + kCrlfBytes);
  return size;
}

}  // namespace

std::optional<std::uint64_t> pass_over_chunks(std::string_view piece, std::uint64_t left) noexcept {
  for (;;) {
    const auto take = std::min<std::uint64_t>(left, piece.size());
    piece.remove_prefix(static_cast<std::size_t>(take));
    left -= take;
    if (piece.empty()) return left;
    const std::uint64_t size = take_size_line(piece);
    if (size == 0) return std::nullopt;
    left = size + kCrlfBytes;
  }
}

void StreamRelay::begin() noexcept {
  fd_ = -1;
  left_ = relayed_ = pieces_ = 0;
  filled_ = 0;
}

bool StreamRelay::aim(int fd, std::uint64_t left) noexcept {
  fd_ = fd;
  left_ = left;
  return fd >= 0;
}

std::int64_t StreamRelay::pass_on(std::string_view piece) noexcept {
  if (fd_ < 0) return kNotPlain;
  const auto left = pass_over_chunks(piece, left_);
  if (!left) return kNotPlain;
  left_ = *left;
  note(piece);
  // Whatever is wrong with the socket, who else writes to it will find out and say.
  return std::max<std::int64_t>(0, send(fd_, piece.data(), piece.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
}

void StreamRelay::note(std::string_view piece) noexcept {
  relayed_ += piece.size();
  ++pieces_;
  if (piece.size() >= kTailBytes) {
    piece.remove_prefix(piece.size() - kTailBytes);
    filled_ = 0;
  } else if (filled_ + piece.size() > tail_.size()) {
    std::memmove(tail_.data(), tail_.data() + filled_ - kTailBytes, kTailBytes);
    filled_ = kTailBytes;
  }
  std::memcpy(tail_.data() + filled_, piece.data(), piece.size());
  filled_ += piece.size();
}

std::string_view StreamRelay::tail() const noexcept {
  const std::size_t kept = std::min(filled_, kTailBytes);
  return {tail_.data() + filled_ - kept, kept};
}

}  // namespace kvcommons
