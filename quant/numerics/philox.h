// Philox4x32-10 (Salmon et al., SC'11): a counter in, four random words out, so that a random
// number depends on the seed and the place it is used at, never on who computes it or when.
#ifndef NIBBLE_QUANT_NUMERICS_PHILOX_H_
#define NIBBLE_QUANT_NUMERICS_PHILOX_H_

#include <cstdint>

#include "quant/numerics/float_bits.h"

namespace nibble {

struct PhiloxWords {
  uint32_t word[4];
};

NIBBLE_HD PhiloxWords Philox4x32(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t c0 = static_cast<uint32_t>(counter_low), c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high), c3 = static_cast<uint32_t>(counter_high >> 32);
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c0 = n0;
    c1 = static_cast<uint32_t>(p1);
    c2 = n2;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The bits that round elements 4 * quad .. 4 * quad + 3 of a tensor stochastically: key = seed,
// counter = (quad, offset), lane = element % 4; the upper 31 bits of a word are the uniform number.
NIBBLE_HD PhiloxWords StochasticUniform31(uint64_t seed, uint64_t offset, uint64_t quad) {
  PhiloxWords words = Philox4x32(seed, quad, offset);
  for (uint32_t& word : words.word) word >>= 1;
  return words;
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_PHILOX_H_
