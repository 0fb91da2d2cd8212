// Division by a divisor that is known at launch: a 64-bit division costs a GPU some hundred
// instructions, this one ten.
#ifndef NIBBLE_KERNELS_CUDA_FAST_DIVIDE_H_
#define NIBBLE_KERNELS_CUDA_FAST_DIVIDE_H_

#include <cstdint>

#include "quant/numerics/float_bits.h"

namespace nibble {

class FastDivide {
 public:
  FastDivide() = default;
  // For numerators 0 <= n <= largest; divisor > 0.
  FastDivide(int64_t divisor, int64_t largest) : divisor_(static_cast<uint64_t>(divisor)) {
    // n * ceil(2^64 / divisor) / 2^64 exceeds n / divisor by less than 1 / divisor where
    // n * divisor < 2^64.
    const auto product = static_cast<unsigned __int128>(divisor_) * static_cast<uint64_t>(largest);
    if (divisor_ > 1 && product >> 64 == 0) magic_ = ~uint64_t{0} / divisor_ + 1;
  }

  // floor(n / divisor)
  NIBBLE_HD int64_t operator()(int64_t n) const {
    const uint64_t numerator = static_cast<uint64_t>(n);
    if (magic_ == 0) return static_cast<int64_t>(numerator / divisor_);
    return static_cast<int64_t>((static_cast<unsigned __int128>(numerator) * magic_) >> 64);
  }

 private:
  uint64_t divisor_ = 1;
  uint64_t magic_ = 0;  // ceil(2^64 / divisor); 0: divide
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_FAST_DIVIDE_H_
