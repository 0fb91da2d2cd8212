// How far a long command is, on stderr: a bar that redraws itself on a terminal, a line now and
// then elsewhere, JSON lines where asked for.
#ifndef NIBBLE_CLI_PROGRESS_H_
#define NIBBLE_CLI_PROGRESS_H_

#include <cstdint>
#include <string>

#include "engine/calibrate_model.h"
#include "engine/quantize_model.h"

namespace nibble {

class Progress {
 public:
  enum class Form : uint8_t { kNone, kTerminal, kLines, kJson };

  // What stderr can show.
  static Form FormOfStderr();

  explicit Progress(Form form) : form_(form) {}
  ~Progress() { Close(); }

  void Show(const QuantizeModelProgress& progress);
  void Show(const LayerProgress& progress);
  // Leaves the last line as it is.
  void Close();

 private:
  // Whether it is time to; `done` always is.
  bool IsDue(double seconds, bool done);
  void ShowLine(double share, const std::string& text);

  Form form_;
  double last_shown_ = -1e9;  // seconds
  bool open_line_ = false;
};

}  // namespace nibble

#endif  // NIBBLE_CLI_PROGRESS_H_
