#include "quant/error_stats.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/status.h"

namespace nibble {

void ExactSum::Add(double x) {
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  const int biased = static_cast<int>((bits >> 52) & 0x7FF);
  if (biased == 0) return;  // zero; products of floats and their sums are never subnormal doubles
  // x = mantissa * 2^(biased - 1075)
  const int shift = biased - 1075 - kLowestBit;
  NIBBLE_CHECK(shift >= 0 && shift / 32 + 2 < kDigits);
  const uint64_t mantissa = (bits & ((uint64_t{1} << 52) - 1)) | (uint64_t{1} << 52);
  const unsigned __int128 wide = static_cast<unsigned __int128>(mantissa) << (shift % 32);
  const int64_t sign = (bits >> 63) ? -1 : 1;
  for (int i = 0; i < 3; ++i) {
    digits_[shift / 32 + i] += sign * static_cast<int64_t>(static_cast<uint32_t>(wide >> (32 * i)));
  }
  if (++adds_ == kAddsBeforeCarry) Carry();
}

void ExactSum::Carry() {
  for (int i = 0; i + 1 < kDigits; ++i) {
    const int64_t carry =
        digits_[i] >> 32;  // arithmetic: rounds down, the digit left is in [0, 2^32)
    digits_[i] -= carry * (int64_t{1} << 32);
    digits_[i + 1] += carry;
  }
  adds_ = 1;
}

void ExactSum::Merge(const ExactSum& other) {
  ExactSum carried = other;
  carried.Carry();
  Carry();
  for (int i = 0; i < kDigits; ++i) digits_[i] += carried.digits_[i];
  Carry();
}

double ExactSum::Value() const {
  ExactSum carried = *this;
  carried.Carry();
  // Digits are now canonical (one sign, in the top digit), so this is a function of the exact sum.
  double value = 0;
  for (int i = kDigits - 1; i >= 0; --i) {
    value += std::ldexp(static_cast<double>(carried.digits_[i]), 32 * i + kLowestBit);
  }
  return value;
}

void ErrorStats::AddBlock(const float x[kBlockSize], const float y[kBlockSize],
                          float largest) {
  double squared_error = 0, squared_x = 0, squared_y = 0, product = 0;
  for (int i = 0; i < kBlockSize; ++i) {
    const double xi = x[i], yi = y[i], error = xi - yi;
    squared_error += error * error;
    squared_x += xi * xi;
    squared_y += yi * yi;
    product += xi * yi;
    max_error_ = std::max(max_error_, std::fabs(error));
    saturated_ += std::fabs(xi) > largest;
    flushed_ += xi != 0 && yi == 0;
  }
  squared_error_.Add(squared_error);
  squared_x_.Add(squared_x);
  squared_y_.Add(squared_y);
  product_.Add(product);
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
