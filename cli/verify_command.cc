#include "cli/verify_command.h"

#include <iostream>

#include "base/status.h"
#include "engine/find_recipe.h"
#include "engine/read_model.h"
#include "engine/verify_model.h"
#include "io/model_folder.h"
#include "policies/plan.h"

namespace nibble {

VerifyCommand::VerifyCommand(CLI::App* app) {
  app->add_option("OUT", folder, "folder of the quantized model")->required()->check(NotEmpty());
  CLI::Option* source =
      app->add_option("--against", against, "folder of the source: compare every tensor with it")
          ->check(NotEmpty());
  app->add_option("--calib", calibration,
                  "with --against: also the output error d^T H d of every matrix, H from what "
                  "`nibble calibrate` saved (by a recipe of local_hessian) or from captures")
      ->check(NotEmpty());
  CLI::Option* recipe_option =
      app->add_option("--recipe", recipe, "what was to be quantized by it must be, nothing else")
          ->check(NotEmpty())
          ->needs(source);
  app->add_option("--set", set, "key=value, over what the recipe says; may repeat")
      ->allow_extra_args(false)
      ->needs(recipe_option);
  app->add_flag("--json", json, "machine-readable");
  backend.Add(app);
}

absl::StatusOr<std::set<std::string>> VerifyCommand::PlannedTensors(
    const std::string& source) const {
  NIBBLE_ASSIGN_OR_RETURN(const Recipe rules, FindRecipe(recipe, set));
  NIBBLE_ASSIGN_OR_RETURN(const ModelFolder model, ModelFolder::Open(source));
  NIBBLE_ASSIGN_OR_RETURN(const Model what, ReadModel(model));
  NIBBLE_ASSIGN_OR_RETURN(const Plan plan, MakePlan(rules, what));
  std::set<std::string> names;
  for (const PlanRow& row : plan.rows) {
    if (row.quantize) names.insert(row.tensor.name);
  }
  return names;
}

absl::Status VerifyCommand::Run() {
  NIBBLE_ASSIGN_OR_RETURN(const auto device, backend.Make());
  VerifyOptions options;
  options.against = against;
  options.calibration = calibration;
  options.threads = backend.options.threads;
  if (!recipe.empty()) {
    options.planned = [this](const std::string& source) { return PlannedTensors(source); };
  }
  NIBBLE_ASSIGN_OR_RETURN(const VerifyReport report, VerifyModel(folder, options, *device));
  std::cout << (json ? VerifyReportAsJson(report) : VerifyReportAsText(report));
  if (report.holes.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(folder, ": expected no hole, got ", report.holes.size()));
}

}  // namespace nibble
