// From run-time values to template arguments: every launcher's way to its kernel.
#ifndef NIBBLE_KERNELS_CUDA_DISPATCH_H_
#define NIBBLE_KERNELS_CUDA_DISPATCH_H_

#include <cuda_runtime_api.h>

#include <type_traits>
#include <utility>

#include "base/dtype.h"

namespace nibble {

// Tags of the input types.
struct Bf16 {};
struct F16 {};
struct F32 {};

// Calls launch(tag); cudaErrorInvalidValue for types that kernels do not read.
template <typename Launch>
cudaError_t DispatchInput(DType dtype, const Launch& launch) {
  switch (dtype) {
    case DType::kBf16:
      launch(Bf16{});
      break;
    case DType::kF16:
      launch(F16{});
      break;
    case DType::kF32:
      launch(F32{});
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

// Calls launch(std::integral_constant<int, index>), 0 <= index < kCount; cudaErrorInvalidValue for
// any other index.
template <int kCount, typename Launch>
cudaError_t DispatchIndex(int index, const Launch& launch) {
  if (index < 0 || index >= kCount) return cudaErrorInvalidValue;
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    (void)((index == kIndex && (launch(std::integral_constant<int, kIndex>{}), true)) || ...);
  }
  (std::make_integer_sequence<int, kCount>{});
  return cudaGetLastError();
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_DISPATCH_H_
