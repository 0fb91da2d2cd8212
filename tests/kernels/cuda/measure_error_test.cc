// Error statistics on the device against the CPU's bits.
#include <cmath>
#include <iterator>
#include <random>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/cuda/measure_error_launch.h"
#include "tests/testing/cuda.h"
#include "tests/testing/packed.h"
#include "tests/testing/results.h"

namespace nibble {
namespace {

using ::nibble::testing::AllLayouts;
using ::nibble::testing::CudaTest;
using ::nibble::testing::Describe;
using ::nibble::testing::DeviceArray;
using ::nibble::testing::DevicePackedTensor;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::RandomPacked;
using ::nibble::testing::ReplayFromGraph;
using ::nibble::testing::SameStats;

TEST(SameStatsTest, SeesTheSmallestDifference) {
  float x[kBlockSize] = {1, 2, 3}, y[kBlockSize] = {1, 2.5f, 3};
  ErrorStats a, b;
  a.AddBlock(MeasureBlock(x, y, 6));
  EXPECT_TRUE(SameStats(a, a));
  y[2] = std::nextafter(3.0f, 4.0f);
  b.AddBlock(MeasureBlock(x, y, 6));
  EXPECT_FALSE(SameStats(a, b));
}

class CudaMeasureErrorTest : public CudaTest {
 protected:
  void ExpectSame(const MatrixView& x, const PackedTensor& packed) {
    const auto expected = cpu_->MeasureError(x, packed.view());
    const auto actual = cuda_->MeasureError(x, packed.view());
    ASSERT_EQ(expected.status(), actual.status());
    if (expected.ok()) {
      EXPECT_TRUE(SameStats(*expected, *actual));
    }
  }
};

TEST_F(CudaMeasureErrorTest, EveryDistributionSchemeAndType) {
  for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
    for (DType dtype : kInputDTypes) {
      const std::vector<std::byte> bytes =
          ToBytes(SyntheticValues(static_cast<Distribution>(d), 160 * 208, d + 1), dtype);
      const MatrixView x = {bytes.data(), dtype, 160, 208};
      for (const PackedLayout& layout : AllLayouts(160, 208)) {
        SCOPED_TRACE(std::string(kEnumNames<Distribution>[d]) + " " + Describe(layout));
        QuantizeParams params;
        params.scheme = layout.scheme;
        params.rule = layout.rule;
        params.e4m3_max = layout.e4m3_max;
        params.swizzle = layout.swizzled;
        ExpectSame(x, *cpu_->Quantize(params, x));
      }
    }
  }
}

// Sums of every magnitude that floats can make, both signs of the product, and packed tensors whose
// values overflow or are NaN.
TEST_F(CudaMeasureErrorTest, AnyMagnitudes) {
  std::mt19937_64 random(3);
  for (int spread : {1, 10, 40, 250}) {
    for (const PackedLayout& layout : AllLayouts(272, 144)) {
      SCOPED_TRACE(Describe(layout) + " spread " + std::to_string(spread));
      std::vector<float> values(272 * 144);
      for (size_t i = 0; i < values.size(); i += kBlockSize) {
        const int exponent = static_cast<int>(random() % spread) - std::min(spread / 2, 125);
        for (int j = 0; j < kBlockSize; ++j) {
          values[i + j] = std::ldexp(static_cast<float>(random() % 4001) / 2000 - 1, exponent);
        }
      }
      const MatrixView x = {values.data(), DType::kF32, 272, 144};
      ExpectSame(x, RandomPacked(layout, false, static_cast<uint32_t>(spread)));
      PackedTensor modest = RandomPacked(layout, false, static_cast<uint32_t>(spread));
      std::fill(modest.amax.begin(), modest.amax.end(), 1.5f);
      ExpectSame(x, modest);
      EXPECT_TRUE(cuda_->MeasureError(x, modest.view()).ok());
      modest.scale[modest.layout.scale_offset(100, 5)] = 0x7F;
      ExpectSame(x, modest);
      EXPECT_EQ(cuda_->MeasureError(x, modest.view()).status().code(),
                absl::StatusCode::kFailedPrecondition);
    }
  }
}

TEST_F(CudaMeasureErrorTest, EveryShape) {
  for (int64_t rows : {0, 1, 3, 1000}) {
    for (int64_t cols : {16, 48, 4096}) {
      const std::vector<std::byte> bytes =
          ToBytes(SyntheticValues(Distribution::kOutliers, rows * cols, 3), DType::kBf16);
      const MatrixView x = {bytes.data(), DType::kBf16, rows, cols};
      ExpectSame(x, *cpu_->Quantize({}, x));
    }
  }
}

// More than a thread's window could hold if it were not emptied now and then, at every place that a
// sum may have in a window.
TEST_F(CudaMeasureErrorTest, ManyBlocksAThread) {
  constexpr int64_t kBlocks = 300000;
  static_assert(kBlocks / (32 * 4) > 2048);
  for (int exponent = 0; exponent < 16; ++exponent) {
    std::vector<float> values(kBlocks * 16, std::ldexp(1.9f, exponent));
    for (size_t i = 0; i < values.size(); i += 3) values[i] /= 2;
    // A thread's first block puts its windows one digit below the sums of all that follow, which
    // then come to lie at the windows' upper end.
    for (size_t i = 0; i < 256 * kBlockSize; ++i) values[i] *= 0x1p-16f;
    const MatrixView x = {values.data(), DType::kF32, 1, kBlocks * 16};
    const PackedTensor packed = *cpu_->Quantize({}, x);
    const DeviceArray<float> device_x(values);
    const DevicePackedTensor in(packed);
    const DeviceArray<ErrorTotals> totals(1);
    MeasureErrorArgs args = {device_x.get(), in.args(), totals.get()};
    args.most_thread_blocks = 1;
    ASSERT_EQ(LaunchMeasureError(DType::kF32, args, 0, nullptr), cudaSuccess);
    EXPECT_TRUE(
        SameStats(*cpu_->MeasureError(x, packed.view()), ErrorStats(totals.Get()[0], kBlocks)))
        << exponent;
  }
}

TEST_F(CudaMeasureErrorTest, RefusesNonFiniteValuesAsTheCpuDoes) {
  std::vector<float> values(160, 1.0f);
  const MatrixView x = {values.data(), DType::kF32, 2, 80};
  const PackedTensor packed = *cpu_->Quantize({}, x);
  values[37] = -INFINITY;
  values[99] = NAN;
  EXPECT_EQ(cuda_->MeasureError(x, packed.view()).status(),
            cpu_->MeasureError(x, packed.view()).status());
  EXPECT_FALSE(cuda_->MeasureError(x, packed.view()).ok());
}

TEST_F(CudaMeasureErrorTest, EveryConfigReplaysFromAGraph) {
  constexpr int64_t kRows = 5001, kCols = 48;
  const std::vector<float> first = SyntheticValues(Distribution::kNormal, kRows * kCols, 1);
  const std::vector<float> second = SyntheticValues(Distribution::kOutliers, kRows * kCols, 2);
  QuantizeParams params;
  params.scheme = Scheme::kPerToken;
  params.swizzle = true;
  for (DType dtype : kInputDTypes) {
    const std::vector<std::byte> before = ToBytes(first, dtype), after = ToBytes(second, dtype);
    const MatrixView x = {after.data(), dtype, kRows, kCols};
    const PackedTensor packed = *cpu_->Quantize(params, x);
    const ErrorStats expected = *cpu_->MeasureError(x, packed.view());
    for (size_t config = 0; config < std::size(kMeasureErrorConfigs); ++config) {
      SCOPED_TRACE(config);
      DeviceArray<std::byte> device_x(before);
      DevicePackedTensor in(*cpu_->Quantize(params, {before.data(), dtype, kRows, kCols}));
      DeviceArray<ErrorTotals> totals(1);
      totals.Fill(0x5A);
      const MeasureErrorArgs args = {device_x.get(), in.args(), totals.get()};
      ReplayFromGraph(
          [&](cudaStream_t stream) {
            return LaunchMeasureError(dtype, args, static_cast<int>(config), stream);
          },
          [&] {
            device_x.Set(after);
            in.Set(packed);
          });
      EXPECT_TRUE(SameStats(expected, ErrorStats(totals.Get()[0], packed.layout.blocks())));
    }
  }
}

// Before a device is touched.
TEST(CudaMeasureErrorLaunchTest, RefusesUnknownConfigsAndTypes) {
  EXPECT_EQ(LaunchMeasureError(DType::kBf16, {}, 99, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchMeasureError(DType::kBf16, {}, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchMeasureError(DType::kF64, {}, 0, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace nibble
