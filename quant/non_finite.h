// Where a tensor holds NaN or infinity.
#ifndef NIBBLE_QUANT_NON_FINITE_H_
#define NIBBLE_QUANT_NON_FINITE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/dtype.h"

namespace nibble {

// The index of the first element that is; nullopt where none is, as in types that are not bf16,
// fp16 or fp32. `bytes`: whole elements, with any alignment.
std::optional<int64_t> FirstNonFinite(DType dtype, std::span<const std::byte> bytes);

}  // namespace nibble

#endif  // NIBBLE_QUANT_NON_FINITE_H_
