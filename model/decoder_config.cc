#include "model/decoder_config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/status.h"
#include "base/text.h"
#include "io/json_object.h"
#include "io/model_folder.h"
#include "nlohmann/json.hpp"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxSize = int64_t{1} << 24;  // of an axis: products of three fit in int64
constexpr int64_t kMaxCount = 1 << 16;          // of layers, heads, experts
constexpr int64_t kMaxPositions = int64_t{1} << 40;

absl::Status Expected(std::string_view key, std::string_view rule, const Json& got) {
  return absl::DataLossError(
      absl::StrCat(ToAbsl(key), ": expected ", ToAbsl(rule), ", got ",
                   Quoted(got.dump(-1, ' ', true, Json::error_handler_t::replace))));
}

absl::Status NotSupported(std::string_view key, std::string_view supported, std::string_view got) {
  return absl::UnimplementedError(
      absl::StrCat(ToAbsl(key), ": expected ", ToAbsl(supported), ", got ", Quoted(got)));
}

// Null counts as absent.
const Json* Find(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

absl::StatusOr<std::optional<int64_t>> FindInteger(const Json& object, const char* key,
                                                   int64_t least, int64_t most) {
  const Json* value = Find(object, key);
  if (value == nullptr) return std::nullopt;
  const bool fits = value->is_number_unsigned()
                        ? value->get<uint64_t>() <= static_cast<uint64_t>(most)
                        : value->is_number_integer();
  if (!fits || value->get<int64_t>() < least || value->get<int64_t>() > most) {
    return Expected(key, absl::StrCat("an integer from ", least, " to ", most), *value);
  }
  return value->get<int64_t>();
}

absl::StatusOr<int64_t> Integer(const Json& object, const char* key, int64_t least, int64_t most) {
  NIBBLE_ASSIGN_OR_RETURN(const auto value, FindInteger(object, key, least, most));
  if (!value) {
    return absl::DataLossError(absl::StrCat(key, ": expected an integer, got nothing"));
  }
  return *value;
}

absl::StatusOr<int64_t> IntegerOr(const Json& object, const char* key, int64_t absent,
                                  int64_t least, int64_t most) {
  NIBBLE_ASSIGN_OR_RETURN(const auto value, FindInteger(object, key, least, most));
  return value.value_or(absent);
}

absl::StatusOr<std::optional<double>> FindNumber(const Json& object, const char* key) {
  const Json* value = Find(object, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number() || !std::isfinite(value->get<double>())) {
    return Expected(key, "a number", *value);
  }
  return value->get<double>();
}

// Above `bound`.
absl::StatusOr<double> NumberOr(const Json& object, const char* key, double absent, double bound) {
  NIBBLE_ASSIGN_OR_RETURN(const auto value, FindNumber(object, key));
  if (value && !(*value > bound)) {
    return Expected(key, absl::StrCat("a number above ", bound), *Find(object, key));
  }
  return value.value_or(absent);
}

absl::StatusOr<bool> BoolOr(const Json& object, const char* key, bool absent) {
  const Json* value = Find(object, key);
  if (value == nullptr) return absent;
  if (!value->is_boolean()) return Expected(key, "true or false", *value);
  return value->get<bool>();
}

absl::StatusOr<std::string> StringOr(const Json& object, const char* key, std::string absent) {
  const Json* value = Find(object, key);
  if (value == nullptr) return absent;
  if (!value->is_string()) return Expected(key, "a string", *value);
  return value->get<std::string>();
}

// What Transformers takes for keys that are not there, and what a kind of model has by its nature.
struct Defaults {
  std::optional<int64_t> kv_heads;  // as many as heads where absent
  int64_t head_dim = 0;             // hidden / heads where 0
  double rms_norm_eps = 1e-6, rope_theta = 10000;
  bool qkv_bias = false, o_bias = false;  // where attention_bias does not say
  bool reads_attention_bias = false, reads_mlp_bias = false;
  bool qk_norm = false;
};

Defaults DefaultsOf(Architecture architecture) {
  Defaults d;
  switch (architecture) {
    case Architecture::kLlama:
      d.reads_attention_bias = d.reads_mlp_bias = true;
      break;
    case Architecture::kMistral:
      d.kv_heads = 8;
      break;
    case Architecture::kQwen2:
      d.kv_heads = 32;
      d.qkv_bias = true;
      break;
    case Architecture::kQwen3:
      d.kv_heads = 32;
      d.head_dim = 128;
      d.reads_attention_bias = d.qk_norm = true;
      break;
    case Architecture::kMixtral:
      d.kv_heads = 8;
      d.rms_norm_eps = 1e-5;
      d.rope_theta = 1e6;
      break;
    case Architecture::kQwen3Moe:
      d.kv_heads = 4;
      d.reads_attention_bias = d.qk_norm = true;
      break;
  }
  return d;
}

absl::StatusOr<Architecture> ReadArchitecture(const Json& json) {
  constexpr std::string_view kKey = "architectures";
  const Json* list = Find(json, "architectures");
  if (list == nullptr) {
    return absl::DataLossError(
        absl::StrCat(ToAbsl(kKey), ": expected a list of one name, got nothing"));
  }
  if (!list->is_array() || list->size() != 1 || !list->front().is_string()) {
    return Expected(kKey, "a list of one name", *list);
  }
  const std::string name = list->front().get<std::string>();
  const auto architecture = FromName<Architecture>(name);
  if (!architecture) return NotSupported(kKey, NamesOf<Architecture>(), name);
  return *architecture;
}

absl::StatusOr<RopeParams> ReadRope(const Json& json, double default_theta) {
  static const Json kNone = Json::object();
  const char* key = "rope_parameters";
  // An empty object counts as absent, as it does in Transformers.
  const Json* found = Find(json, "rope_scaling");
  if (found != nullptr && !found->empty()) {
    key = "rope_scaling";
  } else {
    found = Find(json, key);
  }
  const Json& object = found == nullptr ? kNone : *found;
  if (!object.is_object()) return Expected(key, "an object", object);
  for (const auto& [name, value] : object.items()) {
    if (value.is_object()) return NotSupported(key, "one for all layers", name);
  }

  const auto read = [&]() -> absl::StatusOr<RopeParams> {
    RopeParams rope;
    NIBBLE_ASSIGN_OR_RETURN(const double outer_theta,
                            NumberOr(json, "rope_theta", default_theta, 1));
    NIBBLE_ASSIGN_OR_RETURN(rope.theta, NumberOr(object, "rope_theta", outer_theta, 1));
    for (const Json* part : {&json, &object}) {
      NIBBLE_ASSIGN_OR_RETURN(const auto partial, FindNumber(*part, "partial_rotary_factor"));
      if (partial.value_or(1) != 1) {
        return NotSupported("partial_rotary_factor", "1", absl::StrCat(*partial));
      }
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::string old_type, StringOr(object, "type", "default"));
    NIBBLE_ASSIGN_OR_RETURN(const std::string type, StringOr(object, "rope_type", old_type));
    const auto known = FromName<RopeType>(type);
    if (!known) return NotSupported("rope_type", NamesOf<RopeType>(), type);
    rope.type = *known;
    if (rope.type == RopeType::kDefault) return rope;

    NIBBLE_ASSIGN_OR_RETURN(const int64_t positions,
                            IntegerOr(json, "max_position_embeddings", 2048, 1, kMaxPositions));
    if (rope.type == RopeType::kLlama3 || rope.type == RopeType::kYarn) {
      NIBBLE_ASSIGN_OR_RETURN(
          const int64_t inner,
          IntegerOr(object, "original_max_position_embeddings", positions, 1, kMaxPositions));
      NIBBLE_ASSIGN_OR_RETURN(
          rope.original_positions,
          IntegerOr(json, "original_max_position_embeddings", inner, 1, kMaxPositions));
    }
    const bool may_lack_factor = rope.type == RopeType::kYarn;
    if (!may_lack_factor && Find(object, "factor") == nullptr) {
      return absl::DataLossError("factor: expected a number, got nothing");
    }
    const double ratio = may_lack_factor ? static_cast<double>(positions) /
                                               static_cast<double>(rope.original_positions)
                                         : 1;
    NIBBLE_ASSIGN_OR_RETURN(rope.factor, NumberOr(object, "factor", ratio, 0));
    if (rope.type == RopeType::kLlama3) {
      for (const char* name : {"low_freq_factor", "high_freq_factor"}) {
        if (Find(object, name) == nullptr) {
          return absl::DataLossError(absl::StrCat(name, ": expected a number, got nothing"));
        }
      }
      NIBBLE_ASSIGN_OR_RETURN(rope.low_freq_factor, NumberOr(object, "low_freq_factor", 1, 0));
      NIBBLE_ASSIGN_OR_RETURN(rope.high_freq_factor,
                              NumberOr(object, "high_freq_factor", 4, rope.low_freq_factor));
    }
    if (rope.type == RopeType::kYarn) {
      NIBBLE_ASSIGN_OR_RETURN(rope.attention_factor, FindNumber(object, "attention_factor"));
      NIBBLE_ASSIGN_OR_RETURN(rope.beta_fast, NumberOr(object, "beta_fast", 32, 0));
      NIBBLE_ASSIGN_OR_RETURN(rope.beta_slow, NumberOr(object, "beta_slow", 1, 0));
      NIBBLE_ASSIGN_OR_RETURN(const auto mscale, FindNumber(object, "mscale"));
      NIBBLE_ASSIGN_OR_RETURN(const auto mscale_all_dim, FindNumber(object, "mscale_all_dim"));
      rope.mscale = mscale.value_or(0);
      rope.mscale_all_dim = mscale_all_dim.value_or(0);
      NIBBLE_ASSIGN_OR_RETURN(rope.truncate, BoolOr(object, "truncate", true));
    }
    return rope;
  };
  absl::StatusOr<RopeParams> rope = read();
  if (!rope.ok()) return Annotate(rope.status(), key);
  return rope;
}

// DecoderConfig::window, from the kind of model and its keys.
absl::Status ReadWindows(const Json& json, DecoderConfig& config) {
  const bool qwen = config.architecture == Architecture::kQwen2 ||
                    config.architecture == Architecture::kQwen3 ||
                    config.architecture == Architecture::kQwen3Moe;
  const bool by_layer = qwen && config.architecture != Architecture::kQwen3Moe;
  bool windowed = config.architecture == Architecture::kMistral ||
                  config.architecture == Architecture::kMixtral;
  if (qwen) {
    NIBBLE_ASSIGN_OR_RETURN(windowed, BoolOr(json, "use_sliding_window", false));
  }
  int64_t window = 0;
  if (windowed) {
    // An absent key is not the same as null, which means none.
    const bool absent = !json.contains("sliding_window");
    const int64_t otherwise = absent && config.architecture != Architecture::kMixtral ? 4096 : 0;
    NIBBLE_ASSIGN_OR_RETURN(window, IntegerOr(json, "sliding_window", otherwise, 1, kMaxPositions));
  }
  config.window.assign(config.layers, window);
  if (by_layer) {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t full,
                            IntegerOr(json, "max_window_layers", 28, 0, kMaxPositions));
    std::fill_n(config.window.begin(), std::min(full, config.layers), 0);
  }

  const Json* types = Find(json, "layer_types");
  if (types == nullptr) return absl::OkStatus();
  if (!types->is_array() || static_cast<int64_t>(types->size()) != config.layers) {
    return Expected("layer_types", absl::StrCat("a list of ", config.layers, " names"), *types);
  }
  for (int64_t i = 0; i < config.layers; ++i) {
    const Json& type = (*types)[i];
    const bool full = type == "full_attention";
    if (!full && type != "sliding_attention") {
      return NotSupported("layer_types", "full_attention or sliding_attention",
                          type.dump(-1, ' ', true, Json::error_handler_t::replace));
    }
    const int64_t said = full ? 0 : window;
    if (!full && window == 0) {
      return Expected("layer_types", "full_attention where there is no sliding_window", type);
    }
    // The other kinds have one window for all layers, whatever this list says.
    if (!by_layer && said != config.window[i]) {
      return NotSupported("layer_types", "layers that are as sliding_window says",
                          type.get<std::string>());
    }
    config.window[i] = said;
  }
  return absl::OkStatus();
}

absl::Status ReadExperts(const Json& json, DecoderConfig& config) {
  config.has_experts.assign(config.layers, false);
  if (config.architecture == Architecture::kMixtral) {
    NIBBLE_ASSIGN_OR_RETURN(config.experts, IntegerOr(json, "num_local_experts", 8, 1, kMaxCount));
    NIBBLE_ASSIGN_OR_RETURN(config.experts_per_token,
                            IntegerOr(json, "num_experts_per_tok", 2, 1, kMaxCount));
    config.expert_intermediate = config.intermediate;
    config.normalize_routing = true;
    config.has_experts.assign(config.layers, true);
  } else if (config.architecture == Architecture::kQwen3Moe) {
    const char* key = Find(json, "num_experts") == nullptr ? "num_local_experts" : "num_experts";
    NIBBLE_ASSIGN_OR_RETURN(config.experts, IntegerOr(json, key, 128, 0, kMaxCount));
    NIBBLE_ASSIGN_OR_RETURN(config.experts_per_token,
                            IntegerOr(json, "num_experts_per_tok", 8, 1, kMaxCount));
    NIBBLE_ASSIGN_OR_RETURN(config.expert_intermediate,
                            IntegerOr(json, "moe_intermediate_size", 768, 1, kMaxSize));
    NIBBLE_ASSIGN_OR_RETURN(config.normalize_routing, BoolOr(json, "norm_topk_prob", false));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t step,
                            IntegerOr(json, "decoder_sparse_step", 1, 1, kMaxCount));
    for (int64_t i = 0; i < config.layers; ++i) {
      config.has_experts[i] = config.experts > 0 && (i + 1) % step == 0;
    }
    const Json* dense = Find(json, "mlp_only_layers");
    if (dense != nullptr && !dense->is_array()) {
      return Expected("mlp_only_layers", "a list of layers", *dense);
    }
    if (dense != nullptr) {
      for (const Json& layer : *dense) {
        if (!layer.is_number_unsigned()) {
          return Expected("mlp_only_layers", "numbers of layers", layer);
        }
        const uint64_t i = layer.get<uint64_t>();
        if (i < static_cast<uint64_t>(config.layers)) config.has_experts[i] = false;
      }
    }
  }
  const bool any = std::ranges::count(config.has_experts, true) > 0;
  if (any && config.experts_per_token > config.experts) {
    return absl::DataLossError(absl::StrCat("num_experts_per_tok: expected at most the ",
                                            config.experts, " experts, got ",
                                            config.experts_per_token));
  }
  return absl::OkStatus();
}

absl::StatusOr<DecoderConfig> ReadConfig(const Json& json) {
  DecoderConfig config;
  NIBBLE_ASSIGN_OR_RETURN(config.architecture, ReadArchitecture(json));
  const Defaults defaults = DefaultsOf(config.architecture);
  NIBBLE_ASSIGN_OR_RETURN(config.layers, Integer(json, "num_hidden_layers", 1, kMaxCount));
  NIBBLE_ASSIGN_OR_RETURN(config.hidden, Integer(json, "hidden_size", 1, kMaxSize));
  NIBBLE_ASSIGN_OR_RETURN(config.vocabulary, Integer(json, "vocab_size", 1, kMaxSize));
  NIBBLE_ASSIGN_OR_RETURN(config.intermediate, Integer(json, "intermediate_size", 1, kMaxSize));
  NIBBLE_ASSIGN_OR_RETURN(config.heads, Integer(json, "num_attention_heads", 1, kMaxCount));
  const bool says_kv = json.contains("num_key_value_heads");
  NIBBLE_ASSIGN_OR_RETURN(
      config.kv_heads,
      IntegerOr(json, "num_key_value_heads",
                says_kv ? config.heads : defaults.kv_heads.value_or(config.heads), 1, kMaxCount));
  if (config.heads % config.kv_heads != 0) {
    return absl::DataLossError(absl::StrCat("num_key_value_heads: expected a divisor of the ",
                                            config.heads, " heads, got ", config.kv_heads));
  }
  const bool says_head_dim = json.contains("head_dim");
  NIBBLE_ASSIGN_OR_RETURN(
      config.head_dim,
      IntegerOr(json, "head_dim", says_head_dim ? 0 : defaults.head_dim, 2, kMaxCount));
  if (config.head_dim == 0) {
    if (config.hidden % config.heads != 0) {
      return absl::DataLossError(
          absl::StrCat("num_attention_heads: expected a divisor of hidden_size ", config.hidden,
                       ", got ", config.heads));
    }
    config.head_dim = config.hidden / config.heads;
  }
  if (config.head_dim % 2 != 0) {
    return absl::DataLossError(
        absl::StrCat("head_dim: expected an even number, got ", config.head_dim));
  }
  if (config.heads * config.head_dim > kMaxSize) {
    return absl::DataLossError(absl::StrCat("heads times head_dim: expected at most ", kMaxSize,
                                            ", got ", config.heads * config.head_dim));
  }
  NIBBLE_ASSIGN_OR_RETURN(config.rms_norm_eps,
                          NumberOr(json, "rms_norm_eps", defaults.rms_norm_eps, 0));
  NIBBLE_ASSIGN_OR_RETURN(config.tied_embeddings, BoolOr(json, "tie_word_embeddings", false));

  NIBBLE_ASSIGN_OR_RETURN(const std::string activation, StringOr(json, "hidden_act", "silu"));
  if (activation != "silu" && activation != "swish") {
    return NotSupported("hidden_act", "silu", activation);
  }
  config.qk_norm = defaults.qk_norm;
  config.qkv_bias = defaults.qkv_bias;
  if (defaults.reads_attention_bias) {
    NIBBLE_ASSIGN_OR_RETURN(config.qkv_bias, BoolOr(json, "attention_bias", false));
    config.o_bias = config.qkv_bias;
  }
  if (defaults.reads_mlp_bias) {
    NIBBLE_ASSIGN_OR_RETURN(config.mlp_bias, BoolOr(json, "mlp_bias", false));
  }
  NIBBLE_ASSIGN_OR_RETURN(config.rope, ReadRope(json, defaults.rope_theta));
  NIBBLE_RETURN_IF_ERROR(ReadWindows(json, config));
  NIBBLE_RETURN_IF_ERROR(ReadExperts(json, config));
  return config;
}

absl::StatusOr<DecoderConfig> ParseConfig(const std::string& config_json) {
  NIBBLE_ASSIGN_OR_RETURN(const Json json, ParseJsonObject(config_json));
  return ReadConfig(json);
}

}  // namespace

absl::StatusOr<DecoderConfig> ReadDecoderConfig(const std::string& config_json) {
  absl::StatusOr<DecoderConfig> config = ParseConfig(config_json);
  if (!config.ok()) return Annotate(config.status(), "config.json");
  return config;
}

absl::StatusOr<DecoderConfig> ReadDecoderConfig(const ModelFolder& folder) {
  absl::StatusOr<DecoderConfig> config = ParseConfig(folder.config_json());
  if (!config.ok()) return Annotate(config.status(), Printable(folder.path() + "/config.json"));
  return config;
}

std::vector<LinearModule> LinearModules(const DecoderConfig& config, int64_t layer) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const std::string attention = prefix + "self_attn.";
  const int64_t q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  std::vector<LinearModule> modules = {
      {attention + "q_proj", q, config.hidden, config.qkv_bias},
      {attention + "k_proj", kv, config.hidden, config.qkv_bias},
      {attention + "v_proj", kv, config.hidden, config.qkv_bias},
      {attention + "o_proj", config.hidden, q, config.o_bias},
  };
  if (!config.has_experts[layer]) {
    const std::string mlp = prefix + "mlp.";
    modules.push_back({mlp + "gate_proj", config.intermediate, config.hidden, config.mlp_bias});
    modules.push_back({mlp + "up_proj", config.intermediate, config.hidden, config.mlp_bias});
    modules.push_back({mlp + "down_proj", config.hidden, config.intermediate, config.mlp_bias});
    return modules;
  }
  const bool mixtral = config.architecture == Architecture::kMixtral;
  const std::string moe = prefix + (mixtral ? "block_sparse_moe." : "mlp.");
  modules.push_back({moe + "gate", config.experts, config.hidden});
  for (int64_t e = 0; e < config.experts; ++e) {
    const std::string expert = absl::StrCat(moe, "experts.", e, ".");
    const int64_t f = config.expert_intermediate;
    modules.push_back({expert + (mixtral ? "w1" : "gate_proj"), f, config.hidden, false, e});
    modules.push_back({expert + (mixtral ? "w3" : "up_proj"), f, config.hidden, false, e});
    modules.push_back({expert + (mixtral ? "w2" : "down_proj"), config.hidden, f, false, e});
  }
  return modules;
}

LinearModule HeadModule(const DecoderConfig& config) {
  return {"lm_head", config.vocabulary, config.hidden};
}

}  // namespace nibble
