// Rotation of K by a constant shift of its position. Raw pointers and sizes only: whoever calls has checked that they
// are its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cpu/quant.h"
#include "kernels/rope_element.h"

namespace kvcommons::kernels {

// cosines and sines of the angle that `shift` positions make at each of the model's inverse frequencies (radians a
// position), computed in float64. Both have frequencies.size() entries.
void rope_angles(std::span<const double> frequencies, std::int64_t shift, float* cosines, float* sines);

// In place; form.dims / 2 cosines and sines. float32 arithmetic, rounded to the element: the GPU's kernel gives these
// bytes. The rows hold finite values.
void rope_rows(Element element, RowsOut rows, std::size_t count, const RopeForm& form, const float* cosines,
               const float* sines);

}  // namespace kvcommons::kernels
