// libFuzzer target: the input is a recipe's file, and every file that it extends.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "policies/recipe.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto recipe = nibble::LoadRecipe("x/r.yaml", {}, [&](const std::string&) { return text; });
  if (!recipe.ok()) {
    const absl::StatusCode code = recipe.status().code();
    NIBBLE_CHECK(code == absl::StatusCode::kInvalidArgument || code == absl::StatusCode::kNotFound);
    for (const char c : recipe.status().message()) NIBBLE_CHECK(c >= ' ' && c <= '~');
    return 0;
  }
  const std::string yaml = nibble::RecipeAsYaml(*recipe);
  const auto back = nibble::LoadRecipe("r.yaml", {}, [&](const std::string&) { return yaml; });
  NIBBLE_CHECK(back.ok() && *back == *recipe);
  return 0;
}
