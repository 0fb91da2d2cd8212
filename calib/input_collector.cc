#include "calib/input_collector.h"

#include <utility>

#include "base/status.h"
#include "calib/activation_calibrators.h"
#include "calib/state.h"

namespace nibble {

absl::Status InputCollector::Collect(const MatrixView& x, Backend& backend) {
  InputStats stats = stats_;
  NIBBLE_RETURN_IF_ERROR(stats.Collect(x, backend));
  if (has_hessians_) NIBBLE_RETURN_IF_ERROR(hessians_.Collect(x, backend));
  stats_ = std::move(stats);
  return absl::OkStatus();
}

InputCollector InputCollector::Of(InputSumsResult sums, int64_t columns, bool hessians) {
  InputCollector collector(hessians);
  collector.stats_ = InputStats::Of(sums, columns);
  if (hessians && sums.tokens > 0) {
    collector.hessians_ = HessianSums::Of(sums.units, std::move(sums.digits), std::move(sums.top));
  }
  return collector;
}

absl::Status InputCollector::Merge(const InputCollector& other) {
  if (this == &other || has_hessians_ != other.has_hessians_) {
    return absl::InvalidArgumentError(
        this == &other ? "merge: expected another collector, got the same one"
                       : "merge: expected both with Hessians or both without, got one");
  }
  InputStats stats = stats_;
  NIBBLE_RETURN_IF_ERROR(stats.Merge(other.stats_));
  NIBBLE_RETURN_IF_ERROR(hessians_.Merge(other.hessians_));
  stats_ = std::move(stats);
  return absl::OkStatus();
}

CalibratorState InputCollector::Save() const {
  CalibratorState state;
  stats_.Save(state);
  if (has_hessians_) hessians_.Save(state);
  return state;
}

absl::Status InputCollector::Load(const CalibratorState& state) {
  NIBBLE_RETURN_IF_ERROR(
      CheckStateNames(state, {"tokens", "columns", "amax", "blocks.amax", "blocks.count",
                              "hessian.units", "hessian.digits", "hessian.top"}));
  InputCollector loaded(state.count("hessian.units") + state.count("hessian.digits") +
                            state.count("hessian.top") >
                        0);
  NIBBLE_ASSIGN_OR_RETURN(loaded.stats_, InputStats::Load(state, /*histogram=*/true));
  if (loaded.has_hessians_) {
    NIBBLE_ASSIGN_OR_RETURN(loaded.hessians_, HessianSums::Load(state, loaded.columns()));
    const int64_t units = loaded.hessians_.units();
    if (units > loaded.tokens() ||
        units < (loaded.tokens() + kInputUnitTokens - 1) / kInputUnitTokens) {
      return absl::DataLossError(absl::StrCat("state 'hessian.units': expected units of 1 to ",
                                              kInputUnitTokens, " of ", loaded.tokens(),
                                              " tokens, got ", units));
    }
  }
  *this = std::move(loaded);
  return absl::OkStatus();
}

absl::StatusOr<float> InputCollector::InputAmax(const ActivationSpec& spec) const {
  return nibble::InputAmax(spec, stats_);
}

std::optional<std::vector<float>> InputCollector::Hessians() const {
  if (!has_hessians_ || tokens() == 0) return std::nullopt;
  return hessians_.Mean(tokens());
}

}  // namespace nibble
