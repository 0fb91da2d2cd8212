// Made-up Hessians: second moments of one kind of activation or another.
#ifndef NIBBLE_TESTS_TESTING_HESSIANS_H_
#define NIBBLE_TESTS_TESTING_HESSIANS_H_

#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/enum_names.h"
#include "engine/synthetic.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {
namespace testing {

enum class Activations : uint8_t {
  kIid,
  kCorrelated,       // each channel mostly its neighbour
  kChannelOutliers,  // channels of very different size
  kSingular,         // fewer tokens than channels
  kNearlySingular,   // one channel all but a copy of another
  kIdentity,
  kDeadChannels,  // diagonal, some zeros
  kZero,
  kHuge,  // iid, times 2^60
  kTiny,  // iid, times 2^-60
};

}  // namespace testing

template <>
inline constexpr std::array<std::string_view, 10> kEnumNames<testing::Activations> = {
    "iid",
    "correlated",
    "channel_outliers",
    "singular",
    "nearly_singular",
    "identity",
    "dead_channels",
    "zero",
    "huge",
    "tiny"};

namespace testing {

// x_b x_b^T averaged over tokens, 256 numbers a slice. Seeds that are neighbours share numbers.
inline std::vector<float> MakeHessians(Activations kind, int64_t slices, uint64_t seed = 21,
                                       int most_tokens = 64) {
  const int tokens = kind == Activations::kSingular ? 6 : most_tokens;
  const std::vector<float> noise =
      SyntheticValues(Distribution::kNormal, slices * tokens * kBlockSize, seed);
  const std::vector<float> spread =
      SyntheticValues(Distribution::kNormal, slices * kBlockSize, seed + 1);
  const double size = kind == Activations::kHuge   ? 0x1p60
                      : kind == Activations::kTiny ? 0x1p-60
                                                   : 1;
  std::vector<float> hessians(slices * 256);
  for (int64_t s = 0; s < slices; ++s) {
    double h[kBlockSize][kBlockSize] = {};
    for (int t = 0; t < tokens; ++t) {
      double x[kBlockSize];
      for (int i = 0; i < kBlockSize; ++i) {
        x[i] = noise[(s * tokens + t) * kBlockSize + i];
        if (kind == Activations::kCorrelated && i > 0) x[i] = 0.9 * x[i - 1] + 0.436 * x[i];
        if (kind == Activations::kNearlySingular && i == 9) x[i] = x[4] + 1e-3 * x[i];
        if (kind == Activations::kChannelOutliers) {
          x[i] = (x[i] + 0.5) * std::exp(1.5 * spread[s * kBlockSize + i]);
        }
      }
      for (int i = 0; i < kBlockSize; ++i) {
        for (int j = 0; j < kBlockSize; ++j) h[i][j] += size * x[i] * x[j] / tokens;
      }
    }
    for (int i = 0; i < 256; ++i) {
      const int row = i / kBlockSize, col = i % kBlockSize;
      float value = static_cast<float>(h[row][col]);
      if (kind == Activations::kIdentity) value = row == col;
      if (kind == Activations::kDeadChannels) value = row == col && row % 3 != 1 ? value : 0.0f;
      if (kind == Activations::kZero) value = 0.0f;
      hessians[s * 256 + i] = value;
    }
  }
  return hessians;
}

}  // namespace testing
}  // namespace nibble

#endif  // NIBBLE_TESTS_TESTING_HESSIANS_H_
