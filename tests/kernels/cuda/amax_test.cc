// The largest magnitude on the device, for every launch shape, directly and replayed from a graph.
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/cuda/amax_launch.h"
#include "quant/numerics/float_bits.h"
#include "tests/testing/cuda.h"

namespace nibble {
namespace {

using ::nibble::testing::CudaTest;
using ::nibble::testing::DeviceArray;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::ReplayFromGraph;

constexpr int kAmaxShapes = static_cast<int>(std::size(kAmaxConfigs));

using CudaAmaxTest = CudaTest;

TEST_F(CudaAmaxTest, EveryShapeTypeAndConfig) {
  for (int64_t blocks : {0, 1, 2, 255, 257, 4096, 70001}) {
    for (DType dtype : kInputDTypes) {
      std::vector<float> values = SyntheticValues(Distribution::kOneHot, blocks * 16, 1);
      for (float& value : values) value = -std::fabs(value);
      // The largest may be the first or the last.
      for (int64_t at : {int64_t{0}, blocks * 16 - 1}) {
        if (blocks != 0) values[at] = -100.0f;
        const std::vector<std::byte> bytes = ToBytes(values, dtype);
        DeviceArray<std::byte> x(bytes);
        for (int config = 0; config < kAmaxShapes; ++config) {
          SCOPED_TRACE(std::to_string(blocks) + " " + std::string(DTypeName(dtype)) + ", config " +
                       std::to_string(config));
          DeviceArray<float> amax(1);
          amax.Fill(0x77);
          ASSERT_EQ(LaunchAmax(dtype, x.get(), blocks, amax.get(), config, nullptr), cudaSuccess);
          EXPECT_EQ(amax.Get()[0], blocks == 0 ? 0.0f : 100.0f);
        }
        if (blocks != 0) values[at] = 0.0f;
      }
    }
  }
}

TEST_F(CudaAmaxTest, SmallestAndNotFinite) {
  for (DType dtype : kInputDTypes) {
    for (float value : {0.0f, -0.0f, 6e-8f, -6e-8f, INFINITY, -INFINITY, NAN}) {
      std::vector<float> values(5 * 16, value == value ? 0.0f : 1.0f);
      values[37] = value;
      values[38] = std::isnan(value) ? INFINITY : 0.0f;
      const std::vector<std::byte> bytes = ToBytes(values, dtype);
      DeviceArray<std::byte> x(bytes);
      for (int config = 0; config < kAmaxShapes; ++config) {
        SCOPED_TRACE(value);
        DeviceArray<float> amax(1);
        ASSERT_EQ(LaunchAmax(dtype, x.get(), 5, amax.get(), config, nullptr), cudaSuccess);
        const float seen = amax.Get()[0];
        if (std::isnan(value)) {
          EXPECT_TRUE(std::isnan(seen));
        } else if (std::isinf(value)) {
          EXPECT_EQ(seen, INFINITY);
        } else {
          EXPECT_EQ(seen, *cpu_->Amax({bytes.data(), dtype, 5, 16}));
          EXPECT_FALSE(std::signbit(seen));
        }
      }
    }
  }
}

TEST_F(CudaAmaxTest, EveryConfigReplaysFromAGraph) {
  constexpr int64_t kBlocks = 30001;
  for (DType dtype : kInputDTypes) {
    // Larger values first: a maximum that the replay did not begin anew would stay.
    const std::vector<std::byte> first =
        ToBytes(SyntheticValues(Distribution::kOutliers, kBlocks * 16, 1), dtype);
    const std::vector<std::byte> second =
        ToBytes(SyntheticValues(Distribution::kUniform, kBlocks * 16, 2), dtype);
    for (int config = 0; config < kAmaxShapes; ++config) {
      SCOPED_TRACE(config);
      DeviceArray<std::byte> x(first);
      DeviceArray<float> amax(1);
      ReplayFromGraph(
          [&](cudaStream_t stream) {
            return LaunchAmax(dtype, x.get(), kBlocks, amax.get(), config, stream);
          },
          [&] {
            x.Set(second);
            amax.Fill(0x77);
          });
      EXPECT_EQ(amax.Get()[0], *cpu_->Amax({second.data(), dtype, 1, kBlocks * 16}));
    }
  }
}

TEST_F(CudaAmaxTest, MoreElementsThanAnInt32Counts) {
  constexpr int64_t kBlocks = (int64_t{1} << 27) + 3;
  DeviceArray<uint16_t> x(kBlocks * 16);
  x.Fill(0x3C);
  for (int config = 0; config < kAmaxShapes; ++config) {
    for (const auto& [at, bits] : {std::pair{kBlocks * 16 - 1, uint16_t{0xC049}},
                                   std::pair{kBlocks * 16 - 20, uint16_t{0x4050}}}) {
      ASSERT_EQ(cudaMemcpy(x.get() + at, &bits, 2, cudaMemcpyHostToDevice), cudaSuccess);
      DeviceArray<float> amax(1);
      ASSERT_EQ(LaunchAmax(DType::kBf16, x.get(), kBlocks, amax.get(), config, nullptr),
                cudaSuccess);
      EXPECT_EQ(amax.Get()[0], FloatFromBf16(bits & 0x7FFF));
      ASSERT_EQ(cudaMemset(x.get() + at, 0, 2), cudaSuccess);
    }
  }
}

// Before a device is touched.
TEST(CudaAmaxLaunchTest, RefusesUnknownConfigsAndTypes) {
  EXPECT_EQ(LaunchAmax(DType::kBf16, nullptr, 1, nullptr, kAmaxShapes, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(LaunchAmax(DType::kBf16, nullptr, 1, nullptr, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchAmax(DType::kF64, nullptr, 1, nullptr, 0, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace nibble
