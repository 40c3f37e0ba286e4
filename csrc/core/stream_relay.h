// The middle of a streamed answer: what was read from an engine goes to the client's socket as it is. Only pieces of
// the plain kind are taken; the reference, and what is done with every other piece, is kvcommons_router/response.py.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace kvcommons {

// Of a piece of a chunked body that begins `left` bytes before the end of a chunk (its CRLF included; 0: at a size
// line): the same of what comes after the piece. Nothing where a size line is not whole, has extensions or is the last
// one.
[[nodiscard]] std::optional<std::uint64_t> pass_over_chunks(std::string_view piece, std::uint64_t left) noexcept;

class StreamRelay {
 public:
  static constexpr std::size_t kTailBytes = 2048;
  static constexpr std::int64_t kNotPlain = -1;

  // A new answer; until `aim` nothing is sent.
  void begin() noexcept;
  // From here on pieces go to this socket; it is the caller's to know that it is open and that nothing waits before it.
  // False if it is none.
  bool aim(int fd, std::uint64_t left) noexcept;
  // How many bytes of the piece the socket took, 0 if it takes none now or has failed; the rest is the caller's to
  // send. kNotPlain: nothing was done.
  std::int64_t pass_on(std::string_view piece) noexcept;
  // Takes account of a piece that was sent by other means.
  void note(std::string_view piece) noexcept;

  [[nodiscard]] std::uint64_t left() const noexcept { return left_; }
  [[nodiscard]] std::uint64_t relayed() const noexcept { return relayed_; }
  [[nodiscard]] std::uint64_t pieces() const noexcept { return pieces_; }
  // The last bytes of all that was relayed.
  [[nodiscard]] std::string_view tail() const noexcept;

 private:
  int fd_ = -1;
  std::uint64_t left_ = 0;
  std::uint64_t relayed_ = 0;
  std::uint64_t pieces_ = 0;
  std::size_t filled_ = 0;
  std::array<char, 2 * kTailBytes> tail_{};  // moved to its front when full
};

}  // namespace kvcommons
