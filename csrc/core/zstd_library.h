// The machine's own libzstd.so.1, opened when it is first needed. Debian and Ubuntu always have it (dpkg needs it), so
// neither headers nor an archive of its sources are asked for; where it is missing the lossless codec says so.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>

namespace kvcommons {

// nullptr: here, and new enough (1.4). Otherwise why not, for a person.
[[nodiscard]] const char* zstd_missing() noexcept;
[[nodiscard]] unsigned zstd_version() noexcept;  // 10505 for 1.5.5; 0 where it is missing

// One frame. nullopt: it does not fit `out`, or the library is missing or out of memory. Contexts are kept per thread.
std::optional<std::size_t> zstd_compress(std::span<const std::byte> data, std::span<std::byte> out, int level);
// True: `frame` is one proper frame of exactly out.size() bytes. Never writes outside `out`.
bool zstd_decompress(std::span<const std::byte> frame, std::span<std::byte> out);

}  // namespace kvcommons
