// The outer scales on the device against the CPU's bytes, for every launch shape, directly and
// replayed from a graph.
#include <cmath>
#include <iterator>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/post_scale_launch.h"
#include "tests/testing/bytes.h"
#include "tests/testing/cuda.h"

namespace nibble {
namespace {

using ::nibble::testing::CudaTest;
using ::nibble::testing::DeviceArray;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::ReplayFromGraph;
using ::nibble::testing::SameBytes;

// Any bits: NaN, infinities, subnormals.
std::vector<std::byte> AnyBytes(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// Mostly ordinary, some that over- or underflow, infinite or NaN.
std::vector<float> Factors(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  const float special[] = {0.0f, -0.0f, 1e-45f, 1e-30f, 3e38f, INFINITY, NAN, 1.0f};
  std::vector<float> factors(count);
  for (float& f : factors) {
    f = random() % 8 == 0 ? special[random() % 8]
                          : std::ldexp(1 + 0x1p-23f * static_cast<float>(random() % (1 << 23)),
                                       static_cast<int>(random() % 40) - 20);
  }
  return factors;
}

class CudaPostScaleTest : public CudaTest {
 protected:
  std::vector<std::byte> Expected(std::vector<std::byte> d, DType dtype, int64_t rows, int64_t cols,
                                  const std::vector<float>& a, const std::vector<float>& b) {
    EXPECT_TRUE(cpu_->PostScale({d.data(), dtype, rows, cols}, a, b).ok());
    return d;
  }
};

TEST_F(CudaPostScaleTest, EveryShapeOfAnyBytes) {
  uint64_t seed = 0;
  for (int64_t rows : {0, 1, 3, 257}) {
    for (int64_t cols : {1, 7, 8, 48, 1000, 1001, 4096}) {
      for (DType dtype : kInputDTypes) {
        for (bool per_row : {false, true}) {
          for (bool per_col : {false, true}) {
            SCOPED_TRACE(std::to_string(rows) + "x" + std::to_string(cols) + " " +
                         std::string(DTypeName(dtype)));
            const std::vector<float> a = Factors(per_row ? rows : 1, ++seed);
            const std::vector<float> b = Factors(per_col ? cols : 1, ++seed);
            std::vector<std::byte> d = AnyBytes(rows * cols * DTypeBytes(dtype), ++seed);
            const std::vector<std::byte> expected = Expected(d, dtype, rows, cols, a, b);
            const absl::Status status = cuda_->PostScale({d.data(), dtype, rows, cols}, a, b);
            ASSERT_TRUE(status.ok()) << status;
            EXPECT_TRUE(SameBytes(expected, d));
          }
        }
      }
    }
  }
}

// Every value of the 16-bit types under factors that round in every way.
TEST_F(CudaPostScaleTest, EveryHalf) {
  std::vector<uint16_t> halves(1 << 16);
  for (int i = 0; i < 1 << 16; ++i) halves[i] = static_cast<uint16_t>(i);
  const std::vector<float> a = Factors(256, 1), b = Factors(256, 2);
  for (DType dtype : {DType::kBf16, DType::kF16}) {
    std::vector<uint16_t> expected = halves, actual = halves;
    ASSERT_TRUE(cpu_->PostScale({expected.data(), dtype, 256, 256}, a, b).ok());
    ASSERT_TRUE(cuda_->PostScale({actual.data(), dtype, 256, 256}, a, b).ok());
    EXPECT_TRUE(SameBytes(expected, actual));
  }
}

TEST_F(CudaPostScaleTest, EveryConfigReplaysFromAGraph) {
  constexpr int64_t kRows = 333;
  for (int64_t cols : {208, 205}) {
    for (DType dtype : kInputDTypes) {
      const std::vector<float> a = Factors(kRows, 1), b = Factors(cols, 2);
      const int64_t bytes = kRows * cols * DTypeBytes(dtype);
      const std::vector<std::byte> after = AnyBytes(bytes, 3);
      std::vector<std::byte> expected = Expected(after, dtype, kRows, cols, a, b);
      expected.resize(bytes + 64, std::byte{0x5A});  // what lies behind stays as it was
      for (size_t config = 0; config < std::size(kPostScaleConfigs); ++config) {
        SCOPED_TRACE(config);
        DeviceArray<std::byte> d(bytes + 64);
        DeviceArray<float> row(kRows), col(cols);
        const PostScaleArgs args = {.d = d.get(),
                                    .rows = kRows,
                                    .cols = cols,
                                    .row_decode_scale = row.get(),
                                    .col_decode_scale = col.get()};
        ReplayFromGraph(
            [&](cudaStream_t stream) {
              return LaunchPostScale(dtype, args, static_cast<int>(config), stream);
            },
            [&] {
              std::vector<std::byte> padded = after;
              padded.resize(bytes + 64, std::byte{0x5A});
              d.Set(padded);
              row.Set(a);
              col.Set(b);
            });
        EXPECT_TRUE(SameBytes(expected, d.Get()));
      }
    }
  }
}

// Before a device is touched.
TEST(CudaPostScaleLaunchTest, RefusesUnknownConfigsAndTypes) {
  EXPECT_EQ(LaunchPostScale(DType::kBf16, {}, 99, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchPostScale(DType::kBf16, {}, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchPostScale(DType::kF64, {}, 0, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace nibble
