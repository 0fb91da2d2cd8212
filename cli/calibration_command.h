// `nibble calibration`: files of --calib.
#ifndef NIBBLE_CLI_CALIBRATION_COMMAND_H_
#define NIBBLE_CLI_CALIBRATION_COMMAND_H_

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "cli/flags.h"

namespace nibble {

struct CalibrationCollectCommand {
  std::string captures, out;
  bool no_hessians = false;
  BackendFlags backend;

  explicit CalibrationCollectCommand(CLI::App* app);
  absl::Status Run();
};

struct CalibrationMergeCommand {
  std::string out;
  std::vector<std::string> in;

  explicit CalibrationMergeCommand(CLI::App* app);
  absl::Status Run();
};

}  // namespace nibble

#endif  // NIBBLE_CLI_CALIBRATION_COMMAND_H_
