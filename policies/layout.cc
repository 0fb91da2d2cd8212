#include "policies/layout.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <span>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/tensor_view.h"
#include "policies/names.h"

namespace nibble {
namespace {

using Words = std::vector<std::string_view>;

bool IsOneOf(std::string_view word, std::initializer_list<std::string_view> list) {
  return std::ranges::find(list, word) != list.end();
}

bool HasWord(std::span<const std::string_view> words,
             std::initializer_list<std::string_view> list) {
  return std::ranges::any_of(words, [&](std::string_view word) { return IsOneOf(word, list); });
}

bool HasPiece(std::span<const std::string_view> words,
              std::initializer_list<std::string_view> pieces) {
  return std::ranges::any_of(words, [&](std::string_view word) {
    return std::ranges::any_of(
        pieces, [&](std::string_view piece) { return word.find(piece) != word.npos; });
  });
}

// --- Fused groups -------------------------------------------------------------------------------

// Modules of one parent that inference engines run as one, with the name of the group.
struct FusedNames {
  std::string_view name;
  std::array<std::string_view, 3> members;  // unused ones are empty
};
constexpr FusedNames kFusedNames[] = {
    {"{q,k,v}_proj", {"q_proj", "k_proj", "v_proj"}},
    {"{gate,up}_proj", {"gate_proj", "up_proj"}},
    {"{w1,w3}", {"w1", "w3"}},
    {"{q_a_proj,kv_a_proj_with_mqa}", {"q_a_proj", "kv_a_proj_with_mqa"}},
    {"{wq_a,wkv_a}", {"wq_a", "wkv_a", "wkv_a_with_mqa"}},
    {"{wq,wk,wv}", {"wq", "wk", "wv"}},
    {"{query,key,value}", {"query", "key", "value"}},
    {"{in_proj_qkv,in_proj_z}", {"in_proj_qkv", "in_proj_z"}},  // Qwen3.5's linear attention
    {"{in_proj_b,in_proj_a}", {"in_proj_b", "in_proj_a"}},
    {"{c_fc_0,c_fc_1}", {"c_fc_0", "c_fc_1"}},      // EXAONE's gate and up
    {"{linear,linear_v}", {"linear", "linear_v"}},  // Grok's experts
};

struct FusedPlace {
  const FusedNames* names = nullptr;
  int member = 0;
};

FusedPlace FusedPlaceOf(std::string_view leaf) {
  for (const FusedNames& names : kFusedNames) {
    for (int i = 0; i < 3; ++i) {
      if (leaf == names.members[i]) return {&names, i};
    }
  }
  return {};
}

// --- Kinds --------------------------------------------------------------------------------------

bool IsTower(const Words& words) {
  return HasPiece(words, {"vision", "visual", "audio", "speech", "image", "multi_modal",
                          "multimodal", "mm_projector", "patch_embed", "patch_merger"}) ||
         HasWord(words, {"vit", "mlp1", "aligner", "merger", "talker", "token2wav", "code2wav"});
}

bool IsMtp(const Words& words) {
  return std::ranges::any_of(words, [](std::string_view word) {
    return word.starts_with("mtp") || word.starts_with("nextn");
  });
}

bool IsNorm(std::string_view leaf) {
  if (leaf.find("proj") != leaf.npos || leaf.find("linear") != leaf.npos) return false;
  return leaf.find("norm") != leaf.npos || leaf == "ln" || leaf.starts_with("ln_") ||
         (leaf.size() == 3 && leaf.starts_with("ln"));
}

bool IsEmbedding(std::string_view leaf) {
  if (leaf.find("proj") != leaf.npos || leaf == "embed_out") return false;
  return leaf.find("embed") != leaf.npos ||
         IsOneOf(leaf, {"wte", "wpe", "emb", "relative_attention_bias"});
}

bool IsRouter(const Words& words, std::string_view leaf) {
  // A component rather than the last: "router.layer", "gate.wg", "router.proj".
  return HasWord(words, {"gate", "router"}) ||
         IsOneOf(leaf, {"shared_expert_gate", "shared_experts_gate", "coefficient"});
}

bool IsHead(std::string_view leaf, bool in_layers) {
  if (IsOneOf(leaf, {"lm_head", "embed_out", "output_layer"})) return true;
  return !in_layers && IsOneOf(leaf, {"output", "head", "score", "classifier"});
}

// Of a module in the language model itself.
ModuleKind KindOf(const Words& words, std::string_view leaf, bool in_layers) {
  if (IsNorm(leaf)) return ModuleKind::kNorm;
  if (IsRouter(words, leaf)) return ModuleKind::kRouter;
  if (IsEmbedding(leaf)) return ModuleKind::kEmbedding;
  if (IsHead(leaf, in_layers)) return ModuleKind::kLmHead;
  if (HasPiece(words, {"shared_expert"}) || HasWord(words, {"shared_mlp", "shared_moe"})) {
    return ModuleKind::kSharedExpert;
  }
  if (HasPiece(words, {"experts"}) || HasWord(words, {"expert", "block_sparse_moe"})) {
    return ModuleKind::kExpert;
  }
  if (HasWord(words, {"linear_attn", "mamba", "ssm", "delta_net"})) {
    return ModuleKind::kLinearAttention;
  }
  if (IsOneOf(leaf, {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "wq", "wk", "wv", "wo",
                     "wqkv", "c_attn", "query_key_value"}) ||
      HasPiece(words, {"attn", "attention", "Attention"})) {
    return ModuleKind::kAttention;
  }
  if (HasWord(words, {"mixer"})) {  // Nemotron-H: Mamba, attention and MLP under one name
    return IsOneOf(leaf, {"up_proj", "down_proj", "gate_proj"}) ? ModuleKind::kMlp
                                                                : ModuleKind::kLinearAttention;
  }
  if (HasPiece(words, {"mlp", "feed_forward", "ffn"}) ||
      IsOneOf(leaf, {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3", "fc1",
                     "fc2", "c_fc"})) {
    return ModuleKind::kMlp;
  }
  return ModuleKind::kOther;
}

// --- Experts in one tensor ----------------------------------------------------------------------

bool IsGateUp(std::string_view leaf) {
  return IsOneOf(leaf, {"gate_up_proj", "gate_proj", "up_proj", "w1", "w3"});
}
bool IsDown(std::string_view leaf) { return IsOneOf(leaf, {"down_proj", "w2"}); }

// [E, N, K] or [E, K, N], from one sign; nullopt where it does not tell.
using Orientation = std::optional<WeightForm>;

// The axis that is the model's hidden size is K of gate and up, and N of down.
Orientation FromHiddenSize(bool gate_up, const std::vector<int64_t>& shape, int64_t hidden_size) {
  if (hidden_size <= 0 || shape[1] == shape[2]) return std::nullopt;
  if (shape[1] == hidden_size) {
    return gate_up ? WeightForm::kExpertColumns : WeightForm::kExpertRows;
  }
  if (shape[2] == hidden_size) {
    return gate_up ? WeightForm::kExpertRows : WeightForm::kExpertColumns;
  }
  return std::nullopt;
}

// [E, 2F, H] goes with [E, H, F], and [E, H, 2F] with [E, F, H].
Orientation FromPartner(const std::vector<int64_t>& gate_up, const std::vector<int64_t>& down) {
  if (gate_up[0] != down[0]) return std::nullopt;
  const bool rows = gate_up[2] == down[1] && gate_up[1] % 2 == 0 && gate_up[1] / 2 == down[2];
  const bool columns = gate_up[1] == down[2] && gate_up[2] % 2 == 0 && gate_up[2] / 2 == down[1];
  if (rows == columns) return std::nullopt;
  return rows ? WeightForm::kExpertRows : WeightForm::kExpertColumns;
}

std::string JoinedBefore(const Words& words, size_t end) {
  std::string text;
  for (size_t i = 0; i < end; ++i) absl::StrAppend(&text, i == 0 ? "" : ".", ToAbsl(words[i]));
  return text;
}

// Conv1D of the first GPT models: a matrix [inputs, outputs], of which squares do not tell.
bool IsTransposedMatrix(std::string_view model_type, std::string_view leaf) {
  return IsOneOf(model_type, {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}) &&
         IsOneOf(leaf, {"c_attn", "c_proj", "c_fc", "q_attn"});
}

}  // namespace

LayoutReader::LayoutReader(const Model& model, ExportFormat format)
    : model_(model), format_(format), layers_(model.layers) {
  by_name_.reserve(model.tensors.size());
  for (const ModelTensor& tensor : model.tensors) by_name_.emplace(tensor.name, &tensor);
  if (layers_ > 0) return;
  int64_t layers = 0;
  for (const ModelTensor& tensor : model.tensors) layers = std::max(layers, Read(tensor).layer + 1);
  layers_ = layers;
}

const ModelTensor* LayoutReader::Find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

TensorLayout LayoutReader::Read(const ModelTensor& tensor) const {
  TensorLayout layout;
  constexpr std::string_view kWeight = ".weight";
  const bool is_weight = tensor.name.ends_with(kWeight) && tensor.name.size() > kWeight.size();
  layout.module =
      is_weight ? tensor.name.substr(0, tensor.name.size() - kWeight.size()) : tensor.name;
  const std::string lower = absl::AsciiStrToLower(layout.module);
  const Words original = Components(layout.module), words = Components(lower);
  const std::string_view leaf = words.back();

  // Where it is.
  std::optional<int64_t> layer;
  for (size_t i = 0; i + 1 < words.size() && !layer; ++i) {
    if (IsOneOf(words[i], {"layers", "layer", "h", "blocks", "block"})) {
      layer = ComponentNumber(words[i + 1]);
    }
  }
  const bool after_last =
      layer && layers_ > 0 && *layer >= layers_ && !HasWord(words, {"encoder", "decoder"});
  if (IsTower(words)) {
    layout.kind = ModuleKind::kVision;
  } else if (IsMtp(words) || after_last) {
    layout.kind = ModuleKind::kMtp;
  } else {
    layout.layer = layer.value_or(-1);
    // A parameter other than a weight says through its module what it is for.
    Words module = words;
    if (!is_weight && module.size() > 1 && (leaf == "bias" || leaf == "weight")) module.pop_back();
    layout.kind = KindOf(module, module.back(), layer.has_value());
  }

  // Whether it is a linear layer's weight.
  const auto never = [&](std::string_view reason) {
    layout.reason = reason;
    return layout;
  };
  const size_t rank = tensor.shape.size();
  if (leaf.ends_with("bias") && !(is_weight && rank == 2)) return never("a bias");
  if (IsNorm(leaf)) return never("a norm");
  if (IsEmbedding(leaf) || HasPiece(words, {"patch_embed"})) return never("an embedding");
  if (leaf.find("conv") != leaf.npos || rank > 3) return never("a convolution");
  if (rank < 2) return never(rank == 0 ? "a scalar" : "a vector");
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    if (words[i].find("experts") == words[i].npos || words[i].starts_with("shared")) continue;
    layout.experts = JoinedBefore(original, i + 1);
    break;
  }
  if (rank == 3) {
    if (layout.experts.empty() && layout.kind != ModuleKind::kExpert) {
      return never("a tensor of three dimensions");
    }
    ReadExperts3D(tensor, leaf, layout);
  } else if (!is_weight) {
    layout.experts.clear();
    return never("a parameter of no linear layer");
  } else if (IsTransposedMatrix(model_.model_type, leaf)) {
    layout.quantizable = Quantizability::kUnknown;
    layout.reason = "a weight stored as [inputs, outputs]";
  } else {
    layout.quantizable = IsRouter(words, leaf) ? Quantizability::kRouter : Quantizability::kLinear;
    layout.rows = tensor.shape[0];
    layout.cols = tensor.shape[1];
  }
  if (layout.quantizable == Quantizability::kRouter) layout.experts.clear();
  if (layout.quantizable != Quantizability::kLinear) return layout;

  // With which others it must agree. Batched products have a scale for each projection.
  const std::string_view own = original.back();
  const FusedPlace fused =
      layout.form == WeightForm::kExpertColumns ? FusedPlace() : FusedPlaceOf(own);
  if (fused.names != nullptr) {
    const std::string parent = JoinedBefore(original, original.size() - 1);
    layout.fused_group = absl::StrCat(parent, parent.empty() ? "" : ".", ToAbsl(fused.names->name));
    layout.fused_member = fused.member;
  }
  if (!layout.experts.empty()) {
    layout.experts_input = absl::StrCat(layout.experts, ".*.",
                                        ToAbsl(fused.names != nullptr ? fused.names->name : own));
  }
  return layout;
}

void LayoutReader::ReadExperts3D(const ModelTensor& tensor, std::string_view leaf,
                                 TensorLayout& layout) const {
  layout.quantizable = Quantizability::kUnknown;
  const bool gate_up = IsGateUp(leaf);
  if (!gate_up && !IsDown(leaf)) {
    layout.reason = "a tensor of experts whose layout is not known";
    return;
  }
  const std::vector<int64_t>& shape = tensor.shape;
  // Both signs where there are both: they must not contradict each other.
  const Orientation by_size = FromHiddenSize(gate_up, shape, model_.hidden_size);
  Orientation by_partner;
  const std::string_view suffix = tensor.name.ends_with(".weight") ? ".weight" : "";
  const std::string parent = layout.module.substr(0, layout.module.size() - leaf.size());
  if (leaf == "gate_up_proj" || leaf == "down_proj") {
    const ModelTensor* partner =
        Find(absl::StrCat(parent, gate_up ? "down_proj" : "gate_up_proj", ToAbsl(suffix)));
    if (partner != nullptr && partner->shape.size() == 3) {
      by_partner =
          gate_up ? FromPartner(shape, partner->shape) : FromPartner(partner->shape, shape);
    }
  }
  if ((!by_size && !by_partner) || (by_size && by_partner && *by_size != *by_partner)) {
    layout.reason = absl::StrCat("a tensor of experts ", ShapeName(shape),
                                 " that does not tell which axis is its input's");
    return;
  }
  WeightForm form = by_partner ? *by_partner : *by_size;
  // One tensor for all is what loaders of two architectures read, in ModelOpt's form.
  const bool takes_turns = model_.model_type == "gpt_oss";  // even ones gate, odd ones up
  const bool together = takes_turns || (model_.model_type.starts_with("llama4") &&
                                        format_ == ExportFormat::kModelopt);
  if (form == WeightForm::kExpertColumns && !together) form = WeightForm::kTurnedExperts;
  if (SplitsExperts(form) && Find(absl::StrCat(layout.module, "_bias")) != nullptr) {
    layout.reason = "experts with biases, for which matrices of their own have no names";
    return;
  }
  if (SplitsExperts(form) && leaf == "gate_up_proj") {
    if (shape[form == WeightForm::kExpertRows ? 1 : 2] % 2 != 0) {
      layout.reason = "a tensor of gate and up with an odd number of rows";
      return;
    }
    if (takes_turns) {
      layout.reason = "a tensor of gate and up in turn";
      return;
    }
  }
  layout.quantizable = Quantizability::kLinear;
  layout.form = form;
  layout.matrices = shape[0];
  layout.rows = shape[form == WeightForm::kExpertRows ? 1 : 2];
  layout.cols = shape[form == WeightForm::kExpertRows ? 2 : 1];
}

bool NamesModule(std::string_view pattern, std::string_view module) {
  const std::string_view leaf = Components(module).back();
  if (pattern.starts_with("re:") && pattern.ends_with("$")) pattern.remove_suffix(1);
  if (leaf.empty() || !pattern.ends_with(leaf)) return false;
  pattern.remove_suffix(leaf.size());
  if (pattern.empty()) return true;
  // "*.gate", "*gate" and "re:.*[.]gate", but not "investigate".
  const char before = pattern.back();
  return !absl::ascii_isalnum(static_cast<unsigned char>(before)) && before != '_';
}

}  // namespace nibble
