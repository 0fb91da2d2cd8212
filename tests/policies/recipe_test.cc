#include "policies/recipe.h"

#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using ::nibble::testing::kInvalid;
using ::nibble::testing::kNotFound;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Files = std::map<std::string, std::string>;

absl::StatusOr<Recipe> Load(const std::string& name, const Files& files,
                            const std::vector<std::string>& set = {}) {
  return LoadRecipe(name, set, [&](const std::string& path) -> absl::StatusOr<std::string> {
    const auto file = files.find(path);
    if (file == files.end()) return absl::NotFoundError(path + ": no such file");
    return file->second;
  });
}

absl::StatusOr<Recipe> LoadText(const std::string& text, const std::vector<std::string>& set = {}) {
  return Load("r.yaml", {{"r.yaml", text}}, set);
}

Recipe Must(const absl::StatusOr<Recipe>& recipe) {
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  return recipe.ok() ? *recipe : Recipe{};
}

void ExpectRefused(const std::string& text, const std::string& piece,
                   const std::vector<std::string>& set = {}) {
  EXPECT_TRUE(IsError(LoadText(text, set), kInvalid, piece)) << text;
}

// --- What is read -------------------------------------------------------------------------------

TEST(LoadRecipeTest, ReadsTheShapeOfTheIssue) {
  const Recipe recipe = Must(LoadText(R"(
metadata: {name: mine, description: of mine}
weights:      {format: nvfp4, scheme: per_tensor, algorithm: {method: mse, fp8_scale_sweep: true}}
activations:  {format: nvfp4, scheme: per_tensor, algorithm: {method: max}}
kv_cache: {format: fp8}
rules:
  - {match: "*", use: quantize}
  - {match: ["*lm_head*", "re:.*router"], use: keep}
  - {layers: {first: 1, last: 2}, use: keep}
  - {kinds: [mlp, expert], use: quantize, activations: {algorithm: {method: percentile, percentile: 99.9}}}
calibration:  {sequences: 64, length: 256, routed_min_tokens: 0, force_all_experts: true,
               propagate: quantized}
export:       {format: compressed-tensors, shard_size: 2.5GiB}
tuning: {blocks_per_program: 256, warps: 4, store: picks}
nonfinite: keep
)"));
  EXPECT_EQ(recipe.name, "mine");
  EXPECT_EQ(recipe.description, "of mine");
  EXPECT_EQ(recipe.treatment.weights.method, WeightMethod::kMse);
  EXPECT_TRUE(recipe.treatment.weights.fp8_scale_sweep);
  EXPECT_EQ(recipe.treatment.weights.e4m3_max, 448);
  EXPECT_EQ(recipe.treatment.activations, ActivationSpec{});
  EXPECT_EQ(recipe.kv_cache, KvCacheFormat::kFp8);
  ASSERT_EQ(recipe.rules.size(), 4u);
  EXPECT_THAT(recipe.rules[0].match, ElementsAre("*"));
  EXPECT_EQ(recipe.rules[0].use, RuleUse::kQuantize);
  EXPECT_FALSE(recipe.rules[0].treatment);
  EXPECT_EQ(recipe.rules[0].place, "r.yaml:7:5");
  EXPECT_THAT(recipe.rules[1].match, ElementsAre("*lm_head*", "re:.*router"));
  EXPECT_EQ(recipe.rules[1].use, RuleUse::kKeep);
  EXPECT_THAT(recipe.rules[2].match, IsEmpty());
  EXPECT_EQ(recipe.rules[2].first_layers, 1);
  EXPECT_EQ(recipe.rules[2].last_layers, 2);
  EXPECT_THAT(recipe.rules[3].kinds, ElementsAre(ModuleKind::kMlp, ModuleKind::kExpert));
  ASSERT_TRUE(recipe.rules[3].treatment);
  EXPECT_EQ(recipe.rules[3].treatment->weights, recipe.treatment.weights);
  EXPECT_EQ(recipe.rules[3].treatment->activations.method, ActivationMethod::kPercentile);
  EXPECT_EQ(recipe.rules[3].treatment->activations.percentile, 99.9);
  EXPECT_EQ(recipe.calibration, (Recipe::Calibration{64, 256, 0, true, Propagate::kQuantized}));
  EXPECT_EQ(recipe.output, (Recipe::Export{ExportFormat::kCompressedTensors, uint64_t{5} << 29}));
  EXPECT_EQ(recipe.tuning, (Recipe::Tuning{256, 4, "picks"}));
  EXPECT_EQ(recipe.nonfinite, NonFinite::kKeep);
}

TEST(LoadRecipeTest, WhatIsNotSaidHasItsDefault) {
  Recipe expected;
  expected.name = "r";
  EXPECT_EQ(Must(LoadText("weights: {}\n")), expected);
  expected.name = "a.b";
  EXPECT_EQ(Must(Load("x/a.b.yml", {{"x/a.b.yml", "{}"}})), expected);
  expected.name = "";
  EXPECT_EQ(Must(LoadText("metadata: {name: \"\"}")), expected);
}

TEST(LoadRecipeTest, BareWordsAreAlgorithms) {
  EXPECT_EQ(Must(LoadText("weights: {algorithm: local_hessian}")).treatment.weights.method,
            WeightMethod::kLocalHessian);
  EXPECT_EQ(Must(LoadText("activations: {algorithm: headroom}")).treatment.activations.method,
            ActivationMethod::kHeadroom);
}

TEST(LoadRecipeTest, RoundingIsLocalHessians) {
  WeightSpec expected;
  expected.method = WeightMethod::kLocalHessian;
  EXPECT_EQ(Must(Load("nvfp4_local_hessian", {}, {"weights.algorithm.rounding=nearest"}))
                .treatment.weights,
            expected);
  expected.rounding = Rounding::kFeedback;
  EXPECT_EQ(Must(Load("nvfp4_local_hessian", {}, {"weights.algorithm.rounding=feedback"}))
                .treatment.weights,
            expected);
  ExpectRefused("weights: {algorithm: {method: mse, rounding: feedback}}",
                "r.yaml:1:46: weights.algorithm.rounding: expected method local_hessian with it, "
                "got mse");
  ExpectRefused("weights: {algorithm: {method: local_hessian, rounding: feedbak}}",
                "expected nearest or feedback, got \"feedbak\"; did you mean \"feedback\"?");
}

TEST(LoadRecipeTest, FourOverSixIsOneSwitch) {
  for (const char* text :
       {"weights: {algorithm: four_over_six}", "weights: {algorithm: {method: four_over_six}}"}) {
    const WeightSpec spec = Must(LoadText(text)).treatment.weights;
    EXPECT_EQ(spec.method, WeightMethod::kFourOverSix);
    EXPECT_EQ(spec.e4m3_max, 256);
    EXPECT_EQ(spec.four_over_six, FourOverSix{});
  }
  const WeightSpec spec = Must(LoadText("weights: {algorithm: {e4m3_max: 448, metric: mae, "
                                        "error_path: fast, method: four_over_six}}"))
                              .treatment.weights;
  EXPECT_EQ(spec.e4m3_max, 448);
  EXPECT_EQ(spec.four_over_six, (FourOverSix{ErrorMetric::kMae, ErrorPath::kFast}));
}

TEST(LoadRecipeTest, ReadsEachAlgorithm) {
  const WeightSpec mse =
      Must(LoadText("weights: {algorithm: {method: mse, start: 0.5, stop: 2, step: 0.25}}"))
          .treatment.weights;
  EXPECT_EQ(mse.multipliers, (MultiplierGrid{0.5f, 2, 0.25f}));
  EXPECT_FALSE(mse.fp8_scale_sweep);
  const auto activations = [](const std::string& text) {
    return Must(LoadText("activations: " + text)).treatment.activations;
  };
  EXPECT_EQ(activations("{algorithm: {method: headroom, headroom: 1.5}}").headroom, 1.5);
  EXPECT_EQ(activations("{algorithm: {method: constant, input_scale: 0.25}}").input_scale, 0.25f);
  EXPECT_EQ(activations("{format: none}").format, ActivationFormat::kNone);
}

TEST(LoadRecipeTest, PerTokenActivationsNeedNoCalibration) {
  for (const char* text : {"activations: {scheme: per_token}",
                           "activations: {algorithm: constant, scheme: per_token}"}) {
    const Recipe recipe = Must(LoadText(std::string(text) + "\nrules: [{use: quantize}]"));
    EXPECT_EQ(recipe.treatment.activations.scheme, Scheme::kPerToken);
    EXPECT_EQ(recipe.treatment.activations.method, ActivationMethod::kConstant);
    EXPECT_EQ(recipe.treatment.activations.input_scale, 1);
    EXPECT_FALSE(NeedsCalibration(recipe.treatment));
    EXPECT_FALSE(NeedsCalibration(recipe));
  }
}

TEST(LoadRecipeTest, ReadsSizes) {
  const struct {
    const char* text;
    uint64_t bytes;
  } kCases[] = {{"5GB", 5'000'000'000},
                {"5 GB", 5'000'000'000},
                {"1", 1},
                {"1500", 1500},
                {"1.5KB", 1500},
                {"2MiB", 2 << 20},
                {"0.5TB", 500'000'000'000},
                {"1TiB", uint64_t{1} << 40},
                {"\"3MB\"", 3'000'000}};
  for (const auto& c : kCases) {
    EXPECT_EQ(
        Must(LoadText(std::string("export: {shard_size: ") + c.text + "}")).output.shard_bytes,
        c.bytes)
        << c.text;
  }
}

TEST(NeedsCalibrationTest, CountsWhatRulesGive) {
  const auto needs = [](const std::string& text) { return NeedsCalibration(Must(LoadText(text))); };
  EXPECT_TRUE(needs("rules: [{use: quantize}]"));
  EXPECT_FALSE(needs("rules: [{use: keep}]"));
  EXPECT_FALSE(needs("{}"));
  EXPECT_FALSE(needs("activations: {format: none}\nrules: [{use: quantize}]"));
  EXPECT_FALSE(needs("activations: {algorithm: constant}\nrules: [{use: quantize}]"));
  EXPECT_TRUE(needs("activations: {algorithm: percentile}\nrules: [{use: quantize}]"));
  EXPECT_TRUE(
      needs("activations: {format: none}\n"
            "rules: [{use: quantize, activations: {format: nvfp4}}]"));
  EXPECT_FALSE(needs("rules: [{use: quantize, activations: {format: none}}]"));
}

// --- What is refused ----------------------------------------------------------------------------

TEST(LoadRecipeTest, UnknownKeysHaveAPlaceAndANearestWord) {
  const struct {
    const char *text, *piece;
  } kCases[] = {
      {"wieghts: {}",
       "r.yaml:1:1: expected one of the keys metadata, extends, weights, "
       "activations, kv_cache, rules, calibration, export, tuning or nonfinite, got "
       "\"wieghts\"; did you mean \"weights\"?"},
      {"metadata:\n  nmae: x",
       "r.yaml:2:3: metadata: expected one of the keys name or description, "
       "got \"nmae\"; did you mean \"name\"?"},
      {"weights:\n  algorithm: {method: mse, fp8_scale_swep: true}",
       "r.yaml:2:28: weights.algorithm: expected one of the keys method, fp8_scale_sweep"},
      {"weights: {algorithm: {method: mse, fp8_scale_swep: true}}",
       "got \"fp8_scale_swep\"; did you mean \"fp8_scale_sweep\"?"},
      {"activations: {algorthm: max}", "did you mean \"algorithm\"?"},
      {"activations: {algorithm: {mehtod: max}}", "did you mean \"method\"?"},
      {"kv_cache: {fromat: fp8}", "did you mean \"format\"?"},
      {"rules:\n  - {match: \"*\", use: keep}\n  - {mach: a, use: keep}",
       "r.yaml:3:6: rules[1]: expected one of the keys match, layers, kinds, use, weights or "
       "activations, got \"mach\"; did you mean \"match\"?"},
      {"rules: [{layers: {frist: 1}, use: keep}]", "did you mean \"first\"?"},
      {"calibration: {sequence: 1}", "did you mean \"sequences\"?"},
      {"export: {shard-size: 1}", "did you mean \"shard_size\"?"},
      {"tuning: {warp: 1}", "did you mean \"warps\"?"},
      {"Weights: {}", "did you mean \"weights\"?"},
      {"<<: {}", "got \"<<\""},
      {"\"\": {}", "got \"\""},
      {"\"\\x1b[2J\": {}", "got \"\\x1b[2J\""},
  };
  for (const auto& c : kCases) ExpectRefused(c.text, c.piece);
}

TEST(LoadRecipeTest, MisspeltValuesHaveAPlaceAndANearestWord) {
  const struct {
    const char *text, *piece;
  } kCases[] = {
      {"weights: {format: nvfp44}",
       "r.yaml:1:19: weights.format: expected nvfp4, got \"nvfp44\"; did you mean \"nvfp4\"?"},
      {"weights:\n  algorithm: mxa",
       "r.yaml:2:14: weights.algorithm: expected max, mse, local_hessian or four_over_six, got "
       "\"mxa\"; did you mean \"max\"?"},
      {"weights: {algorithm: {method: localhessian}}",
       "weights.algorithm.method: expected max, mse, local_hessian or four_over_six, got "
       "\"localhessian\"; did you mean \"local_hessian\"?"},
      {"weights: {algorithm: {method: four_over_six, metric: mea}}", "did you mean \"mae\"?"},
      {"weights: {algorithm: {method: four_over_six, error_path: strickt}}",
       "did you mean \"strict\"?"},
      {"weights: {algorithm: {e4m3_max: 488}}", "expected 448 or 256, got \"488\""},
      {"weights: {scheme: pertensor}", "did you mean \"per_tensor\"?"},
      {"activations: {format: nvpf4}", "did you mean \"nvfp4\"?"},
      {"activations: {scheme: per-token}", "did you mean \"per_token\"?"},
      {"activations: {algorithm: percentil}", "did you mean \"percentile\"?"},
      {"kv_cache: {format: pf8}", "did you mean \"fp8\"?"},
      {"rules: [{use: kepe}]", "did you mean \"keep\"?"},
      {"rules: [{kinds: [mlp, experts], use: keep}]", "did you mean \"expert\"?"},
      {"export: {format: compressed_tensors}", "did you mean \"compressed-tensors\"?"},
      {"nonfinite: eror",
       "r.yaml:1:12: nonfinite: expected error or keep, got \"eror\"; did you "
       "mean \"error\"?"},
  };
  for (const auto& c : kCases) ExpectRefused(c.text, c.piece);
}

TEST(LoadRecipeTest, WrongTypesAreRefused) {
  const struct {
    const char *text, *piece;
  } kCases[] = {
      {"", "r.yaml:1:1: recipe: expected a mapping, got nothing"},
      {"[]", "r.yaml:1:1: recipe: expected a mapping, got something else"},
      {"max", "recipe: expected a mapping"},
      {"weights: nvfp4", "r.yaml:1:10: weights: expected a mapping, got \"nvfp4\""},
      {"weights:", "weights: expected a mapping, got nothing"},
      {"weights: {algorithm: [max]}", "weights.algorithm: expected a mapping, got a list"},
      {"weights: {algorithm: }", "weights.algorithm: expected a mapping, got nothing"},
      {"weights: {algorithm: {method: {}}}",
       "expected max, mse, local_hessian or four_over_six, "
       "got a mapping"},
      {"weights: {algorithm: {method: mse, fp8_scale_sweep: yes}}",
       "expected true or false, got \"yes\""},
      {"weights: {algorithm: {method: mse, fp8_scale_sweep: \"true\"}}",
       "expected true or false, got the string \"true\""},
      {"weights: {algorithm: {method: mse, start: \"1\"}}", "got the string \"1\""},
      {"weights: {algorithm: {method: mse, start: 0}}", "expected a number from 1e-6 to 1e6"},
      {"weights: {algorithm: {method: mse, step: -1}}", "expected a number from 1e-6 to 1e6"},
      {"weights: {algorithm: {method: mse, stop: nan}}", "expected a number from 1e-6 to 1e6"},
      {"weights: {algorithm: {method: mse, stop: inf}}", "expected a number from 1e-6 to 1e6"},
      {"weights: {algorithm: {method: mse, stop: 1x}}", "expected a number from 1e-6 to 1e6"},
      {"weights: {algorithm: {e4m3_max: \"448\"}}", "expected 448 or 256, got the string"},
      {"activations: {algorithm: {method: percentile, percentile: 0}}", "above 0, up to 100"},
      {"activations: {algorithm: {method: percentile, percentile: 100.1}}", "above 0, up to 100"},
      {"activations: {algorithm: {method: headroom, headroom: -2}}", "above 0, below 1.75"},
      {"activations: {algorithm: {method: headroom, headroom: 0}}", "above 0, below 1.75"},
      {"activations: {algorithm: {method: headroom, headroom: 1.75}}", "above 0, below 1.75"},
      {"activations: {algorithm: {method: constant, input_scale: 0}}", "from 1e-30 to 1e30"},
      {"activations: {algorithm: {method: constant, input_scale: 1e-39}}", "from 1e-30 to 1e30"},
      {"activations: {algorithm: {method: constant, input_scale: .nan}}", "from 1e-30 to 1e30"},
      {"metadata: {name: [a]}", "metadata.name: expected a string, got a list"},
      {"metadata: {name: }", "metadata.name: expected a string, got nothing"},
      {"rules: {match: a}", "rules: expected a list of rules, got a mapping"},
      {"rules: [quantize]", "rules[0]: expected a mapping, got \"quantize\""},
      {"rules: [~]", "rules[0]: expected a mapping, got nothing"},
      {"rules: [{match: {a: b}, use: keep}]", "rules[0].match: expected a string, got a mapping"},
      {"rules: [{layers: 1, use: keep}]", "rules[0].layers: expected a mapping, got \"1\""},
      {"rules: [{layers: {first: -1}, use: keep}]", "expected an integer from 0 to 1000000"},
      {"rules: [{layers: {first: 1.5}, use: keep}]", "expected an integer from 0 to 1000000"},
      {"rules: [{layers: {last: 99999999999999999999}, use: keep}]", "expected an integer from 0"},
      {"calibration: {sequences: 0}", "expected an integer from 1 to 1000000000, got \"0\""},
      {"calibration: {routed_min_tokens: -1}", "expected an integer from 0 to 1000000000"},
      {"calibration: {force_all_experts: 1}", "expected true or false, got \"1\""},
      {"calibration: {propagate: quantised}", "did you mean \"quantized\"?"},
      {"calibration: {length: many}", "expected an integer from 1 to 1000000000"},
      {"export: {shard_size: 0}", "export.shard_size: expected a size like 5GB"},
      {"export: {shard_size: -5GB}", "expected a size like 5GB"},
      {"export: {shard_size: 5gb}", "expected a size like 5GB"},
      {"export: {shard_size: GB}", "expected a size like 5GB"},
      {"export: {shard_size: 1e9GB}", "expected a size like 5GB"},
      {"export: {shard_size: 0.0001KB}", "expected a size like 5GB"},
      {"export: {shard_size: 99999999TB}", "expected a size like 5GB"},
      {"export: {shard_size: [5GB]}", "expected a size like 5GB, 512MiB"},
      {"tuning: {warps: 0}", "tuning.warps: expected auto or an integer from 1 to 1048576"},
      {"tuning: {blocks_per_program: four}", "expected auto or an integer"},
      {"tuning: {store: {}}", "tuning.store: expected a string, got a mapping"},
      {"extends: [a]", "r.yaml:1:10: extends: expected the name or the path of a recipe"},
      {"extends:", "extends: expected the name or the path of a recipe, got nothing"},
  };
  for (const auto& c : kCases) ExpectRefused(c.text, c.piece);
}

TEST(LoadRecipeTest, CombinationsThatCannotBeAreRefusedWithTheReason) {
  const struct {
    const char *text, *piece;
  } kCases[] = {
      {"weights: {scheme: per_token}",
       "r.yaml:1:19: weights.scheme: expected per_tensor for weights, got per_token: a checkpoint "
       "holds one global scale per tensor"},
      {"weights: {scheme: tile_2d}", "got tile_2d: a checkpoint holds"},
      {"activations: {scheme: tile_2d}", "expected per_tensor or per_token for activations"},
      {"activations: {scheme: per_token, algorithm: max}",
       "activations.algorithm: expected constant with scheme per_token, where the loader finds"},
      {"activations: {format: none, algorithm: max}",
       "activations.algorithm: expected format nvfp4 with it, got none"},
      {"activations: {scheme: per_tensor, format: none}",
       "activations.scheme: expected format nvfp4 with it, got none"},
      {"weights: {algorithm: {fp8_scale_sweep: true}}",
       "weights.algorithm.fp8_scale_sweep: expected method mse with it, got max"},
      {"weights: {algorithm: {method: mse, fp8_scale_sweep: true, step: 0.1}}",
       "r.yaml:1:59: weights.algorithm.step: expected no multipliers beside fp8_scale_sweep: true"},
      {"weights: {algorithm: {method: mse, start: 3, stop: 2}}", "expected start <= stop"},
      {"weights: {algorithm: {method: mse, step: 0.000001}}", "at most 4096 multipliers"},
      {"weights: {algorithm: {method: max, metric: mae}}", "expected method four_over_six with it"},
      {"activations: {algorithm: {method: max, percentile: 99}}",
       "activations.algorithm.percentile: expected method percentile with it, got max"},
      {"activations: {algorithm: {headroom: 2}}", "expected method headroom with it, got max"},
      {"activations: {algorithm: {method: max, input_scale: 1}}",
       "expected method constant with it, got max"},
      {"rules: [{match: a}]", "rules[0]: expected the key use (quantize or keep), got none"},
      {"rules: [{match: [], use: keep}]", "rules[0].match: expected at least one pattern"},
      {"rules: [{match: \"\", use: keep}]", "rules[0].match: pattern: expected 1 to 4096 bytes"},
      {"rules: [{match: [\"a\", \"re:(\"], use: keep}]",
       "r.yaml:1:23: rules[0].match: character 2 of the expression: expected the ')' of a '('"},
      {"rules: [{kinds: [], use: keep}]", "rules[0].kinds: expected at least one kind"},
      {"rules: [{layers: {}, use: keep}]", "rules[0].layers: expected first or last above 0"},
      {"rules: [{layers: {first: 0}, use: keep}]", "expected first or last above 0"},
      {"rules: [{use: keep, weights: {}}]",
       "rules[0].weights: expected use: quantize with it, got keep"},
      {"rules: [{activations: {}, use: keep}]", "rules[0].activations: expected use: quantize"},
      {"rules: [{use: quantize, weights: {scheme: per_token}}]", "rules[0].weights.scheme"},
      {"weights: {}\nweights: {}",
       "r.yaml:2:1: key: expected each one once, got \"weights\" again"},
  };
  for (const auto& c : kCases) ExpectRefused(c.text, c.piece);
}

TEST(LoadRecipeTest, KnowsTheBackendsLimitOfMultipliers) {
  ASSERT_EQ(kMaxMultipliers, 4096);
  EXPECT_TRUE(LoadText("weights: {algorithm: {method: mse, start: 1, stop: 4096, step: 1}}").ok());
  ExpectRefused("weights: {algorithm: {method: mse, start: 1, stop: 4097, step: 1}}",
                "at most 4096");
}

TEST(LoadRecipeTest, UnknownNamesListTheShippedOnes) {
  EXPECT_TRUE(IsError(Load("nvfp4_mes", {}), absl::StatusCode::kInvalidArgument,
                      "did you mean \"nvfp4_mse\"?"));
  EXPECT_TRUE(
      IsError(Load("nvfp4_mes", {}), absl::StatusCode::kInvalidArgument, "nvfp4_four_over_six, "));
  EXPECT_TRUE(IsError(Load("", {}), absl::StatusCode::kInvalidArgument, "got \"\""));
  EXPECT_TRUE(IsError(Load("x/y", {}), kNotFound, "recipe: x/y: no such file"));
  EXPECT_TRUE(IsError(Load("nvfp4.yaml", {}), kNotFound, "recipe: nvfp4.yaml: no such file"));
}

// --- extends ------------------------------------------------------------------------------------

TEST(ExtendsTest, TheChildDecidesKeyByKey) {
  const Files files = {
      {"./x/../x/parent.yaml",
       "metadata: {name: parent, description: d}\n"
       "weights: {algorithm: {method: mse, start: 0.5}}\n"
       "activations: {algorithm: {method: percentile, percentile: 99}}\n"
       "calibration: {sequences: 1, length: 2}\n"
       "rules: [{match: a, use: quantize}]\n"},
      {"./x/../x/child.yaml",
       "extends: parent.yaml\n"
       "weights: {algorithm: {stop: 2}}\n"
       "activations: {algorithm: headroom}\n"
       "calibration: {length: 3}\n"
       "rules: [{match: b, use: keep}]\n"},
      {"grandchild.yaml", "extends: ./x/../x/child.yaml\nrules: [{match: c, use: keep}]\n"}};
  const Recipe recipe = Must(Load("grandchild.yaml", files));
  EXPECT_EQ(recipe.name, "grandchild");  // not its parent's
  EXPECT_EQ(recipe.description, "");
  EXPECT_EQ(recipe.treatment.weights.method, WeightMethod::kMse);
  EXPECT_EQ(recipe.treatment.weights.multipliers.start, 0.5f);
  EXPECT_EQ(recipe.treatment.weights.multipliers.stop, 2.0f);
  // A method begins afresh: nothing is left of the percentile.
  EXPECT_EQ(recipe.treatment.activations.method, ActivationMethod::kHeadroom);
  EXPECT_EQ(recipe.treatment.activations.percentile, ActivationSpec{}.percentile);
  EXPECT_EQ(recipe.calibration, (Recipe::Calibration{1, 3}));
  ASSERT_EQ(recipe.rules.size(), 3u);
  EXPECT_THAT(recipe.rules[0].match, ElementsAre("a"));
  EXPECT_EQ(recipe.rules[0].place, "./x/../x/parent.yaml:5:9");
  EXPECT_THAT(recipe.rules[1].match, ElementsAre("b"));
  EXPECT_THAT(recipe.rules[2].match, ElementsAre("c"));
}

TEST(ExtendsTest, ShippedRecipesFromFiles) {
  const Recipe recipe =
      Must(LoadText("extends: nvfp4_mse\nrules: [{match: \"*o_proj\", use: keep}]"));
  const Recipe parent = Must(Load("nvfp4_mse", {}));
  EXPECT_EQ(recipe.treatment, parent.treatment);
  EXPECT_EQ(recipe.rules.size(), parent.rules.size() + 1);
  EXPECT_EQ(recipe.rules[0].place, "base:7:5");
}

TEST(ExtendsTest, ChoicesThatLeaveNoSenseToOthersStartAfresh) {
  const std::string parent = "activations: {scheme: per_tensor, algorithm: {method: percentile}}";
  const auto child = [&](const std::string& text) {
    return Must(Load("c.yaml", {{"p.yaml", parent}, {"c.yaml", "extends: p.yaml\n" + text}}))
        .treatment.activations;
  };
  EXPECT_EQ(child("activations: {format: none}").format, ActivationFormat::kNone);
  EXPECT_EQ(child("activations: {scheme: per_token}").method, ActivationMethod::kConstant);
  EXPECT_EQ(child("activations: {format: nvfp4}").method, ActivationMethod::kPercentile);
}

TEST(ExtendsTest, RulesBuildOnTheRecipesOwn) {
  const Recipe recipe = Must(Load(
      "c.yaml", {{"p.yaml",
                  "weights: {algorithm: max}\n"
                  "rules:\n"
                  "  - {use: quantize, weights: {algorithm: {e4m3_max: 256}}}\n"
                  "  - {use: quantize, weights: {algorithm: max}}\n"},
                 {"c.yaml",
                  "extends: p.yaml\nweights: {algorithm: {method: mse, fp8_scale_sweep: true}}\n"
                  "activations: {format: none}\n"}}));
  ASSERT_EQ(recipe.rules.size(), 2u);
  WeightSpec expected = recipe.treatment.weights;
  expected.e4m3_max = 256;
  EXPECT_EQ(recipe.rules[0].treatment->weights, expected);
  EXPECT_EQ(recipe.rules[1].treatment->weights, WeightSpec{});
  EXPECT_EQ(recipe.rules[0].treatment->activations.format, ActivationFormat::kNone);
}

TEST(ExtendsTest, ErrorsNameTheFileThatHasThem) {
  const Files files = {{"p.yaml", "\nweights: {algorithm: mxa}\n"},
                       {"c.yaml", "extends: p.yaml\n"},
                       {"m.yaml", "\nextends: gone.yaml\n"},
                       {"n.yaml", "extends: nvfp5\n"},
                       {"y.yaml", "extends: [\n"}};
  EXPECT_TRUE(IsError(Load("c.yaml", files), kInvalid, "p.yaml:2:22: weights.algorithm"));
  EXPECT_TRUE(
      IsError(Load("m.yaml", files), kNotFound, "m.yaml:2:10: extends: gone.yaml: no such"));
  EXPECT_TRUE(IsError(Load("n.yaml", files), absl::StatusCode::kInvalidArgument,
                      "n.yaml:1:10: extends: expected a path"));
  EXPECT_TRUE(IsError(Load("n.yaml", files), absl::StatusCode::kInvalidArgument,
                      "did you mean \"nvfp4\"?"));
  EXPECT_TRUE(IsError(Load("y.yaml", files), kInvalid, "y.yaml:"));
}

TEST(ExtendsTest, CirclesAndEndlessChainsAreRefused) {
  EXPECT_TRUE(IsError(Load("a.yaml", {{"a.yaml", "extends: a.yaml"}}), kInvalid,
                      "a.yaml:1:10: extends: expected at most 16 recipes that do not come back to "
                      "one another, got a.yaml -> a.yaml"));
  EXPECT_TRUE(IsError(Load("a.yaml", {{"a.yaml", "extends: ./b.yaml"},
                                      {"./b.yaml", "extends: x/../a.yaml"},
                                      {"./x/../a.yaml", "extends: x"}}),
                      kInvalid, "got a.yaml -> b.yaml -> a.yaml"));
  const absl::StatusOr<Recipe> endless = LoadRecipe(
      "0.yaml", {},
      [i = 0](const std::string&) mutable { return "extends: " + std::to_string(++i) + ".yaml"; });
  EXPECT_TRUE(IsError(endless, kInvalid, "expected at most 16 recipes"));
}

// --- --set --------------------------------------------------------------------------------------

TEST(SetTest, ReplacesWhatTheRecipeSays) {
  const Recipe recipe =
      Must(Load("nvfp4_mse", {},
                {"activations.algorithm.input_scale=0.5", "activations.algorithm.method=constant",
                 "weights.algorithm=four_over_six", "weights.algorithm.metric=mae",
                 "export.shard_size=1MB", "calibration.length=1", "calibration.length=2",
                 "rules=[{match: \"*o_proj\", use: keep}]", "metadata.name=mine"}));
  EXPECT_EQ(recipe.name, "mine");
  EXPECT_EQ(recipe.treatment.activations.method, ActivationMethod::kConstant);
  EXPECT_EQ(recipe.treatment.activations.input_scale, 0.5f);
  EXPECT_EQ(recipe.treatment.weights.method, WeightMethod::kFourOverSix);
  EXPECT_EQ(recipe.treatment.weights.four_over_six.metric, ErrorMetric::kMae);
  EXPECT_EQ(recipe.output.shard_bytes, 1'000'000u);
  EXPECT_EQ(recipe.calibration.length, 2);
  EXPECT_THAT(recipe.rules.back().match, ElementsAre("*o_proj"));
  EXPECT_EQ(recipe.rules.back().place, "--set rules");
  EXPECT_EQ(recipe.rules.size(), Must(Load("nvfp4_mse", {})).rules.size() + 1);
}

TEST(SetTest, ConstantActivationsOfEveryShippedRecipeNeedNoData) {
  for (const ShippedRecipe& shipped : ShippedRecipes()) {
    const std::string name(shipped.name);
    const bool has_activations =
        Must(Load(name, {})).treatment.activations.format != ActivationFormat::kNone;
    const auto recipe = Load(name, {}, {"activations.algorithm.method=constant"});
    ASSERT_EQ(recipe.ok(), has_activations) << name << recipe.status();
    if (recipe.ok()) {
      EXPECT_FALSE(NeedsCalibration(*recipe)) << name;
    }
  }
}

TEST(SetTest, ErrorsNameTheKey) {
  const struct {
    const char *set, *piece;
  } kCases[] = {
      {"activations.algorithm.method=constnat",
       "--set activations.algorithm.method: expected max, percentile, headroom or constant, got "
       "\"constnat\"; did you mean \"constant\"?"},
      {"activations.algorithm.methd=max",
       "--set activations.algorithm.methd: activations.algorithm: expected one of the keys "
       "method, "},
      {"weight.algorithm=max", "--set weight.algorithm: expected one of the keys metadata, "},
      {"weight.algorithm=max", "did you mean \"weights\"?"},
      {"weights.algorithm.fp8_scale_sweep=1", "--set weights.algorithm.fp8_scale_sweep: expected"},
      {"weights=nvfp4", "--set weights: expected a mapping, got \"nvfp4\""},
      {"rules.0.use=keep", "--set rules.0.use: rules: expected a list of rules, got a mapping"},
      {"rules=[{use: kep}]", "--set rules: rules[3].use: expected quantize or keep"},
      {"calibration.length=", "--set calibration.length: expected an integer"},
      {"calibration.length=\"a", "--set calibration.length: document: expected YAML"},
      // yaml-cpp takes an open list at the beginning for a key.
      {"calibration.length=[1, 2", "--set calibration.length: key: expected a word, got a list"},
      {"calibration.length=\x01", "--set calibration.length: document: expected UTF-8"},
      {"calibration.length=1\n---\n2", "--set calibration.length: document: expected one"},
      {"calibration.length=!!int 1", "--set calibration.length: tag: expected none"},
      {"extends=nvfp4", "--set extends: expected a key of the recipe's own"},
      {"", "--set: expected KEY=VALUE, got \"\""},
      {"=1", "--set: expected KEY=VALUE, got \"=1\""},
      {"calibration.length", "--set: expected KEY=VALUE, got \"calibration.length\""},
      {"a..b=1", "--set a..b: expected a key like weights.algorithm.method"},
      {".a=1", "expected a key like"},
      {"a.=1", "expected a key like"},
      {"a.a.a.a.a.a.a.a.a=1", "expected a key like"},
      {"\x1b[2J=1", "--set \\x1b[2J: expected one of the keys"},
  };
  for (const auto& c : kCases) {
    const auto recipe = Load("nvfp4", {}, {c.set});
    EXPECT_TRUE(IsError(recipe, kInvalid, c.piece)) << c.set;
  }
}

// --- Shipped recipes ----------------------------------------------------------------------------

TEST(ShippedRecipesTest, AreThoseOfTheIssue) {
  std::vector<std::string> names;
  for (const ShippedRecipe& shipped : ShippedRecipes()) names.emplace_back(shipped.name);
  EXPECT_THAT(names,
              ElementsAre("base", "nvfp4", "nvfp4_experts_only", "nvfp4_four_over_six",
                          "nvfp4_local_hessian", "nvfp4_local_hessian_feedback", "nvfp4_mlp_only",
                          "nvfp4_mse", "nvfp4_per_token", "nvfp4_weight_only"));
}

TEST(ShippedRecipesTest, AreReadAndSayWhatTheyAreFor) {
  for (const ShippedRecipe& shipped : ShippedRecipes()) {
    const Recipe recipe = Must(Load(std::string(shipped.name), {}));
    EXPECT_EQ(recipe.name, shipped.name);
    EXPECT_NE(recipe.description, "");
    EXPECT_EQ(shipped.text.substr(0, 2), "# ") << shipped.name;
    const auto back = LoadText(RecipeAsYaml(recipe));
    EXPECT_EQ(Must(back), recipe);
  }
}

TEST(ShippedRecipesTest, ChooseWhatTheirNamesSay) {
  const auto of = [](const std::string& name) { return Must(Load(name, {})).treatment; };
  const Treatment max;
  Treatment mse;
  mse.weights.method = WeightMethod::kMse;
  mse.weights.fp8_scale_sweep = true;
  EXPECT_EQ(of("base"), max);
  EXPECT_EQ(of("nvfp4"), max);
  EXPECT_EQ(of("nvfp4_mse"), mse);
  EXPECT_EQ(of("nvfp4_mlp_only"), mse);
  EXPECT_EQ(of("nvfp4_experts_only"), mse);
  EXPECT_EQ(of("nvfp4_local_hessian").weights.method, WeightMethod::kLocalHessian);
  EXPECT_EQ(of("nvfp4_local_hessian").weights.rounding, Rounding::kNearest);
  EXPECT_EQ(of("nvfp4_local_hessian_feedback").weights.method, WeightMethod::kLocalHessian);
  EXPECT_EQ(of("nvfp4_local_hessian_feedback").weights.rounding, Rounding::kFeedback);
  EXPECT_EQ(of("nvfp4_four_over_six").weights.method, WeightMethod::kFourOverSix);
  EXPECT_EQ(of("nvfp4_four_over_six").weights.e4m3_max, 256);
  EXPECT_EQ(of("nvfp4_weight_only").activations.format, ActivationFormat::kNone);
  EXPECT_EQ(of("nvfp4_per_token").activations.scheme, Scheme::kPerToken);
}

TEST(ShippedRecipesTest, NeedDataWhereActivationsAreCalibrated) {
  for (const ShippedRecipe& shipped : ShippedRecipes()) {
    const bool without = shipped.name == "nvfp4_weight_only" || shipped.name == "nvfp4_per_token";
    EXPECT_EQ(NeedsCalibration(Must(Load(std::string(shipped.name), {}))), !without);
  }
}

// By names alone: kinds are the plan's business.
bool NameIsKept(const Recipe& recipe, const std::string& module) {
  bool kept = true;
  for (const RecipeRule& rule : recipe.rules) {
    if (!rule.kinds.empty()) continue;
    for (const std::string& pattern : rule.match) {
      const absl::StatusOr<bool> matches = MatchesName(pattern, module);
      EXPECT_TRUE(matches.ok());
      if (matches.ok() && *matches) kept = rule.use == RuleUse::kKeep;
    }
  }
  return kept;
}

TEST(ShippedRecipesTest, KeepWhatLoadersKeep) {
  const Recipe recipe = Must(Load("nvfp4", {}));
  for (const char* module : {"lm_head",
                             "model.lm_head",
                             "model.layers.0.block_sparse_moe.gate",
                             "model.layers.0.mlp.gate",
                             "model.layers.0.mlp.router",
                             "model.layers.0.mlp.router.layer",
                             "model.layers.0.feed_forward.router",
                             "model.layers.0.mlp.shared_expert_gate",
                             "model.layers.0.linear_attn.conv1d",
                             "model.layers.0.linear_attn.in_proj_a",
                             "model.layers.0.linear_attn.in_proj_b",
                             "model.layers.0.linear_attn.in_proj_ba",
                             "backbone.layers.0.mixer.conv1d",
                             "backbone.layers.0.mixer.gate",
                             "output_layer",
                             "output",
                             "mtp.fc",
                             "mtp.layers.0.mlp.up_proj",
                             "model.visual.blocks.0.attn.qkv",
                             "vision_tower.encoder.layers.0.mlp.fc1",
                             "vision_model.patch_embedding.linear",
                             "model.multi_modal_projector.linear_1",
                             "model.embed_vision.embedding_projection"}) {
    EXPECT_TRUE(NameIsKept(recipe, module)) << module;
  }
  for (const char* module :
       {"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.gate_up_proj",
        "model.layers.0.mlp.experts.7.gate_proj", "model.layers.0.mlp.shared_expert.down_proj",
        "model.layers.0.block_sparse_moe.experts.3.w1", "model.layers.0.linear_attn.in_proj_qkvz",
        "model.layers.0.linear_attn.out_proj", "model.layers.0.self_attn.kv_a_proj_with_mqa",
        "backbone.layers.0.mixer.experts.0.up_proj",
        "model.layers.3.feed_forward.experts.down_proj"}) {
    EXPECT_FALSE(NameIsKept(recipe, module)) << module;
  }
}

}  // namespace
}  // namespace nibble
