// Every way to quantize, and its name for a test's messages.
#ifndef NIBBLE_TESTS_TESTING_PARAMS_H_
#define NIBBLE_TESTS_TESTING_PARAMS_H_

#include <string>
#include <vector>

#include "base/tensor_view.h"
#include "quant/quantize_params.h"

namespace nibble::testing {

// Of inputs.
inline constexpr DType kInputDTypes[] = {DType::kBf16, DType::kF16, DType::kF32};

inline std::string Describe(const QuantizeParams& p, const MatrixView& x) {
  std::string text = std::string(NameOf(p.scheme)) + " " + std::string(NameOf(p.rule)) + " " +
                     std::to_string(p.e4m3_max) + " " + std::string(DTypeName(x.dtype)) + " " +
                     std::to_string(x.rows) + "x" + std::to_string(x.cols);
  if (p.four_over_six) {
    text += " 4over6 " + std::string(NameOf(p.four_over_six->metric)) + " " +
            std::string(NameOf(p.four_over_six->path));
  }
  if (p.columnwise) text += " columnwise";
  if (p.rht != Rht::kNone) text += " rht";
  if (p.stochastic) text += " stochastic";
  if (p.swizzle) text += " swizzled";
  return text;
}

// Every meaningful combination of scheme, rule, 4over6 and rounding.
inline std::vector<QuantizeParams> AllParams() {
  std::vector<QuantizeParams> all;
  for (Scheme scheme : {Scheme::kPerTensor, Scheme::kPerToken, Scheme::kTile2d}) {
    for (Rule rule : {Rule::kRuntime, Rule::kCheckpoint}) {
      if (rule == Rule::kCheckpoint && scheme == Scheme::kPerToken) continue;
      for (int e4m3_max : {448, 256}) {
        QuantizeParams params;
        params.scheme = scheme;
        params.rule = rule;
        params.e4m3_max = e4m3_max;
        all.push_back(params);
        params.stochastic = StochasticRounding{.seed = 7, .offset = 3};
        all.push_back(params);
        params.stochastic.reset();
        for (ErrorMetric metric : {ErrorMetric::kMae, ErrorMetric::kMse, ErrorMetric::kAbsMax}) {
          for (ErrorPath path : {ErrorPath::kStrict, ErrorPath::kFast}) {
            params.four_over_six = FourOverSix{metric, path};
            all.push_back(params);
          }
        }
        params.stochastic = StochasticRounding{.seed = 1, .offset = uint64_t{1} << 40};
        all.push_back(params);
      }
    }
  }
  return all;
}

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_PARAMS_H_
