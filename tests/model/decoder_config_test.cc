#include "model/decoder_config.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using Json = nlohmann::json;
using ::nibble::testing::IsError;
using ::nibble::testing::kDataLoss;
using ::nibble::testing::kUnimplemented;

Json Base(const std::string& architecture) {
  return {{"architectures", {architecture}}, {"hidden_size", 64},   {"intermediate_size", 96},
          {"num_hidden_layers", 4},          {"vocab_size", 100},   {"num_attention_heads", 4},
          {"num_key_value_heads", 2},        {"hidden_act", "silu"}};
}

Json With(Json json, const Json& changes) {
  json.update(changes);
  return json;
}

absl::StatusOr<DecoderConfig> Read(const Json& json) { return ReadDecoderConfig(json.dump()); }

TEST(DecoderConfigTest, WhatTransformersTakesForAbsentKeys) {
  const DecoderConfig llama = Read(Base("LlamaForCausalLM")).value();
  EXPECT_EQ(llama.head_dim, 16);
  EXPECT_EQ(llama.rms_norm_eps, 1e-6);
  EXPECT_EQ(llama.rope, RopeParams{});
  EXPECT_EQ(llama.window, std::vector<int64_t>(4, 0));
  EXPECT_FALSE(llama.tied_embeddings || llama.qkv_bias || llama.o_bias || llama.mlp_bias);

  Json no_kv = Base("LlamaForCausalLM");
  no_kv.erase("num_key_value_heads");
  EXPECT_EQ(Read(no_kv)->kv_heads, 4);

  const DecoderConfig mistral = Read(Base("MistralForCausalLM")).value();
  EXPECT_EQ(mistral.window, std::vector<int64_t>(4, 4096));
  EXPECT_EQ(Read(With(Base("MistralForCausalLM"), {{"sliding_window", nullptr}}))->window,
            std::vector<int64_t>(4, 0));

  const DecoderConfig qwen2 = Read(Base("Qwen2ForCausalLM")).value();
  EXPECT_TRUE(qwen2.qkv_bias && !qwen2.o_bias);

  const DecoderConfig qwen3 = Read(Base("Qwen3ForCausalLM")).value();
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_EQ(qwen3.head_dim, 128);

  const DecoderConfig mixtral = Read(Base("MixtralForCausalLM")).value();
  EXPECT_EQ(mixtral.rms_norm_eps, 1e-5);
  EXPECT_EQ(mixtral.rope.theta, 1e6);
  EXPECT_EQ(mixtral.experts, 8);
  EXPECT_EQ(mixtral.experts_per_token, 2);
  EXPECT_EQ(mixtral.expert_intermediate, 96);
  EXPECT_TRUE(mixtral.normalize_routing);

  const DecoderConfig moe = Read(Base("Qwen3MoeForCausalLM")).value();
  EXPECT_EQ(moe.experts, 128);
  EXPECT_EQ(moe.expert_intermediate, 768);
  EXPECT_FALSE(moe.normalize_routing);
}

TEST(DecoderConfigTest, BothSpellingsOfRope) {
  const Json yarn = {{"factor", 4.0}, {"original_max_position_embeddings", 512}};
  const Json old_keys =
      With(Base("LlamaForCausalLM"),
           {{"rope_theta", 5e5}, {"rope_scaling", With(yarn, {{"type", "yarn"}})}});
  const Json new_keys =
      With(Base("LlamaForCausalLM"),
           {{"rope_parameters", With(yarn, {{"rope_type", "yarn"}, {"rope_theta", 5e5}})}});
  const RopeParams rope = Read(old_keys)->rope;
  EXPECT_EQ(rope.type, RopeType::kYarn);
  EXPECT_EQ(rope.theta, 5e5);
  EXPECT_EQ(rope.factor, 4);
  EXPECT_EQ(rope.original_positions, 512);
  EXPECT_EQ(Read(new_keys)->rope, rope);
  EXPECT_EQ(
      Read(With(old_keys, {{"original_max_position_embeddings", 256}}))->rope.original_positions,
      256);
}

TEST(DecoderConfigTest, WindowsOfQwen) {
  const Json windowed =
      With(Base("Qwen2ForCausalLM"),
           {{"use_sliding_window", true}, {"sliding_window", 9}, {"max_window_layers", 3}});
  EXPECT_EQ(Read(windowed)->window, (std::vector<int64_t>{0, 0, 0, 9}));
  EXPECT_EQ(Read(With(windowed, {{"use_sliding_window", false}}))->window,
            std::vector<int64_t>(4, 0));
  const std::vector<std::string> types = {"sliding_attention", "full_attention",
                                          "sliding_attention", "full_attention"};
  EXPECT_EQ(Read(With(windowed, {{"layer_types", types}}))->window,
            (std::vector<int64_t>{9, 0, 9, 0}));
  EXPECT_TRUE(IsError(Read(With(windowed, {{"layer_types", types}, {"use_sliding_window", false}})),
                      kDataLoss,
                      "layer_types: expected full_attention where there is no sliding_window"));
  EXPECT_TRUE(IsError(Read(With(windowed, {{"layer_types", {"full_attention"}}})), kDataLoss,
                      "a list of 4 names"));
  // All layers of a Mistral are alike.
  EXPECT_TRUE(IsError(Read(With(Base("MistralForCausalLM"), {{"layer_types", types}})),
                      kUnimplemented, "layer_types"));
}

TEST(DecoderConfigTest, SparseLayersOfQwen3Moe) {
  const Json json = With(Base("Qwen3MoeForCausalLM"), {{"decoder_sparse_step", 2}});
  EXPECT_EQ(Read(json)->has_experts, (std::vector<bool>{false, true, false, true}));
  EXPECT_EQ(Read(With(json, {{"mlp_only_layers", {3, 99}}}))->has_experts,
            (std::vector<bool>{false, true, false, false}));
  EXPECT_EQ(Read(With(json, {{"num_experts", 0}}))->has_experts, std::vector<bool>(4, false));
}

TEST(DecoderConfigTest, NamesWhatIsNotSupported) {
  const struct {
    Json json;
    std::string piece;
  } kCases[] = {
      {Base("GemmaForCausalLM"),
       "architectures: expected LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, "
       "Qwen3ForCausalLM, MixtralForCausalLM or Qwen3MoeForCausalLM, got \"GemmaForCausalLM\""},
      {With(Base("LlamaForCausalLM"), {{"hidden_act", "gelu"}}),
       "hidden_act: expected silu, got \"gelu\""},
      {With(Base("LlamaForCausalLM"), {{"rope_scaling", {{"rope_type", "longrope"}}}}),
       "rope_scaling: rope_type: expected default, linear, llama3 or yarn, got \"longrope\""},
      {With(Base("LlamaForCausalLM"), {{"partial_rotary_factor", 0.5}}), "partial_rotary_factor"},
      {With(Base("Qwen2ForCausalLM"),
            {{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}}),
       "rope_parameters: expected one for all layers, got \"full_attention\""},
      {With(Base("Qwen2ForCausalLM"),
            {{"layer_types", std::vector<std::string>(4, "linear_attention")}}),
       "layer_types"},
  };
  for (const auto& [json, piece] : kCases) {
    EXPECT_TRUE(IsError(Read(json), kUnimplemented, piece));
  }
}

TEST(DecoderConfigTest, RefusesValuesOfNoModel) {
  const Json llama = Base("LlamaForCausalLM");
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size",
                          "num_attention_heads"}) {
    Json without = llama;
    without.erase(key);
    EXPECT_TRUE(IsError(Read(without), kDataLoss, std::string(key) + ": expected an integer"));
    for (const Json& value : {Json(-1), Json(0), Json(1.5), Json("64"), Json(uint64_t{1} << 63),
                              Json(int64_t{1} << 40), Json(-(int64_t{1} << 62)), Json::array()}) {
      EXPECT_TRUE(IsError(Read(With(llama, {{key, value}})), kDataLoss,
                          std::string("config.json: ") + key + ": expected an integer from 1 to"))
          << value;
    }
  }
  const struct {
    Json changes;
    std::string piece;
  } kCases[] = {
      {{{"num_key_value_heads", 3}}, "num_key_value_heads: expected a divisor of the 4 heads"},
      {{{"num_attention_heads", 6}, {"num_key_value_heads", 6}}, "divisor of hidden_size 64"},
      {{{"head_dim", 7}}, "head_dim: expected an even number, got 7"},
      {{{"head_dim", 0}}, "head_dim: expected an integer from 2"},
      {{{"num_attention_heads", 65536}, {"num_key_value_heads", 1}, {"head_dim", 65536}},
       "heads times head_dim"},
      {{{"rms_norm_eps", -1e-6}}, "rms_norm_eps: expected a number above 0"},
      {{{"rms_norm_eps", "small"}}, "rms_norm_eps: expected a number"},
      {{{"rope_theta", 0}}, "rope_theta: expected a number above 1"},
      {{{"tie_word_embeddings", "yes"}}, "tie_word_embeddings: expected true or false"},
      {{{"attention_bias", 1}}, "attention_bias"},
      {{{"hidden_act", 3}}, "hidden_act: expected a string"},
      {{{"architectures", Json::array()}}, "architectures: expected a list of one name"},
      {{{"architectures", "LlamaForCausalLM"}}, "architectures: expected a list of one name"},
      {{{"rope_scaling", {{"type", "linear"}}}}, "factor: expected a number, got nothing"},
      {{{"rope_scaling", {{"type", "linear"}, {"factor", 0}}}},
       "factor: expected a number above 0"},
      {{{"rope_scaling", 8}}, "rope_scaling: expected an object"},
      {{{"rope_scaling",
         {{"type", "llama3"}, {"factor", 8}, {"low_freq_factor", 4}, {"high_freq_factor", 1}}}},
       "high_freq_factor: expected a number above 4"},
      {{{"rope_scaling", {{"type", "llama3"}, {"factor", 8}}}}, "low_freq_factor"},
      {{{"layer_types", "full_attention"}}, "layer_types: expected a list"},
  };
  for (const auto& [changes, piece] : kCases) {
    EXPECT_TRUE(IsError(Read(With(llama, changes)), kDataLoss, piece));
  }
  EXPECT_TRUE(IsError(Read(With(Base("MixtralForCausalLM"), {{"num_experts_per_tok", 9}})),
                      kDataLoss, "num_experts_per_tok: expected at most the 8 experts, got 9"));
  EXPECT_TRUE(IsError(Read(With(Base("MixtralForCausalLM"), {{"sliding_window", 0}})), kDataLoss,
                      "sliding_window: expected an integer from 1"));
  EXPECT_TRUE(IsError(Read(With(Base("Qwen3MoeForCausalLM"), {{"decoder_sparse_step", 0}})),
                      kDataLoss, "decoder_sparse_step"));
  EXPECT_TRUE(IsError(Read(With(Base("Qwen3MoeForCausalLM"), {{"mlp_only_layers", {-1}}})),
                      kDataLoss, "mlp_only_layers"));
  Json nameless = llama;
  nameless.erase("architectures");
  EXPECT_TRUE(IsError(Read(nameless), kDataLoss, "architectures: expected a list of one name"));
  EXPECT_TRUE(IsError(ReadDecoderConfig("[1]"), kDataLoss, "config.json: expected an object"));
  EXPECT_TRUE(IsError(ReadDecoderConfig("{"), kDataLoss, "config.json: expected JSON"));
}

TEST(DecoderConfigTest, ListsLinearModulesInTheOrderInWhichTheyRun) {
  const auto names = [](const DecoderConfig& config, int64_t layer) {
    std::vector<std::string> list;
    for (const LinearModule& module : LinearModules(config, layer)) list.push_back(module.name);
    return list;
  };
  const std::string layer = "model.layers.2.", attention = layer + "self_attn.";
  EXPECT_EQ(
      names(*Read(Base("LlamaForCausalLM")), 2),
      (std::vector<std::string>{attention + "q_proj", attention + "k_proj", attention + "v_proj",
                                attention + "o_proj", layer + "mlp.gate_proj",
                                layer + "mlp.up_proj", layer + "mlp.down_proj"}));
  const auto mixtral = names(*Read(Base("MixtralForCausalLM")), 2);
  ASSERT_EQ(mixtral.size(), 5u + 3 * 8);
  EXPECT_EQ(mixtral[4], layer + "block_sparse_moe.gate");
  EXPECT_EQ(mixtral[5], layer + "block_sparse_moe.experts.0.w1");
  EXPECT_EQ(mixtral[6], layer + "block_sparse_moe.experts.0.w3");
  EXPECT_EQ(mixtral[7], layer + "block_sparse_moe.experts.0.w2");
  const DecoderConfig moe = *Read(Base("Qwen3MoeForCausalLM"));
  EXPECT_EQ(names(moe, 2)[4], layer + "mlp.gate");
  EXPECT_EQ(names(moe, 2)[8], layer + "mlp.experts.1.gate_proj");
  EXPECT_EQ(LinearModules(moe, 2)[8].expert, 1);
  EXPECT_EQ(LinearModules(moe, 2)[8].rows, 768);
  EXPECT_EQ(LinearModules(moe, 2)[0].expert, -1);
}

}  // namespace
}  // namespace nibble
