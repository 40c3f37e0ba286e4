// Reading a request's text: right for the plain kind, silent for everything else, never past the end of what it was
// given.
#include "core/request_text.h"

#include <array>
#include <memory>
#include <string>
#include <string_view>

#include "check.h"
#include "core/xxh3.h"

namespace {

using kvcommons::read_request;

bool refuses_nothing(std::string_view) { return false; }

constexpr std::string_view kChat =
    R"({"model": "m", "messages": [{"role":"user","content":"a \"b\" \u00e9 \ud83d\ude00"},)"
    R"({"content":"c","role":"x"}], "stream": true, "n": [1, -2.5e3, {"a": null}], "t": false})";

TEST(a_chat_is_read) {
  const auto found = read_request(kChat, refuses_nothing);
  CHECK(found.has_value());
  CHECK_EQ(found->model, "m");
  CHECK(found->stream);
  CHECK_EQ(found->canonical,
           "\xffruser\xff"
           "ca \"b\" \xc3\xa9 \xf0\x9f\x98\x80\xffrx\xff"
           "cc\xff"
           "E");
}

TEST(a_refused_member_is_for_the_reference) {
  CHECK(!read_request(kChat, [](std::string_view name) { return name == "n"; }).has_value());
}

TEST(no_cut_or_changed_body_is_read_beyond_its_end) {
  for (std::size_t size = 0; size < kChat.size(); ++size) {
    // A heap copy of just this size, so that a sanitizer sees one byte too many.
    const auto cut = std::make_unique<char[]>(size + 1);
    kChat.copy(cut.get(), size);
    CHECK(!read_request({cut.get(), size}, refuses_nothing).has_value());
    for (const char other : {'"', '\\', '{', '\xf0', '\0'}) {
      const auto changed = std::make_unique<char[]>(size + 1);
      kChat.copy(changed.get(), size + 1);
      changed[size] = other;
      (void)read_request({changed.get(), size + 1}, refuses_nothing);
    }
  }
}

TEST(keys_are_chained_over_whole_steps) {
  const std::string text(100, 'x');
  std::array<std::uint64_t, 8> keys{};
  CHECK_EQ(kvcommons::text_chain(text, 7, 30, keys), std::size_t{3});
  CHECK_EQ(keys[0], kvcommons::xxh3_64(text.data(), 30, 7));
  CHECK_EQ(keys[2], kvcommons::xxh3_64(text.data() + 60, 30, keys[1]));
}

}  // namespace

TEST_MAIN()
