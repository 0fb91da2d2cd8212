#include "base/tensor_view.h"

#include <array>

#include "absl/strings/str_join.h"
#include "base/status.h"

namespace nibble {
namespace {

struct DTypeInfo {
  std::string_view name;
  int bytes;
};

constexpr std::array<DTypeInfo, 17> kDTypes = {{
    {"BOOL", 1},
    {"U8", 1},
    {"I8", 1},
    {"U16", 2},
    {"I16", 2},
    {"U32", 4},
    {"I32", 4},
    {"U64", 8},
    {"I64", 8},
    {"F8_E4M3", 1},
    {"F8_E5M2", 1},
    {"F8_E8M0", 1},
    {"F16", 2},
    {"BF16", 2},
    {"F32", 4},
    {"F64", 8},
    {"C64", 8},
}};
static_assert(static_cast<size_t>(DType::kC64) + 1 == kDTypes.size());

}  // namespace

std::string_view DTypeName(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].name; }

int DTypeBytes(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].bytes; }

std::optional<DType> DTypeFromName(std::string_view name) {
  for (size_t i = 0; i < kDTypes.size(); ++i) {
    if (kDTypes[i].name == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

std::string ShapeName(std::span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape.begin(), shape.end(), ", "), "]");
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
