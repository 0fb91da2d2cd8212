// Runs a model over calibration tokens, layer by layer, and saves what its linear layers' inputs
// look like: the file of states that --calib reads.
//
// While it runs, "<out>.partial" holds the hidden states before the next layer and a file of states
// for each layer that is done: a run that was killed goes on from there, with the same bytes in the
// end. Memory: one layer's weights, its observers and the hidden states' budget, whatever the
// number of layers.
#ifndef NIBBLE_ENGINE_CALIBRATE_MODEL_H_
#define NIBBLE_ENGINE_CALIBRATE_MODEL_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "kernels/backend.h"
#include "model/decoder.h"
#include "model/hidden_states.h"
#include "model/token_set.h"
#include "policies/recipe.h"

namespace nibble {

// How a decoder runs. Results depend on `dtype`, on whether it is on a GPU, and in their last bits
// on `batch_tokens`.
struct RunOptions {
  int threads = 0;            // as in ThreadPool
  DType dtype = DType::kF32;  // fp32 or bf16: see DecoderOptions
  int64_t batch_tokens = 0;   // see DecoderOptions; 0: 2048 on the CPU, 8192 on a GPU
  HiddenStatesOptions hidden_states = {};
};
// Where the backend is a GPU's, the decoder runs there.
DecoderOptions DecoderOptionsOf(const RunOptions& run, const Backend& backend);

// A layer that is done, of the model `model`; 1 .. layers.
struct LayerProgress {
  std::string model;
  int64_t layer = 0, layers = 0;
  double seconds = 0;  // since this run began its first layer
  int64_t resumed_layers = 0;

  double seconds_left() const {
    return seconds / static_cast<double>(layer - resumed_layers) *
           static_cast<double>(layers - layer);
  }
};
// An object with the member "event", and a newline.
std::string ProgressAsJsonLine(const LayerProgress& progress);
// Another status than OK ends the run with it.
using LayerSink = std::function<absl::Status(const LayerProgress&)>;

struct CalibrateModelRequest {
  std::string model;  // folder
  std::string out;    // file
  Recipe recipe;      // what its plan quantizes is observed, as far as its methods want
  TokenSet tokens = {};
  std::string version = {};  // of the program: a partial result of another one is not resumed
  bool resume = false;       // go on with what a killed run left, if there is something
  bool overwrite = false;    // drop what a killed run left
  // Leave the partial result when all is done, so that resuming costs next to nothing;
  // DropPartialCalibration removes it.
  bool keep_partial = false;
  RunOptions run = {};
};

struct CalibrationSummary {
  int64_t sequences = 0, tokens = 0;
  int64_t modules = 0;  // observed
  int64_t layers = 0, resumed_layers = 0;
  double seconds = 0;
  // Of experts with fewer tokens than the recipe's routed_min_tokens, a line for each layer.
  std::vector<std::string> warnings;
};

// InvalidArgument for a recipe that needs no data, for an `out` that is neither free nor a file of
// states, and where a partial result is there and the request does not say what to do with it;
// FailedPrecondition where that is of another run; Unimplemented for a module that the recipe
// quantizes and a decoder does not run. `backend` observes, and quantizes with `propagate`.
absl::StatusOr<CalibrationSummary> CalibrateModel(const CalibrateModelRequest& request,
                                                  Backend& backend, const LayerSink& progress = {});

// Of the run that wrote `out`, if there is any.
absl::Status DropPartialCalibration(const std::string& out);

// A line, without the warnings.
std::string CalibrationSummaryAsText(const CalibrationSummary& summary);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_CALIBRATE_MODEL_H_
