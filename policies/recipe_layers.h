// Several documents made one: what a recipe extends, then the recipe, then what was set for this
// run.
#ifndef NIBBLE_POLICIES_RECIPE_LAYERS_H_
#define NIBBLE_POLICIES_RECIPE_LAYERS_H_

#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "policies/recipe.h"
#include "policies/yaml_document.h"

namespace nibble {

// `over` on top of `base` (which may be null), under a key of a recipe. Mappings are merged key by
// key, `rules` are appended, anything else replaces what was there. Choices that leave no sense to
// what they stood beside start afresh: an `algorithm` that names its method, activations whose
// format is none, and the algorithm of activations that become per_token.
YamlPtr MergeYaml(std::string_view key, const YamlPtr& base, const YamlPtr& over);

// "a.b=value" for each of `overrides`, as a document to be merged over a recipe; its places name
// the key. Null where there are none.
absl::StatusOr<YamlPtr> OverridesAsYaml(std::span<const std::string> overrides);

// The recipe of LoadRecipe with everything it extends, before the overrides; its "extends" is gone.
// `default_name`: what a recipe without metadata.name is called.
absl::StatusOr<YamlPtr> ReadLayers(const std::string& name, const ReadRecipeFile& read,
                                   std::string& default_name);

}  // namespace nibble

#endif  // NIBBLE_POLICIES_RECIPE_LAYERS_H_
