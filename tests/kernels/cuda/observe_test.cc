// Observations on the device against the CPU's, for every launch shape, directly and replayed from
// a graph.
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/cuda/observe_launch.h"
#include "tests/testing/cuda.h"
#include "tests/testing/random_bits.h"

namespace nibble {
namespace {

using ::nibble::testing::CudaTest;
using ::nibble::testing::DeviceArray;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::RandomBits;
using ::nibble::testing::ReplayFromGraph;

constexpr int kObserveShapes = static_cast<int>(std::size(kObserveConfigs));
constexpr ObserveParams kEverything = {true, true, true, true};

// The outputs of a launch, filled with bytes that would show.
struct Outputs {
  int64_t rows, cols;
  DeviceArray<float> amax, row_amax, column_amax, block_amax;
  DeviceArray<uint64_t> histogram;
  DeviceArray<NonFiniteCounts> non_finite;

  Outputs(int64_t rows, int64_t cols)
      : rows(rows),
        cols(cols),
        amax(1),
        row_amax(rows),
        column_amax(cols),
        block_amax(rows * cols / 16),
        histogram(kLog2Bins),
        non_finite(1) {
    for (auto* floats : {&amax, &row_amax, &column_amax, &block_amax}) floats->Fill(0x77);
    histogram.Fill(0x77);
    non_finite.Fill(0x77);
  }

  ObserveArgs Args(const void* x, const ObserveParams& params) const {
    return {.x = x,
            .rows = rows,
            .cols = cols,
            .amax = amax.get(),
            .row_amax = params.row_amax ? row_amax.get() : nullptr,
            .column_amax = params.column_amax ? column_amax.get() : nullptr,
            .block_amax = params.block_amax ? block_amax.get() : nullptr,
            .histogram = params.histogram ? histogram.get() : nullptr,
            .non_finite = non_finite.get()};
  }

  Observation Get(const ObserveParams& params) const {
    const NonFiniteCounts counts = non_finite.Get()[0];
    Observation o;
    o.params = params;
    o.rows = rows;
    o.cols = cols;
    o.amax = amax.Get()[0];
    if (params.row_amax) o.row_amax = row_amax.Get();
    if (params.column_amax) o.column_amax = column_amax.Get();
    if (params.block_amax) o.block_amax = block_amax.Get();
    if (params.histogram) o.histogram = histogram.Get();
    o.nan_count = static_cast<int64_t>(counts.nan);
    o.inf_count = static_cast<int64_t>(counts.inf);
    o.first_non_finite = counts.first;
    return o;
  }
};

class CudaObserveTest : public CudaTest {
 protected:
  // Every config.
  void ExpectWhatTheCpuSees(const ObserveParams& params, const std::vector<std::byte>& bytes,
                            DType dtype, int64_t rows, int64_t cols) {
    const Observation expected = *cpu_->Observe(params, {bytes.data(), dtype, rows, cols});
    DeviceArray<std::byte> x(bytes);
    for (int config = 0; config < kObserveShapes; ++config) {
      SCOPED_TRACE(std::to_string(rows) + "x" + std::to_string(cols) + " " +
                   std::string(DTypeName(dtype)) + ", config " + std::to_string(config));
      const Outputs outputs(rows, cols);
      ASSERT_EQ(LaunchObserve(dtype, outputs.Args(x.get(), params), config, nullptr), cudaSuccess);
      EXPECT_EQ(outputs.Get(params), expected);
    }
  }
};

TEST_F(CudaObserveTest, EveryShapeTypeAndConfig) {
  for (int64_t rows : {0, 1, 3, 31, 33, 257, 600}) {
    for (int64_t cols : {16, 48, 128, 272, 528}) {
      for (DType dtype : kInputDTypes) {
        const std::vector<std::byte> bytes =
            ToBytes(SyntheticValues(Distribution::kOneHot, rows * cols, 1), dtype);
        ExpectWhatTheCpuSees(kEverything, bytes, dtype, rows, cols);
      }
    }
  }
}

TEST_F(CudaObserveTest, AnyBitPattern) {
  for (DType dtype : kInputDTypes) {
    const std::vector<std::byte> bytes = RandomBits(300 * 800 * DTypeBytes(dtype), 3);
    ExpectWhatTheCpuSees(kEverything, bytes, dtype, 300, 800);
  }
}

TEST_F(CudaObserveTest, OneBadElementAnywhere) {
  for (DType dtype : kInputDTypes) {
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      for (int64_t at : {0, 17, 40 * 272 + 271, 69 * 272, 70 * 272 - 1}) {
        std::vector<float> values = SyntheticValues(Distribution::kNormal, 70 * 272, 1);
        values[at] = bad;
        const std::vector<std::byte> bytes = ToBytes(values, dtype);
        ExpectWhatTheCpuSees(kEverything, bytes, dtype, 70, 272);
      }
    }
  }
}

TEST_F(CudaObserveTest, OnlyWhatIsAskedFor) {
  const std::vector<std::byte> bytes = RandomBits(70 * 272 * 2, 4);
  for (int mask = 0; mask < 16; ++mask) {
    const ObserveParams params = {(mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0,
                                  (mask & 8) != 0};
    ExpectWhatTheCpuSees(params, bytes, DType::kBf16, 70, 272);
  }
  // Not even the tensor's maximum or the counts.
  DeviceArray<std::byte> x(bytes);
  DeviceArray<float> column_amax(272);
  const ObserveArgs args = {
      .x = x.get(), .rows = 70, .cols = 272, .column_amax = column_amax.get()};
  ASSERT_EQ(LaunchObserve(DType::kBf16, args, /*config=*/0, nullptr), cudaSuccess);
  EXPECT_EQ(column_amax.Get(),
            cpu_->Observe(kEverything, {bytes.data(), DType::kBf16, 70, 272})->column_amax);
}

TEST_F(CudaObserveTest, EveryConfigReplaysFromAGraph) {
  constexpr int64_t kRows = 515, kCols = 304;
  for (DType dtype : kInputDTypes) {
    // Larger values first: maxima that a replay did not begin anew would stay.
    const std::vector<std::byte> first =
        ToBytes(SyntheticValues(Distribution::kOutliers, kRows * kCols, 1), dtype);
    const std::vector<std::byte> second =
        ToBytes(SyntheticValues(Distribution::kUniform, kRows * kCols, 2), dtype);
    const Observation expected = *cpu_->Observe(kEverything, {second.data(), dtype, kRows, kCols});
    for (int config = 0; config < kObserveShapes; ++config) {
      SCOPED_TRACE(config);
      DeviceArray<std::byte> x(first);
      const Outputs outputs(kRows, kCols);
      const ObserveArgs args = outputs.Args(x.get(), kEverything);
      ASSERT_EQ(LaunchObserve(dtype, args, config, nullptr), cudaSuccess);
      ReplayFromGraph(
          [&](cudaStream_t stream) { return LaunchObserve(dtype, args, config, stream); },
          [&] { x.Set(second); });
      EXPECT_EQ(outputs.Get(kEverything), expected);
    }
  }
}

TEST_F(CudaObserveTest, TheBackendObservesAsTheCpuDoes) {
  for (DType dtype : kInputDTypes) {
    const std::vector<std::byte> bytes = RandomBits(90 * 48 * DTypeBytes(dtype), 5);
    const MatrixView x = {bytes.data(), dtype, 90, 48};
    EXPECT_EQ(*cuda_->Observe(kEverything, x), *cpu_->Observe(kEverything, x));
    EXPECT_EQ(*cuda_->Observe({}, x), *cpu_->Observe({}, x));
  }
}

// More than 2^31 elements, by width and by height.
TEST_F(CudaObserveTest, MoreElementsThanAnInt32Counts) {
  const std::pair<int64_t, int64_t> shapes[] = {{(int64_t{1} << 19) + 5, 4096},
                                                {(int64_t{1} << 27) + 7, 16}};
  for (const auto& [rows, cols] : shapes) {
    SCOPED_TRACE(rows);
    DeviceArray<uint16_t> x(rows * cols);
    x.Fill(0x3C);
    // A large value in the last block but one, two that are not finite in the last.
    const std::vector<uint16_t> end = {0xC049, 0, 0,      0, 0, 0, 0, 0, 0,      0, 0,
                                       0,      0, 0,      0, 0, 0, 0, 0, 0x7F80, 0, 0,
                                       0,      0, 0xFFC1, 0, 0, 0, 0, 0, 0,      0};
    ASSERT_EQ(cudaMemcpy(x.get() + rows * cols - 32, end.data(), 64, cudaMemcpyHostToDevice),
              cudaSuccess);
    const float usual = FloatFromBf16(0x3C3C), large = FloatFromBf16(0x4049);
    const Outputs outputs(rows, cols);
    ASSERT_EQ(
        LaunchObserve(DType::kBf16, outputs.Args(x.get(), kEverything), /*config=*/0, nullptr),
        cudaSuccess);
    const Observation seen = outputs.Get(kEverything);
    const int64_t blocks = rows * cols / 16, row_of_large = (rows * cols - 32) / cols;
    EXPECT_EQ(seen.amax, large);
    EXPECT_EQ(seen.nan_count, 1);
    EXPECT_EQ(seen.inf_count, 1);
    EXPECT_EQ(seen.first_non_finite, rows * cols - 32 + 19);
    EXPECT_EQ(seen.histogram[0], 1u);
    EXPECT_EQ(seen.histogram[Log2Bin(usual)], static_cast<uint64_t>(blocks - 2));
    EXPECT_EQ(seen.histogram[Log2Bin(large)], 1u);
    std::vector<float> row_amax(rows, usual), column_amax(cols, usual), block_amax(blocks, usual);
    block_amax[blocks - 2] = large;
    block_amax[blocks - 1] = 0.0f;
    if (cols == 16) row_amax[rows - 1] = 0.0f;
    row_amax[row_of_large] = large;
    column_amax[(rows * cols - 32) % cols] = large;
    EXPECT_TRUE(seen.row_amax == row_amax);
    EXPECT_TRUE(seen.column_amax == column_amax);
    EXPECT_TRUE(seen.block_amax == block_amax);
  }
}

// Before a device is touched.
TEST(CudaObserveLaunchTest, RefusesUnknownConfigsAndTypes) {
  const ObserveArgs args = {.rows = 1, .cols = 16};
  EXPECT_EQ(LaunchObserve(DType::kBf16, args, kObserveShapes, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchObserve(DType::kBf16, args, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchObserve(DType::kF64, args, 0, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace nibble
