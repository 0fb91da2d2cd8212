// Whole models, end to end: makes a model folder of Qwen3-8B's shapes, runs `nibble quantize` on it
// under several recipes, and copies source and result through the same disk for comparison.
//
//     model_bench DIR [--nibble PROGRAM] [--backend NAME] [--threads N] [--runs N] [--layers N]
//
// Runs of all kinds take turns; the table has medians. The page cache is warm for all of them.
#include <fcntl.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/stopwatch.h"
#include "engine/synthetic_model.h"
#include "io/output_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

double SecondsOf(const std::function<void()>& work) {
  const Stopwatch watch;
  work();
  return watch.seconds();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The largest resident size in bytes of a program that must succeed.
int64_t RunProgram(std::vector<std::string> args) {
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  int status = 0;
  rusage usage = {};
  if (posix_spawnp(&pid, argv[0], nullptr, nullptr, argv.data(), environ) != 0 ||
      wait4(pid, &status, 0, &usage) != pid || status != 0) {
    std::fprintf(stderr, "model_bench: %s failed\n", args[0].c_str());
    std::exit(1);
  }
  return int64_t{usage.ru_maxrss} * 1024;
}

uint64_t BytesIn(const std::string& folder) {
  uint64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(folder)) bytes += entry.file_size();
  return bytes;
}

void CopyFolder(const std::string& from, const std::string& to) {
  fs::remove_all(to);
  for (const auto& entry : fs::directory_iterator(from)) {
    const absl::Status status =
        CopyFile(entry.path().string(), to + "/" + entry.path().filename().string());
    if (status.ok()) continue;
    std::fprintf(stderr, "model_bench: %s\n", std::string(status.message()).c_str());
    std::exit(1);
  }
}

int Main(int argc, char** argv) {
  CLI::App app("nibble quantize, end to end", "model_bench");
  std::string folder, program = "build/release/nibble", backend = "cpu";
  int threads = 0, runs = 3;
  SyntheticModelShape shape;
  app.add_option("DIR", folder, "folder for the model and the results")->required();
  app.add_option("--nibble", program, "the program")->capture_default_str();
  app.add_option("--backend", backend, "cpu or cuda:N")->capture_default_str();
  app.add_option("--threads", threads, "CPU threads, 0: all")->capture_default_str();
  app.add_option("--runs", runs, "of each kind")->capture_default_str()->check(CLI::Range(1, 99));
  app.add_option("--layers", shape.layers, "of the model")->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  const std::string model = folder + "/model", out = folder + "/out", copy = folder + "/copy";
  const auto summary = WriteSyntheticModel(model, shape);
  if (!summary.ok()) {
    std::fprintf(stderr, "model_bench: %s\n", std::string(summary.status().message()).c_str());
    return 1;
  }
  const uint64_t source_bytes = BytesIn(model);
  const auto weights = static_cast<double>(summary->linear_weights);
  absl::PrintF("%d layers, %.2f GB, %.3f G weights in linear layers, %s, %d threads (0: all)\n\n",
               shape.layers, 1e-9 * static_cast<double>(source_bytes), 1e-9 * weights, backend,
               threads);

  const std::vector<std::string> recipes = {"nvfp4", "nvfp4_mse", "nvfp4_four_over_six"};
  std::map<std::string, std::vector<double>> seconds;
  std::map<std::string, int64_t> memory;
  for (int run = 0; run < runs; ++run) {
    for (const std::string& recipe : recipes) {
      fs::remove_all(out);
      seconds[recipe].push_back(SecondsOf([&] {
        memory[recipe] =
            std::max(memory[recipe],
                     RunProgram({program, "quantize", model, "--recipe", recipe, "--set",
                                 "activations.algorithm.method=constant", "--out", out, "--backend",
                                 backend, "--threads", absl::StrCat(threads), "--quiet"}));
      }));
    }
    seconds["copy"].push_back(SecondsOf([&] { CopyFolder(model, copy); }));
    seconds["copy"].back() += SecondsOf([&] { CopyFolder(out, copy); });
    fs::remove_all(copy);
  }
  absl::PrintF("| run | seconds | M weights/s | over max | over the copy | peak memory |\n");
  absl::PrintF("|---|---|---|---|---|---|\n");
  const double max = Median(seconds["nvfp4"]), plain = Median(seconds["copy"]);
  for (const std::string& recipe : recipes) {
    const double s = Median(seconds[recipe]);
    absl::PrintF("| %s | %.2f | %.0f | %.2f | %.2f | %.2f GiB |\n", recipe, s, 1e-6 * weights / s,
                 s / max, s / plain, static_cast<double>(memory[recipe]) / (1 << 30));
  }
  absl::PrintF("| copies of source and result | %.2f | | | 1 | |\n", plain);
  fs::remove_all(out);
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Main(argc, argv); }
