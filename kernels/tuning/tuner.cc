#include "kernels/tuning/tuner.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"

namespace nibble {
namespace {

// Of an even number of values, the upper of the two in the middle.
double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

absl::Status CheckOptions(int candidates, const TuningOptions& options) {
  if (candidates > 0 && options.rounds > 0 && options.warmup_rounds >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tuner: expected a candidate, a round and no fewer than 0 rounds of warm-up, got ",
      candidates, ", ", options.rounds, " and ", options.warmup_rounds));
}

absl::StatusOr<double> CheckedCost(absl::StatusOr<double> cost) {
  if (!cost.ok() || (std::isfinite(*cost) && *cost > 0)) return cost;
  return absl::InternalError(absl::StrCat("cost: expected a finite positive number, got ", *cost));
}

}  // namespace

absl::StatusOr<TuningOutcome> PickBest(int candidates, const MeasureCandidate& measure,
                                       const TuningOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckOptions(candidates, options));
  TuningOutcome outcome;
  outcome.candidates.resize(candidates);
  std::vector<std::vector<double>> costs(candidates);
  const int rounds = options.warmup_rounds + options.rounds;
  int run = 0;
  for (int round = 0; round < rounds; ++round) {
    for (int i = 0; i < candidates; ++i) {
      const int c = (round + i) % candidates;
      if (!outcome.candidates[c].status.ok()) continue;
      const absl::StatusOr<double> cost = CheckedCost(measure(c, run++));
      if (!cost.ok()) {
        outcome.candidates[c].status = cost.status();
      } else if (round >= options.warmup_rounds) {
        costs[c].push_back(*cost);
      }
    }
  }

  const auto kept = std::find_if(outcome.candidates.begin(), outcome.candidates.end(),
                                 [](const auto& candidate) { return candidate.status.ok(); });
  if (kept == outcome.candidates.end()) return outcome.candidates.front().status;
  outcome.baseline = outcome.best = static_cast<int>(kept - outcome.candidates.begin());
  const std::vector<double>& baseline = costs[outcome.baseline];
  for (int c = outcome.baseline; c < candidates; ++c) {
    TuningOutcome::Candidate& candidate = outcome.candidates[c];
    if (!candidate.status.ok()) continue;
    std::vector<double> relative(options.rounds);
    int won = 0;
    for (int round = 0; round < options.rounds; ++round) {
      relative[round] = costs[c][round] / baseline[round];
      won += costs[c][round] < baseline[round];
    }
    candidate.cost = Median(costs[c]);
    candidate.relative = Median(std::move(relative));
    const bool clearly =
        candidate.relative < 1 - options.margin && won >= options.wins * options.rounds;
    if (clearly && candidate.relative < outcome.candidates[outcome.best].relative) {
      outcome.best = c;
    }
  }
  return outcome;
}

}  // namespace nibble
