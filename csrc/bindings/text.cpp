// The router's hot path: a body's canonical text and the keys of it. Short work, so the GIL is kept.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/request_text.h"

namespace nb = nanobind;

namespace {

constexpr std::size_t kKeyBytes = sizeof(std::uint64_t);

std::string_view view_of(const nb::bytes& value) { return {value.c_str(), value.size()}; }

nb::object read_request(const nb::bytes& body, const nb::frozenset& refused) {
  const auto found = kvcommons::read_request(
      view_of(body), [&refused](std::string_view name) { return refused.contains(nb::str(name.data(), name.size())); });
  if (!found) return nb::none();
  return nb::make_tuple(nb::str(found->model.data(), found->model.size()), found->stream,
                        nb::bytes(found->canonical.data(), found->canonical.size()));
}

// ,"0123456789abcdef" for each key but the first, which has no comma.
std::string quoted_hex(const std::vector<std::uint64_t>& keys) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  out.reserve(keys.size() * (2 * kKeyBytes + 3));
  for (const std::uint64_t key : keys) {
    if (!out.empty()) out.push_back(',');
    out.push_back('"');
    for (int shift = 60; shift >= 0; shift -= 4) out.push_back(kDigits[(key >> shift) & 0xF]);
    out.push_back('"');
  }
  return out;
}

nb::object text_chain(const nb::bytes& canonical, std::uint64_t seed, std::int64_t step_bytes, std::int64_t keys_max) {
  if (step_bytes < 1 || keys_max < 0) {
    throw nb::value_error(("step_bytes is " + std::to_string(step_bytes) + " and keys_max " + std::to_string(keys_max) +
                           ": pass at least 1 and 0")
                              .c_str());
  }
  const std::string_view text = view_of(canonical);
  const auto step = static_cast<std::size_t>(step_bytes);
  std::vector<std::uint64_t> keys(std::min(text.size() / step, static_cast<std::size_t>(keys_max)));
  kvcommons::text_chain(text, seed, step, keys);
  nb::list named;
  for (const std::uint64_t key : keys) {
    char little[kKeyBytes];
    for (std::size_t i = 0; i < kKeyBytes; ++i) little[i] = static_cast<char>((key >> (8 * i)) & 0xFF);
    named.append(nb::bytes(little, kKeyBytes));
  }
  const std::string hex = quoted_hex(keys);
  return nb::make_tuple(named, nb::bytes(hex.data(), hex.size()));
}

}  // namespace

void bind_text(nb::module_& module);
void bind_text(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("read_request", &read_request, "body"_a, "refused"_a);
  module.def("text_chain", &text_chain, "canonical"_a, "seed"_a, "step_bytes"_a, "keys_max"_a);
}
