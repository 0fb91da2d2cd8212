#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "calib/calibrator.h"
#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "quant/numerics/hessian_sum.h"
#include "tests/testing/backends.h"
#include "tests/testing/bytes.h"
#include "tests/testing/hessians.h"
#include "tests/testing/is_error.h"
#include "tests/testing/test_matrix.h"

namespace nibble {
namespace {

using ::nibble::testing::Activations;
using ::nibble::testing::AllCpuKernels;
using ::nibble::testing::IsError;
using ::nibble::testing::KernelsName;
using ::nibble::testing::MakeHessians;
using ::nibble::testing::SameBytes;
using ::nibble::testing::SamePacked;
using ::nibble::testing::TestMatrix;

struct Case {
  std::string name;
  WeightSpec spec;
  bool hessians = false;
};

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (int e4m3_max : {448, 256}) {
    WeightSpec spec;
    spec.e4m3_max = e4m3_max;
    const std::string suffix = absl::StrCat("_", e4m3_max);
    cases.push_back({"max" + suffix, spec});
    spec.method = WeightMethod::kMse;
    cases.push_back({"multipliers" + suffix, spec});
    spec.fp8_scale_sweep = true;
    cases.push_back({"sweep" + suffix, spec});
    spec.fp8_scale_sweep = false;
    spec.method = WeightMethod::kLocalHessian;
    cases.push_back({"local_hessian" + suffix, spec, true});
    cases.push_back({"local_hessian_without" + suffix, spec});
    spec.rounding = Rounding::kFeedback;
    cases.push_back({"feedback" + suffix, spec, true});
    cases.push_back({"feedback_without" + suffix, spec});
    spec.rounding = Rounding::kNearest;
    spec.method = WeightMethod::kFourOverSix;
    cases.push_back({"four_over_six" + suffix, spec});
    spec.four_over_six = {ErrorMetric::kMae, ErrorPath::kFast};
    cases.push_back({"four_over_six_mae" + suffix, spec});
  }
  return cases;
}

std::unique_ptr<WeightCalibrator> Make(const WeightSpec& spec) {
  absl::StatusOr<std::unique_ptr<WeightCalibrator>> made = MakeWeightCalibrator(spec);
  EXPECT_TRUE(made.ok()) << made.status();
  return *std::move(made);
}

std::unique_ptr<Backend> Simd() { return MakeCpuBackend({}); }

class WeightCalibratorTest : public ::testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<WeightCalibrator> MakeOne(int64_t cols) const {
    auto made = Make(GetParam().spec);
    if (GetParam().hessians) {
      EXPECT_TRUE(made->SetHessians(MakeHessians(Activations::kCorrelated, cols / 16)).ok());
    }
    return made;
  }
};

// A group of three, one of them all zero: one amax, Quantize is EncodeWeight(Compute), and every
// instruction set agrees.
TEST_P(WeightCalibratorTest, GroupHasOneAmaxAndQuantizeIsEncodeOfCompute) {
  const auto reference = MakeCpuBackendWith(ScalarKernels(), {.threads = 1});
  for (DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
    const TestMatrix members[] = {TestMatrix(Distribution::kNormal, dtype, 40, 48),
                                  TestMatrix(Distribution::kZero, dtype, 8, 48),
                                  TestMatrix(Distribution::kOutliers, dtype, 17, 48, 2)};
    float amax = 0;
    for (const TestMatrix& m : members) amax = std::max(amax, reference->Amax(m.view).value());
    std::vector<PackedTensor> expected;
    for (const CpuKernels* kernels : AllCpuKernels()) {
      SCOPED_TRACE(KernelsName(kernels));
      const auto backend = MakeCpuBackendWith(*kernels, {.threads = 2});
      const auto calibrator = MakeOne(48);
      for (const TestMatrix& m : members) ASSERT_TRUE(calibrator->Collect(m.view, *backend).ok());
      for (size_t i = 0; i < std::size(members); ++i) {
        const auto scales = calibrator->Compute(members[i].view, *backend);
        ASSERT_TRUE(scales.ok()) << scales.status();
        EXPECT_EQ(scales->global_amax, amax);
        const auto encoded = EncodeWeight(*scales, members[i].view, *backend);
        const auto quantized = calibrator->Quantize(members[i].view, *backend);
        ASSERT_TRUE(encoded.ok()) << encoded.status();
        ASSERT_TRUE(quantized.ok()) << quantized.status();
        EXPECT_TRUE(SamePacked(*encoded, *quantized));
        EXPECT_EQ(quantized->layout.rule, Rule::kCheckpoint);
        EXPECT_EQ(quantized->layout.e4m3_max, GetParam().spec.e4m3_max);
        for (uint8_t code : quantized->scale) {
          EXPECT_GE(code, 1);
          EXPECT_LE(code, 126);
        }
        if (expected.size() <= i) expected.push_back(*quantized);
        EXPECT_TRUE(SamePacked(expected[i], *quantized));
      }
    }
  }
}

TEST_P(WeightCalibratorTest, AllZeroGroupHasGlobalScaleOne) {
  const auto backend = Simd();
  const TestMatrix zero(Distribution::kZero, DType::kBf16, 4, 32);
  const auto calibrator = MakeOne(32);
  ASSERT_TRUE(calibrator->Collect(zero.view, *backend).ok());
  const auto packed = calibrator->Quantize(zero.view, *backend);
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_EQ(packed->layout.GlobalDecodeScale(packed->amax[0]), 1.0f);
  for (uint8_t code : packed->scale) EXPECT_GE(code, 1);
  EXPECT_TRUE(SameBytes(packed->packed, std::vector<uint8_t>(packed->packed.size())));
}

TEST_P(WeightCalibratorTest, EmptyWeightsHaveNoBytes) {
  const auto backend = Simd();
  const auto calibrator = MakeOne(32);
  const TestMatrix empty({}, 32, DType::kBf16);
  ASSERT_TRUE(calibrator->Collect(empty.view, *backend).ok());
  const auto scales = calibrator->Compute(empty.view, *backend);
  ASSERT_TRUE(scales.ok()) << scales.status();
  const auto packed = calibrator->Quantize(empty.view, *backend);
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_TRUE(packed->packed.empty());
  EXPECT_TRUE(SamePacked(EncodeWeight(*scales, empty.view, *backend).value(), *packed));
}

TEST_P(WeightCalibratorTest, ComputeNeedsMembers) {
  const auto backend = Simd();
  const TestMatrix w(Distribution::kNormal, DType::kBf16, 4, 32);
  const auto calibrator = MakeOne(32);
  EXPECT_TRUE(IsError(calibrator->Compute(w.view, *backend), absl::StatusCode::kFailedPrecondition,
                      "expected Collect of every member"));
  EXPECT_TRUE(IsError(calibrator->Quantize(w.view, *backend), absl::StatusCode::kFailedPrecondition,
                      "expected Collect of every member"));
}

TEST_P(WeightCalibratorTest, MembersAfterComputeAreRefusedUntilReset) {
  const auto backend = Simd();
  const TestMatrix w(Distribution::kNormal, DType::kBf16, 4, 32);
  const TestMatrix larger(Distribution::kOutliers, DType::kBf16, 64, 32, 3);
  const auto calibrator = MakeOne(32);
  ASSERT_TRUE(calibrator->Collect(w.view, *backend).ok());
  const auto first = calibrator->Quantize(w.view, *backend);
  EXPECT_TRUE(IsError(calibrator->Collect(larger.view, *backend),
                      absl::StatusCode::kFailedPrecondition, "before the first Compute"));
  EXPECT_TRUE(IsError(calibrator->Merge(*MakeOne(32)), absl::StatusCode::kFailedPrecondition,
                      "before the first Compute"));
  calibrator->Reset();
  EXPECT_TRUE(IsError(calibrator->Compute(w.view, *backend), absl::StatusCode::kFailedPrecondition,
                      "expected Collect"));
  EXPECT_EQ(calibrator->Save(), Make(GetParam().spec)->Save());
  // As new, another shape included.
  const TestMatrix other(Distribution::kNormal, DType::kBf16, 4, 64);
  EXPECT_TRUE(calibrator->Collect(other.view, *backend).ok());
  EXPECT_TRUE(calibrator->Quantize(other.view, *backend).ok());
  calibrator->Reset();
  if (GetParam().hessians) {
    ASSERT_TRUE(calibrator->SetHessians(MakeHessians(Activations::kCorrelated, 2)).ok());
  }
  ASSERT_TRUE(calibrator->Collect(w.view, *backend).ok());
  EXPECT_TRUE(SamePacked(*first, calibrator->Quantize(w.view, *backend).value()));
}

TEST_P(WeightCalibratorTest, RefusesOtherShapesAndNaN) {
  const auto backend = Simd();
  const TestMatrix w(Distribution::kNormal, DType::kBf16, 4, 32);
  const TestMatrix wide(Distribution::kNormal, DType::kBf16, 4, 64);
  std::vector<float> values(32, 1.0f);
  values[7] = std::nanf("");
  const TestMatrix bad(values, 32);
  const auto calibrator = MakeOne(32);
  ASSERT_TRUE(calibrator->Collect(w.view, *backend).ok());
  const CalibratorState before = calibrator->Save();
  EXPECT_TRUE(IsError(calibrator->Collect(wide.view, *backend),
                      absl::StatusCode::kFailedPrecondition, "expected 32 columns"));
  EXPECT_TRUE(IsError(calibrator->Collect(bad.view, *backend),
                      absl::StatusCode::kFailedPrecondition, "row 0, column 7"));
  EXPECT_TRUE(IsError(calibrator->Compute(wide.view, *backend),
                      absl::StatusCode::kFailedPrecondition, "expected 32 columns"));
  EXPECT_TRUE(IsError(calibrator->Quantize(wide.view, *backend),
                      absl::StatusCode::kFailedPrecondition, "expected 32 columns"));
  EXPECT_TRUE(IsError(calibrator->Quantize(bad.view, *backend),
                      absl::StatusCode::kFailedPrecondition, "row 0, column 7"));
  EXPECT_EQ(calibrator->Save(), before);
  const TestMatrix odd({}, 24, DType::kBf16);
  EXPECT_TRUE(IsError(MakeOne(32)->Collect(odd.view, *backend),
                      absl::StatusCode::kFailedPrecondition, GetParam().hessians ? "" : "24"));
}

TEST_P(WeightCalibratorTest, MergesInAnyOrderAndLoadsWhatItSaved) {
  const auto backend = Simd();
  const TestMatrix members[] = {TestMatrix(Distribution::kNormal, DType::kBf16, 40, 48),
                                TestMatrix(Distribution::kZero, DType::kBf16, 8, 48),
                                TestMatrix(Distribution::kOutliers, DType::kBf16, 17, 48, 2)};
  const auto all = MakeOne(48);
  std::vector<std::unique_ptr<WeightCalibrator>> parts;
  for (const TestMatrix& m : members) {
    ASSERT_TRUE(all->Collect(m.view, *backend).ok());
    parts.push_back(MakeOne(48));
    ASSERT_TRUE(parts.back()->Collect(m.view, *backend).ok());
  }
  for (const std::vector<int>& order : {std::vector{0, 1, 2}, {2, 1, 0}, {1, 0, 2}}) {
    const auto merged = Make(GetParam().spec);
    for (int i : order) ASSERT_TRUE(merged->Merge(*parts[i]).ok());
    EXPECT_EQ(merged->Save(), all->Save());
  }
  const auto loaded = Make(GetParam().spec);
  ASSERT_TRUE(loaded->Load(all->Save()).ok());
  EXPECT_EQ(loaded->Save(), all->Save());
  EXPECT_EQ(loaded->fell_back(), all->fell_back());
  EXPECT_TRUE(SamePacked(all->Quantize(members[2].view, *backend).value(),
                         loaded->Quantize(members[2].view, *backend).value()));
  EXPECT_TRUE(IsError(parts[0]->Merge(*parts[0]), absl::StatusCode::kInvalidArgument, "another"));
}

TEST_P(WeightCalibratorTest, RefusesStatesThatItDidNotSave) {
  const auto backend = Simd();
  const TestMatrix w(Distribution::kNormal, DType::kBf16, 4, 32);
  const auto calibrator = MakeOne(32);
  ASSERT_TRUE(calibrator->Collect(w.view, *backend).ok());
  const CalibratorState good = calibrator->Save();
  std::vector<CalibratorState> bad;
  for (const auto& [name, array] : good) {
    if (name != "hessians") {
      bad.push_back(good);
      bad.back().erase(name);
    }
    bad.push_back(good);
    bad.back()[name].shape.push_back(1);
    bad.push_back(good);
    bad.back()[name].dtype = DType::kU8;
    bad.push_back(good);
    bad.back()[name].bytes.pop_back();
    bad.push_back(good);
    bad.back()[name].bytes.assign(array.bytes.size(), std::byte{0xFF});  // negative, NaN
  }
  bad.push_back(good);
  bad.back()["more"] = good.at("amax");
  for (const CalibratorState& state : bad) {
    EXPECT_TRUE(IsError(calibrator->Load(state), absl::StatusCode::kDataLoss, "expected"));
    EXPECT_EQ(calibrator->Save(), good);
  }
}

INSTANTIATE_TEST_SUITE_P(All, WeightCalibratorTest, ::testing::ValuesIn(AllCases()),
                         [](const auto& info) { return info.param.name; });

TEST(WeightRegistryTest, MakesEveryMethodByItsName) {
  for (std::string_view name : kEnumNames<WeightMethod>) {
    const auto spec = DefaultWeightSpec(name);
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(Make(*spec)->name(), name);
  }
  EXPECT_EQ(DefaultWeightSpec("four_over_six")->e4m3_max, 256);
  EXPECT_TRUE(IsError(DefaultWeightSpec("msee"), absl::StatusCode::kInvalidArgument,
                      "expected max, mse, local_hessian or four_over_six, got \"msee\""));
}

TEST(WeightRegistryTest, RefusesSpecificationsThatNoRecipeHas) {
  const auto refused = [](const WeightSpec& spec, std::string_view piece) {
    return IsError(MakeWeightCalibrator(spec), absl::StatusCode::kInvalidArgument, piece);
  };
  WeightSpec spec;
  spec.e4m3_max = 300;
  EXPECT_TRUE(refused(spec, "expected 448 or 256, got 300"));
  spec = {};
  spec.fp8_scale_sweep = true;
  EXPECT_TRUE(refused(spec, "parameters of the method max alone"));
  spec = {};
  spec.four_over_six.metric = ErrorMetric::kMae;
  EXPECT_TRUE(refused(spec, "parameters of the method max alone"));
  spec = {};
  spec.rounding = Rounding::kFeedback;
  EXPECT_TRUE(refused(spec, "parameters of the method max alone"));
  spec = {};
  spec.method = WeightMethod::kMse;
  spec.multipliers.start = 0;
  EXPECT_TRUE(refused(spec, "0 < start"));
  spec.multipliers = {0.5f, 2.0f, std::nanf("")};
  EXPECT_TRUE(refused(spec, "got start 0.5"));
  spec.multipliers = {0.5f, 2.0f, 1e-9f};
  EXPECT_TRUE(refused(spec, "at most 4096"));
  spec.multipliers = {0.5f, 2.0f, 0.5f};
  spec.fp8_scale_sweep = true;
  EXPECT_TRUE(refused(spec, "method mse alone"));
  spec = {};
  spec.method = static_cast<WeightMethod>(17);
  EXPECT_TRUE(refused(spec, "expected max, mse"));
}

TEST(WeightRegistryTest, OthersAndOtherParametersDoNotMerge) {
  WeightSpec sweep;
  sweep.method = WeightMethod::kMse;
  const auto multipliers = Make(sweep);
  sweep.fp8_scale_sweep = true;
  EXPECT_TRUE(IsError(Make({})->Merge(*multipliers), absl::StatusCode::kInvalidArgument,
                      "expected another 'max' of the same parameters, got 'mse'"));
  EXPECT_TRUE(
      IsError(Make(sweep)->Merge(*multipliers), absl::StatusCode::kInvalidArgument, "'mse'"));
  EXPECT_TRUE(IsError(Make({})->Merge(*MakeActivationCalibrator({}).value()),
                      absl::StatusCode::kInvalidArgument, "got 'max'"));
}

TEST(LocalHessianTest, SaysWhetherItFellBack) {
  const auto backend = Simd();
  const TestMatrix w(Distribution::kNormal, DType::kBf16, 32, 32);
  WeightSpec spec = DefaultWeightSpec("local_hessian").value();
  WeightSpec mse = DefaultWeightSpec("mse").value();
  mse.fp8_scale_sweep = true;
  const auto with = Make(spec), without = Make(spec), plain = Make(mse);
  ASSERT_TRUE(with->SetHessians(MakeHessians(Activations::kCorrelated, 2)).ok());
  for (WeightCalibrator* c : {with.get(), without.get(), plain.get()}) {
    ASSERT_TRUE(c->Collect(w.view, *backend).ok());
  }
  EXPECT_TRUE(with->needs_hessians());
  EXPECT_FALSE(with->fell_back());
  EXPECT_TRUE(without->fell_back());
  EXPECT_FALSE(plain->fell_back());
  EXPECT_FALSE(plain->needs_hessians());
  EXPECT_EQ(without->Compute(w.view, *backend), plain->Compute(w.view, *backend));
  EXPECT_NE(with->Compute(w.view, *backend)->block_scale,
            plain->Compute(w.view, *backend)->block_scale);
}

// Rounding with feedback: less error of the output, whatever that of the weight; without Hessians,
// what rounding to nearest gives.
TEST(LocalHessianTest, FeedbackLowersTheErrorOfTheOutput) {
  const auto backend = Simd();
  const TestMatrix w(Distribution::kNormal, DType::kBf16, 64, 64);
  const std::vector<float> h = MakeHessians(Activations::kCorrelated, 4);
  WeightSpec spec = DefaultWeightSpec("local_hessian").value();
  const auto nearest = Make(spec);
  spec.rounding = Rounding::kFeedback;
  const auto feedback = Make(spec), without = Make(spec);
  EXPECT_TRUE(IsError(nearest->Merge(*feedback), absl::StatusCode::kInvalidArgument,
                      "of the same parameters"));
  for (WeightCalibrator* c : {nearest.get(), feedback.get()}) {
    ASSERT_TRUE(c->SetHessians(h).ok());
  }
  double loss[3] = {};
  std::vector<PackedTensor> packed;
  for (WeightCalibrator* c : {nearest.get(), feedback.get(), without.get()}) {
    ASSERT_TRUE(c->Collect(w.view, *backend).ok());
    packed.push_back(c->Quantize(w.view, *backend).value());
    std::vector<float> values(w.view.size());
    ASSERT_TRUE(backend->Dequantize(packed.back().view(), DType::kF32, values.data()).ok());
    double& sum = loss[packed.size() - 1];
    for (int64_t b = 0; b < w.view.size() / 16; ++b) {
      float d[16];
      LoadBlock(w.view, b * 16, d);
      for (int i = 0; i < 16; ++i) d[i] -= values[b * 16 + i];
      for (int i = 0; i < 256; ++i) sum += double{h[b % 4 * 256 + i]} * d[i / 16] * d[i % 16];
    }
  }
  EXPECT_LT(loss[1], 0.7 * loss[0]);
  EXPECT_TRUE(without->fell_back());
  WeightSpec mse = DefaultWeightSpec("mse").value();
  mse.fp8_scale_sweep = true;
  const auto plain = Make(mse);
  ASSERT_TRUE(plain->Collect(w.view, *backend).ok());
  EXPECT_TRUE(SamePacked(plain->Quantize(w.view, *backend).value(), packed[2]));
}

TEST(LocalHessianTest, DeadSlicesAreSweptPlainly) {
  const auto backend = Simd();
  const TestMatrix w(Distribution::kNormal, DType::kBf16, 64, 32);
  std::vector<float> dead = MakeHessians(Activations::kCorrelated, 2);
  std::fill_n(dead.begin() + kHessianSize, kHessianSize, 0.0f);
  std::vector<float> identity = dead;
  for (int i = 0; i < 16; ++i) identity[kHessianSize + i * 17] = 1;
  const WeightSpec spec = DefaultWeightSpec("local_hessian").value();
  const auto a = Make(spec), b = Make(spec);
  ASSERT_TRUE(a->SetHessians(dead).ok());
  ASSERT_TRUE(b->SetHessians(identity).ok());
  ASSERT_TRUE(a->Collect(w.view, *backend).ok());
  ASSERT_TRUE(b->Collect(w.view, *backend).ok());
  const auto scales = a->Compute(w.view, *backend).value();
  EXPECT_EQ(scales, b->Compute(w.view, *backend).value());
  for (size_t i = 1; i < scales.block_scale.size(); i += 2) EXPECT_GT(scales.block_scale[i], 1);
}

TEST(LocalHessianTest, RefusesHessiansThatAreNone) {
  const auto backend = Simd();
  const TestMatrix w(Distribution::kNormal, DType::kBf16, 4, 32);
  const WeightSpec spec = DefaultWeightSpec("local_hessian").value();
  const auto calibrator = Make(spec);
  EXPECT_TRUE(IsError(calibrator->SetHessians({}), absl::StatusCode::kFailedPrecondition,
                      "slices of 16 x 16, got 0 numbers"));
  EXPECT_TRUE(IsError(calibrator->SetHessians(std::vector<float>(257)),
                      absl::StatusCode::kFailedPrecondition, "got 257 numbers"));
  std::vector<float> nan(512);
  nan[300] = std::nanf("");
  EXPECT_TRUE(
      IsError(calibrator->SetHessians(nan), absl::StatusCode::kFailedPrecondition, "in slice 1"));
  EXPECT_TRUE(IsError(Make({})->SetHessians(std::vector<float>(512)),
                      absl::StatusCode::kInvalidArgument, "none for the method max"));
  ASSERT_TRUE(calibrator->SetHessians(MakeHessians(Activations::kIid, 3)).ok());
  EXPECT_TRUE(IsError(calibrator->Collect(w.view, *backend), absl::StatusCode::kFailedPrecondition,
                      "expected 2 slices"));
  calibrator->Reset();
  ASSERT_TRUE(calibrator->Collect(w.view, *backend).ok());
  EXPECT_TRUE(IsError(calibrator->SetHessians(MakeHessians(Activations::kIid, 3)),
                      absl::StatusCode::kFailedPrecondition, "expected 2 slices"));
  const auto a = Make(spec), b = Make(spec);
  ASSERT_TRUE(a->SetHessians(MakeHessians(Activations::kIid, 2)).ok());
  ASSERT_TRUE(b->SetHessians(MakeHessians(Activations::kCorrelated, 2)).ok());
  EXPECT_TRUE(IsError(a->Merge(*b), absl::StatusCode::kInvalidArgument, "the same Hessians"));
}

TEST(EncodeWeightTest, RefusesScalesThatContradict) {
  const auto backend = Simd();
  const TestMatrix w(Distribution::kNormal, DType::kBf16, 1, 32);
  ScaleSet scales = {1.0f, 448, FourOverSix{}, {1, 2}};
  EXPECT_TRUE(IsError(EncodeWeight(scales, w.view, *backend), absl::StatusCode::kInvalidArgument,
                      "got both"));
  scales.four_over_six.reset();
  EXPECT_TRUE(EncodeWeight(scales, w.view, *backend).ok());
  scales.codes.assign(15, 0);
  EXPECT_TRUE(IsError(EncodeWeight(scales, w.view, *backend), absl::StatusCode::kInvalidArgument,
                      "expected 16 bytes, got 15"));
  scales.codes.assign(16, 0x21);
  EXPECT_EQ(EncodeWeight(scales, w.view, *backend)->packed, scales.codes);
  EXPECT_TRUE(IsError(EncodeWeight({1.0f, 448, std::nullopt, {}, scales.codes}, w.view, *backend),
                      absl::StatusCode::kInvalidArgument, "expected block scales with them"));
  scales.block_scale[1] = 127;
  EXPECT_TRUE(IsError(EncodeWeight(scales, w.view, *backend), absl::StatusCode::kInvalidArgument,
                      "1..126"));
}

}  // namespace
}  // namespace nibble
