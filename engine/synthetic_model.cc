#include "engine/synthetic_model.h"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/tensor_view.h"
#include "engine/synthetic.h"
#include "io/atomic_file.h"
#include "nlohmann/json.hpp"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

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

Json ConfigOf(const SyntheticModelShape& s) {
  return {{"architectures", Json::array({"Qwen3ForCausalLM"})},
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

// `buffer`, again and again from `offset` on.
absl::Status AppendTiled(AtomicFile& file, std::span<const std::byte> buffer, uint64_t offset,
                         uint64_t bytes) {
  offset %= buffer.size();
  while (bytes > 0) {
    const uint64_t part = std::min<uint64_t>(bytes, buffer.size() - offset);
    NIBBLE_RETURN_IF_ERROR(file.Append(buffer.subspan(offset, part)));
    bytes -= part;
    offset = 0;
  }
  return absl::OkStatus();
}

absl::Status WriteShard(const std::string& path, std::span<const Item> items, size_t first_number,
                        std::span<const std::byte> weights) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t begin = 0;
  for (const Item& item : items) {
    header[item.name] = {{"dtype", "BF16"},
                         {"shape", item.shape},
                         {"data_offsets", Json::array({begin, begin + item.bytes()})}};
    begin += item.bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length;
  for (int i = 0; i < 8; ++i) length.push_back(static_cast<char>(text.size() >> (8 * i)));
  NIBBLE_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  NIBBLE_RETURN_IF_ERROR(file.Append(length + text));
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].shape.size() == 1) {
      const std::vector<std::byte> ones =
          ToBytes(std::vector<float>(items[i].shape[0], 1.0f), DType::kBf16);
      NIBBLE_RETURN_IF_ERROR(file.Append(ones));
    } else {
      // Offsets of whole blocks, far apart.
      const uint64_t offset = (first_number + i) * uint64_t{32} * 77'747;
      NIBBLE_RETURN_IF_ERROR(AppendTiled(file, weights, offset, items[i].bytes()));
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
  Json map = Json::object();
  size_t begin = 0;
  for (size_t shard = 0; shard < ends.size(); ++shard) {
    const std::string name =
        absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1, ends.size());
    const std::span<const Item> part(&items[begin], ends[shard] - begin);
    NIBBLE_RETURN_IF_ERROR(WriteShard(folder + "/" + name, part, begin, weights));
    for (const Item& item : part) map[item.name] = name;
    begin = ends[shard];
  }
  const Json index = {{"metadata", {{"total_size", summary.bytes}}}, {"weight_map", map}};
  NIBBLE_RETURN_IF_ERROR(
      WriteFileAtomically(folder + "/model.safetensors.index.json", index.dump(2) + "\n"));
  NIBBLE_RETURN_IF_ERROR(
      WriteFileAtomically(folder + "/config.json", ConfigOf(shape).dump(2) + "\n"));
  NIBBLE_RETURN_IF_ERROR(WriteFileAtomically(folder + "/tokenizer.json", "{}\n"));
  return summary;
}

}  // namespace nibble
