// Operations that search, check and encode a piece before the next is read: the same results as
// their steps, and no piece unchecked.
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "quant/numerics/block_error.h"
#include "tests/testing/backends.h"
#include "tests/testing/bytes.h"
#include "tests/testing/is_error.h"
#include "tests/testing/params.h"

namespace nibble {
namespace {

using ::nibble::testing::AllCpuKernels;
using ::nibble::testing::AllParams;
using ::nibble::testing::Describe;
using ::nibble::testing::IsError;
using ::nibble::testing::KernelsName;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::SameBytes;
using ::nibble::testing::SamePacked;

struct Matrix {
  std::vector<std::byte> bytes;
  MatrixView view;
};

Matrix MakeMatrix(Distribution kind, DType dtype, int64_t rows, int64_t cols) {
  Matrix m;
  m.bytes = ToBytes(SyntheticValues(kind, rows * cols, 3), dtype);
  m.view = {m.bytes.data(), dtype, rows, cols};
  return m;
}

class OneReadTest : public ::testing::TestWithParam<const CpuKernels*> {
 protected:
  const std::unique_ptr<Backend> backend_ = MakeCpuBackendWith(*GetParam(), {.threads = 2});
};

// Large enough for several pieces, the last one ragged.
TEST_P(OneReadTest, SweepAndQuantizeIsSweepThenQuantize) {
  for (DType dtype : kInputDTypes) {
    const Matrix x = MakeMatrix(Distribution::kOutliers, dtype, 139, 1008);
    for (const std::optional<float> g : {std::optional<float>(), {0.0f}, {1e-3f}, {7.0f}}) {
      for (int e4m3_max : {448, 256}) {
        const ScaleSweepParams params = {SweepMethod::kPruned, e4m3_max, g};
        const auto sweep = backend_->ScaleSweep(params, x.view);
        ASSERT_TRUE(sweep.ok()) << sweep.status();
        for (bool swizzle : {false, true}) {
          const auto swept = backend_->SweepAndQuantize(params, x.view, swizzle);
          ASSERT_TRUE(swept.ok()) << swept.status();
          EXPECT_EQ(swept->loss,
                    SumSweepLosses(sweep->loss.data(), static_cast<int64_t>(sweep->loss.size())));
          EXPECT_EQ(swept->evaluations, sweep->evaluations);
          PackedTensor steps =
              *backend_->QuantizeWithScales(x.view, sweep->global_amax, e4m3_max, sweep->code);
          if (swizzle) {
            steps.layout.swizzled = true;
            std::vector<uint8_t> scale(steps.layout.scale_bytes());
            Swizzle(steps.scale, 139, 63, scale);
            steps.scale = scale;
          }
          EXPECT_TRUE(SamePacked(steps, swept->packed));
        }
      }
    }
  }
}

TEST_P(OneReadTest, GivenAnAmaxEveryPieceIsChecked) {
  for (DType dtype : kInputDTypes) {
    // The 139 x 1008 matrix is three pieces.
    for (int64_t index : {int64_t{0}, int64_t{70000}, int64_t{139 * 1008 - 1}}) {
      for (float bad : {std::nanf(""), -HUGE_VALF}) {
        std::vector<float> values(139 * 1008, 1.0f);
        values[index] = bad;
        values.back() = bad;
        const std::vector<std::byte> bytes = ToBytes(values, dtype);
        const MatrixView x = {bytes.data(), dtype, 139, 1008};
        const std::string place =
            absl::StrCat("the first at row ", index / 1008, ", column ", index % 1008);
        const auto refused = [&](const absl::Status& status) {
          return IsError(status, absl::StatusCode::kFailedPrecondition, place);
        };
        QuantizeParams params;
        for (Rule rule : {Rule::kRuntime, Rule::kCheckpoint}) {
          params.rule = rule;
          params.global_amax = 1.0f;
          EXPECT_TRUE(refused(backend_->Quantize(params, x).status()));
          params.global_amax.reset();
          EXPECT_TRUE(refused(backend_->Quantize(params, x).status()));
        }
        const std::vector<uint8_t> scales(139 * 63, 56);
        EXPECT_TRUE(refused(backend_->QuantizeWithScales(x, 1.0f, 448, scales).status()));
        for (const std::optional<float> g : {std::optional<float>(), {1.0f}}) {
          const ScaleSweepParams sweep = {SweepMethod::kPruned, 448, g};
          EXPECT_TRUE(refused(backend_->ScaleSweep(sweep, x).status()));
          EXPECT_TRUE(refused(backend_->SweepAndQuantize(sweep, x).status()));
          EXPECT_TRUE(refused(backend_->MultiplierSearch({{1, 1, 1}, 448, g}, x).status()));
        }
        const PackedTensor packed(LayoutOf({}, 139, 1008));
        EXPECT_TRUE(refused(backend_->MeasureError(x, packed.view()).status()));
      }
    }
  }
}

// Against MeasureBlock, block by block.
TEST_P(OneReadTest, ErrorsAreThoseOfTheDefinition) {
  for (Distribution kind : {Distribution::kNormal, Distribution::kOutliers,
                            Distribution::kSubnormal, Distribution::kOnGrid, Distribution::kZero}) {
    for (DType dtype : kInputDTypes) {
      const Matrix x = MakeMatrix(kind, dtype, 48, 208);
      for (QuantizeParams params : AllParams()) {
        params.swizzle = params.e4m3_max == 256;
        if (params.scheme != Scheme::kPerToken && params.four_over_six) params.global_amax = 0.7f;
        SCOPED_TRACE(Describe(params, x.view));
        const PackedTensor packed = *backend_->Quantize(params, x.view);
        ErrorStats expected;
        for (int64_t b = 0; b < packed.layout.blocks(); ++b) {
          const int64_t row = b / 13;
          const float g = packed.layout.GlobalDecodeScale(
              packed.amax[params.scheme == Scheme::kPerToken ? row : 0]);
          const uint8_t scale = packed.scale[packed.layout.scale_offset(row, b % 13)];
          float values[16], y[16];
          LoadBlock(x.view, b * 16, values);
          for (int i = 0; i < 16; ++i) {
            const uint8_t byte = packed.packed[b * 8 + i / 2];
            y[i] = Dequantize(i % 2 ? byte >> 4 : byte & 0xF, scale, g);
          }
          expected.AddBlock(MeasureBlock(values, y, Dequantize(7, scale, g)));
        }
        const auto seen = backend_->MeasureError(x.view, packed.view());
        ASSERT_TRUE(seen.ok()) << seen.status();
        EXPECT_EQ(seen->count(), expected.count());
        EXPECT_EQ(seen->saturated(), expected.saturated());
        EXPECT_EQ(seen->flushed(), expected.flushed());
        EXPECT_EQ(seen->max_error(), expected.max_error());
        EXPECT_EQ(seen->mse(), expected.mse());
        EXPECT_EQ(seen->relative_mse(), expected.relative_mse());
        EXPECT_EQ(seen->cosine(), expected.cosine());
      }
    }
  }
}

// Any bytes: every code under every scale, negative scales included.
TEST_P(OneReadTest, ErrorsOfAnyBytes) {
  const Matrix x = MakeMatrix(Distribution::kNormal, DType::kF32, 256, 32);
  QuantizeParams params;
  params.rule = Rule::kCheckpoint;
  PackedTensor packed(LayoutOf(params, 256, 32));
  packed.amax[0] = 3.0f;
  for (size_t i = 0; i < packed.packed.size(); ++i) packed.packed[i] = static_cast<uint8_t>(i * 37);
  for (size_t b = 0; b < packed.scale.size(); ++b) packed.scale[b] = static_cast<uint8_t>(b / 2);
  EXPECT_TRUE(IsError(backend_->MeasureError(x.view, packed.view()),
                      absl::StatusCode::kFailedPrecondition, "got 4 blocks with NaN"));
  for (uint8_t& scale : packed.scale) scale = (scale & 0x7F) == 0x7F ? 1 : scale;
  const auto reference = MakeCpuBackendWith(ScalarKernels(), {.threads = 1});
  const ErrorStats a = *reference->MeasureError(x.view, packed.view());
  const ErrorStats b = *backend_->MeasureError(x.view, packed.view());
  EXPECT_EQ(a.saturated(), b.saturated());
  EXPECT_EQ(a.flushed(), b.flushed());
  EXPECT_EQ(a.max_error(), b.max_error());
  EXPECT_EQ(a.mse(), b.mse());
  EXPECT_EQ(a.cosine(), b.cosine());
}

INSTANTIATE_TEST_SUITE_P(AllKernels, OneReadTest, ::testing::ValuesIn(AllCpuKernels()),
                         [](const auto& info) { return KernelsName(info.param); });

}  // namespace
}  // namespace nibble
