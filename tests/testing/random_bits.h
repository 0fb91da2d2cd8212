// Elements of every kind: any bit pattern of a type, hence NaN with payloads, infinities, -0.0,
// subnormals and huge values among them.
#ifndef NIBBLE_TESTS_TESTING_RANDOM_BITS_H_
#define NIBBLE_TESTS_TESTING_RANDOM_BITS_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "base/dtype.h"
#include "kernels/cpu/cpu_kernels.h"

namespace nibble::testing {

inline std::vector<std::byte> RandomBits(int64_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bits(bytes);
  for (std::byte& byte : bits) byte = static_cast<std::byte>(random());
  return bits;
}

// The same, with +0 for everything that is not below `limit` in magnitude.
inline std::vector<std::byte> RandomBitsBelow(float limit, DType dtype, int64_t count,
                                              uint64_t seed) {
  const int bytes = DTypeBytes(dtype);
  std::vector<std::byte> bits = RandomBits(count * bytes, seed);
  for (int64_t i = 0; i < count; ++i) {
    const float value = LoadElement(dtype, bits.data(), i);
    if (!(std::fabs(value) < limit)) std::memset(bits.data() + i * bytes, 0, bytes);
  }
  return bits;
}

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_RANDOM_BITS_H_
