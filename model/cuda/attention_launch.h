// Causal attention with grouped queries and a sliding window, sequence by sequence: raw device
// pointers aligned to 256 bytes, a stream. No allocation, no synchronisation; may be captured in a
// graph.
#ifndef NIBBLE_MODEL_CUDA_ATTENTION_LAUNCH_H_
#define NIBBLE_MODEL_CUDA_ATTENTION_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/cuda/layer_launch.h"

namespace nibble {

inline constexpr int kAttentionQueries = 64;  // of a piece, at most
// Of the path by tensor cores; wider heads go by float32.
inline constexpr int64_t kAttentionTensorHeadDim = 128;
inline constexpr int64_t kAttentionMaxHeadDim = 256;

// Consecutive queries of one sequence.
struct AttentionPiece {
  int32_t begin = 0;       // the row of the sequence's first token
  int32_t first = 0;       // query, counted from there
  int32_t count = 0;       // 1 .. kAttentionQueries
  int32_t after_last = 0;  // first + count: no later key is seen
};

struct AttentionArgs {
  const float *q = nullptr, *k = nullptr, *v = nullptr;  // rows x (heads or kv_heads * head_dim)
  int64_t rows = 0;
  int64_t heads = 0, kv_heads = 0, head_dim = 0;  // head_dim: even, up to kAttentionMaxHeadDim
  int64_t window = 0;                             // 0 for none
  const AttentionPiece* pieces = nullptr;
  int64_t piece_count = 0;
  LinearInputArgs out = {};  // rows x (heads * head_dim)

  // Of the path by tensor cores: bytes that AttentionWorkspace asks for.
  void* workspace = nullptr;
};

// Scores, softmax and sums in float32, operands as they are.
cudaError_t LaunchAttentionF32(const AttentionArgs& args, cudaStream_t stream);

// By tensor cores: q, k, v and the probabilities are rounded to fp16, after a power of two has
// brought the largest of each of q, k and v to 2^13, so that 11 bits are kept of all that is not
// below 2^-27 of it; scores, softmax and sums are float32. head_dim <= kAttentionTensorHeadDim.
cudaError_t LaunchAttentionTensor(const AttentionArgs& args, cudaStream_t stream);
int64_t AttentionWorkspace(int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim);

}  // namespace nibble

#endif  // NIBBLE_MODEL_CUDA_ATTENTION_LAUNCH_H_
