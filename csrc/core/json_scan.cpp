#include "core/json_scan.h"

#include <bit>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace kvcommons {

namespace {

bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }

bool is_tail(char c) noexcept { return (static_cast<unsigned char>(c) & 0xC0u) == 0x80u; }

// Where the first quote, backslash, control character or byte over 127 is, in what is left.
const char* first_special(const char* at, const char* end) noexcept {
#if defined(__SSE2__)
  const __m128i quote = _mm_set1_epi8('"');
  const __m128i backslash = _mm_set1_epi8('\\');
  const __m128i space = _mm_set1_epi8(' ');
  for (; end - at >= 16; at += 16) {
    const __m128i chunk = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    // Signed: bytes over 127 are below a space as well.
    const __m128i found = _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(chunk, quote), _mm_cmpeq_epi8(chunk, backslash)),
                                       _mm_cmplt_epi8(chunk, space));
    const unsigned mask = static_cast<unsigned>(_mm_movemask_epi8(found));
    if (mask != 0) return at + std::countr_zero(mask);
  }
#endif
  for (; at < end; ++at) {
    const unsigned char c = static_cast<unsigned char>(*at);
    if (c == '"' || c == '\\' || c < 0x20 || c > 0x7F) return at;
  }
  return end;
}

void append_utf8(std::string& out, unsigned code) {
  const auto put = [&out](unsigned byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0u | (code >> 6));
    put(0x80u | (code & 0x3Fu));
  } else if (code < 0x10000) {
    put(0xE0u | (code >> 12));
    put(0x80u | ((code >> 6) & 0x3Fu));
    put(0x80u | (code & 0x3Fu));
  } else {
    put(0xF0u | (code >> 18));
    put(0x80u | ((code >> 12) & 0x3Fu));
    put(0x80u | ((code >> 6) & 0x3Fu));
    put(0x80u | (code & 0x3Fu));
  }
}

}  // namespace

void JsonScan::space() noexcept {
  while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
}

bool JsonScan::take(char wanted) noexcept {
  if (peek() != wanted || at_ == end_) return false;
  ++at_;
  return true;
}

bool JsonScan::run() noexcept {
  for (;;) {
    at_ = first_special(at_, end_);
    if (at_ == end_) return false;
    const unsigned char c = static_cast<unsigned char>(*at_);
    if (c == '"' || c == '\\') return true;
    if (c < 0x80 || !utf8()) return false;
  }
}

// One character of more than one byte: no longer than it must be, no surrogate, none over U+10FFFF.
bool JsonScan::utf8() noexcept {
  const auto byte = [this](std::ptrdiff_t i) { return static_cast<unsigned char>(at_[i]); };
  const std::ptrdiff_t left = end_ - at_;
  const unsigned char lead = byte(0);
  if (lead < 0xC2 || lead > 0xF4) return false;
  const std::ptrdiff_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (left < length) return false;
  for (std::ptrdiff_t i = 1; i < length; ++i) {
    if (!is_tail(at_[i])) return false;
  }
  const unsigned char second = byte(1);
  if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) || (lead == 0xF0 && second < 0x90) ||
      (lead == 0xF4 && second > 0x8F)) {
    return false;
  }
  at_ += length;
  return true;
}

bool JsonScan::plain_string(std::string_view& out) noexcept {
  if (!take('"')) return false;
  const char* const begin = at_;
  if (!run() || *at_ != '"') return false;
  out = std::string_view(begin, static_cast<std::size_t>(at_ - begin));
  ++at_;
  return true;
}

bool JsonScan::string(std::string& out) {
  if (!take('"')) return false;
  for (;;) {
    const char* const begin = at_;
    if (!run()) return false;
    out.append(begin, static_cast<std::size_t>(at_ - begin));
    if (take('"')) return true;
    if (!escape(out)) return false;
  }
}

bool JsonScan::hex4(unsigned& out) noexcept {
  if (end_ - at_ < 4) return false;
  out = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = *at_++;
    const char low = static_cast<char>(c | 0x20);
    if (is_digit(c)) {
      out = out * 16 + static_cast<unsigned>(c - '0');
    } else if (low >= 'a' && low <= 'f') {
      out = out * 16 + static_cast<unsigned>(low - 'a') + 10;
    } else {
      return false;
    }
  }
  return true;
}

bool JsonScan::escape(std::string& out) {
  if (end_ - at_ < 2) return false;
  const char kind = at_[1];
  at_ += 2;
  static constexpr std::string_view kNames = "\"\\/bfnrt";
  static constexpr std::string_view kMeant = "\"\\/\b\f\n\r\t";
  if (kind != 'u') {
    const std::size_t which = kNames.find(kind);
    if (which == std::string_view::npos) return false;
    out.push_back(kMeant[which]);
    return true;
  }
  unsigned code = 0;
  if (!hex4(code)) return false;
  if (code >= 0xD800 && code <= 0xDFFF) {
    unsigned low = 0;
    if (code > 0xDBFF || !take('\\') || !take('u') || !hex4(low) || low < 0xDC00 || low > 0xDFFF) return false;
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }
  append_utf8(out, code);
  return true;
}

bool JsonScan::skip_string() noexcept {
  if (!take('"')) return false;
  for (;;) {
    if (!run()) return false;
    if (take('"')) return true;
    if (end_ - at_ < 2) return false;
    const char kind = at_[1];
    at_ += 2;
    unsigned code = 0;
    if (kind == 'u' ? !hex4(code) : std::string_view("\"\\/bfnrt").find(kind) == std::string_view::npos) return false;
  }
}

bool JsonScan::digits() noexcept {
  if (!is_digit(peek())) return false;
  while (is_digit(peek())) ++at_;
  return true;
}

bool JsonScan::skip_number() noexcept {
  take('-');
  if (!take('0') && !digits()) return false;
  if (take('.') && !digits()) return false;
  if (take('e') || take('E')) {
    if (!take('+')) take('-');
    if (!digits()) return false;
  }
  return true;
}

bool JsonScan::skip_word(std::string_view word) noexcept {
  if (static_cast<std::size_t>(end_ - at_) < word.size() || std::memcmp(at_, word.data(), word.size()) != 0) {
    return false;
  }
  at_ += word.size();
  return true;
}

bool JsonScan::skip_container(char close, bool keyed, int depth) noexcept {
  ++at_;
  space();
  if (take(close)) return true;
  for (;;) {
    if (keyed) {
      if (!skip_string()) return false;
      space();
      if (!take(':')) return false;
      space();
    }
    if (!skip(depth + 1)) return false;
    space();
    if (take(close)) return true;
    if (!take(',')) return false;
    space();
  }
}

bool JsonScan::skip(int depth) noexcept {
  if (depth > kDepthMax) return false;
  switch (peek()) {
    case '"':
      return skip_string();
    case '{':
      return skip_container('}', true, depth);
    case '[':
      return skip_container(']', false, depth);
    case 't':
      return skip_word("true");
    case 'f':
      return skip_word("false");
    case 'n':
      return skip_word("null");
    default:
      return skip_number();
  }
}

}  // namespace kvcommons
