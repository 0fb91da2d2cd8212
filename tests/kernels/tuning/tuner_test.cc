// The tuner on a made-up device: noise, drift, outliers, candidates that fail.
#include "kernels/tuning/tuner.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using ::testing::ElementsAre;

// Candidates that cost what `costs` says, each measurement off by normal noise.
class FakeDevice {
 public:
  explicit FakeDevice(std::vector<double> costs, double noise = 0, uint64_t seed = 1)
      : costs_(std::move(costs)), noise_(noise), random_(seed) {}

  MeasureCandidate Measure() {
    return [this](int candidate, int) -> absl::StatusOr<double> { return Cost(candidate); };
  }
  double Cost(int candidate) {
    const double off = std::normal_distribution<double>(0, noise_)(random_);
    return costs_[candidate] * std::max(0.1, 1 + (noise_ == 0 ? 0 : off));
  }
  int count() const { return static_cast<int>(costs_.size()); }

 private:
  const std::vector<double> costs_;
  const double noise_;
  std::mt19937_64 random_;
};

int BestOf(FakeDevice device) {
  const auto outcome = PickBest(device.count(), device.Measure());
  EXPECT_TRUE(outcome.ok()) << outcome.status();
  return outcome.ok() ? outcome->best : -1;
}

TEST(TunerTest, PicksTheCheapest) {
  FakeDevice device({1.0, 0.9, 0.7, 0.8});
  const auto outcome = PickBest(4, device.Measure());
  ASSERT_TRUE(outcome.ok());
  EXPECT_EQ(outcome->baseline, 0);
  EXPECT_EQ(outcome->best, 2);
  EXPECT_EQ(outcome->candidates[0].cost, 1.0);
  EXPECT_EQ(outcome->candidates[2].cost, 0.7);
  EXPECT_EQ(outcome->candidates[2].relative, 0.7);
  EXPECT_EQ(BestOf(FakeDevice({1.0, 2.0, 3.0})), 0);
  EXPECT_EQ(BestOf(FakeDevice({5.0})), 0);
}

TEST(TunerTest, KeepsTheDefaultWithinTheMargin) {
  EXPECT_EQ(BestOf(FakeDevice({1.0, 0.985, 0.99})), 0);
  EXPECT_EQ(BestOf(FakeDevice({1.0, 0.985, 0.975})), 2);
  FakeDevice device({1.0, 0.9});
  EXPECT_EQ(PickBest(2, device.Measure(), {.margin = 0.2})->best, 0);
}

TEST(TunerTest, KeepsTheDefaultWithinNoise) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    EXPECT_EQ(BestOf(FakeDevice({1.0, 1.0, 1.0, 1.0, 1.0, 1.0}, 0.05, seed)), 0) << seed;
  }
}

TEST(TunerTest, FindsAGainThatIsLargerThanTheNoise) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    EXPECT_EQ(BestOf(FakeDevice({1.0, 1.0, 0.85, 1.0}, 0.05, seed)), 2) << seed;
  }
}

// A device that slows down to a third while it is measured.
TEST(TunerTest, DriftMeetsAllAlike) {
  const auto drifting = [](double gain) {
    return [gain](int candidate, int run) -> absl::StatusOr<double> {
      return (candidate == 2 ? 1 - gain : 1.0) * (1 + 0.02 * run);
    };
  };
  EXPECT_EQ(PickBest(3, drifting(0.1))->best, 2);
  EXPECT_EQ(PickBest(3, drifting(0))->best, 0);
  const auto speeding_up = [](int, int run) -> absl::StatusOr<double> {
    return 1 / (1 + 0.02 * run);
  };
  EXPECT_EQ(PickBest(3, speeding_up)->best, 0);
}

TEST(TunerTest, OutliersDecideNothing) {
  int run = 0;
  FakeDevice device({1.0, 0.9, 1.0});
  const auto outcome = PickBest(3, [&](int candidate, int) -> absl::StatusOr<double> {
    // Every 7th measurement is 50 times too long, one in 11 far too short.
    ++run;
    return device.Cost(candidate) * (run % 7 == 0 ? 50 : run % 11 == 0 ? 0.01 : 1);
  });
  ASSERT_TRUE(outcome.ok());
  EXPECT_EQ(outcome->best, 1);
  EXPECT_EQ(outcome->candidates[0].cost, 1.0);
}

TEST(TunerTest, DropsTheWarmUp) {
  const auto slow_at_first = [](int candidate, int run) -> absl::StatusOr<double> {
    if (run < 2 * 4) return candidate == 1 ? 1000.0 : 0.001;
    return candidate == 1 ? 0.5 : 1.0;
  };
  const auto outcome = PickBest(2, slow_at_first, {.warmup_rounds = 4, .rounds = 5});
  ASSERT_TRUE(outcome.ok());
  EXPECT_EQ(outcome->best, 1);
  EXPECT_EQ(outcome->candidates[0].cost, 1.0);
  EXPECT_EQ(outcome->candidates[1].cost, 0.5);
}

TEST(TunerTest, MeasuresRoundRobinFromAnotherCandidateEachRound) {
  std::vector<int> order, runs;
  const auto measure = [&](int candidate, int run) -> absl::StatusOr<double> {
    order.push_back(candidate);
    runs.push_back(run);
    return 1.0;
  };
  ASSERT_TRUE(PickBest(3, measure, {.warmup_rounds = 1, .rounds = 3}).ok());
  EXPECT_THAT(order, ElementsAre(0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2));
  EXPECT_THAT(runs, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11));
}

TEST(TunerTest, DropsACandidateThatFails) {
  for (int fails_at : {0, 10, 60}) {
    SCOPED_TRACE(fails_at);
    int calls_after = 0;
    bool failed = false;
    const auto outcome = PickBest(3, [&](int candidate, int run) -> absl::StatusOr<double> {
      if (candidate != 1) return candidate == 2 ? 0.9 : 1.0;
      calls_after += failed;
      if (run < fails_at) return 0.5;
      failed = true;
      return absl::UnknownError("too many registers");
    });
    ASSERT_TRUE(outcome.ok());
    EXPECT_EQ(outcome->best, 2);
    EXPECT_TRUE(IsError(outcome->candidates[1].status, absl::StatusCode::kUnknown, "registers"));
    EXPECT_TRUE(outcome->candidates[0].status.ok());
    EXPECT_EQ(calls_after, 0);
  }
}

TEST(TunerTest, TheNextCandidateStandsInForADefaultThatFails) {
  const auto measure = [](int candidate, int) -> absl::StatusOr<double> {
    if (candidate == 0) return absl::UnknownError("no");
    return candidate == 2 ? 0.99 : 1.0;
  };
  const auto outcome = PickBest(3, measure);
  ASSERT_TRUE(outcome.ok());
  EXPECT_EQ(outcome->baseline, 1);
  EXPECT_EQ(outcome->best, 1);
}

TEST(TunerTest, FailsWhereEveryCandidateDoes) {
  const auto measure = [](int candidate, int) -> absl::StatusOr<double> {
    return absl::UnknownError(absl::StrCat("candidate ", candidate));
  };
  EXPECT_TRUE(IsError(PickBest(3, measure), absl::StatusCode::kUnknown, "candidate 0"));
}

TEST(TunerTest, CostsAreFinitePositiveNumbers) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (double bad : {0.0, -1.0, kInfinity, -kInfinity, std::nan("")}) {
    const auto outcome = PickBest(2, [bad](int candidate, int) -> absl::StatusOr<double> {
      return candidate == 1 ? bad : 1.0;
    });
    ASSERT_TRUE(outcome.ok());
    EXPECT_EQ(outcome->best, 0);
    EXPECT_TRUE(IsError(outcome->candidates[1].status, absl::StatusCode::kInternal,
                        "expected a finite positive number"));
  }
}

TEST(TunerTest, RefusesWhatCannotBeMeasured) {
  const auto measure = [](int, int) -> absl::StatusOr<double> { return 1.0; };
  for (const auto& outcome :
       {PickBest(0, measure), PickBest(-1, measure), PickBest(2, measure, {.rounds = 0}),
        PickBest(2, measure, {.warmup_rounds = -1})}) {
    EXPECT_TRUE(IsError(outcome, absl::StatusCode::kInvalidArgument, "tuner: expected"));
  }
}

}  // namespace
}  // namespace nibble
