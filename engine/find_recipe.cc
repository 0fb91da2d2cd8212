#include "engine/find_recipe.h"

#include "io/text_file.h"
#include "policies/yaml_document.h"

namespace nibble {

absl::StatusOr<Recipe> FindRecipe(const std::string& name, std::span<const std::string> overrides) {
  return LoadRecipe(name, overrides,
                    [](const std::string& path) { return ReadTextFile(path, kMostYamlBytes); });
}

}  // namespace nibble
