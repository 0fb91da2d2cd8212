// QuantizeParams as the kernels take them.
#ifndef NIBBLE_KERNELS_CUDA_ENCODE_PARAMS_H_
#define NIBBLE_KERNELS_CUDA_ENCODE_PARAMS_H_

#include "quant/numerics/block_encode.h"
#include "quant/quantize_params.h"

namespace nibble {

inline EncodeMethod MethodOf(const QuantizeParams& params) {
  if (!params.four_over_six) {
    return params.rule == Rule::kRuntime ? EncodeMethod::kRuntime : EncodeMethod::kCheckpoint;
  }
  switch (params.four_over_six->metric) {
    case ErrorMetric::kMae:
      return EncodeMethod::kFourOverSixMae;
    case ErrorMetric::kMse:
      return EncodeMethod::kFourOverSixMse;
    case ErrorMetric::kAbsMax:
      break;
  }
  return EncodeMethod::kFourOverSixAbsMax;
}

inline EncodeParams EncodeParamsOf(const QuantizeParams& params) {
  EncodeParams encode = {};
  encode.bound = static_cast<float>(params.e4m3_max);
  encode.rule = params.rule;
  if (params.four_over_six) encode.path = params.four_over_six->path;
  if (params.stochastic) {
    encode.stochastic = true;
    encode.seed = params.stochastic->seed;
    encode.offset = params.stochastic->offset;
  }
  return encode;
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_ENCODE_PARAMS_H_
