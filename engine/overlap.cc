#include "engine/overlap.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/stopwatch.h"

namespace nibble {
namespace {

// Runs one stage of one task; adds the time it took.
template <typename Call>
absl::Status RunStage(const Call& call, double& seconds) {
  const Stopwatch watch;
  absl::Status status;
  try {
    status = call();
  } catch (const std::bad_alloc&) {
    status = absl::ResourceExhaustedError("memory: expected enough for the tensors, got none");
  } catch (const std::length_error&) {
    status = absl::ResourceExhaustedError("memory: expected tensors that fit, got larger ones");
  }
  seconds += watch.seconds();
  return status;
}

class Run {
 public:
  Run(const OverlapStages& stages, int64_t budget) : stages_(stages), budget_(budget) {}

  absl::Status operator()(int workers, OverlapTimes& times) {
    std::vector<double> compute_seconds(workers, 0.0);
    double read_seconds = 0;
    std::vector<std::thread> threads;
    // Where the system gives fewer threads than were asked for, the ones there are do the work.
    try {
      threads.emplace_back([&] { ReadAll(read_seconds); });
      for (int worker = 0; worker < workers; ++worker) {
        threads.emplace_back([&, worker] { ComputeAll(worker, compute_seconds[worker]); });
      }
    } catch (const std::system_error&) {
      if (threads.size() < 2) {
        Fail(absl::ResourceExhaustedError("threads: expected two besides this one, got fewer"));
      }
    }
    WriteAll(times.write_seconds);
    for (std::thread& thread : threads) thread.join();
    times.read_seconds += read_seconds;
    for (const double seconds : compute_seconds) times.compute_seconds += seconds;
    return status_;
  }

 private:
  void ReadAll(double& seconds) {
    for (int64_t task = 0; task < stages_.tasks; ++task) {
      const int64_t bytes = stages_.bytes(task);
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return failed_ || held_ == 0 || held_ + bytes <= budget_; });
        if (failed_) return;
        held_ += bytes;
      }
      const absl::Status status = RunStage([&] { return stages_.read(task); }, seconds);
      if (!status.ok()) return Fail(status);
      Push(read_, task);
    }
  }

  void ComputeAll(int worker, double& seconds) {
    for (;;) {
      const int64_t task = Pop(read_, taken_);
      if (task < 0) return;
      const absl::Status status = RunStage([&] { return stages_.compute(task, worker); }, seconds);
      if (!status.ok()) return Fail(status);
      Push(computed_, task);
    }
  }

  void WriteAll(double& seconds) {
    for (;;) {
      const int64_t task = Pop(computed_, written_);
      if (task < 0) return;
      const absl::Status status = RunStage([&] { return stages_.write(task); }, seconds);
      if (!status.ok()) return Fail(status);
      const std::lock_guard lock(mutex_);
      held_ -= stages_.bytes(task);
      changed_.notify_all();
    }
  }

  void Push(std::deque<int64_t>& queue, int64_t task) {
    const std::lock_guard lock(mutex_);
    queue.push_back(task);
    changed_.notify_all();
  }

  // -1 when all tasks were popped, as `popped` counts, or after a failure.
  int64_t Pop(std::deque<int64_t>& queue, int64_t& popped) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return failed_ || popped == stages_.tasks || !queue.empty(); });
    if (failed_ || queue.empty()) return -1;
    const int64_t task = queue.front();
    queue.pop_front();
    if (++popped == stages_.tasks) changed_.notify_all();
    return task;
  }

  void Fail(const absl::Status& status) {
    const std::lock_guard lock(mutex_);
    if (!failed_) status_ = status;
    failed_ = true;
    changed_.notify_all();
  }

  const OverlapStages& stages_;
  const int64_t budget_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<int64_t> read_, computed_;
  int64_t taken_ = 0, written_ = 0;  // tasks popped of the two
  int64_t held_ = 0;                 // bytes
  bool failed_ = false;
  absl::Status status_;
};

}  // namespace

absl::Status RunOverlapped(const OverlapStages& stages, int workers, int64_t budget,
                           OverlapTimes& times) {
  return Run(stages, budget)(workers, times);
}

}  // namespace nibble
