// The multiplier grid on the device against the CPU's bytes, for every launch shape, directly and
// replayed from a graph.
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/cuda/multiplier_search_launch.h"
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
using ::nibble::testing::SameSweep;

class CudaMultiplierSearchTest : public CudaTest {
 protected:
  void ExpectSame(const MultiplierSearchParams& params, const MatrixView& x) {
    const auto expected = cpu_->MultiplierSearch(params, x);
    const auto actual = cuda_->MultiplierSearch(params, x);
    ASSERT_EQ(expected.status(), actual.status());
    if (!expected.ok()) return;
    EXPECT_TRUE(SameSweep(*expected, *actual));
    // Of the CPU's candidates the device skips those that cannot win.
    EXPECT_LE(actual->evaluations, expected->evaluations);
    EXPECT_EQ(actual->global_amax, expected->global_amax);
  }
};

TEST_F(CudaMultiplierSearchTest, EveryDistribution) {
  for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
    for (DType dtype : kInputDTypes) {
      SCOPED_TRACE(std::string(kEnumNames<Distribution>[d]) + " " + std::string(DTypeName(dtype)));
      const std::vector<std::byte> bytes =
          ToBytes(SyntheticValues(static_cast<Distribution>(d), 333 * 208, d + 1), dtype);
      const MatrixView x = {bytes.data(), dtype, 333, 208};
      const float amax = *cpu_->Amax(x);
      for (float g : {amax, 4 * amax, 0.3f * amax, 100 * amax}) {
        for (int e4m3_max : {448, 256}) ExpectSame({{}, e4m3_max, g}, x);
      }
    }
  }
}

// One multiplier, many, only too small ones, only too large ones, steps that round to nothing.
TEST_F(CudaMultiplierSearchTest, EveryGrid) {
  const std::vector<float> values = SyntheticValues(Distribution::kOutliers, 200 * 64, 7);
  const MatrixView x = {values.data(), DType::kF32, 200, 64};
  for (const MultiplierGrid grid :
       {MultiplierGrid{1, 1, 0.1f}, MultiplierGrid{0.25f, 4, 0.001f},
        MultiplierGrid{0.01f, 0.5f, 0.01f}, MultiplierGrid{3, 300, 0.1f},
        MultiplierGrid{1e-30f, 1e-20f, 1e-23f}, MultiplierGrid{1e20f, 1e30f, 1e27f},
        MultiplierGrid{1, 1.0001f, 5e-8f}, MultiplierGrid{0.5f, 2, 0.5f},
        MultiplierGrid{0.1f, 100, 0.03f}}) {
    SCOPED_TRACE(std::to_string(grid.start) + " " + std::to_string(grid.stop));
    for (float g : {5.0f, 50.0f, 0.5f}) ExpectSame({grid, 448, g}, x);
  }
}

TEST_F(CudaMultiplierSearchTest, AdversarialScales) {
  std::vector<float> values = SyntheticValues(Distribution::kNormal, 64 * 16, 5);
  for (size_t i = 0; i < 64; ++i) values[i] *= 1e20f;  // squares overflow
  for (size_t i = 64; i < 128; ++i) values[i] *= 8e37f;
  for (size_t i = 128; i < 192; ++i) values[i] *= 1e-40f;  // ratios underflow
  for (size_t i = 192; i < 256; ++i) values[i] *= 1e-44f;
  const MatrixView x = {values.data(), DType::kF32, 1, 64 * 16};
  for (float g : {0.0f, 1e-45f, 1e-39f, 1e-30f, 1e-24f, 1e-3f, 1.0f, 1e20f, 1e30f, 3.4e38f}) {
    SCOPED_TRACE(g);
    for (const MultiplierGrid grid : {MultiplierGrid{}, MultiplierGrid{1e-6f, 10, 0.01f}}) {
      ExpectSame({grid, 448, g}, x);
    }
  }
}

TEST_F(CudaMultiplierSearchTest, EveryShape) {
  for (int64_t rows : {0, 1, 3, 1000}) {
    for (int64_t cols : {16, 48, 4096}) {
      const std::vector<std::byte> bytes =
          ToBytes(SyntheticValues(Distribution::kOutliers, rows * cols, 3), DType::kBf16);
      ExpectSame({}, {bytes.data(), DType::kBf16, rows, cols});
    }
  }
}

TEST_F(CudaMultiplierSearchTest, RefusesNonFiniteValuesAsTheCpuDoes) {
  std::vector<float> values(160, 1.0f);
  values[37] = -INFINITY;
  values[99] = NAN;
  ExpectSame({}, {values.data(), DType::kF32, 2, 80});
  EXPECT_FALSE(cuda_->MultiplierSearch({}, {values.data(), DType::kF32, 2, 80}).ok());
}

TEST_F(CudaMultiplierSearchTest, EveryConfigReplaysFromAGraph) {
  constexpr int64_t kBlocks = 5001;
  const std::vector<float> first = SyntheticValues(Distribution::kNormal, kBlocks * 16, 1);
  const std::vector<float> second = SyntheticValues(Distribution::kStudentT5, kBlocks * 16, 2);
  for (DType dtype : kInputDTypes) {
    const std::vector<std::byte> before = ToBytes(first, dtype), after = ToBytes(second, dtype);
    const SweepResult expected =
        *cpu_->MultiplierSearch({}, {after.data(), dtype, 1, kBlocks * 16});
    for (size_t config = 0; config < std::size(kMultiplierSearchConfigs); ++config) {
      SCOPED_TRACE(config);
      DeviceArray<std::byte> x(before);
      DeviceArray<float> g(1), best_amax(kBlocks), loss(kBlocks);
      DeviceArray<uint8_t> code(kBlocks);
      DeviceArray<char> workspace(MultiplierSearchWorkspaceBytes({}));
      const MultiplierSearchArgs args = {
          .x = x.get(),
          .blocks = kBlocks,
          .global_amax = g.get(),
          .bound = 448,
          .grid = {},
          .workspace = workspace.get(),
          .code = code.get(),
          .best_amax = best_amax.get(),
          .loss = loss.get(),
          .counts = nullptr,
      };
      ReplayFromGraph(
          [&](cudaStream_t stream) {
            return LaunchMultiplierSearch(dtype, args, static_cast<int>(config), stream);
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

// Before a device is touched.
TEST(CudaMultiplierSearchLaunchTest, RefusesUnknownConfigsAndTypes) {
  EXPECT_EQ(LaunchMultiplierSearch(DType::kBf16, {}, 99, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchMultiplierSearch(DType::kBf16, {}, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchMultiplierSearch(DType::kF64, {}, 0, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace nibble
