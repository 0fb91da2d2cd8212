#include "quant/output_error.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/status.h"
#include "quant/numerics/e2m1.h"
#include "quant/numerics/e4m3.h"
#include "quant/numerics/float_bits.h"
#include "quant/numerics/hessian_sum.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {
namespace {

constexpr int kTogether = 32;  // rows that use a slice of H while it is near

// Elements `first` to `first` + 15.
void WidenBlock(const MatrixView& x, int64_t first, double values[kBlockSize]) {
  if (x.dtype == DType::kF32) {
    float block[kBlockSize];
    std::memcpy(block, static_cast<const float*>(x.data) + first, sizeof(block));
    for (int i = 0; i < kBlockSize; ++i) values[i] = block[i];
    return;
  }
  uint16_t block[kBlockSize];
  std::memcpy(block, static_cast<const uint16_t*>(x.data) + first, sizeof(block));
  if (x.dtype == DType::kBf16) {
    for (int i = 0; i < kBlockSize; ++i) values[i] = FloatFromBf16(block[i]);
  } else {
    for (int i = 0; i < kBlockSize; ++i) values[i] = FloatFromF16(block[i]);
  }
}

// A block of each of kTogether rows, an element of all rows after the other: loops go over rows, so
// that they are vectors whatever the order of a row's sums is.
using Blocks = double[kBlockSize][kTogether];

// v^T H v of each row: sum over i of v_i * (sum over j >= i of upper_ij v_j), both in rising order;
// upper: H's diagonal, twice H above it.
void QuadraticForms(const double upper[kHessianSize], const Blocks& v, double forms[kTogether]) {
  std::fill_n(forms, kTogether, 0.0);
  for (int i = 0; i < kBlockSize; ++i) {
    const double* h = upper + i * kBlockSize;
    double hv[kTogether];
    for (int r = 0; r < kTogether; ++r) hv[r] = h[i] * v[i][r];
    int j = i + 1;
    for (; j + 3 < kBlockSize; j += 4) {
      for (int r = 0; r < kTogether; ++r) {
        hv[r] = hv[r] + h[j] * v[j][r] + h[j + 1] * v[j + 1][r] + h[j + 2] * v[j + 2][r] +
                h[j + 3] * v[j + 3][r];
      }
    }
    for (; j < kBlockSize; ++j) {
      for (int r = 0; r < kTogether; ++r) hv[r] += h[j] * v[j][r];
    }
    for (int r = 0; r < kTogether; ++r) forms[r] += v[i][r] * hv[r];
  }
}

}  // namespace

double OutputError::relative() const {
  return squared_error == 0 ? 0 : squared_error / squared_output;
}

void OutputError::Merge(const OutputError& other) {
  squared_error += other.squared_error;
  squared_output += other.squared_output;
}

void AddOutputError(const MatrixView& w, const StoredCodes& stored, std::span<const float> hessians,
                    ThreadPool& pool, OutputError& total) {
  NIBBLE_CHECK(IsQuantizable(w.dtype) && w.cols % kBlockSize == 0);
  const int64_t slices = w.cols / kBlockSize;
  NIBBLE_CHECK(static_cast<int64_t>(hessians.size()) == slices * kHessianSize);
  double values[16];
  for (uint8_t code = 0; code < 16; ++code) values[code] = E2m1Decode(code);
  std::vector<OutputError> of_rows(static_cast<size_t>(w.rows));
  pool.ParallelFor(w.rows, kTogether, [&](int64_t begin, int64_t end) {
    const int rows = static_cast<int>(end - begin);
    Blocks x = {}, d = {};  // rows that there are not stay 0
    double upper[kHessianSize], errors[kTogether], outputs[kTogether];
    for (int64_t slice = 0; slice < slices; ++slice) {
      const float* h = hessians.data() + slice * kHessianSize;
      for (int i = 0; i < kBlockSize; ++i) {
        for (int j = i; j < kBlockSize; ++j) {
          upper[i * kBlockSize + j] = (i == j ? 1.0 : 2.0) * h[i * kBlockSize + j];
        }
      }
      for (int r = 0; r < rows; ++r) {
        const int64_t block = (begin + r) * slices + slice;
        const double scale = E4m3Decode(stored.scales[block]) * stored.global;
        const uint8_t* codes = stored.codes + block * (kBlockSize / 2);
        double w_block[kBlockSize];
        WidenBlock(w, block * kBlockSize, w_block);
        for (int i = 0; i < kBlockSize; ++i) {
          x[i][r] = w_block[i];
          d[i][r] = w_block[i] - values[codes[i / 2] >> (i % 2 * 4) & 0xF] * scale;
        }
      }
      QuadraticForms(upper, d, errors);
      QuadraticForms(upper, x, outputs);
      for (int r = 0; r < rows; ++r) of_rows[begin + r].Merge({errors[r], outputs[r]});
    }
  });
  for (const OutputError& row : of_rows) total.Merge(row);
}

}  // namespace nibble
