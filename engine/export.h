// What a quantized model looks like on disk: names, types and shapes of tensors, and the words in
// config.json, for each format. Pure functions of a plan.
#ifndef NIBBLE_ENGINE_EXPORT_H_
#define NIBBLE_ENGINE_EXPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "policies/model.h"
#include "policies/plan.h"
#include "policies/recipe.h"

namespace nibble {

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
  // Of WeightForm::kExpertRows: this expert's rows [row_begin, row_end) of its N.
  int64_t expert = -1;
  int64_t row_begin = 0, row_end = 0;

  friend bool operator==(const OutputTensor&, const OutputTensor&) = default;
};

// In the order in which they are written. Unimplemented where the format cannot hold the row
// (compressed-tensors has no kExpertColumns).
absl::StatusOr<std::vector<OutputTensor>> OutputsOf(const PlanRow& row, ExportFormat format);

// The scalar that the format stores for a global amax: amax / (6 * e4m3_max), 1 for an all-zero
// tensor, or its reciprocal.
float StoredGlobalScale(float amax, int e4m3_max, ExportFormat format);

// Files of the result besides tensors, as they are to be written: config.json with the
// quantization_config of the plan and without what an earlier quantization left, and
// hf_quant_config.json for modelopt. `config_json`: the source's.
struct ConfigFile {
  std::string name, text;
};
absl::StatusOr<std::vector<ConfigFile>> ConfigFilesOf(const Plan& plan, const Recipe& recipe,
                                                      const std::string& config_json);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_EXPORT_H_
