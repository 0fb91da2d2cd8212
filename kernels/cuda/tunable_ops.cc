#include "kernels/cuda/tunable_ops.h"

#include <utility>

#include "base/status.h"
#include "kernels/cuda/accumulate_hessian_config.h"
#include "kernels/cuda/amax_config.h"
#include "kernels/cuda/copy_amax_config.h"
#include "kernels/cuda/copy_encode_config.h"
#include "kernels/cuda/copy_rows_config.h"
#include "kernels/cuda/dequantize_config.h"
#include "kernels/cuda/hessian_feedback_config.h"
#include "kernels/cuda/measure_error_config.h"
#include "kernels/cuda/multiplier_search_config.h"
#include "kernels/cuda/observe_config.h"
#include "kernels/cuda/post_scale_config.h"
#include "kernels/cuda/quantize_config.h"
#include "kernels/cuda/scale_sweep_config.h"
#include "kernels/cuda/scale_sweep_hessian_config.h"
#include "kernels/tuning/shipped.h"

namespace nibble {
namespace {

// `source` is the <op> of its <op>_config.h.
template <typename Configs>
TunableOp Op(CudaOp op, std::string_view source, const Configs& configs,
             std::vector<DType> dtypes = {DType::kBf16, DType::kF16, DType::kF32}) {
  return {.name = std::string(NameOf(op)),
          .build_id = std::string(TuningBuildId(source)),
          .configs = DescribeConfigs(configs),
          .dtypes = std::move(dtypes)};
}

}  // namespace

const std::vector<TunableOp>& CudaTunableOps() {
  static const auto* const ops = new std::vector<TunableOp>{
      Op(CudaOp::kAccumulateHessian, "accumulate_hessian", kAccumulateHessianConfigs),
      Op(CudaOp::kAmax, "amax", kAmaxConfigs),
      Op(CudaOp::kCopyAmax, "copy_amax", kCopyAmaxConfigs),
      Op(CudaOp::kCopyEncode, "copy_encode", kCopyEncodeConfigs),
      Op(CudaOp::kCopyRows, "copy_rows", kCopyRowsConfigs, {DType::kBf16, DType::kF16}),
      Op(CudaOp::kDequantize, "dequantize", kDequantizeConfigs, {DType::kBf16, DType::kF32}),
      Op(CudaOp::kHessianFeedback, "hessian_feedback", kHessianFeedbackConfigs),
      Op(CudaOp::kMeasureError, "measure_error", kMeasureErrorConfigs),
      Op(CudaOp::kMultiplierSearch, "multiplier_search", kMultiplierSearchConfigs),
      Op(CudaOp::kObserve, "observe", kObserveConfigs),
      Op(CudaOp::kPostScale, "post_scale", kPostScaleConfigs),
      Op(CudaOp::kQuantize, "quantize", kQuantizeConfigs),
      Op(CudaOp::kScaleSweep, "scale_sweep", kScaleSweepConfigs),
      Op(CudaOp::kScaleSweepHessian, "scale_sweep_hessian", kScaleSweepHessianConfigs),
  };
  return *ops;
}

std::vector<ConfigPicks> CudaConfigPicks(std::string_view device, const TuningStore& tuning) {
  TuningStore store = ShippedTuning();
  store.Merge(tuning);
  std::vector<ConfigPicks> picks;
  for (const TunableOp& op : CudaTunableOps()) picks.emplace_back(op, device, store);
  return picks;
}

}  // namespace nibble
