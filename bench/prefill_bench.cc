// How fast the forward runner goes through a layer, against the matrix products of that layer
// alone:
//
//   prefill_bench [--shape qwen3-8b] [--dtype fp32 bf16] [--tokens 2048] [--sequence 2048]
//                 [--threads 0] [--rounds 3] [--backend cpu] [--batches 0]
//
// Figures are medians over rounds; each round times all that is compared, one after another.
//
// The products alone are OpenBLAS's, on float32 weights that are there already and on all threads.
// The layer's time is that of Decoder::RunLayer over `tokens` tokens: it reads bf16 weights from
// memory, checks them, and does all that a layer does. Observed means with a hook that keeps amax,
// histogram and Hessians of every input.
//
// With --batches B, also: the time of a batch of `tokens` tokens among B of them, weights being
// there: from the layer's first linear input to its last hidden states, a B-th of it. That is
// hidden states from host memory to host memory.
//
// On a GPU (--backend cuda:0) the products alone are cuBLASLt's, bf16 or fp32 with float32 results,
// and beside them is one square product of 8192.
#include <cblas.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "bench/gpu_products.h"
#include "engine/input_observer.h"
#include "kernels/backend.h"
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

double MedianOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Of module: the tokens that it sees, experts an even share.
int64_t RowsOf(const DecoderConfig& config, const LinearModule& module, int64_t tokens) {
  return module.expert < 0 ? tokens : tokens * config.experts_per_token / config.experts;
}

// All products of the layer, routed experts with their even share of the tokens. `flops` counts.
double BareSeconds(const DecoderConfig& config, int64_t tokens, int threads, double& flops) {
  const std::vector<LinearModule> modules = LinearModules(config, 0);
  int64_t most_x = 0, most_w = 0, most_y = 0;
  for (const LinearModule& module : modules) {
    most_x = std::max(most_x, RowsOf(config, module, tokens) * module.cols);
    most_w = std::max(most_w, module.rows * module.cols);
    most_y = std::max(most_y, RowsOf(config, module, tokens) * module.rows);
  }
  const std::vector<float> x(most_x, 0.5f), w(most_w, 0.25f);
  std::vector<float> y(most_y);
  flops = 0;
  openblas_set_num_threads(threads);
  const double seconds = SecondsOf([&] {
    for (const LinearModule& module : modules) {
      const int64_t rows = RowsOf(config, module, tokens);
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, module.rows, module.cols, 1.0f,
                  x.data(), module.cols, w.data(), module.cols, 0.0f, y.data(), module.rows);
      flops += 2.0 * rows * module.rows * module.cols;
    }
  });
  openblas_set_num_threads(1);
  return seconds;
}

TokenSet TokensOf(const DecoderConfig& config, int64_t tokens, int64_t sequence, int64_t batches) {
  TokenSet set;
  for (int64_t i = 0; i < tokens * batches; ++i) {
    set.ids.push_back(static_cast<uint32_t>(i * 7919 % config.vocabulary));
  }
  for (int64_t batch = 0; batch < batches; ++batch) {
    for (int64_t left = tokens; left > 0; left -= sequence) {
      set.lengths.push_back(std::min(left, sequence));
    }
  }
  return set;
}

struct Options {
  std::string shape = "qwen3-8b", backend = "cpu";
  std::vector<std::string> dtypes = {"fp32", "bf16"};
  int64_t tokens = 2048, sequence = 2048, batches = 0;
  int threads = 0, rounds = 3;
};

// Sees when a layer's weights are there, and hands on to those who observe.
class FirstInput final : public LinearHook {
 public:
  explicit FirstInput(InputObserver* observer, bool device)
      : observer_(observer), device_(device) {}
  bool ReadsDeviceMemory() const override { return device_; }
  absl::Status Observe(const LinearInput& input) override {
    if (!seen_) seen_ = std::chrono::steady_clock::now();
    return observer_ == nullptr ? absl::OkStatus() : observer_->Observe(input);
  }
  double SecondsSince() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - *seen_).count();
  }

 private:
  InputObserver* observer_;
  const bool device_;
  std::optional<std::chrono::steady_clock::time_point> seen_;
};

struct LayerTimes {
  double all = 0, copying_weights = 0, after_weights = 0;  // seconds
  double cpu = 0;                                          // of all threads
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        config_(ShapeOf(options.shape)),
        weights_(WeightsOf(config_)),
        backend_(MakeBackend(options.backend, {.threads = options.threads}).value()) {
    for (const LinearModule& module : LinearModules(config_, 0)) observed_[module.name] = true;
  }

  void Run(DType dtype) {
    const bool gpu = backend_->cuda_device().has_value();
    const WeightSource source = [&](const std::string& name) -> absl::StatusOr<HostTensor> {
      HostTensor tensor;
      reading_ += SecondsOf([&] { tensor = weights_.at(name); });
      return tensor;
    };
    const auto decoder = Decoder::Make(config_, source,
                                       {.threads = options_.threads,
                                        .dtype = dtype,
                                        .batch_tokens = options_.tokens,
                                        .cuda_device = backend_->cuda_device()})
                             .value();
    const TokenSet one = TokensOf(config_, options_.tokens, options_.sequence, 1);
    const TokenSet more = TokensOf(config_, options_.tokens, options_.sequence, options_.batches);
    std::vector<double> bare, square, layer, observed, copying, batch, observed_batch, cpu,
        observed_cpu;
    double flops = 0;
    constexpr double kSquare = 8192;
    for (int round = 0; round < options_.rounds; ++round) {
      bare.push_back(gpu ? GpuSeconds(dtype, flops)
                         : BareSeconds(config_, options_.tokens, options_.threads, flops));
      if (gpu) {
        square.push_back(GpuProductSeconds(*backend_->cuda_device(), dtype, {{8192, 8192, 8192}}));
      }
      const LayerTimes plain = RunLayer(*decoder, one, false);
      layer.push_back(plain.all);
      copying.push_back(plain.copying_weights);
      cpu.push_back(plain.cpu);
      const LayerTimes seen = RunLayer(*decoder, one, true);
      observed.push_back(seen.all);
      observed_cpu.push_back(seen.cpu);
      if (options_.batches == 0) continue;
      const double n = static_cast<double>(options_.batches);
      batch.push_back(RunLayer(*decoder, more, false).after_weights / n);
      observed_batch.push_back(RunLayer(*decoder, more, true).after_weights / n);
    }
    const double bare_s = MedianOf(bare), layer_s = MedianOf(layer);
    std::printf(
        "%s %s, %lld tokens in sequences of %lld, %d threads, %s: layer %.2f ms (%.2f of them "
        "copying weights), %.0f tokens/s; observed %.2f ms (%+.1f %%); products alone %.2f ms, "
        "%.1f GFLOP/s; ratio %.2f\n",
        options_.shape.c_str(), std::string(DTypeName(dtype)).c_str(),
        static_cast<long long>(options_.tokens), static_cast<long long>(options_.sequence),
        options_.threads, backend_->name().c_str(), layer_s * 1e3, MedianOf(copying) * 1e3,
        static_cast<double>(options_.tokens) / layer_s, MedianOf(observed) * 1e3,
        100 * (MedianOf(observed) / layer_s - 1), bare_s * 1e3, flops / bare_s * 1e-9,
        bare_s / layer_s);
    std::printf("  time of all CPUs: %.2f ms, observed %.2f ms (%+.1f %%)\n", MedianOf(cpu) * 1e3,
                MedianOf(observed_cpu) * 1e3, 100 * (MedianOf(observed_cpu) / MedianOf(cpu) - 1));
    if (options_.batches == 0) return;
    const double batch_s = MedianOf(batch);
    std::printf("  a batch among %lld: %.3f ms, %.0f tokens/s; observed %.3f ms (%+.1f %%)\n",
                static_cast<long long>(options_.batches), batch_s * 1e3,
                static_cast<double>(options_.tokens) / batch_s, MedianOf(observed_batch) * 1e3,
                100 * (MedianOf(observed_batch) / batch_s - 1));
    if (!gpu) return;
    const double rate = 2 * kSquare * kSquare * kSquare / MedianOf(square);
    std::printf(
        "  a square product of %.0f: %.1f TFLOP/s; the products alone %.1f, %.0f %% of it; the "
        "layer's products in a batch's time %.1f, %.1f %% of it\n",
        kSquare, rate * 1e-12, flops / bare_s * 1e-12, 100 * flops / bare_s / rate,
        flops / batch_s * 1e-12, 100 * flops / batch_s / rate);
  }

 private:
  double GpuSeconds(DType dtype, double& flops) const {
    std::vector<ProductShape> shapes;
    flops = 0;
    for (const LinearModule& module : LinearModules(config_, 0)) {
      const int64_t rows = RowsOf(config_, module, options_.tokens);
      shapes.push_back({rows, module.rows, module.cols});
      flops += 2.0 * static_cast<double>(rows * module.rows * module.cols);
    }
    return GpuProductSeconds(*backend_->cuda_device(), dtype, shapes);
  }

  LayerTimes RunLayer(Decoder& decoder, const TokenSet& set, bool observe) {
    HiddenStates hidden = decoder.Embed(set).value();
    std::optional<InputObserver> observer;
    if (observe) observer.emplace(observed_, *backend_);
    FirstInput hook(observe ? &*observer : nullptr, backend_->cuda_device().has_value());
    reading_ = 0;
    absl::Status status;
    LayerTimes times;
    const std::clock_t cpu = std::clock();
    times.all = SecondsOf([&] {
      status = decoder.RunLayer(hidden, &hook);
      if (observe) status.Update(observer->States().status());
      times.after_weights = hook.SecondsSince();
    });
    times.cpu = static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC;
    times.copying_weights = reading_;
    if (!status.ok()) {
      std::fprintf(stderr, "prefill_bench: %s\n", std::string(status.message()).c_str());
      std::exit(1);
    }
    return times;
  }

  const Options options_;
  const DecoderConfig config_;
  const std::map<std::string, HostTensor> weights_;
  const std::unique_ptr<Backend> backend_;
  std::map<std::string, bool> observed_;
  double reading_ = 0;  // seconds of a layer's time that making copies of its weights takes
};

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("The forward runner against its matrix products");
  app.add_option("--shape", options.shape)
      ->check(CLI::IsMember({"qwen3-8b", "qwen3-0.6b", "qwen3-30b-a3b"}));
  app.add_option("--dtype", options.dtypes)->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--tokens", options.tokens)->check(CLI::Range(1, 1 << 20));
  app.add_option("--sequence", options.sequence)->check(CLI::Range(1, 1 << 20));
  app.add_option("--threads", options.threads)->check(CLI::Range(0, 1024));
  app.add_option("--rounds", options.rounds)->check(CLI::Range(1, 100));
  app.add_option("--backend", options.backend);
  app.add_option("--batches", options.batches)->check(CLI::Range(0, 1000));
  CLI11_PARSE(app, argc, argv);
  if (options.threads == 0) {
    options.threads = static_cast<int>(std::thread::hardware_concurrency());
  }
  const absl::Status made = MakeBackend(options.backend, {}).status();
  if (!made.ok()) {
    std::fprintf(stderr, "prefill_bench: %s\n", std::string(made.message()).c_str());
    return 1;
  }
  Bench bench(options);
  for (const std::string& dtype : options.dtypes) {
    bench.Run(dtype == "bf16" ? DType::kBf16 : DType::kF32);
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Main(argc, argv); }
