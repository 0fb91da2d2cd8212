// The sweep on the device against the CPU's bytes, for every launch shape, directly and replayed
// from a graph.
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/cuda/scale_sweep_launch.h"
#include "tests/testing/bytes.h"
#include "tests/testing/cuda.h"
#include "tests/testing/results.h"

namespace nibble {
namespace {

using ::nibble::testing::CudaTest;
using ::nibble::testing::DeviceArray;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::ReplayFromGraph;
using ::nibble::testing::SameBytes;
using ::nibble::testing::SamePacked;
using ::nibble::testing::SameSweep;

class CudaScaleSweepTest : public CudaTest {};

TEST_F(CudaScaleSweepTest, SweepsEveryDistribution) {
  for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
    for (DType dtype : kInputDTypes) {
      SCOPED_TRACE(std::string(kEnumNames<Distribution>[d]) + " " + std::string(DTypeName(dtype)));
      const std::vector<std::byte> bytes =
          ToBytes(SyntheticValues(static_cast<Distribution>(d), 333 * 208, d + 1), dtype);
      const MatrixView x = {bytes.data(), dtype, 333, 208};
      const float amax = *cuda_->Amax(x);
      EXPECT_EQ(amax, *cpu_->Amax(x));
      for (float g : {amax, 4 * amax, 0.3f * amax}) {
        for (int e4m3_max : {448, 256}) {
          for (SweepMethod method : {SweepMethod::kExhaustive, SweepMethod::kPruned}) {
            const ScaleSweepParams params = {method, e4m3_max, g};
            const auto actual = cuda_->ScaleSweep(params, x);
            ASSERT_TRUE(actual.ok()) << actual.status();
            const SweepResult expected = *cpu_->ScaleSweep(params, x);
            EXPECT_TRUE(SameSweep(expected, *actual));
            EXPECT_EQ(expected.near_ties, actual->near_ties);
            if (method == SweepMethod::kExhaustive) {
              EXPECT_EQ(actual->evaluations, 126 * x.size() / kBlockSize);
            }
          }
        }
      }
    }
  }
}

TEST_F(CudaScaleSweepTest, SweepsAdversarialScales) {
  std::vector<float> values = SyntheticValues(Distribution::kNormal, 64 * 16, 5);
  for (size_t i = 0; i < 64; ++i) values[i] *= 1e20f;  // squares overflow
  for (size_t i = 64; i < 128; ++i) values[i] *= 8e37f;
  for (size_t i = 128; i < 192; ++i) values[i] *= 1e-40f;
  const MatrixView x = {values.data(), DType::kF32, 1, 64 * 16};
  for (float g : {0.0f, 1e-45f, 1e-39f, 1e-30f, 1e-24f, 1e-3f, 1.0f, 1e30f, 3.4e38f}) {
    SCOPED_TRACE(g);
    const ScaleSweepParams params = {SweepMethod::kPruned, 448, g};
    EXPECT_TRUE(SameSweep(*cpu_->ScaleSweep(params, x), *cuda_->ScaleSweep(params, x)));
  }
}

TEST_F(CudaScaleSweepTest, SweepsEveryShape) {
  for (int64_t rows : {0, 1, 3, 1000}) {
    for (int64_t cols : {16, 48, 4096}) {
      const std::vector<std::byte> bytes =
          ToBytes(SyntheticValues(Distribution::kOutliers, rows * cols, 3), DType::kBf16);
      const MatrixView x = {bytes.data(), DType::kBf16, rows, cols};
      EXPECT_TRUE(SameSweep(*cpu_->ScaleSweep({}, x), *cuda_->ScaleSweep({}, x)));
    }
  }
}

TEST_F(CudaScaleSweepTest, RefusesNonFiniteValuesAsTheCpuDoes) {
  std::vector<float> values(160, 1.0f);
  values[37] = -INFINITY;
  values[99] = NAN;
  const MatrixView x = {values.data(), DType::kF32, 2, 80};
  EXPECT_EQ(cuda_->ScaleSweep({}, x).status(), cpu_->ScaleSweep({}, x).status());
}

// Every launch shape, captured in a graph and replayed on data that was not there at capture.
TEST_F(CudaScaleSweepTest, EveryConfigReplaysFromAGraph) {
  constexpr int64_t kBlocks = 5001;
  const std::vector<float> first = SyntheticValues(Distribution::kNormal, kBlocks * 16, 1);
  const std::vector<float> second = SyntheticValues(Distribution::kStudentT5, kBlocks * 16, 2);
  for (DType dtype : kInputDTypes) {
    const std::vector<std::byte> before = ToBytes(first, dtype), after = ToBytes(second, dtype);
    const SweepResult expected = *cpu_->ScaleSweep({}, {after.data(), dtype, 1, kBlocks * 16});
    for (size_t config = 0; config < std::size(kScaleSweepConfigs); ++config) {
      SCOPED_TRACE(config);
      DeviceArray<std::byte> x(before);
      DeviceArray<float> g(1), best_amax(kBlocks), loss(kBlocks);
      DeviceArray<uint8_t> code(kBlocks);
      DeviceArray<ScaleSweepTables> tables(1);
      const ScaleSweepArgs args = {
          .x = x.get(),
          .blocks = kBlocks,
          .global_amax = g.get(),
          .bound = 448,
          .exhaustive = false,
          .tables = tables.get(),
          .code = code.get(),
          .best_amax = best_amax.get(),
          .loss = loss.get(),
      };
      ReplayFromGraph(
          [&](cudaStream_t stream) {
            return LaunchScaleSweep(dtype, args, static_cast<int>(config), stream);
          },
          [&] {
            x.Set(after);
            g.Set({&expected.global_amax, 1});
          });
      EXPECT_TRUE(SameBytes(expected.code, code.Get()));
      EXPECT_TRUE(SameBytes(expected.best_amax, best_amax.Get()));
      EXPECT_TRUE(SameBytes(expected.loss, loss.Get()));
    }
  }
}

TEST_F(CudaScaleSweepTest, EncodesInTheSamePass) {
  for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
    for (DType dtype : kInputDTypes) {
      for (int64_t rows : {0, 1, 128, 333}) {
        SCOPED_TRACE(std::string(kEnumNames<Distribution>[d]) + " " +
                     std::string(DTypeName(dtype)) + " " + std::to_string(rows));
        const std::vector<std::byte> bytes =
            ToBytes(SyntheticValues(static_cast<Distribution>(d), rows * 208, d + 1), dtype);
        const MatrixView x = {bytes.data(), dtype, rows, 208};
        const float amax = *cpu_->Amax(x);
        for (float g : {amax, 4 * amax, 0.3f * amax}) {
          for (bool swizzle : {false, true}) {
            const ScaleSweepParams params = {SweepMethod::kPruned, swizzle ? 256 : 448, g};
            const auto expected = cpu_->SweepAndQuantize(params, x, swizzle);
            const auto actual = cuda_->SweepAndQuantize(params, x, swizzle);
            ASSERT_TRUE(expected.ok() && actual.ok()) << actual.status();
            EXPECT_TRUE(SamePacked(expected->packed, actual->packed));
            EXPECT_EQ(expected->loss, actual->loss);
          }
        }
      }
    }
  }
}

TEST_F(CudaScaleSweepTest, EveryConfigEncodesFromAGraph) {
  constexpr int64_t kRows = 130, kCols = 48 * 16, kBlocks = kRows * 48;
  const std::vector<float> first = SyntheticValues(Distribution::kNormal, kBlocks * 16, 1);
  const std::vector<float> second = SyntheticValues(Distribution::kStudentT5, kBlocks * 16, 2);
  for (DType dtype : kInputDTypes) {
    const std::vector<std::byte> before = ToBytes(first, dtype), after = ToBytes(second, dtype);
    const SweptTensor expected = *cpu_->SweepAndQuantize({}, {after.data(), dtype, kRows, kCols},
                                                         /*swizzle=*/true);
    for (size_t config = 0; config < std::size(kScaleSweepConfigs); ++config) {
      SCOPED_TRACE(config);
      DeviceArray<std::byte> x(before);
      DeviceArray<float> g(1);
      DeviceArray<uint8_t> packed(kBlocks * 8), scale(expected.packed.scale.size());
      DeviceArray<double> loss(1), group_sums(kBlocks / kLossGroup + 1);
      DeviceArray<ScaleSweepTables> tables(1);
      scale.Fill(0xAB);
      const ScaleSweepArgs args = {
          .x = x.get(),
          .blocks = kBlocks,
          .global_amax = g.get(),
          .tables = tables.get(),
          .encode = {.packed = packed.get(),
                     .swizzled_scale = scale.get(),
                     .blocks_per_row = 48,
                     .loss_sum = loss.get(),
                     .group_sums = group_sums.get()},
      };
      ReplayFromGraph(
          [&](cudaStream_t stream) {
            return LaunchScaleSweep(dtype, args, static_cast<int>(config), stream);
          },
          [&] {
            x.Set(after);
            g.Set(expected.packed.amax);
          });
      EXPECT_TRUE(SameBytes(expected.packed.packed, packed.Get()));
      EXPECT_TRUE(SameBytes(expected.packed.scale, scale.Get()));
      EXPECT_EQ(expected.loss, loss.Get()[0]);
    }
  }
}

// Before a device is touched.
TEST(CudaScaleSweepLaunchTest, RefusesUnknownConfigsAndTypes) {
  EXPECT_EQ(LaunchScaleSweep(DType::kBf16, {}, 99, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchScaleSweep(DType::kBf16, {}, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchScaleSweep(DType::kF64, {.blocks = 1}, 0, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace nibble
