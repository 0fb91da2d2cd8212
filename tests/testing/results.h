// Comparing what backends compute, field by field and bit for bit.
#ifndef NIBBLE_TESTS_TESTING_RESULTS_H_
#define NIBBLE_TESTS_TESTING_RESULTS_H_

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "quant/error_stats.h"

namespace nibble::testing {

// What was found for each block. How it was found, evaluations and near-ties, is not compared.
::testing::AssertionResult SameSweep(const SweepResult& expected, const SweepResult& actual);

// Packed bytes, what was found, and the loss of rounding to nearest.
::testing::AssertionResult SameFeedback(const FeedbackTensor& expected,
                                        const FeedbackTensor& actual);

::testing::AssertionResult SameStats(const ErrorStats& expected, const ErrorStats& actual);

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_RESULTS_H_
