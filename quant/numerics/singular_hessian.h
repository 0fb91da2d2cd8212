// Factoring the Hessians that FactorHessian is at a loss with: those of few tokens or of channels
// that depend on one another. Taking channels in order, a small pivot multiplies the rounding of
// H's entries into what is left, until that looks negative. Here the largest pivot goes first,
// which multiplies nothing, and the factor is then turned into a triangular one by reflections.
#ifndef NIBBLE_QUANT_NUMERICS_SINGULAR_HESSIAN_H_
#define NIBBLE_QUANT_NUMERICS_SINGULAR_HESSIAN_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "quant/numerics/hessian_sweep.h"

namespace nibble {

// The largest |H - L L^T|, each entry relative to the diagonal elements of its row and column.
inline double HessianResidual(const float h[kBlockSize * kBlockSize], const HessianFactor& factor) {
  double largest = 0;
  for (int i = 0; i < kBlockSize; ++i) {
    for (int j = 0; j <= i; ++j) {
      double rest = 0.5 * (double{h[i * kBlockSize + j]} + double{h[j * kBlockSize + i]});
      for (int k = 0; k <= j; ++k) rest -= double{factor.lower[i][k]} * double{factor.lower[j][k]};
      if (rest == 0) continue;
      const double size =
          std::sqrt(double{h[i * (kBlockSize + 1)]} * double{h[j * (kBlockSize + 1)]});
      largest = std::max(largest, std::fabs(rest) / size);
    }
  }
  return largest;
}

// Factors a finite, symmetric H; the bounds of the factor are 0. Pivots and what is left are
// relative to H's diagonal: a pivot below 2^-23 ends the elimination, and what is left must be
// below 1e-3, or H is not positive semidefinite.
inline HessianDefect FactorSingularHessian(const float h[kBlockSize * kBlockSize],
                                           HessianFactor* factor) {
  constexpr int n = kBlockSize;
  constexpr double kNoise = 0x1p-23, kIndefinite = 1e-3;
  double size[n], rest[n][n], rows[n][n] = {};  // rows: H = rows^T rows, found one row a pivot
  for (int i = 0; i < n; ++i) {
    if (h[i * n + i] < 0) return HessianDefect::kNotPositive;
    size[i] = std::sqrt(double{h[i * n + i]});
  }
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      const double entry = 0.5 * (double{h[i * n + j]} + double{h[j * n + i]});
      if (entry != 0 && (size[i] == 0 || size[j] == 0)) return HessianDefect::kNotPositive;
      rest[i][j] = entry == 0 ? 0.0 : entry / (size[i] * size[j]);
    }
  }
  int rank = 0;
  for (; rank < n; ++rank) {
    int p = 0;
    for (int i = 1; i < n; ++i) {
      if (rest[i][i] > rest[p][p]) p = i;
    }
    if (rest[p][p] <= kNoise) break;
    const double root = std::sqrt(rest[p][p]);
    double row[n];
    for (int i = 0; i < n; ++i) row[i] = rest[p][i] / root;
    for (int i = 0; i < n; ++i) {
      rows[rank][i] = row[i] * size[i];
      for (int j = 0; j < n; ++j) rest[i][j] -= row[i] * row[j];
    }
    for (int i = 0; i < n; ++i) rest[p][i] = rest[i][p] = 0.0;
  }
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      if (std::fabs(rest[i][j]) > kIndefinite) return HessianDefect::kNotPositive;
    }
  }
  // Reflections that leave rows^T rows as it is and everything below the diagonal zero.
  for (int j = 0; j < rank; ++j) {
    double norm = 0;
    for (int k = j; k < rank; ++k) norm += rows[k][j] * rows[k][j];
    norm = std::sqrt(norm);
    if (norm == 0) continue;
    double mirror[n] = {};
    for (int k = j; k < rank; ++k) mirror[k] = rows[k][j] / norm;
    mirror[j] += mirror[j] < 0 ? -1 : 1;
    const double share = std::fabs(mirror[j]);  // half of |mirror|^2
    for (int i = j; i < n; ++i) {
      double dot = 0;
      for (int k = j; k < rank; ++k) dot += mirror[k] * rows[k][i];
      for (int k = j; k < rank; ++k) rows[k][i] -= dot / share * mirror[k];
    }
    for (int k = j + 1; k < rank; ++k) rows[k][j] = 0.0;
  }
  *factor = {};
  for (int j = 0; j < n; ++j) {
    const double sign = rows[j][j] < 0 ? -1 : 1;
    for (int i = j; i < n; ++i) factor->lower[i][j] = static_cast<float>(sign * rows[j][i]);
  }
  return HessianDefect::kNone;
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_SINGULAR_HESSIAN_H_
