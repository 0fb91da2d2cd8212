// How the scales of a plan's rows follow from a calibration: what is stored, and what a calibration
// that propagates quantized layers has to foresee.
#ifndef NIBBLE_ENGINE_CHOOSE_SCALES_H_
#define NIBBLE_ENGINE_CHOOSE_SCALES_H_

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "calib/calibrator.h"
#include "engine/calibration.h"
#include "kernels/backend.h"
#include "policies/plan.h"
#include "policies/recipe.h"

namespace nibble {

// Where scales are chosen from.
struct ScaleChoice {
  const Calibration* calibration = nullptr;  // none where null
  std::string calibration_name = {};         // for messages
  Recipe::Calibration rules = {};
};

// The rows whose inputs are quantized, by input group.
std::map<int, std::vector<const PlanRow*>> RowsByInputGroup(const Plan& plan);

// The multiplier that is stored for the inputs of an input group's rows: of the largest amax that
// any of them has, or of the largest constant. InvalidArgument where activations are needed and
// there is no calibration; FailedPrecondition where that has no token of any of the rows.
absl::StatusOr<float> ChooseInputScale(std::span<const PlanRow* const> rows,
                                       const ScaleChoice& choice, Backend& backend);

// For rows that share their input; with the Hessians of the first that has them, where the method
// wants some. Without, a warning says so: for a routed expert also where it saw fewer tokens than
// the recipe's routed_min_tokens.
absl::StatusOr<std::unique_ptr<WeightCalibrator>> MakeGroupCalibrator(
    std::span<const PlanRow* const> rows, const ScaleChoice& choice, Backend& backend,
    std::vector<std::string>& warnings);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_CHOOSE_SCALES_H_
