// How fast the forward runner goes through a layer, against the matrix products of that layer
// alone:
//
//   prefill_bench [--shape qwen3-8b] [--tokens 2048] [--sequence 2048] [--threads 0] [--rounds 3]
//
// The products alone are OpenBLAS's, on float32 weights that are there already and on all threads.
// The layer's time is that of Decoder::RunLayer without hooks: it reads bf16 weights from memory,
// checks them, and does all that a layer does.
#include <cblas.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "model/decoder.h"

namespace nibble {
namespace {

DecoderConfig ShapeOf(const std::string& name) {
  DecoderConfig config;
  config.architecture = Architecture::kQwen3;
  config.layers = 1;
  config.vocabulary = 1024;
  config.qk_norm = true;
  config.head_dim = 128;
  config.window = {0};
  config.has_experts = {false};
  if (name == "qwen3-8b") {
    config.hidden = 4096;
    config.heads = 32;
    config.kv_heads = 8;
    config.intermediate = 12288;
  } else if (name == "qwen3-0.6b") {
    config.hidden = 1024;
    config.heads = 16;
    config.kv_heads = 8;
    config.intermediate = 3072;
  } else {  // qwen3-30b-a3b
    config.architecture = Architecture::kQwen3Moe;
    config.hidden = 2048;
    config.heads = 32;
    config.kv_heads = 4;
    config.intermediate = 6144;
    config.experts = 128;
    config.experts_per_token = 8;
    config.expert_intermediate = 768;
    config.normalize_routing = true;
    config.has_experts = {true};
  }
  return config;
}

// bf16 values around 0, of a layer's usual size; norms are 1.
HostTensor MadeUp(const std::vector<int64_t>& shape, uint32_t seed) {
  int64_t count = 1;
  for (const int64_t n : shape) count *= n;
  HostTensor tensor{DType::kBf16, shape, UninitializedVector<std::byte>(2 * count)};
  uint32_t state = seed;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    // A sign, an exponent of 2^-7 to 2^-4, seven bits of mantissa.
    const uint16_t exponent = shape.size() == 1 ? 127 : 120 + (state >> 9) % 4;
    const uint16_t rest = shape.size() == 1 ? 0 : (state >> 16) & 0x807F;
    const uint16_t bits = static_cast<uint16_t>(exponent << 7 | rest);
    std::memcpy(&tensor.bytes[2 * i], &bits, 2);
  }
  return tensor;
}

std::map<std::string, HostTensor> WeightsOf(const DecoderConfig& config) {
  std::map<std::string, HostTensor> tensors;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
    tensors.emplace(name, MadeUp(shape, static_cast<uint32_t>(tensors.size())));
  };
  add("model.embed_tokens.weight", {config.vocabulary, config.hidden});
  for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) {
    add(std::string("model.layers.0.") + norm + ".weight", {config.hidden});
  }
  for (const char* norm : {"q_norm", "k_norm"}) {
    add(std::string("model.layers.0.self_attn.") + norm + ".weight", {config.head_dim});
  }
  for (const LinearModule& module : LinearModules(config, 0)) {
    add(module.name + ".weight", {module.rows, module.cols});
  }
  return tensors;
}

template <typename Body>
double SecondsOf(const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// All products of the layer, routed experts with their even share of the tokens. `flops` counts.
double BareSeconds(const DecoderConfig& config, int64_t tokens, int threads, double& flops) {
  const std::vector<LinearModule> modules = LinearModules(config, 0);
  int64_t most_x = 0, most_w = 0, most_y = 0;
  const auto rows_of = [&](const LinearModule& module) {
    return module.expert < 0 ? tokens : tokens * config.experts_per_token / config.experts;
  };
  for (const LinearModule& module : modules) {
    most_x = std::max(most_x, rows_of(module) * module.cols);
    most_w = std::max(most_w, module.rows * module.cols);
    most_y = std::max(most_y, rows_of(module) * module.rows);
  }
  const std::vector<float> x(most_x, 0.5f), w(most_w, 0.25f);
  std::vector<float> y(most_y);
  flops = 0;
  openblas_set_num_threads(threads);
  const double seconds = SecondsOf([&] {
    for (const LinearModule& module : modules) {
      const int64_t rows = rows_of(module);
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, module.rows, module.cols, 1.0f,
                  x.data(), module.cols, w.data(), module.cols, 0.0f, y.data(), module.rows);
      flops += 2.0 * rows * module.rows * module.cols;
    }
  });
  openblas_set_num_threads(1);
  return seconds;
}

int Main(int argc, char** argv) {
  std::string shape = "qwen3-8b";
  int64_t tokens = 2048, sequence = 2048;
  int threads = 0, rounds = 3;
  CLI::App app("The forward runner against its matrix products");
  app.add_option("--shape", shape)
      ->check(CLI::IsMember({"qwen3-8b", "qwen3-0.6b", "qwen3-30b-a3b"}));
  app.add_option("--tokens", tokens)->check(CLI::Range(1, 1 << 20));
  app.add_option("--sequence", sequence)->check(CLI::Range(1, 1 << 20));
  app.add_option("--threads", threads)->check(CLI::Range(0, 1024));
  app.add_option("--rounds", rounds)->check(CLI::Range(1, 100));
  CLI11_PARSE(app, argc, argv);
  if (threads == 0) threads = static_cast<int>(std::thread::hardware_concurrency());

  const DecoderConfig config = ShapeOf(shape);
  const std::map<std::string, HostTensor> weights = WeightsOf(config);
  double reading = 0;  // seconds of a layer's time that making copies of its weights takes
  const WeightSource source = [&](const std::string& name) -> absl::StatusOr<HostTensor> {
    HostTensor tensor;
    reading += SecondsOf([&] { tensor = weights.at(name); });
    return tensor;
  };
  TokenSet set;
  for (int64_t i = 0; i < tokens; ++i) {
    set.ids.push_back(static_cast<uint32_t>(i * 7919 % config.vocabulary));
  }
  for (int64_t left = tokens; left > 0; left -= sequence) {
    set.lengths.push_back(std::min(left, sequence));
  }
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const auto decoder =
        Decoder::Make(config, source, {.threads = threads, .dtype = dtype}).value();
    double bare = 1e30, layer = 1e30, flops = 0, reading_of_best = 0;
    for (int round = 0; round < rounds; ++round) {
      bare = std::min(bare, BareSeconds(config, tokens, threads, flops));
      HiddenStates hidden = decoder->Embed(set).value();
      absl::Status status;
      reading = 0;
      const double seconds = SecondsOf([&] { status = decoder->RunLayer(hidden); });
      if (seconds < layer) {
        layer = seconds;
        reading_of_best = reading;
      }
      if (!status.ok()) {
        std::fprintf(stderr, "prefill_bench: %s\n", std::string(status.message()).c_str());
        return 1;
      }
    }
    std::printf(
        "%s %s, %lld tokens in sequences of %lld, %d threads: layer %.0f ms (%.0f of them "
        "copying weights), %.0f tokens/s; products alone %.0f ms, %.1f GFLOP/s; ratio %.2f\n",
        shape.c_str(), std::string(DTypeName(dtype)).c_str(), static_cast<long long>(tokens),
        static_cast<long long>(sequence), threads, layer * 1e3, reading_of_best * 1e3,
        tokens / layer, bare * 1e3, flops / bare * 1e-9, bare / layer);
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Main(argc, argv); }
