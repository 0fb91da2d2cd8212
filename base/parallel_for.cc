#include "base/parallel_for.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "base/status.h"

namespace nibble {
namespace {

int UsableCpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

void Relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Looks out for `condition` for about as long as it takes to put a thread to sleep and to wake it
// again, so that loops that follow one another pay for neither. Returns whether it came true.
template <typename Condition>
bool SpinUntil(const Condition& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
  do {
    for (int i = 0; i < 16; ++i) {
      if (condition()) return true;
      Relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

struct ThreadPool::State {
  std::mutex caller_mutex;  // one ParallelFor at a time

  std::mutex mutex;  // of those who sleep
  std::condition_variable start, done;
  std::atomic<uint64_t> generation{0};  // counts jobs; a worker runs each once
  std::atomic<int> busy{0};             // workers still inside the current job
  std::atomic<bool> stopping{false};

  // The current job.
  const std::function<void(int64_t, int64_t)>* body = nullptr;
  int64_t count = 0, grain = 1;
  std::atomic<int64_t> next{0};

  std::vector<std::thread> workers;

  void Drain() {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      (*body)(begin, std::min(begin + grain, count));
    }
  }

  void Work() {
    for (uint64_t seen = 0;; ++seen) {
      const auto called = [&] { return stopping || generation != seen; };
      if (!SpinUntil(called)) {
        std::unique_lock lock(mutex);
        start.wait(lock, called);
      }
      if (stopping) return;
      Drain();
      if (--busy == 0) {
        std::lock_guard lock(mutex);  // or the caller could fall asleep just after
        done.notify_one();
      }
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  if (threads <= 0) threads = UsableCpus();
  state_->workers.reserve(threads - 1);
  try {
    for (int i = 1; i < threads; ++i) {
      state_->workers.emplace_back([s = state_.get()] { s->Work(); });
    }
  } catch (const std::system_error&) {
    // The system gives no more threads: those that there are do the work.
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->start.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::threads() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::ParallelFor(int64_t count, int64_t grain,
                             const std::function<void(int64_t, int64_t)>& body) {
  NIBBLE_CHECK(grain > 0);
  if (count <= 0) return;
  grain = std::min(grain, count);
  // `next` runs past the end by a grain for each thread.
  NIBBLE_CHECK(count < std::numeric_limits<int64_t>::max() / (threads() + 1));
  State& s = *state_;
  std::lock_guard one_caller(s.caller_mutex);
  s.body = &body;
  s.count = count;
  s.grain = grain;
  s.next.store(0, std::memory_order_relaxed);
  if (s.workers.empty() || count <= grain) {
    s.Drain();
    return;
  }
  {
    std::lock_guard lock(s.mutex);
    s.busy = static_cast<int>(s.workers.size());
    ++s.generation;
  }
  s.start.notify_all();
  s.Drain();
  const auto idle = [&] { return s.busy == 0; };
  if (SpinUntil(idle)) return;
  std::unique_lock lock(s.mutex);
  s.done.wait(lock, idle);
}

}  // namespace nibble
