// What happens to each tensor of a model, and why. A plain value: `nibble plan` prints it, the
// pipeline carries it out.
#ifndef NIBBLE_POLICIES_PLAN_H_
#define NIBBLE_POLICIES_PLAN_H_

#include <array>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/enum_names.h"
#include "policies/model.h"
#include "policies/recipe.h"

namespace nibble {

// How a tensor's elements make matrices of N outputs by K inputs, which is what is quantized.
enum class WeightForm : uint8_t {
  kMatrix,         // [N, K]
  kExpertRows,     // [E, N, K]: exported as E (down_proj) or 2 E (gate_proj, up_proj) matrices
  kTurnedExperts,  // [E, K, N]: likewise, each expert transposed
  kExpertColumns,  // [E, K, N], the orientation of batched products: stays one tensor, one scale
};
template <>
inline constexpr std::array<std::string_view, 4> kEnumNames<WeightForm> = {
    "matrix", "expert_rows", "turned_experts", "expert_columns"};

// Whether each expert becomes matrices of its own.
constexpr bool SplitsExperts(WeightForm form) {
  return form == WeightForm::kExpertRows || form == WeightForm::kTurnedExperts;
}

struct PlanRow {
  ModelTensor tensor;
  std::string module;  // the tensor's name without ".weight": what rules match
  ModuleKind kind = ModuleKind::kOther;
  int64_t layer = -1;  // -1: outside of the layers
  bool quantize = false;
  bool warn = false;  // a rule asked for it but the tensor cannot be quantized
  std::string why;    // one line: the rule and its place, or what stands against it
  int rule = -1;      // of the recipe's, which decided; -1: none of them

  // Only where `quantize`:
  WeightForm form = WeightForm::kMatrix;
  Treatment treatment = {};
  int group = -1;        // in Plan::groups
  int input_group = -1;  // rows of one input_group are given the same input scale

  int64_t bytes_before = 0, bytes_after = 0;

  friend bool operator==(const PlanRow&, const PlanRow&) = default;
};

// One matrix of a row that is to be quantized: rows x cols, blocks along the columns.
struct MatrixShape {
  int64_t rows = 0, cols = 0;
};
MatrixShape MatrixShapeOf(const PlanRow& row);

// Rows that share one global amax (where SplitsExperts: one for each expert). Each quantized
// row is in one group, if need be alone.
struct FusedGroup {
  std::string name;       // "model.layers.0.self_attn.{q,k,v}_proj", or the module's where alone
  std::vector<int> rows;  // in Plan::rows, ascending

  friend bool operator==(const FusedGroup&, const FusedGroup&) = default;
};

struct Plan {
  std::vector<PlanRow> rows;  // every tensor of the model, in natural order of names (2 before 10)
  std::vector<FusedGroup> groups;  // in the order of their first rows
  int input_groups = 0;
  std::vector<std::string> warnings;

  friend bool operator==(const Plan&, const Plan&) = default;
};

struct PlanOptions {
  // Tensors that are known to hold NaN or infinity: like those whose K is no multiple of 16.
  std::set<std::string> non_finite = {};
  bool strict = false;  // a row that would warn is an error, FailedPrecondition
};

// The last rule that matches a module decides; a module that none matches is kept. Before the rules
// come facts, which policies/layout.h has: norms, embeddings, convolutions, biases and whatever is
// no linear layer's weight is kept, also lm_head where it is the embedding; a router is kept unless
// the deciding rule names routers, by `kinds` or by a pattern that ends in the module's last name
// ("*.mlp.gate", not "*"). A weight that a rule asks for but that has no K of a multiple of 16 is
// kept with a warning, and with it its fused group or, of an expert, all experts of the layer.
//
// InvalidArgument where the recipe quantizes nothing, and where what inference engines run as one
// would be treated differently (the members of a fused group; experts of one layer), naming both
// and their rules; Unimplemented, naming them, for tensors of a type that cannot be read yet (FP8
// blocks, MXFP4, weights that are quantized already); DataLoss where tensors of a model would be
// written under one name.
absl::StatusOr<Plan> MakePlan(const Recipe& recipe, const Model& model,
                              const PlanOptions& options = {});

// "nvfp4, mse with fp8_scale_sweep, weight-only"
std::string TreatmentName(const Treatment& treatment);

struct PlanTotals {
  int64_t tensors = 0, quantized = 0;                 // rows
  int64_t weights = 0, quantized_weights = 0;         // elements
  int64_t bytes_before = 0, bytes_after = 0;          // of all rows
  int64_t quantized_before = 0, quantized_after = 0;  // of those quantized

  // Of the result: over all rows, and over those quantized.
  double bits_per_weight() const;
  double quantized_bits_per_weight() const;
};
PlanTotals TotalsOf(const Plan& plan);

// A table for a person: tensors whose names differ in numbers only and that share their fate are
// one line. Ends with a newline.
std::string PlanAsText(const Plan& plan);

}  // namespace nibble

#endif  // NIBBLE_POLICIES_PLAN_H_
