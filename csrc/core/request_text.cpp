#include "core/request_text.h"

#include <algorithm>

#include "core/json_scan.h"
#include "core/xxh3.h"

namespace kvcommons {

namespace {

constexpr std::string_view kRole = "\xffr";
constexpr std::string_view kContent =
    "\xff"
    "c";
constexpr std::string_view kPrompt = "\xffP";
constexpr std::string_view kEnd =
    "\xff"
    "E";

// One message of a chat: a role and a text, or no text. Its frames are in the order of the reference, not of the
// members.
bool read_message(JsonScan& json, std::string& canonical, std::string& content) {
  if (!json.take('{')) return false;
  bool has_role = false, has_content = false, role_last = false;
  content.clear();
  json.space();
  for (;;) {
    std::string_view name;
    if (!json.plain_string(name)) return false;
    json.space();
    if (!json.take(':')) return false;
    json.space();
    if (name == "role" && !has_role) {
      has_role = role_last = true;
      canonical.append(kRole);
      if (!json.string(canonical)) return false;
    } else if (name == "content" && !has_content) {
      has_content = true;
      if (json.peek() == 'n') {
        if (!json.skip()) return false;
      } else if (role_last) {  // as nearly everybody writes it: no second copy
        canonical.append(kContent);
        if (!json.string(canonical)) return false;
      } else {
        content.append(kContent);
        if (!json.string(content)) return false;
      }
    } else {
      return false;
    }
    json.space();
    if (json.take('}')) break;
    if (!json.take(',')) return false;
    json.space();
  }
  canonical.append(content);
  return has_role;
}

bool read_messages(JsonScan& json, std::string& canonical) {
  if (!json.take('[')) return false;
  std::string content;
  json.space();
  if (!json.take(']')) {
    for (;;) {
      if (!read_message(json, canonical, content)) return false;
      json.space();
      if (json.take(']')) break;
      if (!json.take(',')) return false;
      json.space();
    }
  }
  canonical.append(kEnd);
  return true;
}

bool read_prompt(JsonScan& json, std::string& canonical) {
  canonical.append(kPrompt);
  if (!json.string(canonical)) return false;
  canonical.append(kEnd);
  return true;
}

}  // namespace

std::optional<RequestText> read_request(std::string_view body,
                                        const std::function<bool(std::string_view)>& refuse_member) {
  JsonScan json(body);
  RequestText found;
  bool has_model = false, has_stream = false, has_text = false;
  found.canonical.reserve(body.size());
  json.space();
  if (!json.take('{')) return std::nullopt;
  json.space();
  for (;;) {
    std::string_view name;
    if (!json.plain_string(name)) return std::nullopt;
    json.space();
    if (!json.take(':')) return std::nullopt;
    json.space();
    bool good = false;
    if (name == "model") {
      good = !has_model && json.plain_string(found.model);
      has_model = true;
    } else if (name == "stream") {
      found.stream = json.peek() == 't';
      good = !has_stream && json.skip();
      has_stream = true;
    } else if (name == "messages" || name == "prompt") {
      good =
          !has_text && (name == "prompt" ? read_prompt(json, found.canonical) : read_messages(json, found.canonical));
      has_text = true;
    } else {
      good = !refuse_member(name) && json.skip();
    }
    if (!good) return std::nullopt;
    json.space();
    if (json.take('}')) break;
    if (!json.take(',')) return std::nullopt;
    json.space();
  }
  json.space();
  if (!json.done() || !has_model || !has_text) return std::nullopt;
  return found;
}

std::size_t text_chain(std::string_view canonical, std::uint64_t seed, std::size_t step_bytes,
                       std::span<std::uint64_t> keys) noexcept {
  const std::size_t count = std::min(keys.size(), canonical.size() / step_bytes);
  for (std::size_t i = 0; i < count; ++i) {
    seed = xxh3_64(canonical.data() + i * step_bytes, step_bytes, seed);
    keys[i] = seed;
  }
  return count;
}

}  // namespace kvcommons
