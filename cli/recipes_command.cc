#include "cli/recipes_command.h"

#include <algorithm>
#include <iostream>

#include "absl/strings/str_format.h"
#include "base/status.h"
#include "cli/flags.h"
#include "engine/find_recipe.h"
#include "policies/recipe.h"

namespace nibble {

RecipesCommand::RecipesCommand(CLI::App* app) {
  show = app->add_subcommand("show", "a recipe in full, with everything it extends");
  RecipeFlags::AddName(show, "NAME", name)->required();
  RecipeFlags::AddSet(show, overrides);
}

absl::Status RecipesCommand::Run() {
  if (show->parsed()) {
    NIBBLE_ASSIGN_OR_RETURN(const Recipe recipe, FindRecipe(name, overrides));
    std::cout << RecipeAsYaml(recipe);
    return absl::OkStatus();
  }
  size_t width = 0;
  for (const ShippedRecipe& shipped : ShippedRecipes()) {
    width = std::max(width, shipped.name.size());
  }
  for (const ShippedRecipe& shipped : ShippedRecipes()) {
    NIBBLE_ASSIGN_OR_RETURN(const Recipe recipe, FindRecipe(std::string(shipped.name)));
    absl::PrintF("%-*s  %s\n", static_cast<int>(width), recipe.name, recipe.description);
  }
  return absl::OkStatus();
}

}  // namespace nibble
