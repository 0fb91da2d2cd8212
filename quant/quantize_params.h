// What a tensor's quantization is, apart from its numbers: a plain value.
#ifndef NIBBLE_QUANT_QUANTIZE_PARAMS_H_
#define NIBBLE_QUANT_QUANTIZE_PARAMS_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/status/status.h"
#include "base/enum_names.h"
#include "quant/numerics/four_over_six.h"
#include "quant/numerics/hadamard.h"

namespace nibble {

template <>
inline constexpr std::array<std::string_view, 3> kEnumNames<Scheme> = {"per_tensor", "per_token",
                                                                       "tile_2d"};
template <>
inline constexpr std::array<std::string_view, 2> kEnumNames<Rule> = {"runtime", "checkpoint"};
template <>
inline constexpr std::array<std::string_view, 3> kEnumNames<Rht> = {"none", "signs", "no_signs"};
template <>
inline constexpr std::array<std::string_view, 3> kEnumNames<ErrorMetric> = {"mae", "mse",
                                                                            "abs_max"};
template <>
inline constexpr std::array<std::string_view, 2> kEnumNames<ErrorPath> = {"strict", "fast"};

struct FourOverSix {
  ErrorMetric metric = ErrorMetric::kMse;
  ErrorPath path = ErrorPath::kStrict;
  friend bool operator==(const FourOverSix&, const FourOverSix&) = default;
};

// Codes are rounded stochastically. With 4over6 the scale is still chosen by nearest rounding.
struct StochasticRounding {
  uint64_t seed = 0;
  uint64_t offset = 0;
  friend bool operator==(const StochasticRounding&, const StochasticRounding&) = default;
};

struct QuantizeParams {
  Scheme scheme = Scheme::kPerTensor;
  Rule rule = Rule::kRuntime;
  std::optional<FourOverSix> four_over_six = {};
  int e4m3_max = 448;  // what the global scale aims at: 448, or 256 (the usual one with 4over6)
  bool columnwise = false;  // quantize the transposed copy: blocks run down the columns
  Rht rht = Rht::kNone;     // rotate each group of 16 of the quantized axis first
  std::optional<StochasticRounding> stochastic = {};
  bool swizzle = false;  // scales in 128x4 tiles instead of row-major
  // Outer amax to use instead of the tensor's own (that of its fused group, say). Not with
  // per_token.
  std::optional<float> global_amax = {};

  friend bool operator==(const QuantizeParams&, const QuantizeParams&) = default;
};

// InvalidArgument where the parameters contradict each other.
absl::Status Validate(const QuantizeParams& params);

}  // namespace nibble

#endif  // NIBBLE_QUANT_QUANTIZE_PARAMS_H_
