// A tile of rows quantised by one warp, and the way back. Every codec's order of bytes is that of kernels/cpu/quant.h.
#pragma once

#include "kernels/gpu/jobs.h"
#include "kernels/gpu/warp.h"

namespace kvcommons::gpu {

template <typename E>
struct Tile {
  const QuantJob& job;
  std::uint32_t first;
  std::byte* params;
  std::uint8_t* codes;
  KVC_BOTH_MEMBER Tile(const QuantJob& of, std::uint32_t tile)
      : job(of),
        first(tile * of.count),
        params(of.params + tile * params_bytes(of)),
        codes(of.codes + tile * codes_bytes(of)) {}
  KVC_BOTH_MEMBER std::byte* row(std::uint32_t number) const { return row_at(job.grid, first + number); }
  KVC_BOTH_MEMBER float at(std::uint32_t number, std::uint32_t channel) const { return in(row(number), channel); }
  KVC_BOTH_MEMBER static float in(const std::byte* row, std::uint32_t channel) {
    return E::load(row + channel * E::kBytes);
  }
};

namespace detail {
using namespace kernels;  // NOLINT: the elements' arithmetic

struct Larger {
  KVC_BOTH_MEMBER std::uint32_t operator()(std::uint32_t a, std::uint32_t b) const { return larger(a, b); }
};
struct Lower {
  KVC_BOTH_MEMBER float operator()(float a, float b) const { return b < a ? b : a; }
};
struct Higher {
  KVC_BOTH_MEMBER float operator()(float a, float b) const { return b > a ? b : a; }
};

template <typename Warp, typename T>
using Lanes = typename Warp::template Lanes<T>;

// The largest |x| of rows [row, row + rows), known to every lane.
template <typename Warp, typename E>
KVC_BOTH_MEMBER std::uint32_t largest(const Warp& warp, const Tile<E>& tile, std::uint32_t row, std::uint32_t rows) {
  Lanes<Warp, std::uint32_t> most;
  warp.each([&](unsigned lane) {
    most[lane] = 0;
    for (std::uint32_t r = row; r < row + rows; ++r) {
      const std::byte* const from = tile.row(r);
      for (std::uint32_t c = lane; c < tile.job.width; c += kLanes) {
        most[lane] = larger(most[lane], magnitude(tile.in(from, c)));
      }
    }
  });
  warp.reduce(&most, Larger{});
  return warp.any(&most);
}

template <typename Warp, typename E>
KVC_BOTH_MEMBER std::uint32_t e4m3_tile(const Warp& warp, const Tile<E>& tile) {
  const std::uint32_t most = largest(warp, tile, 0, tile.job.count);
  const float scale = most < kHugeBits ? scale_of(most, kE4m3Max) : 0.0F, inverse = inverse_scale(scale);
  warp.each([&](unsigned lane) {
    if (lane == 0) write(tile.params, scale);
    for (std::uint32_t r = 0; r < tile.job.count; ++r) {
      const std::byte* const from = tile.row(r);
      for (std::uint32_t c = lane; c < tile.job.width; c += kLanes) {
        tile.codes[r * tile.job.width + c] = e4m3_of(tile.in(from, c) * inverse);
      }
    }
  });
  return most;
}

template <typename Warp, typename E>
KVC_BOTH_MEMBER std::uint32_t int8_rows_tile(const Warp& warp, const Tile<E>& tile) {
  std::uint32_t most = 0;
  for (std::uint32_t r = 0; r < tile.job.count; ++r) {
    const std::uint32_t bits = largest(warp, tile, r, 1);
    most = larger(most, bits);
    const std::uint16_t scale = int8_scale(bits);
    const float inverse = inverse_scale(of_bf16(scale));
    const std::byte* const from = tile.row(r);
    warp.each([&](unsigned lane) {
      if (lane == 0) write(tile.params + 2 * r, scale);
      for (std::uint32_t c = lane; c < tile.job.width; c += kLanes) {
        tile.codes[r * tile.job.width + c] = int8_of(tile.in(from, c) * inverse);
      }
    });
  }
  return most;
}

// A lane has whole channels: nothing to find together but the largest of all.
template <typename Warp, typename E>
KVC_BOTH_MEMBER std::uint32_t int8_channels_tile(const Warp& warp, const Tile<E>& tile) {
  Lanes<Warp, std::uint32_t> most;
  warp.each([&](unsigned lane) {
    most[lane] = 0;
    for (std::uint32_t c = lane; c < tile.job.width; c += kLanes) {
      std::uint32_t bits = 0;
      for (std::uint32_t r = 0; r < tile.job.count; ++r) bits = larger(bits, magnitude(tile.at(r, c)));
      most[lane] = larger(most[lane], bits);
      const std::uint16_t scale = int8_scale(bits);
      const float inverse = inverse_scale(of_bf16(scale));
      write(tile.params + 2 * c, scale);
      for (std::uint32_t r = 0; r < tile.job.count; ++r) {
        tile.codes[r * tile.job.width + c] = int8_of(tile.at(r, c) * inverse);
      }
    }
  });
  warp.reduce(&most, Larger{});
  return warp.any(&most);
}

template <typename Warp, typename E>
KVC_BOTH_MEMBER std::uint32_t int4_channels_tile(const Warp& warp, const Tile<E>& tile) {
  Lanes<Warp, std::uint32_t> most;
  const std::uint32_t width = tile.job.width, count = tile.job.count;
  warp.each([&](unsigned lane) {
    most[lane] = 0;
    for (std::uint32_t c = lane; c < width; c += kLanes) {
      float low = tile.at(0, c), high = low;
      for (std::uint32_t r = 0; r < count; ++r) {
        const float x = tile.at(r, c);
        most[lane] = larger(most[lane], magnitude(x));
        low = x < low ? x : low;
        high = x > high ? x : high;
      }
      const Range4 range = range4(low, high);
      write(tile.params + 2 * c, range.low);
      write(tile.params + 2 * (width + c), range.scale);
      const float base = of_bf16(range.low), inverse = inverse_scale(of_bf16(range.scale));
      for (std::uint32_t r = 0; r < count; r += 2) {
        const unsigned first = code4(tile.at(r, c), base, inverse);
        const unsigned second = r + 1 < count ? code4(tile.at(r + 1, c), base, inverse) : 0u;
        tile.codes[r / 2 * width + c] = static_cast<std::uint8_t>(first | second << 4);
      }
    }
  });
  warp.reduce(&most, Larger{});
  return warp.any(&most);
}

// One group of one row. Returns the largest |x| of it.
template <typename Warp, typename E>
KVC_BOTH_MEMBER std::uint32_t int4_group(const Warp& warp, const Tile<E>& tile, std::uint32_t row, std::uint32_t g) {
  const std::uint32_t begin = g * tile.job.group, left = tile.job.width - begin;
  const std::uint32_t size = tile.job.group < left ? tile.job.group : left, half = size / 2;
  const std::byte* const from = tile.row(row);
  Lanes<Warp, std::uint32_t> most;
  Lanes<Warp, float> low, high;
  warp.each([&](unsigned lane) {
    most[lane] = 0;
    low[lane] = high[lane] = tile.in(from, begin);
    for (std::uint32_t c = begin + lane; c < begin + size; c += kLanes) {
      const float x = tile.in(from, c);
      most[lane] = larger(most[lane], magnitude(x));
      low[lane] = x < low[lane] ? x : low[lane];
      high[lane] = x > high[lane] ? x : high[lane];
    }
  });
  warp.reduce(&most, Larger{});
  warp.reduce(&low, Lower{});
  warp.reduce(&high, Higher{});
  const Range4 range = range4(warp.any(&low), warp.any(&high));
  const float base = of_bf16(range.low), inverse = inverse_scale(of_bf16(range.scale));
  const std::uint32_t groups = groups_of(tile.job);
  std::byte* const params = tile.params + 4 * groups * row;
  std::uint8_t* const codes = tile.codes + row * tile.job.width / 2 + begin / 2;
  warp.each([&](unsigned lane) {
    if (lane == 0) {
      write(params + 2 * g, range.low);
      write(params + 2 * (groups + g), range.scale);
    }
    for (std::uint32_t k = lane; k < half; k += kLanes) {
      const unsigned first = code4(tile.in(from, begin + k), base, inverse);
      const unsigned second = code4(tile.in(from, begin + half + k), base, inverse);
      codes[k] = static_cast<std::uint8_t>(first | second << 4);
    }
  });
  return warp.any(&most);
}

template <typename Warp, typename E>
KVC_BOTH_MEMBER std::uint32_t int4_rows_tile(const Warp& warp, const Tile<E>& tile) {
  std::uint32_t most = 0;
  for (std::uint32_t r = 0; r < tile.job.count; ++r) {
    for (std::uint32_t g = 0; g < groups_of(tile.job); ++g) most = larger(most, int4_group(warp, tile, r, g));
  }
  return most;
}

template <typename E>
KVC_BOTH_MEMBER float decoded(const Tile<E>& tile, std::uint32_t row, std::uint32_t c) {
  const std::uint32_t width = tile.job.width, at = row * width + c;
  const auto bf16 = [&](std::uint32_t index) { return of_bf16(read<std::uint16_t>(tile.params + 2 * index)); };
  switch (tile.job.codec) {
    case Codec::E4m3:
      return of_e4m3(tile.codes[at]) * read<float>(tile.params);
    case Codec::Int8Rows:
      return of_int8(tile.codes[at]) * bf16(row);
    case Codec::Int8Channels:
      return of_int8(tile.codes[at]) * bf16(c);
    case Codec::Int4Channels:
      return of_code4((tile.codes[row / 2 * width + c] >> (row % 2 * 4)) & 15u, bf16(c), bf16(width + c));
    default: {
      const std::uint32_t groups = groups_of(tile.job), g = c / tile.job.group, begin = g * tile.job.group;
      const std::uint32_t left = width - begin, size = tile.job.group < left ? tile.job.group : left, half = size / 2;
      const std::uint32_t k = c - begin, pair = k < half ? k : k - half, first = 2 * groups * row + g;
      const unsigned both = tile.codes[row * width / 2 + begin / 2 + pair];
      return of_code4(k < half ? both & 15u : both >> 4, bf16(first), bf16(first + groups));
    }
  }
}

template <typename E, typename Warp>
KVC_BOTH_MEMBER void quantise_tile(const Warp& warp, const QuantJob& job, std::uint32_t number) {
  const Tile<E> tile(job, number);
  std::uint32_t most = 0;
  switch (job.codec) {
    case Codec::E4m3:
      most = e4m3_tile(warp, tile);
      break;
    case Codec::Int8Rows:
      most = int8_rows_tile(warp, tile);
      break;
    case Codec::Int8Channels:
      most = int8_channels_tile(warp, tile);
      break;
    case Codec::Int4Rows:
      most = int4_rows_tile(warp, tile);
      break;
    case Codec::Int4Channels:
      most = int4_channels_tile(warp, tile);
      break;
  }
  warp.each([&](unsigned lane) {
    if (lane == 0) job.most[number] = most;
  });
}

template <typename E, typename Warp>
KVC_BOTH_MEMBER void dequantise_tile(const Warp& warp, const QuantJob& job, std::uint32_t number) {
  const Tile<E> tile(job, number);
  warp.each([&](unsigned lane) {
    for (std::uint32_t r = 0; r < job.count; ++r) {
      std::byte* const into = tile.row(r);
      for (std::uint32_t c = lane; c < job.width; c += kLanes) E::store(into + c * E::kBytes, decoded(tile, r, c));
    }
  });
}

}  // namespace detail

}  // namespace kvcommons::gpu
