#include "base/parallel_for.h"

#include <sched.h>

#include <atomic>
#include <latch>
#include <limits>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace nibble {
namespace {

// Runs once and expects every index once, in pieces of `grain`.
void ExpectCovers(ThreadPool& pool, int64_t count, int64_t grain) {
  SCOPED_TRACE(::testing::Message() << count << " in pieces of " << grain);
  std::vector<std::atomic<int>> calls(count);
  std::atomic<int> bad_pieces{0};
  pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
    const bool last = end == count && end - begin <= grain;
    if (begin < 0 || begin >= end || begin % grain != 0 || !(end - begin == grain || last)) {
      ++bad_pieces;
      return;
    }
    for (int64_t i = begin; i < end; ++i) ++calls[i];
  });
  EXPECT_EQ(bad_pieces, 0);
  for (int64_t i = 0; i < count; ++i) ASSERT_EQ(calls[i], 1) << i;
}

class ParallelForTest : public ::testing::TestWithParam<int> {};

TEST_P(ParallelForTest, CoversEachIndexOnceAndIsReusable) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.threads(), GetParam());
  for (int64_t count : {0, 1, 2, 3, 15, 16, 17, 64, 1000, 4099}) {
    for (int64_t grain : {1, 2, 7, 16, 1000, 4098, 4099, 5000}) ExpectCovers(pool, count, grain);
  }
}

TEST_P(ParallelForTest, TakesTheLargestGrain) {
  ThreadPool pool(GetParam());
  for (int run = 0; run < 3; ++run) ExpectCovers(pool, 5, std::numeric_limits<int64_t>::max());
}

TEST_P(ParallelForTest, CallsNothingForNothing) {
  ThreadPool pool(GetParam());
  int calls = 0;
  pool.ParallelFor(0, 1, [&](int64_t, int64_t) { ++calls; });
  pool.ParallelFor(-5, 1, [&](int64_t, int64_t) { ++calls; });
  EXPECT_EQ(calls, 0);
}

TEST_P(ParallelForTest, ReturnsAfterTheLastPiece) {
  ThreadPool pool(GetParam());
  for (int run = 0; run < 500; ++run) {
    std::vector<int> written(8, 0);  // not atomic: ParallelFor's return must order the writes
    pool.ParallelFor(8, 1, [&](int64_t begin, int64_t) { written[begin] = run + 1; });
    ASSERT_EQ(written, std::vector<int>(8, run + 1));
  }
}

TEST_P(ParallelForTest, TakesConcurrentCallers) {
  ThreadPool pool(GetParam());
  std::vector<std::thread> callers;
  std::atomic<int64_t> total{0};
  for (int64_t caller = 1; caller <= 4; ++caller) {
    callers.emplace_back([&pool, &total, caller] {
      for (int run = 0; run < 100; ++run) {
        std::atomic<int64_t> sum{0};
        const int64_t count = 10 * caller + run;
        pool.ParallelFor(count, caller, [&](int64_t begin, int64_t end) { sum += end - begin; });
        if (sum == count) ++total;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total, 400);
}

INSTANTIATE_TEST_SUITE_P(Threads, ParallelForTest, ::testing::Values(1, 2, 3, 8));

TEST(ParallelForPoolTest, RunsPiecesAtTheSameTime) {
  ThreadPool pool(3);
  std::latch all_started(3);  // hangs unless three threads are inside
  pool.ParallelFor(3, 1, [&](int64_t, int64_t) { all_started.arrive_and_wait(); });
}

TEST(ParallelForPoolTest, OneThreadIsTheCaller) {
  ThreadPool pool(1);
  pool.ParallelFor(100, 1, [caller = std::this_thread::get_id()](int64_t, int64_t) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
  });
}

TEST(ParallelForPoolTest, HasAThreadForEachUsableCpuUnlessTold) {
  cpu_set_t usable;
  ASSERT_EQ(sched_getaffinity(0, sizeof(usable), &usable), 0);
  EXPECT_EQ(ThreadPool().threads(), CPU_COUNT(&usable));
}

TEST(ParallelForDeathTest, RefusesAGrainOfZero) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(ThreadPool(2).ParallelFor(1, 0, [](int64_t, int64_t) {}), "grain > 0");
}

}  // namespace
}  // namespace nibble
