#include "cli/flags.h"

#include <cstdio>
#include <optional>
#include <utility>

#include "base/status.h"
#include "base/text.h"
#include "engine/find_recipe.h"
#include "engine/tuning_choice.h"
#include "kernels/cuda/tunable_ops.h"
#include "kernels/cuda/tuning_device.h"

namespace nibble {

void BackendFlags::Add(CLI::App* app) {
  app->add_option("--backend", name, "auto, cpu, cpu-scalar or cuda:N")->capture_default_str();
  app->add_option("--threads", options.threads, "CPU threads; 0: one for each CPU")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

absl::StatusOr<std::unique_ptr<Backend>> BackendFlags::Make() const { return Make({}); }

absl::StatusOr<std::unique_ptr<Backend>> BackendFlags::Make(const Recipe::Tuning& tuning) const {
  NIBBLE_RETURN_IF_ERROR(CheckTuning(tuning, CudaTunableOps()));
  const std::optional<int> device = CudaDeviceOf(name);
  BackendOptions with_picks = options;
  absl::Status unread;
  if (device || !tuning.store.empty()) {
    absl::StatusOr<TuningStore> picks = LoadPicks(tuning);
    if (!picks.ok() && !tuning.store.empty()) return picks.status();
    unread = picks.status();
    if (picks.ok()) with_picks.tuning = *std::move(picks);
  }
  if (device && (tuning.warps || tuning.blocks_per_program)) {
    NIBBLE_ASSIGN_OR_RETURN(const auto measured_on, MakeCudaTuningDevice(*device));
    NIBBLE_ASSIGN_OR_RETURN(
        with_picks.tuning,
        ChooseLaunchShapes(tuning, CudaTunableOps(), measured_on->name(), with_picks.tuning));
  }
  NIBBLE_ASSIGN_OR_RETURN(auto backend, MakeBackend(name, with_picks));
  if (!unread.ok()) {
    std::fprintf(stderr, "nibble: warning: %s; using the shipped picks\n",
                 Printable(ToStd(unread.message())).c_str());
  }
  return backend;
}

void RecipeFlags::Add(CLI::App* app) {
  AddName(app, "--recipe", name)->required();
  AddSet(app, overrides);
}

absl::StatusOr<Recipe> RecipeFlags::Load() const { return FindRecipe(name, overrides); }

CLI::Option* RecipeFlags::AddName(CLI::App* app, const std::string& option, std::string& name) {
  return app->add_option(option, name, "one that `nibble recipes` lists, or a YAML file")
      ->check(NotEmpty());
}

CLI::Option* RecipeFlags::AddSet(CLI::App* app, std::vector<std::string>& overrides) {
  return app
      ->add_option("--set", overrides, "KEY=VALUE instead of what the recipe says; again for more")
      ->allow_extra_args(false);
}

CLI::Validator NotEmpty() {
  return CLI::Validator(
      [](std::string& word) { return word.empty() ? "expected a value, got nothing" : ""; }, "");
}

}  // namespace nibble
