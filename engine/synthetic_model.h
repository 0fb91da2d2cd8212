// A made-up model folder of real shapes, for benchmarks: written as fast as the disk takes it.
#ifndef NIBBLE_ENGINE_SYNTHETIC_MODEL_H_
#define NIBBLE_ENGINE_SYNTHETIC_MODEL_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace nibble {

// Qwen3-8B's layers, fewer of them, and a smaller vocabulary: 4.1 GB in bf16, of which 1.93 billion
// weights in linear layers.
struct SyntheticModelShape {
  int64_t layers = 10, hidden = 4096, intermediate = 12288, heads = 32, kv_heads = 8,
          head_dim = 128;
  int64_t vocabulary = 16384;
  uint64_t shard_bytes = 2'000'000'000;
};

struct SyntheticModelSummary {
  int64_t tensors = 0, shards = 0;
  uint64_t bytes = 0;          // of tensors
  int64_t linear_weights = 0;  // elements of what a recipe quantizes
};

// Writes config.json, shards and their index into `folder`, which is made. Weights are weight-like
// values in bf16, tiled from one buffer with an offset for each tensor; the same bytes each time.
absl::StatusOr<SyntheticModelSummary> WriteSyntheticModel(const std::string& folder,
                                                          const SyntheticModelShape& shape = {});

}  // namespace nibble

#endif  // NIBBLE_ENGINE_SYNTHETIC_MODEL_H_
