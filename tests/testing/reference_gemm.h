// The product of two packed operands in float64, and how far float32 accumulation may be from it.
#ifndef NIBBLE_TESTS_TESTING_REFERENCE_GEMM_H_
#define NIBBLE_TESTS_TESTING_REFERENCE_GEMM_H_

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "gtest/gtest.h"
#include "quant/packed_tensor.h"

namespace nibble::testing {

struct ReferenceGemm {
  int64_t rows, cols, depth;
  std::vector<double> value;
  std::vector<double> magnitude;  // the sum of the products' magnitudes

  // value = (sum over k of codes * block scales of both) * both outer scales; the sum is exact
  // where it has at most 53 bits.
  ReferenceGemm(const PackedView& a, const PackedView& w)
      : rows(a.layout.rows),
        cols(w.layout.rows),
        depth(a.layout.cols),
        value(rows * cols),
        magnitude(rows * cols) {
    const std::vector<double> left = BlockScaled(a), right = BlockScaled(w);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        double sum = 0, absolute = 0;
        for (int64_t k = 0; k < depth; ++k) {
          const double product = left[i * depth + k] * right[j * depth + k];
          sum += product;
          absolute += std::fabs(product);
        }
        const double outer = double{OuterScale(a, i)} * OuterScale(w, j);
        value[i * cols + j] = sum * outer;
        magnitude[i * cols + j] = absolute * outer;
      }
    }
  }

  // `depth` additions, each off by at most a unit in the last place (tensor cores cut digits off)
  // of a partial sum, which is at most `magnitude`; then the product of the outer scales and the
  // product with it, each rounded: half a unit.
  double Tolerance(int64_t index) const {
    return (static_cast<double>(depth) + 1) * 0x1p-23 * magnitude[index] + 0x1p-126;
  }

  ::testing::AssertionResult Matches(std::span<const float> actual) const {
    if (actual.size() != value.size()) return ::testing::AssertionFailure() << "other sizes";
    for (size_t i = 0; i < value.size(); ++i) {
      if (std::fabs(actual[i] - value[i]) <= Tolerance(i)) continue;
      return ::testing::AssertionFailure()
             << "row " << i / cols << ", column " << i % cols << ": expected " << value[i] << " +- "
             << Tolerance(i) << ", got " << actual[i];
    }
    return ::testing::AssertionSuccess();
  }

  // The largest error in units of 2^-23 of the sum of magnitudes.
  double LargestError(std::span<const float> actual) const {
    double largest = 0;
    for (size_t i = 0; i < value.size(); ++i) {
      if (magnitude[i] == 0) continue;
      largest = std::max(largest, std::fabs(actual[i] - value[i]) / magnitude[i] * 0x1p23);
    }
    return largest;
  }

 private:
  static std::vector<double> BlockScaled(const PackedView& p) {
    std::vector<double> values(p.layout.rows * p.layout.cols);
    for (int64_t r = 0; r < p.layout.rows; ++r) {
      for (int64_t c = 0; c < p.layout.cols; ++c) {
        const int64_t i = r * p.layout.cols + c;
        const uint8_t code = i % 2 ? p.packed[i / 2] >> 4 : p.packed[i / 2] & 15;
        values[i] = double{E2m1Decode(code)} *
                    E4m3Decode(p.scale[p.layout.scale_offset(r, c / kBlockSize)]);
      }
    }
    return values;
  }
  static float OuterScale(const PackedView& p, int64_t row) {
    return p.layout.GlobalDecodeScale(p.amax[p.layout.scheme == Scheme::kPerToken ? row : 0]);
  }
};

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_REFERENCE_GEMM_H_
