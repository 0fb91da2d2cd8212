// The search for a block's scale among all 126 E4M3 codes, and ModelOpt's multiplier grid.
//
// Candidates: c_k = E4M3[k] / bound; block decode scale s_k = (c_k * g) / 6, 1 where that is 0. The
// winner has the smallest loss; ties go to the smallest k.
//
// loss_k = sum of (|w| - q * s_k)^2, q the E2M1 magnitude nearest to |w| / s_k. Here, and only
// here, the products are fused: d = fma(-q, s, |w|), sum = fma(d, d, sum), one sum over the even
// elements, one over the odd ones, then even + odd. Two reasons. d loses no digits where q * s is
// close to |w|, so the loss agrees with a float64 one to 1e-6 even where it is tiny (unfused it
// does not: 5 % off on on-grid weights). And every step is monotone in |d|, so the pruning argument
// below holds for the computed losses as it does for real numbers: the pruned winner *is* the
// exhaustive winner, bit for bit, near-ties included.
#ifndef NIBBLE_QUANT_NUMERICS_SCALE_SWEEP_H_
#define NIBBLE_QUANT_NUMERICS_SCALE_SWEEP_H_

#include <cstdint>

#include "quant/numerics/e2m1.h"
#include "quant/numerics/e4m3.h"
#include "quant/numerics/float_bits.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {

NIBBLE_HD float SweepDecodeScale(int code, float g, float bound) {
  const float c = DivRn(E4m3Decode(static_cast<uint8_t>(code)), bound);
  const float s = DivRn(MulRn(c, g), kE2m1Max);
  return s == 0.0f ? 1.0f : s;
}

// A candidate's block amax, g * c_k: what a calibrator reports.
NIBBLE_HD float SweepBlockAmax(int code, float g, float bound) {
  return MulRn(DivRn(E4m3Decode(static_cast<uint8_t>(code)), bound), g);
}

// The candidates of one tensor.
struct SweepTable {
  float decode_scale[kE4m3Codes + 1];  // by code; [0] is unused
  // Doubling a scale is exact for all of them (none is subnormal or replaced by 1). Where it is
  // not, nothing may be pruned.
  bool prunable;
};

// The scales are then neither subnormal nor so large that a reciprocal would be.
NIBBLE_HD bool SweepIsPrunable(float g) { return g >= 0x1p-80f && g <= 0x1p100f; }

NIBBLE_HD SweepTable MakeSweepTable(float g, float bound) {
  SweepTable table;
  table.decode_scale[0] = 0.0f;
  for (int k = 1; k <= kE4m3Codes; ++k) table.decode_scale[k] = SweepDecodeScale(k, g, bound);
  table.prunable = SweepIsPrunable(g);
  return table;
}

struct SweepWinner {
  int code;
  float loss;
  int evaluations;        // candidates whose loss was computed
  bool near_tie = false;  // see kSweepNearTie; of exhaustive searches only
};

// Over many blocks.
struct SweepCounts {
  int64_t evaluations = 0;
  int64_t near_ties = 0;
};

// Adds the squared error of one element, a = |w|, to a running sum.
NIBBLE_HD float SweepAccumulate(float sum, float a, float decode_scale) {
  const float q = E2m1Magnitude(E2m1Index(DivRn(a, decode_scale)));
  const float d = FmaRn(-q, decode_scale, a);
  return FmaRn(d, d, sum);
}

NIBBLE_HD float SweepLoss(const float a[kBlockSize], float decode_scale) {
  float even = 0.0f, odd = 0.0f;
  for (int i = 0; i < kBlockSize; i += 2) {
    even = SweepAccumulate(even, a[i], decode_scale);
    odd = SweepAccumulate(odd, a[i + 1], decode_scale);
  }
  return AddRn(even, odd);
}

// A block is a near-tie where the loss of its runner-up is at most the best one times this: within
// 1e-6, relatively. There a search that is exact only up to rounding may find another winner.
inline constexpr float kSweepNearTie = 1.0f + 1e-6f;

// One step of an exhaustive search: runner_up = min(runner_up, max(best, loss)).
NIBBLE_HD void SweepConsider(int k, float loss, SweepWinner& best, float& runner_up) {
  if (loss < best.loss) {
    runner_up = best.loss;
    best.loss = loss;
    best.code = k;
  } else if (loss < runner_up) {
    runner_up = loss;
  }
}

// The definition.
NIBBLE_HD SweepWinner SweepExhaustive(const float a[kBlockSize], const SweepTable& table) {
  SweepWinner best = {1, SweepLoss(a, table.decode_scale[1]), kE4m3Codes};
  float runner_up = FloatFromBits(0x7F800000u);
  for (int k = 2; k <= kE4m3Codes; ++k) {
    SweepConsider(k, SweepLoss(a, table.decode_scale[k]), best, runner_up);
  }
  best.near_tie = runner_up <= MulRn(best.loss, kSweepNearTie);
  return best;
}

// The sum of all blocks' losses, in an order that devices can keep: groups of 32 blocks are added
// as a tree (block i with i + 16, then i + 8, ...), group j goes to sum j % kLossSums, in rising
// order of j, and these sums are added as a tree in turn. Missing blocks count as 0.
inline constexpr int kLossGroup = 32;
inline constexpr int kLossSums = 1024;

inline double SumSweepLosses(const float* loss, int64_t blocks) {
  double sums[kLossSums] = {};
  for (int64_t first = 0; first < blocks; first += kLossGroup) {
    double group[kLossGroup] = {};
    for (int i = 0; i < kLossGroup && first + i < blocks; ++i) group[i] = loss[first + i];
    for (int half = kLossGroup / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) group[i] += group[i + half];
    }
    sums[first / kLossGroup % kLossSums] += group[0];
  }
  for (int half = kLossSums / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// The first code whose grid reaches the block's largest element, 6 * s_k >= amax; 127 if none does.
NIBBLE_HD int SweepFirstUnsaturated(float amax, const SweepTable& table) {
  int low = 1, high = kE4m3Codes + 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (MulRn(kE2m1Max, table.decode_scale[middle]) >= amax) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// The last code that is not dominated by the code of half its scale, given the first unsaturated
// one. Grid(2s) restricted to [0, 6s] is a subset of grid(s), so loss(2s) >= loss(s) where s does
// not saturate. Code k + 8 has twice the scale of code k from 8 on; below that E4M3 is linear and
// odd codes have no half.
NIBBLE_HD int SweepWindowEnd(int first) {
  const int end = first + 7 > 15 ? first + 7 : 15;
  return end < kE4m3Codes ? end : kE4m3Codes;
}

// A lower bound of the computed loss where the largest element saturates: its own term.
NIBBLE_HD float SweepSaturationBound(float amax, float decode_scale) {
  const float d = FmaRn(-kE2m1Max, decode_scale, amax);
  return MulRn(d, d);
}

// The same winner and loss as SweepExhaustive, for about 10 evaluations on ordinary data.
NIBBLE_HD SweepWinner SweepPruned(const float a[kBlockSize], float amax, const SweepTable& table) {
  if (amax == 0.0f) return {1, 0.0f, 0};  // every candidate's loss is 0
  if (!table.prunable) return SweepExhaustive(a, table);
  SweepWinner best = {0, FloatFromBits(0x7F800000u), 0};
  const int first = SweepFirstUnsaturated(amax, table);
  for (int k = first; k <= SweepWindowEnd(first); ++k) {
    const float loss = SweepLoss(a, table.decode_scale[k]);
    ++best.evaluations;
    if (loss < best.loss) best = {k, loss, best.evaluations};
  }
  // Going down, saturation only grows; a tie goes to the smaller code.
  for (int k = first - 1; k >= 1; --k) {
    if (SweepSaturationBound(amax, table.decode_scale[k]) > best.loss) break;
    const float loss = SweepLoss(a, table.decode_scale[k]);
    ++best.evaluations;
    if (loss <= best.loss) best = {k, loss, best.evaluations};
  }
  // Squares that overflow leave nothing to compare.
  return best.code == 0 ? SweepExhaustive(a, table) : best;
}

// How far a loss may be off, relatively, if |w| / s is replaced by |w| * (1 / s), twice rounded.
// The product and the quotient lie within 2^-22 of each other, relatively, so a different q means
// that |w| / s is that near to the middle T of two neighbours q1 < q2: |d| then differs by at most
// 4 T / (q2 - q1) * 2^-22 <= 14 * 2^-22, its square by twice that, 7e-6. A search may use
// reciprocals as long as it decides by divisions what is nearer than this, and wherever the best
// loss is below kSweepFilterFloor: squares near the subnormal range are rounded absolutely, not
// relatively.
inline constexpr float kSweepFilterTolerance = 0x1p-16f;
inline constexpr float kSweepFilterFloor = 0x1p-90f;

// --- ModelOpt's multiplier grid -----------------------------------------------------------------

// Candidate block amaxes are block_amax * m, m from `start` to `stop` in ceil((stop - start) /
// step)
// + 1 even steps. A candidate's code is what the checkpoint rule stores for its amax; its loss is
// that of the sweep under that code; ties go to the smallest multiplier.
struct MultiplierGrid {
  float start = 0.25f;
  float stop = 4.0f;
  float step = 0.1f;

  friend bool operator==(const MultiplierGrid&, const MultiplierGrid&) = default;
};

inline int MultiplierCount(const MultiplierGrid& grid) {
  return static_cast<int>(std::ceil((double{grid.stop} - grid.start) / grid.step - 1e-6)) + 1;
}

// The even spacing as torch.linspace rounds it: the lower half counted from the start, the upper
// one from the end.
NIBBLE_HD float MultiplierAt(const MultiplierGrid& grid, int count, int index) {
  if (count == 1) return grid.start;
  const float step = DivRn(SubRn(grid.stop, grid.start), static_cast<float>(count - 1));
  if (index < count / 2) return AddRn(grid.start, MulRn(step, static_cast<float>(index)));
  return SubRn(grid.stop, MulRn(step, static_cast<float>(count - index - 1)));
}

struct MultiplierWinner {
  float block_amax;
  int code;
  float loss;
  int evaluations;
};

NIBBLE_HD MultiplierWinner MultiplierSearch(const float a[kBlockSize], float amax,
                                            const SweepTable& table, float global_decode_scale,
                                            const float* multipliers, int count) {
  MultiplierWinner best = {0.0f, 0, 0.0f, 0};
  int last_code = 0;
  for (int i = 0; i < count; ++i) {
    const float candidate = MulRn(amax, multipliers[i]);
    const int code = CheckpointBlockScale(candidate, global_decode_scale);
    if (code == last_code) continue;  // the same loss again: the smaller multiplier has it
    last_code = code;
    const float loss = SweepLoss(a, table.decode_scale[code]);
    ++best.evaluations;
    if (best.code == 0 || loss < best.loss) best = {candidate, code, loss, best.evaluations};
  }
  return best;
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_SCALE_SWEEP_H_
