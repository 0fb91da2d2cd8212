// The sweep weighted by a local Hessian: loss_k = d^T H d, d = w - quant(w) signed, H the 16x16
// slice of the layer's input second moments.
//
// The loss is computed as |L^T d|^2 with H = L L^T: half the multiplications of d^T H d, never
// negative, an error that grows with the root of H's condition number instead of the number itself,
// and partial sums that only rise, so that a candidate may be dropped as soon as one exceeds the
// best.
#ifndef NIBBLE_QUANT_NUMERICS_HESSIAN_SWEEP_H_
#define NIBBLE_QUANT_NUMERICS_HESSIAN_SWEEP_H_

#include <cmath>
#include <cstdint>

#include "quant/numerics/e2m1.h"
#include "quant/numerics/float_bits.h"
#include "quant/numerics/scale_rules.h"
#include "quant/numerics/scale_sweep.h"

namespace nibble {

// What one 16-channel slice needs, made once on the host.
struct HessianFactor {
  float lower[kBlockSize][kBlockSize];  // L; zero above the diagonal
  // Lower bounds that hold for the *computed* loss, rounding included; 0 where H is (nearly)
  // singular:
  float eigenvalue_bound;           // loss >= eigenvalue_bound * |d|^2
  float element_bound[kBlockSize];  // loss >= element_bound[i] * d_i^2
};

enum class HessianDefect : uint8_t { kNone, kNotFinite, kNotSymmetric, kNotPositive };

// Factors H (row-major, symmetric, positive semidefinite up to the rounding of float32 sums).
inline HessianDefect FactorHessian(const float h[kBlockSize * kBlockSize], HessianFactor* factor) {
  constexpr int n = kBlockSize;
  // A pivot below this share of its diagonal element is rounding noise of float32 entries: the term
  // is dropped.
  constexpr double kNoise = 0x1p-23;
  double a[n][n], lower[n][n] = {};
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      if (!IsFinite(h[i * n + j])) return HessianDefect::kNotFinite;
      a[i][j] = 0.5 * (double{h[i * n + j]} + double{h[j * n + i]});
    }
  }
  for (int i = 0; i < n; ++i) {
    if (a[i][i] < 0) return HessianDefect::kNotPositive;
    for (int j = 0; j < i; ++j) {
      const double size = std::sqrt(a[i][i] * a[j][j]);
      const double skew = std::fabs(double{h[i * n + j]} - double{h[j * n + i]});
      if (skew > 1e-3 * size) return HessianDefect::kNotSymmetric;
    }
  }
  for (int j = 0; j < n; ++j) {
    double pivot = a[j][j];
    for (int k = 0; k < j; ++k) pivot -= lower[j][k] * lower[j][k];
    if (pivot < -1e-3 * a[j][j]) return HessianDefect::kNotPositive;
    const bool singular = pivot <= kNoise * a[j][j];
    const double root = singular ? 0.0 : std::sqrt(pivot);
    lower[j][j] = root;
    for (int i = j + 1; i < n; ++i) {
      double rest = a[i][j];
      for (int k = 0; k < j; ++k) rest -= lower[i][k] * lower[j][k];
      if (singular && std::fabs(rest) > 1e-2 * std::sqrt(a[i][i] * a[j][j])) {
        return HessianDefect::kNotPositive;
      }
      lower[i][j] = singular ? 0.0 : rest / root;
    }
  }

  double frobenius = 0;  // |L|_F^2
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      factor->lower[i][j] = static_cast<float>(lower[i][j]);
      lower[i][j] = factor->lower[i][j];  // the bounds are about the rounded factor
      frobenius += lower[i][j] * lower[i][j];
    }
    factor->element_bound[i] = 0.0f;
  }
  factor->eigenvalue_bound = 0.0f;
  for (int i = 0; i < n; ++i) {
    if (lower[i][i] == 0.0) return HessianDefect::kNone;
  }

  // H^-1 = M^T M with M = L^-1.
  double m[n][n] = {}, inverse[n][n] = {};
  for (int j = 0; j < n; ++j) {
    m[j][j] = 1.0 / lower[j][j];
    for (int i = j + 1; i < n; ++i) {
      double sum = 0;
      for (int k = j; k < i; ++k) sum -= lower[i][k] * m[k][j];
      m[i][j] = sum / lower[i][i];
    }
  }
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      for (int k = i > j ? i : j; k < n; ++k) inverse[i][j] += m[k][i] * m[k][j];
    }
  }
  // The largest eigenvalue of H^-1 is at most |H^-8|_F^(1/8): three squarings, scaled against
  // overflow.
  double trace = 0;
  for (int i = 0; i < n; ++i) trace += inverse[i][i];
  double power[n][n];
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) power[i][j] = inverse[i][j] / trace;
  }
  for (int squaring = 0; squaring < 3; ++squaring) {
    double square[n][n] = {};
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        for (int k = 0; k < n; ++k) square[i][j] += power[i][k] * power[k][j];
      }
    }
    std::memcpy(power, square, sizeof(power));
  }
  double norm = 0;
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) norm += power[i][j] * power[i][j];
  }
  const double smallest_eigenvalue = 1.0 / (trace * std::pow(norm, 1.0 / 16));

  // Each z_i is a chain of at most 16 roundings, so |z| is off by at most 2^-19 |L|_F |d|; relative
  // to |L^T d| >= sqrt(smallest) |d| that is rho.
  const double rho = std::sqrt(frobenius / smallest_eigenvalue) * 0x1p-19;
  if (!(rho < 0.5)) return HessianDefect::kNone;
  const double safety = (1 - rho) * (1 - rho) * (1 - 0x1p-15);
  const double bound = smallest_eigenvalue * safety;
  // Far from there the products below could leave the normal range, where roundings are not
  // relative.
  if (!(bound > 0x1p-60 && bound < 0x1p50)) return HessianDefect::kNone;
  factor->eigenvalue_bound = static_cast<float>(bound);
  for (int i = 0; i < n; ++i) {
    factor->element_bound[i] = static_cast<float>(std::fmin(safety / inverse[i][i], 0x1p50));
  }
  return HessianDefect::kNone;
}

// d of one element; w keeps its sign.
NIBBLE_HD float HessianDifference(float w, float decode_scale) {
  const float q = E2m1Magnitude(E2m1Index(DivRn(Abs(w), decode_scale)));
  const float d = FmaRn(-q, decode_scale, Abs(w));
  return w < 0.0f ? -d : d;
}

// One row of L^T d: sum over j = i .. 15 of L[j][i] * d[j], in that order.
NIBBLE_HD float HessianRow(const HessianFactor& factor, const float d[kBlockSize], int i) {
  float z = MulRn(factor.lower[i][i], d[i]);
  for (int j = i + 1; j < kBlockSize; ++j) z = FmaRn(factor.lower[j][i], d[j], z);
  return z;
}

// |L^T d|^2, rows from the last (one term) to the first. Returns early, with a partial sum that
// exceeds it, once the sum exceeds `limit`.
NIBBLE_HD float HessianLoss(const float d[kBlockSize], const HessianFactor& factor, float limit) {
  float loss = 0.0f;
  for (int i = kBlockSize - 1; i >= 0; --i) {
    const float z = HessianRow(factor, d, i);
    loss = FmaRn(z, z, loss);
    if (loss > limit) break;
  }
  return loss;
}

NIBBLE_HD float HessianCandidateLoss(const float w[kBlockSize], float decode_scale,
                                     const HessianFactor& factor, float limit) {
  float d[kBlockSize];
  for (int i = 0; i < kBlockSize; ++i) d[i] = HessianDifference(w[i], decode_scale);
  return HessianLoss(d, factor, limit);
}

// The definition.
NIBBLE_HD SweepWinner HessianSweepExhaustive(const float w[kBlockSize], const SweepTable& table,
                                             const HessianFactor& factor) {
  const float infinity = FloatFromBits(0x7F800000u);
  SweepWinner best = {1, HessianCandidateLoss(w, table.decode_scale[1], factor, infinity),
                      kE4m3Codes};
  float runner_up = infinity;
  for (int k = 2; k <= kE4m3Codes; ++k) {
    const float loss = HessianCandidateLoss(w, table.decode_scale[k], factor, infinity);
    SweepConsider(k, loss, best, runner_up);
  }
  best.near_tie = runner_up <= MulRn(best.loss, kSweepNearTie);
  return best;
}

// A lower bound of the computed loss where elements saturate.
NIBBLE_HD float HessianSaturationBound(const float w[kBlockSize], float decode_scale,
                                       const HessianFactor& factor) {
  float bound = 0.0f;
  for (int i = 0; i < kBlockSize; ++i) {
    const float d = Max(FmaRn(-kE2m1Max, decode_scale, Abs(w[i])), 0.0f);
    bound = Max(bound, MulRn(factor.element_bound[i], MulRn(d, d)));
  }
  return bound;
}

// Whether a candidate with this lower bound may be skipped. Bounds near the subnormal range prove
// nothing, since losses there are rounded absolutely.
NIBBLE_HD bool HessianBoundExceeds(float bound, float best_loss) {
  return bound > best_loss && bound > 0x1p-70f;
}

// The same winner and loss as HessianSweepExhaustive. Three steps: the plain sweep's window, down
// from it until saturation alone costs more than the best, up from it until every element rounds to
// zero (constant from there on). Going up, |d|^2 under code k is at least |d|^2 under code k - 8
// (the plain sweep's doubling argument), which bounds the loss through the smallest eigenvalue.
NIBBLE_HD SweepWinner HessianSweepPruned(const float w[kBlockSize], float amax,
                                         const SweepTable& table, const HessianFactor& factor) {
  if (amax == 0.0f) return {1, 0.0f, 0};
  if (!table.prunable) return HessianSweepExhaustive(w, table, factor);
  SweepWinner best = {0, FloatFromBits(0x7F800000u), 0};
  float squares[8] = {};  // by code % 8: a lower bound of |d|^2 at the last code of that residue
  float a[kBlockSize];
  for (int i = 0; i < kBlockSize; ++i) a[i] = Abs(w[i]);
  const auto evaluate = [&](int k) {
    const float loss = HessianCandidateLoss(w, table.decode_scale[k], factor, best.loss);
    ++best.evaluations;
    if (loss < best.loss || (loss == best.loss && k < best.code)) {
      best = {k, loss, best.evaluations};
    }
  };
  const int first = SweepFirstUnsaturated(amax, table);
  const int window_end = SweepWindowEnd(first);
  for (int k = first; k <= window_end; ++k) {
    evaluate(k);
    squares[k % 8] = SweepLoss(a, table.decode_scale[k]);
  }
  for (int k = first - 1; k >= 1; --k) {
    const float bound = HessianSaturationBound(w, table.decode_scale[k], factor);
    if (HessianBoundExceeds(bound, best.loss)) break;
    evaluate(k);
  }
  for (int k = window_end + 1; k <= kE4m3Codes; ++k) {
    if (!HessianBoundExceeds(MulRn(factor.eigenvalue_bound, squares[k % 8]), best.loss)) {
      evaluate(k);
      squares[k % 8] = SweepLoss(a, table.decode_scale[k]);
    }
    if (table.decode_scale[k] >= MulRn(4.0f, amax)) break;
  }
  return best.code == 0 ? HessianSweepExhaustive(w, table, factor) : best;
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_HESSIAN_SWEEP_H_
