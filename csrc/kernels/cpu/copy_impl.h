// Inside of copy*.cpp: what the instruction-set units share. No inline code here: a function that the linker may pick
// from a unit built for newer processors would run on older ones.
#pragma once

#include <cstddef>

#include "copy.h"

namespace kvcommons::kernels::detail {

using StreamFn = void (*)(const CopyRun* runs, std::size_t count);

inline constexpr std::size_t kPrefetchBytes =
    2048;  // how far ahead the source is fetched, into the next run if need be

// Each copies its runs past the caches, short ones through them, and fences.
void stream_base(const CopyRun* runs, std::size_t count);
#if defined(__x86_64__)
void stream_avx2(const CopyRun* runs, std::size_t count);
void stream_avx512(const CopyRun* runs, std::size_t count);
#endif

}  // namespace kvcommons::kernels::detail
