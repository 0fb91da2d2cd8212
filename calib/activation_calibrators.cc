#include "calib/activation_calibrators.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "calib/state.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {
namespace {

// The one that comes closest to `input_scale` when it is divided again.
float ConstantAmax(float input_scale) {
  const float near = MulRn(kE2m1Max * kE4m3Max, input_scale);
  float best = near;
  double best_error = std::fabs(double{CheckpointGlobalDecodeScale(near, kE4m3Max)} - input_scale);
  for (float other : {std::nextafter(near, 0.0f), std::nextafter(near, kFloatMax)}) {
    const double error =
        std::fabs(double{CheckpointGlobalDecodeScale(other, kE4m3Max)} - input_scale);
    if (error >= best_error) continue;
    best = other;
    best_error = error;
  }
  return best;
}

float Headroom(double headroom, const InputStats& stats) {
  const AmaxHistogram& blocks = stats.histogram();
  const float upper = blocks.Percentile(kHeadroomUpperPercent);
  const float anchor =
      blocks.Percentile(kHeadroomAnchorPercent, DivRn(upper, kHeadroomAnchorFloor));
  const double amax = std::max(kHeadroomRho * headroom * anchor, double{upper});
  return static_cast<float>(std::min(amax, double{kFloatMax}));
}

// A statistic of the data: max, percentile, headroom.
class StatsCalibrator final : public ActivationCalibrator {
 public:
  explicit StatsCalibrator(const ActivationSpec& spec)
      : spec_(spec), stats_(NeedsHistogram(spec)) {}

  std::string_view name() const override { return NameOf(spec_.method); }
  absl::Status Collect(const MatrixView& x, Backend& backend) override {
    return stats_.Collect(x, backend);
  }
  void Reset() override { stats_ = InputStats(NeedsHistogram(spec_)); }
  absl::Status Merge(const Calibrator& other) override {
    const auto* same = dynamic_cast<const StatsCalibrator*>(&other);
    if (same == nullptr || same == this || !(same->spec_ == spec_)) {
      return absl::InvalidArgumentError(absl::StrCat("merge: expected another '", ToAbsl(name()),
                                                     "' of the same parameters, got '",
                                                     ToAbsl(other.name()), "'"));
    }
    return stats_.Merge(same->stats_);
  }
  CalibratorState Save() const override {
    CalibratorState state;
    stats_.Save(state);
    return state;
  }
  absl::Status Load(const CalibratorState& state) override {
    if (NeedsHistogram(spec_)) {
      NIBBLE_RETURN_IF_ERROR(
          CheckStateNames(state, {"tokens", "columns", "amax", "blocks.amax", "blocks.count"}));
    } else {
      NIBBLE_RETURN_IF_ERROR(CheckStateNames(state, {"tokens", "columns", "amax"}));
    }
    NIBBLE_ASSIGN_OR_RETURN(stats_, InputStats::Load(state, NeedsHistogram(spec_)));
    return absl::OkStatus();
  }
  absl::StatusOr<float> Compute() const override { return InputAmax(spec_, stats_); }

 private:
  const ActivationSpec spec_;
  InputStats stats_;
};

class ConstantCalibrator final : public ActivationCalibrator {
 public:
  explicit ConstantCalibrator(const ActivationSpec& spec) : spec_(spec) {}

  std::string_view name() const override { return NameOf(spec_.method); }
  absl::Status Collect(const MatrixView&, Backend&) override {
    return absl::FailedPreconditionError(
        "constant: expected no data, since its scale is given, got some");
  }
  void Reset() override {}
  absl::Status Merge(const Calibrator& other) override {
    const auto* same = dynamic_cast<const ConstantCalibrator*>(&other);
    if (same != nullptr && same->spec_ == spec_) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("merge: expected another 'constant' of the same input_scale, got '",
                     ToAbsl(other.name()), "'"));
  }
  CalibratorState Save() const override { return {}; }
  absl::Status Load(const CalibratorState& state) override { return CheckStateNames(state, {}); }
  absl::StatusOr<float> Compute() const override { return ConstantAmax(spec_.input_scale); }

 private:
  const ActivationSpec spec_;
};

}  // namespace

absl::Status Validate(const ActivationSpec& spec) {
  if (spec.format == ActivationFormat::kNone) {
    return absl::InvalidArgumentError(
        "activations: expected the format nvfp4, got none, which has no scale of the input");
  }
  if (static_cast<size_t>(spec.method) >= kEnumNames<ActivationMethod>.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("method: expected ", NamesOf<ActivationMethod>(), ", got another"));
  }
  if (!(spec.percentile > 0 && spec.percentile <= 100)) {
    return absl::InvalidArgumentError(
        absl::StrCat("percentile: expected more than 0 and at most 100, got ", spec.percentile));
  }
  if (!(spec.headroom > 0 && spec.headroom < kHeadroomMax)) {
    return absl::InvalidArgumentError(absl::StrCat("headroom: expected more than 0 and less than ",
                                                   kHeadroomMax, ", got ", spec.headroom));
  }
  const double constant = double{kE2m1Max} * kE4m3Max * spec.input_scale;
  if (!(spec.input_scale > 0x1p-126f && constant < kFloatMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat("input_scale: expected more than 2^-126 and less than ",
                     kFloatMax / (kE2m1Max * kE4m3Max), ", got ", spec.input_scale));
  }
  const ActivationSpec defaults;
  ActivationSpec plain = spec;
  if (spec.method != ActivationMethod::kPercentile) plain.percentile = defaults.percentile;
  if (spec.method != ActivationMethod::kHeadroom) plain.headroom = defaults.headroom;
  if (spec.method != ActivationMethod::kConstant) plain.input_scale = defaults.input_scale;
  if (spec == plain) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("activations: expected parameters of the method ",
                                                 ToAbsl(NameOf(spec.method)),
                                                 " alone, got those of another"));
}

bool NeedsInput(const ActivationSpec& spec) {
  return spec.format != ActivationFormat::kNone && spec.method != ActivationMethod::kConstant;
}

bool NeedsHistogram(const ActivationSpec& spec) {
  return NeedsInput(spec) && spec.method != ActivationMethod::kMax;
}

absl::StatusOr<float> InputAmax(const ActivationSpec& spec, const InputStats& stats) {
  NIBBLE_RETURN_IF_ERROR(Validate(spec));
  if (spec.method == ActivationMethod::kConstant) return ConstantAmax(spec.input_scale);
  if (stats.tokens() == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(ToAbsl(NameOf(spec.method)), ": expected at least one token, got none"));
  }
  if (spec.method == ActivationMethod::kMax) return stats.amax();
  if (!stats.has_histogram()) {
    return absl::InvalidArgumentError(absl::StrCat(
        ToAbsl(NameOf(spec.method)), ": expected a histogram of the blocks, got the maximum only"));
  }
  if (spec.method == ActivationMethod::kHeadroom) return Headroom(spec.headroom, stats);
  // The one bin that has the maximum stands for it: 100 percent is exactly max.
  const float found = stats.histogram().Percentile(spec.percentile);
  const bool largest = found == stats.histogram().Percentile(100);
  return largest ? stats.amax() : found;
}

absl::StatusOr<std::unique_ptr<ActivationCalibrator>> MakeActivationCalibrator(
    const ActivationSpec& spec) {
  NIBBLE_RETURN_IF_ERROR(Validate(spec));
  if (spec.method == ActivationMethod::kConstant) return std::make_unique<ConstantCalibrator>(spec);
  return std::make_unique<StatsCalibrator>(spec);
}

}  // namespace nibble
