// One pool of threads for the CPU. Nothing computed on it may depend on how the work was split.
#ifndef NIBBLE_BASE_PARALLEL_FOR_H_
#define NIBBLE_BASE_PARALLEL_FOR_H_

#include <cstdint>
#include <functional>
#include <memory>

namespace nibble {

class ThreadPool {
 public:
  // `threads` includes the caller of ParallelFor; 0 means one for each CPU this process may use.
  // There are fewer where the system gives no more.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  // Calls body(begin, end) over [0, count) in pieces of `grain` (the last may be shorter), each
  // piece once, in any order, on any thread; returns when all are done. body must not throw and
  // must not call ParallelFor of the same pool. Concurrent callers take turns.
  void ParallelFor(int64_t count, int64_t grain,
                   const std::function<void(int64_t begin, int64_t end)>& body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble

#endif  // NIBBLE_BASE_PARALLEL_FOR_H_
