#include "engine/synthetic_model.h"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/tensor_view.h"
#include "engine/synthetic.h"
#include "io/atomic_file.h"
#include "io/model_folder.h"
#include "io/safetensors.h"
#include "nlohmann/json.hpp"

namespace nibble {
namespace {

using OrderedJson = nlohmann::ordered_json;

struct Item {
  std::string name;
  std::vector<int64_t> shape;
  bool linear = false;

  uint64_t bytes() const { return 2 * static_cast<uint64_t>(*ElementCount(shape)); }
};

std::vector<Item> ItemsOf(const SyntheticModelShape& s) {
  const int64_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
  std::vector<Item> items = {{"model.embed_tokens.weight", {s.vocabulary, s.hidden}}};
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string p = absl::StrCat("model.layers.", i, ".");
    items.push_back({p + "input_layernorm.weight", {s.hidden}});
    items.push_back({p + "self_attn.q_proj.weight", {q, s.hidden}, true});
    items.push_back({p + "self_attn.k_proj.weight", {kv, s.hidden}, true});
    items.push_back({p + "self_attn.v_proj.weight", {kv, s.hidden}, true});
    items.push_back({p + "self_attn.o_proj.weight", {s.hidden, q}, true});
    items.push_back({p + "self_attn.q_norm.weight", {s.head_dim}});
    items.push_back({p + "self_attn.k_norm.weight", {s.head_dim}});
    items.push_back({p + "post_attention_layernorm.weight", {s.hidden}});
    items.push_back({p + "mlp.gate_proj.weight", {s.intermediate, s.hidden}, true});
    items.push_back({p + "mlp.up_proj.weight", {s.intermediate, s.hidden}, true});
    items.push_back({p + "mlp.down_proj.weight", {s.hidden, s.intermediate}, true});
  }
  items.push_back({"model.norm.weight", {s.hidden}});
  items.push_back({"lm_head.weight", {s.vocabulary, s.hidden}});
  return items;
}

OrderedJson ConfigOf(const SyntheticModelShape& s) {
  return {{"architectures", OrderedJson::array({"Qwen3ForCausalLM"})},
          {"model_type", "qwen3"},
          {"hidden_size", s.hidden},
          {"intermediate_size", s.intermediate},
          {"num_hidden_layers", s.layers},
          {"num_attention_heads", s.heads},
          {"num_key_value_heads", s.kv_heads},
          {"head_dim", s.head_dim},
          {"hidden_act", "silu"},
          {"max_position_embeddings", 40960},
          {"rms_norm_eps", 1e-06},
          {"rope_theta", 1000000},
          {"attention_bias", false},
          {"tie_word_embeddings", false},
          {"torch_dtype", "bfloat16"},
          {"vocab_size", s.vocabulary}};
}

// `buffer`, again and again from `phase` on.
absl::Status WriteTiled(SafetensorsWriter& file, size_t tensor, uint64_t bytes,
                        std::span<const std::byte> buffer, uint64_t phase) {
  phase %= buffer.size();
  for (uint64_t at = 0; at < bytes;) {
    const uint64_t part = std::min<uint64_t>(bytes - at, buffer.size() - phase);
    NIBBLE_RETURN_IF_ERROR(file.Write(tensor, at, buffer.subspan(phase, part)));
    at += part;
    phase = 0;
  }
  return absl::OkStatus();
}

absl::Status WriteShard(const std::string& path, std::span<const Item> items, size_t first_number,
                        std::span<const std::byte> weights) {
  std::vector<TensorSpec> specs;
  for (const Item& item : items) specs.push_back({item.name, DType::kBf16, item.shape});
  NIBBLE_ASSIGN_OR_RETURN(SafetensorsWriter file,
                          SafetensorsWriter::Create(path, specs, {{"format", "pt"}}));
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].shape.size() == 1) {
      const std::vector<std::byte> ones =
          ToBytes(std::vector<float>(items[i].shape[0], 1.0f), DType::kBf16);
      NIBBLE_RETURN_IF_ERROR(file.Write(i, 0, ones));
    } else {
      // Phases of whole blocks, far apart.
      const uint64_t phase = (first_number + i) * uint64_t{32} * 77'747;
      NIBBLE_RETURN_IF_ERROR(WriteTiled(file, i, items[i].bytes(), weights, phase));
    }
  }
  return file.Commit();
}

}  // namespace

absl::StatusOr<SyntheticModelSummary> WriteSyntheticModel(const std::string& folder,
                                                          const SyntheticModelShape& shape) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return absl::UnknownError(absl::StrCat(folder, ": ", error.message()));
  const std::vector<Item> items = ItemsOf(shape);
  std::vector<size_t> ends;  // of shards, in items
  uint64_t in_shard = 0;
  SyntheticModelSummary summary;
  for (size_t i = 0; i < items.size(); ++i) {
    if (in_shard > 0 && in_shard + items[i].bytes() > shape.shard_bytes) {
      ends.push_back(i);
      in_shard = 0;
    }
    in_shard += items[i].bytes();
    summary.bytes += items[i].bytes();
    if (items[i].linear) summary.linear_weights += *ElementCount(items[i].shape);
  }
  ends.push_back(items.size());
  summary.tensors = static_cast<int64_t>(items.size());
  summary.shards = static_cast<int64_t>(ends.size());

  constexpr int64_t kValues = 8 << 20;
  const std::vector<std::byte> weights =
      ToBytes(SyntheticValues(Distribution::kWeightLike, kValues, /*seed=*/8), DType::kBf16);
  std::map<std::string, std::string> file_of_tensor;
  size_t begin = 0;
  for (size_t shard = 0; shard < ends.size(); ++shard) {
    const std::string name = ShardFileName(shard, ends.size());
    const std::span<const Item> part(&items[begin], ends[shard] - begin);
    NIBBLE_RETURN_IF_ERROR(WriteShard(folder + "/" + name, part, begin, weights));
    for (const Item& item : part) file_of_tensor[item.name] = name;
    begin = ends[shard];
  }
  NIBBLE_RETURN_IF_ERROR(WriteFileAtomically(folder + "/" + kShardIndexFile,
                                             ShardIndex(file_of_tensor, summary.bytes)));
  NIBBLE_RETURN_IF_ERROR(
      WriteFileAtomically(folder + "/config.json", ConfigOf(shape).dump(2) + "\n"));
  NIBBLE_RETURN_IF_ERROR(WriteFileAtomically(folder + "/tokenizer.json", "{}\n"));
  return summary;
}

}  // namespace nibble
