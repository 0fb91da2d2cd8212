#include "engine/choose_scales.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/status.h"
#include "base/tensor_view.h"
#include "engine/export.h"

namespace nibble {

std::map<int, std::vector<const PlanRow*>> RowsByInputGroup(const Plan& plan) {
  std::map<int, std::vector<const PlanRow*>> groups;
  for (const PlanRow& row : plan.rows) {
    if (!row.quantize || row.treatment.activations.format == ActivationFormat::kNone) continue;
    groups[row.input_group].push_back(&row);
  }
  return groups;
}

absl::StatusOr<float> ChooseInputScale(std::span<const PlanRow* const> rows,
                                       const ScaleChoice& choice, Backend& backend) {
  std::optional<float> amax, constant;
  for (const PlanRow* row : rows) {
    const ActivationSpec& spec = row->treatment.activations;
    if (!NeedsCalibration(row->treatment)) {
      constant = std::max(constant.value_or(0), spec.input_scale);
    } else if (choice.calibration != nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(
          const std::optional<float> seen,
          choice.calibration->InputAmax(row->module, spec, MatrixShapeOf(*row).cols, backend));
      if (seen) amax = std::max(amax.value_or(0), *seen);
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          row->module, ": expected activations to choose its input's scale from (method ",
          ToAbsl(NameOf(spec.method)),
          "), got none; give --calib FILE, --data FILE, or --set "
          "activations.algorithm.method=constant"));
    }
  }
  if (constant) return *constant;
  if (amax) return StoredGlobalScale(*amax, 448, ExportFormat::kModelopt);
  const std::string& module = rows.front()->module;
  return absl::FailedPreconditionError(
      absl::StrCat(choice.calibration_name, ": expected activations of ", module, " (a tensor ",
                   module, ".input), got none; calibrate with them, or keep the module by a rule"));
}

absl::StatusOr<std::unique_ptr<WeightCalibrator>> MakeGroupCalibrator(
    std::span<const PlanRow* const> rows, const ScaleChoice& choice, Backend& backend,
    std::vector<std::string>& warnings) {
  NIBBLE_ASSIGN_OR_RETURN(auto calibrator, MakeWeightCalibrator(rows.front()->treatment.weights));
  if (!calibrator->needs_hessians()) return calibrator;
  int64_t most = 0;  // tokens that any of the rows saw
  for (const PlanRow* row : rows) {
    if (choice.calibration == nullptr || !calibrator->fell_back()) break;
    NIBBLE_ASSIGN_OR_RETURN(const int64_t tokens, choice.calibration->Tokens(row->module));
    most = std::max(most, tokens);
    if (row->kind == ModuleKind::kExpert && tokens < choice.rules.routed_min_tokens) continue;
    NIBBLE_ASSIGN_OR_RETURN(auto hessians, choice.calibration->Hessians(
                                               row->module, MatrixShapeOf(*row).cols, backend));
    if (hessians) NIBBLE_RETURN_IF_ERROR(calibrator->SetHessians(*std::move(hessians)));
  }
  if (calibrator->fell_back()) {
    const std::string what =
        most == 0 ? "no activations"
        : rows.front()->kind == ModuleKind::kExpert && most < choice.rules.routed_min_tokens
            ? absl::StrCat("activations of ", most, " tokens, fewer than routed_min_tokens ",
                           choice.rules.routed_min_tokens, ", are too few")
            : "activations without Hessians";
    warnings.push_back(absl::StrCat(rows.front()->module, ": ", what,
                                    " for local_hessian; its scales are those of the plain sweep"));
  }
  return calibrator;
}

}  // namespace nibble
