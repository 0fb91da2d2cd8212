// Where a decoder's weights come from: a model folder's own, or what somebody made of them.
#ifndef NIBBLE_MODEL_WEIGHT_SOURCE_H_
#define NIBBLE_MODEL_WEIGHT_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "base/uninitialized_vector.h"
#include "io/model_folder.h"

namespace nibble {

struct HostTensor {
  DType dtype = DType::kF32;  // bf16, fp16 or fp32
  std::vector<int64_t> shape;
  UninitializedVector<std::byte> bytes;
};

// The tensor of that name ("model.layers.0.self_attn.q_proj.weight"); NotFound where there is none.
// The decoder checks shapes, types and values. Called from one thread at a time.
using WeightSource = std::function<absl::StatusOr<HostTensor>(const std::string& name)>;

// `count` values of such a tensor, from the element `first` on, as float32.
void WidenValues(const void* data, DType dtype, int64_t first, int64_t count, float* out);

// The folder's tensors as they are. The folder outlives the source.
WeightSource FolderWeights(const ModelFolder& folder);

}  // namespace nibble

#endif  // NIBBLE_MODEL_WEIGHT_SOURCE_H_
