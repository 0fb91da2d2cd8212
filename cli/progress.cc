#include "cli/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/text.h"

namespace nibble {
namespace {

// "2:07", "1:03:09"
std::string Clock(double seconds) {
  const int64_t s = static_cast<int64_t>(seconds + 0.5);
  return s < 3600 ? absl::StrFormat("%d:%02d", s / 60, s % 60)
                  : absl::StrFormat("%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
}

size_t TerminalWidth() {
  winsize size = {};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

}  // namespace

Progress::Form Progress::FormOfStderr() {
  return isatty(STDERR_FILENO) ? Form::kTerminal : Form::kLines;
}

bool Progress::IsDue(double seconds, bool done) {
  if (form_ == Form::kNone) return false;
  if (seconds < last_shown_) last_shown_ = -1e9;  // another run's clock
  const double interval = form_ == Form::kTerminal ? 0.1 : form_ == Form::kJson ? 1 : 5;
  if (seconds - last_shown_ < interval && !done) return false;
  last_shown_ = seconds;
  return true;
}

void Progress::ShowLine(double share, const std::string& text) {
  std::string line = absl::StrFormat("%5.1f %%  %s", 100 * share, Printable(text));
  if (form_ == Form::kLines) {
    std::fprintf(stderr, "%s\n", line.c_str());
    return;
  }
  constexpr size_t kBar = 20, kWithBar = 80;
  const size_t full = static_cast<size_t>(share * kBar), width = TerminalWidth();
  if (width >= kWithBar) {
    line = absl::StrCat("[", std::string(full, '#'), std::string(kBar - full, '.'), "]", line);
  }
  line.resize(std::min(line.size(), width - 1));
  std::fprintf(stderr, "\r\x1b[K%s", line.c_str());
  std::fflush(stderr);
  open_line_ = true;
}

void Progress::Show(const QuantizeModelProgress& p) {
  if (!IsDue(p.seconds, p.weights == p.all_weights)) return;
  if (form_ == Form::kJson) {
    std::fputs(ProgressAsJsonLine(p).c_str(), stderr);
    return;
  }
  const double share =
      p.all_weights == 0 ? 1 : static_cast<double>(p.weights) / static_cast<double>(p.all_weights);
  ShowLine(share, absl::StrCat(absl::StrFormat("%.1f of %.1f M weights, %.0f M/s, %s left  ",
                                               1e-6 * static_cast<double>(p.weights),
                                               1e-6 * static_cast<double>(p.all_weights),
                                               1e-6 * p.rate(), Clock(p.seconds_left())),
                               ToAbsl(p.tensor)));
}

void Progress::Show(const LayerProgress& p) {
  if (!IsDue(p.seconds, p.layer == p.layers)) return;
  if (form_ == Form::kJson) {
    std::fputs(ProgressAsJsonLine(p).c_str(), stderr);
    return;
  }
  ShowLine(static_cast<double>(p.layer) / static_cast<double>(p.layers),
           absl::StrFormat("layer %d of %d, %s left  %s", p.layer, p.layers,
                           Clock(p.seconds_left()), p.model));
}

void Progress::Close() {
  if (open_line_) std::fputc('\n', stderr);
  open_line_ = false;
}

}  // namespace nibble
