// Codecs of whole slots: every order, element and codec; what is refused and why; hostile payloads.
#include "core/kv_codec.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/xxh3.h"
#include "core/zstd_library.h"

namespace kvcommons::kvcodec {
namespace {

constexpr CodecSpec kLossy[] = {{CodecId::Fp8E4m3, 0}, {CodecId::Int8, 0}, {CodecId::Int4, 32}, {CodecId::K16V8, 0}};
constexpr CodecSpec kAll[] = {
    {CodecId::Fp8E4m3, 0}, {CodecId::Int8, 0}, {CodecId::Int4, 32}, {CodecId::K16V8, 0}, {CodecId::Lossless, 0}};
constexpr Element kElements[] = {Element::F32, Element::F16, Element::Bf16};
constexpr const char* kOrders[] = {"PHN", "PNH", "HPN", "HNP", "NPH", "NHP"};

KvShape small_shape() {
  return {.element = Element::Bf16,
          .order = BlockOrder::HPN,
          .layers = 2,
          .blocks = 3,
          .block_tokens = 20,
          .heads = 3,
          .k_size = 34,
          .v_size = 34};
}

// Where element (layer, token, part, head, channel) lies, from the order's letters alone: another way than the
// product's.
std::size_t place(const KvShape& s, std::size_t layer, std::size_t token, bool value, std::size_t head,
                  std::size_t channel) {
  const std::size_t block = token / s.block_tokens, n = token % s.block_tokens;
  const std::size_t own = value ? s.v_size : s.k_size;
  std::size_t before = 0;  // elements of this block that come earlier, axis by axis, outermost first
  bool p_fixed = false, h_fixed = false, n_fixed = false;
  for (const char axis : std::string(kOrders[static_cast<int>(s.order)])) {
    const std::size_t heads = h_fixed || axis == 'H' ? 1 : s.heads,
                      tokens = n_fixed || axis == 'N' ? 1 : s.block_tokens;
    const std::size_t inner = p_fixed ? own : s.k_size + s.v_size;
    if (axis == 'P') {
      before += value ? s.k_size * heads * tokens : 0;
      p_fixed = true;
    } else if (axis == 'H') {
      before += head * inner * tokens;
      h_fixed = true;
    } else {
      before += n * inner * heads;
      n_fixed = true;
    }
  }
  return (layer * s.blocks + block) * s.block_bytes() / kernels::element_bytes(s.element) + before + channel;
}

float read_element(Element element, const std::byte* at) {
  if (element == Element::F32) {
    float x = 0;
    std::memcpy(&x, at, 4);
    return x;
  }
  std::uint16_t h = 0;
  std::memcpy(&h, at, 2);
  if (element == Element::Bf16) return std::bit_cast<float>(std::uint32_t{h} << 16);
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>((h & 0x8000) != 0 ? -size : size);
}

// Channels of very different sizes, as K has them. Values that f16 has exactly come out of integers.
std::vector<std::byte> slot_of(const KvShape& s, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> raw(s.raw_bytes());
  for (std::size_t l = 0; l < s.layers; ++l) {
    for (std::size_t t = 0; t < s.tokens(); ++t) {
      for (std::size_t h = 0; h < s.heads; ++h) {
        for (std::size_t c = 0; c < s.k_size + s.v_size; ++c) {
          const bool value = c >= s.k_size;
          const std::size_t channel = value ? c - s.k_size : c;
          const std::size_t at = place(s, l, t, value, h, channel) * kernels::element_bytes(s.element);
          const int whole = static_cast<int>(random() % 129) - 64;
          const float x = std::ldexp(static_cast<float>(whole), static_cast<int>(channel % 7) - 6);
          if (s.element == Element::F16) {
            const int exponent = x == 0.0F ? -15 : std::ilogb(x);
            const auto bits = static_cast<std::uint16_t>(
                x == 0.0F ? 0
                          : (std::signbit(x) ? 0x8000 : 0) | (exponent + 15) << 10 |
                                (static_cast<int>(std::ldexp(std::fabs(x), 10 - exponent)) & 1023));
            std::memcpy(raw.data() + at, &bits, 2);
          } else {
            const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
            const std::uint32_t stored = s.element == Element::Bf16 ? bits >> 16 : bits;
            std::memcpy(raw.data() + at, &stored, kernels::element_bytes(s.element));
          }
        }
      }
    }
  }
  return raw;
}

std::vector<std::byte> encoded(const CodecSpec& spec, const KvShape& shape, const std::vector<std::byte>& raw) {
  CHECK_EQ(why_not(spec, shape), "");
  std::vector<std::byte> out(encoded_bytes_max(spec, shape));
  const CodecResult done = encode(spec, shape, raw, out);
  CHECK_EQ(done.why, "");
  CHECK(done.status == CodecStatus::Ok);
  CHECK_LE(done.bytes, out.size());
  out.resize(done.bytes);
  return out;
}

// The largest step that a codec takes around this element: of its head, channel, token or group.
double largest_of(const KvShape& s, const std::vector<std::byte>& raw, std::size_t l, bool value, std::size_t h,
                  std::size_t t0, std::size_t t1, std::size_t c0, std::size_t c1) {
  double most = 0;
  for (std::size_t t = t0; t < t1; ++t) {
    for (std::size_t c = c0; c < c1; ++c) {
      const std::byte* at = raw.data() + place(s, l, t, value, h, c) * kernels::element_bytes(s.element);
      most = std::max(most, std::fabs(double{read_element(s.element, at)}));
    }
  }
  return most;
}

double bound_of(const CodecSpec& spec, const KvShape& s, const std::vector<std::byte>& raw, std::size_t l, bool value,
                std::size_t h, std::size_t t, std::size_t c, double x) {
  const std::size_t width = value ? s.v_size : s.k_size, tokens = s.tokens();
  const double own = std::fabs(x) * (s.element == Element::Bf16 ? 0x1p-8 : 0x1p-11);  // the element's own rounding
  switch (spec.id) {
    case CodecId::Fp8E4m3:
      return own + std::fabs(x) / 16 + largest_of(s, raw, l, value, h, 0, tokens, 0, width) / 448 * 0x1p-10 * 1.01;
    case CodecId::K16V8:
      if (!value) return 0;
      [[fallthrough]];
    case CodecId::Int8:
      return own + (value ? largest_of(s, raw, l, value, h, t, t + 1, 0, width)
                          : largest_of(s, raw, l, value, h, 0, tokens, c, c + 1)) /
                       127 / 2 * 1.01;
    case CodecId::Int4: {
      const std::size_t g = spec.group;
      const double most = value ? largest_of(s, raw, l, value, h, t, t + 1, c / g * g, std::min(width, c / g * g + g))
                                : largest_of(s, raw, l, value, h, t / g * g, std::min(tokens, t / g * g + g), c, c + 1);
      return own + 2 * most * 1.02 / 15 / 2 * 1.01;  // from -most to most in 15 steps, low and scale rounded outwards
    }
    case CodecId::None:
    case CodecId::Lossless:
      return 0;
  }
  return 0;
}

void check_close(const CodecSpec& spec, const KvShape& s, const std::vector<std::byte>& raw,
                 const std::vector<std::byte>& back) {
  for (std::size_t l = 0; l < s.layers; ++l) {
    for (std::size_t t = 0; t < s.tokens(); t += 7) {
      for (std::size_t h = 0; h < s.heads; ++h) {
        for (std::size_t c = 0; c < s.k_size + s.v_size; c += 5) {
          const bool value = c >= s.k_size;
          const std::size_t channel = value ? c - s.k_size : c;
          const std::size_t at = place(s, l, t, value, h, channel) * kernels::element_bytes(s.element);
          const double x = double{read_element(s.element, raw.data() + at)};
          const double y = double{read_element(s.element, back.data() + at)};
          CHECK_LE(std::fabs(x - y), bound_of(spec, s, raw, l, value, h, t, channel, x));
        }
      }
    }
  }
}

TEST(what_comes_back_is_within_each_codecs_step_in_every_order_and_element) {
  std::uint32_t seed = 0;
  for (const CodecSpec& spec : kAll) {
    for (const Element element : kElements) {
      for (std::uint8_t order = 0; order < 6; ++order) {
        KvShape shape = small_shape();
        shape.element = element, shape.order = static_cast<BlockOrder>(order);
        if (order % 2 == 1) shape.v_size = 16;
        const auto raw = slot_of(shape, ++seed);
        const auto payload = encoded(spec, shape, raw);
        std::vector<std::byte> back(raw.size());
        CHECK_EQ(decode(payload, shape, back).why, "");
        check_close(spec, shape, raw, back);
        if (spec.id == CodecId::Lossless) CHECK(back == raw);
      }
    }
  }
}

TEST(a_latent_without_values_and_a_chunk_of_one_token_are_encoded_too) {
  KvShape latent{.element = Element::Bf16,
                 .order = BlockOrder::PHN,
                 .layers = 1,
                 .blocks = 2,
                 .block_tokens = 16,
                 .heads = 1,
                 .k_size = 576,
                 .v_size = 0};
  KvShape one = small_shape();
  one.layers = one.blocks = one.block_tokens = one.heads = 1;
  one.k_size = 1, one.v_size = 2;
  for (const KvShape& shape : {latent, one}) {
    for (const CodecSpec& spec : kAll) {
      if (spec.id == CodecId::K16V8 && shape.v_size == 0) {
        CHECK_NE(why_not(spec, shape), "");
        continue;
      }
      const auto raw = slot_of(shape, 5);
      const auto payload = encoded(spec, shape, raw);
      std::vector<std::byte> back(raw.size());
      CHECK_EQ(decode(payload, shape, back).why, "");
      check_close(spec, shape, raw, back);
    }
  }
}

TEST(sizes_are_known_before_and_are_what_the_formats_say) {
  KvShape shape{.element = Element::Bf16,
                .order = BlockOrder::HPN,
                .layers = 32,
                .blocks = 16,
                .block_tokens = 16,
                .heads = 8,
                .k_size = 128,
                .v_size = 128};
  const std::uint64_t elements = shape.raw_bytes() / 2, heads = 32 * 8;
  CHECK_EQ(encoded_bytes_max({CodecId::Fp8E4m3, 0}, shape), 80 + elements + 32 * 2 * 64);
  CHECK_EQ(encoded_bytes_max({CodecId::Int8, 0}, shape), 80 + elements + heads * 2 * (128 + 256));
  CHECK_EQ(encoded_bytes_max({CodecId::K16V8, 0}, shape), 80 + elements * 3 / 2 + heads * 2 * 256);
  CHECK_EQ(encoded_bytes_max({CodecId::Int4, 32}, shape), 80 + elements / 2 + elements / 32 * 4);
  CHECK_EQ(encoded_bytes_max({CodecId::Lossless, 0}, shape), 80 + 32 * 2 * 4 + elements * 2);
}

TEST(lossless_keeps_every_bit_of_anything_and_never_grows_beyond_its_bound) {
  for (const Element element : kElements) {
    KvShape shape = small_shape();
    shape.element = element;
    std::mt19937 random(9);
    std::vector<std::byte> raw(shape.raw_bytes());
    for (auto& byte : raw) byte = static_cast<std::byte>(random());  // NaN and Inf among them
    for (const bool noise : {true, false}) {
      if (!noise) std::fill(raw.begin(), raw.end(), std::byte{0});
      const auto payload = encoded({CodecId::Lossless, 0}, shape, raw);
      CHECK_LE(payload.size(), noise ? encoded_bytes_max({CodecId::Lossless, 0}, shape) : raw.size() / 50);
      std::vector<std::byte> back(raw.size(), std::byte{1});
      CHECK_EQ(decode(payload, shape, back).why, "");
      CHECK(back == raw);
    }
  }
}

TEST(zeros_and_constants_come_back_and_nan_or_inf_leave_the_chunk_as_it_is) {
  KvShape shape = small_shape();
  shape.element = Element::F32;
  for (const CodecSpec& spec : kLossy) {
    for (const float x : {0.0F, -3.0F, 0x1p-120F, 6.5e4F}) {
      std::vector<std::byte> raw(shape.raw_bytes()), back(raw.size());
      for (std::size_t i = 0; i < raw.size(); i += 4) std::memcpy(raw.data() + i, &x, 4);
      CHECK_EQ(decode(encoded(spec, shape, raw), shape, back).why, "");
      for (std::size_t i = 0; i < raw.size(); i += 4) {
        const float y = read_element(Element::F32, back.data() + i);
        CHECK_LE(std::fabs(x - y), std::fabs(x) < 1e-30F ? 1e-30F : std::fabs(x) / 100);
      }
    }
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      for (const bool value : {false, true}) {
        std::vector<std::byte> raw(shape.raw_bytes()), out(encoded_bytes_max(spec, shape));
        std::memcpy(raw.data() + place(shape, 1, 41, value, 2, 33) * 4, &bad, 4);
        const bool kept = spec.id == CodecId::K16V8 && !value;
        CHECK(encode(spec, shape, raw, out).status == (kept ? CodecStatus::Ok : CodecStatus::NotFinite));
        if (!kept) continue;
        std::vector<std::byte> back(raw.size());
        CHECK_EQ(decode(out, shape, back).why, "");
        CHECK(back == raw);
      }
    }
  }
}

TEST(every_instruction_set_makes_the_same_payload) {
  for (const CodecSpec& spec : kLossy) {
    const KvShape shape = small_shape();
    const auto raw = slot_of(shape, 21);
    const auto want = encoded(spec, shape, raw);
    for (const kernels::QuantIsa isa :
         {kernels::QuantIsa::Scalar, kernels::QuantIsa::Avx2, kernels::QuantIsa::Avx512, kernels::QuantIsa::Neon}) {
      std::vector<std::byte> out(want.size());
      CHECK(encode(spec, shape, raw, out, isa).status == CodecStatus::Ok);
      CHECK(out == want);
    }
  }
}

// More than caches hold, at places that whole vectors may be written to.
TEST(a_large_slot_is_the_reference_s_too) {
  KvShape shape = small_shape();
  shape.element = kernels::Element::Bf16;
  shape.layers = 4, shape.blocks = shape.block_tokens = 16, shape.heads = 8, shape.k_size = shape.v_size = 128;
  const auto raw = slot_of(shape, 5);
  CHECK(raw.size() >= (4u << 20));
  constexpr std::size_t kLine = 64;
  const auto aligned = [](std::vector<std::byte>& memory, std::size_t bytes) {
    memory.resize(bytes + kLine);
    const auto past = reinterpret_cast<std::uintptr_t>(memory.data()) % kLine;
    return std::span(memory).subspan((kLine - past) % kLine, bytes);
  };
  for (const CodecSpec& spec : kLossy) {
    std::vector<std::byte> want(encoded_bytes_max(spec, shape)), back(raw.size()), out_memory, back_memory;
    CHECK(encode(spec, shape, raw, want, kernels::QuantIsa::Scalar).status == CodecStatus::Ok);
    CHECK(decode(want, shape, back, kernels::QuantIsa::Scalar).status == CodecStatus::Ok);
    const auto out = aligned(out_memory, want.size()), again = aligned(back_memory, raw.size());
    CHECK(encode(spec, shape, raw, out).status == CodecStatus::Ok);
    CHECK(std::equal(out.begin(), out.end(), want.begin()));
    CHECK(decode(out, shape, again).status == CodecStatus::Ok);
    CHECK(std::equal(again.begin(), again.end(), back.begin()));
  }
}

TEST(what_cannot_be_encoded_is_refused_by_field_value_and_remedy) {
  const KvShape good = small_shape();
  const auto changed = [&](auto change) {
    KvShape shape = good;
    change(shape);
    return why_not({CodecId::Int8, 0}, shape);
  };
  CHECK_EQ(changed([](KvShape&) {}), "");
  CHECK_EQ(changed([](KvShape& s) { s.layers = 0; }), "layers is 0: give 1..4096");
  CHECK_EQ(changed([](KvShape& s) { s.k_size = 9'000; }), "k_size is 9000: give 1..8192");
  CHECK_NE(changed([](KvShape& s) { s.blocks = s.block_tokens = 65'536; }), "");
  CHECK_NE(changed([](KvShape& s) {
             s.layers = 4'096, s.blocks = s.block_tokens = 65'536, s.heads = 65'535, s.k_size = s.v_size = 8'192;
           }),
           "");
  CHECK_EQ(why_not({CodecId::Int4, 24}, good), "group is 24: give a power of two in 8..256");
  CHECK_EQ(why_not({CodecId::Int8, 32}, good), "group is 32: only int4 has groups: give 0");
  CHECK_NE(why_not({static_cast<CodecId>(77), 0}, good), "");
  KvShape odd = good;
  odd.v_size = 33;
  CHECK_EQ(why_not({CodecId::Int4, 32}, odd), "v_size is 33: int4 packs channels in pairs: choose int8");
  std::vector<std::byte> raw(good.raw_bytes()), out(encoded_bytes_max({CodecId::Int8, 0}, good) - 1);
  CHECK(encode({CodecId::Int8, 0}, good, raw, out).status == CodecStatus::NoRoom);
  raw.pop_back();
  CHECK(encode({CodecId::Int8, 0}, good, raw, out).status == CodecStatus::Mismatch);
}

TEST(a_payload_of_another_shape_or_length_is_not_decoded) {
  const KvShape shape = small_shape();
  auto payload = encoded({CodecId::Int8, 0}, shape, slot_of(shape, 2));
  std::vector<std::byte> raw(shape.raw_bytes());
  KvShape other = shape;
  other.order = BlockOrder::NHP;
  CHECK(decode(payload, other, raw).status == CodecStatus::Mismatch);
  CHECK(decode(payload, shape, std::span(raw).first(raw.size() - 1)).status == CodecStatus::NoRoom);
  CHECK(decode(std::span(payload).first(payload.size() - 1), shape, raw).status == CodecStatus::Refused);
  CHECK(decode(std::span(payload).first(79), shape, raw).status == CodecStatus::Refused);
  payload.push_back({});
  CHECK(decode(payload, shape, raw).status == CodecStatus::Refused);
}

TEST(a_flipped_bit_is_seen_in_a_header_and_never_gives_other_bytes_in_a_lossless_body) {
  const KvShape shape = small_shape();
  const auto raw = slot_of(shape, 4);
  auto payload = encoded({CodecId::Lossless, 0}, shape, raw);
  std::size_t seen = 0, flipped = 0;
  for (std::size_t bit = 0; bit < payload.size() * 8; bit += bit < kHeaderBytes * 8 ? 1 : 61, ++flipped) {
    std::vector<std::byte> back(raw.size());
    payload[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
    const bool refused = decode(payload, shape, back).status != CodecStatus::Ok;
    CHECK(refused || (bit >= kHeaderBytes * 8 && back == raw));  // a frame's own header has bits that mean nothing
    seen += refused ? 1 : 0;
    payload[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
  }
  CHECK_LT(flipped * 9 / 10, seen);
}

// A hostile header with a proper check: its fields, its shape and its body say what they like.
void forge(std::vector<std::byte>* payload, std::mt19937& random) {
  const int edits = 1 + static_cast<int>(random() % 4);
  for (int i = 0; i < edits && !payload->empty(); ++i) {
    const std::size_t at =
        random() % (random() % 2 == 0 ? std::min<std::size_t>(payload->size(), 120) : payload->size());
    (*payload)[at] = random() % 3 == 0 ? std::byte{0xFF} : static_cast<std::byte>(random());
  }
  if (random() % 8 == 0) payload->resize(random() % (payload->size() + 40));
  if (payload->size() < kHeaderBytes) return;
  const std::uint64_t check = xxh3_64(payload->data(), kHeaderBytes - 8);
  std::memcpy(payload->data() + kHeaderBytes - 8, &check, 8);
}

TEST(hostile_payloads_are_refused_with_a_reason_or_decode_inside_their_slot) {
  constexpr std::uint32_t kSeed = 20'260'705;
  std::mt19937 random(kSeed);
  int refused = 0, decoded = 0;
  for (int round = 0; round < 6'000; ++round) {
    KvShape shape = small_shape();
    shape.layers = 1, shape.blocks = 1 + static_cast<std::uint32_t>(random() % 2), shape.block_tokens = 5,
    shape.heads = 2, shape.k_size = 10;
    shape.v_size = random() % 2 == 0 ? 6 : 10;
    shape.element = kElements[random() % 3];
    auto payload = encoded(kAll[random() % 5], shape, slot_of(shape, 1));
    forge(&payload, random);
    PayloadHeader header;
    const CodecResult parsed = parse_header(payload, &header);
    // The slot is exactly as large as whoever asks says: the sanitizer sees every byte outside.
    const KvShape wanted = parsed.status == CodecStatus::Ok && header.raw_bytes < (1u << 20) ? header.shape : shape;
    std::vector<std::byte> raw(wanted.raw_bytes());
    const CodecResult done = decode(payload, wanted, raw);
    CHECK((done.status == CodecStatus::Ok) == done.why.empty());
    (done.status == CodecStatus::Ok ? decoded : refused) += 1;
  }
  CHECK_LT(500, refused);
  CHECK_LT(500, decoded);
}

TEST(lossy_codecs_have_identities_of_their_own_and_lossless_has_none) {
  Key engine;
  for (std::size_t i = 0; i < engine.bytes.size(); ++i) engine.bytes[i] = static_cast<std::uint8_t>(i);
  CHECK(lossy_fingerprint(engine, {CodecId::Lossless, 0}) == engine);
  CHECK(lossy_fingerprint(engine, {CodecId::None, 0}) == engine);
  std::vector<Key> made{engine};
  for (const CodecSpec& spec : {kLossy[0], kLossy[1], kLossy[2], kLossy[3], CodecSpec{CodecId::Int4, 64}}) {
    const Key key = lossy_fingerprint(engine, spec);
    for (const Key& before : made) CHECK(!(key == before));
    made.push_back(key);
  }
}

}  // namespace
}  // namespace kvcommons::kvcodec

TEST_MAIN()
