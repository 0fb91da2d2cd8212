// The sums against d^T H d written out in long double, on every byte that a file may hold.
#include "quant/output_error.h"

#include <cmath>
#include <random>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "quant/numerics/e2m1.h"
#include "quant/numerics/e4m3.h"
#include "quant/numerics/scale_rules.h"
#include "tests/testing/hessians.h"
#include "tests/testing/packed.h"
#include "tests/testing/tensors.h"

namespace nibble {
namespace {

using ::nibble::testing::Activations;
using ::nibble::testing::MakeHessians;
using ::nibble::testing::RandomPacked;
using ::nibble::testing::Tensor;
using ::nibble::testing::TensorOf;

struct Matrix {
  Tensor w;
  PackedTensor packed;
  double global;
  std::vector<float> hessians;

  Matrix(DType dtype, int64_t rows, int64_t cols, Activations activations, uint32_t seed,
         double global = 0.0123f)
      : w(TensorOf("w", dtype, {rows, cols},
                   SyntheticValues(Distribution::kNormal, rows * cols, seed))),
        packed(RandomPacked({.rows = rows, .cols = cols}, /*nan_scales=*/false, seed)),
        global(global),
        hessians(MakeHessians(activations, cols / 16, seed)) {}

  StoredCodes Stored(int64_t from_row = 0) const {
    const int64_t cols = packed.layout.cols;
    return {packed.packed.data() + from_row * cols / 2, packed.scale.data() + from_row * cols / 16,
            global};
  }
  OutputError Measure(int threads) const {
    ThreadPool pool(threads);
    OutputError total;
    AddOutputError({w.bytes.data(), w.dtype, packed.layout.rows, packed.layout.cols}, Stored(),
                   hessians, pool, total);
    return total;
  }
};

std::vector<float> Widened(const Tensor& w) {
  std::vector<float> values;
  if (w.dtype == DType::kF32) return w.as<float>();
  for (const uint16_t bits : w.as<uint16_t>()) {
    values.push_back(w.dtype == DType::kBf16 ? FloatFromBf16(bits) : FloatFromF16(bits));
  }
  return values;
}

struct Expected {
  long double error = 0, output = 0;
};

Expected Direct(const Matrix& m) {
  const int64_t rows = m.packed.layout.rows, cols = m.packed.layout.cols;
  const std::vector<float> w = Widened(m.w);
  std::vector<long double> d;
  for (int64_t i = 0; i < rows * cols; ++i) {
    const uint8_t code = m.packed.packed[i / 2] >> (i % 2 * 4) & 0xF;
    d.push_back(w[i] - static_cast<long double>(E2m1Decode(code)) *
                           E4m3Decode(m.packed.scale[i / 16]) * m.global);
  }
  Expected sums;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < cols; ++i) {
      for (int64_t j = i / 16 * 16; j < i / 16 * 16 + 16; ++j) {
        const long double h = m.hessians[i / 16 * 256 + i % 16 * 16 + j % 16];
        sums.error += d[row * cols + i] * h * d[row * cols + j];
        sums.output += w[row * cols + i] * h * w[row * cols + j];
      }
    }
  }
  return sums;
}

TEST(OutputErrorTest, IsThatOfADirectComputation) {
  uint32_t seed = 1;
  for (const DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
    for (const Activations activations :
         {Activations::kIid, Activations::kCorrelated, Activations::kChannelOutliers,
          Activations::kDeadChannels, Activations::kIdentity}) {
      for (const auto& [rows, cols] :
           std::vector<std::pair<int64_t, int64_t>>{{1, 16}, {33, 48}, {70, 176}}) {
        const Matrix m(dtype, rows, cols, activations, ++seed);
        const Expected expected = Direct(m);
        const OutputError actual = m.Measure(2);
        EXPECT_NEAR(actual.squared_error / static_cast<double>(expected.error), 1, 1e-13);
        EXPECT_NEAR(actual.squared_output / static_cast<double>(expected.output), 1, 1e-13);
        EXPECT_EQ(actual.relative(), actual.squared_error / actual.squared_output);
      }
    }
  }
}

TEST(OutputErrorTest, DoesNotDependOnThreadsOrOnHowRowsCome) {
  const Matrix m(DType::kBf16, 131, 80, Activations::kCorrelated, 7);
  const OutputError whole = m.Measure(1);
  EXPECT_EQ(m.Measure(3), whole);
  ThreadPool pool(2);
  OutputError parts;
  for (const auto& [from, to] : {std::pair<int64_t, int64_t>{0, 1}, {1, 1}, {1, 50}, {50, 131}}) {
    AddOutputError({m.w.bytes.data() + from * 80 * 2, DType::kBf16, to - from, 80}, m.Stored(from),
                   m.hessians, pool, parts);
  }
  EXPECT_EQ(parts, whole);
}

TEST(OutputErrorTest, OfAnInputThatNeverWasIsNothing) {
  const Matrix m(DType::kBf16, 3, 32, Activations::kZero, 3);
  EXPECT_EQ(m.Measure(1), OutputError());
  EXPECT_EQ(OutputError().relative(), 0);
  EXPECT_EQ(Matrix(DType::kF32, 0, 32, Activations::kIid, 3).Measure(2), OutputError());
}

// Nothing but its own error separates a copy from the original.
TEST(OutputErrorTest, OfAPerfectCopyIsZero) {
  Matrix m(DType::kF32, 2, 32, Activations::kCorrelated, 5, /*global=*/0.1f);
  std::vector<float> values;
  for (int64_t i = 0; i < 64; ++i) {
    m.packed.scale[i / 16] = 0x30;  // 2^-1
    const uint8_t code = m.packed.packed[i / 2] >> (i % 2 * 4) & 0xF;
    values.push_back(E2m1Decode(code) * 0.5f * 0.1f);
  }
  m.w = TensorOf("w", DType::kF32, {2, 32}, values);
  // Products of a code and a float32 are not always float32 values.
  EXPECT_LT(m.Measure(1).relative(), 1e-14);
  for (float& v : values) v += 0.01f;
  m.w = TensorOf("w", DType::kF32, {2, 32}, values);
  EXPECT_GT(m.Measure(1).relative(), 1e-4);
}

}  // namespace
}  // namespace nibble
