#include "base/tensor_view.h"

#include "absl/strings/str_join.h"
#include "base/status.h"

namespace nibble {
std::string ShapeName(std::span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape.begin(), shape.end(), ", "), "]");
}

std::string TypeName(DType dtype, std::span<const int64_t> shape) {
  return absl::StrCat(ToAbsl(DTypeName(dtype)), " ", ShapeName(shape));
}

std::optional<int64_t> ElementCount(std::span<const int64_t> shape) {
  int64_t count = 1;
  for (int64_t dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(count, dim, &count)) return std::nullopt;
  }
  return count;
}

absl::StatusOr<MatrixView> AsQuantizableMatrix(const void* data, DType dtype,
                                               std::span<const int64_t> shape) {
  if (!IsQuantizable(dtype)) {
    return absl::FailedPreconditionError(
        absl::StrCat("dtype: expected BF16, F16 or F32, got ", ToAbsl(DTypeName(dtype))));
  }
  const int64_t cols = shape.empty() ? 1 : shape.back();
  if (cols <= 0 || cols % 16 != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("shape: expected a last dimension that is a positive multiple of 16, got ",
                     ShapeName(shape)));
  }
  const std::optional<int64_t> rows = ElementCount(shape.first(shape.size() - 1));
  if (!rows || !ElementCount(shape)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "shape: expected at most 2^63-1 elements, none of the dimensions negative, got ",
        ShapeName(shape)));
  }
  return MatrixView{data, dtype, *rows, cols};
}

}  // namespace nibble
