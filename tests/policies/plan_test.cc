#include "policies/plan.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "policies/names.h"
#include "tests/testing/is_error.h"
#include "tests/testing/models.h"

namespace nibble {
namespace {

using ::nibble::testing::DeepSeekShapes;
using ::nibble::testing::DefaultRecipe;
using ::nibble::testing::FusedExpertsShapes;
using ::nibble::testing::GptOssShapes;
using ::nibble::testing::IsError;
using ::nibble::testing::Llama4Shapes;
using ::nibble::testing::LlamaShapes;
using ::nibble::testing::MixtralShapes;
using ::nibble::testing::ModelMaker;
using ::nibble::testing::Qwen3MoeShapes;
using ::nibble::testing::RecipeKeeping;
using ::nibble::testing::RuleOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

Plan PlanOf(const Recipe& recipe, const Model& model) {
  const absl::StatusOr<Plan> plan = MakePlan(recipe, model);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? *plan : Plan();
}

PlanRow RowOf(const Plan& plan, const std::string& name) {
  for (const PlanRow& row : plan.rows) {
    if (row.tensor.name == name) return row;
  }
  ADD_FAILURE() << "no row " << name;
  return {};
}

std::vector<std::string> Quantized(const Plan& plan) {
  std::vector<std::string> names;
  for (const PlanRow& row : plan.rows) {
    if (row.quantize) names.push_back(row.tensor.name);
  }
  return names;
}

std::vector<std::string> Folded(const std::vector<std::string>& names) {
  std::vector<std::string> texts;
  for (const FoldedNames& fold : FoldNames(names)) texts.push_back(fold.text);
  return texts;
}

std::vector<std::string> GroupNames(const Plan& plan) {
  std::vector<std::string> names;
  for (const FusedGroup& group : plan.groups) names.push_back(group.name);
  return names;
}

// What every plan keeps to.
void ExpectConsistent(const Plan& plan) {
  std::vector<std::string> names;
  std::set<int> inputs, groups;
  for (int i = 0; i < static_cast<int>(plan.rows.size()); ++i) {
    const PlanRow& row = plan.rows[i];
    names.push_back(row.tensor.name);
    EXPECT_NE(row.why, "") << row.tensor.name;
    EXPECT_EQ(row.quantize, row.group >= 0) << row.tensor.name;
    EXPECT_EQ(row.quantize, row.input_group >= 0) << row.tensor.name;
    if (!row.quantize) {
      EXPECT_EQ(row.bytes_after, row.bytes_before);
      continue;
    }
    EXPECT_FALSE(row.warn);
    EXPECT_GE(row.rule, 0);
    EXPECT_LT(row.bytes_after, row.bytes_before) << row.tensor.name;
    groups.insert(row.group);
    inputs.insert(row.input_group);
    const std::vector<int>& members = plan.groups[row.group].rows;
    EXPECT_EQ(std::ranges::count(members, i), 1) << row.tensor.name;
    EXPECT_TRUE(std::ranges::is_sorted(members));
    for (const int member : members) {
      EXPECT_EQ(plan.rows[member].treatment, row.treatment);
      EXPECT_EQ(plan.rows[member].input_group, row.input_group);
    }
  }
  EXPECT_TRUE(std::ranges::is_sorted(names, NaturalLess));
  EXPECT_EQ(groups.size(), plan.groups.size());
  EXPECT_EQ(static_cast<int>(inputs.size()), plan.input_groups);
  for (size_t i = 1; i < plan.groups.size(); ++i) {
    EXPECT_LT(plan.groups[i - 1].rows.front(), plan.groups[i].rows.front());
  }
}

// --- Architectures ------------------------------------------------------------------------------

TEST(PlanTest, Llama) {
  const Plan plan = PlanOf(DefaultRecipe(), LlamaShapes(11));
  ExpectConsistent(plan);
  EXPECT_THAT(Folded(Quantized(plan)), ElementsAre("model.layers.0-10.mlp.down_proj.weight",
                                                   "model.layers.0-10.mlp.gate_proj.weight",
                                                   "model.layers.0-10.mlp.up_proj.weight",
                                                   "model.layers.0-10.self_attn.k_proj.weight",
                                                   "model.layers.0-10.self_attn.o_proj.weight",
                                                   "model.layers.0-10.self_attn.q_proj.weight",
                                                   "model.layers.0-10.self_attn.v_proj.weight"));
  EXPECT_THAT(Folded(GroupNames(plan)),
              ElementsAre("model.layers.0-10.mlp.down_proj", "model.layers.0-10.mlp.{gate,up}_proj",
                          "model.layers.0-10.self_attn.{q,k,v}_proj",
                          "model.layers.0-10.self_attn.o_proj"));
  EXPECT_EQ(plan.input_groups, 4 * 11);
  EXPECT_THAT(plan.warnings, IsEmpty());
  const PlanRow q = RowOf(plan, "model.layers.10.self_attn.q_proj.weight");
  EXPECT_EQ(q.module, "model.layers.10.self_attn.q_proj");
  EXPECT_EQ(q.layer, 10);
  EXPECT_EQ(q.rule, 0);
  EXPECT_EQ(q.why, "rule 1");
  EXPECT_EQ(q.bytes_before, 64 * 64 * 2);
  EXPECT_EQ(q.bytes_after, 64 * 64 / 2 + 64 * 64 / 16 + 2 * 4);
  EXPECT_EQ(RowOf(plan, "lm_head.weight").rule, 1);
  EXPECT_EQ(RowOf(plan, "model.norm.weight").why, "a norm");
  EXPECT_EQ(RowOf(plan, "model.norm.weight").rule, -1);
}

TEST(PlanTest, ExpertsShareInputsByProjection) {
  for (const Model& model : {MixtralShapes(), Qwen3MoeShapes()}) {
    const Plan plan = PlanOf(DefaultRecipe(), model);
    ExpectConsistent(plan);
    std::map<std::pair<int64_t, bool>, std::set<int>> inputs;  // of a layer; down or not
    std::map<std::string, std::set<int>> groups;
    for (const PlanRow& row : plan.rows) {
      if (row.kind == ModuleKind::kRouter) {
        EXPECT_FALSE(row.quantize || row.warn) << row.tensor.name;
      }
      if (row.kind != ModuleKind::kExpert) continue;
      ASSERT_TRUE(row.quantize) << row.tensor.name;
      const bool down = row.module.ends_with("down_proj") || row.module.ends_with("w2");
      inputs[{row.layer, down}].insert(row.input_group);
      const std::string expert = row.module.substr(0, row.module.rfind('.'));
      groups[expert + (down ? "down" : "")].insert(row.group);
    }
    EXPECT_EQ(inputs.size(), 4u);
    std::set<int> all;
    for (const auto& [key, set] : inputs) {
      EXPECT_EQ(set.size(), 1u);
      all.insert(*set.begin());
    }
    EXPECT_EQ(all.size(), 4u);
    for (const auto& [expert, set] : groups) EXPECT_EQ(set.size(), 1u) << expert;
  }
}

TEST(PlanTest, DeepSeek) {
  const Plan plan = PlanOf(DefaultRecipe(), DeepSeekShapes());
  ExpectConsistent(plan);
  EXPECT_THAT(GroupNames(plan),
              ::testing::Contains("model.layers.1.self_attn.{q_a_proj,kv_a_proj_with_mqa}"));
  for (const PlanRow& row : plan.rows) {
    if (row.tensor.name.starts_with("model.layers.2.")) {
      EXPECT_EQ(row.kind, ModuleKind::kMtp);
      EXPECT_FALSE(row.quantize) << row.tensor.name;
    }
  }
  // "*" alone takes the layer of speculative decoding, but never its router, norms or embedding.
  const Plan all = PlanOf(RecipeKeeping({}), DeepSeekShapes());
  EXPECT_TRUE(RowOf(all, "model.layers.2.eh_proj.weight").quantize);
  EXPECT_FALSE(RowOf(all, "model.layers.2.mlp.gate.weight").quantize);
  EXPECT_FALSE(RowOf(all, "model.layers.2.embed_tokens.weight").quantize);
}

TEST(PlanTest, ExpertsInOneTensor) {
  const Plan rows = PlanOf(DefaultRecipe(), FusedExpertsShapes());
  ExpectConsistent(rows);
  const std::string at = "model.language_model.layers.0.";
  const PlanRow gate_up = RowOf(rows, at + "mlp.experts.gate_up_proj");
  EXPECT_EQ(gate_up.form, WeightForm::kExpertRows);
  EXPECT_EQ(gate_up.bytes_after, 4 * 96 * 64 / 2 + 4 * 96 * 64 / 16 + 8 * 2 * 4);
  const PlanRow down = RowOf(rows, at + "mlp.experts.down_proj");
  EXPECT_EQ(down.bytes_after, 4 * 64 * 48 / 2 + 4 * 64 * 48 / 16 + 4 * 2 * 4);
  EXPECT_NE(gate_up.input_group, down.input_group);
  EXPECT_NE(gate_up.group, down.group);
  EXPECT_TRUE(RowOf(rows, at + "linear_attn.in_proj_qkv.weight").quantize);
  EXPECT_FALSE(RowOf(rows, at + "linear_attn.in_proj_a.weight").quantize);
  EXPECT_FALSE(RowOf(rows, "model.visual.merger.linear_fc1.weight").quantize);
  EXPECT_FALSE(RowOf(rows, "mtp.fc.weight").quantize);

  for (const Model& model : {Llama4Shapes(), GptOssShapes()}) {
    const Plan columns = PlanOf(DefaultRecipe(), model);
    ExpectConsistent(columns);
    int count = 0;
    for (const PlanRow& row : columns.rows) {
      if (row.kind != ModuleKind::kExpert || row.tensor.shape.size() != 3) continue;
      ++count;
      EXPECT_EQ(row.form, WeightForm::kExpertColumns);
      EXPECT_EQ(row.bytes_after, row.bytes_before / 4 + row.bytes_before / 32 + 2 * 4);
      EXPECT_EQ(columns.groups[row.group].name, row.module);
    }
    EXPECT_EQ(count, 2);
    EXPECT_FALSE(RowOf(columns, columns.rows.front().tensor.name).warn);
  }
}

TEST(PlanTest, WhichHalfIsTheGateIsSaidWhereItIsNotKnown) {
  ModelMaker maker("unheard_of", 1, 64);
  maker.Add("layers.0.mlp.experts.gate_up_proj", {4, 64, 96});
  maker.Add("layers.0.mlp.experts.down_proj", {4, 48, 64});
  const Plan plan = PlanOf(DefaultRecipe(), maker.Make());
  EXPECT_THAT(plan.warnings,
              ElementsAre(HasSubstr("experts.gate_up_proj: gate is taken for the first half")));
  EXPECT_EQ(Quantized(plan).size(), 2u);
}

TEST(PlanTest, ExpertsWithBiasesAreKeptWhereTheyWouldBeSplit) {
  for (const char* model_type : {"unheard_of", "gpt_oss"}) {
    ModelMaker maker(model_type, 1, 64);
    maker.Add("layers.0.mlp.experts.gate_up_proj", {4, 64, 96});
    maker.Add("layers.0.mlp.experts.gate_up_proj_bias", {4, 96});
    maker.Add("layers.0.mlp.experts.down_proj", {4, 48, 64});
    maker.Add("layers.0.mlp.experts.down_proj_bias", {4, 64});
    maker.Add("layers.0.self_attn.o_proj.weight", {64, 64});
    const Plan plan = PlanOf(DefaultRecipe(), maker.Make());
    const bool together = std::string(model_type) == "gpt_oss";
    EXPECT_EQ(Quantized(plan).size(), together ? 3u : 1u);
    EXPECT_EQ(plan.warnings.size(), together ? 0u : 2u);
    EXPECT_THAT(plan.warnings, Each(HasSubstr("experts with biases")));
  }
}

// Experts [E, K, N] of which each becomes matrices of its own: bytes, names that they must not
// meet.
TEST(PlanTest, TurnedExpertsAreCountedAsMatrices) {
  ModelMaker maker("qwen3_vl_moe", 1, 64);
  maker.Add("layers.0.mlp.experts.gate_up_proj", {4, 64, 96});
  maker.Add("layers.0.mlp.experts.down_proj", {4, 48, 64});
  const Plan plan = PlanOf(DefaultRecipe(), maker.Make());
  EXPECT_THAT(plan.warnings, IsEmpty());
  const PlanRow& gate_up = RowOf(plan, "layers.0.mlp.experts.gate_up_proj");
  EXPECT_EQ(gate_up.form, WeightForm::kTurnedExperts);
  EXPECT_EQ(gate_up.bytes_after, 4 * 64 * 96 * 9 / 16 + 4 * 2 * 2 * 4);
  EXPECT_EQ(RowOf(plan, "layers.0.mlp.experts.down_proj").bytes_after,
            4 * 48 * 64 * 9 / 16 + 4 * 2 * 4);
  maker.Add("layers.0.mlp.experts.0.up_proj.weight", {48, 64});
  EXPECT_TRUE(IsError(MakePlan(DefaultRecipe(), maker.Make()), absl::StatusCode::kDataLoss,
                      "expected one tensor for each name of the result"));
}

// --- Rules --------------------------------------------------------------------------------------

TEST(PlanTest, TheLastMatchingRuleDecides) {
  Recipe recipe = RecipeKeeping({"*self_attn*"});
  recipe.rules.push_back(RuleOf({"*.o_proj", "*lm_head"}, RuleUse::kQuantize));
  recipe.rules[2].place = "r.yaml:7:5";
  recipe.rules[2].treatment = recipe.treatment;
  recipe.rules[2].treatment->activations.format = ActivationFormat::kNone;
  const Plan plan = PlanOf(recipe, LlamaShapes());
  ExpectConsistent(plan);
  const PlanRow o = RowOf(plan, "model.layers.1.self_attn.o_proj.weight");
  EXPECT_TRUE(o.quantize);
  EXPECT_EQ(o.rule, 2);
  EXPECT_EQ(o.why, "rule 3 (r.yaml:7:5)");
  EXPECT_EQ(o.treatment, *recipe.rules[2].treatment);
  EXPECT_EQ(o.bytes_after, 64 * 64 / 2 + 64 * 64 / 16 + 4);
  EXPECT_TRUE(RowOf(plan, "lm_head.weight").quantize);
  EXPECT_EQ(RowOf(plan, "model.layers.1.self_attn.q_proj.weight").rule, 1);
  EXPECT_EQ(RowOf(plan, "model.layers.1.mlp.up_proj.weight").treatment, recipe.treatment);
}

TEST(PlanTest, WhatNoRuleMatchesIsKept) {
  Recipe recipe;
  recipe.rules = {RuleOf({"*mlp*"}, RuleUse::kQuantize)};
  const Plan plan = PlanOf(recipe, LlamaShapes());
  EXPECT_EQ(Quantized(plan).size(), 6u);
  EXPECT_EQ(RowOf(plan, "lm_head.weight").why, "no rule matches");
  EXPECT_EQ(RowOf(plan, "lm_head.weight").rule, -1);
}

TEST(PlanTest, RulesMayAskForLayersAndKinds) {
  Recipe recipe = RecipeKeeping({});
  RecipeRule ends = RuleOf({}, RuleUse::kKeep);
  ends.first_layers = 1;
  ends.last_layers = 2;
  RecipeRule head = RuleOf({}, RuleUse::kKeep);
  head.kinds = {ModuleKind::kLmHead};
  recipe.rules.insert(recipe.rules.end(), {ends, head});
  const Plan plan = PlanOf(recipe, LlamaShapes(12));
  std::set<int64_t> layers;
  for (const PlanRow& row : plan.rows) {
    if (row.quantize) layers.insert(row.layer);
  }
  EXPECT_THAT(layers, ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 9));
  EXPECT_EQ(RowOf(plan, "lm_head.weight").rule, 2);
}

// Layers of towers and of speculative decoding are none of the model's first or last.
TEST(PlanTest, LayersAreThoseOfTheLanguageModel) {
  Recipe recipe = RecipeKeeping({});
  recipe.rules.push_back(RuleOf({}, RuleUse::kKeep));
  recipe.rules.back().last_layers = 1;
  const Plan plan = PlanOf(recipe, FusedExpertsShapes());
  EXPECT_TRUE(RowOf(plan, "model.visual.blocks.1.attn.qkv.weight").quantize);
  EXPECT_TRUE(RowOf(plan, "mtp.layers.0.mlp.experts.0.up_proj.weight").quantize);
  EXPECT_FALSE(RowOf(plan, "model.language_model.layers.1.self_attn.q_proj.weight").quantize);
}

TEST(PlanTest, ARouterIsQuantizedOnlyByName) {
  const std::string gate = "model.layers.0.mlp.gate.weight";
  const PlanRow kept = RowOf(PlanOf(RecipeKeeping({}), Qwen3MoeShapes()), gate);
  EXPECT_FALSE(kept.quantize);
  EXPECT_FALSE(kept.warn);
  EXPECT_EQ(kept.rule, -1);
  EXPECT_THAT(kept.why, HasSubstr("a router"));
  Recipe by_name = RecipeKeeping({}), by_kind = RecipeKeeping({});
  by_name.rules.push_back(RuleOf({"*.mlp.gate"}, RuleUse::kQuantize));
  by_kind.rules.push_back(RuleOf({}, RuleUse::kQuantize));
  by_kind.rules.back().kinds = {ModuleKind::kRouter};
  for (const Recipe& recipe : {by_name, by_kind}) {
    const PlanRow row = RowOf(PlanOf(recipe, Qwen3MoeShapes()), gate);
    EXPECT_TRUE(row.quantize);
    EXPECT_EQ(row.rule, 1);
  }
  // The last that matches decides, and "*" names nothing.
  by_name.rules.push_back(RuleOf({"*"}, RuleUse::kQuantize));
  EXPECT_FALSE(RowOf(PlanOf(by_name, Qwen3MoeShapes()), gate).quantize);
}

TEST(PlanTest, AskingByNameForWhatIsNeverQuantizedIsAWarning) {
  Recipe recipe = RecipeKeeping({});
  recipe.rules.push_back(RuleOf({"*embed_tokens", "*norm*"}, RuleUse::kQuantize));
  const Plan plan = PlanOf(recipe, LlamaShapes());
  ExpectConsistent(plan);
  const PlanRow row = RowOf(plan, "model.embed_tokens.weight");
  EXPECT_FALSE(row.quantize);
  EXPECT_TRUE(row.warn);
  EXPECT_EQ(row.why, "an embedding, though rule 2 asks for it");
  EXPECT_THAT(plan.warnings,
              ElementsAre("model.embed_tokens: kept: an embedding, though rule 2 asks for it"));
  EXPECT_TRUE(IsError(MakePlan(recipe, LlamaShapes(), {.strict = true}),
                      absl::StatusCode::kFailedPrecondition, "model.embed_tokens"));
}

TEST(PlanTest, ABrokenPatternNamesItsRule) {
  Recipe recipe = RecipeKeeping({"re:("});
  EXPECT_TRUE(
      IsError(MakePlan(recipe, LlamaShapes()), absl::StatusCode::kInvalidArgument, "rule 2"));
}

// --- Groups -------------------------------------------------------------------------------------

TEST(PlanTest, MembersOfAGroupAreTreatedAlike) {
  for (const char* one : {"*v_proj", "*.0.mlp.up_proj"}) {
    const absl::Status status = MakePlan(RecipeKeeping({one}), LlamaShapes()).status();
    EXPECT_TRUE(IsError(status, absl::StatusCode::kInvalidArgument, "_proj\" by rule 1"));
    EXPECT_TRUE(IsError(status, absl::StatusCode::kInvalidArgument, "_proj\" by rule 2"));
    EXPECT_TRUE(IsError(status, absl::StatusCode::kInvalidArgument, "model.layers.0."));
  }
  Recipe settings = RecipeKeeping({});
  settings.rules.push_back(RuleOf({"*q_proj"}, RuleUse::kQuantize));
  settings.rules.back().treatment = settings.treatment;
  settings.rules.back().treatment->weights.method = WeightMethod::kMse;
  EXPECT_TRUE(IsError(MakePlan(settings, LlamaShapes()), absl::StatusCode::kInvalidArgument,
                      "self_attn.{q,k,v}_proj: expected one treatment for all"));
  EXPECT_TRUE(IsError(MakePlan(RecipeKeeping({"*kv_a_proj*"}), DeepSeekShapes()),
                      absl::StatusCode::kInvalidArgument, "{q_a_proj,kv_a_proj_with_mqa}"));
  EXPECT_TRUE(IsError(MakePlan(RecipeKeeping({"*w3"}), MixtralShapes()),
                      absl::StatusCode::kInvalidArgument, "{w1,w3}"));
  // o_proj is alone.
  EXPECT_TRUE(MakePlan(RecipeKeeping({"*o_proj"}), LlamaShapes()).ok());
}

TEST(PlanTest, ExpertsOfALayerAreTreatedAlike) {
  EXPECT_TRUE(IsError(MakePlan(RecipeKeeping({"*experts.2.*"}), MixtralShapes()),
                      absl::StatusCode::kInvalidArgument,
                      "block_sparse_moe.experts: expected one"));
  EXPECT_TRUE(IsError(MakePlan(RecipeKeeping({"*experts*.w2"}), MixtralShapes()),
                      absl::StatusCode::kInvalidArgument,
                      "block_sparse_moe.experts: expected one"));
  EXPECT_TRUE(IsError(MakePlan(RecipeKeeping({"*experts.down_proj"}), GptOssShapes()),
                      absl::StatusCode::kInvalidArgument, "mlp.experts: expected one"));
  // Whole layers may differ, and weights may be searched differently.
  Recipe recipe = RecipeKeeping({"*layers.0*experts*"});
  recipe.rules.push_back(RuleOf({"*layers.1*experts*.w2"}, RuleUse::kQuantize));
  recipe.rules.back().treatment = recipe.treatment;
  recipe.rules.back().treatment->weights.method = WeightMethod::kMse;
  ExpectConsistent(PlanOf(recipe, MixtralShapes()));
  recipe.rules.back().treatment->activations.format = ActivationFormat::kNone;
  EXPECT_TRUE(IsError(MakePlan(recipe, MixtralShapes()), absl::StatusCode::kInvalidArgument,
                      "layers.1.block_sparse_moe.experts: expected one"));
}

TEST(PlanTest, ExpertsShareSettingsOfActivations) {
  Recipe recipe = RecipeKeeping({});
  recipe.rules.push_back(RuleOf({"*experts.1.*"}, RuleUse::kQuantize));
  recipe.rules.back().treatment = recipe.treatment;
  recipe.rules.back().treatment->activations.method = ActivationMethod::kConstant;
  EXPECT_TRUE(IsError(MakePlan(recipe, MixtralShapes()), absl::StatusCode::kInvalidArgument,
                      "share an input scale"));
}

TEST(PlanTest, AGroupIsOfThoseThatAreThere) {
  const Model model = ModelMaker("gemma4", 3, 64)
                          .Add("layers.0.self_attn.q_proj.weight", {64, 64})
                          .Add("layers.0.self_attn.k_proj.weight", {32, 64})  // v is k
                          .Add("layers.1.self_attn.q_proj.weight", {64, 64})  // k and v elsewhere
                          .Add("layers.2.mlp.up_proj.weight", {64, 64})
                          .Make();
  const Plan plan = PlanOf(RecipeKeeping({}), model);
  ExpectConsistent(plan);
  EXPECT_THAT(GroupNames(plan), ElementsAre("layers.0.self_attn.{q,k}_proj",
                                            "layers.1.self_attn.q_proj", "layers.2.mlp.up_proj"));
}

// --- What cannot be quantized -------------------------------------------------------------------

TEST(PlanTest, KThatIsNoMultipleOf16IsKept) {
  const Model model = ModelMaker("", 2, 40)
                          .Add("layers.0.mlp.gate_proj.weight", {64, 40})
                          .Add("layers.0.mlp.up_proj.weight", {64, 40})
                          .Add("layers.0.mlp.down_proj.weight", {40, 64})
                          .Add("layers.1.mlp.gate_proj.weight", {64, 40})
                          .Add("layers.1.mlp.up_proj.weight", {64, 40})
                          .Make();
  const Plan plan = PlanOf(RecipeKeeping({}), model);
  ExpectConsistent(plan);
  EXPECT_THAT(Quantized(plan), ElementsAre("layers.0.mlp.down_proj.weight"));
  const PlanRow up = RowOf(plan, "layers.0.mlp.up_proj.weight");
  EXPECT_TRUE(up.warn);
  EXPECT_EQ(up.why, "K is 40, not a multiple of 16, though rule 1 asks for it");
  EXPECT_EQ(up.treatment, Treatment());
  EXPECT_EQ(plan.warnings.size(), 2u);
  EXPECT_THAT(plan.warnings[0], HasSubstr("layers.0-1.mlp.gate_proj: kept: K is 40"));
  EXPECT_TRUE(IsError(MakePlan(RecipeKeeping({}), model, {.strict = true}),
                      absl::StatusCode::kFailedPrecondition, "K is 40"));
}

TEST(PlanTest, OneThatIsKeptKeepsItsGroupAndItsExperts) {
  // Nothing a model would have; but files may.
  const Model odd = ModelMaker("", 1, 64)
                        .Add("layers.0.mlp.gate_proj.weight", {64, 64})
                        .Add("layers.0.mlp.up_proj.weight", {64, 72})
                        .Add("layers.0.mlp.down_proj.weight", {64, 64})
                        .Add("layers.0.self_attn.q_proj.weight", {64, 64})
                        .Add("layers.0.self_attn.k_proj.weight", {64, 64}, DType::kF64)
                        .Make();
  const Plan plan = PlanOf(RecipeKeeping({}), odd);
  ExpectConsistent(plan);
  EXPECT_THAT(Quantized(plan), ElementsAre("layers.0.mlp.down_proj.weight"));
  EXPECT_EQ(RowOf(plan, "layers.0.mlp.gate_proj.weight").why,
            "runs as one with a up_proj that has to be kept, though rule 1 asks for it");
  EXPECT_EQ(RowOf(plan, "layers.0.self_attn.k_proj.weight").why,
            "of type F64, though rule 1 asks for it");

  ModelMaker experts("", 1, 64);
  for (int e = 0; e < 3; ++e) experts.Mlp(absl::StrCat("layers.0.mlp.experts.", e), 64, 40);
  experts.Mlp("layers.0.mlp.shared_expert", 64, 64);
  const Plan moe = PlanOf(RecipeKeeping({}), experts.Make());
  EXPECT_THAT(Folded(Quantized(moe)), ElementsAre("layers.0.mlp.shared_expert.down_proj.weight",
                                                  "layers.0.mlp.shared_expert.gate_proj.weight",
                                                  "layers.0.mlp.shared_expert.up_proj.weight"));
  EXPECT_EQ(moe.warnings.size(), 3u);
}

TEST(PlanTest, KOfColumnsOfExpertsIsTheMiddleAxis) {
  const Model model = ModelMaker("llama4", 1, 64)
                          .Add("layers.0.feed_forward.experts.gate_up_proj", {2, 64, 40})
                          .Add("layers.0.feed_forward.experts.down_proj", {2, 20, 64})
                          .Add("layers.0.self_attn.o_proj.weight", {64, 64})
                          .Make();
  const Plan plan = PlanOf(RecipeKeeping({}), model);
  EXPECT_THAT(Quantized(plan), ElementsAre("layers.0.self_attn.o_proj.weight"));
  EXPECT_THAT(RowOf(plan, "layers.0.feed_forward.experts.down_proj").why, HasSubstr("K is 20"));
}

TEST(PlanTest, ATiedHeadIsKept) {
  Model model = LlamaShapes();
  EXPECT_TRUE(RowOf(PlanOf(RecipeKeeping({}), model), "lm_head.weight").quantize);
  model.tied_embeddings = true;
  const PlanRow row = RowOf(PlanOf(RecipeKeeping({}), model), "lm_head.weight");
  EXPECT_FALSE(row.quantize);
  EXPECT_FALSE(row.warn);
  EXPECT_EQ(row.why, "tied to the embeddings");
}

TEST(PlanTest, IntegersAndEmptyTensorsAreKept) {
  const Model model = ModelMaker("", 1, 64)
                          .Add("layers.0.mlp.down_proj.weight", {64, 64})
                          .Add("layers.0.mlp.up_proj.weight", {0, 64})
                          .Add("embeddings.position_ids", {1, 64}, DType::kI64)
                          .Add("mask", {64, 64}, DType::kBool)
                          .Add("table", {64, 64}, DType::kU8)
                          .Make();
  const Plan plan = PlanOf(RecipeKeeping({}), model);
  ExpectConsistent(plan);
  EXPECT_THAT(Quantized(plan), ElementsAre("layers.0.mlp.down_proj.weight"));
  EXPECT_THAT(plan.warnings, IsEmpty());
}

TEST(PlanTest, UnknownLayoutsOfExpertsAreAWarning) {
  const Model model = ModelMaker("granitemoe", 1, 64)
                          .Add("layers.0.block_sparse_moe.input_linear.weight", {4, 96, 64})
                          .Add("layers.0.self_attn.o_proj.weight", {64, 64})
                          .Make();
  EXPECT_THAT(PlanOf(RecipeKeeping({}), model).warnings,
              ElementsAre(HasSubstr("layers.0.block_sparse_moe.input_linear: kept: a tensor of "
                                    "experts whose layout is not known")));
}

TEST(PlanTest, RefusesWhatIsQuantizedAlready) {
  const struct {
    const char *name, *scale;
    DType dtype;
  } kQuantized[] = {
      {"layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight_scale_inv", DType::kF8E4M3},
      {"layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight_scale", DType::kF8E5M2},
      {"layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight_scale", DType::kU8},
      {"layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.scale", DType::kI8},
      {"layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.SCB", DType::kI8},
      {"layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight.absmax", DType::kU8},
      {"layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.scales", DType::kU32},
      {"layers.0.mlp.up_proj.weight_packed", "layers.0.mlp.up_proj.weight_scale", DType::kI32},
      {"layers.0.mlp.up_proj.qweight", "layers.0.mlp.up_proj.scales", DType::kI32},
      {"layers.0.mlp.experts.gate_up_proj_blocks", "layers.0.mlp.experts.gate_up_proj_scales",
       DType::kU8},
  };
  for (const auto& [name, scale, dtype] : kQuantized) {
    const Model model = ModelMaker("", 1, 64)
                            .Add("layers.0.self_attn.o_proj.weight", {64, 64})
                            .Add(name, {64, 32}, dtype)
                            .Add(scale, {1, 1}, DType::kF32)
                            .Make();
    const absl::Status status = MakePlan(RecipeKeeping({}), model).status();
    EXPECT_TRUE(IsError(status, absl::StatusCode::kUnimplemented, name)) << scale;
    // Keeping it would leave a model of two quantizations.
    EXPECT_TRUE(IsError(MakePlan(RecipeKeeping({"*mlp*"}), model), absl::StatusCode::kUnimplemented,
                        "1 tensor that is quantized already"));
  }
}

TEST(PlanTest, RefusesWhatOnlyLooksQuantized) {
  const std::string up = "layers.0.mlp.up_proj";
  const Model integers = ModelMaker("", 1, 64)
                             .Add("layers.0.self_attn.o_proj.weight", {64, 64})
                             .Add(up + ".weight", {64, 32}, DType::kU8)
                             .Make();
  EXPECT_TRUE(IsError(MakePlan(RecipeKeeping({}), integers), absl::StatusCode::kUnimplemented, up));
  const Model scaled = ModelMaker("", 1, 64)
                           .Add(up + ".weight", {64, 64})
                           .Add(up + ".weight_scale_inv", {1, 1}, DType::kF32)
                           .Make();
  EXPECT_TRUE(IsError(MakePlan(RecipeKeeping({}), scaled), absl::StatusCode::kUnimplemented,
                      up + ".weight_scale_inv"));
}

TEST(PlanTest, NamesWrittenTwiceAreRefused) {
  const std::string o = "layers.0.self_attn.o_proj";
  EXPECT_TRUE(IsError(MakePlan(RecipeKeeping({}), ModelMaker("", 1, 64)
                                                      .Add(o + ".weight", {64, 64})
                                                      .Add(o + ".weight_scale", {64, 4})
                                                      .Make()),
                      absl::StatusCode::kDataLoss, o + ".weight_scale"));
  const std::string experts = "layers.0.mlp.experts.";
  EXPECT_TRUE(IsError(MakePlan(RecipeKeeping({}), ModelMaker("", 1, 64)
                                                      .Add(experts + "gate_up_proj", {2, 96, 64})
                                                      .Add(experts + "down_proj", {2, 64, 48})
                                                      .Mlp(experts + "0", 64, 48)
                                                      .Make()),
                      absl::StatusCode::kDataLoss, experts + "0."));
  EXPECT_TRUE(IsError(
      MakePlan(RecipeKeeping({}),
               ModelMaker("", 1, 64).Add("a.weight", {64, 64}).Add("a.weight", {64, 64}).Make()),
      absl::StatusCode::kDataLoss, "\"a.weight\" twice"));
}

TEST(PlanTest, ShapesThatCannotBeAreRefused) {
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{-1, 64}, std::vector<int64_t>{int64_t{1} << 40, int64_t{1} << 40},
        std::vector<int64_t>{int64_t{1} << 31, int64_t{1} << 31}}) {
    EXPECT_TRUE(
        IsError(MakePlan(RecipeKeeping({}), ModelMaker("", 1, 64).Add("a.weight", shape).Make()),
                absl::StatusCode::kDataLoss, "\"a.weight\": expected a shape"));
  }
}

TEST(PlanTest, ARecipeThatQuantizesNothingIsAnError) {
  Recipe recipe;
  recipe.name = "nvfp4_experts_only";
  recipe.rules = {RuleOf({"*experts*"}, RuleUse::kQuantize), RuleOf({"*lm_head*"}, RuleUse::kKeep)};
  recipe.rules[0].place = "r.yaml:3:5";
  EXPECT_TRUE(IsError(MakePlan(recipe, LlamaShapes()), absl::StatusCode::kInvalidArgument,
                      "recipe nvfp4_experts_only: expected something to quantize, got nothing: of "
                      "15 linear modules rule 1 (r.yaml:3:5), quantize, matches 0; rule 2, keep, "
                      "matches 1"));
  EXPECT_TRUE(IsError(MakePlan(Recipe(), LlamaShapes()), absl::StatusCode::kInvalidArgument,
                      "no rule matches any"));
  EXPECT_TRUE(
      IsError(MakePlan(RecipeKeeping({}), Model()), absl::StatusCode::kInvalidArgument, "of 0"));
}

TEST(PlanTest, SaysWhichOfOnesOwnRulesIsIdle) {
  Recipe recipe = DefaultRecipe();
  for (const char* place : {"", "base:3:5", "r.yaml:9:5", "--set rules"}) {
    recipe.rules.push_back(RuleOf({"*.q_porj"}, RuleUse::kKeep));
    recipe.rules.back().place = place;
  }
  const size_t rules = recipe.rules.size();
  EXPECT_THAT(
      PlanOf(recipe, LlamaShapes()).warnings,
      ElementsAre(absl::StrCat("rule ", rules - 1, " (r.yaml:9:5): matches nothing of this model"),
                  absl::StrCat("rule ", rules, " (--set rules): matches nothing of this model")));
}

// --- Text ---------------------------------------------------------------------------------------

TEST(PlanTextTest, FoldsLayersAndAddsUp) {
  Recipe recipe = DefaultRecipe();
  recipe.rules[0].place = "r.yaml:3:5";
  const Plan plan = PlanOf(recipe, LlamaShapes(36));
  const std::string text = PlanAsText(plan);
  EXPECT_EQ(text.back(), '\n');
  EXPECT_LT(std::ranges::count(text, '\n'), 30) << text;
  for (const char* piece :
       {"model.layers.0-35.self_attn.q_proj.weight", "nvfp4, max, activations max",
        "rule 1 (r.yaml:3:5)", "model.layers.0-35.self_attn.{q,k,v}_proj (36 groups)",
        "252 of 327 tensors quantized, in 144 groups with 144 input scales", "an embedding"}) {
    EXPECT_THAT(text, HasSubstr(piece)) << text;
  }
  EXPECT_THAT(text, Not(HasSubstr("warnings"))) << text;
  const PlanTotals totals = TotalsOf(plan);
  EXPECT_EQ(totals.quantized, 252);
  EXPECT_EQ(totals.quantized_weights, 36 * (3 * 64 * 64 + 3 * 64 * 128));
  EXPECT_EQ(totals.quantized_after, totals.quantized_weights * 9 / 16 + 252 * 8);
  EXPECT_EQ(totals.bytes_before - totals.bytes_after,
            totals.quantized_before - totals.quantized_after);
  EXPECT_NEAR(totals.quantized_bits_per_weight(), 4.5, 0.02);
}

TEST(PlanTextTest, EscapesNames) {
  const Model model = ModelMaker("", 1, 64).Add("a\n\x1b[31m.weight", {64, 64}).Make();
  const std::string text = PlanAsText(PlanOf(RecipeKeeping({}), model));
  EXPECT_THAT(text, HasSubstr("a\\x0a\\x1b[31m.weight"));
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
}

TEST(PlanTextTest, ShowsWarnings) {
  const Model model =
      ModelMaker("", 1, 64).Add("a.weight", {64, 40}).Add("b.weight", {64, 64}).Make();
  EXPECT_THAT(PlanAsText(PlanOf(RecipeKeeping({}), model)),
              HasSubstr("\nwarnings:\n  a: kept: K is 40, not a multiple of 16"));
}

}  // namespace
}  // namespace nibble
