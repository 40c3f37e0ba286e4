// A strict scanner over JSON text: it checks what it passes, and copies out only what is asked for. It says no to
// anything unusual (see each function); whoever needs to know why reads again by other means.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace kvcommons {

class JsonScan {
 public:
  explicit JsonScan(std::string_view text) : at_(text.data()), end_(text.data() + text.size()) {}

  void space() noexcept;
  // Passes one character, if it is the next one.
  bool take(char wanted) noexcept;
  [[nodiscard]] char peek() const noexcept { return at_ < end_ ? *at_ : '\0'; }
  [[nodiscard]] bool done() const noexcept { return at_ == end_; }

  // A string without escapes, as it lies there.
  bool plain_string(std::string_view& out) noexcept;
  // A string, its escapes resolved, appended as UTF-8. False for half a surrogate pair too.
  bool string(std::string& out);
  // Any value, checked and not kept. False if it is nested deeper than kDepthMax.
  bool skip(int depth = 0) noexcept;

  static constexpr int kDepthMax = 32;

 private:
  bool skip_string() noexcept;
  bool skip_number() noexcept;
  bool skip_word(std::string_view word) noexcept;
  bool skip_container(char close, bool keyed, int depth) noexcept;
  bool digits() noexcept;
  bool escape(std::string& out);
  bool hex4(unsigned& out) noexcept;
  // Passes characters that stand for themselves, up to a quote, a backslash or the end; false for what may not stand
  // there.
  bool run() noexcept;
  bool utf8() noexcept;

  const char* at_;
  const char* end_;
};

}  // namespace kvcommons
