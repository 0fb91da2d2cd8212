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

// What launch(tag) returned, or the last error after one that returns nothing.
template <typename Launch, typename Tag>
cudaError_t ErrorOf(const Launch& launch, Tag tag) {
  if constexpr (std::is_void_v<decltype(launch(tag))>) {
    launch(tag);
    return cudaGetLastError();
  } else {
    return launch(tag);
  }
}

// ErrorOf(launch, a tag of the type); cudaErrorInvalidValue for types that kernels do not read.
template <typename Launch>
[[nodiscard]] cudaError_t DispatchInput(DType dtype, const Launch& launch) {
  switch (dtype) {
    case DType::kBf16:
      return ErrorOf(launch, Bf16{});
    case DType::kF16:
      return ErrorOf(launch, F16{});
    case DType::kF32:
      return ErrorOf(launch, F32{});
    default:
      return cudaErrorInvalidValue;
  }
}

// ErrorOf(launch, std::integral_constant<int, index>), 0 <= index < kCount; cudaErrorInvalidValue
// for any other index. Inside of another dispatch its result is that one's to return: reading the
// last error clears it.
template <int kCount, typename Launch>
[[nodiscard]] cudaError_t DispatchIndex(int index, const Launch& launch) {
  cudaError_t error = cudaErrorInvalidValue;
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    (void)((index == kIndex &&
            (error = ErrorOf(launch, std::integral_constant<int, kIndex>{}), true)) ||
           ...);
  }
  (std::make_integer_sequence<int, kCount>{});
  return error;
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_DISPATCH_H_
