// Made-up tensors for the demo, the tests and the benchmarks: the same numbers on every machine
// with the same libm, for any seed.
#ifndef NIBBLE_ENGINE_SYNTHETIC_H_
#define NIBBLE_ENGINE_SYNTHETIC_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/enum_names.h"
#include "base/tensor_view.h"

namespace nibble {

enum class Distribution : uint8_t {
  kNormal,
  kLaplace,
  kStudentT5,
  kUniform,
  kOutliers,   // normal, one element in 200 times 20
  kOnGrid,     // E2M1 values times powers of two
  kSubnormal,  // normal times 2^-130: subnormal in bf16 and fp32, zero in fp16
  kConstant,   // every block one value
  kOneHot,     // one non-zero element a block
  kZero,
  kWeightLike,  // normal with a spread of its own for each block of 1024 and rare large values
};
template <>
inline constexpr std::array<std::string_view, 11> kEnumNames<Distribution> = {
    "normal",    "laplace",  "student_t5", "uniform", "outliers",   "on_grid",
    "subnormal", "constant", "one_hot",    "zero",    "weight_like"};

std::vector<float> SyntheticValues(Distribution distribution, int64_t count, uint64_t seed);

// Rounded to nearest even; bf16, fp16 or fp32.
std::vector<std::byte> ToBytes(std::span<const float> values, DType dtype);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_SYNTHETIC_H_
