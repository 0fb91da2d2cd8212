// How others see, and change, what a decoder's linear layers read.
#ifndef NIBBLE_MODEL_LINEAR_HOOK_H_
#define NIBBLE_MODEL_LINEAR_HOOK_H_

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "base/tensor_view.h"

namespace nibble {

// The input of modules that read the same one: q, k and v; gate and up of an MLP or of an expert;
// else a module alone.
struct LinearInput {
  int64_t layer = 0;                     // the number of layers for lm_head
  std::span<const std::string> modules;  // as LinearModules names them
  // Tokens x channels: fp32 in host memory, or, for a hook that ReadsDeviceMemory of a decoder on a
  // GPU, fp32 or bf16 in that.
  MatrixView x;
  std::span<const int64_t> tokens;  // which token of the set each row is
  int64_t expert = -1;              // of a routed expert: its number
  // Rows that routing sent to this expert. Not so for the rest of the tokens, which an expert sees
  // only with force_all_experts, in a call of their own.
  bool routed = true;
  // Of x in device memory, the cudaStream_t in whose order it is ready, and in which whoever reads
  // it later than in the call has to do so.
  void* stream = nullptr;
};

// Calls come from one thread, for one batch of tokens after another and in the order of
// LinearModules within a batch; an expert without tokens is not called. How tokens make batches
// depends on their sequences and on DecoderOptions::batch_tokens alone. A status that is not OK
// ends the run.
class LinearHook {
 public:
  virtual ~LinearHook() = default;

  virtual absl::Status Observe(const LinearInput& /*input*/) { return absl::OkStatus(); }

  // Whether what this sees and changes may lie in a GPU's memory.
  virtual bool ReadsDeviceMemory() const { return false; }

  // Whether Change is to be called for this module.
  virtual bool Changes(const std::string& /*module*/) const { return false; }
  // Changes what this module multiplies, after Observe. `x` is the module's own copy of input.x in
  // fp32, so that others that read the same input see it unchanged; it lies where input.x does, and
  // is ready.
  virtual absl::Status Change(const LinearInput& /*input*/, const std::string& /*module*/,
                              std::span<float> /*x*/) {
    return absl::OkStatus();
  }
};

}  // namespace nibble

#endif  // NIBBLE_MODEL_LINEAR_HOOK_H_
