// Options that several commands share. A command is a struct whose constructor adds its options to
// an app and whose Run does the work; cli/main.cc lists them.
#ifndef NIBBLE_CLI_FLAGS_H_
#define NIBBLE_CLI_FLAGS_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "base/enum_names.h"
#include "engine/calibrate_model.h"
#include "engine/model_data.h"
#include "kernels/backend.h"
#include "model/token_set.h"
#include "policies/recipe.h"

namespace nibble {

// An option that takes an enumerator's name.
template <typename Enum>
CLI::Option* AddEnum(CLI::App* app, const std::string& name, Enum& value, const std::string& help) {
  return app
      ->add_option_function<std::string>(
          name,
          [&value, name](const std::string& text) {
            const std::optional<Enum> parsed = FromName<Enum>(text);
            if (!parsed) {
              throw CLI::ValidationError(name, "expected " + NamesOf<Enum>() + ", got " + text);
            }
            value = *parsed;
          },
          help)
      ->type_name("{" + NamesOf<Enum>() + "}");
}

// The same, showing what holds without it.
template <typename Enum>
CLI::Option* AddEnumWithDefault(CLI::App* app, const std::string& name, Enum& value,
                                const std::string& help) {
  return AddEnum(app, name, value, help)->default_str(std::string(NameOf(value)));
}

// --backend and --threads.
struct BackendFlags {
  std::string name = "auto";
  BackendOptions options;

  void Add(CLI::App* app);
  // A store of picks that cannot be read costs speed, not the run: it is a warning on stderr.
  absl::StatusOr<std::unique_ptr<Backend>> Make() const;
  // With the launch shapes and the store that a recipe asks for. What it asks for and cannot have
  // is an error, on any backend.
  absl::StatusOr<std::unique_ptr<Backend>> Make(const Recipe::Tuning& tuning) const;
};

// --recipe and --set.
struct RecipeFlags {
  std::string name;
  std::vector<std::string> overrides;

  void Add(CLI::App* app);  // the recipe is required
  absl::StatusOr<Recipe> Load() const;

  static CLI::Option* AddName(CLI::App* app, const std::string& option, std::string& name);
  static CLI::Option* AddSet(CLI::App* app, std::vector<std::string>& overrides);
};

// --data, and how much of it.
struct DataFlags {
  ModelDataRequest request;
  CLI::Option *data = nullptr, *field = nullptr, *sequences = nullptr, *length = nullptr;

  void Add(CLI::App* app);
  // A recipe's sequences and length hold where the options say nothing else; both agree afterwards.
  void Reconcile(Recipe::Calibration& calibration);
  // Warnings go to stderr.
  absl::StatusOr<TokenSet> Read(const std::string& model) const;
};

// --dtype, --batch-tokens and --hidden-memory: how a model runs.
struct RunFlags {
  std::string dtype = "fp32";
  int64_t batch_tokens = 0;
  uint64_t hidden_memory = HiddenStatesOptions{}.memory_budget;

  void Add(CLI::App* app);
  RunOptions Options(const BackendFlags& backend) const;
};

// CLI11 takes an empty word for 0, or for an option that was not given.
CLI::Validator NotEmpty();

// For options of type float: CLI11 takes what is too small for one for 0.
CLI::Validator FitsFloat();

}  // namespace nibble

#endif  // NIBBLE_CLI_FLAGS_H_
