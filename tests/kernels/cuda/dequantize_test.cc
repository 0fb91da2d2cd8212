// Dequantize on the device against the CPU's bytes, for every layout and launch shape, directly and
// replayed from a graph.
#include <iterator>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/cuda/dequantize_launch.h"
#include "tests/testing/bytes.h"
#include "tests/testing/cuda.h"
#include "tests/testing/packed.h"

namespace nibble {
namespace {

using ::nibble::testing::AllLayouts;
using ::nibble::testing::CudaTest;
using ::nibble::testing::Describe;
using ::nibble::testing::DeviceArray;
using ::nibble::testing::DevicePackedTensor;
using ::nibble::testing::RandomPacked;
using ::nibble::testing::ReplayFromGraph;
using ::nibble::testing::SameBytes;

constexpr DType kOutputDTypes[] = {DType::kBf16, DType::kF32};

class CudaDequantizeTest : public CudaTest {
 protected:
  std::vector<std::byte> Expected(const PackedView& packed, DType dtype) {
    std::vector<std::byte> out(packed.layout.rows * packed.layout.cols * DTypeBytes(dtype));
    EXPECT_TRUE(cpu_->Dequantize(packed, dtype, out.data()).ok());
    return out;
  }
  void ExpectSame(const PackedTensor& packed) {
    for (DType dtype : kOutputDTypes) {
      SCOPED_TRACE(Describe(packed.layout) + " " + std::string(DTypeName(dtype)));
      const std::vector<std::byte> expected = Expected(packed.view(), dtype);
      std::vector<std::byte> actual(expected.size());
      const absl::Status status = cuda_->Dequantize(packed.view(), dtype, actual.data());
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_TRUE(SameBytes(expected, actual));
    }
  }
};

// Any bytes, NaN scales, maxima of 0 and of the largest float: where float32 overflows, too.
TEST_F(CudaDequantizeTest, EveryLayoutOfAnyBytes) {
  uint32_t seed = 0;
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{0, 16}, {1, 16}, {1, 4096}, {16, 16}, {16, 48}, {144, 208}}) {
    for (const PackedLayout& layout : AllLayouts(rows, cols)) {
      for (int i = 0; i < 4; ++i) ExpectSame(RandomPacked(layout, i % 2 == 0, ++seed));
    }
  }
}

TEST_F(CudaDequantizeTest, ManyNarrowRows) {
  for (const PackedLayout& layout : AllLayouts(16 * 4001, 16)) {
    ExpectSame(RandomPacked(layout, true, 3));
  }
}

// All codes under all scales and a spread of global scales.
TEST_F(CudaDequantizeTest, EveryCodeUnderEveryScale) {
  PackedTensor packed({256, 16, Scheme::kPerToken, Rule::kRuntime, 448, false});
  for (int s = 0; s < 256; ++s) {
    packed.scale[s] = static_cast<uint8_t>(s);
    for (int j = 0; j < 8; ++j)
      packed.packed[s * 8 + j] = static_cast<uint8_t>(2 * j | (2 * j + 1) << 4);
  }
  for (int exponent = -149; exponent < 128; ++exponent) {
    for (float mantissa : {1.0f, 1.2f, 1.9f}) {
      std::fill(packed.amax.begin(), packed.amax.end(), std::ldexp(mantissa, exponent));
      ExpectSame(packed);
    }
  }
}

TEST_F(CudaDequantizeTest, WhatTheCpuQuantized) {
  for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
    const std::vector<std::byte> bytes =
        ToBytes(SyntheticValues(static_cast<Distribution>(d), 160 * 208, d + 1), DType::kBf16);
    for (Scheme scheme : {Scheme::kPerTensor, Scheme::kPerToken, Scheme::kTile2d}) {
      QuantizeParams params;
      params.scheme = scheme;
      ExpectSame(*cpu_->Quantize(params, {bytes.data(), DType::kBf16, 160, 208}));
    }
  }
}

TEST_F(CudaDequantizeTest, RefusesWhatTheCpuRefuses) {
  PackedTensor packed({2, 16, Scheme::kPerToken, Rule::kRuntime, 448, false});
  std::vector<double> out(32);
  packed.amax[1] = -1.0f;
  EXPECT_EQ(cuda_->Dequantize(packed.view(), DType::kF32, out.data()),
            cpu_->Dequantize(packed.view(), DType::kF32, out.data()));
  EXPECT_EQ(cuda_->Dequantize(packed.view(), DType::kF64, out.data()),
            cpu_->Dequantize(packed.view(), DType::kF64, out.data()));
}

// Every launch shape, captured in a graph and replayed on data that was not there at capture. What
// lies behind the output stays as it was.
TEST_F(CudaDequantizeTest, EveryConfigReplaysFromAGraph) {
  for (const PackedLayout& layout : AllLayouts(16 * 77, 48)) {
    SCOPED_TRACE(Describe(layout));
    const PackedTensor before = RandomPacked(layout, true, 1);
    const PackedTensor after = RandomPacked(layout, true, 2);
    for (DType dtype : kOutputDTypes) {
      std::vector<std::byte> expected = Expected(after.view(), dtype);
      expected.resize(expected.size() + 64, std::byte{0x5A});
      for (size_t config = 0; config < std::size(kDequantizeConfigs); ++config) {
        SCOPED_TRACE(config);
        DevicePackedTensor in(before);
        DeviceArray<std::byte> out(expected.size());
        ReplayFromGraph(
            [&](cudaStream_t stream) {
              return LaunchDequantize(dtype, {in.args(), out.get()}, static_cast<int>(config),
                                      stream);
            },
            [&] {
              in.Set(after);
              out.Fill(0x5A);
            });
        EXPECT_TRUE(SameBytes(expected, out.Get()));
      }
    }
  }
}

// Without a global scale: codes times block scales, exact in bf16.
TEST_F(CudaDequantizeTest, WithoutTheGlobalScale) {
  for (bool swizzled : {false, true}) {
    const PackedTensor packed =
        RandomPacked({144, 80, Scheme::kPerToken, Rule::kRuntime, 448, swizzled}, false, 5);
    std::vector<float> expected(144 * 80);
    for (int64_t i = 0; i < 144 * 80; ++i) {
      const uint8_t pair = packed.packed[i / 2];
      expected[i] = Dequantize(i % 2 ? pair >> 4 : pair & 15,
                               packed.scale[packed.layout.scale_offset(i / 80, i % 80 / 16)], 1.0f);
    }
    DevicePackedTensor in(packed);
    PackedArgs args = in.args();
    args.amax = nullptr;
    for (DType dtype : kOutputDTypes) {
      DeviceArray<std::byte> out(expected.size() * DTypeBytes(dtype));
      ASSERT_EQ(LaunchDequantize(dtype, {args, out.get()}, 0, nullptr), cudaSuccess);
      EXPECT_TRUE(SameBytes(ToBytes(expected, dtype), out.Get()));
    }
  }
}

// Before a device is touched.
TEST(CudaDequantizeLaunchTest, RefusesUnknownConfigsAndTypes) {
  EXPECT_EQ(LaunchDequantize(DType::kBf16, {}, 99, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchDequantize(DType::kBf16, {}, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchDequantize(DType::kF16, {}, 0, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace nibble
