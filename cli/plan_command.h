// nibble plan MODEL --recipe R
#ifndef NIBBLE_CLI_PLAN_COMMAND_H_
#define NIBBLE_CLI_PLAN_COMMAND_H_

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace nibble {

struct PlanCommand {
  std::string model, recipe;
  std::vector<std::string> set;
  bool strict = false, json = false;
  int threads = 0;

  explicit PlanCommand(CLI::App* app);
  absl::Status Run();
};

}  // namespace nibble

#endif  // NIBBLE_CLI_PLAN_COMMAND_H_
