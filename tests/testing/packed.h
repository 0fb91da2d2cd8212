// Packed tensors of every layout, with any bytes that a file may hold.
#ifndef NIBBLE_TESTS_TESTING_PACKED_H_
#define NIBBLE_TESTS_TESTING_PACKED_H_

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "quant/packed_tensor.h"

namespace nibble::testing {

// Scheme, rule, bound and order of scales in every combination that exists.
inline std::vector<PackedLayout> AllLayouts(int64_t rows, int64_t cols) {
  std::vector<PackedLayout> all;
  for (Scheme scheme : {Scheme::kPerTensor, Scheme::kPerToken, Scheme::kTile2d}) {
    for (Rule rule : {Rule::kRuntime, Rule::kCheckpoint}) {
      if (rule == Rule::kCheckpoint && scheme == Scheme::kPerToken) continue;
      for (int e4m3_max : {448, 256}) {
        for (bool swizzled : {false, true}) {
          all.push_back({rows, cols, scheme, rule, e4m3_max, swizzled});
        }
      }
    }
  }
  return all;
}

inline std::string Describe(const PackedLayout& layout) {
  return std::string(NameOf(layout.scheme)) + " " + std::string(NameOf(layout.rule)) + " " +
         std::to_string(layout.e4m3_max) + (layout.swizzled ? " swizzled " : " ") +
         std::to_string(layout.rows) + "x" + std::to_string(layout.cols);
}

// Random codes; scales of any bits, with or without NaN; maxima from 0 to the largest float.
inline PackedTensor RandomPacked(const PackedLayout& layout, bool nan_scales, uint32_t seed) {
  std::mt19937 random(seed);
  PackedTensor tensor(layout);
  for (uint8_t& byte : tensor.packed) byte = static_cast<uint8_t>(random());
  for (uint8_t& scale : tensor.scale) {
    do {
      scale = static_cast<uint8_t>(random());
    } while (!nan_scales && (scale & 0x7F) == 0x7F);
  }
  const float special[] = {0.0f, 1e-45f, 1e-39f, 3e-30f, kFloatMax, 1.0f};
  for (float& amax : tensor.amax) {
    const uint32_t pick = random() % 16;
    amax = pick < 6 ? special[pick]
                    : std::ldexp(1.0f + 0x1p-23f * static_cast<float>(random() % (1u << 23)),
                                 static_cast<int>(random() % 20) - 10);
  }
  return tensor;
}

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_PACKED_H_
