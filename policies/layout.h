// What a tensor is in the layouts that models come in, as its name and shape tell: which module it
// belongs to, whether that is a linear layer, how its elements make matrices, and with which others
// it must agree. Recipes choose among what may be quantized; what never may is settled here.
#ifndef NIBBLE_POLICIES_LAYOUT_H_
#define NIBBLE_POLICIES_LAYOUT_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "policies/model.h"
#include "policies/plan.h"

namespace nibble {

// Whether a tensor may be quantized.
enum class Quantizability : uint8_t {
  kLinear,   // a linear layer's weight: a recipe decides
  kRouter,   // likewise, but only a rule that names it (see NamesModule) can quantize it
  kNever,    // norms, embeddings, convolutions, biases, vectors, scalars, buffers
  kUnknown,  // could be a linear layer's weight, in no layout that is known here
};

struct TensorLayout {
  std::string module;  // the name without ".weight"
  // Towers of other modalities (images, audio, and what leads from them to the language model) are
  // kVision, layers after the last (speculative decoding) kMtp, whatever their parts are.
  ModuleKind kind = ModuleKind::kOther;
  int64_t layer = -1;  // -1 outside of the language model's layers, hence in towers and MTP
  Quantizability quantizable = Quantizability::kNever;
  std::string reason;  // of kNever and kUnknown: "a norm"

  // Of kLinear and kRouter:
  WeightForm form = WeightForm::kMatrix;
  int64_t matrices = 1, rows = 0, cols = 0;  // each [rows, cols]; cols is the axis of blocks

  // Equal where modules share one global amax because engines run them as one (q, k and v; gate and
  // up); empty where a module is alone. "model.layers.0.self_attn.{q,k,v}_proj", whether all of
  // them are there or not.
  std::string fused_group;
  int fused_member = 0;  // its place in that name
  // Of a routed expert: "model.layers.0.mlp.experts"; empty elsewhere.
  std::string experts;
  // Of a routed expert: equal for the same projections (gate and up; down) of all experts.
  std::string experts_input;
};

class LayoutReader {
 public:
  // `model` outlives the reader. The format of the result has a say in whether experts [E, K, N]
  // stay one tensor.
  LayoutReader(const Model& model, ExportFormat format);

  TensorLayout Read(const ModelTensor& tensor) const;

  // Of the language model: config.json's, or where that does not say, one more than the highest.
  int64_t layers() const { return layers_; }
  const ModelTensor* Find(std::string_view name) const;

 private:
  void ReadExperts3D(const ModelTensor& tensor, std::string_view leaf, TensorLayout& layout) const;

  const Model& model_;
  const ExportFormat format_;
  int64_t layers_ = 0;
  std::unordered_map<std::string_view, const ModelTensor*> by_name_;
};

// Whether a pattern of a recipe ends in the module's own last name ("*.mlp.gate", "*router",
// "re:.*\.gate$"), so that it was written for such modules rather than for all.
bool NamesModule(std::string_view pattern, std::string_view module);

}  // namespace nibble

#endif  // NIBBLE_POLICIES_LAYOUT_H_
