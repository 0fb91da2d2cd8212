// Column-wise and rotated copies, both copies at once and groups of rows: the device against the
// CPU's bytes, for every option and every launch shape.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/cuda/copy_amax_launch.h"
#include "kernels/cuda/copy_encode_launch.h"
#include "kernels/cuda/copy_rows_launch.h"
#include "tests/testing/bytes.h"
#include "tests/testing/cuda.h"
#include "tests/testing/golden.h"
#include "tests/testing/is_error.h"
#include "tests/testing/params.h"
#include "tests/testing/test_matrix.h"

namespace nibble {
namespace {

using ::nibble::testing::AllParams;
using ::nibble::testing::CudaTest;
using ::nibble::testing::Describe;
using ::nibble::testing::DeviceArray;
using ::nibble::testing::IsError;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::ReplayFromGraph;
using ::nibble::testing::SameBytes;
using ::nibble::testing::SamePacked;
using ::nibble::testing::TestMatrix;

class CudaQuantizeCopiesTest : public CudaTest {
 protected:
  void ReplayEveryConfig(int64_t cols);

  void ExpectSame(const QuantizeParams& params, const MatrixView& x) {
    SCOPED_TRACE(Describe(params, x));
    const auto expected = cpu_->Quantize(params, x);
    const auto actual = cuda_->Quantize(params, x);
    ASSERT_EQ(expected.status(), actual.status());
    if (expected.ok()) {
      EXPECT_TRUE(SamePacked(*expected, *actual));
    }
  }

  void ExpectSameBoth(const QuantizeBothParams& params, const MatrixView& x) {
    SCOPED_TRACE(Describe(params.rowwise, x) + " and " + Describe(params.columnwise, x));
    PackedTensor rowwise(LayoutOf(params.rowwise, x.rows, x.cols));
    PackedTensor columnwise(LayoutOf(params.columnwise, x.rows, x.cols));
    const absl::Status status =
        cuda_->QuantizeBoth(params, x, rowwise.mutable_view(), columnwise.mutable_view());
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(SamePacked(*cpu_->Quantize(params.rowwise, x), rowwise));
    EXPECT_TRUE(SamePacked(*cpu_->Quantize(params.columnwise, x), columnwise));
  }

  void ExpectSameGroups(const QuantizeParams& params, const MatrixView& x,
                        const std::vector<int64_t>& groups) {
    SCOPED_TRACE(Describe(params, x));
    const auto expected = cpu_->QuantizeGrouped(params, x, groups);
    const auto actual = cuda_->QuantizeGrouped(params, x, groups);
    ASSERT_EQ(expected.status(), actual.status());
    if (!expected.ok()) return;
    ASSERT_EQ(expected->size(), actual->size());
    for (size_t i = 0; i < groups.size(); ++i) {
      EXPECT_TRUE(SamePacked((*expected)[i], (*actual)[i])) << "group " << i;
    }
  }
};

TEST_F(CudaQuantizeCopiesTest, MatchesTransformerEngine) {
  const int cases = testing::CheckTransformerEngineCases(*cuda_, [](const QuantizeParams& params) {
    return params.columnwise || params.rht != Rht::kNone;
  });
  EXPECT_EQ(cases, 34);
}

TEST_F(CudaQuantizeCopiesTest, EveryOption) {
  for (DType dtype : kInputDTypes) {
    const TestMatrix x(Distribution::kOutliers, dtype, 176, 208);
    for (QuantizeParams params : AllParams()) {
      for (bool columnwise : {false, true}) {
        for (Rht rht : {Rht::kNone, Rht::kSigns, Rht::kNoSigns}) {
          params.columnwise = columnwise;
          params.rht = rht;
          params.swizzle = (rht == Rht::kSigns) == columnwise;
          ExpectSame(params, x.view);
        }
      }
    }
  }
}

TEST_F(CudaQuantizeCopiesTest, EveryDistribution) {
  for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
    for (DType dtype : kInputDTypes) {
      SCOPED_TRACE(kEnumNames<Distribution>[d]);
      const TestMatrix x(static_cast<Distribution>(d), dtype, 144, 272, d + 1);
      for (Scheme scheme : {Scheme::kPerTensor, Scheme::kPerToken, Scheme::kTile2d}) {
        for (bool columnwise : {false, true}) {
          for (Rht rht : {Rht::kNone, Rht::kSigns}) {
            QuantizeParams params;
            params.scheme = scheme;
            params.columnwise = columnwise;
            params.rht = rht;
            ExpectSame(params, x.view);
            params.four_over_six = FourOverSix{};
            params.e4m3_max = 256;
            ExpectSame(params, x.view);
          }
        }
      }
    }
  }
}

// Magnitudes over the whole range of float32 within one tensor, zeros of both signs, and values
// whose rotation cancels to next to nothing.
TEST_F(CudaQuantizeCopiesTest, AdversarialValues) {
  constexpr int64_t kRows = 144, kCols = 272;
  std::vector<float> values = SyntheticValues(Distribution::kNormal, kRows * kCols, 9);
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    const int64_t r = i / kCols, c = i % kCols;
    if (r % 3 == 0)
      values[i] = std::ldexp(values[i], static_cast<int>((r * 7 + c * 5) % 240) - 130);
    if (c % 5 == 0) values[i] = std::copysign(0.0f, values[i]);
    if (c % 7 == 1) values[i] = r % 16 < 2 ? 1.0f : std::ldexp(-1.0f, -133);
    if (c % 7 == 2) values[i] = std::ldexp(r % 2 == 0 ? 1.0f : -1.0f, -132);
    if (r / 16 == 3) values[i] = std::ldexp(values[i], 90);
    if (r / 16 == 4) values[i] = std::ldexp(values[i], -90);
  }
  for (DType dtype : kInputDTypes) {
    std::vector<float> fitting = values;
    if (dtype == DType::kF16) {
      for (float& value : fitting) value = std::min(std::max(value, -8000.0f), 8000.0f);
    }
    const std::vector<std::byte> bytes = ToBytes(fitting, dtype);
    const MatrixView x = {bytes.data(), dtype, kRows, kCols};
    for (QuantizeParams params : AllParams()) {
      for (bool columnwise : {false, true}) {
        for (Rht rht : {Rht::kNone, Rht::kSigns}) {
          params.columnwise = columnwise;
          params.rht = rht;
          ExpectSame(params, x);
        }
      }
    }
  }
}

TEST_F(CudaQuantizeCopiesTest, EveryShape) {
  const std::pair<int64_t, int64_t> shapes[] = {
      {0, 16},     {1, 16},     {1, 4096},    {3, 48},    {16, 16},    {17, 80},
      {128, 128},  {129, 144},  {160, 32},    {4112, 16}, {16, 4112},  {272, 1040},
      {1024, 512}, {2000, 256}, {2048, 2064}, {48, 8208}, {32, 16384}, {16, 16400}};
  for (const auto& [rows, cols] : shapes) {
    const TestMatrix x(Distribution::kOutliers, DType::kBf16, rows, cols);
    for (Scheme scheme : {Scheme::kPerTensor, Scheme::kPerToken, Scheme::kTile2d}) {
      for (bool swizzle : {false, true}) {
        QuantizeParams params;
        params.scheme = scheme;
        params.swizzle = swizzle;
        params.rht = Rht::kSigns;
        ExpectSame(params, x.view);
        params.columnwise = true;
        ExpectSame(params, x.view);
        params.rht = Rht::kNone;
        ExpectSame(params, x.view);
        if (rows == 0 || rows % 16 != 0) continue;
        QuantizeBothParams both;
        both.rowwise.scheme = both.columnwise.scheme = scheme;
        both.rowwise.swizzle = both.columnwise.swizzle = swizzle;
        both.columnwise.rht = Rht::kSigns;
        ExpectSameBoth(both, x.view);
      }
    }
  }
}

// Rows that one thread block holds, that several do with room left, and that are too long.
TEST_F(CudaQuantizeCopiesTest, BothCopiesInClusters) {
  const std::pair<int64_t, int64_t> shapes[] = {{16, 16},   {48, 208},   {144, 2064},
                                                {32, 8208}, {16, 16384}, {16, 16400}};
  for (DType dtype : {DType::kBf16, DType::kF16}) {
    for (const auto& [rows, cols] : shapes) {
      const TestMatrix x(Distribution::kOutliers, dtype, rows, cols);
      for (bool swizzle : {false, true}) {
        QuantizeBothParams both;
        both.rowwise.scheme = both.columnwise.scheme = Scheme::kPerToken;
        both.rowwise.swizzle = both.columnwise.swizzle = swizzle;
        both.columnwise.rht = swizzle ? Rht::kSigns : Rht::kNone;
        ExpectSameBoth(both, x.view);
      }
    }
  }
}

TEST_F(CudaQuantizeCopiesTest, GlobalAmaxOfTheCallers) {
  const TestMatrix x(Distribution::kNormal, DType::kBf16, 32, 160);
  for (float g : {0.0f, 1e-42f, 1e-20f, 0.5f, 3e38f}) {
    for (QuantizeParams params : AllParams()) {
      if (params.scheme == Scheme::kPerToken) continue;
      params.columnwise = true;
      params.global_amax = g;
      ExpectSame(params, x.view);
    }
  }
}

TEST_F(CudaQuantizeCopiesTest, BothWithDifferentOptions) {
  const std::vector<QuantizeParams> all = AllParams();
  for (DType dtype : kInputDTypes) {
    const TestMatrix x(Distribution::kWeightLike, dtype, 144, 400);
    for (size_t i = 0; i < all.size(); ++i) {
      QuantizeBothParams params = {all[i], all[i]};
      params.columnwise.columnwise = true;
      ExpectSameBoth(params, x.view);
      params.columnwise.rht = Rht::kSigns;
      params.columnwise.swizzle = true;
      ExpectSameBoth(params, x.view);
      params.columnwise = all[(i * 5 + 3) % all.size()];
      params.columnwise.columnwise = true;
      params.columnwise.rht = Rht::kNoSigns;
      params.rowwise.rht = Rht::kSigns;
      ExpectSameBoth(params, x.view);
    }
  }
}

TEST_F(CudaQuantizeCopiesTest, Groups) {
  const std::vector<int64_t> of_sixteen = {0, 16, 0, 0, 128, 144, 32, 0, 272, 48, 112, 0};
  const std::vector<int64_t> ragged = {1, 0, 127, 128, 129, 3, 0, 0, 300, 17, 5, 42};
  for (DType dtype : kInputDTypes) {
    const TestMatrix x(Distribution::kOutliers, dtype, 752, 208);
    for (QuantizeParams params : AllParams()) {
      for (Rht rht : {Rht::kNone, Rht::kSigns}) {
        params.rht = rht;
        params.swizzle = rht == Rht::kSigns;
        params.columnwise = false;
        if (params.scheme != Scheme::kTile2d) ExpectSameGroups(params, x.view, ragged);
        ExpectSameGroups(params, x.view, of_sixteen);
        params.columnwise = true;
        ExpectSameGroups(params, x.view, of_sixteen);
        params.swizzle = !params.swizzle;
        ExpectSameGroups(params, x.view, of_sixteen);
      }
    }
  }
}

// More groups than threads of a thread block, and none.
TEST_F(CudaQuantizeCopiesTest, ManyGroupsAndNone) {
  for (int count : {0, 1, 2, 257, 1500}) {
    std::vector<int64_t> groups;
    int64_t rows = 0;
    for (int i = 0; i < count; ++i) rows += groups.emplace_back(i % 3 == 1 ? 0 : 16 * (i % 5));
    const TestMatrix x(Distribution::kNormal, DType::kBf16, rows, 80);
    for (bool columnwise : {false, true}) {
      QuantizeParams params;
      params.columnwise = columnwise;
      params.scheme = Scheme::kPerToken;
      params.swizzle = true;
      ExpectSameGroups(params, x.view, groups);
      params.scheme = Scheme::kPerTensor;
      params.global_amax = 3.0f;
      ExpectSameGroups(params, x.view, groups);
    }
  }
}

TEST_F(CudaQuantizeCopiesTest, RefusesWhatTheCpuRefuses) {
  std::vector<float> values(64 * 80, 1.0f);
  values[337] = -INFINITY;
  values[999] = NAN;
  const MatrixView x = {values.data(), DType::kF32, 64, 80};
  for (Rht rht : {Rht::kNone, Rht::kSigns}) {
    QuantizeBothParams params;
    params.columnwise.rht = rht;
    ExpectSame(params.columnwise, x);
    params.rowwise.rht = rht;
    ExpectSame(params.rowwise, x);
    PackedTensor rowwise(LayoutOf(params.rowwise, 64, 80));
    PackedTensor columnwise(LayoutOf(params.columnwise, 64, 80));
    EXPECT_TRUE(IsError(
        cuda_->QuantizeBoth(params, x, rowwise.mutable_view(), columnwise.mutable_view()),
        absl::StatusCode::kFailedPrecondition, "got 2 NaN or infinite, the first at row 4"));
    ExpectSameGroups(params.rowwise, x, {0, 1, 5, 58});
    ExpectSameGroups(params.columnwise, x, {0, 32, 32});
  }
  for (float huge : {3e38f, 6e37f}) {  // whose sums overflow, to infinity or to NaN
    std::vector<float> large(64 * 80, huge);
    for (size_t i = 0; i < large.size(); i += 3) large[i] = -huge;
    for (bool columnwise : {false, true}) {
      QuantizeParams params;
      params.columnwise = columnwise;
      params.rht = Rht::kSigns;
      ExpectSame(params, {large.data(), DType::kF32, 64, 80});
      params.rht = Rht::kNoSigns;
      ExpectSameGroups(params, {large.data(), DType::kF32, 64, 80}, {16, 48});
    }
  }
}

// Every launch shape, captured in a graph and replayed on data, and on groups, that were not there
// at capture.
TEST_F(CudaQuantizeCopiesTest, EveryConfigReplaysFromAGraph) {
  for (int64_t cols : {208, 3344}) ReplayEveryConfig(cols);
}
void CudaQuantizeCopiesTest::ReplayEveryConfig(int64_t cols) {
  constexpr int64_t kRows = 400;
  const std::vector<int64_t> first = {128, 0, 272}, second = {0, 160, 240};
  const std::vector<float> old_values = SyntheticValues(Distribution::kNormal, kRows * cols, 1);
  const std::vector<float> values = SyntheticValues(Distribution::kStudentT5, kRows * cols, 2);
  QuantizeParams rowwise, columnwise;
  rowwise.scheme = columnwise.scheme = Scheme::kPerToken;
  columnwise.columnwise = true;
  columnwise.rht = Rht::kSigns;
  for (DType dtype : kInputDTypes) {
    const std::vector<std::byte> before = ToBytes(old_values, dtype),
                                 after = ToBytes(values, dtype);
    const MatrixView view = {after.data(), dtype, kRows, cols};
    for (bool grouped : {false, true}) {
      const std::vector<int64_t> groups = grouped ? second : std::vector<int64_t>{kRows};
      const auto row_expected = cpu_->QuantizeGrouped(rowwise, view, groups);
      const auto column_expected = cpu_->QuantizeGrouped(columnwise, view, groups);
      ASSERT_TRUE(row_expected.ok() && column_expected.ok());
      constexpr size_t kConfigs =
          std::max({std::size(kCopyAmaxConfigs), std::size(kCopyRowsConfigs),
                    std::size(kCopyEncodeConfigs)});
      for (size_t which = 0; which < 2 * kConfigs; ++which) {
        const bool rows_first = which >= kConfigs;
        const size_t config = which % kConfigs;
        SCOPED_TRACE(absl::StrCat(cols, " columns, ", rows_first ? "rows first, " : "", config));
        const int rows_config = static_cast<int>(config % std::size(kCopyRowsConfigs));
        const int amax_config = static_cast<int>(config % std::size(kCopyAmaxConfigs));
        const int encode_config = static_cast<int>(config % std::size(kCopyEncodeConfigs));
        const int count = static_cast<int>(groups.size());
        DeviceArray<std::byte> x(before);
        DeviceArray<int64_t> rows(grouped ? first : groups);
        DeviceArray<RowGroup> starts(count + 1);
        DeviceArray<float> source(count), row_amax(kRows), column_amax(count * cols);
        DeviceArray<uint8_t> row_packed(kRows * cols / 2), row_scale(kRows * cols / 16);
        DeviceArray<uint8_t> column_packed(kRows * cols / 2), column_scale(kRows * cols / 16);
        CopyAmaxArgs amax = {};
        amax.x = x.get();
        amax.rows = kRows;
        amax.cols = cols;
        amax.groups = grouped ? starts.get() : nullptr;
        amax.group_count = count;
        amax.source = source.get();
        amax.row = row_amax.get();
        amax.per_row = true;
        amax.column = column_amax.get();
        amax.per_column = true;
        amax.column_rht = Rht::kSigns;
        CopyEncodeArgs encode = {};
        encode.x = x.get();
        encode.rows = kRows;
        encode.cols = cols;
        encode.groups = amax.groups;
        encode.group_count = count;
        encode.follows_amax = config % 2 == 0;
        encode.row.packed = row_packed.get();
        encode.row.scale = row_scale.get();
        encode.row.amax = row_amax.get();
        encode.row.scheme = Scheme::kPerToken;
        encode.column.packed = column_packed.get();
        encode.column.scale = column_scale.get();
        encode.column.amax = column_amax.get();
        encode.column.scheme = Scheme::kPerToken;
        encode.column.rht = Rht::kSigns;
        ReplayFromGraph(
            [&](cudaStream_t stream) {
              if (auto error = LaunchPlanRowGroups(rows.get(), count, starts.get(), stream)) {
                return error;
              }
              if (!rows_first) {
                if (auto error = LaunchCopyAmax(dtype, amax, amax_config, stream)) return error;
                return LaunchCopyEncode(dtype, encode, encode_config, stream);
              }
              if (auto error = LaunchCopyRows(dtype, amax, encode.row, rows_config, stream)) {
                return error;
              }
              CopyEncodeArgs column = encode;
              column.row.packed = nullptr;
              return LaunchCopyEncode(dtype, column, encode_config, stream);
            },
            [&] {
              x.Set(after);
              rows.Set(groups);
              for (auto* bytes : {&row_packed, &row_scale, &column_packed, &column_scale}) {
                bytes->Fill(0xEE);
              }
            });
        std::vector<uint8_t> bytes[4];
        std::vector<float> maxima[2];
        for (int i = 0; i < count; ++i) {
          const auto append = [](auto& to, const auto& from) {
            to.insert(to.end(), from.begin(), from.end());
          };
          append(bytes[0], (*row_expected)[i].packed);
          append(bytes[1], (*row_expected)[i].scale);
          append(bytes[2], (*column_expected)[i].packed);
          append(bytes[3], (*column_expected)[i].scale);
          append(maxima[0], (*row_expected)[i].amax);
          append(maxima[1], (*column_expected)[i].amax);
        }
        EXPECT_TRUE(SameBytes(maxima[0], row_amax.Get()));
        EXPECT_TRUE(SameBytes(maxima[1], column_amax.Get()));
        EXPECT_TRUE(SameBytes(bytes[0], row_packed.Get()));
        EXPECT_TRUE(SameBytes(bytes[1], row_scale.Get()));
        EXPECT_TRUE(SameBytes(bytes[2], column_packed.Get()));
        EXPECT_TRUE(SameBytes(bytes[3], column_scale.Get()));
      }
    }
  }
}

TEST_F(CudaQuantizeCopiesTest, RefusesUnknownConfigsAndTypes) {
  CopyAmaxArgs amax = {};
  amax.group_count = 0;
  CopyEncodeArgs encode = {};
  EXPECT_EQ(LaunchCopyAmax(DType::kBf16, amax, 99, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCopyAmax(DType::kBf16, amax, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCopyAmax(DType::kF64, amax, 0, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCopyAmax(DType::kBf16, amax, 0, nullptr), cudaSuccess);
  EXPECT_EQ(LaunchCopyEncode(DType::kBf16, encode, 99, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCopyEncode(DType::kBf16, encode, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCopyEncode(DType::kF64, encode, 0, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCopyEncode(DType::kBf16, encode, 0, nullptr), cudaSuccess);
  EXPECT_EQ(LaunchCopyRows(DType::kBf16, amax, encode.row, 99, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCopyRows(DType::kBf16, amax, encode.row, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCopyRows(DType::kF64, amax, encode.row, 0, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCopyRows(DType::kBf16, amax, encode.row, 0, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace nibble
