// nibble calibrate: a model's inputs over calibration text, saved for `nibble quantize --calib`.
#ifndef NIBBLE_CLI_CALIBRATE_COMMAND_H_
#define NIBBLE_CLI_CALIBRATE_COMMAND_H_

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "cli/flags.h"
#include "engine/calibrate_model.h"

namespace nibble {

class CalibrateCommand {
 public:
  explicit CalibrateCommand(CLI::App* app);
  absl::Status Run();

 private:
  CalibrateModelRequest request_;
  RecipeFlags recipe_;
  DataFlags data_;
  RunFlags run_;
  bool quiet_ = false;
  BackendFlags backend_;
};

}  // namespace nibble

#endif  // NIBBLE_CLI_CALIBRATE_COMMAND_H_
