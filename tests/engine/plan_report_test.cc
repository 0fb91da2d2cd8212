#include "engine/plan_report.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/models.h"

namespace nibble {
namespace {

using ::nibble::testing::LlamaShapes;
using ::nibble::testing::ModelMaker;
using ::nibble::testing::RecipeKeeping;
using ::testing::HasSubstr;

TEST(PlanReportTest, JsonHoldsEverything) {
  Recipe recipe = RecipeKeeping({"*.o_proj"});
  recipe.rules[0].place = "r.yaml:3:5";
  const Model model = ModelMaker("", 1, 64)
                          .Add("layers.0.self_attn.q_proj.weight", {64, 64})
                          .Add("layers.0.self_attn.k_proj.weight", {32, 64})
                          .Add("layers.0.self_attn.o_proj.weight", {64, 64})
                          .Add("norm.weight", {64})
                          .Add("odd.weight", {64, 40})
                          .Make();
  const Plan plan = MakePlan(recipe, model).value();
  const std::string text = PlanAsJson(plan, EstimatePlan(plan, 2));
  EXPECT_EQ(text.back(), '\n');
  const nlohmann::json root = nlohmann::json::parse(text);
  EXPECT_EQ(root["totals"]["tensors"], 5);
  EXPECT_EQ(root["totals"]["quantized"], 2);
  EXPECT_EQ(root["totals"]["bytes_before"], 2 * (2 * 64 * 64 + 32 * 64 + 64 + 64 * 40));
  EXPECT_EQ(root["totals"]["quantized_bytes_after"], 96 * 64 * 9 / 16 + 16);
  EXPECT_EQ(root["warnings"].size(), 1u);
  EXPECT_THAT(root["estimate"]["assumes"].get<std::string>(), HasSubstr("2 CPU threads"));
  EXPECT_EQ(root["groups"], nlohmann::json::parse(R"([
      {"name": "layers.0.self_attn.{q,k}_proj",
       "tensors": ["layers.0.self_attn.k_proj.weight", "layers.0.self_attn.q_proj.weight"]}])"));
  ASSERT_EQ(root["tensors"].size(), 5u);
  EXPECT_EQ(root["tensors"][0], nlohmann::json::parse(R"json({
      "name": "layers.0.self_attn.k_proj.weight", "dtype": "BF16", "shape": [32, 64],
      "module": "layers.0.self_attn.k_proj", "kind": "attention", "layer": 0, "use": "quantize",
      "why": "rule 1 (r.yaml:3:5)", "rule": 1, "warn": false, "bytes_before": 4096,
      "bytes_after": 1160, "form": "matrix", "group": 0, "input_group": 0,
      "treatment": {
        "weights": {"method": "max", "e4m3_max": 448},
        "activations": {"format": "nvfp4", "scheme": "per_tensor", "method": "max"}}})json"));
  EXPECT_EQ(root["tensors"][1]["rule"], 2);
  EXPECT_EQ(root["tensors"][1]["use"], "keep");
  EXPECT_FALSE(root["tensors"][1].contains("group"));
  EXPECT_EQ(root["tensors"][3]["rule"], nullptr);
  EXPECT_EQ(root["tensors"][3]["layer"], nullptr);
  EXPECT_EQ(root["tensors"][4]["warn"], true);
}

TEST(PlanReportTest, JsonTakesNamesThatAreNotUtf8) {
  Recipe recipe = RecipeKeeping({});
  recipe.rules[0].place = "\xff.yaml:1:1";
  const Plan plan = MakePlan(recipe, LlamaShapes(1)).value();
  EXPECT_FALSE(nlohmann::json::parse(PlanAsJson(plan, EstimatePlan(plan, 1)), nullptr, false)
                   .is_discarded());
}

TEST(PlanReportTest, EstimatesByMethodAndThreads) {
  Recipe max = RecipeKeeping({}), mse = max;
  mse.treatment.weights.method = WeightMethod::kMse;
  const Plan fast = MakePlan(max, LlamaShapes()).value(),
             slow = MakePlan(mse, LlamaShapes()).value();
  const PlanEstimate one = EstimatePlan(fast, 1), two = EstimatePlan(fast, 2);
  EXPECT_GT(one.compute_seconds, 0);
  EXPECT_DOUBLE_EQ(one.compute_seconds, 2 * two.compute_seconds);
  EXPECT_DOUBLE_EQ(one.disk_seconds, two.disk_seconds);
  EXPECT_GT(EstimatePlan(slow, 1).compute_seconds, 10 * one.compute_seconds);
  EXPECT_DOUBLE_EQ(EstimatePlan(fast, 0).compute_seconds, one.compute_seconds);
  const std::string text = EstimateAsText(one);
  EXPECT_THAT(text, HasSubstr("about less than a second"));
  EXPECT_THAT(text, HasSubstr("assumes 1 CPU thread of"));
}

TEST(PlanReportTest, NamesDurations) {
  EXPECT_THAT(EstimateAsText({90, 7300, "x"}), HasSubstr("about 2.0 h: 90 s of computing, 2.0 h"));
  EXPECT_THAT(EstimateAsText({600, 1, "x"}), HasSubstr("about 10 min"));
}

}  // namespace
}  // namespace nibble
