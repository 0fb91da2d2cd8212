// Runs a decoder-only model over token sequences, one layer's weights in memory at a time:
//
//   Embed(tokens) --HiddenStates--> RunLayer, once for each layer --HiddenStates--> Logits
//
// Results do not depend on the number of threads.
#ifndef NIBBLE_MODEL_DECODER_H_
#define NIBBLE_MODEL_DECODER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "model/decoder_config.h"
#include "model/hidden_states.h"
#include "model/linear_hook.h"
#include "model/token_set.h"
#include "model/weight_source.h"

namespace nibble {

struct DecoderOptions {
  int threads = 0;  // 0 means one for each CPU this process may use
  // What linear layers read, and hidden states between layers, are rounded to: fp32 or bf16. All
  // sums, and what is between, are float32; weights are used as they are stored.
  DType dtype = DType::kF32;
  // Whole sequences are run together up to that many tokens; a longer one is run alone.
  int64_t batch_tokens = 2048;
  // The GPU to run on, with cuBLASLt; the CPU where there is none. MakeBackend's cuda:N, and what a
  // hook observes it with if that hook ReadsDeviceMemory.
  std::optional<int> cuda_device = {};
  int64_t logit_rows = 256;  // in a call of LogitsSink
  // Every expert's inputs are observed for every token; outputs stay those of the routing.
  bool force_all_experts = false;
  HiddenStatesOptions hidden_states = {};
};

// Rows of logits, each config.vocabulary values, from the token `first` on. A status that is not OK
// ends the run.
using LogitsSink = std::function<absl::Status(int64_t first, std::span<const float> logits)>;

// The last norm and lm_head of a decoder, in memory. The decoder outlives it.
class LogitsHead {
 public:
  virtual ~LogitsHead() = default;

  // Of the tokens [first, first + count) of hidden states that the last layer wrote. Valid until
  // the next call.
  virtual absl::StatusOr<std::span<const float>> Logits(const HiddenStates& hidden, int64_t first,
                                                        int64_t count,
                                                        LinearHook* hook = nullptr) = 0;
};

// Failures name the layer and the tensor: NotFound where one is missing, DataLoss where its shape
// or type is not what the configuration asks for, FailedPrecondition where it holds NaN or infinity
// or makes activations that do.
class Decoder {
 public:
  // Unavailable where the machine or the build has no such device, or no cuBLASLt.
  static absl::StatusOr<std::unique_ptr<Decoder>> Make(DecoderConfig config, WeightSource weights,
                                                       const DecoderOptions& options = {});
  virtual ~Decoder() = default;

  virtual const DecoderConfig& config() const = 0;

  // What layer 0 reads.
  virtual absl::StatusOr<HiddenStates> Embed(const TokenSet& tokens) = 0;

  // Runs the layer hidden.next_layer() over all sequences and replaces `hidden` by what the next
  // one reads. After a failure `hidden` is of no use any more, and later calls say so.
  virtual absl::Status RunLayer(HiddenStates& hidden, LinearHook* hook = nullptr) = 0;

  // The same without replacing: for hooks only.
  virtual absl::Status ObserveLayer(const HiddenStates& hidden, LinearHook& hook) = 0;

  // For logits of several decoders side by side.
  virtual absl::StatusOr<std::unique_ptr<LogitsHead>> LoadHead() = 0;

  // All logits, by a head that is loaded for this.
  absl::Status Logits(const HiddenStates& hidden, const LogitsSink& sink,
                      LinearHook* hook = nullptr);

 protected:
  explicit Decoder(int64_t logit_rows) : logit_rows_(logit_rows) {}

 private:
  const int64_t logit_rows_;
};

}  // namespace nibble

#endif  // NIBBLE_MODEL_DECODER_H_
