// What W4A4 does to the inputs of linear layers when a model runs: quantized, and back.
#ifndef NIBBLE_ENGINE_QUANTIZED_INPUTS_H_
#define NIBBLE_ENGINE_QUANTIZED_INPUTS_H_

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "base/enum_names.h"
#include "kernels/backend.h"
#include "model/linear_hook.h"
#include "quant/quantize_params.h"

namespace nibble {

enum class InputQuantization : uint8_t {
  kPerTensor,    // under the stored scale, as checkpoints are made for
  kPerToken,     // each token under an amax of its own
  kFourOverSix,  // per tensor, blocks scaled to 6 or to 4, whichever errs less
  kNone,
};
template <>
inline constexpr std::array<std::string_view, 4> kEnumNames<InputQuantization> = {
    "per_tensor", "per_token", "four_over_six", "none"};

class QuantizedInputs final : public LinearHook {
 public:
  explicit QuantizedInputs(Backend& backend) : backend_(backend) {}

  // `input_scale`: the stored multiplier, of which the amax is 2688 times as much; per_token has no
  // use for it. `how` is not kNone.
  void Add(const std::string& module, InputQuantization how, float input_scale);

  bool ReadsDeviceMemory() const override { return backend_.cuda_device().has_value(); }
  bool Changes(const std::string& module) const override { return params_.contains(module); }
  absl::Status Change(const LinearInput& input, const std::string& module,
                      std::span<float> x) override;

 private:
  Backend& backend_;
  std::map<std::string, QuantizeParams> params_;
};

}  // namespace nibble

#endif  // NIBBLE_ENGINE_QUANTIZED_INPUTS_H_
