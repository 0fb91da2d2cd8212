#include "policies/layout.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/models.h"

namespace nibble {
namespace {

using ::nibble::testing::DeepSeekShapes;
using ::nibble::testing::FusedExpertsShapes;
using ::nibble::testing::GptOssShapes;
using ::nibble::testing::Llama4Shapes;
using ::nibble::testing::ModelMaker;
using ::testing::HasSubstr;

using Shape = std::vector<int64_t>;

TensorLayout LayoutOf(const std::string& name, const Shape& shape, int64_t layers = 4,
                      const std::string& model_type = "") {
  const Model model = ModelMaker(model_type, layers, 64).Add(name, shape).Make();
  return LayoutReader(model, ExportFormat::kModelopt).Read(model.tensors.front());
}

TensorLayout LayoutIn(const Model& model, const std::string& name,
                      ExportFormat format = ExportFormat::kModelopt) {
  const LayoutReader reader(model, format);
  const ModelTensor* tensor = reader.Find(name);
  EXPECT_NE(tensor, nullptr) << name;
  return tensor == nullptr ? TensorLayout() : reader.Read(*tensor);
}

TEST(LayoutTest, KnowsKindsAndLayersByName) {
  const struct {
    const char* name;
    ModuleKind kind;
    int64_t layer;
  } kExpected[] = {
      {"model.layers.3.self_attn.q_proj.weight", ModuleKind::kAttention, 3},
      {"model.layers.3.self_attn.q_proj.bias", ModuleKind::kAttention, 3},
      {"layers.0.attention.wq.weight", ModuleKind::kAttention, 0},
      {"transformer.h.2.attn.c_attn.weight", ModuleKind::kAttention, 2},
      {"model.layers.1.self_attn.kv_a_proj_with_mqa.weight", ModuleKind::kAttention, 1},
      {"model.layers.1.linear_attn.in_proj_qkvz.weight", ModuleKind::kLinearAttention, 1},
      {"backbone.layers.0.mixer.in_proj.weight", ModuleKind::kLinearAttention, 0},
      {"backbone.layers.0.mixer.q_proj.weight", ModuleKind::kAttention, 0},
      {"backbone.layers.0.mixer.up_proj.weight", ModuleKind::kMlp, 0},
      {"backbone.layers.0.mixer.experts.7.up_proj.weight", ModuleKind::kExpert, 0},
      {"backbone.layers.0.mixer.shared_experts.up_proj.weight", ModuleKind::kSharedExpert, 0},
      {"model.layers.1.mlp.gate_proj.weight", ModuleKind::kMlp, 1},
      {"model.layers.1.feed_forward.w1.weight", ModuleKind::kMlp, 1},
      {"model.layers.1.mlp.experts.11.down_proj.weight", ModuleKind::kExpert, 1},
      {"model.layers.1.block_sparse_moe.experts.0.w2.weight", ModuleKind::kExpert, 1},
      {"model.layers.1.mlp.shared_expert.up_proj.weight", ModuleKind::kSharedExpert, 1},
      {"model.layers.1.mlp.shared_experts.up_proj.weight", ModuleKind::kSharedExpert, 1},
      {"model.layers.1.mlp.gate.weight", ModuleKind::kRouter, 1},
      {"model.layers.1.mlp.gate.e_score_correction_bias", ModuleKind::kRouter, 1},
      {"model.layers.1.mlp.shared_expert_gate.weight", ModuleKind::kRouter, 1},
      {"model.layers.1.block_sparse_moe.gate.weight", ModuleKind::kRouter, 1},
      {"model.layers.1.block_sparse_moe.router.layer.weight", ModuleKind::kRouter, 1},
      {"model.layers.1.mlp.router.bias", ModuleKind::kRouter, 1},
      {"model.layers.1.mlp.gate.wg.weight", ModuleKind::kRouter, 1},
      {"lm_head.weight", ModuleKind::kLmHead, -1},
      {"language_model.lm_head.weight", ModuleKind::kLmHead, -1},
      {"output.weight", ModuleKind::kLmHead, -1},
      {"embed_out.weight", ModuleKind::kLmHead, -1},
      {"model.embed_tokens.weight", ModuleKind::kEmbedding, -1},
      {"transformer.wte.weight", ModuleKind::kEmbedding, -1},
      {"model.norm.weight", ModuleKind::kNorm, -1},
      {"model.layers.3.input_layernorm.weight", ModuleKind::kNorm, 3},
      {"transformer.h.0.ln_1.weight", ModuleKind::kNorm, 0},
      {"model.visual.blocks.3.attn.qkv.weight", ModuleKind::kVision, -1},
      {"vision_tower.encoder.layers.3.mlp.fc1.weight", ModuleKind::kVision, -1},
      {"audio_tower.layers.3.self_attn.q_proj.weight", ModuleKind::kVision, -1},
      {"multi_modal_projector.linear_1.weight", ModuleKind::kVision, -1},
      {"mtp.layers.0.mlp.experts.3.up_proj.weight", ModuleKind::kMtp, -1},
      {"model.mtp_layers.0.self_attn.q_proj.weight", ModuleKind::kMtp, -1},
      {"model.layers.4.self_attn.q_proj.weight", ModuleKind::kMtp, -1},
      {"model.language_model.layers.2.mlp.up_proj.weight", ModuleKind::kMlp, 2},
      {"language_model.model.layers.2.mlp.up_proj.weight", ModuleKind::kMlp, 2},
      {"encoder.layer.2.attention.self.query.weight", ModuleKind::kAttention, 2},
      {"encoder.layer.2.output.dense.weight", ModuleKind::kOther, 2},
      {"model.decoder.layers.7.fc1.weight", ModuleKind::kMlp, 7},
      {"something.else.weight", ModuleKind::kOther, -1},
      {"model.layers.99999999999999999999.mlp.up_proj.weight", ModuleKind::kMlp, -1},
  };
  for (const auto& [name, kind, layer] : kExpected) {
    const TensorLayout layout = LayoutOf(name, {64, 64});
    EXPECT_EQ(NameOf(layout.kind), NameOf(kind)) << name;
    EXPECT_EQ(layout.layer, layer) << name;
  }
}

TEST(LayoutTest, CountsLayersWhereTheConfigurationDoesNot) {
  const Model model = ModelMaker("", 0, 0)
                          .Add("model.layers.9.mlp.up_proj.weight", {16, 16})
                          .Add("model.visual.blocks.30.attn.qkv.weight", {16, 16})
                          .Make();
  EXPECT_EQ(LayoutReader(model, ExportFormat::kModelopt).layers(), 10);
}

TEST(LayoutTest, TellsLinearLayersFromOthers) {
  const struct {
    const char* name;
    Shape shape;
    const char* reason;
  } kNever[] = {
      {"model.embed_tokens.weight", {256, 64}, "an embedding"},
      {"model.embed_tokens_per_layer.weight", {256, 64}, "an embedding"},
      {"transformer.wpe.weight", {256, 64}, "an embedding"},
      {"embeddings.position_embeddings.weight", {256, 64}, "an embedding"},
      {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
       {32, 16},
       "an embedding"},
      {"visual.patch_embed.proj.weight", {32, 3, 2, 14, 14}, "an embedding"},
      {"vision_model.patch_embedding.linear.weight", {32, 592}, "an embedding"},
      {"model.layers.0.input_layernorm.weight", {64}, "a norm"},
      {"model.layers.0.self_attn.q_norm.weight", {8, 64}, "a norm"},  // a row for each head
      {"model.layers.0.linear_attn.conv1d.weight", {96, 1, 4}, "a convolution"},
      {"model.layers.0.mamba.conv1d.weight", {96, 16}, "a convolution"},
      {"visual.down.weight", {32, 32, 2, 2}, "a convolution"},
      {"model.layers.0.self_attn.q_proj.bias", {64}, "a bias"},
      {"model.layers.0.mlp.experts.gate_up_proj_bias", {4, 128}, "a bias"},
      {"model.layers.0.linear_attn.dt_bias", {4}, "a bias"},
      {"model.layers.0.mlp.gate.e_score_correction_bias", {4}, "a bias"},
      {"model.layers.0.linear_attn.A_log", {4}, "a vector"},
      {"model.layers.0.self_attn.sinks", {4}, "a vector"},
      {"model.layers.0.mixer.A_log", {96, 16}, "a parameter of no linear layer"},
      {"vision_model.positional_embedding_vlm", {9, 32}, "an embedding"},
      {"model.layers.0.layer_scalar", {}, "a scalar"},
      {"weight", {64, 64}, "a parameter of no linear layer"},
      {".weight", {64}, "a vector"},
  };
  for (const auto& [name, shape, reason] : kNever) {
    const TensorLayout layout = LayoutOf(name, shape);
    EXPECT_EQ(layout.quantizable, Quantizability::kNever) << name;
    EXPECT_EQ(layout.reason, reason) << name;
  }
  for (const char* name :
       {"lm_head.weight", "model.layers.0.mlp.up_proj.weight", "visual.merger.mlp.0.weight",
        "model.per_layer_model_projection.weight", "model.layers.0.conv.in_proj.weight",
        "model.layers.4.eh_proj.weight", "encoder.embedding_hidden_mapping_in_proj.weight"}) {
    const TensorLayout layout = LayoutOf(name, {48, 64});
    EXPECT_EQ(layout.quantizable, Quantizability::kLinear) << name << ": " << layout.reason;
    EXPECT_EQ(layout.rows, 48);
    EXPECT_EQ(layout.cols, 64);
  }
  for (const char* name : {"model.layers.0.mlp.gate.weight", "model.layers.0.mlp.router.weight",
                           "mtp.layers.0.mlp.gate.weight"}) {
    EXPECT_EQ(LayoutOf(name, {48, 64}).quantizable, Quantizability::kRouter) << name;
  }
}

TEST(LayoutTest, KnowsWhatIsStoredTheOtherWayAround) {
  const std::string name = "h.0.attn.c_attn.weight";
  EXPECT_EQ(LayoutOf(name, {64, 192}, 1, "gpt2").quantizable, Quantizability::kUnknown);
  EXPECT_EQ(LayoutOf(name, {192, 64}, 1, "gpt_bigcode").quantizable, Quantizability::kLinear);
}

TEST(LayoutTest, NamesFusedGroups) {
  const struct {
    const char *name, *group;
  } kExpected[] = {
      {"model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.{q,k,v}_proj"},
      {"model.layers.1.self_attn.o_proj.weight", ""},
      {"model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.{gate,up}_proj"},
      {"model.layers.1.mlp.experts.3.up_proj.weight",
       "model.layers.1.mlp.experts.3.{gate,up}_proj"},
      {"model.layers.1.block_sparse_moe.experts.3.w3.weight",
       "model.layers.1.block_sparse_moe.experts.3.{w1,w3}"},
      {"model.layers.1.block_sparse_moe.experts.3.w2.weight", ""},
      {"model.layers.1.self_attn.kv_a_proj_with_mqa.weight",
       "model.layers.1.self_attn.{q_a_proj,kv_a_proj_with_mqa}"},
      {"layers.1.attn.wkv_a.weight", "layers.1.attn.{wq_a,wkv_a}"},
      {"layers.1.attn.wq_b.weight", ""},
      {"q_proj.weight", "{q,k,v}_proj"},
      {"model.layers.0.linear_attn.in_proj_z.weight",
       "model.layers.0.linear_attn.{in_proj_qkv,in_proj_z}"},
  };
  for (const auto& [name, group] : kExpected) {
    EXPECT_EQ(LayoutOf(name, {64, 64}).fused_group, group) << name;
  }
}

TEST(LayoutTest, NamesWhatExpertsShare) {
  const TensorLayout gate = LayoutOf("model.layers.1.mlp.experts.3.gate_proj.weight", {48, 64});
  const TensorLayout up = LayoutOf("model.layers.1.mlp.experts.0.up_proj.weight", {48, 64});
  const TensorLayout down = LayoutOf("model.layers.1.mlp.experts.0.down_proj.weight", {64, 48});
  EXPECT_EQ(gate.experts, "model.layers.1.mlp.experts");
  EXPECT_EQ(gate.experts_input, up.experts_input);
  EXPECT_NE(gate.experts_input, down.experts_input);
  EXPECT_EQ(down.experts, gate.experts);
  for (const char* name :
       {"model.layers.1.mlp.shared_experts.up_proj.weight", "model.layers.1.mlp.up_proj.weight"}) {
    EXPECT_EQ(LayoutOf(name, {48, 64}).experts, "") << name;
    EXPECT_EQ(LayoutOf(name, {48, 64}).experts_input, "") << name;
  }
}

// --- Experts in one tensor ----------------------------------------------------------------------

TEST(LayoutTest, KnowsTheOrientationOfExperts) {
  const struct {
    Model model;
    const char* name;
    WeightForm form;
    int64_t matrices, rows, cols;
  } kExpected[] = {
      {FusedExpertsShapes(), "model.language_model.layers.0.mlp.experts.gate_up_proj",
       WeightForm::kExpertRows, 4, 96, 64},
      {FusedExpertsShapes(), "model.language_model.layers.0.mlp.experts.down_proj",
       WeightForm::kExpertRows, 4, 64, 48},
      {Llama4Shapes(), "language_model.model.layers.0.feed_forward.experts.gate_up_proj",
       WeightForm::kExpertColumns, 4, 192, 64},
      {Llama4Shapes(), "language_model.model.layers.0.feed_forward.experts.down_proj",
       WeightForm::kExpertColumns, 4, 64, 96},
      {GptOssShapes(), "model.layers.0.mlp.experts.gate_up_proj", WeightForm::kExpertColumns, 4,
       128, 64},
      // A square, which its partner tells.
      {GptOssShapes(), "model.layers.0.mlp.experts.down_proj", WeightForm::kExpertColumns, 4, 64,
       64},
  };
  for (const auto& [model, name, form, matrices, rows, cols] : kExpected) {
    const TensorLayout layout = LayoutIn(model, name);
    EXPECT_EQ(layout.quantizable, Quantizability::kLinear) << name << ": " << layout.reason;
    EXPECT_EQ(layout.module, name);
    EXPECT_EQ(layout.kind, ModuleKind::kExpert);
    EXPECT_EQ(NameOf(layout.form), NameOf(form)) << name;
    EXPECT_EQ(layout.matrices, matrices) << name;
    EXPECT_EQ(layout.rows, rows) << name;
    EXPECT_EQ(layout.cols, cols) << name;
  }
}

TensorLayout ExpertsOf(const Shape& gate_up, const Shape& down, int64_t hidden,
                       const std::string& leaf, const std::string& model_type = "") {
  const Model model = ModelMaker(model_type, 1, hidden)
                          .Add("layers.0.mlp.experts.gate_up_proj", gate_up)
                          .Add("layers.0.mlp.experts.down_proj", down)
                          .Make();
  return LayoutIn(model, "layers.0.mlp.experts." + leaf);
}

// Experts [E, K, N] are split where no loader takes them as one tensor.
TEST(LayoutTest, TheFormatDecidesWhetherExpertsAreSplit) {
  const std::string experts = "layers.0.mlp.experts.";
  const struct {
    const char* model_type;
    WeightForm modelopt, compressed_tensors;
  } kExpected[] = {{"llama4", WeightForm::kExpertColumns, WeightForm::kTurnedExperts},
                   {"qwen3_vl_moe", WeightForm::kTurnedExperts, WeightForm::kTurnedExperts},
                   {"unheard_of", WeightForm::kTurnedExperts, WeightForm::kTurnedExperts},
                   {"gpt_oss", WeightForm::kExpertColumns, WeightForm::kExpertColumns}};
  for (const auto& [model_type, modelopt, compressed_tensors] : kExpected) {
    const Model model = ModelMaker(model_type, 1, 64)
                            .Add(experts + "gate_up_proj", {4, 64, 96})
                            .Add(experts + "down_proj", {4, 48, 64})
                            .Make();
    for (const char* leaf : {"gate_up_proj", "down_proj"}) {
      const TensorLayout one = LayoutIn(model, experts + leaf);
      const TensorLayout other = LayoutIn(model, experts + leaf, ExportFormat::kCompressedTensors);
      EXPECT_EQ(one.form, modelopt) << model_type;
      EXPECT_EQ(other.form, compressed_tensors) << model_type;
      EXPECT_EQ(one.rows, leaf == std::string("down_proj") ? 64 : 96);
      EXPECT_EQ(other.cols, leaf == std::string("down_proj") ? 48 : 64);
    }
  }
}

TEST(LayoutTest, SquareExpertsAreToldByTheirPartner) {
  // 2F = H: gate_up is a square both ways.
  for (const char* leaf : {"gate_up_proj", "down_proj"}) {
    EXPECT_EQ(ExpertsOf({2, 64, 64}, {2, 64, 32}, 64, leaf).form, WeightForm::kExpertRows);
    EXPECT_EQ(ExpertsOf({2, 64, 64}, {2, 32, 64}, 64, leaf).form, WeightForm::kTurnedExperts);
    // F = H: down is.
    EXPECT_EQ(ExpertsOf({2, 128, 64}, {2, 64, 64}, 64, leaf).form, WeightForm::kExpertRows);
    EXPECT_EQ(ExpertsOf({2, 64, 128}, {2, 64, 64}, 64, leaf).form, WeightForm::kTurnedExperts);
    // No hidden size.
    EXPECT_EQ(ExpertsOf({2, 96, 64}, {2, 64, 48}, 0, leaf).form, WeightForm::kExpertRows);
    EXPECT_EQ(ExpertsOf({2, 64, 96}, {2, 48, 64}, 0, leaf).form, WeightForm::kTurnedExperts);
  }
}

TEST(LayoutTest, DoesNotGuessTheOrientationOfExperts) {
  const auto unknown = [](const TensorLayout& layout) {
    EXPECT_EQ(layout.quantizable, Quantizability::kUnknown) << NameOf(layout.form);
    return layout.reason;
  };
  // A square alone; sizes that agree with neither; signs that contradict each other.
  const Model alone = ModelMaker("", 1, 64).Add("experts.down_proj", {2, 64, 64}).Make();
  EXPECT_THAT(unknown(LayoutIn(alone, "experts.down_proj")), HasSubstr("[2, 64, 64]"));
  unknown(ExpertsOf({2, 96, 80}, {2, 32, 32}, 64, "gate_up_proj"));
  unknown(ExpertsOf({2, 96, 64}, {2, 64, 48}, 96, "gate_up_proj"));
  // Odd rows of gate and up; rows in turn.
  EXPECT_THAT(unknown(ExpertsOf({2, 95, 64}, {2, 64, 47}, 64, "gate_up_proj")), HasSubstr("odd"));
  EXPECT_THAT(unknown(ExpertsOf({2, 64, 95}, {2, 47, 64}, 64, "gate_up_proj", "qwen3_vl_moe")),
              HasSubstr("odd"));
  EXPECT_THAT(unknown(ExpertsOf({2, 96, 64}, {2, 64, 48}, 64, "gate_up_proj", "gpt_oss")),
              HasSubstr("in turn"));
  // Projections of other names.
  const Model granite = ModelMaker("granitemoe", 1, 64)
                            .Add("model.layers.0.block_sparse_moe.input_linear.weight", {2, 96, 64})
                            .Make();
  unknown(LayoutIn(granite, "model.layers.0.block_sparse_moe.input_linear.weight"));
}

TEST(LayoutTest, SeparateProjectionsOfAllExpertsAreFused) {
  for (const bool turned : {false, true}) {
    const Shape shape = turned ? Shape{2, 64, 48} : Shape{2, 48, 64};
    const Model model = ModelMaker("", 1, 64)
                            .Add("layers.0.mlp.experts.gate_proj", shape)
                            .Add("layers.0.mlp.experts.up_proj", shape)
                            .Make();
    const TensorLayout gate = LayoutIn(model, "layers.0.mlp.experts.gate_proj");
    EXPECT_EQ(gate.form, turned ? WeightForm::kTurnedExperts : WeightForm::kExpertRows);
    EXPECT_EQ(gate.fused_group, "layers.0.mlp.experts.{gate,up}_proj");
    EXPECT_EQ(gate.fused_group, LayoutIn(model, "layers.0.mlp.experts.up_proj").fused_group);
  }
}

TEST(NamesModuleTest, AsksForTheModulesOwnLastName) {
  const std::string gate = "model.layers.0.mlp.gate", router = "model.layers.0.mlp.router";
  for (const char* pattern : {"*.mlp.gate", "*gate", "re:.*\\.gate", "re:.*[.]gate$", "gate",
                              "model.layers.0.mlp.gate"}) {
    EXPECT_TRUE(NamesModule(pattern, gate)) << pattern;
    EXPECT_FALSE(NamesModule(pattern, router)) << pattern;
  }
  for (const char* pattern : {"*", "*mlp*", "re:.*", "*gate*", "*delegate", "*_gate", "", "re:"}) {
    EXPECT_FALSE(NamesModule(pattern, gate)) << pattern;
  }
}

}  // namespace
}  // namespace nibble
