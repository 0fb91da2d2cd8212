// RecipeAsYaml and LoadRecipe are inverse to one another.
#include <cmath>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "policies/recipe.h"

namespace nibble {
namespace {

class RandomRecipes {
 public:
  explicit RandomRecipes(uint64_t seed) : random_(seed) {}

  Recipe Next() {
    Recipe recipe;
    recipe.name = String();
    recipe.description = String();
    recipe.treatment = ATreatment();
    recipe.kv_cache = Any<KvCacheFormat>();
    for (int64_t rules = Below(6); rules > 0; --rules) recipe.rules.push_back(Rule());
    recipe.calibration = {1 + Below(1'000'000'000), 1 + Below(1'000'000'000), Below(1'000'000'001),
                          Coin(), Any<Propagate>()};
    recipe.output = {Any<ExportFormat>(),
                     static_cast<uint64_t>(Coin() ? 1 + Below(1'000'000'000'000'000)
                                                  : (1 + Below(100)) * 1'000'000'000)};
    if (Coin()) recipe.tuning.blocks_per_program = static_cast<int>(1 + Below(1 << 20));
    if (Coin()) recipe.tuning.warps = static_cast<int>(1 + Below(1 << 20));
    recipe.tuning.store = String();
    recipe.nonfinite = Any<NonFinite>();
    return recipe;
  }

 private:
  int64_t Below(int64_t limit) { return static_cast<int64_t>(random_() % limit); }
  bool Coin() { return Below(2) == 0; }
  template <typename Enum>
  Enum Any() {
    return static_cast<Enum>(Below(kEnumNames<Enum>.size()));
  }
  double Between(double least, double most) {  // evenly in the exponent
    const double t = std::uniform_real_distribution<double>(0, 1)(random_);
    return std::min(most, least * std::pow(most / least, t));
  }

  // Anything a string can hold, and what YAML could take for something else.
  std::string String() {
    static const std::string kPieces[] = {"a",
                                          "nvfp4",
                                          " ",
                                          "\"",
                                          "'",
                                          "\\",
                                          "\n",
                                          "\t",
                                          "#",
                                          ": ",
                                          "- ",
                                          "null",
                                          "~",
                                          "true",
                                          "1e9",
                                          "\x01",
                                          std::string(1, '\0'),
                                          "\x7f",
                                          "{",
                                          "[",
                                          "&x",
                                          "*x",
                                          "!t",
                                          "%",
                                          "\xc3\xa9",
                                          "\xf0\x9f\x98\x80",
                                          "\xc2\x9b",
                                          "\r",
                                          "\x1b",
                                          "@",
                                          "|",
                                          ">",
                                          "\xc2\x85",
                                          "\xe2\x80\xa8",
                                          "---",
                                          "\xef\xbb\xbf"};
    std::string text;
    for (int64_t i = Below(8); i > 0; --i) text += kPieces[Below(std::size(kPieces))];
    return text;
  }

  std::string Pattern() {
    static const std::string kExpressions[] = {"re:.*", "re:(a|b)\\.c", "re:^(?!x).*\\d$"};
    return Coin() ? kExpressions[Below(3)] : absl::StrCat("*", String());
  }

  Treatment ATreatment() {
    Treatment treatment;
    WeightSpec& weights = treatment.weights;
    weights.method = Any<WeightMethod>();
    weights.e4m3_max = Coin() ? 448 : 256;
    if (weights.method == WeightMethod::kMse) {
      weights.fp8_scale_sweep = Coin();
      if (!weights.fp8_scale_sweep && Coin()) {
        weights.multipliers.start = static_cast<float>(Between(1e-3, 1));
        weights.multipliers.stop = static_cast<float>(Between(1, 10));
        weights.multipliers.step = static_cast<float>(Between(0.01, 100));
      }
    }
    if (weights.method == WeightMethod::kFourOverSix) {
      weights.four_over_six = {Any<ErrorMetric>(), Any<ErrorPath>()};
    }
    if (weights.method == WeightMethod::kLocalHessian) weights.rounding = Any<Rounding>();
    ActivationSpec& activations = treatment.activations;
    activations.format = Any<ActivationFormat>();
    if (activations.format == ActivationFormat::kNone) return treatment;
    activations.scheme = Coin() ? Scheme::kPerTensor : Scheme::kPerToken;
    activations.method = activations.scheme == Scheme::kPerToken ? ActivationMethod::kConstant
                                                                 : Any<ActivationMethod>();
    switch (activations.method) {
      case ActivationMethod::kMax:
        break;
      case ActivationMethod::kPercentile:
        activations.percentile = Between(1e-9, 100);
        break;
      case ActivationMethod::kHeadroom:
        activations.headroom = Between(1e-6, 1.7499);
        break;
      case ActivationMethod::kConstant:
        activations.input_scale = static_cast<float>(Between(1.1e-30, 0.9e30));
    }
    return treatment;
  }

  RecipeRule Rule() {
    RecipeRule rule;
    for (int64_t i = Below(4); i > 0; --i) rule.match.push_back(Pattern());
    if (Coin()) {
      rule.first_layers = static_cast<int>(Below(3));
      rule.last_layers = static_cast<int>(Below(1'000'000));
    }
    for (int64_t i = Below(3); i > 0; --i) rule.kinds.push_back(Any<ModuleKind>());
    rule.use = Any<RuleUse>();
    if (rule.use == RuleUse::kQuantize && Coin()) rule.treatment = ATreatment();
    return rule;
  }

  std::mt19937_64 random_;
};

absl::StatusOr<Recipe> ReadBack(const std::string& yaml) {
  return LoadRecipe("x.yaml", {}, [&](const std::string&) { return yaml; });
}

TEST(RecipeAsYamlTest, ReadsBackAsAnEqualValue) {
  RandomRecipes recipes(7);
  for (int i = 0; i < 5000; ++i) {
    const Recipe recipe = recipes.Next();
    const std::string yaml = RecipeAsYaml(recipe);
    const absl::StatusOr<Recipe> back = ReadBack(yaml);
    ASSERT_TRUE(back.ok()) << back.status() << "\n" << yaml;
    ASSERT_EQ(*back, recipe) << yaml;
    ASSERT_EQ(RecipeAsYaml(*back), yaml);
  }
}

TEST(RecipeAsYamlTest, LeavesNothingOut) {
  EXPECT_EQ(
      RecipeAsYaml(Recipe{}),
      "metadata:\n"
      "  name: \"\"\n"
      "  description: \"\"\n"
      "weights: {format: nvfp4, scheme: per_tensor, algorithm: {method: max, e4m3_max: 448}}\n"
      "activations: {format: nvfp4, scheme: per_tensor, algorithm: {method: max}}\n"
      "kv_cache: {format: none}\n"
      "rules: []\n"
      "calibration: {sequences: 128, length: 512, routed_min_tokens: 16, "
      "force_all_experts: false, propagate: original}\n"
      "export: {format: modelopt, shard_size: 5GB}\n"
      "tuning: {blocks_per_program: auto, warps: auto, store: \"\"}\n"
      "nonfinite: error\n");
}

TEST(RecipeAsYamlTest, WritesNoControlCharacters) {
  Recipe recipe;
  recipe.name = std::string("\x1b[2J\0\x7f\xc2\x9b", 8);
  for (const char c : RecipeAsYaml(recipe)) {
    EXPECT_TRUE(c == '\n' || (c >= ' ' && c <= '~')) << static_cast<int>(c);
  }
}

}  // namespace
}  // namespace nibble
