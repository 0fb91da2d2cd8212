// Comparing results byte for byte.
#ifndef NIBBLE_TESTS_TESTING_BYTES_H_
#define NIBBLE_TESTS_TESTING_BYTES_H_

#include <cstddef>
#include <cstring>
#include <span>

#include "gtest/gtest.h"
#include "quant/packed_tensor.h"

namespace nibble::testing {

// Fails with the number of differing bytes and the first. Different lengths differ.
inline ::testing::AssertionResult SameBytes(std::span<const std::byte> expected,
                                            std::span<const std::byte> actual) {
  if (expected.size() != actual.size()) {
    return ::testing::AssertionFailure()
           << "expected " << expected.size() << " bytes, got " << actual.size();
  }
  size_t differ = 0, first = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] != actual[i] && differ++ == 0) first = i;
  }
  if (differ == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << differ << " of " << expected.size() << " bytes differ, the first at " << first
         << ": expected " << std::to_integer<int>(expected[first]) << ", got "
         << std::to_integer<int>(actual[first]);
}

template <typename A, typename B>
::testing::AssertionResult SameBytes(const A& expected, const B& actual) {
  return SameBytes(std::as_bytes(std::span(expected)), std::as_bytes(std::span(actual)));
}

inline ::testing::AssertionResult SamePacked(const PackedTensor& expected,
                                             const PackedTensor& actual) {
  if (!(expected.layout == actual.layout)) return ::testing::AssertionFailure() << "layouts differ";
  if (auto same = SameBytes(expected.amax, actual.amax); !same) return same << " (amax)";
  if (auto same = SameBytes(expected.scale, actual.scale); !same) return same << " (scale)";
  if (auto same = SameBytes(expected.packed, actual.packed); !same) return same << " (packed)";
  return ::testing::AssertionSuccess();
}

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_BYTES_H_
