// Comparing results that rounding may change.
#ifndef NIBBLE_TESTS_TESTING_CLOSENESS_H_
#define NIBBLE_TESTS_TESTING_CLOSENESS_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include "gtest/gtest.h"

namespace nibble::testing {

namespace closeness_internal {

// Different sizes, nothing at all, or values that are not finite are never close.
inline ::testing::AssertionResult Comparable(std::span<const float> expected,
                                             std::span<const float> actual) {
  if (expected.empty() || expected.size() != actual.size()) {
    return ::testing::AssertionFailure()
           << "expected " << expected.size() << " values, got " << actual.size();
  }
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::isfinite(expected[i]) && std::isfinite(actual[i])) continue;
    return ::testing::AssertionFailure()
           << "value " << i << " is not finite: expected " << expected[i] << ", got " << actual[i];
  }
  return ::testing::AssertionSuccess();
}

}  // namespace closeness_internal

// Every difference is below `limit`.
inline ::testing::AssertionResult DifferencesBelow(double limit, std::span<const float> expected,
                                                   std::span<const float> actual) {
  if (auto same = closeness_internal::Comparable(expected, actual); !same) return same;
  double largest = 0;
  size_t where = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double difference = std::abs(double{expected[i]} - double{actual[i]});
    if (difference > largest) {
      largest = difference;
      where = i;
    }
  }
  if (largest < limit) return ::testing::AssertionSuccess() << "largest difference " << largest;
  return ::testing::AssertionFailure()
         << "largest difference " << largest << " at value " << where << ": expected "
         << expected[where] << ", got " << actual[where];
}

// The angle between them, as vectors, has a cosine above `limit`.
inline ::testing::AssertionResult CosineAbove(double limit, std::span<const float> expected,
                                              std::span<const float> actual) {
  if (auto same = closeness_internal::Comparable(expected, actual); !same) return same;
  double product = 0, expected_squares = 0, actual_squares = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    product += double{expected[i]} * actual[i];
    expected_squares += double{expected[i]} * expected[i];
    actual_squares += double{actual[i]} * actual[i];
  }
  const double cosine = product / std::sqrt(expected_squares * actual_squares);
  if (cosine > limit) return ::testing::AssertionSuccess() << "cosine " << cosine;
  return ::testing::AssertionFailure() << "cosine " << cosine;
}

// The difference's length is below `limit` times the expected one's.
inline ::testing::AssertionResult RelativeErrorBelow(double limit, std::span<const float> expected,
                                                     std::span<const float> actual) {
  if (auto same = closeness_internal::Comparable(expected, actual); !same) return same;
  double squares = 0, error = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double difference = double{actual[i]} - expected[i];
    error += difference * difference;
    squares += double{expected[i]} * expected[i];
  }
  const double relative = std::sqrt(error / squares);
  if (relative < limit) return ::testing::AssertionSuccess() << "relative error " << relative;
  return ::testing::AssertionFailure() << "relative error " << relative;
}

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_CLOSENESS_H_
