// What a plan has to know of a model: names, types and shapes, never data. A plain value; the
// engine fills it from a folder.
#ifndef NIBBLE_POLICIES_MODEL_H_
#define NIBBLE_POLICIES_MODEL_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/enum_names.h"

namespace nibble {

struct ModelTensor {
  std::string name;
  DType dtype = DType::kBf16;
  std::vector<int64_t> shape;

  friend bool operator==(const ModelTensor&, const ModelTensor&) = default;
};

struct Model {
  std::string model_type;   // of config.json: "qwen3", "llama4", "gpt_oss"
  int64_t layers = 0;       // num_hidden_layers, of text_config where there is one
  int64_t hidden_size = 0;  // 0 where config.json does not say
  bool tied_embeddings = false;
  std::vector<ModelTensor> tensors;  // by name

  friend bool operator==(const Model&, const Model&) = default;
};

// What a module is for, as its name tells; rules may ask for it.
enum class ModuleKind : uint8_t {
  kAttention,
  kLinearAttention,
  kMlp,
  kExpert,
  kSharedExpert,
  kRouter,
  kLmHead,
  kEmbedding,
  kNorm,
  kVision,
  kMtp,
  kOther,
};
template <>
inline constexpr std::array<std::string_view, 12> kEnumNames<ModuleKind> = {
    "attention", "linear_attention", "mlp",  "expert", "shared_expert", "router",
    "lm_head",   "embedding",        "norm", "vision", "mtp",           "other"};

}  // namespace nibble

#endif  // NIBBLE_POLICIES_MODEL_H_
