// The CUDA operations whose launch shapes are tuned. There in every build: what a store of picks
// says can be checked without a toolkit.
#ifndef NIBBLE_KERNELS_CUDA_TUNABLE_OPS_H_
#define NIBBLE_KERNELS_CUDA_TUNABLE_OPS_H_

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/enum_names.h"
#include "kernels/tuning/tunable_op.h"

namespace nibble {

enum class CudaOp : uint8_t {
  kAccumulateHessian,
  kAmax,
  kCopyAmax,
  kCopyEncode,
  kCopyRows,
  kDequantize,
  kHessianFeedback,
  kMeasureError,
  kMultiplierSearch,
  kObserve,
  kPostScale,
  kQuantize,
  kScaleSweep,
  kScaleSweepHessian
};
template <>
inline constexpr std::array<std::string_view, 14> kEnumNames<CudaOp> = {
    "accumulate_hessian", "amax",
    "copy_amax",          "copy_encode",
    "copy_rows",          "dequantize",
    "hessian_feedback",   "measure_error",
    "multiplier_search",  "observe",
    "post_scale",         "quantize",
    "scale_sweep",        "scale_sweep_hessian"};

// In the order of CudaOp.
const std::vector<TunableOp>& CudaTunableOps();

// Likewise, what each launches on the device of this name: what `tuning` picks, else what the
// shipped picks say, else the default.
std::vector<ConfigPicks> CudaConfigPicks(std::string_view device, const TuningStore& tuning);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_TUNABLE_OPS_H_
