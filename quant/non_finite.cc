#include "quant/non_finite.h"

#include <algorithm>
#include <cstring>

namespace nibble {
namespace {

// `exponent`: all ones in NaN and infinity alone. Chunks are looked through without branches first.
template <typename Bits>
std::optional<int64_t> First(std::span<const std::byte> bytes, Bits exponent) {
  constexpr size_t kChunk = 4096 / sizeof(Bits);
  Bits chunk[kChunk];
  const size_t count = bytes.size() / sizeof(Bits);
  for (size_t begin = 0; begin < count; begin += kChunk) {
    const size_t n = std::min(kChunk, count - begin);
    std::memcpy(chunk, bytes.data() + begin * sizeof(Bits), n * sizeof(Bits));
    bool any = false;
    for (size_t i = 0; i < n; ++i) any |= (chunk[i] & exponent) == exponent;
    if (!any) continue;
    const Bits* bad =
        std::find_if(chunk, chunk + n, [&](Bits x) { return (x & exponent) == exponent; });
    return static_cast<int64_t>(begin) + (bad - chunk);
  }
  return std::nullopt;
}

}  // namespace

std::optional<int64_t> FirstNonFinite(DType dtype, std::span<const std::byte> bytes) {
  switch (dtype) {
    case DType::kBf16:
      return First<uint16_t>(bytes, 0x7F80);
    case DType::kF16:
      return First<uint16_t>(bytes, 0x7C00);
    case DType::kF32:
      return First<uint32_t>(bytes, 0x7F800000);
    default:
      return std::nullopt;
  }
}

}  // namespace nibble
