// Which multiplier grids can be searched.
#ifndef NIBBLE_KERNELS_MULTIPLIER_GRID_H_
#define NIBBLE_KERNELS_MULTIPLIER_GRID_H_

#include "absl/status/status.h"
#include "quant/numerics/scale_sweep.h"

namespace nibble {

// InvalidArgument for a grid without end or with more than kMaxMultipliers, as from
// Backend::MultiplierSearch.
absl::Status Validate(const MultiplierGrid& grid);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_MULTIPLIER_GRID_H_
