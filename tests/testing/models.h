// Names, types and shapes as models on the hub have them, a few layers of each and small.
#ifndef NIBBLE_TESTS_TESTING_MODELS_H_
#define NIBBLE_TESTS_TESTING_MODELS_H_

#include <string>
#include <vector>

#include "policies/model.h"
#include "policies/plan.h"
#include "policies/recipe.h"

namespace nibble::testing {

class ModelMaker {
 public:
  ModelMaker(std::string model_type, int64_t layers, int64_t hidden) {
    model_.model_type = std::move(model_type);
    model_.layers = layers;
    model_.hidden_size = hidden;
  }

  ModelMaker& Add(const std::string& name, std::vector<int64_t> shape, DType dtype = DType::kBf16) {
    model_.tensors.push_back({name, dtype, std::move(shape)});
    return *this;
  }
  // q, k, v and o, with grouped queries.
  ModelMaker& Attention(const std::string& at, int64_t h) {
    for (const char* name : {"q_proj", "o_proj"}) Add(at + "." + name + ".weight", {h, h});
    for (const char* name : {"k_proj", "v_proj"}) Add(at + "." + name + ".weight", {h / 2, h});
    return *this;
  }
  ModelMaker& Mlp(const std::string& at, int64_t h, int64_t f) {
    for (const char* name : {"gate_proj", "up_proj"}) Add(at + "." + name + ".weight", {f, h});
    return Add(at + ".down_proj.weight", {h, f});
  }
  ModelMaker& Norms(const std::string& at, int64_t h) {
    Add(at + ".input_layernorm.weight", {h});
    return Add(at + ".post_attention_layernorm.weight", {h});
  }
  ModelMaker& Ends(const std::string& at, int64_t h, const std::string& head = "lm_head") {
    Add(at + "embed_tokens.weight", {256, h});
    Add(at + "norm.weight", {h});
    return Add(head + ".weight", {256, h});
  }

  Model Make() const {
    Model model = model_;
    std::ranges::sort(model.tensors, {}, &ModelTensor::name);
    return model;
  }

 private:
  Model model_;
};

// Llama, Mistral, Qwen2 and Qwen3 (dense): `prefix` as in multimodal wrappers.
Model LlamaShapes(int layers = 2, const std::string& prefix = "model.");

Model MixtralShapes(int layers = 2, int experts = 3);

Model Qwen3MoeShapes(int layers = 2, int experts = 12);

// One dense layer, one of experts, and the layer after the last, for speculative decoding.
Model DeepSeekShapes();

// [E, H, 2F] and [E, F, H], and a vision tower.
Model Llama4Shapes();

// As transformers holds it after taking MXFP4 apart; the sizes are all one.
Model GptOssShapes();

// Qwen3.5-MoE: [E, 2F, H] and [E, H, F], linear attention, vision, MTP.
Model FusedExpertsShapes();

RecipeRule RuleOf(std::vector<std::string> match, RuleUse use);

// Everything, then nothing of `keep`.
Recipe RecipeKeeping(const std::vector<std::string>& keep);

// What the shipped recipes keep, as far as the models above need it.
Recipe DefaultRecipe();

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_MODELS_H_
