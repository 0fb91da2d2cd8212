// A recipe: which modules are quantized, how their scales are chosen, what is written. A plain
// value, read from YAML and written back.
#ifndef NIBBLE_POLICIES_RECIPE_H_
#define NIBBLE_POLICIES_RECIPE_H_

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/enum_names.h"
#include "policies/model.h"
#include "quant/numerics/scale_sweep.h"
#include "quant/quantize_params.h"

namespace nibble {

enum class WeightMethod : uint8_t { kMax, kMse, kLocalHessian, kFourOverSix };
template <>
inline constexpr std::array<std::string_view, 4> kEnumNames<WeightMethod> = {
    "max", "mse", "local_hessian", "four_over_six"};

// How local_hessian's codes follow from a scale: each the nearest, or chosen together.
enum class Rounding : uint8_t { kNearest, kFeedback };
template <>
inline constexpr std::array<std::string_view, 2> kEnumNames<Rounding> = {"nearest", "feedback"};

enum class ActivationFormat : uint8_t { kNone, kNvfp4 };  // kNone: weight-only
template <>
inline constexpr std::array<std::string_view, 2> kEnumNames<ActivationFormat> = {"none", "nvfp4"};

enum class ActivationMethod : uint8_t { kMax, kPercentile, kHeadroom, kConstant };
template <>
inline constexpr std::array<std::string_view, 4> kEnumNames<ActivationMethod> = {
    "max", "percentile", "headroom", "constant"};

enum class KvCacheFormat : uint8_t { kNone, kFp8 };
template <>
inline constexpr std::array<std::string_view, 2> kEnumNames<KvCacheFormat> = {"none", "fp8"};

enum class ExportFormat : uint8_t { kModelopt, kCompressedTensors };
template <>
inline constexpr std::array<std::string_view, 2> kEnumNames<ExportFormat> = {"modelopt",
                                                                             "compressed-tensors"};

// Which inputs are observed: those of the model as it is, or those that its layers have when the
// ones before them are quantized.
enum class Propagate : uint8_t { kOriginal, kQuantized };
template <>
inline constexpr std::array<std::string_view, 2> kEnumNames<Propagate> = {"original", "quantized"};

enum class RuleUse : uint8_t { kQuantize, kKeep };
template <>
inline constexpr std::array<std::string_view, 2> kEnumNames<RuleUse> = {"quantize", "keep"};

// Of a weight that has NaN or infinity.
enum class NonFinite : uint8_t { kError, kKeep };
template <>
inline constexpr std::array<std::string_view, 2> kEnumNames<NonFinite> = {"error", "keep"};

// Here and not where the grid is, which kernels are tuned with: every line there counts for their
// build ids.
inline bool operator==(const MultiplierGrid& a, const MultiplierGrid& b) {
  return a.start == b.start && a.stop == b.stop && a.step == b.step;
}

// How a weight's scales are chosen. Fields of other methods than `method` have their defaults.
struct WeightSpec {
  WeightMethod method = WeightMethod::kMax;
  bool fp8_scale_sweep = false;     // mse: the best of all 126 scales instead of the multipliers
  MultiplierGrid multipliers = {};  // mse without the sweep
  FourOverSix four_over_six = {};
  Rounding rounding = Rounding::kNearest;  // local_hessian
  int e4m3_max = 448;  // 256 with four_over_six unless the recipe says otherwise

  friend bool operator==(const WeightSpec&, const WeightSpec&) = default;
};

// How the scale of a layer's input is chosen.
struct ActivationSpec {
  ActivationFormat format = ActivationFormat::kNvfp4;
  // per_token is for loaders that find each token's own global scale at run time. Its method is
  // always `constant`: nothing is calibrated, and `input_scale` is stored for other loaders.
  Scheme scheme = Scheme::kPerTensor;  // never tile_2d
  ActivationMethod method = ActivationMethod::kMax;
  double percentile = 99.99;  // percentile
  double headroom = 1.0;      // headroom: see calib/activation_calibrators.h
  float input_scale = 1;      // constant: the stored scale itself

  friend bool operator==(const ActivationSpec&, const ActivationSpec&) = default;
};

struct Treatment {
  WeightSpec weights = {};
  ActivationSpec activations = {};

  friend bool operator==(const Treatment&, const Treatment&) = default;
};

// Whether the scale of the layer's input comes from data: without any, the recipe cannot be carried
// out. (local_hessian can: without data it is the plain sweep.)
bool NeedsCalibration(const Treatment& treatment);

// One of the ordered rules; of those that match a module the last decides.
struct RecipeRule {
  std::vector<std::string> match;  // globs or "re:..." on module names; empty: every name
  // The first and last so many layers; both 0: any layer, and modules outside of layers.
  int first_layers = 0, last_layers = 0;
  std::vector<ModuleKind> kinds;  // empty: any kind
  RuleUse use = RuleUse::kKeep;
  std::optional<Treatment> treatment;  // instead of the recipe's; complete
  std::string place;                   // "file:line:column", for messages and plans

  // Everything but the place.
  friend bool operator==(const RecipeRule& a, const RecipeRule& b) {
    return a.match == b.match && a.first_layers == b.first_layers &&
           a.last_layers == b.last_layers && a.kinds == b.kinds && a.use == b.use &&
           a.treatment == b.treatment;
  }
};

struct Recipe {
  std::string name, description;
  Treatment treatment;
  KvCacheFormat kv_cache = KvCacheFormat::kNone;
  std::vector<RecipeRule> rules;
  struct Calibration {
    int64_t sequences = 128, length = 512;
    // Second moments of a routed expert's input over fewer tokens are not used.
    int64_t routed_min_tokens = 16;
    bool force_all_experts = false;  // each is shown every token, wherever it is routed
    Propagate propagate = Propagate::kOriginal;
    friend bool operator==(const Calibration&, const Calibration&) = default;
  } calibration;
  struct Export {
    ExportFormat format = ExportFormat::kModelopt;
    uint64_t shard_bytes = 5'000'000'000;
    friend bool operator==(const Export&, const Export&) = default;
  } output;  // "export" in YAML
  struct Tuning {
    std::optional<int> blocks_per_program, warps;  // only launch shapes that have them
    std::string store;                             // a file of picks; empty: the user's
    std::string place = {};                        // "file:line:column", for messages

    // Everything but the place.
    friend bool operator==(const Tuning& a, const Tuning& b) {
      return a.blocks_per_program == b.blocks_per_program && a.warps == b.warps &&
             a.store == b.store;
    }
  } tuning;
  NonFinite nonfinite = NonFinite::kError;

  friend bool operator==(const Recipe&, const Recipe&) = default;
};

// Whether any of the treatments that its rules give NeedsCalibration.
bool NeedsCalibration(const Recipe& recipe);

// Whether a module's name matches a glob ("*" and "?", over dots too) or, after "re:", a regular
// expression (ECMAScript without back references, over the whole name). InvalidArgument for a
// broken expression, and for one that takes absurdly long.
absl::StatusOr<bool> MatchesName(std::string_view pattern, std::string_view module);

// Reads the file that a recipe is in or extends.
using ReadRecipeFile = std::function<absl::StatusOr<std::string>(const std::string& path)>;

// `name`: one of the shipped recipes, or a path (which has a '/' or ends in .yaml or .yml). What it
// `extends` is found the same way, a path from the folder of the file that says it.
// `overrides`: "activations.algorithm.method=constant", applied after everything the recipe
// extends. InvalidArgument with file:line:column and the nearest valid word for an unknown key, a
// misspelt value, a wrong type or a combination that cannot be, and, with the shipped names, for a
// name that is none of them; NotFound for a file that is not there.
absl::StatusOr<Recipe> LoadRecipe(const std::string& name, std::span<const std::string> overrides,
                                  const ReadRecipeFile& read);

// The recipe in full, with nothing left to defaults or to other files; LoadRecipe reads it back as
// an equal value.
std::string RecipeAsYaml(const Recipe& recipe);

struct ShippedRecipe {
  std::string_view name, text;
};
std::span<const ShippedRecipe> ShippedRecipes();

}  // namespace nibble

#endif  // NIBBLE_POLICIES_RECIPE_H_
