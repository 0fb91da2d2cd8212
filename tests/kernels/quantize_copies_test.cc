// Both copies in one call, and groups of rows in one call: the bytes of Quantize, and what is
// refused.
#include <cmath>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/testing/bytes.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using ::nibble::testing::kInvalid;
using ::nibble::testing::kPrecondition;
using ::nibble::testing::SamePacked;

class QuantizeCopiesTest : public ::testing::TestWithParam<const char*> {
 protected:
  absl::Status Both(const QuantizeBothParams& params, const MatrixView& x) {
    PackedTensor rowwise(LayoutOf(params.rowwise, x.rows, x.cols));
    PackedTensor columnwise(LayoutOf(params.columnwise, x.rows, x.cols));
    return backend_->QuantizeBoth(params, x, rowwise.mutable_view(), columnwise.mutable_view());
  }

  std::unique_ptr<Backend> backend_ = *MakeBackend(GetParam());
  std::vector<float> values_ = SyntheticValues(Distribution::kOutliers, 96 * 80, 1);
  MatrixView x_ = {values_.data(), DType::kF32, 96, 80};
};

TEST_P(QuantizeCopiesTest, BothAreTwoCallsOfQuantize) {
  for (Scheme scheme : {Scheme::kPerTensor, Scheme::kPerToken, Scheme::kTile2d}) {
    QuantizeBothParams params;
    params.rowwise.scheme = params.columnwise.scheme = scheme;
    params.columnwise.rht = Rht::kSigns;
    params.columnwise.swizzle = true;
    PackedTensor rowwise(LayoutOf(params.rowwise, x_.rows, x_.cols));
    PackedTensor columnwise(LayoutOf(params.columnwise, x_.rows, x_.cols));
    ASSERT_TRUE(
        backend_->QuantizeBoth(params, x_, rowwise.mutable_view(), columnwise.mutable_view()).ok());
    EXPECT_TRUE(SamePacked(*backend_->Quantize(params.rowwise, x_), rowwise));
    EXPECT_TRUE(SamePacked(*backend_->Quantize(params.columnwise, x_), columnwise));
  }
}

TEST_P(QuantizeCopiesTest, BothRefuseWhatQuantizeRefuses) {
  QuantizeBothParams params;
  params.columnwise.columnwise = false;
  EXPECT_TRUE(IsError(Both(params, x_), kInvalid, "columnwise: expected false of the row-wise"));
  params = {};
  params.rowwise.columnwise = true;
  EXPECT_TRUE(IsError(Both(params, x_), kInvalid, "columnwise: expected false of the row-wise"));
  params = {};
  params.columnwise.e4m3_max = 300;
  EXPECT_TRUE(IsError(Both(params, x_), kInvalid, "448 or 256, got 300"));
  x_.rows = 17;
  EXPECT_TRUE(IsError(Both({}, x_), kPrecondition, "column-wise copy, got 17"));
  x_.rows = 96;
  PackedTensor one(LayoutOf({}, 96, 80));
  EXPECT_TRUE(IsError(backend_->QuantizeBoth({}, x_, one.mutable_view(), one.mutable_view()),
                      kInvalid, "LayoutOf"));
  values_[81] = NAN;
  EXPECT_TRUE(
      IsError(Both({}, x_), kPrecondition, "got 1 NaN or infinite, the first at row 1, column 1"));
}

TEST_P(QuantizeCopiesTest, GroupsAreQuantizedAlone) {
  const std::vector<int64_t> groups = {0, 32, 0, 16, 48, 0};
  for (Scheme scheme : {Scheme::kPerTensor, Scheme::kPerToken, Scheme::kTile2d}) {
    for (bool columnwise : {false, true}) {
      QuantizeParams params;
      params.scheme = scheme;
      params.columnwise = columnwise;
      params.swizzle = columnwise;
      params.stochastic = StochasticRounding{.seed = 3, .offset = 1};
      const auto packed = backend_->QuantizeGrouped(params, x_, groups);
      ASSERT_TRUE(packed.ok()) << packed.status();
      ASSERT_EQ(packed->size(), groups.size());
      MatrixView group = x_;
      for (size_t i = 0; i < groups.size(); ++i) {
        group.rows = groups[i];
        if (group.rows > 0) {
          EXPECT_TRUE(SamePacked(*backend_->Quantize(params, group), (*packed)[i])) << i;
        } else {
          const PackedTensor& empty = (*packed)[i];
          EXPECT_EQ(empty.packed.size() + empty.scale.size(), 0u);
          EXPECT_EQ(empty.amax, std::vector<float>(empty.layout.amax_count(), 0.0f));
        }
        group.data = static_cast<const float*>(group.data) + group.size();
      }
    }
  }
}

TEST_P(QuantizeCopiesTest, NoGroups) {
  x_.rows = 0;
  const auto packed = backend_->QuantizeGrouped({}, x_, {});
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_TRUE(packed->empty());
}

TEST_P(QuantizeCopiesTest, RefusesGroupsByName) {
  const auto quantize = [&](const QuantizeParams& params, const std::vector<int64_t>& groups) {
    return backend_->QuantizeGrouped(params, x_, groups).status();
  };
  for (const std::vector<int64_t>& groups : std::vector<std::vector<int64_t>>{
           {}, {95}, {97}, {96, 1}, {-16, 112}, {INT64_MAX, INT64_MAX, 98}}) {
    EXPECT_TRUE(IsError(quantize({}, groups), kInvalid, "add up to the matrix's 96 rows"));
  }
  QuantizeParams params;
  EXPECT_TRUE(quantize(params, {17, 79}).ok());
  params.columnwise = true;
  EXPECT_TRUE(
      IsError(quantize(params, {16, 0, 17, 63}), kPrecondition, "group 2: shape: expected"));
  params = {};
  params.scheme = Scheme::kTile2d;
  EXPECT_TRUE(IsError(quantize(params, {17, 79}), kPrecondition, "group 0: shape: expected"));
  params.e4m3_max = 1;
  EXPECT_TRUE(IsError(quantize(params, {96}), kInvalid, "448 or 256"));

  std::vector<PackedTensor> out;
  for (int64_t rows : {48, 48}) out.emplace_back(LayoutOf({}, rows, 80));
  const std::vector<int64_t> groups = {48, 48}, others = {32, 64}, one = {96};
  const std::vector<MutablePackedView> views = {out[0].mutable_view(), out[1].mutable_view()};
  EXPECT_TRUE(backend_->QuantizeGrouped({}, x_, groups, views).ok());
  EXPECT_TRUE(IsError(backend_->QuantizeGrouped({}, x_, one, views), kInvalid, "one for each"));
  EXPECT_TRUE(IsError(backend_->QuantizeGrouped({}, x_, others, views), kInvalid,
                      "group 0: out: expected"));
  values_[48 * 80 + 81] = INFINITY;
  EXPECT_TRUE(IsError(quantize({}, groups), kPrecondition,
                      "group 1: values: expected finite numbers, got 1 NaN or infinite, the first "
                      "at row 1, column 1"));
}

INSTANTIATE_TEST_SUITE_P(Backends, QuantizeCopiesTest, ::testing::Values("cpu", "cpu-scalar"),
                         [](const auto& info) {
                           return info.param == std::string("cpu") ? "cpu" : "scalar";
                         });

}  // namespace
}  // namespace nibble
