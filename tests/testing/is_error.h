// EXPECT_TRUE(IsError(status, absl::StatusCode::kDataLoss, "expected"));
#ifndef NIBBLE_TESTS_TESTING_IS_ERROR_H_
#define NIBBLE_TESTS_TESTING_IS_ERROR_H_

#include <string_view>

#include "base/status.h"
#include "gtest/gtest.h"

namespace nibble::testing {

inline constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
inline constexpr absl::StatusCode kPrecondition = absl::StatusCode::kFailedPrecondition;
inline constexpr absl::StatusCode kDataLoss = absl::StatusCode::kDataLoss;
inline constexpr absl::StatusCode kNotFound = absl::StatusCode::kNotFound;
inline constexpr absl::StatusCode kUnimplemented = absl::StatusCode::kUnimplemented;

// Of this code, with `piece` somewhere in the message.
inline ::testing::AssertionResult IsError(const absl::Status& status, absl::StatusCode code,
                                          std::string_view piece) {
  const bool same =
      status.code() == code && ToStd(status.message()).find(piece) != std::string_view::npos;
  if (same) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "expected " << absl::StatusCodeToString(code)
                                       << " with \"" << piece << "\", got " << status;
}

template <typename T>
::testing::AssertionResult IsError(const absl::StatusOr<T>& result, absl::StatusCode code,
                                   std::string_view piece) {
  return IsError(result.status(), code, piece);
}

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_IS_ERROR_H_
