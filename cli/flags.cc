#include "cli/flags.h"

#include <cstdio>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "base/status.h"
#include "base/text.h"
#include "cli/report.h"
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

void DataFlags::Add(CLI::App* app) {
  constexpr int64_t kMost = 1'000'000'000;
  data = app->add_option("--data", request.path,
                         "text (.txt), JSON lines (.jsonl) or token ids (.safetensors, .u16, .u32)")
             ->check(NotEmpty());
  field = app->add_option("--field", request.field, "where a line of JSON has its text")
              ->needs(data)
              ->capture_default_str();
  sequences = app->add_option("--sequences", request.sequences, "how many, at most")
                  ->needs(data)
                  ->check(CLI::Range(int64_t{1}, kMost));
  length = app->add_option("--length", request.length, "of each, in tokens")
               ->needs(data)
               ->check(CLI::Range(int64_t{1}, kMost));
}

void DataFlags::Reconcile(Recipe::Calibration& calibration) {
  const auto agree = [](const CLI::Option* option, int64_t& given, int64_t& of_recipe) {
    (option->count() > 0 ? of_recipe : given) = option->count() > 0 ? given : of_recipe;
  };
  agree(sequences, request.sequences, calibration.sequences);
  agree(length, request.length, calibration.length);
}

absl::StatusOr<TokenSet> DataFlags::Read(const std::string& model) const {
  NIBBLE_ASSIGN_OR_RETURN(ModelData read, ReadModelData(model, request));
  ReportWarnings(read.warnings);
  return std::move(read.tokens);
}

void RunFlags::Add(CLI::App* app) {
  app->add_option("--dtype", dtype, "of activations: fp32 or bf16")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  app->add_option("--batch-tokens", batch_tokens,
                  "run together, in whole sequences; fewer take less memory [2048, on a GPU 8192]")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  app->add_option(
         "--hidden-memory", hidden_memory,
         "bytes (or 512MiB, 8GiB) of hidden states in memory; the rest is in a file [8GiB]")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true));
}

RunOptions RunFlags::Options(const BackendFlags& backend) const {
  RunOptions options;
  options.threads = backend.options.threads;
  options.dtype = dtype == "bf16" ? DType::kBf16 : DType::kF32;
  options.batch_tokens = batch_tokens;
  options.hidden_states.memory_budget = hidden_memory;
  return options;
}

CLI::Validator NotEmpty() {
  return CLI::Validator(
      [](std::string& word) { return word.empty() ? "expected a value, got nothing" : ""; }, "");
}

CLI::Validator FitsFloat() {
  return CLI::Validator(
      [](std::string& word) {
        double value = 0;
        const bool lost =
            absl::SimpleAtod(word, &value) && value != 0 && static_cast<float>(value) == 0;
        return lost ? absl::StrCat("expected 0 or at least 1.4e-45, got ", word) : std::string();
      },
      "");
}

}  // namespace nibble
