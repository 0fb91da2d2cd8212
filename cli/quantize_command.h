// nibble quantize: a model folder to a quantized one.
#ifndef NIBBLE_CLI_QUANTIZE_COMMAND_H_
#define NIBBLE_CLI_QUANTIZE_COMMAND_H_

#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/flags.h"
#include "cli/progress.h"
#include "engine/quantize_model.h"
#include "io/atomic_file.h"

namespace nibble {

class QuantizeModelCommand {
 public:
  explicit QuantizeModelCommand(CLI::App* app);
  absl::Status Run();

 private:
  absl::StatusOr<AtomicFile> BeginReport() const;
  // Calibrates with --data, to a file beside the result, which is the request's from then on.
  absl::Status Calibrate(Backend& backend, Progress& progress);

  QuantizeModelRequest request_;
  RecipeFlags recipe_;
  DataFlags data_;
  RunFlags run_;
  std::string report_;
  ExportFormat format_ = ExportFormat::kModelopt;
  CLI::Option* format_option_;
  bool quiet_ = false, json_log_ = false;
  BackendFlags backend_;
};

}  // namespace nibble

#endif  // NIBBLE_CLI_QUANTIZE_COMMAND_H_
