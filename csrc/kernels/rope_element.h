// K turned by a shift of its position, one pair of channels at a time: rotary embeddings of positions p and p + d
// differ by a rotation that depends on d alone, so K of text that moved needs one vector of angles, not its tokens.
#pragma once

#include "kernels/quant_element.h"

namespace kvcommons::kernels {

enum class RopeStyle : std::uint32_t {
  Neox,  // channels i and i + dims / 2 turn together
  Gptj,  // channels 2 i and 2 i + 1
};

// The rotary part of a row: all of it, its beginning (partial rotary), or what lies behind a latent (MLA).
struct RopeForm {
  RopeStyle style;
  std::uint32_t first;  // channel where the rotary part begins
  std::uint32_t dims;   // of the rotary part; even
};

namespace {

template <typename E>
KVC_BOTH void rope_pair(std::byte* row, const RopeForm& form, std::uint32_t pair, float cosine, float sine) {
  const bool neox = form.style == RopeStyle::Neox;
  const std::uint32_t a = form.first + (neox ? pair : 2 * pair), b = a + (neox ? form.dims / 2 : 1);
  const float x = E::load(row + a * E::kBytes), y = E::load(row + b * E::kBytes);
  E::store(row + a * E::kBytes, x * cosine - y * sine);
  E::store(row + b * E::kBytes, x * sine + y * cosine);
}

KVC_BOTH void rope_pair_any(Element element, std::byte* row, const RopeForm& form, std::uint32_t pair, float cosine,
                            float sine) {
  if (element == Element::F32) return rope_pair<F32>(row, form, pair, cosine, sine);
  if (element == Element::F16) return rope_pair<F16>(row, form, pair, cosine, sine);
  return rope_pair<Bf16>(row, form, pair, cosine, sine);
}

}  // namespace
}  // namespace kvcommons::kernels
