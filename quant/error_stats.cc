#include "quant/error_stats.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/status.h"

namespace nibble {

ExactSum::ExactSum(std::span<const int64_t, kExactDigits> digits) {
  std::copy(digits.begin(), digits.end(), digits_.begin());
  Carry();
}

void ExactSum::Add(double x) {
  const ExactTerm term = SplitExact(x);
  if (term.mantissa == 0) return;
  NIBBLE_CHECK(term.shift >= 0 && term.shift / 32 + kOpenDigits <= kExactDigits);
  if (const int at = term.shift - 32 * base_; at < 0 || at >= kOpenShift) {
    Flush();
    base_ = term.shift / 32;
  }
  const __int128 wide = static_cast<__int128>(term.mantissa) << (term.shift - 32 * base_);
  open_ += term.negative ? -wide : wide;
  if (++adds_ == kAddsBeforeCarry) Carry();
}

void ExactSum::Flush() {
  if (open_ == 0) return;
  for (int i = 0; i < kOpenDigits - 1; ++i, open_ >>= 32) {
    digits_[base_ + i] += static_cast<uint32_t>(open_);
  }
  digits_[base_ + kOpenDigits - 1] += static_cast<int64_t>(open_);  // with its sign
  open_ = 0;
}

void ExactSum::Carry() {
  Flush();
  CarryExact(digits_.data());
  adds_ = 1;
}

void ExactSum::Merge(const ExactSum& other) {
  ExactSum carried = other;
  carried.Carry();
  Carry();
  for (int i = 0; i < kExactDigits; ++i) digits_[i] += carried.digits_[i];
  Carry();
}

double ExactSum::Value() const {
  ExactSum carried = *this;
  carried.Carry();
  // Digits are now canonical (one sign, in the top digit), so this is a function of the exact sum.
  double value = 0;
  for (int i = kExactDigits - 1; i >= 0; --i) {
    value += std::ldexp(static_cast<double>(carried.digits_[i]), 32 * i + kExactLowestBit);
  }
  return value;
}

ErrorStats::ErrorStats(const ErrorTotals& totals, int64_t blocks)
    : squared_error_(totals.digits[ErrorTotals::kSquaredError]),
      squared_x_(totals.digits[ErrorTotals::kSquaredX]),
      squared_y_(totals.digits[ErrorTotals::kSquaredY]),
      product_(totals.digits[ErrorTotals::kProduct]),
      max_error_(std::bit_cast<double>(totals.max_error_bits)),
      count_(blocks * kBlockSize),
      saturated_(static_cast<int64_t>(totals.saturated)),
      flushed_(static_cast<int64_t>(totals.flushed)) {}

void ErrorStats::AddBlock(const BlockError& block) {
  squared_error_.Add(block.squared_error);
  squared_x_.Add(block.squared_x);
  squared_y_.Add(block.squared_y);
  product_.Add(block.product);
  max_error_ = std::max(max_error_, block.max_error);
  saturated_ += block.saturated;
  flushed_ += block.flushed;
  count_ += kBlockSize;
}

void ErrorStats::Merge(const ErrorStats& other) {
  squared_error_.Merge(other.squared_error_);
  squared_x_.Merge(other.squared_x_);
  squared_y_.Merge(other.squared_y_);
  product_.Merge(other.product_);
  max_error_ = std::max(max_error_, other.max_error_);
  count_ += other.count_;
  saturated_ += other.saturated_;
  flushed_ += other.flushed_;
}

double ErrorStats::mse() const {
  return count_ == 0 ? 0 : squared_error_.Value() / static_cast<double>(count_);
}

double ErrorStats::relative_mse() const {
  const double error = squared_error_.Value();
  return error == 0 ? 0 : error / squared_x_.Value();
}

double ErrorStats::sqnr_db() const {
  const double relative = relative_mse();
  return relative == 0 ? std::numeric_limits<double>::infinity() : -10 * std::log10(relative);
}

double ErrorStats::cosine() const {
  const double xx = squared_x_.Value(), yy = squared_y_.Value();
  if (xx == 0 && yy == 0) return 1;
  if (xx == 0 || yy == 0) return 0;
  return product_.Value() / (std::sqrt(xx) * std::sqrt(yy));
}

}  // namespace nibble
