// What every backend refuses, and with which code.
#include "kernels/backend.h"

#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "quant/swizzle.h"
#include "tests/testing/bytes.h"

namespace nibble {
namespace {

using ::nibble::testing::SameBytes;
using ::testing::HasSubstr;

class BackendTest : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Backend> backend_ = *MakeBackend(GetParam());
  std::vector<float> values_ = std::vector<float>(17 * 48, 0.5f);
  MatrixView x_ = {values_.data(), DType::kF32, 17, 48};

  static void Expect(const absl::Status& status, absl::StatusCode code, const char* words) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
    EXPECT_THAT(std::string(status.message()), HasSubstr("expected"));
  }
  static void ExpectArgument(const absl::Status& status, const char* words) {
    Expect(status, absl::StatusCode::kInvalidArgument, words);
  }
  static void ExpectData(const absl::Status& status, const char* words) {
    Expect(status, absl::StatusCode::kFailedPrecondition, words);
  }
};

TEST_P(BackendTest, RefusesShapesAndTypes) {
  MatrixView odd = x_;
  odd.cols = 17;
  ExpectData(backend_->Quantize({}, odd).status(), "multiple of 16 columns, got 17 x 17");
  odd.cols = 0;
  ExpectData(backend_->Amax(odd).status(), "multiple of 16");
  MatrixView typed = x_;
  typed.dtype = DType::kF64;
  ExpectData(backend_->ScaleSweep({}, typed).status(), "got F64");
  QuantizeParams params;
  params.scheme = Scheme::kTile2d;
  ExpectData(backend_->Quantize(params, x_).status(), "multiple of 16 rows under tile_2d, got 17");
  params.scheme = Scheme::kPerTensor;
  params.columnwise = true;
  ExpectData(backend_->Quantize(params, x_).status(), "column-wise copy, got 17");
}

TEST_P(BackendTest, RefusesContradictions) {
  QuantizeParams params;
  params.e4m3_max = 300;
  ExpectArgument(backend_->Quantize(params, x_).status(), "448 or 256, got 300");
  params = {};
  params.rule = Rule::kCheckpoint;
  params.scheme = Scheme::kPerToken;
  ExpectArgument(backend_->Quantize(params, x_).status(), "no loader reads one per row");
  params = {};
  for (float g : {NAN, INFINITY, -1.0f}) {
    params.global_amax = g;
    ExpectArgument(backend_->Quantize(params, x_).status(), "global_amax");
    ExpectArgument(backend_->ScaleSweep({SweepMethod::kPruned, 448, g}, x_).status(),
                   "global_amax");
    ExpectArgument(backend_->MultiplierSearch({{}, 448, g}, x_).status(), "global_amax");
  }
  params.global_amax = 1.0f;
  params.scheme = Scheme::kPerToken;
  ExpectArgument(backend_->Quantize(params, x_).status(), "every row has its own");
  PackedTensor other(LayoutOf({}, 16, 16));
  ExpectArgument(backend_->Quantize({}, x_, other.mutable_view()), "LayoutOf");
}

TEST_P(BackendTest, RefusesMultiplierGridsThatEndNowhere) {
  for (const MultiplierGrid grid :
       {MultiplierGrid{0, 4, 0.1f}, MultiplierGrid{1, 0.5f, 0.1f}, MultiplierGrid{1, 2, 0},
        MultiplierGrid{1, 2, 1e-9f}, MultiplierGrid{NAN, 2, 1}, MultiplierGrid{1, INFINITY, 1}}) {
    ExpectArgument(backend_->MultiplierSearch({grid, 448, std::nullopt}, x_).status(),
                   "multipliers");
  }
}

TEST_P(BackendTest, RefusesHessians) {
  std::vector<float> h(3 * 256, 0.0f);
  EXPECT_TRUE(backend_->ScaleSweepHessian({}, x_, h).ok());
  ExpectData(backend_->ScaleSweepHessian({}, x_, std::span(h).first(256)).status(),
             "3 slices of 16 x 16");
  h[256] = -1.0f;
  ExpectData(backend_->ScaleSweepHessian({}, x_, h).status(), "semidefinite: slice 1");
  h[256] = NAN;
  ExpectData(backend_->ScaleSweepHessian({}, x_, h).status(), "finite: slice 1");
}

TEST_P(BackendTest, RefusesScalesOfNoSearch) {
  std::vector<uint8_t> scales(17 * 3, 5);
  EXPECT_TRUE(backend_->QuantizeWithScales(x_, 1.0f, 448, scales).ok());
  scales[7] = 0;
  ExpectArgument(backend_->QuantizeWithScales(x_, 1.0f, 448, scales).status(), "1..126, got 0");
  scales[7] = 127;
  ExpectArgument(backend_->QuantizeWithScales(x_, 1.0f, 448, scales).status(), "got 127");
  scales.pop_back();
  ExpectArgument(backend_->QuantizeWithScales(x_, 1.0f, 448, scales).status(), "51 blocks");
}

TEST_P(BackendTest, NamesNonFiniteValues) {
  values_[100] = NAN;
  values_[200] = -INFINITY;
  const char* words = "got 2 NaN or infinite, the first at row 2, column 4";
  ExpectData(backend_->Amax(x_).status(), words);
  ExpectData(backend_->Quantize({}, x_).status(), words);
  ExpectData(backend_->ScaleSweep({}, x_).status(), words);
  ExpectData(backend_->MultiplierSearch({}, x_).status(), words);
}

TEST_P(BackendTest, ARotationThatOverflowsIsBadData) {
  std::vector<float> huge(256, 3e38f);
  QuantizeParams params;
  params.rht = Rht::kNoSigns;
  ExpectData(backend_->Quantize(params, {huge.data(), DType::kF32, 1, 256}).status(),
             "after the Hadamard transform");
}

TEST_P(BackendTest, AllZeroTensors) {
  std::fill(values_.begin(), values_.end(), 0.0f);
  const PackedTensor runtime = *backend_->Quantize({}, x_);
  EXPECT_TRUE(SameBytes(runtime.packed, std::vector<uint8_t>(17 * 24, 0)));
  EXPECT_TRUE(SameBytes(runtime.scale, std::vector<uint8_t>(17 * 3, 0)));
  EXPECT_EQ(runtime.amax[0], 0.0f);
  QuantizeParams params;
  params.rule = Rule::kCheckpoint;
  const PackedTensor stored = *backend_->Quantize(params, x_);
  EXPECT_TRUE(SameBytes(stored.scale, std::vector<uint8_t>(17 * 3, 0x38)));
  EXPECT_EQ(stored.layout.GlobalDecodeScale(stored.amax[0]), 1.0f);
  const SweepResult sweep = *backend_->ScaleSweep({}, x_);
  EXPECT_TRUE(SameBytes(sweep.code, std::vector<uint8_t>(17 * 3, 1)));
  EXPECT_TRUE(SameBytes(sweep.loss, std::vector<float>(17 * 3, 0.0f)));
}

// No scale that a checkpoint stores is 0, whatever chose it.
TEST_P(BackendTest, CheckpointScalesAreNeverZero) {
  for (int i = 0; i < 48; ++i) values_[i] = i < 16 ? 0.0f : i < 32 ? 1e-30f : 100.0f;
  for (Scheme scheme : {Scheme::kPerTensor, Scheme::kTile2d}) {
    MatrixView x = x_;
    x.rows = 16;
    QuantizeParams params;
    params.rule = Rule::kCheckpoint;
    params.scheme = scheme;
    for (bool four_over_six : {false, true}) {
      if (four_over_six) params.four_over_six = FourOverSix{};
      const PackedTensor packed = *backend_->Quantize(params, x);
      for (uint8_t code : packed.scale) {
        EXPECT_GE(code, 1);
        EXPECT_LE(code, kE4m3Codes);
      }
    }
  }
}

TEST_P(BackendTest, SwizzledScalesHoldTheLinearOnes) {
  QuantizeParams params;
  const PackedTensor linear = *backend_->Quantize(params, x_);
  params.swizzle = true;
  const PackedTensor swizzled = *backend_->Quantize(params, x_);
  std::vector<uint8_t> back(linear.scale.size());
  Unswizzle(swizzled.scale, 17, 3, back);
  EXPECT_TRUE(SameBytes(linear.scale, back));
  EXPECT_TRUE(SameBytes(linear.packed, swizzled.packed));
  std::vector<float> a(x_.size()), b(x_.size());
  ASSERT_TRUE(backend_->Dequantize(linear.view(), DType::kF32, a.data()).ok());
  ASSERT_TRUE(backend_->Dequantize(swizzled.view(), DType::kF32, b.data()).ok());
  EXPECT_TRUE(SameBytes(a, b));
}

TEST_P(BackendTest, DequantizeRefusesOtherTypes) {
  const PackedTensor packed = *backend_->Quantize({}, x_);
  std::vector<double> out(x_.size());
  ExpectArgument(backend_->Dequantize(packed.view(), DType::kF64, out.data()), "BF16 or F32");
}

TEST_P(BackendTest, MeasuresOnlyLikeShapes) {
  const PackedTensor packed = *backend_->Quantize({}, x_);
  MatrixView fewer = x_;
  fewer.rows = 16;
  ExpectArgument(backend_->MeasureError(fewer, packed.view()).status(), "17 x 48, got 16 x 48");
}

TEST_P(BackendTest, RefusesPackedTensorsOfNoMeaning) {
  PackedTensor packed = *backend_->Quantize({}, x_);
  std::vector<float> out(x_.size());
  for (float amax : {-1.0f, NAN, INFINITY}) {
    packed.amax[0] = amax;
    ExpectArgument(backend_->Dequantize(packed.view(), DType::kF32, out.data()), "amax");
    ExpectArgument(backend_->MeasureError(x_, packed.view()).status(), "amax");
  }
  packed.amax[0] = 0.5f;
  packed.scale[7] = 0xFF;
  packed.scale[9] = 0x7F;
  ASSERT_TRUE(backend_->Dequantize(packed.view(), DType::kF32, out.data()).ok());
  EXPECT_TRUE(std::isnan(out[7 * 16]) && std::isnan(out[7 * 16 + 15]) && !std::isnan(out[8 * 16]));
  ExpectData(backend_->MeasureError(x_, packed.view()).status(), "got 2 blocks with NaN");
}

INSTANTIATE_TEST_SUITE_P(Backends, BackendTest, ::testing::Values("cpu", "cpu-scalar"),
                         [](const auto& info) {
                           return std::string(info.param) == "cpu" ? "cpu" : "scalar";
                         });

TEST(MakeBackendTest, NamesThatAreNone) {
  for (const char* name : {"", "gpu", "CPU", "cuda", "cpu:0"}) {
    const absl::Status status = MakeBackend(name).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr("auto, cpu, cpu-scalar or cuda:N"));
  }
  EXPECT_EQ((*MakeBackend("cpu-scalar"))->name(), "cpu (scalar)");
}

}  // namespace
}  // namespace nibble
