#include "tests/testing/models.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace nibble::testing {

Model LlamaShapes(int layers, const std::string& prefix) {
  ModelMaker m("llama", layers, 64);
  m.Ends(prefix, 64);
  for (int i = 0; i < layers; ++i) {
    const std::string at = absl::StrCat(prefix, "layers.", i);
    m.Attention(at + ".self_attn", 64).Mlp(at + ".mlp", 64, 128).Norms(at, 64);
  }
  return m.Make();
}

Model MixtralShapes(int layers, int experts) {
  ModelMaker m("mixtral", layers, 64);
  m.Ends("model.", 64);
  for (int i = 0; i < layers; ++i) {
    const std::string at = absl::StrCat("model.layers.", i), moe = at + ".block_sparse_moe";
    m.Attention(at + ".self_attn", 64).Norms(at, 64).Add(moe + ".gate.weight", {experts, 64});
    for (int e = 0; e < experts; ++e) {
      const std::string expert = absl::StrCat(moe, ".experts.", e);
      m.Add(expert + ".w1.weight", {96, 64}).Add(expert + ".w3.weight", {96, 64});
      m.Add(expert + ".w2.weight", {64, 96});
    }
  }
  return m.Make();
}

Model Qwen3MoeShapes(int layers, int experts) {
  ModelMaker m("qwen3_moe", layers, 64);
  m.Ends("model.", 64);
  for (int i = 0; i < layers; ++i) {
    const std::string at = absl::StrCat("model.layers.", i);
    m.Attention(at + ".self_attn", 64).Norms(at, 64);
    m.Add(at + ".self_attn.q_norm.weight", {32}).Add(at + ".self_attn.k_norm.weight", {32});
    m.Add(at + ".mlp.gate.weight", {experts, 64});
    m.Add(at + ".mlp.shared_expert_gate.weight", {1, 64});
    m.Mlp(at + ".mlp.shared_expert", 64, 96);
    for (int e = 0; e < experts; ++e) m.Mlp(absl::StrCat(at, ".mlp.experts.", e), 64, 48);
  }
  return m.Make();
}

Model DeepSeekShapes() {
  ModelMaker m("deepseek_v3", 2, 64);
  m.Ends("model.", 64);
  for (int i = 0; i < 3; ++i) {
    const std::string at = absl::StrCat("model.layers.", i), attn = at + ".self_attn";
    m.Norms(at, 64);
    m.Add(attn + ".q_a_proj.weight", {32, 64}).Add(attn + ".q_a_layernorm.weight", {32});
    m.Add(attn + ".q_b_proj.weight", {96, 32});
    m.Add(attn + ".kv_a_proj_with_mqa.weight", {40, 64});
    m.Add(attn + ".kv_a_layernorm.weight", {32}).Add(attn + ".kv_b_proj.weight", {128, 32});
    m.Add(attn + ".o_proj.weight", {64, 64});
    if (i == 0) {
      m.Mlp(at + ".mlp", 64, 128);
      continue;
    }
    m.Add(at + ".mlp.gate.weight", {4, 64});
    m.Add(at + ".mlp.gate.e_score_correction_bias", {4}, DType::kF32);
    m.Mlp(at + ".mlp.shared_experts", 64, 32);
    for (int e = 0; e < 4; ++e) m.Mlp(absl::StrCat(at, ".mlp.experts.", e), 64, 32);
  }
  m.Add("model.layers.2.eh_proj.weight", {64, 128}).Add("model.layers.2.enorm.weight", {64});
  m.Add("model.layers.2.hnorm.weight", {64});
  m.Add("model.layers.2.embed_tokens.weight", {256, 64});
  m.Add("model.layers.2.shared_head.head.weight", {256, 64});
  m.Add("model.layers.2.shared_head.norm.weight", {64});
  return m.Make();
}

Model Llama4Shapes() {
  ModelMaker m("llama4", 1, 64);
  m.Ends("language_model.model.", 64, "language_model.lm_head");
  const std::string at = "language_model.model.layers.0", moe = at + ".feed_forward";
  m.Attention(at + ".self_attn", 64).Norms(at, 64).Add(moe + ".router.weight", {4, 64});
  m.Mlp(moe + ".shared_expert", 64, 96);
  m.Add(moe + ".experts.gate_up_proj", {4, 64, 192}).Add(moe + ".experts.down_proj", {4, 96, 64});
  m.Add("multi_modal_projector.linear_1.weight", {64, 48});
  m.Add("vision_model.class_embedding", {32}).Add("vision_model.positional_embedding_vlm", {9, 32});
  m.Add("vision_model.patch_embedding.linear.weight", {32, 588});
  m.Attention("vision_model.model.layers.0.self_attn", 32);
  m.Add("vision_model.vision_adapter.mlp.fc1.weight", {64, 32});
  return m.Make();
}

Model GptOssShapes() {
  ModelMaker m("gpt_oss", 1, 64);
  m.Ends("model.", 64);
  const std::string at = "model.layers.0", experts = at + ".mlp.experts";
  m.Attention(at + ".self_attn", 64).Norms(at, 64).Add(at + ".self_attn.sinks", {4});
  m.Add(at + ".self_attn.q_proj.bias", {64});
  m.Add(at + ".mlp.router.weight", {4, 64}).Add(at + ".mlp.router.bias", {4});
  m.Add(experts + ".gate_up_proj", {4, 64, 128}).Add(experts + ".gate_up_proj_bias", {4, 128});
  m.Add(experts + ".down_proj", {4, 64, 64}).Add(experts + ".down_proj_bias", {4, 64});
  return m.Make();
}

Model FusedExpertsShapes() {
  ModelMaker m("qwen3_5_moe", 2, 64);
  const std::string prefix = "model.language_model.";
  m.Ends(prefix, 64);
  for (int i = 0; i < 2; ++i) {
    const std::string at = absl::StrCat(prefix, "layers.", i), mix = at + ".linear_attn";
    m.Norms(at, 64).Add(at + ".mlp.gate.weight", {4, 64});
    m.Add(at + ".mlp.experts.gate_up_proj", {4, 96, 64});
    m.Add(at + ".mlp.experts.down_proj", {4, 64, 48});
    m.Mlp(at + ".mlp.shared_expert", 64, 48).Add(at + ".mlp.shared_expert_gate.weight", {1, 64});
    if (i == 1) {
      m.Attention(at + ".self_attn", 64);
      continue;
    }
    m.Add(mix + ".A_log", {4}, DType::kF32).Add(mix + ".dt_bias", {4});
    m.Add(mix + ".conv1d.weight", {96, 1, 4}).Add(mix + ".norm.weight", {16});
    m.Add(mix + ".in_proj_qkv.weight", {96, 64}).Add(mix + ".in_proj_z.weight", {64, 64});
    m.Add(mix + ".in_proj_a.weight", {4, 64}).Add(mix + ".in_proj_b.weight", {4, 64});
    m.Add(mix + ".out_proj.weight", {64, 64});
  }
  m.Add("mtp.fc.weight", {64, 128}).Add("mtp.norm.weight", {64});
  m.Mlp("mtp.layers.0.mlp.experts.0", 64, 48).Add("mtp.layers.0.mlp.gate.weight", {4, 64});
  m.Add("model.visual.patch_embed.proj.weight", {32, 3, 2, 14, 14});
  m.Add("model.visual.pos_embed.weight", {64, 32});
  m.Add("model.visual.blocks.1.attn.qkv.weight", {96, 32});
  m.Add("model.visual.merger.linear_fc1.weight", {64, 64});
  return m.Make();
}

RecipeRule RuleOf(std::vector<std::string> match, RuleUse use) {
  RecipeRule rule;
  rule.match = std::move(match);
  rule.use = use;
  return rule;
}

Recipe RecipeKeeping(const std::vector<std::string>& keep) {
  Recipe recipe;
  recipe.name = "test";
  recipe.rules.push_back(RuleOf({"*"}, RuleUse::kQuantize));
  if (!keep.empty()) recipe.rules.push_back(RuleOf(keep, RuleUse::kKeep));
  return recipe;
}

Recipe DefaultRecipe() {
  Recipe recipe = RecipeKeeping({"*lm_head*", "*linear_attn.in_proj_a", "*linear_attn.in_proj_b"});
  RecipeRule kinds = RuleOf({}, RuleUse::kKeep);
  kinds.kinds = {ModuleKind::kVision, ModuleKind::kMtp};
  recipe.rules.push_back(kinds);
  return recipe;
}

}  // namespace nibble::testing
