#include <algorithm>
#include <cmath>

#include "model/cuda/attention_kernel.cuh"
#include "model/cuda/attention_launch.h"

namespace nibble {
namespace {

int64_t PackedDim(int64_t head_dim) { return (head_dim + 31) / 32 * 32; }

// Each part begins at a multiple of 256 bytes.
int64_t PartBytes(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Calls launch(std::integral_constant) with the smallest of 1 .. kMost that 32 times as many
// channels fit in.
template <int kMost, typename Launch>
cudaError_t DispatchDim(int64_t head_dim, const Launch& launch) {
  const int64_t lane_dims = (head_dim + 31) / 32;
  if (lane_dims == kMost) return launch(std::integral_constant<int, kMost>{});
  if constexpr (kMost > 1) {
    return DispatchDim<kMost - 1>(head_dim, launch);
  } else {
    return cudaErrorInvalidValue;
  }
}

template <typename Kernel>
cudaError_t AllowShared(Kernel* kernel, int bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

bool IsShape(const AttentionArgs& args, int64_t most_dim) {
  return args.head_dim > 0 && args.head_dim % 2 == 0 && args.head_dim <= most_dim &&
         args.kv_heads > 0 && args.heads % args.kv_heads == 0 &&
         args.piece_count * args.heads < int64_t{1} << 31;
}

}  // namespace

int64_t AttentionWorkspace(int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim) {
  const int64_t dim = PackedDim(head_dim);
  return PartBytes(2 * rows * heads * dim) + 2 * PartBytes(2 * rows * kv_heads * dim) + 256;
}

cudaError_t LaunchAttentionTensor(const AttentionArgs& args, cudaStream_t stream) {
  if (!IsShape(args, kAttentionTensorHeadDim)) return cudaErrorInvalidValue;
  if (args.piece_count == 0) return cudaSuccess;
  const int64_t dim = PackedDim(args.head_dim);
  char* at = static_cast<char*>(args.workspace);
  uint32_t* amax = reinterpret_cast<uint32_t*>(at);
  at += 256;
  __half* q = reinterpret_cast<__half*>(at);
  at += PartBytes(2 * args.rows * args.heads * dim);
  __half* k = reinterpret_cast<__half*>(at);
  at += PartBytes(2 * args.rows * args.kv_heads * dim);
  __half* v = reinterpret_cast<__half*>(at);

  cudaError_t error = cudaMemsetAsync(amax, 0, 3 * sizeof(*amax), stream);
  if (error != cudaSuccess) return error;
  const int64_t pairs = args.rows * args.heads * dim / 2;
  const unsigned blocks =
      static_cast<unsigned>(std::min<int64_t>((pairs + kPackThreads - 1) / kPackThreads, 1 << 14));
  AttentionAmaxKernel<<<dim3(std::min(blocks, 2048u), 3), kPackThreads, 0, stream>>>(args, amax);
  // Of the exponential of base 2.
  const float scale =
      static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(args.head_dim)));
  return DispatchDim<kAttentionTensorHeadDim / 32>(args.head_dim, [&](auto lane_dims) {
    constexpr int kDim = 32 * lane_dims;
    AttentionPackKernel<kDim><<<dim3(blocks, 3), kPackThreads, 0, stream>>>(args, amax, q, k, v);
    const cudaError_t allowed =
        AllowShared(AttentionTensorKernel<kDim>, kAttentionSharedBytes<kDim>);
    if (allowed != cudaSuccess) return allowed;
    AttentionTensorKernel<kDim>
        <<<static_cast<unsigned>(args.piece_count * args.heads), kAttentionThreads,
           kAttentionSharedBytes<kDim>, stream>>>(args, {q, k, v, amax}, scale);
    return cudaGetLastError();
  });
}

cudaError_t LaunchAttentionF32(const AttentionArgs& args, cudaStream_t stream) {
  if (!IsShape(args, kAttentionMaxHeadDim)) return cudaErrorInvalidValue;
  if (args.piece_count == 0) return cudaSuccess;
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(args.head_dim)));
  return DispatchDim<kAttentionMaxHeadDim / 32>(args.head_dim, [&](auto lane_dims) {
    constexpr int kBytes = kPlainSharedFloats<lane_dims> * static_cast<int>(sizeof(float));
    const cudaError_t allowed = AllowShared(AttentionPlainKernel<lane_dims>, kBytes);
    if (allowed != cudaSuccess) return allowed;
    const dim3 grid(static_cast<unsigned>(args.piece_count * args.heads),
                    kAttentionQueries / kPlainBlock);
    AttentionPlainKernel<lane_dims><<<grid, kAttentionThreads, kBytes, stream>>>(args, scale);
    return cudaGetLastError();
  });
}

}  // namespace nibble
