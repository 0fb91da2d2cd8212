// What safetensors files hold, without reading more than headers and scales.
#ifndef NIBBLE_ENGINE_INSPECT_H_
#define NIBBLE_ENGINE_INSPECT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "io/safetensors.h"

namespace nibble {

// Of a quantized tensor, listed with the tensor that holds its codes.
struct QuantizedInfo {
  std::string format;   // "nibble", "modelopt" or "compressed-tensors"
  std::string scheme;   // "per_tensor", "per_token", "tile_2d"
  std::string rule;     // as far as the file says
  float scale_min = 0;  // over the block scales, decoded
  float scale_max = 0;
  int64_t scale_zero = 0;     // scales that are 0: legal at run time, never in a checkpoint
  int64_t scale_invalid = 0;  // NaN or negative
};

struct InspectedTensor {
  TensorInfo info;
  std::optional<QuantizedInfo> quantized;
};

struct InspectedFile {
  std::string path;
  std::map<std::string, std::string> metadata;
  std::vector<InspectedTensor> tensors;  // by name
};

// `path`: a safetensors file, or a folder, of which every *.safetensors is read, by name. NotFound
// where a folder has none.
absl::StatusOr<std::vector<InspectedFile>> Inspect(const std::string& path);

// Both end with a newline.
std::string InspectionAsText(const std::vector<InspectedFile>& files);
std::string InspectionAsJson(const std::vector<InspectedFile>& files);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_INSPECT_H_
