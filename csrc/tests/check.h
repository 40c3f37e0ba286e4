// What the native tests share: CHECK macros that print both sides, TEST registration, and main().
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

namespace kvcommons::testing {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline bool add_case(const char* name, void (*run)()) {
  cases().push_back({name, run});
  return true;
}

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  std::fflush(stderr);
  std::abort();  // a sanitizer's or a core dump's stack is worth more than going on
}

template <typename T>
std::string shown(const T& value) {
  std::ostringstream out;
  if constexpr (std::is_enum_v<T>) {
    out << static_cast<long long>(value);
  } else if constexpr (requires { out << value; }) {
    out << value;
  } else {
    out << "(a value that cannot be printed)";
  }
  return out.str();
}

template <typename A, typename B, typename Compare>
void check_pair(const char* file, int line, const char* text, const A& a, const B& b, Compare holds) {
  if (!holds(a, b)) fail(file, line, std::string(text) + " does not hold: " + shown(a) + " and " + shown(b));
}

// Runs every TEST of this executable, or those whose name contains the first argument.
inline int run_all(int argc, char** argv) {
  int ran = 0;
  for (const Case& test : cases()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    std::fprintf(stderr, "[ %s ]\n", test.name);
    try {
      test.run();
    } catch (const std::exception& error) {
      fail(test.name, 0, std::string("threw ") + error.what());
    }
    ++ran;
  }
  std::fprintf(stderr, "%d passed\n", ran);
  return ran == 0 ? 1 : 0;
}

}  // namespace kvcommons::testing

#define CHECK(condition)                                                                      \
  do {                                                                                        \
    if (!(condition)) ::kvcommons::testing::fail(__FILE__, __LINE__, #condition " is false"); \
  } while (false)

#define KVCOMMONS_CHECK_PAIR(a, op, b)                                              \
  ::kvcommons::testing::check_pair(__FILE__, __LINE__, #a " " #op " " #b, (a), (b), \
                                   [](const auto& left, const auto& right) { return left op right; })
#define CHECK_EQ(a, b) KVCOMMONS_CHECK_PAIR(a, ==, b)
#define CHECK_NE(a, b) KVCOMMONS_CHECK_PAIR(a, !=, b)
#define CHECK_LT(a, b) KVCOMMONS_CHECK_PAIR(a, <, b)
#define CHECK_LE(a, b) KVCOMMONS_CHECK_PAIR(a, <=, b)
#define CHECK_GT(a, b) KVCOMMONS_CHECK_PAIR(a, >, b)
#define CHECK_GE(a, b) KVCOMMONS_CHECK_PAIR(a, >=, b)

#define CHECK_THROWS(expression, Error)                                                                \
  do {                                                                                                 \
    bool thrown = false;                                                                               \
    try {                                                                                              \
      (void)(expression);                                                                              \
    } catch (const Error&) {                                                                           \
      thrown = true;                                                                                   \
    }                                                                                                  \
    if (!thrown) ::kvcommons::testing::fail(__FILE__, __LINE__, #expression " did not throw " #Error); \
  } while (false)

#define TEST(name)                                                                                      \
  static void test_##name();                                                                            \
  [[maybe_unused]] static const bool added_##name = ::kvcommons::testing::add_case(#name, test_##name); \
  static void test_##name()

// The last line of a test file.
#define TEST_MAIN() \
  int main(int argc, char** argv) { return ::kvcommons::testing::run_all(argc, argv); }
