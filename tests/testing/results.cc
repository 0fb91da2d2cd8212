#include "tests/testing/results.h"

#include <bit>
#include <cstdint>

#include "tests/testing/bytes.h"

namespace nibble::testing {

::testing::AssertionResult SameSweep(const SweepResult& expected, const SweepResult& actual) {
  if (auto same = SameBytes(expected.code, actual.code); !same) return same << " (code)";
  if (auto same = SameBytes(expected.loss, actual.loss); !same) return same << " (loss)";
  if (auto same = SameBytes(expected.best_amax, actual.best_amax); !same) {
    return same << " (best_amax)";
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult SameFeedback(const FeedbackTensor& expected,
                                        const FeedbackTensor& actual) {
  if (auto same = SamePacked(expected.packed, actual.packed); !same) return same;
  if (auto same = SameSweep(expected.found, actual.found); !same) return same;
  if (expected.nearest_loss != actual.nearest_loss) {
    return ::testing::AssertionFailure()
           << "nearest_loss: expected " << expected.nearest_loss << ", got " << actual.nearest_loss;
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult SameStats(const ErrorStats& expected, const ErrorStats& actual) {
  const struct {
    const char* name;
    double expected, actual;
  } values[] = {
      {"count", double(expected.count()), double(actual.count())},
      {"saturated", double(expected.saturated()), double(actual.saturated())},
      {"flushed", double(expected.flushed()), double(actual.flushed())},
      {"max_error", expected.max_error(), actual.max_error()},
      {"mse", expected.mse(), actual.mse()},
      {"relative_mse", expected.relative_mse(), actual.relative_mse()},
      {"sqnr_db", expected.sqnr_db(), actual.sqnr_db()},
      {"cosine", expected.cosine(), actual.cosine()},
  };
  for (const auto& value : values) {
    if (std::bit_cast<uint64_t>(value.expected) != std::bit_cast<uint64_t>(value.actual)) {
      return ::testing::AssertionFailure()
             << value.name << ": expected " << value.expected << ", got " << value.actual;
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace nibble::testing
