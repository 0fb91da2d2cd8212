// The second kernel of Hessian accumulation: sums of groups into Hessians.
#ifndef NIBBLE_KERNELS_CUDA_ACCUMULATE_HESSIAN_TOTAL_CUH_
#define NIBBLE_KERNELS_CUDA_ACCUMULATE_HESSIAN_TOTAL_CUH_

#include <cstdint>

#include "kernels/cuda/accumulate_hessian_kernel.cuh"

namespace nibble {

inline constexpr int kHessianTotalThreads = 288;  // whole warps for two threads an entry

// A thread block is a slice, a thread every second lane of an entry.
__global__ void __launch_bounds__(kHessianTotalThreads)
    HessianTotalKernel(AccumulateHessianArgs args, int64_t groups) {
  const int odd = threadIdx.x % 2;
  const int e = min(static_cast<int>(threadIdx.x / 2), kHessianEntries - 1);
  const int64_t slices = gridDim.x;
  const float* sums = args.workspace + static_cast<int64_t>(blockIdx.x) * kHessianEntries + e;
  constexpr int kOwn = kHessianLanes / 2;
  float lanes[kOwn] = {};
#pragma unroll 2
  for (int64_t first = 0; first < groups; first += kHessianLanes) {
#pragma unroll
    for (int m = 0; m < kOwn; ++m) {
      const int64_t group = first + 2 * m + odd;
      if (group < groups)
        lanes[m] = AddRn(lanes[m], __ldg(sums + group * slices * kHessianEntries));
    }
  }
#pragma unroll
  for (int half = kOwn / 2; half > 0; half /= 2) {
#pragma unroll
    for (int m = 0; m < half; ++m) lanes[m] = AddRn(lanes[m], lanes[m + half]);
  }
  const float total = AddRn(lanes[0], __shfl_xor_sync(kWholeWarp, lanes[0], 1));
  // The even thread has (i, j), the odd one (j, i).
  if (threadIdx.x >= 2 * kHessianEntries) return;
  const int i = HessianEntryRow(e), j = HessianEntryColumn(e);
  if (odd != 0 && i == j) return;
  float* h = args.hessians + static_cast<int64_t>(blockIdx.x) * kHessianSize +
             (odd != 0 ? j * kBlockSize + i : i * kBlockSize + j);
  const float result = AddRn(*h, total);
  *h = result;
  if (!IsFinite(result)) {
    // -1, the largest, is none.
    atomicMin(reinterpret_cast<unsigned long long*>(args.bad_slice),
              static_cast<unsigned long long>(blockIdx.x));
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_ACCUMULATE_HESSIAN_TOTAL_CUH_
