// What all kernels call a warp.
#ifndef NIBBLE_KERNELS_CUDA_WARP_CUH_
#define NIBBLE_KERNELS_CUDA_WARP_CUH_

namespace nibble {

// Every lane, as __shfl_sync and its like take them.
inline constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_WARP_CUH_
