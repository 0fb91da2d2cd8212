// The weight calibrators: a largest magnitude of the group, and a way to choose the blocks' scales.
#include <algorithm>
#include <limits>

#include "base/status.h"
#include "calib/calibrator.h"
#include "calib/state.h"
#include "kernels/multiplier_grid.h"
#include "quant/numerics/hessian_sum.h"

namespace nibble {
namespace {

absl::Status NoHessians(std::string_view method) {
  return absl::InvalidArgumentError(
      absl::StrCat("hessian: expected none for the method ", ToAbsl(method), ", got some"));
}

class GroupCalibrator : public WeightCalibrator {
 public:
  explicit GroupCalibrator(const WeightSpec& spec) : spec_(spec) {}

  std::string_view name() const final { return NameOf(spec_.method); }

  absl::Status Collect(const MatrixView& x, Backend& backend) final {
    if (computed_) {
      return absl::FailedPreconditionError(absl::StrCat(
          ToAbsl(name()), ": expected every member before the first Compute, got one after it"));
    }
    if (members_ > 0) NIBBLE_RETURN_IF_ERROR(CheckColumns(x.cols));
    NIBBLE_RETURN_IF_ERROR(CheckHessians(hessians_, x.cols));
    NIBBLE_ASSIGN_OR_RETURN(const float amax, backend.Amax(x));
    amax_ = std::max(amax_, amax);
    columns_ = x.cols;
    ++members_;
    return absl::OkStatus();
  }

  void Reset() final {
    members_ = columns_ = 0;
    amax_ = 0;
    hessians_.clear();
    computed_ = false;
  }

  absl::Status Merge(const Calibrator& other) final {
    const auto* same = dynamic_cast<const GroupCalibrator*>(&other);
    if (same == nullptr || same == this || !(same->spec_ == spec_)) {
      return absl::InvalidArgumentError(absl::StrCat("merge: expected another '", ToAbsl(name()),
                                                     "' of the same parameters, got '",
                                                     ToAbsl(other.name()), "'"));
    }
    if (computed_) {
      return absl::FailedPreconditionError(absl::StrCat(
          ToAbsl(name()), ": expected every member before the first Compute, got one after it"));
    }
    if (members_ > 0 && same->members_ > 0) NIBBLE_RETURN_IF_ERROR(CheckColumns(same->columns_));
    const int64_t columns = std::max(columns_, same->columns_);
    if (!hessians_.empty() && !same->hessians_.empty() && hessians_ != same->hessians_) {
      return absl::InvalidArgumentError(
          "merge: expected the same Hessians, as members of a group have one input, got others");
    }
    const std::vector<float>& hessians = hessians_.empty() ? same->hessians_ : hessians_;
    if (columns > 0) NIBBLE_RETURN_IF_ERROR(CheckHessians(hessians, columns));
    if (hessians_.empty()) hessians_ = same->hessians_;
    columns_ = columns;
    amax_ = std::max(amax_, same->amax_);
    members_ += same->members_;
    return absl::OkStatus();
  }

  CalibratorState Save() const final {
    CalibratorState state;
    state["members"] = MakeStateArray<int64_t>({1}, {members_});
    state["columns"] = MakeStateArray<int64_t>({1}, {columns_});
    state["amax"] = MakeStateArray<float>({1}, {amax_});
    if (!hessians_.empty()) {
      const int64_t slices = static_cast<int64_t>(hessians_.size()) / kHessianSize;
      state["hessians"] = MakeStateArray<float>({slices, kBlockSize, kBlockSize}, hessians_);
    }
    return state;
  }

  absl::Status Load(const CalibratorState& state) final {
    NIBBLE_RETURN_IF_ERROR(CheckStateNames(state, {"members", "columns", "amax", "hessians"}));
    constexpr int64_t kMost = int64_t{1} << 62;
    NIBBLE_ASSIGN_OR_RETURN(const int64_t members, TakeStateInteger(state, "members", 0, kMost));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t columns, TakeStateInteger(state, "columns", 0, kMost));
    NIBBLE_ASSIGN_OR_RETURN(const float amax, TakeStateAmax(state, "amax"));
    if (columns % kBlockSize != 0 || (columns == 0) != (members == 0) ||
        (members == 0 && amax > 0)) {
      return absl::DataLossError(
          absl::StrCat("state: expected a multiple of 16 columns, none without members, got ",
                       columns, " columns, ", members, " members and the amax ", amax));
    }
    std::vector<float> hessians;
    if (state.count("hessians") > 0) {
      NIBBLE_ASSIGN_OR_RETURN(
          hessians, TakeStateArray<float>(state, "hessians", {-1, kBlockSize, kBlockSize}));
      absl::Status status = CheckSettable(hessians);
      if (status.ok() && columns > 0) status = CheckHessians(hessians, columns);
      if (!status.ok()) return absl::DataLossError(absl::StrCat("state: ", status.message()));
    }
    members_ = members;
    columns_ = columns;
    amax_ = amax;
    hessians_ = std::move(hessians);
    computed_ = false;
    return absl::OkStatus();
  }

  absl::Status SetHessians(std::vector<float> hessians) final {
    NIBBLE_RETURN_IF_ERROR(CheckSettable(hessians));
    if (members_ > 0) NIBBLE_RETURN_IF_ERROR(CheckHessians(hessians, columns_));
    // A slice whose channels were never active weighs every scale alike, and the smallest would
    // win: it is searched as the plain sweep does.
    for (size_t first = 0; first < hessians.size(); first += kHessianSize) {
      float* h = hessians.data() + first;
      if (std::any_of(h, h + kHessianSize, [](float v) { return v != 0; })) continue;
      for (int i = 0; i < kBlockSize; ++i) h[i * kBlockSize + i] = 1;
    }
    hessians_ = std::move(hessians);
    return absl::OkStatus();
  }

  absl::StatusOr<ScaleSet> Compute(const MatrixView& weight, Backend& backend) final {
    NIBBLE_RETURN_IF_ERROR(Begin(weight));
    ScaleSet scales = {amax(), spec_.e4m3_max, std::nullopt, {}};
    NIBBLE_RETURN_IF_ERROR(Choose(weight, backend, scales));
    return scales;
  }

  absl::StatusOr<PackedTensor> Quantize(const MatrixView& weight, Backend& backend) final {
    NIBBLE_RETURN_IF_ERROR(Begin(weight));
    return ChooseAndEncode(weight, backend);
  }

 protected:
  const WeightSpec& spec() const { return spec_; }
  const std::vector<float>& hessians() const { return hessians_; }
  float amax() const { return ExportableAmax(amax_, spec_.e4m3_max); }

  virtual absl::Status Choose(const MatrixView& weight, Backend& backend, ScaleSet& scales) = 0;
  virtual absl::StatusOr<PackedTensor> ChooseAndEncode(const MatrixView& weight, Backend& backend) {
    ScaleSet scales = {amax(), spec_.e4m3_max, std::nullopt, {}};
    NIBBLE_RETURN_IF_ERROR(Choose(weight, backend, scales));
    return EncodeWeight(scales, weight, backend);
  }

 private:
  absl::Status Begin(const MatrixView& weight) {
    if (members_ == 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(ToAbsl(name()), ": expected Collect of every member first, got none"));
    }
    NIBBLE_RETURN_IF_ERROR(CheckColumns(weight.cols));
    computed_ = true;
    return absl::OkStatus();
  }

  absl::Status CheckColumns(int64_t columns) const {
    if (columns == columns_) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("shape: expected ", columns_, " columns as before, got ", columns));
  }

  absl::Status CheckSettable(const std::vector<float>& hessians) const {
    if (!needs_hessians()) return NoHessians(name());
    if (hessians.empty() || hessians.size() % kHessianSize != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("hessian: expected slices of 16 x 16, got ", hessians.size(), " numbers"));
    }
    for (size_t i = 0; i < hessians.size(); ++i) {
      if (IsFinite(hessians[i])) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          "hessian: expected finite numbers, got ", hessians[i], " in slice ", i / kHessianSize));
    }
    return absl::OkStatus();
  }

  static absl::Status CheckHessians(const std::vector<float>& hessians, int64_t columns) {
    const int64_t slices = static_cast<int64_t>(hessians.size()) / kHessianSize;
    if (hessians.empty() || slices == columns / kBlockSize) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat("hessian: expected ", columns / kBlockSize,
                                                      " slices of 16 x 16, got ", slices));
  }

  const WeightSpec spec_;
  int64_t members_ = 0, columns_ = 0;
  float amax_ = 0;
  std::vector<float> hessians_;
  bool computed_ = false;
};

class MaxCalibrator final : public GroupCalibrator {
 public:
  using GroupCalibrator::GroupCalibrator;

 private:
  absl::Status Choose(const MatrixView&, Backend&, ScaleSet&) override { return absl::OkStatus(); }
};

class FourOverSixCalibrator final : public GroupCalibrator {
 public:
  using GroupCalibrator::GroupCalibrator;

 private:
  absl::Status Choose(const MatrixView&, Backend&, ScaleSet& scales) override {
    scales.four_over_six = spec().four_over_six;
    return absl::OkStatus();
  }
};

class MultiplierCalibrator final : public GroupCalibrator {
 public:
  using GroupCalibrator::GroupCalibrator;

 private:
  absl::Status Choose(const MatrixView& weight, Backend& backend, ScaleSet& scales) override {
    NIBBLE_ASSIGN_OR_RETURN(
        SweepResult found,
        backend.MultiplierSearch({spec().multipliers, spec().e4m3_max, amax()}, weight));
    scales.block_scale = std::move(found.code);
    return absl::OkStatus();
  }
};

// mse over all 126 scales, and local_hessian.
class SweepCalibrator final : public GroupCalibrator {
 public:
  using GroupCalibrator::GroupCalibrator;

  bool needs_hessians() const override { return spec().method == WeightMethod::kLocalHessian; }
  bool fell_back() const override { return needs_hessians() && hessians().empty(); }

 private:
  ScaleSweepParams params() const { return {SweepMethod::kPruned, spec().e4m3_max, amax()}; }

  bool feeds_back() const { return spec().rounding == Rounding::kFeedback && !hessians().empty(); }
  absl::StatusOr<FeedbackTensor> SweepWithFeedback(const MatrixView& weight,
                                                   Backend& backend) const {
    return backend.SweepHessianFeedback(params(), weight, hessians());
  }

  absl::Status Choose(const MatrixView& weight, Backend& backend, ScaleSet& scales) override {
    if (feeds_back()) {
      NIBBLE_ASSIGN_OR_RETURN(FeedbackTensor made, SweepWithFeedback(weight, backend));
      scales.block_scale = std::move(made.found.code);
      scales.codes = std::move(made.packed.packed);
      return absl::OkStatus();
    }
    NIBBLE_ASSIGN_OR_RETURN(SweepResult found,
                            hessians().empty()
                                ? backend.ScaleSweep(params(), weight)
                                : backend.ScaleSweepHessian(params(), weight, hessians()));
    scales.block_scale = std::move(found.code);
    return absl::OkStatus();
  }
  absl::StatusOr<PackedTensor> ChooseAndEncode(const MatrixView& weight,
                                               Backend& backend) override {
    if (feeds_back()) {
      NIBBLE_ASSIGN_OR_RETURN(FeedbackTensor made, SweepWithFeedback(weight, backend));
      return std::move(made.packed);
    }
    if (!hessians().empty()) return GroupCalibrator::ChooseAndEncode(weight, backend);
    NIBBLE_ASSIGN_OR_RETURN(SweptTensor swept, backend.SweepAndQuantize(params(), weight));
    return std::move(swept.packed);
  }
};

}  // namespace

absl::Status WeightCalibrator::SetHessians(std::vector<float>) { return NoHessians(name()); }

absl::StatusOr<PackedTensor> WeightCalibrator::Quantize(const MatrixView& weight,
                                                        Backend& backend) {
  NIBBLE_ASSIGN_OR_RETURN(const ScaleSet scales, Compute(weight, backend));
  return EncodeWeight(scales, weight, backend);
}

float ExportableAmax(float amax, int e4m3_max) {
  // 6 * bound is below 2^12, so the product is exact.
  const float smallest = std::numeric_limits<float>::min() * (kE2m1Max * e4m3_max);
  return amax == 0.0f ? 0.0f : std::max(amax, smallest);
}

absl::StatusOr<PackedTensor> EncodeWeight(const ScaleSet& scales, const MatrixView& weight,
                                          Backend& backend) {
  if (!scales.block_scale.empty()) {
    if (scales.four_over_six) {
      return absl::InvalidArgumentError(
          "scales: expected block scales or 4over6, which chooses them, got both");
    }
    NIBBLE_ASSIGN_OR_RETURN(PackedTensor packed,
                            backend.QuantizeWithScales(weight, scales.global_amax, scales.e4m3_max,
                                                       scales.block_scale));
    if (scales.codes.empty()) return packed;
    if (scales.codes.size() != packed.packed.size()) {
      return absl::InvalidArgumentError(absl::StrCat("codes: expected ", packed.packed.size(),
                                                     " bytes, got ", scales.codes.size()));
    }
    packed.packed = scales.codes;
    return packed;
  }
  if (!scales.codes.empty()) {
    return absl::InvalidArgumentError("codes: expected block scales with them, got none");
  }
  QuantizeParams params;
  params.rule = Rule::kCheckpoint;
  params.four_over_six = scales.four_over_six;
  params.e4m3_max = scales.e4m3_max;
  params.global_amax = scales.global_amax;
  return backend.Quantize(params, weight);
}

absl::Status Validate(const WeightSpec& spec) {
  if (static_cast<size_t>(spec.method) >= kEnumNames<WeightMethod>.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("method: expected ", NamesOf<WeightMethod>(), ", got another"));
  }
  if (spec.e4m3_max != 448 && spec.e4m3_max != 256) {
    return absl::InvalidArgumentError(
        absl::StrCat("e4m3_max: expected 448 or 256, got ", spec.e4m3_max));
  }
  NIBBLE_RETURN_IF_ERROR(Validate(spec.multipliers));
  const WeightSpec defaults;
  const bool mse = spec.method == WeightMethod::kMse;
  WeightSpec plain = spec;
  if (!mse) plain.fp8_scale_sweep = defaults.fp8_scale_sweep;
  if (!mse || spec.fp8_scale_sweep) plain.multipliers = defaults.multipliers;
  if (spec.method != WeightMethod::kLocalHessian) plain.rounding = defaults.rounding;
  if (spec.method != WeightMethod::kFourOverSix) plain.four_over_six = defaults.four_over_six;
  if (spec == plain) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("weights: expected parameters of the method ",
                                                 ToAbsl(NameOf(spec.method)),
                                                 " alone, got those of another"));
}

absl::StatusOr<std::unique_ptr<WeightCalibrator>> MakeWeightCalibrator(const WeightSpec& spec) {
  NIBBLE_RETURN_IF_ERROR(Validate(spec));
  std::unique_ptr<WeightCalibrator> made;
  switch (spec.method) {
    case WeightMethod::kMax:
      made = std::make_unique<MaxCalibrator>(spec);
      break;
    case WeightMethod::kFourOverSix:
      made = std::make_unique<FourOverSixCalibrator>(spec);
      break;
    case WeightMethod::kMse:
      if (!spec.fp8_scale_sweep) {
        made = std::make_unique<MultiplierCalibrator>(spec);
        break;
      }
      [[fallthrough]];
    case WeightMethod::kLocalHessian:
      made = std::make_unique<SweepCalibrator>(spec);
      break;
  }
  return made;
}

}  // namespace nibble
