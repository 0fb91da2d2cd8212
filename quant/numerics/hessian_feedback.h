// Rounding with error feedback: codes of a block that are chosen one after another, each making up
// for the errors of those before it, so that d^T H d falls below what rounding to nearest leaves.
// GPTQ does so with the Cholesky factor of H^-1 over a whole row; here it ends with the block, so
// that blocks stay independent of one another.
//
// Completing squares from the element chosen last to the first gives
//
//   d^T H d = sum over p = 0 .. 15 of pivot[p] * (d_p + sum over r < p of feedback[p][r] * d_r)^2,
//
// p counting elements in the order in which they are chosen, d = w - q * s. With the errors before
// it known, term p is least where q_p is nearest to t_p / s, t_p = w_p + sum of feedback[p][r] d_r.
// (The rows of the Cholesky factor of H^-1, each divided by its diagonal element, hold the same
// numbers: tests/kernels/hessian_feedback_test.cc goes that way.) Then every element is chosen once
// more with all the others known: that is the polish.
//
// The result never loses: it is taken only where the sweep's own loss says that it is better by
// kFeedbackMargin than what the sweep found with codes rounded to nearest, and than those stored.
#ifndef NIBBLE_QUANT_NUMERICS_HESSIAN_FEEDBACK_H_
#define NIBBLE_QUANT_NUMERICS_HESSIAN_FEEDBACK_H_

#include <cstdint>

#include "quant/numerics/e2m1.h"
#include "quant/numerics/float_bits.h"
#include "quant/numerics/hessian_sweep.h"
#include "quant/numerics/scale_rules.h"
#include "quant/numerics/scale_sweep.h"

namespace nibble {

// Scales tried: those of the sweep's winner and of so many codes on either side, an octave each.
inline constexpr int kFeedbackReach = 8;
// Of the best scale's codes. What a round does not better ends the polish.
inline constexpr int kFeedbackPolishRounds = 2;
// A gain below 2^-10 is no gain: the losses compared are rounded, and so are the stored scales,
// whose values may be an ulp away from the sweep's.
inline constexpr float kFeedbackMargin = 1.0f - 0x1p-10f;

// What one 16-channel slice needs, made once on the host. Everything by position: the p-th element
// to be chosen is order[p].
struct HessianFeedback {
  int32_t order[kBlockSize];
  float pivot[kBlockSize];                 // relative to H's largest diagonal element
  float feedback[kBlockSize][kBlockSize];  // [p][r]; 0 for r >= p
  float coupling[kBlockSize][kBlockSize];  // H[p][r] / H[p][p]; 0 for r = p and where H[p][p] is 0
};

// H is L L^T in double precision, L the sweep's rounded factor, with every diagonal element raised
// by kDamping of itself. That costs next to nothing of what is gained on the tokens that H was made
// of, and keeps feedback from relying on what few tokens make look alike; no pivot of a channel
// that was ever active comes near 0. The element chosen last is the one with the smallest pivot
// (ties to the lowest index), then the next to last among the others, and so on; but as long as
// some pivots are above kSteady of their diagonal elements, among those. Of the orders tried
// (natural, by diagonal, this one) it leaves the least loss, most of all where neighbours are
// correlated.
inline HessianFeedback MakeHessianFeedback(const HessianFactor& factor) {
  constexpr int n = kBlockSize;
  constexpr double kDamping = 0x1p-5, kSteady = 0.125;
  double h[n][n], rest[n][n], largest = 0;
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      double sum = 0;
      for (int k = 0; k <= (i < j ? i : j); ++k) {
        sum += double{factor.lower[i][k]} * double{factor.lower[j][k]};
      }
      h[i][j] = rest[i][j] = sum;
    }
    h[i][i] = rest[i][i] = h[i][i] * (1 + kDamping);
    if (h[i][i] > largest) largest = h[i][i];
  }
  HessianFeedback made = {};
  bool placed[n] = {};
  const auto later = [&](int i, int j) {
    const bool i_steady = rest[i][i] > kSteady * h[i][i];
    const bool j_steady = rest[j][j] > kSteady * h[j][j];
    return i_steady != j_steady ? i_steady : rest[i][i] < rest[j][j];
  };
  double ratio[n][n] = {};
  for (int p = n - 1; p >= 0; --p) {
    int last = -1;
    for (int i = 0; i < n; ++i) {
      if (!placed[i] && (last < 0 || later(i, last))) last = i;
    }
    made.order[p] = last;
    placed[last] = true;
    const double pivot = rest[last][last];
    if (pivot == 0) continue;
    made.pivot[p] = static_cast<float>(pivot / largest);
    for (int i = 0; i < n; ++i) {
      if (!placed[i]) ratio[last][i] = rest[last][i] / pivot;
    }
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        if (!placed[i] && !placed[j]) rest[i][j] -= ratio[last][i] * rest[last][j];
      }
    }
  }
  for (int p = 0; p < n; ++p) {
    const int i = made.order[p];
    for (int r = 0; r < n; ++r) {
      const int j = made.order[r];
      if (r < p) made.feedback[p][r] = static_cast<float>(ratio[i][j]);
      if (r != p && h[i][i] > 0) made.coupling[p][r] = static_cast<float>(h[i][j] / h[i][i]);
    }
  }
  return made;
}

// A block under a candidate scale, by position.
struct FeedbackBlock {
  uint8_t code[kBlockSize];
  float d[kBlockSize];
};

// A candidate scale and its reciprocal, rounded.
struct FeedbackScale {
  float decode_scale, inverse;

  NIBBLE_HD explicit FeedbackScale(float scale)
      : decode_scale(scale), inverse(DivRn(1.0f, scale)) {}
};

// Chooses the code of position p nearest to the target t; returns its value.
NIBBLE_HD float FeedbackChoose(int p, float w, float t, const FeedbackScale& scale,
                               FeedbackBlock& block) {
  block.code[p] = E2m1Encode(MulRn(t, scale.inverse));
  const float q = E2m1Decode(block.code[p]);
  block.d[p] = FmaRn(-q, scale.decode_scale, w);
  return q;
}

// w: by position. Returns the sum of the terms above, in order: it ranks the candidates.
NIBBLE_HD float FeedbackRound(const float w[kBlockSize], const FeedbackScale& scale,
                              const HessianFeedback& feedback, FeedbackBlock& block) {
  float loss = 0.0f;
  NIBBLE_UNROLL
  for (int p = 0; p < kBlockSize; ++p) {
    float t = w[p];
    NIBBLE_UNROLL
    for (int r = 0; r < p; ++r) t = FmaRn(feedback.feedback[p][r], block.d[r], t);
    const float q = FeedbackChoose(p, w[p], t, scale, block);
    const float e = FmaRn(-q, scale.decode_scale, t);
    loss = FmaRn(MulRn(feedback.pivot[p], e), e, loss);
  }
  return loss;
}

// One round of coordinate descent, by rising position.
NIBBLE_HD void FeedbackPolish(const float w[kBlockSize], const FeedbackScale& scale,
                              const HessianFeedback& feedback, FeedbackBlock& block) {
  NIBBLE_UNROLL
  for (int p = 0; p < kBlockSize; ++p) {
    float t = w[p];
    NIBBLE_UNROLL
    for (int r = 0; r < kBlockSize; ++r) t = FmaRn(feedback.coupling[p][r], block.d[r], t);
    FeedbackChoose(p, w[p], t, scale, block);
  }
}

// The sweep's loss.
NIBBLE_HD float FeedbackLoss(const FeedbackBlock& block, const HessianFeedback& feedback,
                             const HessianFactor& factor) {
  float d[kBlockSize];
  for (int p = 0; p < kBlockSize; ++p) d[feedback.order[p]] = block.d[p];
  return HessianLoss(d, factor, FloatFromBits(0x7F800000u));
}

// What a slice's threads share stays in shared memory: held in registers over the search, its 120
// ratios would leave none for anything else.
NIBBLE_HD void FeedbackReread() {
#if NIBBLE_DEVICE_CODE
  asm volatile("" ::: "memory");
#endif
}

struct FeedbackWinner {
  int code;                   // of the scale; 0 where rounding to nearest stays
  float loss;                 // the sweep's
  uint8_t codes[kBlockSize];  // by element
};

// The loss of codes that are stored. Those of rounding to nearest need not be the sweep's: the
// stored scale may be an ulp away from it, and near a tie that is another code.
NIBBLE_HD float StoredHessianLoss(const float w[kBlockSize], const uint8_t packed[kBlockSize / 2],
                                  float decode_scale, const HessianFactor& factor) {
  float d[kBlockSize];
  for (int i = 0; i < kBlockSize; ++i) {
    const uint8_t code = packed[i / 2] >> (i % 2 * 4) & 0xF;
    d[i] = FmaRn(-E2m1Decode(code), decode_scale, w[i]);
  }
  return HessianLoss(d, factor, FloatFromBits(0x7F800000u));
}

// The definition. w: by element; nearest_code, nearest_loss: what the sweep found; nearest_packed:
// the codes that are stored under it. Where scales may be subnormal (see SweepTable) nothing is
// tried. Ties go to the smallest scale.
NIBBLE_HD FeedbackWinner HessianFeedbackSearch(const float w[kBlockSize], int nearest_code,
                                               float nearest_loss,
                                               const uint8_t nearest_packed[kBlockSize / 2],
                                               const SweepTable& table, const HessianFactor& factor,
                                               const HessianFeedback& feedback) {
  FeedbackWinner winner = {};
  if (!table.prunable || nearest_loss == 0.0f) return winner;
  float placed[kBlockSize];
  for (int p = 0; p < kBlockSize; ++p) placed[p] = w[feedback.order[p]];
  FeedbackBlock block;
  const int first = nearest_code > kFeedbackReach ? nearest_code - kFeedbackReach : 1;
  float least = FloatFromBits(0x7F800000u);
  int code = 0;
  NIBBLE_ROLLED
  for (int k = first; k <= nearest_code + kFeedbackReach && k <= kE4m3Codes; ++k) {
    FeedbackReread();
    const float loss = FeedbackRound(placed, FeedbackScale(table.decode_scale[k]), feedback, block);
    if (loss < least) {
      least = loss;
      code = k;
    }
  }
  if (code == 0) return winner;
  FeedbackReread();
  const FeedbackScale scale(table.decode_scale[code]);
  FeedbackRound(placed, scale, feedback, block);
  float loss = FeedbackLoss(block, feedback, factor);
  NIBBLE_ROLLED
  for (int round = 0; round < kFeedbackPolishRounds; ++round) {
    FeedbackReread();
    FeedbackBlock next = block;
    FeedbackPolish(placed, scale, feedback, next);
    const float next_loss = FeedbackLoss(next, feedback, factor);
    if (!(next_loss < loss)) break;
    block = next;
    loss = next_loss;
  }
  const float stored_loss =
      StoredHessianLoss(w, nearest_packed, table.decode_scale[nearest_code], factor);
  if (!(loss < MulRn(Min(nearest_loss, stored_loss), kFeedbackMargin))) return winner;
  winner.code = code;
  winner.loss = loss;
  for (int p = 0; p < kBlockSize; ++p) winner.codes[feedback.order[p]] = block.code[p];
  return winner;
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_HESSIAN_FEEDBACK_H_
