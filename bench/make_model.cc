// Writes a made-up model folder: `make_model DIR [LAYERS]`, by default 4.1 GB shaped like Qwen3-8B.
#include <chrono>
#include <cstdio>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "engine/synthetic_model.h"

int main(int argc, char** argv) {
  nibble::SyntheticModelShape shape;
  if (argc < 2 || argc > 3 || (argc == 3 && !absl::SimpleAtoi(argv[2], &shape.layers))) {
    std::fprintf(stderr, "make_model: expected DIR [LAYERS]\n");
    return 2;
  }
  const auto start = std::chrono::steady_clock::now();
  const auto summary = nibble::WriteSyntheticModel(argv[1], shape);
  if (!summary.ok()) {
    std::fprintf(stderr, "make_model: %s\n", summary.status().ToString().c_str());
    return 1;
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  absl::PrintF("%s: %d tensors, %d bytes in %d shards, %d weights in linear layers, %.1f s\n",
               argv[1], summary->tensors, summary->bytes, summary->shards, summary->linear_weights,
               seconds.count());
  return 0;
}
