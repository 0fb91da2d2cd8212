#include "calib/input_stats.h"

#include <algorithm>
#include <limits>

#include "base/status.h"
#include "calib/state.h"

namespace nibble {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 62;

absl::Status CheckColumns(int64_t expected, int64_t columns) {
  if (expected == 0 || columns == 0 || expected == columns) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("shape: expected ", expected, " columns as before, got ", columns));
}

}  // namespace

absl::Status InputStats::Collect(const MatrixView& x, Backend& backend) {
  NIBBLE_RETURN_IF_ERROR(CheckColumns(columns_, x.cols));
  float amax;
  std::vector<float> block_amax;
  if (has_histogram_) {
    NIBBLE_ASSIGN_OR_RETURN(Observation seen, backend.Observe({.block_amax = true}, x));
    if (seen.first_non_finite >= 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("values: expected finite numbers, got ", seen.nan_count + seen.inf_count,
                       " NaN or infinite, the first at row ", seen.first_non_finite / x.cols,
                       ", column ", seen.first_non_finite % x.cols));
    }
    amax = seen.amax;
    block_amax = std::move(seen.block_amax);
  } else {
    NIBBLE_ASSIGN_OR_RETURN(amax, backend.Amax(x));
  }
  if (x.rows > kMaxTokens - tokens_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("tokens: expected at most 2^62, got ", tokens_, " and ", x.rows));
  }
  histogram_.Add(block_amax);
  columns_ = x.cols;
  tokens_ += x.rows;
  amax_ = std::max(amax_, amax);
  return absl::OkStatus();
}

InputStats InputStats::Of(const InputSumsResult& sums, int64_t columns) {
  InputStats stats(/*histogram=*/true);
  if (sums.tokens == 0) return stats;
  stats.tokens_ = sums.tokens;
  stats.columns_ = columns;
  stats.amax_ = sums.amax;
  stats.histogram_.AddBins(sums.bins);
  return stats;
}

absl::Status InputStats::Merge(const InputStats& other) {
  if (has_histogram_ != other.has_histogram_) {
    return absl::InvalidArgumentError(
        "merge: expected both with a histogram or both without, got one");
  }
  NIBBLE_RETURN_IF_ERROR(CheckColumns(columns_, other.columns_));
  if (other.tokens_ > kMaxTokens - tokens_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("tokens: expected at most 2^62, got ", tokens_, " and ", other.tokens_));
  }
  NIBBLE_RETURN_IF_ERROR(histogram_.Merge(other.histogram_));
  columns_ = std::max(columns_, other.columns_);
  tokens_ += other.tokens_;
  amax_ = std::max(amax_, other.amax_);
  return absl::OkStatus();
}

void InputStats::Save(CalibratorState& state) const {
  state["tokens"] = MakeStateArray<int64_t>({1}, {tokens_});
  state["columns"] = MakeStateArray<int64_t>({1}, {columns_});
  state["amax"] = MakeStateArray<float>({1}, {amax_});
  if (has_histogram_) histogram_.Save(state);
}

absl::StatusOr<InputStats> InputStats::Load(const CalibratorState& state, bool histogram) {
  InputStats loaded(histogram);
  NIBBLE_ASSIGN_OR_RETURN(loaded.tokens_, TakeStateInteger(state, "tokens", 0, kMaxTokens));
  NIBBLE_ASSIGN_OR_RETURN(
      loaded.columns_,
      TakeStateInteger(state, "columns", 0, std::numeric_limits<int64_t>::max() / 2));
  if (loaded.columns_ % kBlockSize != 0 || (loaded.columns_ == 0 && loaded.tokens_ > 0)) {
    return absl::DataLossError(
        absl::StrCat("state 'columns': expected a multiple of 16, 0 only without tokens, got ",
                     loaded.columns_));
  }
  NIBBLE_ASSIGN_OR_RETURN(loaded.amax_, TakeStateAmax(state, "amax"));
  if (loaded.amax_ > 0 && loaded.tokens_ == 0) {
    return absl::DataLossError(
        absl::StrCat("state 'amax': expected 0 without tokens, got ", loaded.amax_));
  }
  if (!histogram) return loaded;
  NIBBLE_ASSIGN_OR_RETURN(loaded.histogram_, AmaxHistogram::Load(state));
  // The largest block is the one that has the amax.
  const float largest = loaded.histogram_.Percentile(100);
  const bool none = loaded.histogram_.blocks() == 0;
  if (none != (loaded.amax_ == 0) ||
      FloatBits(largest) >> 16 != (none ? 0 : FloatBits(loaded.amax_) >> 16) ||
      (loaded.columns_ > 0 && loaded.tokens_ < kMaxTokens / loaded.columns_ &&
       loaded.histogram_.blocks() > loaded.tokens_ * (loaded.columns_ / kBlockSize))) {
    return absl::DataLossError(
        absl::StrCat("state 'blocks.count': expected blocks of ", loaded.tokens_, " tokens of ",
                     loaded.columns_, " channels, the largest of ", loaded.amax_, ", got ",
                     loaded.histogram_.blocks(), ", the largest of ", largest));
  }
  return loaded;
}

}  // namespace nibble
