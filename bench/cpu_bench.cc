// The CPU backend's operations in weights per second, by instruction set and number of threads:
//
//   ./run bench                      all of them, and the ratios that matter as a table
//   build/release/bench/cpu_bench --benchmark_filter=ScaleSweep
//
// CPU timings are noisy: compare within one run, by medians.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/parallel_for.h"
#include "base/status.h"
#include "benchmark/benchmark.h"
#include "calib/calibrator.h"
#include "engine/synthetic.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "quant/output_error.h"

namespace nibble {
namespace {

constexpr int64_t kCols = 4096;

const std::vector<std::byte>& NormalBf16(int64_t rows) {
  static std::map<int64_t, std::vector<std::byte>> tensors;
  std::vector<std::byte>& bytes = tensors[rows];
  if (bytes.empty()) {
    bytes = ToBytes(SyntheticValues(Distribution::kNormal, rows * kCols, 1), DType::kBf16);
  }
  return bytes;
}

// One operation on a normal bf16 tensor of `rows` x kCols.
template <typename Op>
void Register(const std::string& name, const CpuKernels& kernels, int threads, int64_t rows,
              const Op& op) {
  const auto run = [&kernels, threads, rows, op](benchmark::State& state) {
    const auto backend = MakeCpuBackendWith(kernels, {.threads = threads});
    const MatrixView x = {NormalBf16(rows).data(), DType::kBf16, rows, kCols};
    for (auto _ : state) op(*backend, x, state);
    state.SetItemsProcessed(state.iterations() * x.size());
  };
  const std::string full = absl::StrCat(name, "/", std::string(kernels.name), "/", threads);
  benchmark::RegisterBenchmark(full.c_str(), run)
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond)
      ->Repetitions(7)
      ->ReportAggregatesOnly();
}

double Seconds(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Keeps the vector units of a core busy for about 5 ms, from registers alone.
void RegisterLoop() {
  constexpr int kChains = 12;
  typedef float Vector __attribute__((vector_size(16)));
  Vector sums[kChains] = {};
  for (int step = 0; step < 2'000'000; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * 0.5f + 1.0f;
  }
  for (Vector& sum : sums) benchmark::DoNotOptimize(sum);
}

// Seconds of CPU time that this machine's other programs have had since it started, and seconds
// that its host kept for others; both 0 where /proc is absent.
struct OthersTime {
  double programs = 0, stolen = 0;

  static OthersTime Now() {
    double user = 0, nice = 0, system = 0, idle, iowait, irq = 0, softirq = 0, stolen = 0;
    if (std::FILE* file = std::fopen("/proc/stat", "r")) {
      if (std::fscanf(file, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", &user, &nice, &system, &idle,
                      &iowait, &irq, &softirq, &stolen) != 8) {
        user = nice = system = irq = softirq = stolen = 0;
      }
      std::fclose(file);
    }
    rusage own;
    getrusage(RUSAGE_SELF, &own);
    const auto seconds = [](const timeval& t) { return t.tv_sec + 1e-6 * t.tv_usec; };
    const double tick = 1.0 / sysconf(_SC_CLK_TCK);
    return {(user + nice + system + irq + softirq) * tick - seconds(own.ru_utime) -
                seconds(own.ru_stime),
            stolen * tick};
  }
};

// How much faster two threads are than one at the same work. The two take turns, and beside every
// turn a loop over registers does the same: where that gains less than two, the machine gave less
// than two cores (other programs had them, or its CPUs are halves of one), and nothing could have
// gained them.
class ThreadScaling {
 public:
  void Measure(const CpuKernels& kernels, int64_t rows,
               const std::function<void(Backend&, const MatrixView&)>& op) {
    // Short rounds, as what the machine gives may change within a tenth of a second.
    constexpr int kRounds = 101;
    const auto one = MakeCpuBackendWith(kernels, {.threads = 1});
    const auto two = MakeCpuBackendWith(kernels, {.threads = 2});
    const MatrixView x = {NormalBf16(rows).data(), DType::kBf16, rows, kCols};
    op(*one, x);
    op(*two, x);
    const auto start = std::chrono::steady_clock::now();
    const OthersTime others = OthersTime::Now();
    double before = MachineGain();
    for (int round = 0; round < kRounds; ++round) {
      const double alone = Seconds([&] { op(*one, x); });
      const double together = Seconds([&] { op(*two, x); });
      const double after = MachineGain();
      machine_.push_back(std::min(before, after));
      gains_.push_back(alone / together);
      before = after;
    }
    const OthersTime now = OthersTime::Now();
    seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    others_ = {now.programs - others.programs, now.stolen - others.stolen};
  }

  void Print(const std::string& name) const {
    constexpr double kTwoCores = 1.9;
    std::vector<double> with_two_cores;
    for (size_t i = 0; i < gains_.size(); ++i) {
      if (machine_[i] >= kTwoCores) with_two_cores.push_back(gains_[i]);
    }
    const auto print = [&](const std::string& what, const std::vector<double>& values) {
      if (values.empty()) return;
      absl::PrintF("%-58s %10.2f\n", what, Median(values));
    };
    print(absl::StrCat("two threads over one, ", name), gains_);
    print("  the loop over registers beside it", machine_);
    print(absl::StrCat("  the ", with_two_cores.size(), " rounds of ", gains_.size(),
                       " in which that gained ", kTwoCores),
          with_two_cores);
    absl::PrintF("%-58s %9.1f%%\n", "  one CPU's time that other programs took meanwhile",
                 100 * others_.programs / seconds_);
    absl::PrintF("%-58s %9.1f%%\n", "  one CPU's time that the machine's host took",
                 100 * others_.stolen / seconds_);
  }

 private:
  double MachineGain() {
    const double alone = Seconds([] {
      RegisterLoop();
      RegisterLoop();
    });
    return alone /
           Seconds([&] { pool_.ParallelFor(2, 1, [](int64_t, int64_t) { RegisterLoop(); }); });
  }

  ThreadPool pool_{2};
  std::vector<double> gains_, machine_;
  OthersTime others_;
  double seconds_ = 0;
};

void BM_Sweep(Backend& backend, const MatrixView& x, benchmark::State& state, SweepMethod method) {
  const auto result = backend.ScaleSweep({method, 448, std::nullopt}, x);
  NIBBLE_CHECK(result.ok());
  state.counters["evaluations_per_block"] =
      static_cast<double>(result->evaluations) / static_cast<double>(result->code.size());
}

// Into memory that is there, as a serving stack would.
void QuantizeInto(const QuantizeParams& params, Backend& backend, const MatrixView& x) {
  static std::map<int64_t, std::unique_ptr<PackedTensor>> outs;
  auto& out = outs[x.rows];
  if (!out) out = std::make_unique<PackedTensor>(LayoutOf(params, x.rows, x.cols));
  MutablePackedView view = out->mutable_view();
  view.layout = LayoutOf(params, x.rows, x.cols);
  NIBBLE_CHECK(backend.Quantize(params, x, view).ok());
}

constexpr int64_t kRows = 4096, kFewRows = 64;  // the slow ones get less work

// What `nibble verify --calib` computes; no operation of a backend.
void RegisterOutputError(std::span<const float> hessians, int threads) {
  const auto run = [hessians, threads](benchmark::State& state) {
    const MatrixView x = {NormalBf16(kRows).data(), DType::kBf16, kRows, kCols};
    const auto packed = (*MakeBackend("cpu"))->Quantize({.rule = Rule::kCheckpoint}, x);
    NIBBLE_CHECK(packed.ok());
    ThreadPool pool(threads);
    for (auto _ : state) {
      OutputError total;
      AddOutputError(x, {packed->packed.data(), packed->scale.data(), 1}, hessians, pool, total);
      benchmark::DoNotOptimize(total);
    }
    state.SetItemsProcessed(state.iterations() * x.size());
  };
  benchmark::RegisterBenchmark(absl::StrCat("OutputError/", threads).c_str(), run)
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond)
      ->Repetitions(7)
      ->ReportAggregatesOnly();
}

void RegisterAll() {
  const auto quantize = [](const QuantizeParams& params) {
    return [params](Backend& backend, const MatrixView& x, benchmark::State&) {
      QuantizeInto(params, backend, x);
    };
  };
  const auto sweep = [](SweepMethod method) {
    return [method](Backend& backend, const MatrixView& x, benchmark::State& state) {
      BM_Sweep(backend, x, state, method);
    };
  };
  const auto multipliers = [](Backend& backend, const MatrixView& x, benchmark::State&) {
    NIBBLE_CHECK(backend.MultiplierSearch({}, x).ok());
  };
  static const std::vector<float> hessians = [] {
    std::vector<float> h(kCols / 16 * 256, 0.0f);
    for (size_t i = 0; i < h.size(); ++i) h[i] = i % 256 % 17 == 0 ? 1.0f : 0.05f;
    return h;
  }();
  const auto feedback = [](Backend& backend, const MatrixView& x, benchmark::State&) {
    NIBBLE_CHECK(backend.SweepHessianFeedback({}, x, hessians).ok());
  };
  const auto hessian = [](Backend& backend, const MatrixView& x, benchmark::State& state) {
    const auto result = backend.ScaleSweepHessian({}, x, hessians);
    NIBBLE_CHECK(result.ok());
    state.counters["evaluations_per_block"] =
        static_cast<double>(result->evaluations) / static_cast<double>(result->code.size());
  };
  const auto accumulate_hessian = [](Backend& backend, const MatrixView& x, benchmark::State&) {
    std::vector<float> h(kCols * 16, 0.0f);
    NIBBLE_CHECK(backend.AccumulateHessian(x, h).ok());
  };
  const auto observe = [](const ObserveParams& params) {
    return [params](Backend& backend, const MatrixView& x, benchmark::State&) {
      NIBBLE_CHECK(backend.Observe(params, x).ok());
    };
  };
  const auto measure_error = [](Backend& backend, const MatrixView& x, benchmark::State& state) {
    QuantizeParams params;
    params.rule = Rule::kCheckpoint;
    state.PauseTiming();
    const auto packed = backend.Quantize(params, x);
    state.ResumeTiming();
    NIBBLE_CHECK(packed.ok() && backend.MeasureError(x, packed->view()).ok());
  };
  // What a weight costs whose fused group is itself alone: two reads.
  const auto calibrate = [](const WeightSpec& spec) {
    return [spec](Backend& backend, const MatrixView& x, benchmark::State&) {
      const auto calibrator = MakeWeightCalibrator(spec);
      NIBBLE_CHECK(calibrator.ok() && (*calibrator)->Collect(x, backend).ok());
      NIBBLE_CHECK((*calibrator)->Quantize(x, backend).ok());
    };
  };
  WeightSpec max, mse, mse_multipliers, weight_four_over_six;
  mse.method = mse_multipliers.method = WeightMethod::kMse;
  mse.fp8_scale_sweep = true;
  weight_four_over_six.method = WeightMethod::kFourOverSix;
  weight_four_over_six.e4m3_max = 256;
  QuantizeParams plain, checkpoint, four_over_six, tile, stochastic;
  checkpoint.rule = Rule::kCheckpoint;
  four_over_six.four_over_six = FourOverSix{};
  four_over_six.e4m3_max = 256;
  tile.scheme = Scheme::kTile2d;
  stochastic.stochastic = StochasticRounding{};

  std::vector<const CpuKernels*> all = AllSimdKernels();
  all.push_back(&ScalarKernels());
  for (const int threads : {1, 2}) RegisterOutputError(hessians, threads);
  for (const CpuKernels* kernels : all) {
    const bool best = kernels == all.front();
    const int64_t rows = best ? kRows : kFewRows;
    for (int threads : best ? std::vector<int>{1, 2} : std::vector<int>{1}) {
      Register("Quantize", *kernels, threads, rows, quantize(plain));
      Register("QuantizeCheckpoint", *kernels, threads, rows, quantize(checkpoint));
      Register("QuantizeFourOverSix", *kernels, threads, rows, quantize(four_over_six));
      Register("QuantizeTile2d", *kernels, threads, rows, quantize(tile));
      Register("QuantizeStochastic", *kernels, threads, rows, quantize(stochastic));
      Register("ScaleSweepPruned", *kernels, threads, rows, sweep(SweepMethod::kPruned));
      Register("ScaleSweepExhaustive", *kernels, threads, kFewRows,
               sweep(SweepMethod::kExhaustive));
      Register("AccumulateHessian", *kernels, threads, rows, accumulate_hessian);
      Register("ObserveRowsAndColumns", *kernels, threads, rows,
               observe({true, true, false, false}));
      Register("ObserveEverything", *kernels, threads, rows, observe({true, true, true, true}));
      Register("MeasureError", *kernels, threads, rows, measure_error);
      Register("CalibrateMax", *kernels, threads, rows, calibrate(max));
      Register("CalibrateMse", *kernels, threads, rows, calibrate(mse));
      Register("CalibrateMseMultipliers", *kernels, threads, best ? 512 : kFewRows,
               calibrate(mse_multipliers));
      Register("CalibrateFourOverSix", *kernels, threads, rows, calibrate(weight_four_over_six));
      Register("MultiplierSearch", *kernels, threads, best ? 512 : kFewRows, multipliers);
      Register("ScaleSweepHessian", *kernels, threads, best ? 512 : kFewRows, hessian);
      Register("SweepHessianFeedback", *kernels, threads, best ? 512 : kFewRows, feedback);
    }
  }
}

// Keeps the medians for the closing table.
class MedianReporter : public benchmark::ConsoleReporter {
 public:
  void ReportRuns(const std::vector<Run>& runs) override {
    ConsoleReporter::ReportRuns(runs);
    for (const Run& run : runs) {
      if (run.aggregate_name != "median") continue;
      rates_[run.run_name.function_name] = run.counters.at("items_per_second").value;
    }
  }

  void PrintRatios(const std::string& best) const {
    const auto rate = [&](const std::string& name) {
      const auto it = rates_.find(name);
      return it == rates_.end() ? 0.0 : it->second;
    };
    const double pruned = rate(absl::StrCat("ScaleSweepPruned/", best, "/1"));
    const double exhaustive = rate("ScaleSweepExhaustive/scalar/1");
    const double plain = rate(absl::StrCat("Quantize/", best, "/1"));
    if (pruned == 0 || exhaustive == 0 || plain == 0) return;  // filtered out
    absl::PrintF("\n%-58s %10s\n", "medians of this run", best);
    absl::PrintF("%-58s %10.0f\n", "pruned sweep, M weights/s, one thread", pruned * 1e-6);
    absl::PrintF("%-58s %10.1f\n", "pruned sweep over exhaustive scalar sweep, one thread",
                 pruned / exhaustive);
    absl::PrintF("%-58s %10.1f\n", "pruned sweep over exhaustive sweep, same vectors",
                 pruned / rate(absl::StrCat("ScaleSweepExhaustive/", best, "/1")));
    absl::PrintF("%-58s %10.0f\n", "plain quantize, M weights/s, one thread", plain * 1e-6);
    const CpuKernels& kernels = *AllSimdKernels().front();
    constexpr int64_t kScalingRows = 1024;
    ThreadScaling sweep, quantize;
    sweep.Measure(kernels, kScalingRows, [](Backend& backend, const MatrixView& x) {
      NIBBLE_CHECK(backend.ScaleSweep({}, x).ok());
    });
    sweep.Print("pruned sweep");
    quantize.Measure(kernels, kScalingRows, [](Backend& backend, const MatrixView& x) {
      for (int i = 0; i < 4; ++i) QuantizeInto({}, backend, x);
    });
    quantize.Print("plain quantize");
  }

 private:
  std::map<std::string, double> rates_;
};

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  nibble::RegisterAll();
  nibble::MedianReporter reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter);
  reporter.PrintRatios(std::string(nibble::AllSimdKernels().front()->name));
  return 0;
}
