#include "engine/overlap.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using testing::IsError;

// Counts what each task went through, and what was held.
struct Trace {
  explicit Trace(int64_t tasks) : steps(static_cast<size_t>(tasks)) {}

  OverlapStages Stages(std::vector<int64_t> bytes) {
    OverlapStages stages;
    stages.tasks = static_cast<int64_t>(steps.size());
    stages.bytes = [bytes](int64_t task) { return bytes[static_cast<size_t>(task)]; };
    stages.read = [this, bytes](int64_t task) {
      EXPECT_EQ(next_read++, task);
      const int64_t now = held += bytes[static_cast<size_t>(task)];
      most = std::max(most, now);
      EXPECT_EQ(steps[static_cast<size_t>(task)]++, 0);
      return absl::OkStatus();
    };
    stages.compute = [this](int64_t task, int) {
      EXPECT_EQ(steps[static_cast<size_t>(task)]++, 1);
      if (task % 3 == 0) std::this_thread::yield();
      return absl::OkStatus();
    };
    stages.write = [this, bytes](int64_t task) {
      EXPECT_EQ(steps[static_cast<size_t>(task)]++, 2);
      held -= bytes[static_cast<size_t>(task)];
      return absl::OkStatus();
    };
    return stages;
  }

  std::vector<std::atomic<int>> steps;
  int64_t next_read = 0, most = 0;
  std::atomic<int64_t> held = 0;
};

TEST(OverlapTest, EachTaskGoesThroughAllStagesWithinTheBudget) {
  for (const int workers : {1, 2, 5}) {
    std::vector<int64_t> bytes;
    for (int64_t i = 0; i < 500; ++i) bytes.push_back(i % 7 * 10);
    Trace trace(500);
    OverlapTimes times;
    ASSERT_TRUE(RunOverlapped(trace.Stages(bytes), workers, 100, times).ok());
    for (const auto& steps : trace.steps) ASSERT_EQ(steps, 3);
    EXPECT_LE(trace.most, 100);
    EXPECT_EQ(trace.held, 0);
    EXPECT_GT(times.read_seconds, 0);
  }
}

TEST(OverlapTest, ATaskLargerThanTheBudgetRunsAlone) {
  Trace trace(9);
  OverlapTimes times;
  ASSERT_TRUE(RunOverlapped(trace.Stages({1, 1, 50, 1, 1, 70, 60, 1, 1}), 2, 10, times).ok());
  EXPECT_EQ(trace.most, 70);
}

TEST(OverlapTest, NoTasks) {
  Trace trace(0);
  OverlapTimes times;
  EXPECT_TRUE(RunOverlapped(trace.Stages({}), 2, 10, times).ok());
}

TEST(OverlapTest, AFailureOfAnyStageEndsTheRun) {
  for (int stage = 0; stage < 3; ++stage) {
    for (const int64_t bad : {0, 17, 99}) {
      Trace trace(100);
      OverlapStages stages = trace.Stages(std::vector<int64_t>(100, 1));
      const auto fail = [&](int64_t task, const absl::Status& other) {
        return task == bad ? absl::DataLossError("broken") : other;
      };
      const OverlapStages good = stages;
      if (stage == 0) stages.read = [&](int64_t task) { return fail(task, good.read(task)); };
      if (stage == 1) {
        stages.compute = [&](int64_t task, int w) { return fail(task, good.compute(task, w)); };
      }
      if (stage == 2) stages.write = [&](int64_t task) { return fail(task, good.write(task)); };
      OverlapTimes times;
      EXPECT_TRUE(
          IsError(RunOverlapped(stages, 2, 10, times), absl::StatusCode::kDataLoss, "broken"));
    }
  }
}

TEST(OverlapTest, RunningOutOfMemoryIsAStatus) {
  Trace trace(10);
  OverlapStages stages = trace.Stages(std::vector<int64_t>(10, 1));
  stages.compute = [](int64_t task, int) -> absl::Status {
    if (task == 4) throw std::bad_alloc();
    return absl::OkStatus();
  };
  stages.write = [](int64_t) { return absl::OkStatus(); };
  OverlapTimes times;
  EXPECT_TRUE(
      IsError(RunOverlapped(stages, 2, 10, times), absl::StatusCode::kResourceExhausted, "memory"));
}

}  // namespace
}  // namespace nibble
