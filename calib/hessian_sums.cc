#include "calib/hessian_sums.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "calib/state.h"
#include "quant/numerics/hessian_sum.h"

namespace nibble {
namespace {

constexpr int64_t kEntries = kBlockSize * (kBlockSize + 1) / 2;  // of a slice, i <= j

absl::Status CheckUnits(int64_t units, int64_t more) {
  if (more <= kWindowMaxTerms - units) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("tokens: expected at most 2^30 units of up to ",
                                                   kInputUnitTokens, ", got ", units + more));
}

}  // namespace

WindowSum HessianSums::At(size_t entry) const {
  WindowSum sum;
  std::copy_n(digits_.begin() + entry * kWindowDigits, kWindowDigits, sum.digit);
  sum.top = top_[entry];
  return sum;
}

void HessianSums::Put(size_t entry, const WindowSum& sum) {
  std::copy_n(sum.digit, kWindowDigits, digits_.begin() + entry * kWindowDigits);
  top_[entry] = static_cast<uint8_t>(sum.top);
}

absl::Status HessianSums::AddUnit(const MatrixView& unit, Backend& backend,
                                  std::vector<float>& sums) {
  std::fill(sums.begin(), sums.end(), 0.0f);
  NIBBLE_RETURN_IF_ERROR(backend.AccumulateHessian(unit, sums));
  size_t entry = 0;
  for (size_t slice = 0; slice < sums.size(); slice += kHessianSize) {
    for (int i = 0; i < kBlockSize; ++i) {
      for (int j = i; j < kBlockSize; ++j, ++entry) {
        WindowSum sum = At(entry);
        WindowAdd(sum, sums[slice + i * kBlockSize + j]);
        Put(entry, sum);
      }
    }
  }
  ++units_;
  return absl::OkStatus();
}

absl::Status HessianSums::Collect(const MatrixView& x, Backend& backend) {
  if (x.rows == 0) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(CheckUnits(units_, (x.rows - 1) / kInputUnitTokens + 1));
  HessianSums part;
  const size_t slices = x.cols / kBlockSize;
  part.digits_.resize(slices * kEntries * kWindowDigits);
  part.top_.resize(slices * kEntries);
  std::vector<float> sums(slices * kHessianSize);
  for (int64_t first = 0; first < x.rows; first += kInputUnitTokens) {
    const MatrixView unit = {
        static_cast<const char*>(x.data) + first * x.cols * DTypeBytes(x.dtype), x.dtype,
        std::min(kInputUnitTokens, x.rows - first), x.cols};
    const absl::Status status = part.AddUnit(unit, backend, sums);
    if (!status.ok()) return Annotate(status, absl::StrCat("rows from ", first, " on"));
  }
  return Merge(part);
}

absl::Status HessianSums::Merge(const HessianSums& other) {
  if (other.units_ == 0) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(CheckUnits(units_, other.units_));
  if (units_ == 0) {
    *this = other;
    return absl::OkStatus();
  }
  if (other.top_.size() != top_.size()) {
    return absl::FailedPreconditionError(
        absl::StrCat("shape: expected ", static_cast<int64_t>(top_.size()) / kEntries * kBlockSize,
                     " columns as before, got ",
                     static_cast<int64_t>(other.top_.size()) / kEntries * kBlockSize));
  }
  for (size_t entry = 0; entry < top_.size(); ++entry) {
    WindowSum sum = At(entry);
    WindowMerge(sum, other.At(entry));
    Put(entry, sum);
  }
  units_ += other.units_;
  return absl::OkStatus();
}

HessianSums HessianSums::Of(int64_t units, std::vector<int64_t> digits, std::vector<uint8_t> top) {
  HessianSums sums;
  sums.units_ = units;
  sums.digits_ = std::move(digits);
  sums.top_ = std::move(top);
  return sums;
}

std::vector<float> HessianSums::Mean(int64_t tokens) const {
  std::vector<float> mean(top_.size() / kEntries * kHessianSize);
  size_t entry = 0;
  for (size_t slice = 0; slice < mean.size(); slice += kHessianSize) {
    for (int i = 0; i < kBlockSize; ++i) {
      for (int j = i; j < kBlockSize; ++j, ++entry) {
        const double value = WindowValue(At(entry)) / static_cast<double>(tokens);
        const float rounded =
            static_cast<float>(std::clamp(value, -double{kFloatMax}, double{kFloatMax}));
        mean[slice + i * kBlockSize + j] = mean[slice + j * kBlockSize + i] = rounded;
      }
    }
  }
  return mean;
}

void HessianSums::Save(CalibratorState& state) const {
  const int64_t slices = static_cast<int64_t>(top_.size()) / kEntries;
  state["hessian.units"] = MakeStateArray<int64_t>({1}, {units_});
  state["hessian.digits"] = MakeStateArray<int64_t>({slices, kEntries, kWindowDigits}, digits_);
  state["hessian.top"] = MakeStateArray<uint8_t>({slices, kEntries}, top_);
}

absl::StatusOr<HessianSums> HessianSums::Load(const CalibratorState& state, int64_t columns) {
  HessianSums loaded;
  NIBBLE_ASSIGN_OR_RETURN(loaded.units_,
                          TakeStateInteger(state, "hessian.units", 0, kWindowMaxTerms));
  const int64_t slices = loaded.units_ == 0 ? 0 : columns / kBlockSize;
  NIBBLE_ASSIGN_OR_RETURN(
      loaded.digits_,
      TakeStateArray<int64_t>(state, "hessian.digits", {slices, kEntries, kWindowDigits}));
  NIBBLE_ASSIGN_OR_RETURN(loaded.top_,
                          TakeStateArray<uint8_t>(state, "hessian.top", {slices, kEntries}));
  const int64_t largest = loaded.units_ << 32;
  for (size_t i = 0; i < loaded.digits_.size(); ++i) {
    const int64_t digit = loaded.digits_[i];
    const size_t entry = i / kWindowDigits;
    const int below = static_cast<int>(i % kWindowDigits);
    const int top = loaded.top_[entry];
    if (digit > largest || digit < -largest || (digit != 0 && below > top)) {
      return absl::DataLossError(absl::StrCat("state 'hessian.digits': expected sums of ",
                                              loaded.units_, " digits of 32 bits each, got ", digit,
                                              " at ", i));
    }
    if (top > kWindowTopDigit) {
      return absl::DataLossError(absl::StrCat("state 'hessian.top': expected 0 .. ",
                                              kWindowTopDigit, ", got ", top, " at ", entry));
    }
  }
  return loaded;
}

}  // namespace nibble
