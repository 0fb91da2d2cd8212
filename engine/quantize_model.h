// A model folder in, a quantized model folder out: read, quantized and written one fused group at a
// time, the three at once. Memory is bounded by the largest group and a fixed window; the bytes of
// the result depend on the model, the recipe and the calibration alone.
//
// All is written to "<out>.partial", which takes the name <out> when it is complete. A run that was
// killed leaves that folder, with whole shards and notes on them, and can be resumed.
#ifndef NIBBLE_ENGINE_QUANTIZE_MODEL_H_
#define NIBBLE_ENGINE_QUANTIZE_MODEL_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "policies/model.h"
#include "policies/recipe.h"

namespace nibble {

struct QuantizeModelRequest {
  std::string model, out;        // folders
  Recipe recipe;                 // its output.format is that of the result
  std::string calibration = {};  // a file of engine/calibration.h; empty: none
  std::string version = {};      // of the program: a partial result of another one is not resumed
  bool strict = false;           // see PlanOptions
  bool resume = false;           // go on with what a killed run left, if there is something
  bool overwrite = false;        // replace `out`, and drop what a killed run left
  bool dry_run = false;          // check everything that can be checked without writing
};

struct QuantizeModelProgress {
  int64_t weights = 0, all_weights = 0;  // elements of tensors, kept ones too
  double seconds = 0;                    // since the first was begun
  std::string_view tensor;               // the last one done

  double rate() const { return seconds == 0 ? 0 : static_cast<double>(weights) / seconds; }
  double seconds_left() const {
    return weights == 0 ? 0 : static_cast<double>(all_weights - weights) / rate();
  }
};
// Called from the thread that called QuantizeModel; another status than OK ends the run with it.
using QuantizeModelSink = std::function<absl::Status(const QuantizeModelProgress&)>;

// The error of one quantized tensor (of one expert, where they are exported apart), from its stored
// bytes.
struct TensorError {
  std::string module;
  ModuleKind kind = ModuleKind::kOther;
  int64_t weights = 0;
  double squared_error = 0, squared_weights = 0, max_error = 0;
  int64_t saturated = 0, flushed = 0;

  double relative_mse() const { return squared_weights == 0 ? 0 : squared_error / squared_weights; }
  double sqnr_db() const;
  void Add(const TensorError& other);  // all but the names

  friend bool operator==(const TensorError&, const TensorError&) = default;
};

struct ModelSummary {
  std::vector<TensorError> tensors;  // in the order of the plan
  int64_t kept = 0;                  // tensors
  int64_t weights = 0, kept_weights = 0;
  int64_t bytes_before = 0, bytes_after = 0;  // of tensors
  int shards = 0, resumed_shards = 0;
  std::vector<std::string> warnings;
  double seconds = 0;
  // Busy times of the three, which overlap; of what this run did, not of what it resumed.
  double read_seconds = 0, compute_seconds = 0, write_seconds = 0;
};

// `backends`: one for each group that may be under way at once. FailedPrecondition with the
// tensor's name for NaN or infinity, unless the recipe keeps such tensors, and for a recipe that
// needs activations without a calibration; InvalidArgument where `out` or its partial folder exists
// and the request does not say what to do with it.
absl::StatusOr<ModelSummary> QuantizeModel(const QuantizeModelRequest& request,
                                           std::span<const std::unique_ptr<Backend>> backends,
                                           const QuantizeModelSink& progress);

// Both end with a newline; so does each JSON line, an object with the member "event".
std::string ModelSummaryAsText(const ModelSummary& summary);
std::string ModelSummaryAsJson(const ModelSummary& summary);
std::string ModelSummaryAsJsonLine(const ModelSummary& summary);
std::string ProgressAsJsonLine(const QuantizeModelProgress& progress);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_QUANTIZE_MODEL_H_
