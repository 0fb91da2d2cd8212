#include "engine/export.h"

#include <cmath>
#include <limits>

#include "calib/calibrator.h"
#include "engine/loader_rules.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/is_error.h"
#include "tests/testing/model_folders.h"
#include "tests/testing/reference_export.h"

namespace nibble {
namespace {

using ::nibble::testing::DeepseekModel;
using ::nibble::testing::ExpertRowsModel;
using ::nibble::testing::GptOssModel;
using ::nibble::testing::IsError;
using ::nibble::testing::Llama4Model;
using ::nibble::testing::LlamaModel;
using ::nibble::testing::ModelOnPaper;
using ::nibble::testing::OddNamesModel;
using ::nibble::testing::PaperPlan;
using ::nibble::testing::PlanOnPaper;
using ::nibble::testing::Qwen3MoeModel;
using ::nibble::testing::RecipeFor;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;
using ::testing::Not;
using ::testing::StartsWith;
using OrderedJson = nlohmann::ordered_json;

constexpr ExportFormat kModelopt = ExportFormat::kModelopt;
constexpr ExportFormat kCompressedTensors = ExportFormat::kCompressedTensors;

PlanRow Row(const std::string& name, const std::vector<int64_t>& shape, WeightForm form) {
  PlanRow row;
  row.tensor = {name, DType::kBf16, shape};
  row.module = name.ends_with(".weight") ? name.substr(0, name.size() - 7) : name;
  row.quantize = true;
  row.form = form;
  return row;
}

// "name dtype shape" of each.
std::vector<std::string> Lines(const absl::StatusOr<std::vector<OutputTensor>>& outputs) {
  std::vector<std::string> lines;
  for (const OutputTensor& output : outputs.value()) {
    lines.push_back(absl::StrCat(output.tensor.name, " ", ToAbsl(DTypeName(output.tensor.dtype)),
                                 " ", ShapeName(output.tensor.shape)));
  }
  return lines;
}

PlanRow WeightOnly(PlanRow row) {
  row.treatment.activations.format = ActivationFormat::kNone;
  return row;
}

TEST(OutputsOfTest, MatrixModelopt) {
  const PlanRow row = Row("a.q_proj.weight", {48, 64}, WeightForm::kMatrix);
  EXPECT_THAT(Lines(OutputsOf(row, kModelopt)),
              ElementsAre("a.q_proj.weight U8 [48, 32]", "a.q_proj.weight_scale F8_E4M3 [48, 4]",
                          "a.q_proj.weight_scale_2 F32 []", "a.q_proj.input_scale F32 []"));
  EXPECT_THAT(Lines(OutputsOf(WeightOnly(row), kModelopt)),
              ElementsAre("a.q_proj.weight U8 [48, 32]", "a.q_proj.weight_scale F8_E4M3 [48, 4]",
                          "a.q_proj.weight_scale_2 F32 []"));
}

TEST(OutputsOfTest, MatrixCompressedTensors) {
  const PlanRow row = Row("a.weight.weight", {48, 64}, WeightForm::kMatrix);
  EXPECT_THAT(
      Lines(OutputsOf(row, kCompressedTensors)),
      ElementsAre("a.weight.weight_packed U8 [48, 32]", "a.weight.weight_scale F8_E4M3 [48, 4]",
                  "a.weight.weight_global_scale F32 [1]", "a.weight.input_global_scale F32 [1]"));
  EXPECT_THAT(Lines(OutputsOf(WeightOnly(row), kCompressedTensors)),
              Not(Contains(HasSubstr("input"))));
}

TEST(OutputsOfTest, ExpertRowsBecomeMatrices) {
  const auto outputs =
      OutputsOf(Row("m.experts.gate_up_proj", {2, 96, 64}, WeightForm::kExpertRows), kModelopt);
  EXPECT_THAT(Lines(outputs), AllOf(::testing::SizeIs(16),
                                    IsSupersetOf({"m.experts.0.gate_proj.weight U8 [48, 32]",
                                                  "m.experts.1.up_proj.weight U8 [48, 32]",
                                                  "m.experts.1.up_proj.weight_scale_2 F32 []"})));
  const OutputTensor& last_up = outputs->back();
  EXPECT_EQ(last_up.expert, 1);
  EXPECT_EQ(last_up.row_begin, 48);
  EXPECT_EQ(last_up.row_end, 96);
  EXPECT_THAT(
      Lines(OutputsOf(Row("m.experts.down_proj.weight", {1, 64, 48}, WeightForm::kExpertRows),
                      kCompressedTensors)),
      ElementsAre("m.experts.0.down_proj.weight_packed U8 [64, 24]",
                  "m.experts.0.down_proj.weight_scale F8_E4M3 [64, 3]",
                  "m.experts.0.down_proj.weight_global_scale F32 [1]",
                  "m.experts.0.down_proj.input_global_scale F32 [1]"));
  EXPECT_TRUE(IsError(
      OutputsOf(Row("m.experts.gate_up_proj", {1, 97, 64}, WeightForm::kExpertRows), kModelopt),
      absl::StatusCode::kInvalidArgument, "an even number of rows"));
}

TEST(OutputsOfTest, TurnedExpertsBecomeMatricesOfTheirOutputs) {
  EXPECT_THAT(
      Lines(OutputsOf(Row("m.experts.gate_up_proj", {1, 64, 96}, WeightForm::kTurnedExperts),
                      kCompressedTensors)),
      ElementsAre("m.experts.0.gate_proj.weight_packed U8 [48, 32]",
                  "m.experts.0.gate_proj.weight_scale F8_E4M3 [48, 4]",
                  "m.experts.0.gate_proj.weight_global_scale F32 [1]",
                  "m.experts.0.gate_proj.input_global_scale F32 [1]",
                  "m.experts.0.up_proj.weight_packed U8 [48, 32]",
                  "m.experts.0.up_proj.weight_scale F8_E4M3 [48, 4]",
                  "m.experts.0.up_proj.weight_global_scale F32 [1]",
                  "m.experts.0.up_proj.input_global_scale F32 [1]"));
  EXPECT_TRUE(IsError(
      OutputsOf(Row("m.experts.gate_up_proj", {1, 64, 97}, WeightForm::kTurnedExperts), kModelopt),
      absl::StatusCode::kInvalidArgument, "an even number of rows"));
}

TEST(OutputsOfTest, ExpertColumnsStayOneTensor) {
  const PlanRow row = Row("m.experts.gate_up_proj", {4, 64, 96}, WeightForm::kExpertColumns);
  EXPECT_THAT(Lines(OutputsOf(row, kModelopt)),
              ElementsAre("m.experts.gate_up_proj U8 [4, 32, 96]",
                          "m.experts.gate_up_proj_weight_scale F8_E4M3 [4, 4, 96]",
                          "m.experts.gate_up_proj_weight_scale_2 F32 []",
                          "m.experts.gate_up_proj_input_scale F32 []"));
  EXPECT_TRUE(IsError(OutputsOf(row, kCompressedTensors), absl::StatusCode::kUnimplemented,
                      "expected a matrix named *.weight for the format compressed-tensors"));
}

TEST(OutputsOfTest, KeptTensorsAreCopies) {
  PlanRow row = Row("a.weight", {3, 5}, WeightForm::kMatrix);
  row.quantize = false;
  const auto outputs = OutputsOf(row, kModelopt);
  ASSERT_EQ(outputs->size(), 1u);
  EXPECT_EQ((*outputs)[0].tensor, row.tensor);
  EXPECT_EQ((*outputs)[0].part, OutputPart::kCopy);
}

TEST(StoredGlobalScaleTest, MultiplierOrDivisor) {
  EXPECT_EQ(StoredGlobalScale(2688, 448, kModelopt), 1.0f);
  EXPECT_EQ(StoredGlobalScale(1.5f, 448, kModelopt), 1.5f / 2688);
  EXPECT_EQ(StoredGlobalScale(1.5f, 256, kModelopt), 1.5f / 1536);
  EXPECT_EQ(StoredGlobalScale(1.5f, 448, kCompressedTensors), 1 / (1.5f / 2688));
  EXPECT_EQ(StoredGlobalScale(0, 448, kModelopt), 1.0f);
  EXPECT_EQ(StoredGlobalScale(0, 448, kCompressedTensors), 1.0f);
  EXPECT_EQ(StoredScale(0.25f, kModelopt), 0.25f);
  EXPECT_EQ(StoredScale(0.25f, kCompressedTensors), 4.0f);
}

TEST(StoredGlobalScaleTest, IsAlwaysNormalAndInvertible) {
  for (const float amax : {std::numeric_limits<float>::denorm_min(), 1e-42f, 1e-38f, 3e-35f, 4e-35f,
                           1.0f, 3e38f, std::numeric_limits<float>::max()}) {
    for (const int bound : {448, 256}) {
      const float usable = ExportableAmax(amax, bound);
      EXPECT_GE(usable, amax);
      EXPECT_EQ(ExportableAmax(usable, bound), usable);
      for (const ExportFormat format : {kModelopt, kCompressedTensors}) {
        const float stored = StoredGlobalScale(amax, bound, format);
        EXPECT_TRUE(std::isnormal(stored) && stored > 0) << amax << " " << stored;
        EXPECT_TRUE(std::isnormal(1 / stored)) << amax << " " << stored;
        EXPECT_EQ(stored, StoredGlobalScale(usable, bound, format));
      }
    }
  }
  EXPECT_EQ(ExportableAmax(0, 448), 0.0f);
  EXPECT_EQ(ExportableAmax(1.0f, 448), 1.0f);
}

// --- Configurations -----------------------------------------------------------------------------

struct Configs {
  OrderedJson config, hf_quant_config;
  OrderedJson quantization() const { return config["quantization_config"]; }
};

Configs ConfigsOf(const ModelOnPaper& model, const Plan& plan, const Recipe& recipe) {
  const auto files = ConfigFilesOf(plan, recipe, model.config.dump());
  EXPECT_TRUE(files.ok()) << files.status();
  Configs configs;
  for (const ConfigFile& file : files.value()) {
    (file.name == "config.json" ? configs.config : configs.hf_quant_config) =
        OrderedJson::parse(file.text);
    EXPECT_TRUE(file.text.ends_with("}\n"));
  }
  return configs;
}

TEST(ConfigFilesOfTest, Modelopt) {
  const ModelOnPaper model = LlamaModel();
  const Configs configs = ConfigsOf(model, PlanOnPaper(model), RecipeFor(kModelopt));
  EXPECT_EQ(configs.quantization(), OrderedJson::parse(R"({
    "config_groups": {"group_0": {
      "input_activations": {"dynamic": false, "num_bits": 4, "type": "float", "group_size": 16},
      "weights": {"dynamic": false, "num_bits": 4, "type": "float", "group_size": 16},
      "targets": ["Linear"]}},
    "ignore": ["lm_head", "model.embed_tokens"],
    "quant_algo": "NVFP4",
    "producer": {"name": "modelopt", "version": "0.47.0"},
    "quant_method": "modelopt"})"));
  EXPECT_EQ(configs.hf_quant_config, OrderedJson::parse(R"({
    "producer": {"name": "modelopt", "version": "0.47.0"},
    "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": null, "group_size": 16,
                     "exclude_modules": ["lm_head", "model.embed_tokens"]}})"));
}

TEST(ConfigFilesOfTest, KeepsOtherKeysInTheirOrder) {
  ModelOnPaper model = LlamaModel();
  model.config["zeta"] = 1;
  model.config["alpha"] = {{"z", 1.5}, {"a", nullptr}};
  model.config["name"] = "\xC3\xA9t\xC3\xA9";
  OrderedJson expected = model.config;
  // What an earlier quantization left.
  model.config["quantization_config"] = {{"quant_method", "mxfp4"}};
  model.config["text_config"] = {{"quantization_config", {{"bits", 8}}}, {"kept", true}};
  model.config["compression_config"] = {{"format", "x"}};
  OrderedJson config =
      ConfigsOf(model, PlanOnPaper(LlamaModel()), RecipeFor(kCompressedTensors)).config;
  EXPECT_EQ(config["quantization_config"]["quant_method"], "compressed-tensors");
  config.erase("quantization_config");
  expected["text_config"] = {{"kept", true}};
  EXPECT_EQ(config.dump(), expected.dump());
}

TEST(ConfigFilesOfTest, KeepsPythonsConstants) {
  const ModelOnPaper model = LlamaModel();
  std::string text = model.config.dump();
  text.insert(text.size() - 1, R"(,"time_step_limit":[0.0,Infinity],"a":[NaN,-Infinity,"NaN"])");
  const auto files = ConfigFilesOf(PlanOnPaper(model), RecipeFor(kModelopt), text);
  ASSERT_TRUE(files.ok()) << files.status();
  std::string config = files->front().text;
  std::erase_if(config, [](char c) { return c == ' ' || c == '\n'; });
  EXPECT_THAT(config, HasSubstr(R"("time_step_limit":[0.0,Infinity],"a":[NaN,-Infinity,"NaN"])"));
}

TEST(ConfigFilesOfTest, WeightOnly) {
  const ModelOnPaper model = LlamaModel();
  PaperPlan weight_only;
  weight_only.weight_only = [](const std::string&) { return true; };
  const Plan plan = PlanOnPaper(model, weight_only);
  const Configs modelopt = ConfigsOf(model, plan, RecipeFor(kModelopt));
  EXPECT_EQ(modelopt.quantization()["quant_algo"], "W4A16_NVFP4");
  EXPECT_FALSE(modelopt.quantization()["config_groups"]["group_0"].contains("input_activations"));
  EXPECT_EQ(modelopt.hf_quant_config["quantization"]["quant_algo"], "W4A16_NVFP4");
  const OrderedJson group = ConfigsOf(model, plan, RecipeFor(kCompressedTensors))
                                .quantization()["config_groups"]["group_0"];
  EXPECT_TRUE(group["input_activations"].is_null());
  EXPECT_EQ(group["weights"]["strategy"], "tensor_group");
}

TEST(ConfigFilesOfTest, MixedPrecision) {
  const ModelOnPaper model = Qwen3MoeModel();
  PaperPlan mixed;
  mixed.weight_only = [](const std::string& module) { return module.find("attn") != module.npos; };
  const Plan plan = PlanOnPaper(model, mixed);
  const Configs configs = ConfigsOf(model, plan, RecipeFor(kModelopt));
  const OrderedJson quantization = configs.quantization();
  EXPECT_EQ(quantization["quant_algo"], "MIXED_PRECISION");
  EXPECT_EQ(quantization["ignore"], OrderedJson::array());
  EXPECT_EQ(quantization["quantized_layers"]["model.layers.0.self_attn.q_proj"],
            OrderedJson::parse(R"({"quant_algo": "W4A16_NVFP4", "group_size": 16})"));
  EXPECT_EQ(quantization["quantized_layers"]["model.layers.1.mlp.experts.3.up_proj"],
            OrderedJson::parse(R"({"quant_algo": "NVFP4", "group_size": 16})"));
  EXPECT_EQ(quantization["config_groups"].size(), 2u);
  const OrderedJson file = configs.hf_quant_config["quantization"];
  EXPECT_EQ(file["quantized_layers"], quantization["quantized_layers"]);
  EXPECT_FALSE(file.contains("exclude_modules"));
  EXPECT_FALSE(file.contains("group_size"));

  const OrderedJson groups =
      ConfigsOf(model, plan, RecipeFor(kCompressedTensors)).quantization()["config_groups"];
  EXPECT_THAT(groups["group_0"]["targets"].get<std::vector<std::string>>(),
              ElementsAre(R"(re:model\.layers\.0\.mlp\.experts\..*)",
                          R"(re:model\.layers\.1\.mlp\.experts\..*)"));
  EXPECT_THAT(groups["group_1"]["targets"].get<std::vector<std::string>>(),
              AllOf(::testing::SizeIs(10), IsSupersetOf({"model.layers.0.self_attn.q_proj",
                                                         "model.layers.0.self_attn.qkv_proj"})));
}

TEST(ConfigFilesOfTest, KvCache) {
  const ModelOnPaper model = LlamaModel();
  Recipe recipe = RecipeFor(kModelopt);
  recipe.kv_cache = KvCacheFormat::kFp8;
  const Configs configs = ConfigsOf(model, PlanOnPaper(model), recipe);
  EXPECT_EQ(configs.quantization()["kv_cache_scheme"],
            OrderedJson::parse(R"({"dynamic": false, "num_bits": 8, "type": "float"})"));
  EXPECT_EQ(configs.hf_quant_config["quantization"]["kv_cache_quant_algo"], "FP8");
  recipe.output.format = kCompressedTensors;
  const OrderedJson scheme =
      ConfigsOf(model, PlanOnPaper(model), recipe).quantization()["kv_cache_scheme"];
  EXPECT_EQ(scheme["num_bits"], 8);
  EXPECT_EQ(scheme["strategy"], "tensor");
}

std::vector<std::string> Excludes(const ModelOnPaper& model, const PaperPlan& options,
                                  ExportFormat format) {
  return ConfigsOf(model, PlanOnPaper(model, options), RecipeFor(format))
      .quantization()["ignore"]
      .get<std::vector<std::string>>();
}

PaperPlan KeepIf(const std::function<bool(const std::string&)>& keep) {
  PaperPlan plan;
  plan.keep = keep;
  return plan;
}

TEST(ExcludesTest, FusedNamesAndContainersOfWhatIsKept) {
  const PaperPlan keep =
      KeepIf([](const std::string& module) { return module.starts_with("model.layers.0."); });
  EXPECT_THAT(Excludes(Qwen3MoeModel(), keep, kModelopt),
              ElementsAre("lm_head", "model.embed_tokens", "model.layers.0.mlp.experts",
                          "model.layers.0.mlp.experts.*", "model.layers.0.mlp.gate",
                          "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.o_proj",
                          "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.qkv_proj",
                          "model.layers.0.self_attn.v_proj", "model.layers.1.mlp.gate"));
  EXPECT_THAT(Excludes(Qwen3MoeModel(), keep, kCompressedTensors),
              ElementsAre("lm_head", "model.layers.0.mlp.experts", "model.layers.0.mlp.gate",
                          "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.o_proj",
                          "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.qkv_proj",
                          "model.layers.0.self_attn.v_proj", "model.layers.1.mlp.gate",
                          R"(re:model\.layers\.0\.mlp\.experts\..*)"));
}

TEST(ExcludesTest, TiedHead) {
  const ModelOnPaper model = LlamaModel({}, /*tied=*/true);
  EXPECT_THAT(Excludes(model, {}, kModelopt), ElementsAre("lm_head", "model.embed_tokens"));
  EXPECT_THAT(Excludes(model, {}, kCompressedTensors), ElementsAre("lm_head"));
}

TEST(ExcludesTest, VisionAndMtp) {
  EXPECT_THAT(Excludes(Llama4Model(), {}, kModelopt),
              AllOf(IsSupersetOf({"vision_model*", "multi_modal_projector*",
                                  "vision_model.model.layers.0.self_attn.qkv_proj",
                                  "language_model.lm_head",
                                  "language_model.model.layers.0.feed_forward.router"}),
                    Not(Contains(HasSubstr("experts")))));
  EXPECT_THAT(Excludes(DeepseekModel(), {}, kModelopt),
              AllOf(IsSupersetOf({"model.layers.2*", "model.layers.2.mlp.experts",
                                  "model.layers.2.self_attn.fused_qkv_a_proj_with_mqa",
                                  "model.layers.2.eh_proj", "model.layers.1.mlp.gate"}),
                    Not(Contains("model.layers.1"))));
  EXPECT_THAT(Excludes(DeepseekModel(), {}, kCompressedTensors),
              Contains(R"(re:model\.layers\.2\..*)"));
}

TEST(ExcludesTest, NamesThatSglangTakesForThoseOfEveryLayer) {
  const auto first = [](const std::string& module) {
    return module.starts_with("model.layers.0.");
  };
  for (const PaperPlan& plan : {PaperPlan(), KeepIf(first)}) {
    const std::vector<std::string> excludes = Excludes(DeepseekModel(), plan, kModelopt);
    for (const char* kept : {"model.layers.2.self_attn.kv_b_proj", "model.layers.2.eh_proj"}) {
      EXPECT_EQ(SglangModeloptExcludes(excludes, {kept, {}}), true) << kept;
    }
    for (const char* leaf : {"kv_b_proj", "q_b_proj", "fused_qkv_a_proj_with_mqa", "o_proj"}) {
      const std::string name = absl::StrCat("model.layers.1.self_attn.", leaf);
      EXPECT_EQ(SglangModeloptExcludes(excludes, {name, {}}), false) << name;
    }
  }
  EXPECT_THAT(
      Excludes(DeepseekModel(), KeepIf(first), kModelopt),
      IsSupersetOf({"model.layers.0.self_attn.kv_b_pro[j]", "model.layers.0.self_attn.q_a_pro[j]",
                    "model.layers.0.self_attn.fused_qkv_a_proj_with_mqa"}));
  // Without any that is quantized, the plain name.
  EXPECT_THAT(Excludes(DeepseekModel(), KeepIf([](const std::string& module) {
                         return module.find("self_attn") != module.npos;
                       }),
                       kModelopt),
              Contains("model.layers.0.self_attn.kv_b_proj"));
}

TEST(ExcludesTest, NamesThatBeginOthers) {
  // Layer 1 is kept, 10 and 11 are not; "mlp.gate" is part of "mlp.gate_proj" but in layer 1.
  const std::vector<std::string> excludes = Excludes(
      OddNamesModel(),
      KeepIf([](const std::string& module) { return module.starts_with("model.layers.1."); }),
      kModelopt);
  EXPECT_THAT(excludes, IsSupersetOf({"model.layers.1.mlp.gate_proj", "model.layers.1.mlp.gate",
                                      "model.layers.0.mlp.gat[e]", "model.layers.10.mlp.gat[e]",
                                      "model.\xC3\xA9tage \"deux\".proj"}));
  EXPECT_THAT(excludes, Each(Not(HasSubstr("*"))));
}

TEST(ExcludesTest, StackedExpertsThatAreKept) {
  const PaperPlan keep =
      KeepIf([](const std::string& module) { return module.find(".experts.") != module.npos; });
  EXPECT_THAT(Excludes(ExpertRowsModel(), keep, kModelopt),
              AllOf(IsSupersetOf({"model.layers.0.mlp.experts", "model.layers.0.mlp.experts.*",
                                  "model.layers.0.mlp.shared_expert_gate"}),
                    Not(Contains(HasSubstr("gate_up_proj")))));
  EXPECT_THAT(Excludes(GptOssModel(), {}, kModelopt), Not(Contains(HasSubstr("bias"))));
}

TEST(ConfigFilesOfTest, Errors) {
  const ModelOnPaper model = LlamaModel();
  const Plan plan = PlanOnPaper(model);
  for (const char* text : {"", "[]", "{\"a\": }", "{\"a\": \"\xFF\"}", "7"}) {
    EXPECT_TRUE(IsError(ConfigFilesOf(plan, RecipeFor(kModelopt), text),
                        absl::StatusCode::kDataLoss, "config.json: expected "))
        << text;
  }
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += "{\"a\":";
  EXPECT_TRUE(IsError(ConfigFilesOf(plan, RecipeFor(kModelopt), deep), absl::StatusCode::kDataLoss,
                      "levels"));
  const Plan none = PlanOnPaper(model, KeepIf([](const std::string&) { return true; }));
  EXPECT_TRUE(IsError(ConfigFilesOf(none, RecipeFor(kModelopt), "{}"),
                      absl::StatusCode::kInvalidArgument, "at least one quantized weight"));
  const ModelOnPaper columns = GptOssModel();
  EXPECT_TRUE(IsError(ConfigFilesOf(PlanOnPaper(columns), RecipeFor(kCompressedTensors), "{}"),
                      absl::StatusCode::kUnimplemented, "expert_columns"));
}

}  // namespace
}  // namespace nibble
