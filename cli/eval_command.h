// nibble eval: how well models predict held-out text.
#ifndef NIBBLE_CLI_EVAL_COMMAND_H_
#define NIBBLE_CLI_EVAL_COMMAND_H_

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "cli/flags.h"
#include "engine/evaluate_model.h"

namespace nibble {

class EvalCommand {
 public:
  explicit EvalCommand(CLI::App* app);
  absl::Status Run();

 private:
  EvaluationRequest request_;
  CLI::Option* activations_;
  InputQuantization inputs_ = InputQuantization::kPerTensor;
  DataFlags data_;
  RunFlags run_;
  bool json_ = false, quiet_ = false;
  BackendFlags backend_;
};

}  // namespace nibble

#endif  // NIBBLE_CLI_EVAL_COMMAND_H_
