#include "engine/quantized_inputs.h"

#include "base/status.h"
#include "base/tensor_view.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {

void QuantizedInputs::Add(const std::string& module, InputQuantization how, float input_scale) {
  QuantizeParams params;
  if (how == InputQuantization::kPerToken) {
    params.scheme = Scheme::kPerToken;
  } else {
    params.global_amax = MulRn(input_scale, kE2m1Max * kE4m3Max);
  }
  if (how == InputQuantization::kFourOverSix) {
    params.four_over_six = FourOverSix{};
    params.e4m3_max = 256;
  }
  params_[module] = params;
}

absl::Status QuantizedInputs::Change(const LinearInput& input, const std::string& module,
                                     std::span<float> x) {
  const MatrixView view = {x.data(), DType::kF32, input.x.rows, input.x.cols};
  NIBBLE_ASSIGN_OR_RETURN(const PackedTensor packed, backend_.Quantize(params_.at(module), view));
  return backend_.Dequantize(packed.view(), DType::kF32, x.data());
}

}  // namespace nibble
