// Tensors of more than 2^32 elements through the whole backend, under every launch shape: neither a
// signed nor an unsigned index of 32 bits reaches their end. The data repeat with a prime period,
// so that an index which wraps meets other numbers; the largest are in the last row. Parts of the
// results (the first rows, rows around element 2^31 and element 2^32, the last rows) are compared
// with what the CPU's backend makes of these rows alone.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "tests/testing/bytes.h"
#include "tests/testing/cuda.h"
#include "tests/testing/hessians.h"

namespace nibble {
namespace {

using ::nibble::testing::Activations;
using ::nibble::testing::BackendWithConfig;
using ::nibble::testing::CudaTest;
using ::nibble::testing::DeviceHasFree;
using ::nibble::testing::MakeHessians;
using ::nibble::testing::MostConfigs;
using ::nibble::testing::SameBytes;
using ::nibble::testing::SamePacked;

// 257 blocks a row: not a multiple of anything that kernels like.
constexpr int64_t kCols = 4112, kRows = (int64_t{1} << 20) + 48, kPeriod = 1000003;
constexpr int64_t kBlocksPerRow = kCols / kBlockSize;
static_assert(kRows % kBlockSize == 0 && kRows * kCols > int64_t{1} << 32);

constexpr int64_t kPartRows = 32;
constexpr int64_t RowsAround(int64_t element) { return element / kCols / kBlockSize * kBlockSize; }
constexpr int64_t kParts[] = {0, RowsAround(int64_t{1} << 31), RowsAround(int64_t{1} << 32),
                              kRows - kPartRows};
constexpr int64_t kExcerptRows = kPartRows * std::ssize(kParts);

// All rows, or blocks, from 0 up, and those of the parts, in units of that many rows.
std::vector<int64_t> Indices(int64_t count) {
  std::vector<int64_t> indices(count);
  for (int64_t i = 0; i < count; ++i) indices[i] = i;
  return indices;
}
std::vector<int64_t> PartIndices(int64_t unit) {
  std::vector<int64_t> indices;
  for (int64_t part : kParts) {
    for (int64_t i = 0; i < kPartRows / unit; ++i) indices.push_back(part / unit + i);
  }
  return indices;
}

// What a matrix of `per_row` entries a row has in the parts.
template <typename T>
std::vector<T> Excerpt(const T* whole, int64_t per_row) {
  std::vector<T> excerpt;
  for (int64_t part : kParts) {
    excerpt.insert(excerpt.end(), whole + part * per_row, whole + (part + kPartRows) * per_row);
  }
  return excerpt;
}

// Codes and scales of these blocks of these rows, and the outer maxima.
struct SomeBlocks {
  std::vector<uint64_t> codes;
  std::vector<uint8_t> scales;
  std::vector<float> amax;
};
SomeBlocks BlocksOf(const PackedTensor& tensor, const std::vector<int64_t>& rows,
                    const std::vector<int64_t>& blocks) {
  SomeBlocks some;
  for (int64_t row : rows) {
    for (int64_t block : blocks) {
      uint64_t codes = 0;
      std::memcpy(&codes, &tensor.packed[(row * tensor.layout.blocks_per_row() + block) * 8], 8);
      some.codes.push_back(codes);
      some.scales.push_back(tensor.scale[tensor.layout.scale_offset(row, block)]);
    }
    some.amax.push_back(tensor.amax[tensor.layout.scheme == Scheme::kPerToken ? row : 0]);
  }
  return some;
}
void ExpectSame(const SomeBlocks& expected, const SomeBlocks& actual) {
  EXPECT_TRUE(SameBytes(expected.amax, actual.amax));
  EXPECT_TRUE(SameBytes(expected.scales, actual.scales));
  EXPECT_TRUE(SameBytes(expected.codes, actual.codes));
}
// excerpt: a copy of the parts alone.
void ExpectSameRows(const PackedTensor& excerpt, const PackedTensor& whole) {
  ExpectSame(BlocksOf(excerpt, Indices(kExcerptRows), Indices(kBlocksPerRow)),
             BlocksOf(whole, PartIndices(1), Indices(kBlocksPerRow)));
}
void ExpectSameColumns(const PackedTensor& excerpt, const PackedTensor& whole) {
  ExpectSame(BlocksOf(excerpt, Indices(kCols), Indices(kExcerptRows / kBlockSize)),
             BlocksOf(whole, Indices(kCols), PartIndices(kBlockSize)));
}
void ExpectSameWinners(const SweepResult& excerpt, const SweepResult& whole) {
  EXPECT_EQ(excerpt.global_amax, whole.global_amax);
  EXPECT_TRUE(SameBytes(excerpt.code, Excerpt(whole.code.data(), kBlocksPerRow)));
  EXPECT_TRUE(SameBytes(excerpt.best_amax, Excerpt(whole.best_amax.data(), kBlocksPerRow)));
  EXPECT_TRUE(SameBytes(excerpt.loss, Excerpt(whole.loss.data(), kBlocksPerRow)));
}

bool HostHasFree(int64_t bytes) {
  std::ifstream file("/proc/meminfo");
  std::string name;
  for (int64_t kib = 0; file >> name >> kib; file.ignore(64, '\n')) {
    if (name == "MemAvailable:") return kib * 1024 > bytes;
  }
  return false;
}

class CudaHugeTest : public CudaTest, public ::testing::WithParamInterface<size_t> {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (cuda_ == nullptr) return;
    constexpr int64_t kNeeded = int64_t{40} << 30;
    if (!DeviceHasFree(kNeeded)) GTEST_SKIP() << "the device has less than 40 GiB free";
    if (values_ == nullptr) {
      if (!HostHasFree(kNeeded)) GTEST_SKIP() << "this machine has less than 40 GiB free";
      MakeValues();
    }
    cuda_ = BackendWithConfig(GetParam());
    excerpt_values_ = Excerpt(values_.get(), kCols);
    x_ = {values_.get(), DType::kBf16, kRows, kCols};
    excerpt_ = {excerpt_values_.data(), DType::kBf16, kExcerptRows, kCols};
  }
  static void TearDownTestSuite() {
    if (values_ != nullptr) cudaHostUnregister(values_.get());
    values_.reset();
  }

  MatrixView x_, excerpt_;

 private:
  static void MakeValues() {
    constexpr int64_t kCount = kRows * kCols;
    values_ = std::make_unique_for_overwrite<uint16_t[]>(kCount);
    const std::vector<std::byte> period =
        ToBytes(SyntheticValues(Distribution::kNormal, kPeriod, 1), DType::kBf16);
    std::memcpy(values_.get(), period.data(), period.size());
    for (int64_t have = kPeriod; have < kCount; have *= 2) {
      std::memcpy(values_.get() + have, values_.get(), std::min(have, kCount - have) * 2);
    }
    for (int64_t i = 0; i < kCols; ++i) {
      values_[kCount - kCols + i] = Bf16FromFloat(static_cast<float>(100 + i % 50));
    }
    // Copies to the device are faster then; where it is refused they are slow.
    cudaHostRegister(values_.get(), kCount * 2, cudaHostRegisterDefault);
  }

  static std::unique_ptr<uint16_t[]> values_;
  std::vector<uint16_t> excerpt_values_;
};
std::unique_ptr<uint16_t[]> CudaHugeTest::values_;

TEST_P(CudaHugeTest, ScaleSweep) {
  const SweepResult pruned = *cuda_->ScaleSweep({}, x_);
  ExpectSameWinners(*cpu_->ScaleSweep({}, excerpt_), pruned);
  {
    const SweepResult exhaustive = *cuda_->ScaleSweep({SweepMethod::kExhaustive}, x_);
    EXPECT_EQ(exhaustive.evaluations, kRows * kBlocksPerRow * 126);
    EXPECT_TRUE(SameBytes(exhaustive.code, pruned.code));
    EXPECT_TRUE(SameBytes(exhaustive.loss, pruned.loss));
  }
  {
    const SweptTensor swizzled = *cuda_->SweepAndQuantize({}, x_, /*swizzle=*/true);
    ExpectSameRows(cpu_->SweepAndQuantize({}, excerpt_, true)->packed, swizzled.packed);
    EXPECT_EQ(swizzled.loss, SumSweepLosses(pruned.loss.data(), std::ssize(pruned.loss)));
  }
  const SweptTensor linear = *cuda_->SweepAndQuantize({}, x_);
  EXPECT_TRUE(SameBytes(pruned.code, linear.packed.scale));
  EXPECT_TRUE(SamePacked(linear.packed,
                         *cuda_->QuantizeWithScales(x_, pruned.global_amax, 448, pruned.code)));
}

TEST_P(CudaHugeTest, ScaleSweepHessian) {
  const std::vector<float> hessians = MakeHessians(Activations::kIid, kBlocksPerRow);
  ExpectSameWinners(*cpu_->ScaleSweepHessian({}, excerpt_, hessians),
                    *cuda_->ScaleSweepHessian({}, x_, hessians));
}

TEST_P(CudaHugeTest, ErrorFeedback) {
  const std::vector<float> hessians = MakeHessians(Activations::kIid, kBlocksPerRow);
  const FeedbackTensor excerpt = *cpu_->SweepHessianFeedback({}, excerpt_, hessians);
  const FeedbackTensor whole = *cuda_->SweepHessianFeedback({}, x_, hessians);
  ExpectSameWinners(excerpt.found, whole.found);
  ExpectSameRows(excerpt.packed, whole.packed);
}

TEST_P(CudaHugeTest, MultiplierSearch) {
  ExpectSameWinners(*cpu_->MultiplierSearch({}, excerpt_), *cuda_->MultiplierSearch({}, x_));
}

TEST_P(CudaHugeTest, Quantize) {
  const QuantizeParams every[] = {
      {.scheme = Scheme::kPerToken, .swizzle = true},
      {.rule = Rule::kCheckpoint, .four_over_six = FourOverSix{}, .e4m3_max = 256},
      {.scheme = Scheme::kTile2d}};
  for (const QuantizeParams& params : every) {
    SCOPED_TRACE(NameOf(params.scheme));
    ExpectSameRows(*cpu_->Quantize(params, excerpt_), *cuda_->Quantize(params, x_));
  }
}

TEST_P(CudaHugeTest, BothCopies) {
  const QuantizeBothParams every[] = {
      {{.scheme = Scheme::kPerToken},
       {.scheme = Scheme::kPerToken, .columnwise = true, .rht = Rht::kSigns, .swizzle = true}},
      {{.scheme = Scheme::kTile2d, .swizzle = true},
       {.four_over_six = FourOverSix{}, .e4m3_max = 256, .columnwise = true}}};
  for (const QuantizeBothParams& params : every) {
    SCOPED_TRACE(NameOf(params.rowwise.scheme));
    const auto both = [&](Backend& backend, const MatrixView& x) {
      std::pair<PackedTensor, PackedTensor> copies{LayoutOf(params.rowwise, x.rows, x.cols),
                                                   LayoutOf(params.columnwise, x.rows, x.cols)};
      const absl::Status status = backend.QuantizeBoth(params, x, copies.first.mutable_view(),
                                                       copies.second.mutable_view());
      EXPECT_TRUE(status.ok()) << status;
      return copies;
    };
    const auto expected = both(*cpu_, excerpt_), actual = both(*cuda_, x_);
    ExpectSameRows(expected.first, actual.first);
    ExpectSameColumns(expected.second, actual.second);
  }
}

// Groups that are parts are compared, the last of them whole and behind element 2^32; between them
// are large ones and empty ones.
TEST_P(CudaHugeTest, Grouped) {
  const int64_t rows[] = {0, kParts[1], kPartRows, kParts[3] - kParts[1] - kPartRows, 0, kPartRows};
  for (const bool columnwise : {false, true}) {
    SCOPED_TRACE(columnwise);
    const QuantizeParams params = {.scheme = Scheme::kPerToken,
                                   .columnwise = columnwise,
                                   .rht = columnwise ? Rht::kSigns : Rht::kNone,
                                   .swizzle = true};
    const std::vector<PackedTensor> groups = *cuda_->QuantizeGrouped(params, x_, rows);
    ASSERT_EQ(std::ssize(groups), std::ssize(rows));
    for (const auto& [group, part] : {std::pair{2, 1}, std::pair{5, 3}}) {
      const auto* values = static_cast<const uint16_t*>(excerpt_.data) + part * kPartRows * kCols;
      EXPECT_TRUE(SamePacked(*cpu_->Quantize(params, {values, DType::kBf16, kPartRows, kCols}),
                             groups[group]))
          << group;
    }
  }
}

TEST_P(CudaHugeTest, Dequantize) {
  for (const bool swizzle : {false, true}) {
    SCOPED_TRACE(swizzle);
    const QuantizeParams params = {.scheme = Scheme::kPerToken, .swizzle = swizzle};
    const PackedTensor packed = *cuda_->Quantize(params, x_);
    const PackedTensor excerpt = *cpu_->Quantize(params, excerpt_);
    std::vector<uint16_t> expected(kExcerptRows * kCols), actual(kRows * kCols);
    ASSERT_TRUE(cpu_->Dequantize(excerpt.view(), DType::kBf16, expected.data()).ok());
    ASSERT_TRUE(cuda_->Dequantize(packed.view(), DType::kBf16, actual.data()).ok());
    EXPECT_TRUE(SameBytes(expected, Excerpt(actual.data(), kCols)));
  }
}

// The whole against pieces of it that 32 bits count, added up, which is exact.
TEST_P(CudaHugeTest, MeasureError) {
  const PackedTensor packed = *cuda_->Quantize({.scheme = Scheme::kPerToken}, x_);
  const ErrorStats whole = *cuda_->MeasureError(x_, packed.view());
  ErrorStats sum;
  constexpr int64_t kPieceRows = 100000;
  static_assert(kPieceRows * kCols < int64_t{1} << 31);
  for (int64_t row = 0; row < kRows; row += kPieceRows) {
    PackedView view = packed.view();
    view.layout.rows = std::min(kPieceRows, kRows - row);
    view.packed += row * kCols / 2;
    view.scale += row * kBlocksPerRow;
    view.amax += row;
    const auto* values = static_cast<const uint16_t*>(x_.data) + row * kCols;
    sum.Merge(*cuda_->MeasureError({values, DType::kBf16, view.layout.rows, kCols}, view));
  }
  EXPECT_EQ(whole.count(), kRows * kCols);
  EXPECT_EQ(whole.count(), sum.count());
  EXPECT_EQ(whole.saturated(), sum.saturated());
  EXPECT_EQ(whole.flushed(), sum.flushed());
  EXPECT_EQ(whole.max_error(), sum.max_error());
  EXPECT_EQ(whole.mse(), sum.mse());
  EXPECT_EQ(whole.relative_mse(), sum.relative_mse());
  EXPECT_EQ(whole.cosine(), sum.cosine());
}

TEST_P(CudaHugeTest, PostScale) {
  const std::vector<float> a = SyntheticValues(Distribution::kNormal, kRows, 2);
  const std::vector<float> b = SyntheticValues(Distribution::kNormal, kCols, 3);
  const auto* values = static_cast<const uint16_t*>(x_.data);
  for (const int64_t cols : {kCols, kCols - 1}) {  // in 16-byte pieces and one by one
    SCOPED_TRACE(cols);
    std::vector<uint16_t> expected = Excerpt(values, cols), d(values, values + kRows * cols);
    ASSERT_TRUE(cpu_->PostScale({expected.data(), DType::kBf16, kExcerptRows, cols},
                                Excerpt(a.data(), 1), std::span(b).first(cols))
                    .ok());
    ASSERT_TRUE(
        cuda_->PostScale({d.data(), DType::kBf16, kRows, cols}, a, std::span(b).first(cols)).ok());
    EXPECT_TRUE(SameBytes(expected, Excerpt(d.data(), cols)));
  }
}

INSTANTIATE_TEST_SUITE_P(Configs, CudaHugeTest, ::testing::Range(size_t{0}, MostConfigs()));

}  // namespace
}  // namespace nibble
