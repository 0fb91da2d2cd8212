#include "policies/recipe.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "policies/recipe_layers.h"
#include "policies/recipe_reader.h"

namespace nibble {

bool NeedsCalibration(const Treatment& treatment) {
  return treatment.activations.format != ActivationFormat::kNone &&
         treatment.activations.method != ActivationMethod::kConstant;
}

bool NeedsCalibration(const Recipe& recipe) {
  return std::ranges::any_of(recipe.rules, [&](const RecipeRule& rule) {
    return rule.use == RuleUse::kQuantize &&
           NeedsCalibration(rule.treatment.value_or(recipe.treatment));
  });
}

absl::StatusOr<Recipe> LoadRecipe(const std::string& name, std::span<const std::string> overrides,
                                  const ReadRecipeFile& read) {
  NIBBLE_ASSIGN_OR_RETURN(const YamlPtr set, OverridesAsYaml(overrides));
  std::string default_name;
  NIBBLE_ASSIGN_OR_RETURN(YamlPtr document, ReadLayers(name, read, default_name));
  if (set != nullptr) document = MergeYaml("", document, set);
  return ReadRecipe(document, default_name);
}

}  // namespace nibble
