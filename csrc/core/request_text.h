// The canonical text of a chat or completion request, straight from its JSON, and the text keys of that. The reference,
// and what is done with every request that is not of the plain kind, is kvcommons_core/textkeys.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace kvcommons {

struct RequestText {
  std::string_view model;  // points into the body
  bool stream = false;
  std::string canonical;
};

// Reads bodies of the plain kind: valid JSON, an object with a model and either messages of a role and a text each, or
// a prompt that is a text. Of everything else it says nothing, nor where it is told to refuse one of the other members.
[[nodiscard]] std::optional<RequestText> read_request(std::string_view body,
                                                      const std::function<bool(std::string_view)>& refuse_member);

// Chained keys of the whole steps of a canonical text; returns how many it wrote.
std::size_t text_chain(std::string_view canonical, std::uint64_t seed, std::size_t step_bytes,
                       std::span<std::uint64_t> keys) noexcept;

}  // namespace kvcommons
