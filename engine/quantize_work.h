// From a plan to what is to be done: which tensors the result has, in which files, and the steps in
// which they are read, quantized and written.
#ifndef NIBBLE_ENGINE_QUANTIZE_WORK_H_
#define NIBBLE_ENGINE_QUANTIZE_WORK_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/export.h"
#include "io/safetensors.h"
#include "policies/model.h"
#include "policies/plan.h"
#include "policies/recipe.h"

namespace nibble {

// One tensor of the result and where it goes.
struct PlacedTensor {
  OutputTensor tensor;
  int row = 0;  // of the plan
  int shard = 0;
  size_t index = 0;  // in the shard
};

// A step: what is read, quantized and written in one piece.
struct QuantizeTask {
  enum Kind : uint8_t { kCopy, kGroup, kExpert, kColumns } kind = kCopy;
  std::vector<int> rows;        // of the plan; one, but of kGroup
  int64_t expert = 0;           // kExpert
  uint64_t begin = 0, end = 0;  // kCopy: bytes of the tensor
  int shard = 0;
  int64_t weights = 0;
  int64_t bytes = 0;  // held while under way
};

struct ResultShard {
  std::string name = {};
  std::vector<TensorSpec> tensors = {};
  uint64_t bytes = 0;
  size_t first_task = 0;  // the others follow it
  int64_t tasks = 0;
};

struct QuantizeWork {
  std::vector<PlacedTensor> tensors;
  std::vector<std::vector<size_t>> tensors_of;  // by row of the plan: indices into `tensors`
  std::vector<ResultShard> shards;
  std::vector<QuantizeTask> tasks;  // those of a shard are neighbours
};

// `model`: its folder, for messages. FailedPrecondition where two tensors of the result would have
// one name; what OutputsOf refuses.
absl::StatusOr<QuantizeWork> MakeQuantizeWork(const Plan& plan, const Recipe::Export& output,
                                              const std::string& model);

int64_t ElementsOf(const ModelTensor& tensor);
uint64_t BytesOfTensor(const ModelTensor& tensor);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_QUANTIZE_WORK_H_
