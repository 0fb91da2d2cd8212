#include "tests/testing/model_folders.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "tests/testing/temp_dir.h"

namespace nibble::testing {
namespace {

nlohmann::ordered_json Config(const ModelSize& size, const std::string& type,
                              const std::string& architecture) {
  nlohmann::ordered_json config;
  config["architectures"] = {architecture};
  config["model_type"] = type;
  config["hidden_size"] = size.hidden;
  config["intermediate_size"] = size.intermediate;
  config["num_hidden_layers"] = size.layers;
  config["num_attention_heads"] = size.heads;
  config["num_key_value_heads"] = size.kv_heads;
  config["head_dim"] = size.head();
  config["hidden_act"] = "silu";
  config["max_position_embeddings"] = 128;
  config["vocab_size"] = size.vocabulary;
  config["rms_norm_eps"] = 1e-05;
  config["rope_theta"] = 10000.0;
  config["attention_bias"] = false;
  config["tie_word_embeddings"] = false;
  config["torch_dtype"] = "bfloat16";
  return config;
}

// Of a language model beside a tower.
nlohmann::ordered_json WithTower(const std::string& type, const std::string& architecture,
                                 const nlohmann::ordered_json& text,
                                 const nlohmann::ordered_json& vision) {
  return {{"architectures", nlohmann::ordered_json::array({architecture})},
          {"model_type", type},
          {"text_config", text},
          {"vision_config", vision},
          {"tie_word_embeddings", false}};
}

void AddAttention(ModelOnPaper& model, const ModelSize& s, const std::string& p) {
  model.AddWeight(p + ".self_attn.q_proj.weight", {s.heads * s.head(), s.hidden}, s.dtype);
  model.AddWeight(p + ".self_attn.k_proj.weight", {s.kv_heads * s.head(), s.hidden}, s.dtype);
  model.AddWeight(p + ".self_attn.v_proj.weight", {s.kv_heads * s.head(), s.hidden}, s.dtype);
  model.AddWeight(p + ".self_attn.o_proj.weight", {s.hidden, s.heads * s.head()}, s.dtype);
}

void AddNorms(ModelOnPaper& model, const ModelSize& s, const std::string& p) {
  model.AddOnes(p + ".input_layernorm.weight", {s.hidden}, s.dtype);
  model.AddOnes(p + ".post_attention_layernorm.weight", {s.hidden}, s.dtype);
}

void AddGatedMlp(ModelOnPaper& model, const ModelSize& s, const std::string& p,
                 int64_t intermediate) {
  model.AddWeight(p + ".gate_proj.weight", {intermediate, s.hidden}, s.dtype);
  model.AddWeight(p + ".up_proj.weight", {intermediate, s.hidden}, s.dtype);
  model.AddWeight(p + ".down_proj.weight", {s.hidden, intermediate}, s.dtype);
}

void AddEnds(ModelOnPaper& model, const ModelSize& s, const std::string& p,
             const std::string& head = "lm_head") {
  model.AddWeight(p + ".embed_tokens.weight", {s.vocabulary, s.hidden}, s.dtype);
  model.AddOnes(p + ".norm.weight", {s.hidden}, s.dtype);
  if (!head.empty()) model.AddWeight(head + ".weight", {s.vocabulary, s.hidden}, s.dtype);
}

std::string Layer(const std::string& root, int64_t i) { return absl::StrCat(root, ".layers.", i); }

}  // namespace

Tensor& ModelOnPaper::at(const std::string& name) {
  for (Tensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  ADD_FAILURE() << "no tensor " << name;
  static Tensor none;
  return none;
}

bool ModelOnPaper::Has(const std::string& name) const {
  return std::any_of(tensors.begin(), tensors.end(),
                     [&](const Tensor& tensor) { return tensor.name == name; });
}

void ModelOnPaper::Remove(const std::string& name) {
  std::erase_if(tensors, [&](const Tensor& tensor) { return tensor.name == name; });
}

void ModelOnPaper::Fill(const std::string& name, const std::function<float(int64_t)>& value) {
  Tensor& tensor = at(name);
  std::vector<float> values(*ElementCount(tensor.shape));
  for (size_t i = 0; i < values.size(); ++i) values[i] = value(static_cast<int64_t>(i));
  tensor.bytes = ToBytes(values, tensor.dtype);
}

void ModelOnPaper::FillZero(const std::string& name) {
  Fill(name, [](int64_t) { return 0.0f; });
}

void ModelOnPaper::AddWeight(const std::string& name, const Shape& shape, DType dtype) {
  const uint64_t seed = 1000 + tensors.size();
  std::vector<float> values =
      SyntheticValues(Distribution::kWeightLike, *ElementCount(shape), seed);
  const float spread = 0.5f + 0.25f * static_cast<float>(seed % 7);
  for (float& value : values) value *= spread;
  tensors.push_back(TensorOf(name, dtype, shape, values));
}

void ModelOnPaper::AddOnes(const std::string& name, const Shape& shape, DType dtype) {
  tensors.push_back(TensorOf(name, dtype, shape, std::vector<float>(*ElementCount(shape), 1.0f)));
}

ModelOnPaper LlamaModel(const ModelSize& s, bool tied) {
  ModelOnPaper model;
  model.config = Config(s, "llama", "LlamaForCausalLM");
  model.config["tie_word_embeddings"] = tied;
  model.config["mlp_bias"] = false;
  model.shards = s.shards;
  AddEnds(model, s, "model", tied ? "" : "lm_head");
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string p = Layer("model", i);
    AddAttention(model, s, p);
    AddGatedMlp(model, s, p + ".mlp", s.intermediate);
    AddNorms(model, s, p);
  }
  return model;
}

ModelOnPaper Qwen3MoeModel(const ModelSize& s) {
  ModelOnPaper model;
  model.config = Config(s, "qwen3_moe", "Qwen3MoeForCausalLM");
  model.config["num_experts"] = s.experts;
  model.config["num_experts_per_tok"] = 2;
  model.config["moe_intermediate_size"] = s.expert_intermediate;
  model.config["decoder_sparse_step"] = 1;
  model.config["mlp_only_layers"] = nlohmann::ordered_json::array();
  model.config["norm_topk_prob"] = true;
  model.shards = s.shards;
  AddEnds(model, s, "model");
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string p = Layer("model", i);
    AddAttention(model, s, p);
    model.AddOnes(p + ".self_attn.q_norm.weight", {s.head()}, s.dtype);
    model.AddOnes(p + ".self_attn.k_norm.weight", {s.head()}, s.dtype);
    model.AddWeight(p + ".mlp.gate.weight", {s.experts, s.hidden}, s.dtype);
    for (int64_t e = 0; e < s.experts; ++e) {
      AddGatedMlp(model, s, absl::StrCat(p, ".mlp.experts.", e), s.expert_intermediate);
    }
    AddNorms(model, s, p);
  }
  const std::string dead =
      absl::StrCat("model.layers.", s.layers - 1, ".mlp.experts.", s.experts - 1);
  for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
    model.FillZero(absl::StrCat(dead, ".", projection, ".weight"));
  }
  return model;
}

ModelOnPaper ExpertRowsModel(const ModelSize& s) {
  ModelOnPaper model;
  model.config = Config(s, "qwen3_5_moe", "Qwen3_5MoeForCausalLM");
  model.config["num_experts"] = s.experts;
  model.config["moe_intermediate_size"] = s.expert_intermediate;
  model.config["shared_expert_intermediate_size"] = s.expert_intermediate;
  model.shards = s.shards;
  AddEnds(model, s, "model");
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string p = Layer("model", i);
    AddAttention(model, s, p);
    model.AddWeight(p + ".mlp.gate.weight", {s.experts, s.hidden}, s.dtype);
    model.AddWeight(p + ".mlp.experts.gate_up_proj",
                    {s.experts, 2 * s.expert_intermediate, s.hidden}, s.dtype);
    model.AddWeight(p + ".mlp.experts.down_proj", {s.experts, s.hidden, s.expert_intermediate},
                    s.dtype);
    AddGatedMlp(model, s, p + ".mlp.shared_expert", s.expert_intermediate);
    model.AddWeight(p + ".mlp.shared_expert_gate.weight", {1, s.hidden}, s.dtype);
    AddNorms(model, s, p);
  }
  return model;
}

ModelOnPaper Qwen3VlMoeModel(const ModelSize& s) {
  ModelOnPaper model;
  nlohmann::ordered_json text = Config(s, "qwen3_vl_moe_text", "Qwen3VLMoeForCausalLM");
  text["num_experts"] = s.experts;
  text["num_experts_per_tok"] = 2;
  text["moe_intermediate_size"] = s.expert_intermediate;
  text["norm_topk_prob"] = true;
  text["decoder_sparse_step"] = 1;
  text["mlp_only_layers"] = nlohmann::ordered_json::array();
  model.config = WithTower("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", text,
                           {{"model_type", "qwen3_vl_moe"}, {"hidden_size", 32}});
  model.shards = s.shards;
  AddEnds(model, s, "model.language_model", "lm_head");
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string p = Layer("model.language_model", i);
    AddAttention(model, s, p);
    for (const char* name : {"q_norm", "k_norm"}) {
      model.AddOnes(absl::StrCat(p, ".self_attn.", name, ".weight"), {s.head()}, s.dtype);
    }
    model.AddWeight(p + ".mlp.gate.weight", {s.experts, s.hidden}, s.dtype);
    model.AddWeight(p + ".mlp.experts.gate_up_proj",
                    {s.experts, s.hidden, 2 * s.expert_intermediate}, s.dtype);
    model.AddWeight(p + ".mlp.experts.down_proj", {s.experts, s.expert_intermediate, s.hidden},
                    s.dtype);
    AddNorms(model, s, p);
  }
  model.AddWeight("model.visual.blocks.0.attn.qkv.weight", {96, 32}, s.dtype);
  return model;
}

ModelOnPaper Llama4Model(const ModelSize& s) {
  ModelOnPaper model;
  nlohmann::ordered_json text = Config(s, "llama4_text", "Llama4ForCausalLM");
  text["num_local_experts"] = s.experts;
  text["intermediate_size"] = s.expert_intermediate;
  text["intermediate_size_mlp"] = s.intermediate;
  text["interleave_moe_layer_step"] = 1;
  model.config = WithTower("llama4", "Llama4ForConditionalGeneration", text,
                           {{"model_type", "llama4_vision_model"},
                            {"hidden_size", 32},
                            {"intermediate_size", 32},
                            {"num_attention_heads", 2},
                            {"num_hidden_layers", 1},
                            {"vision_output_dim", 32}});
  model.shards = s.shards;
  AddEnds(model, s, "language_model.model", "language_model.lm_head");
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string p = Layer("language_model.model", i);
    AddAttention(model, s, p);
    model.AddWeight(p + ".feed_forward.router.weight", {s.experts, s.hidden}, s.dtype);
    model.AddWeight(p + ".feed_forward.experts.gate_up_proj",
                    {s.experts, s.hidden, 2 * s.expert_intermediate}, s.dtype);
    model.AddWeight(p + ".feed_forward.experts.down_proj",
                    {s.experts, s.expert_intermediate, s.hidden}, s.dtype);
    AddGatedMlp(model, s, p + ".feed_forward.shared_expert", s.expert_intermediate);
    AddNorms(model, s, p);
  }
  model.AddWeight("multi_modal_projector.linear_1.weight", {s.hidden, 32}, s.dtype);
  for (const char* name : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"}) {
    model.AddWeight(absl::StrCat("vision_model.model.layers.0.", name, ".weight"), {32, 32},
                    s.dtype);
  }
  return model;
}

ModelOnPaper GptOssModel(const ModelSize& s) {
  ModelOnPaper model;
  model.config = Config(s, "gpt_oss", "GptOssForCausalLM");
  model.config["num_local_experts"] = s.experts;
  model.config["intermediate_size"] = s.expert_intermediate;
  model.shards = s.shards;
  AddEnds(model, s, "model");
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string p = Layer("model", i);
    AddAttention(model, s, p);
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      const int64_t rows = model.at(absl::StrCat(p, ".self_attn.", name, ".weight")).shape[0];
      model.AddWeight(absl::StrCat(p, ".self_attn.", name, ".bias"), {rows}, s.dtype);
    }
    model.AddWeight(p + ".self_attn.sinks", {s.heads}, s.dtype);
    model.AddWeight(p + ".mlp.router.weight", {s.experts, s.hidden}, s.dtype);
    model.AddWeight(p + ".mlp.router.bias", {s.experts}, s.dtype);
    model.AddWeight(p + ".mlp.experts.gate_up_proj",
                    {s.experts, s.hidden, 2 * s.expert_intermediate}, s.dtype);
    model.AddWeight(p + ".mlp.experts.gate_up_proj_bias", {s.experts, 2 * s.expert_intermediate},
                    s.dtype);
    model.AddWeight(p + ".mlp.experts.down_proj", {s.experts, s.expert_intermediate, s.hidden},
                    s.dtype);
    model.AddWeight(p + ".mlp.experts.down_proj_bias", {s.experts, s.hidden}, s.dtype);
    AddNorms(model, s, p);
  }
  return model;
}

ModelOnPaper MixtralModel(const ModelSize& s) {
  ModelOnPaper model;
  model.config = Config(s, "mixtral", "MixtralForCausalLM");
  model.config["num_local_experts"] = s.experts;
  model.config["num_experts_per_tok"] = 2;
  model.shards = s.shards;
  AddEnds(model, s, "model");
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string p = Layer("model", i);
    AddAttention(model, s, p);
    model.AddWeight(p + ".block_sparse_moe.gate.weight", {s.experts, s.hidden}, s.dtype);
    for (int64_t e = 0; e < s.experts; ++e) {
      const std::string expert = absl::StrCat(p, ".block_sparse_moe.experts.", e);
      model.AddWeight(expert + ".w1.weight", {s.intermediate, s.hidden}, s.dtype);
      model.AddWeight(expert + ".w2.weight", {s.hidden, s.intermediate}, s.dtype);
      model.AddWeight(expert + ".w3.weight", {s.intermediate, s.hidden}, s.dtype);
    }
    AddNorms(model, s, p);
  }
  return model;
}

ModelOnPaper DeepseekModel(const ModelSize& s) {
  constexpr int64_t kRope = 16, kNope = 16, kV = 16;
  const int64_t q_rank = s.hidden * 3 / 4, kv_rank = s.hidden / 2;
  ModelOnPaper model;
  model.config = Config(s, "deepseek_v3", "DeepseekV3ForCausalLM");
  model.config["n_routed_experts"] = s.experts;
  model.config["n_shared_experts"] = 1;
  model.config["moe_intermediate_size"] = s.expert_intermediate;
  model.config["first_k_dense_replace"] = 1;
  model.config["q_lora_rank"] = q_rank;
  model.config["kv_lora_rank"] = kv_rank;
  model.config["qk_rope_head_dim"] = kRope;
  model.config["head_dim"] = kRope;
  model.config["qk_nope_head_dim"] = kNope;
  model.config["v_head_dim"] = kV;
  model.config["num_key_value_heads"] = s.heads;
  model.config["num_experts_per_tok"] = 2;
  model.config["n_group"] = 1;
  model.config["topk_group"] = 1;
  model.config["topk_method"] = "noaux_tc";
  model.config["scoring_func"] = "sigmoid";
  model.config["num_nextn_predict_layers"] = 1;
  model.shards = s.shards;
  AddEnds(model, s, "model");
  for (int64_t i = 0; i <= s.layers; ++i) {
    const std::string p = Layer("model", i), attention = p + ".self_attn.";
    model.AddWeight(attention + "q_a_proj.weight", {q_rank, s.hidden}, s.dtype);
    model.AddOnes(attention + "q_a_layernorm.weight", {q_rank}, s.dtype);
    model.AddWeight(attention + "q_b_proj.weight", {s.heads * (kNope + kRope), q_rank}, s.dtype);
    model.AddWeight(attention + "kv_a_proj_with_mqa.weight", {kv_rank + kRope, s.hidden}, s.dtype);
    model.AddOnes(attention + "kv_a_layernorm.weight", {kv_rank}, s.dtype);
    model.AddWeight(attention + "kv_b_proj.weight", {s.heads * (kNope + kV), kv_rank}, s.dtype);
    model.AddWeight(attention + "o_proj.weight", {s.hidden, s.heads * kV}, s.dtype);
    if (i == 0) {
      AddGatedMlp(model, s, p + ".mlp", s.intermediate);
    } else {
      model.AddWeight(p + ".mlp.gate.weight", {s.experts, s.hidden}, s.dtype);
      model.AddWeight(p + ".mlp.gate.e_score_correction_bias", {s.experts}, DType::kF32);
      for (int64_t e = 0; e < s.experts; ++e) {
        AddGatedMlp(model, s, absl::StrCat(p, ".mlp.experts.", e), s.expert_intermediate);
      }
      AddGatedMlp(model, s, p + ".mlp.shared_experts", s.expert_intermediate);
    }
    AddNorms(model, s, p);
    if (i == s.layers) {
      model.AddOnes(p + ".enorm.weight", {s.hidden}, s.dtype);
      model.AddOnes(p + ".hnorm.weight", {s.hidden}, s.dtype);
      model.AddWeight(p + ".eh_proj.weight", {s.hidden, 2 * s.hidden}, s.dtype);
      model.AddOnes(p + ".shared_head.norm.weight", {s.hidden}, s.dtype);
    }
  }
  return model;
}

ModelOnPaper OddNamesModel(ModelSize s) {
  s.layers = 12;
  s.hidden = 32;
  s.intermediate = 48;
  s.heads = 2;
  ModelOnPaper model = LlamaModel(s);
  for (int64_t i = 0; i < s.layers; ++i) {
    model.AddWeight(absl::StrCat("model.layers.", i, ".mlp.gate.weight"), {4, s.hidden}, s.dtype);
  }
  model.AddWeight("model.\xC3\xA9tage \"deux\".proj.weight", {16, 32}, s.dtype);
  model.AddWeight("model.layers.3.self_attn.rotary table", {8, 8}, s.dtype);
  return model;
}

std::string ShardName(int shard, int of) {
  if (of == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05d-of-%05d.safetensors", shard + 1, of);
  return name;
}

void WriteModelFolder(const std::string& path, const ModelOnPaper& model) {
  std::filesystem::create_directories(path);
  PutFile(path + "/config.json", model.config.dump(2) + "\n");
  PutFile(path + "/generation_config.json", "{\"do_sample\": true, \"top_k\": 20}\n");
  PutFile(path + "/tokenizer.json", "{\"version\": \"1.0\", \"added_tokens\": []}\n");
  PutFile(path + "/tokenizer_config.json", "{\"model_max_length\": 128}\n");
  PutFile(path + "/README.md", "# A model that was made up\n");
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  uint64_t total = 0;
  for (int shard = 0; shard < model.shards; ++shard) {
    std::vector<Tensor> part;
    for (size_t i = shard; i < model.tensors.size(); i += model.shards) {
      part.push_back(model.tensors[i]);
      map[model.tensors[i].name] = ShardName(shard, model.shards);
      total += model.tensors[i].bytes.size();
    }
    Write(path + "/" + ShardName(shard, model.shards), part, {{"format", "pt"}});
  }
  if (model.shards == 1) return;
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  PutFile(path + "/model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace nibble::testing
