// Second moments of a layer's input: H += X^T X for each slice of 16 channels, X tokens x channels.
//
// The sum runs in one order, which depends on the shape of X alone:
//   chain   consecutive tokens; an entry is one fused multiply-add after another, from +0
//   group   8 chains, joined as a tree: chain r + 4 to chain r, then r + 2, then r + 1
//   lane    every 16th group, one after another, from +0
//   total   the 16 lanes, joined as a tree: r + 8, r + 4, r + 2, r + 1
//   H       H + total, one addition
// Chains beyond the last token are +0. Products commute, so the entries i <= j are all there is to
// compute.
#ifndef NIBBLE_QUANT_NUMERICS_HESSIAN_SUM_H_
#define NIBBLE_QUANT_NUMERICS_HESSIAN_SUM_H_

#include <cstdint>

#include "quant/numerics/float_bits.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {

inline constexpr int kHessianSize = kBlockSize * kBlockSize;  // floats of one slice, row-major
inline constexpr int kHessianChains = 8;                      // of a group
inline constexpr int kHessianLanes = 16;

inline constexpr int kHessianMaxChain = 128;

// Tokens of a chain: as few as let 32768 chains do for all slices, within 16 .. 128.
NIBBLE_HD constexpr int64_t HessianChainTokens(int64_t tokens, int64_t slices) {
  int64_t chain = 16;
  while (chain < kHessianMaxChain && tokens * slices > chain * 32768) chain *= 2;
  return chain;
}

NIBBLE_HD constexpr int64_t HessianGroups(int64_t tokens, int64_t slices) {
  const int64_t group = kHessianChains * HessianChainTokens(tokens, slices);
  return (tokens + group - 1) / group;
}

// One token of a chain; entries i > j are left alone.
NIBBLE_HD void HessianAddToken(const float x[kBlockSize], float sum[kHessianSize]) {
  for (int i = 0; i < kBlockSize; ++i) {
    for (int j = i; j < kBlockSize; ++j) {
      sum[i * kBlockSize + j] = FmaRn(x[i], x[j], sum[i * kBlockSize + j]);
    }
  }
}

// sums[0] becomes the tree's sum.
template <int kCount>
NIBBLE_HD void HessianJoin(float sums[kCount][kHessianSize]) {
  for (int half = kCount / 2; half > 0; half /= 2) {
    for (int r = 0; r < half; ++r) {
      for (int e = 0; e < kHessianSize; ++e) sums[r][e] = AddRn(sums[r][e], sums[r + half][e]);
    }
  }
}

// The total of one slice out of `slices`. chain_sum(first, last, sum) adds tokens [first, last) to
// `sum`, as HessianAddToken does for each. Entries i > j are unspecified.
template <typename ChainSum>
inline void HessianTotal(int64_t tokens, int64_t slices, const ChainSum& chain_sum,
                         float total[kHessianSize]) {
  const int64_t chain = HessianChainTokens(tokens, slices);
  const int64_t groups = HessianGroups(tokens, slices);
  float lanes[kHessianLanes][kHessianSize] = {};
  for (int64_t g = 0; g < groups; ++g) {
    float chains[kHessianChains][kHessianSize] = {};
    for (int c = 0; c < kHessianChains; ++c) {
      const int64_t first = (g * kHessianChains + c) * chain;
      if (first >= tokens) break;
      chain_sum(first, first + chain < tokens ? first + chain : tokens, chains[c]);
    }
    HessianJoin<kHessianChains>(chains);
    float* lane = lanes[g % kHessianLanes];
    for (int e = 0; e < kHessianSize; ++e) lane[e] = AddRn(lane[e], chains[0][e]);
  }
  HessianJoin<kHessianLanes>(lanes);
  for (int e = 0; e < kHessianSize; ++e) total[e] = lanes[0][e];
}

// Entry (i, j) of the slice: `h`, its value so far, plus the total's.
NIBBLE_HD float HessianEntry(float h, const float total[kHessianSize], int i, int j) {
  return AddRn(h, i <= j ? total[i * kBlockSize + j] : total[j * kBlockSize + i]);
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_HESSIAN_SUM_H_
