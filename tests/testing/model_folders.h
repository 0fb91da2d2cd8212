// Small model folders of every layout, made up: the same bytes for the same arguments. Weights are
// weight-like, norms 1, every linear layer has shapes of its own kind's proportions.
#ifndef NIBBLE_TESTS_TESTING_MODEL_FOLDERS_H_
#define NIBBLE_TESTS_TESTING_MODEL_FOLDERS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/testing/tensors.h"

namespace nibble::testing {

struct ModelOnPaper {
  nlohmann::ordered_json config;
  std::vector<Tensor> tensors;
  int shards = 1;  // tensor i lies in shard i % shards: q, k and v of a layer in three of them

  Tensor& at(const std::string& name);
  bool Has(const std::string& name) const;
  void Remove(const std::string& name);
  void Fill(const std::string& name, const std::function<float(int64_t)>& value);
  void FillZero(const std::string& name);

  // Each fused group's members get spreads of their own, so that sharing an amax shows.
  void AddWeight(const std::string& name, const Shape& shape, DType dtype = DType::kBf16);
  void AddOnes(const std::string& name, const Shape& shape, DType dtype = DType::kBf16);
};

struct ModelSize {
  int64_t layers = 2, hidden = 64, intermediate = 96, heads = 4, kv_heads = 2, vocabulary = 48;
  int64_t experts = 4, expert_intermediate = 32;
  int shards = 1;
  DType dtype = DType::kBf16;

  int64_t head() const { return hidden / heads; }
};

// Llama, and with other types Mistral, Qwen2 and so on.
ModelOnPaper LlamaModel(const ModelSize& s = {}, bool tied = false);

// Experts as modules of their own; of the last layer's, the last is all zero: a dead one.
ModelOnPaper Qwen3MoeModel(const ModelSize& s = {});

// Qwen3.5-MoE on disk: all experts of a layer in one tensor, [E, 2F, H] and [E, H, F], without
// ".weight"; a shared expert beside them.
ModelOnPaper ExpertRowsModel(const ModelSize& s = {});

// Llama-4: [E, H, 2F] and [E, F, H]; a text model inside a wrapper, with a vision tower.
// Qwen3-VL-MoE as it first came: experts [E, K, N] in two tensors a layer, a tower beside.
ModelOnPaper Qwen3VlMoeModel(const ModelSize& s = {});
ModelOnPaper Llama4Model(const ModelSize& s = {});

// gpt-oss, in bf16: the orientation of Llama-4, gate and up taking turns, and biases.
ModelOnPaper GptOssModel(const ModelSize& s = {});

// Experts named w1 (gate), w3 (up) and w2 (down).
ModelOnPaper MixtralModel(const ModelSize& s = {});

// DeepSeek-V3: MLA, a dense first layer, shared experts, and the MTP layer behind the last.
ModelOnPaper DeepseekModel(const ModelSize& s = {});

// A Llama whose names set traps for matchers: twelve layers (1 begins 10 and 11), a router beside
// a dense MLP ("mlp.gate" begins "mlp.gate_proj"), names that are not ASCII.
ModelOnPaper OddNamesModel(ModelSize s = {});

std::string ShardName(int shard, int of);

// config.json, shards (with an index where there are several), and files that a copy must keep.
void WriteModelFolder(const std::string& path, const ModelOnPaper& model);

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_MODEL_FOLDERS_H_
