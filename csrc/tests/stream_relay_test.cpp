// The middle of a stream: size lines are followed wherever a piece begins, what is not plain is left alone, and no byte
// is lost between a socket that is full and the one who goes on.
#include "core/stream_relay.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <string_view>

#include "check.h"

namespace {

using kvcommons::pass_over_chunks;
using kvcommons::StreamRelay;

constexpr std::string_view kBody = "5\r\nhello\r\n1\r\n \r\n00a\r\n0123456789\r\n";

struct Pair {
  Pair() { CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends.data()), 0); }
  ~Pair() {
    for (const int fd : ends) close(fd);
  }
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;

  std::string received() const {
    std::string all;
    std::array<char, 65536> part;
    for (ssize_t got; (got = recv(ends[1], part.data(), part.size(), 0)) > 0;) {
      all.append(part.data(), static_cast<std::size_t>(got));
    }
    return all;
  }

  std::array<int, 2> ends{};
};

TEST(a_body_is_followed_wherever_a_piece_ends_in_a_chunk) {
  for (std::size_t cut = 0; cut <= kBody.size(); ++cut) {
    // A heap copy of just this size, so that a sanitizer sees one byte too many.
    const auto piece = std::make_unique<char[]>(cut + 1);
    kBody.copy(piece.get(), cut);
    const auto still = pass_over_chunks({piece.get(), cut}, 0);
    const bool in_size_line = (cut > 0 && cut < 3) || (cut > 10 && cut < 13) || (cut > 16 && cut < 21);
    CHECK_EQ(still.has_value(), !in_size_line);
    if (!still) continue;
    const auto rest = pass_over_chunks(kBody.substr(cut), *still);
    CHECK(rest.has_value());
    CHECK_EQ(*rest, std::uint64_t{0});
  }
}

TEST(what_is_not_plain_is_left_alone) {
  for (const std::string_view piece :
       {"0\r\n\r\n", "5;a=b\r\nhello\r\n", "g\r\n", "\r\n", "5\nhello\r\n", "-5\r\nhello\r\n", "5 \r\nhello\r\n", "5",
        "5\r", "1234567890abc\r\nx", "5\r\nhello\r\n0\r\n\r\n", "000000000000\r\n"}) {
    CHECK(!pass_over_chunks(piece, 0).has_value());
  }
  CHECK_EQ(pass_over_chunks("123456789abc\r\nx", 0).value(), std::uint64_t{0x123456789abc} + 1);
}

TEST(a_piece_goes_to_the_socket_and_is_accounted_for) {
  const Pair pair;
  StreamRelay relay;
  relay.begin();
  CHECK_EQ(relay.pass_on(kBody), StreamRelay::kNotPlain);  // it has no aim
  CHECK(relay.aim(pair.ends[0], 0));
  CHECK_EQ(relay.pass_on(kBody), static_cast<std::int64_t>(kBody.size()));
  CHECK_EQ(relay.pass_on("8\r\nhalf"), std::int64_t{7});
  CHECK_EQ(relay.left(), std::uint64_t{6});
  CHECK_EQ(relay.pass_on("half\r\n0\r\n\r\n"), StreamRelay::kNotPlain);
  CHECK_EQ(relay.left(), std::uint64_t{6});
  CHECK_EQ(pair.received(), std::string(kBody) + "8\r\nhalf");
  CHECK_EQ(relay.relayed(), std::uint64_t{kBody.size() + 7});
  CHECK_EQ(relay.pieces(), std::uint64_t{2});
}

TEST(a_socket_that_is_full_or_broken_takes_what_it_can) {
  Pair pair;
  StreamRelay relay;
  relay.begin();
  CHECK(relay.aim(pair.ends[0], std::uint64_t{1} << 40));
  const std::string piece(1 << 20, 'x');
  const std::int64_t first = relay.pass_on(piece);
  CHECK(first > 0 && first < std::int64_t{1 << 20});
  CHECK_EQ(relay.pass_on(piece), std::int64_t{0});
  CHECK_EQ(pair.received().size(), static_cast<std::size_t>(first));
  CHECK_EQ(relay.relayed(), std::uint64_t{2 << 20});  // the caller sends what was not taken
  shutdown(pair.ends[1], SHUT_RDWR);
  CHECK_EQ(relay.pass_on("x"), std::int64_t{0});
}

TEST(the_tail_is_the_end_of_all_pieces) {
  std::string all;
  StreamRelay relay;
  relay.begin();
  for (int i = 0; i < 400; ++i) {
    const std::string piece(static_cast<std::size_t>((i * i * 37) % 2900), static_cast<char>('a' + i % 26));
    relay.note(piece);
    all += piece;
    const auto tail = relay.tail();
    const std::size_t kept = std::min(all.size(), tail.size());
    CHECK(tail.size() >= std::min(all.size(), StreamRelay::kTailBytes));
    CHECK_EQ(tail, std::string_view(all).substr(all.size() - kept));
  }
  relay.begin();
  CHECK(relay.tail().empty());
}

}  // namespace

TEST_MAIN()
