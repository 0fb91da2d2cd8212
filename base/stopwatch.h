// Wall-clock seconds since it was made.
#ifndef NIBBLE_BASE_STOPWATCH_H_
#define NIBBLE_BASE_STOPWATCH_H_

#include <chrono>

namespace nibble {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace nibble

#endif  // NIBBLE_BASE_STOPWATCH_H_
