// Element types and unowned views. A view never outlives what it points at.
#ifndef NIBBLE_BASE_TENSOR_VIEW_H_
#define NIBBLE_BASE_TENSOR_VIEW_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace nibble {

// The element types of safetensors files, in the order of kDTypes below.
enum class DType : uint8_t {
  kBool,
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kU64,
  kI64,
  kF8E4M3,
  kF8E5M2,
  kF8E8M0,
  kF16,
  kBf16,
  kF32,
  kF64,
  kC64,
};

std::string_view DTypeName(DType dtype);                    // "BF16"
std::optional<DType> DTypeFromName(std::string_view name);  // safetensors spelling
int DTypeBytes(DType dtype);

// The three types that weights and activations come in.
constexpr bool IsQuantizable(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

// "[2, 3]"
std::string ShapeName(std::span<const int64_t> shape);

// Product of the dimensions; nullopt where one is negative or the product exceeds int64.
std::optional<int64_t> ElementCount(std::span<const int64_t> shape);

// A dense row-major matrix.
struct MatrixView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;

  int64_t size() const { return rows * cols; }
};

// Sees a tensor of any rank as [product of the leading dimensions, last dimension].
// FailedPrecondition unless the last dimension is a positive multiple of 16 and the type is bf16,
// fp16 or fp32.
absl::StatusOr<MatrixView> AsQuantizableMatrix(const void* data, DType dtype,
                                               std::span<const int64_t> shape);

}  // namespace nibble

#endif  // NIBBLE_BASE_TENSOR_VIEW_H_
