#include "base/status.h"

#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;

TEST(AnnotateTest, PutsTheContextInFrontAndKeepsTheCode) {
  EXPECT_EQ(Annotate(absl::DataLossError("header: expected JSON, got x"), "a.safetensors"),
            absl::DataLossError("a.safetensors: header: expected JSON, got x"));
  EXPECT_EQ(Annotate(Annotate(absl::NotFoundError("c"), "b"), "a"), absl::NotFoundError("a: b: c"));
}

TEST(AnnotateTest, LetsOkThrough) { EXPECT_TRUE(Annotate(absl::OkStatus(), "context").ok()); }

TEST(StringViewTest, CrossesTheBridgeUnchanged) {
  const std::string text("a\0b", 3);
  EXPECT_EQ(ToStd(ToAbsl(text)), text);
  EXPECT_EQ(ToStd(ToAbsl(std::string_view())), "");
}

absl::Status CountAndReturn(int& calls, const absl::Status& status) {
  ++calls;
  return status;
}

absl::Status ReturnIfError(int& calls, const absl::Status& first) {
  NIBBLE_RETURN_IF_ERROR(CountAndReturn(calls, first));
  NIBBLE_RETURN_IF_ERROR(CountAndReturn(calls, absl::OkStatus()));
  return absl::OkStatus();
}

TEST(ReturnIfErrorTest, ReturnsErrorsAndEvaluatesOnce) {
  int calls = 0;
  EXPECT_TRUE(ReturnIfError(calls, absl::OkStatus()).ok());
  EXPECT_EQ(calls, 2);
  EXPECT_TRUE(
      IsError(ReturnIfError(calls, absl::AbortedError("x")), absl::StatusCode::kAborted, "x"));
  EXPECT_EQ(calls, 3);
}

// In a branch without braces the macro must not take the `else`.
absl::Status ReturnIfErrorInBranch(bool check, const absl::Status& status) {
  if (check)
    NIBBLE_RETURN_IF_ERROR(status);
  else
    return absl::CancelledError("not checked");
  return absl::OkStatus();
}

TEST(ReturnIfErrorTest, IsOneStatement) {
  EXPECT_TRUE(ReturnIfErrorInBranch(true, absl::OkStatus()).ok());
  EXPECT_TRUE(IsError(ReturnIfErrorInBranch(true, absl::AbortedError("x")),
                      absl::StatusCode::kAborted, "x"));
  EXPECT_TRUE(IsError(ReturnIfErrorInBranch(false, absl::OkStatus()), absl::StatusCode::kCancelled,
                      "not checked"));
}

using Box = std::unique_ptr<int>;  // moves only

absl::StatusOr<Box> MakeBox(int value) {
  if (value < 0) return absl::OutOfRangeError(absl::StrCat("got ", value));
  return std::make_unique<int>(value);
}

absl::StatusOr<int> Sum(int a, int b) {
  NIBBLE_ASSIGN_OR_RETURN(const Box first, MakeBox(a));
  Box second;
  NIBBLE_ASSIGN_OR_RETURN(second, MakeBox(b));
  return *first + *second;
}

TEST(AssignOrReturnTest, MovesTheValueOrReturnsTheError) {
  EXPECT_EQ(Sum(2, 3).value(), 5);
  EXPECT_TRUE(IsError(Sum(-1, 3), absl::StatusCode::kOutOfRange, "got -1"));
  EXPECT_TRUE(IsError(Sum(1, -3), absl::StatusCode::kOutOfRange, "got -3"));
}

TEST(CheckDeathTest, NamesTheExpressionAndThePlace) {
  int calls = 0;
  NIBBLE_CHECK(++calls == 1);
  EXPECT_EQ(calls, 1);
  EXPECT_DEATH(NIBBLE_CHECK(calls == 7), "status_test.cc:[0-9]+: .*calls == 7");
}

}  // namespace
}  // namespace nibble
