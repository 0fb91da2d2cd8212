// What quantization cost: sums that come out with the same bits however a tensor was cut into
// chunks.
#ifndef NIBBLE_QUANT_ERROR_STATS_H_
#define NIBBLE_QUANT_ERROR_STATS_H_

#include <array>
#include <cstdint>
#include <span>

#include "quant/numerics/block_error.h"
#include "quant/numerics/exact_sum.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {

// A sum of doubles without rounding; see exact_sum.h.
class ExactSum {
 public:
  ExactSum() = default;
  // Of digits that are below 2^62 in magnitude.
  explicit ExactSum(std::span<const int64_t, kExactDigits> digits);

  // x: zero, or normal with 2^-300 < |x| < 2^300.
  void Add(double x);
  void Merge(const ExactSum& other);
  double Value() const;

 private:
  static constexpr int kAddsBeforeCarry = 1 << 29;
  static constexpr int kOpenDigits = 4;
  static constexpr int kOpenShift = 44;  // of a mantissa in it: 53 + 44 + 29 bits

  void Flush();
  void Carry();

  // The sum is that of the digits and of open_ * 2^(32 * base_ + kExactLowestBit): terms of like
  // size take one addition.
  std::array<int64_t, kExactDigits> digits_ = {};
  __int128 open_ = 0;
  int base_ = 0;
  int adds_ = 0;
};

// Statistics of x against its quantized form y. The unit of accumulation is the block of 16, so
// chunks are whole blocks; merging them gives the same bits for any chunking and any order.
class ErrorStats {
 public:
  ErrorStats() = default;
  // What a device added up over `blocks` blocks, all of finite values.
  ErrorStats(const ErrorTotals& totals, int64_t blocks);

  // One block of finite values.
  void AddBlock(const BlockError& block);
  void Merge(const ErrorStats& other);

  int64_t count() const { return count_; }
  int64_t saturated() const { return saturated_; }  // |x| above the block's largest value
  int64_t flushed() const { return flushed_; }      // x != 0 became 0
  double max_error() const { return max_error_; }   // largest |x - y|
  double squared_error() const { return squared_error_.Value(); }  // sum (x-y)^2
  double squared_x() const { return squared_x_.Value(); }          // sum x^2
  double mse() const;                                              // 0 where count() is 0
  double relative_mse() const;  // sum (x-y)^2 / sum x^2; 0 where both are 0
  double sqnr_db() const;       // -10 log10(relative_mse)
  double cosine() const;        // of x and y; 1 where both are 0

 private:
  ExactSum squared_error_, squared_x_, squared_y_, product_;
  double max_error_ = 0;
  int64_t count_ = 0, saturated_ = 0, flushed_ = 0;
};

}  // namespace nibble

#endif  // NIBBLE_QUANT_ERROR_STATS_H_
