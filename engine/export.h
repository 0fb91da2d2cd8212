// What a quantized model looks like on disk: names, types and shapes of tensors, and the words in
// config.json, for each format. Pure functions of a plan.
//
// Both formats are those of other people's loaders. Two things follow from how these read scales:
//   - Activations whose scales are found at run time (per token) have nothing calibrated to store,
//     but a loader of W4A4 expects the tensor and inverts it: an input scale of 1 is stored, as
//     ModelOpt-style exporters of such models do. An engine that quantizes per token ignores it.
//   - An FP8 KV cache is declared without k_scale and v_scale tensors; loaders then use 1.
#ifndef NIBBLE_ENGINE_EXPORT_H_
#define NIBBLE_ENGINE_EXPORT_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "policies/model.h"
#include "policies/plan.h"
#include "policies/recipe.h"

namespace nibble {

inline constexpr std::string_view kWeight = ".weight";  // how the name of a matrix ends

// What a result was made by, for `nibble eval` and whoever asks later; loaders pass it over.
inline constexpr std::string_view kRecipeFile = "nibble_recipe.yaml";

enum class OutputPart : uint8_t {
  kCopy,         // the source's bytes
  kCodes,        // packed E2M1
  kBlockScale,   // E4M3
  kGlobalScale,  // float32; the format says whether multiplier or divisor
  kInputScale,   // likewise
};

// One tensor of the result, made from one row of the plan.
struct OutputTensor {
  ModelTensor tensor;
  OutputPart part = OutputPart::kCopy;
  // Where SplitsExperts(row.form): this expert's rows [row_begin, row_end) of its N.
  int64_t expert = -1;
  int64_t row_begin = 0, row_end = 0;

  friend bool operator==(const OutputTensor&, const OutputTensor&) = default;
};

// In the order in which they are written: for each matrix its codes, block scales, global scale
// and, unless weight-only, input scale. kExpertRows and kTurnedExperts are written as matrices of
// their own, "<experts>.<e>.gate_proj" and "up_proj" (the first and the second half of
// gate_up_proj's outputs) or "<experts>.<e>.down_proj"; kExpertColumns as one tensor of the
// source's name and orientation, packed along its middle axis, with "_weight_scale" and so on
// behind the name.
//
// Unimplemented where the format cannot hold the row: compressed-tensors has no kExpertColumns,
// which a plan for it has of gpt-oss alone: its gate and up take turns.
absl::StatusOr<std::vector<OutputTensor>> OutputsOf(const PlanRow& row, ExportFormat format);

// The scalar that the format stores for a global amax: ExportableAmax / (6 * e4m3_max), 1 for an
// all-zero tensor, or its reciprocal.
float StoredGlobalScale(float amax, int e4m3_max, ExportFormat format);

// The same for a scale that is known as a multiplier (that of a constant input scale): itself or
// 1 / multiplier, one division. multiplier: positive and normal.
float StoredScale(float multiplier, ExportFormat format);

// Files of the result besides tensors, as they are to be written: config.json with the
// quantization_config of the plan and without what an earlier quantization left, and
// hf_quant_config.json for modelopt. `config_json`: the source's; all else in it stays, in its
// order. DataLoss where it is no JSON object, InvalidArgument where the plan quantizes nothing.
struct ConfigFile {
  std::string name, text;

  friend bool operator==(const ConfigFile&, const ConfigFile&) = default;
};
absl::StatusOr<std::vector<ConfigFile>> ConfigFilesOf(const Plan& plan, const Recipe& recipe,
                                                      const std::string& config_json);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_EXPORT_H_
