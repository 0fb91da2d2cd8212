// Element types. Standard headers only: device code includes this.
#ifndef NIBBLE_BASE_DTYPE_H_
#define NIBBLE_BASE_DTYPE_H_

#include <cstdint>
#include <optional>
#include <string_view>

namespace nibble {

// The element types of safetensors files, in the order of the table in dtype.cc.
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

}  // namespace nibble

#endif  // NIBBLE_BASE_DTYPE_H_
