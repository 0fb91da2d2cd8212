#include "calib/amax_histogram.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "calib/state.h"
#include "kernels/input_sums.h"
#include "quant/numerics/float_bits.h"

namespace nibble {
namespace {

constexpr int64_t kMaxBlocks = int64_t{1} << 62;

uint16_t BinOf(float amax) { return static_cast<uint16_t>(FloatBits(amax) >> 16); }

}  // namespace

void AmaxHistogram::Add(std::span<const float> block_amax) {
  std::vector<int64_t> dense(kAmaxBins);
  int64_t zeros = 0;
  for (float amax : block_amax) {
    zeros += amax == 0.0f;
    ++dense[BinOf(amax)];
  }
  dense[0] -= zeros;  // the rest of bin 0 are subnormal below 2^-133
  AddBins(dense);
}

void AmaxHistogram::AddBins(std::span<const int64_t> dense) {
  std::vector<uint16_t> bins;
  std::vector<int64_t> counts;
  for (size_t bin = 0; bin < dense.size(); ++bin) {
    if (dense[bin] == 0) continue;
    bins.push_back(static_cast<uint16_t>(bin));
    counts.push_back(dense[bin]);
    blocks_ += dense[bin];
  }
  MergeSorted(bins, counts);
}

absl::Status AmaxHistogram::Merge(const AmaxHistogram& other) {
  if (other.blocks_ > kMaxBlocks - blocks_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("blocks: expected at most 2^62, got ", blocks_, " and ", other.blocks_));
  }
  MergeSorted(other.bins_, other.counts_);
  blocks_ += other.blocks_;
  return absl::OkStatus();
}

void AmaxHistogram::MergeSorted(const std::vector<uint16_t>& bins,
                                const std::vector<int64_t>& counts) {
  std::vector<uint16_t> merged_bins;
  std::vector<int64_t> merged_counts;
  for (size_t i = 0, j = 0; i < bins_.size() || j < bins.size();) {
    const bool mine = j == bins.size() || (i < bins_.size() && bins_[i] <= bins[j]);
    const bool theirs = i == bins_.size() || (j < bins.size() && bins[j] <= bins_[i]);
    merged_bins.push_back(mine ? bins_[i] : bins[j]);
    merged_counts.push_back((mine ? counts_[i] : 0) + (theirs ? counts[j] : 0));
    i += mine;
    j += theirs;
  }
  bins_ = std::move(merged_bins);
  counts_ = std::move(merged_counts);
}

float AmaxHistogram::Percentile(double percent, float floor) const {
  const size_t first = std::lower_bound(bins_.begin(), bins_.end(), BinOf(floor)) - bins_.begin();
  int64_t blocks = 0;
  for (size_t i = first; i < bins_.size(); ++i) blocks += counts_[i];
  if (blocks == 0) return 0.0f;
  const double position = std::ceil(percent / 100 * static_cast<double>(blocks));
  int64_t left = position >= static_cast<double>(blocks) ? blocks : static_cast<int64_t>(position);
  left = std::max<int64_t>(left, 1);
  size_t i = first;
  while (left > counts_[i]) left -= counts_[i++];
  return FloatFromBits(uint32_t{bins_[i]} << 16);
}

void AmaxHistogram::Save(CalibratorState& state) const {
  const int64_t size = static_cast<int64_t>(bins_.size());
  state["blocks.amax"] = MakeStateArray<uint16_t>({size}, bins_);
  state["blocks.count"] = MakeStateArray<int64_t>({size}, counts_);
}

absl::StatusOr<AmaxHistogram> AmaxHistogram::Load(const CalibratorState& state) {
  AmaxHistogram loaded;
  NIBBLE_ASSIGN_OR_RETURN(loaded.bins_, TakeStateArray<uint16_t>(state, "blocks.amax", {-1}));
  const int64_t size = static_cast<int64_t>(loaded.bins_.size());
  NIBBLE_ASSIGN_OR_RETURN(loaded.counts_, TakeStateArray<int64_t>(state, "blocks.count", {size}));
  for (int64_t i = 0; i < size; ++i) {
    if (loaded.bins_[i] >= kAmaxBins || (i > 0 && loaded.bins_[i] <= loaded.bins_[i - 1])) {
      return absl::DataLossError(
          absl::StrCat("state 'blocks.amax': expected bits of finite numbers that rise, got ",
                       loaded.bins_[i], " at ", i));
    }
    if (loaded.counts_[i] < 1 || loaded.counts_[i] > kMaxBlocks - loaded.blocks_) {
      return absl::DataLossError(
          absl::StrCat("state 'blocks.count': expected positive numbers that add up to at most "
                       "2^62, got ",
                       loaded.counts_[i], " at ", i));
    }
    loaded.blocks_ += loaded.counts_[i];
  }
  return loaded;
}

}  // namespace nibble
