// nibble recipes [show NAME]
#ifndef NIBBLE_CLI_RECIPES_COMMAND_H_
#define NIBBLE_CLI_RECIPES_COMMAND_H_

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace nibble {

struct RecipesCommand {
  std::string name;
  std::vector<std::string> overrides;
  CLI::App* show;

  explicit RecipesCommand(CLI::App* app);
  absl::Status Run();
};

}  // namespace nibble

#endif  // NIBBLE_CLI_RECIPES_COMMAND_H_
