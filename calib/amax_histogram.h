// How large the blocks of a layer's input are: the distribution of block maxima that percentiles
// are taken of.
#ifndef NIBBLE_CALIB_AMAX_HISTOGRAM_H_
#define NIBBLE_CALIB_AMAX_HISTOGRAM_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "calib/calibrator.h"

namespace nibble {

// Counts of block maxima by the upper 16 bits of their float, 128 bins an octave: exact for bf16
// data, else within 2^-7 relatively. All-zero blocks (padding, dead channels) are not counted.
class AmaxHistogram {
 public:
  // Maxima of blocks, finite.
  void Add(std::span<const float> block_amax);
  // Counts of all bins.
  void AddBins(std::span<const int64_t> dense);
  // The counts add up: the same for any order. ResourceExhausted, and nothing is added, where there
  // would be more than 2^62 blocks.
  absl::Status Merge(const AmaxHistogram& other);

  int64_t blocks() const { return blocks_; }

  // The block maximum of rank ceil(percent / 100 * blocks), counted from 1, from the smallest; at
  // least rank 1. As far as the bins tell: the smallest value of the bin that has it. Only bins of
  // `floor` and above count. 0 where they hold no blocks. percent: 0 .. 100.
  float Percentile(double percent, float floor = 0.0f) const;

  // Arrays "blocks.amax" (U16, rising) and "blocks.count" (I64).
  void Save(CalibratorState& state) const;
  static absl::StatusOr<AmaxHistogram> Load(const CalibratorState& state);

  friend bool operator==(const AmaxHistogram&, const AmaxHistogram&) = default;

 private:
  void MergeSorted(const std::vector<uint16_t>& bins, const std::vector<int64_t>& counts);

  std::vector<uint16_t> bins_;  // rising
  std::vector<int64_t> counts_;
  int64_t blocks_ = 0;
};

}  // namespace nibble

#endif  // NIBBLE_CALIB_AMAX_HISTOGRAM_H_
