// A recipe's document, with all layers merged, as a value.
#ifndef NIBBLE_POLICIES_RECIPE_READER_H_
#define NIBBLE_POLICIES_RECIPE_READER_H_

#include <string>

#include "absl/status/statusor.h"
#include "policies/recipe.h"
#include "policies/yaml_document.h"

namespace nibble {

// InvalidArgument "<place>: <key>: expected <rule>, got <value>" for anything that is no recipe.
absl::StatusOr<Recipe> ReadRecipe(const YamlPtr& document, const std::string& default_name);

}  // namespace nibble

#endif  // NIBBLE_POLICIES_RECIPE_READER_H_
