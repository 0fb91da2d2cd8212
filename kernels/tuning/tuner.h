// Which of several candidates is fastest. Knows no operation: candidates in, costs in, best out.
#ifndef NIBBLE_KERNELS_TUNING_TUNER_H_
#define NIBBLE_KERNELS_TUNING_TUNER_H_

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

struct TuningOptions {
  int warmup_rounds = 3;  // measured and dropped
  int rounds = 30;
  // A candidate replaces the default where its median cost, relative to the default's of the same
  // round, is below 1 - margin, and it was the cheaper one in this share of the rounds. Two equal
  // candidates pass the second test by chance once in a thousand times at 24 rounds of 30.
  double margin = 0.02;
  double wins = 0.8;
};

struct TuningOutcome {
  struct Candidate {
    absl::Status status;  // why it was dropped, where it was
    double cost = 0;      // median over the rounds
    double relative = 0;  // median over the rounds of its cost / the default's
  };
  std::vector<Candidate> candidates;
  int baseline = 0;  // the default: the first candidate that was not dropped
  int best = 0;
};

// Cost of a candidate, finite and positive. `run` counts up from 0 over all calls, for inputs to be
// rotated by.
using MeasureCandidate = std::function<absl::StatusOr<double>(int candidate, int run)>;

// Measures every candidate once a round, so that drift meets all of them alike; each round begins
// with another one, so that none always follows the same. A candidate whose measurement fails is
// dropped. The error of the first where all are; InvalidArgument where there is none.
absl::StatusOr<TuningOutcome> PickBest(int candidates, const MeasureCandidate& measure,
                                       const TuningOptions& options = {});

}  // namespace nibble

#endif  // NIBBLE_KERNELS_TUNING_TUNER_H_
