// Unowned views. A view never outlives what it points at.
#ifndef NIBBLE_BASE_TENSOR_VIEW_H_
#define NIBBLE_BASE_TENSOR_VIEW_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "base/dtype.h"

namespace nibble {

// "[2, 3]"
std::string ShapeName(std::span<const int64_t> shape);
// "BF16 [2, 3]"
std::string TypeName(DType dtype, std::span<const int64_t> shape);

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

struct MutableMatrixView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
};

// Sees a tensor of any rank as [product of the leading dimensions, last dimension].
// FailedPrecondition unless the last dimension is a positive multiple of 16 and the type is bf16,
// fp16 or fp32.
absl::StatusOr<MatrixView> AsQuantizableMatrix(const void* data, DType dtype,
                                               std::span<const int64_t> shape);

}  // namespace nibble

#endif  // NIBBLE_BASE_TENSOR_VIEW_H_
