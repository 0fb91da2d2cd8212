// How the global scale of a layer's input is chosen: its amax, that is, since the stored
// input_scale is amax / (6 * 448). Clipped is what is above the amax: block scales end there.
//
// A block is 16 consecutive channels of one token; percentiles are over the maxima of the blocks
// that are not all zero, see calib/amax_histogram.h. Without such a block every method's amax is 0,
// which a checkpoint stores as the scale 1.
//
//   max         the largest magnitude of all
//   percentile  the block maximum at `percentile`; 100 is max. Clips the largest
//               100 - percentile percent of the blocks
//   headroom    max(rho * anchor, upper), rho = 16384 * headroom, `upper` the block maximum at
//               99.99 percent, `anchor` that at 1 percent among the blocks of at least upper /
//               10^6. Model-Optimizer's nvfp4_act_headroom at headroom 1. Scales of blocks are
//               E4M3, whose normal range is 28672; the anchor's gets a scale of 448 / rho, so small
//               that the blocks above it may grow at inference without being clipped. Where the
//               blocks of calibration span more than rho already, the amax is `upper`
//   constant    2688 * input_scale, whatever the data; the stored scale is then input_scale to
//   within
//               its last place, and exactly where 21 * input_scale has no more than 24 bits
#ifndef NIBBLE_CALIB_ACTIVATION_CALIBRATORS_H_
#define NIBBLE_CALIB_ACTIVATION_CALIBRATORS_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "calib/calibrator.h"
#include "calib/input_stats.h"
#include "policies/recipe.h"

namespace nibble {

inline constexpr double kHeadroomRho = 16384;
inline constexpr double kHeadroomMax = 1.75;  // 28672 / kHeadroomRho, E4M3's normal range
inline constexpr double kHeadroomAnchorPercent = 1, kHeadroomUpperPercent = 99.99;
inline constexpr float kHeadroomAnchorFloor = 1e6f;

// Whether the amax follows from the data at all; constant's does not.
bool NeedsInput(const ActivationSpec& spec);
// Whether the largest magnitude is not enough.
bool NeedsHistogram(const ActivationSpec& spec);

// The amax that `spec` gives. FailedPrecondition where it needs tokens and there are none;
// InvalidArgument where it needs a histogram and `stats` has none.
absl::StatusOr<float> InputAmax(const ActivationSpec& spec, const InputStats& stats);

}  // namespace nibble

#endif  // NIBBLE_CALIB_ACTIVATION_CALIBRATORS_H_
