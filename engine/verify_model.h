// Checks a folder of a quantized model: what a loader would stumble over, or load without a word
// and be wrong with. It reads the files only, knows the formats by itself and shares neither names
// nor rules with the exporter.
#ifndef NIBBLE_ENGINE_VERIFY_MODEL_H_
#define NIBBLE_ENGINE_VERIFY_MODEL_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "quant/output_error.h"

namespace nibble {

struct VerifyOptions {
  std::string against = {};  // folder of the source; empty: none
  // Tensors of the source that are to be quantized, by name; checked where it is set. Needs
  // `against`.
  std::function<absl::StatusOr<std::set<std::string>>(const std::string& source)> planned = {};
  // What Calibration::Open takes, with second moments of the inputs of quantized matrices: their
  // output errors are measured, too. Empty: none. Needs `against`.
  std::string calibration = {};
  int threads = 0;  // for output errors; as in ThreadPool
};

// Of a matrix of the result against the source.
struct WeightError {
  std::string name;  // of the module, on disk
  double relative_mse = 0, sqnr_db = 0;
  // With a calibration that has second moments of the matrix's input.
  std::optional<OutputError> output = {};

  friend bool operator==(const WeightError&, const WeightError&) = default;
};

struct VerifyReport {
  std::string format;              // "modelopt", "compressed-tensors", or "" where neither
  std::string algorithm;           // "NVFP4", "W4A16_NVFP4", "MIXED_PRECISION"
  std::vector<std::string> holes;  // a line each; none: all is well
  int64_t shards = 0, tensors = 0, quantized = 0, weight_only = 0, kept = 0;
  uint64_t bytes = 0;
  std::vector<WeightError> errors;  // with a source: of every quantized matrix, the worst first
  // Of all of these together, without a name; `output` with a calibration, of the matrices that it
  // has second moments for.
  WeightError all = {};
};

// NotFound where there is no such folder. What is wrong inside of it is a hole, not a status.
// `backend` computes errors. Of a calibration, beside what reading it gives: InvalidArgument
// without a source; FailedPrecondition where it has second moments of no quantized matrix's input,
// or inputs of other numbers of channels.
absl::StatusOr<VerifyReport> VerifyModel(const std::string& folder, const VerifyOptions& options,
                                         Backend& backend);

// Both end with a newline.
std::string VerifyReportAsText(const VerifyReport& report);
std::string VerifyReportAsJson(const VerifyReport& report);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_VERIFY_MODEL_H_
