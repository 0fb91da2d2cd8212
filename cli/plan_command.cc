#include "cli/plan_command.h"

#include <iostream>
#include <thread>

#include "base/status.h"
#include "engine/plan_report.h"
#include "engine/read_model.h"
#include "engine/tuning_choice.h"
#include "io/model_folder.h"
#include "policies/plan.h"

namespace nibble {

PlanCommand::PlanCommand(CLI::App* app) {
  app->add_option("MODEL", model, "folder of a model: config.json and safetensors")->required();
  recipe.Add(app);
  app->add_option("--threads", threads, "CPU threads of the estimate; 0: one for each CPU")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app->add_flag("--strict", strict, "what would be a warning is an error");
  app->add_flag("--json", json, "machine-readable");
}

absl::Status PlanCommand::Run() {
  NIBBLE_ASSIGN_OR_RETURN(const Recipe rules, recipe.Load());
  NIBBLE_RETURN_IF_ERROR(CheckTuning(rules.tuning, CudaTunableOps()));
  NIBBLE_ASSIGN_OR_RETURN(const ModelFolder folder, ModelFolder::Open(model));
  NIBBLE_ASSIGN_OR_RETURN(const Model what, ReadModel(folder));
  NIBBLE_ASSIGN_OR_RETURN(const Plan plan, MakePlan(rules, what, {.strict = strict}));
  const int cpus = static_cast<int>(std::thread::hardware_concurrency());
  const PlanEstimate estimate = EstimatePlan(plan, threads > 0 ? threads : cpus);
  if (json) {
    std::cout << PlanAsJson(plan, estimate);
    return absl::OkStatus();
  }
  std::cout << PlanAsText(plan) << EstimateAsText(estimate);
  for (const std::string& file : folder.unread_weights()) {
    std::cout << AboutUnreadWeights(file) << "\n";
  }
  return absl::OkStatus();
}

}  // namespace nibble
