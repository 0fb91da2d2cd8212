// Reading, computing and writing at once, with bounded memory.
#ifndef NIBBLE_ENGINE_OVERLAP_H_
#define NIBBLE_ENGINE_OVERLAP_H_

#include <cstdint>
#include <functional>

#include "absl/status/status.h"

namespace nibble {

// Each task is read, computed and written, in this order; different tasks overlap.
struct OverlapStages {
  int64_t tasks = 0;
  std::function<int64_t(int64_t task)> bytes;      // that the task holds from read to write
  std::function<absl::Status(int64_t task)> read;  // one thread, in the order of tasks
  std::function<absl::Status(int64_t task, int worker)> compute;  // `workers` threads
  std::function<absl::Status(int64_t task)> write;  // the caller's thread, in any order of tasks
};

// Busy times.
struct OverlapTimes {
  double read_seconds = 0, compute_seconds = 0, write_seconds = 0;
};

// Returns when all is written or after the first failure, whose status it returns; running out of
// memory is one (ResourceExhausted). Tasks under way hold at most `budget` bytes together, but that
// a larger one runs alone.
absl::Status RunOverlapped(const OverlapStages& stages, int workers, int64_t budget,
                           OverlapTimes& times);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_OVERLAP_H_
