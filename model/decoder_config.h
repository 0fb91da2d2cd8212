// What a decoder-only model computes, as its config.json says.
#ifndef NIBBLE_MODEL_DECODER_CONFIG_H_
#define NIBBLE_MODEL_DECODER_CONFIG_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/enum_names.h"

namespace nibble {

class ModelFolder;

enum class Architecture : uint8_t { kLlama, kMistral, kQwen2, kQwen3, kMixtral, kQwen3Moe };
template <>
inline constexpr std::array<std::string_view, 6> kEnumNames<Architecture> = {
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM",
    "Qwen3ForCausalLM", "MixtralForCausalLM", "Qwen3MoeForCausalLM"};

enum class RopeType : uint8_t { kDefault, kLinear, kLlama3, kYarn };
template <>
inline constexpr std::array<std::string_view, 4> kEnumNames<RopeType> = {"default", "linear",
                                                                         "llama3", "yarn"};

// Rotary position embedding. Fields are those of Transformers' rope_parameters, or rope_scaling and
// rope_theta in older files.
struct RopeParams {
  RopeType type = RopeType::kDefault;
  double theta = 10000;
  double factor = 1;
  int64_t original_positions = 0;                    // llama3, yarn
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  // yarn
  std::optional<double> attention_factor = {};
  double beta_fast = 32, beta_slow = 1;
  double mscale = 0, mscale_all_dim = 0;  // 0 where absent
  bool truncate = true;

  friend bool operator==(const RopeParams&, const RopeParams&) = default;
};

struct DecoderConfig {
  Architecture architecture = Architecture::kLlama;
  int64_t layers = 0, hidden = 0, vocabulary = 0;
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t intermediate = 0;  // of layers without experts
  double rms_norm_eps = 1e-6;
  RopeParams rope;
  bool tied_embeddings = false;
  bool qk_norm = false;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  // Of each layer: how many tokens one attends to, itself included; 0 for all before it.
  std::vector<int64_t> window;

  int64_t experts = 0, experts_per_token = 0, expert_intermediate = 0;
  bool normalize_routing = false;  // the chosen experts' weights add up to 1
  std::vector<bool> has_experts;   // of each layer

  friend bool operator==(const DecoderConfig&, const DecoderConfig&) = default;
};

// Unimplemented, with the list of what is supported, for another architecture, activation or kind
// of position embedding; DataLoss for values that are missing, out of range or contradict each
// other.
absl::StatusOr<DecoderConfig> ReadDecoderConfig(const std::string& config_json);
// A folder's own; failures name its place.
absl::StatusOr<DecoderConfig> ReadDecoderConfig(const ModelFolder& folder);

// A matrix product of a layer: y = x W^T + bias, W rows x cols.
struct LinearModule {
  std::string name;  // that of its weight without ".weight": "model.layers.0.self_attn.q_proj"
  int64_t rows = 0, cols = 0;
  bool bias = false;
  int64_t expert = -1;  // of a routed expert: its number
};

// All of a layer, in the order in which they run. Modules of one input are neighbours.
std::vector<LinearModule> LinearModules(const DecoderConfig& config, int64_t layer);
// What makes logits: "lm_head", with tied embeddings too, although its weight has another name
// then.
LinearModule HeadModule(const DecoderConfig& config);

}  // namespace nibble

#endif  // NIBBLE_MODEL_DECODER_CONFIG_H_
