// Recipes from the shipped ones and from disk.
#ifndef NIBBLE_ENGINE_FIND_RECIPE_H_
#define NIBBLE_ENGINE_FIND_RECIPE_H_

#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "policies/recipe.h"

namespace nibble {

// LoadRecipe with the files of this machine.
absl::StatusOr<Recipe> FindRecipe(const std::string& name,
                                  std::span<const std::string> overrides = {});

}  // namespace nibble

#endif  // NIBBLE_ENGINE_FIND_RECIPE_H_
