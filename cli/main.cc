// The program: arguments in, a pipeline function called, words out; cli/report.h has the exit
// codes.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/text.h"
#include "cli/calibrate_command.h"
#include "cli/calibration_command.h"
#include "cli/eval_command.h"
#include "cli/flags.h"
#include "cli/plan_command.h"
#include "cli/quantize_command.h"
#include "cli/recipes_command.h"
#include "cli/report.h"
#include "cli/verify_command.h"
#include "engine/compare_methods.h"
#include "engine/inspect.h"
#include "engine/synthetic.h"
#include "engine/tensor_ops.h"
#include "engine/tune.h"
#include "kernels/backend.h"
#include "kernels/cuda/tunable_ops.h"
#include "kernels/cuda/tuning_device.h"

namespace nibble {
namespace {

CLI::Option* AddE4m3Max(CLI::App* app, int& value, const std::string& help) {
  return app->add_option("--e4m3-max", value, help)->check(CLI::IsMember({448, 256}));
}

void AddInput(CLI::App* app, TensorFile& in, std::string& out) {
  app->add_option("IN", in.path, "safetensors file")->required();
  app->add_option("--tensor", in.tensor, "name of the tensor")->required();
  app->add_option("--out", out, "safetensors file to write")->required();
}

// --- nibble tensor quantize ---------------------------------------------------------------------

struct QuantizeCommand {
  TensorFile in;
  std::string out;
  QuantizeParams params;
  FourOverSix four_over_six;
  StochasticRounding stochastic;
  bool rotate = false, no_signs = false, round_stochastically = false;
  BackendFlags backend;
  CLI::Option *metric, *e4m3_max;

  explicit QuantizeCommand(CLI::App* app) {
    AddInput(app, in, out);
    AddEnumWithDefault(app, "--scheme", params.scheme, "what shares an outer scale");
    AddEnumWithDefault(app, "--rule", params.rule, "order of operations");
    metric = AddEnum(app, "--four-over-six", four_over_six.metric,
                     "try amax -> 4 beside amax -> 6 and keep the smaller error");
    AddEnumWithDefault(app, "--error-path", four_over_six.path, "how 4over6 computes errors")
        ->needs(metric);
    e4m3_max = AddE4m3Max(app, params.e4m3_max,
                          "what the global scale aims at [256 with --four-over-six, else 448]");
    app->add_flag("--columnwise", params.columnwise, "quantize the transposed copy");
    CLI::Option* rht =
        app->add_flag("--rht", rotate, "rotate each group of 16 first (random Hadamard transform)");
    app->add_flag("--no-signs", no_signs, "all signs + in the rotation")->needs(rht);
    CLI::Option* sr = app->add_flag("--stochastic", round_stochastically, "round stochastically");
    app->add_option_function<std::string>(
           "--seed",
           [this](const std::string& text) {
             if (!absl::SimpleAtoi(text, &stochastic.seed)) {
               throw CLI::ValidationError("--seed", "expected 0 .. 2^64-1, got " + text);
             }
           },
           "of --stochastic [0]")
        ->needs(sr);
    app->add_flag("--swizzle", params.swizzle, "scales in 128x4 tiles");
    backend.Add(app);
  }

  absl::Status Run() {
    if (metric->count() > 0) {
      params.four_over_six = four_over_six;
      if (e4m3_max->count() == 0) params.e4m3_max = 256;
    }
    if (rotate) params.rht = no_signs ? Rht::kNoSigns : Rht::kSigns;
    if (round_stochastically) params.stochastic = stochastic;
    NIBBLE_ASSIGN_OR_RETURN(const auto device, backend.Make());
    NIBBLE_ASSIGN_OR_RETURN(const QuantizeSummary summary,
                            QuantizeTensor(in, out, params, *device));
    absl::PrintF("%s: %d x %d, %s, %s rule", out, summary.rows, summary.cols,
                 ToAbsl(NameOf(params.scheme)), ToAbsl(NameOf(params.rule)));
    if (summary.error) {
      absl::PrintF(", relative MSE %.4g, SQNR %.2f dB, saturated %d, flushed to zero %d",
                   summary.error->relative_mse(), summary.error->sqnr_db(),
                   summary.error->saturated(), summary.error->flushed());
    }
    absl::PrintF(", %.3f s on %s\n", summary.seconds, device->name());
    return absl::OkStatus();
  }
};

// --- nibble tensor sweep ------------------------------------------------------------------------

enum class SweepChoice : uint8_t { kExhaustive, kPruned, kMultipliers };

}  // namespace

template <>
inline constexpr std::array<std::string_view, 3> kEnumNames<SweepChoice> = {"exhaustive", "pruned",
                                                                            "multipliers"};

namespace {

struct SweepCommand {
  TensorFile in;
  std::string out, hessian;
  SweepChoice method = SweepChoice::kPruned;
  MultiplierGrid grid;
  float global_amax = 0;
  int e4m3_max = 448;
  bool packed = false;
  BackendFlags backend;
  CLI::Option *hessian_option, *global_amax_option;
  std::vector<CLI::Option*> grid_options;

  explicit SweepCommand(CLI::App* app) {
    AddInput(app, in, out);
    hessian_option =
        app->add_option("--hessian", hessian, "tensor [columns/16, 16, 16] that weighs the loss");
    global_amax_option =
        app->add_option("--global-amax", global_amax, "amax of the global scale [the tensor's own]")
            ->check(NotEmpty())
            ->check(FitsFloat());
    AddE4m3Max(app, e4m3_max, "what the global scale aims at")->capture_default_str();
    AddEnumWithDefault(app, "--method", method,
                       "how to search; exhaustive and pruned find the same");
    grid_options = {
        app->add_option("--start", grid.start, "first multiplier")->capture_default_str(),
        app->add_option("--stop", grid.stop, "last multiplier")->capture_default_str(),
        app->add_option("--step", grid.step, "between multipliers")->capture_default_str()};
    app->add_flag("--packed", packed, "write packed, scale and scale2, too");
    backend.Add(app);
  }

  absl::Status Run() {
    std::optional<float> g;
    if (global_amax_option->count() > 0) g = global_amax;
    SweepRequest request;
    request.packed = packed;
    if (method == SweepChoice::kMultipliers) {
      if (hessian_option->count() > 0) {
        return absl::InvalidArgumentError(
            "--hessian: expected --method exhaustive or pruned with it, got multipliers");
      }
      request.search = MultiplierSearchParams{grid, e4m3_max, g};
    } else {
      for (const CLI::Option* option : grid_options) {
        if (option->count() == 0) continue;
        return absl::InvalidArgumentError(
            absl::StrCat(option->get_name(), ": expected --method multipliers with it, got ",
                         ToAbsl(NameOf(method))));
      }
      const bool exhaustive = method == SweepChoice::kExhaustive;
      request.search = ScaleSweepParams{
          exhaustive ? SweepMethod::kExhaustive : SweepMethod::kPruned, e4m3_max, g};
      if (hessian_option->count() > 0) request.hessian = hessian;
    }
    NIBBLE_ASSIGN_OR_RETURN(const auto device, backend.Make());
    NIBBLE_ASSIGN_OR_RETURN(const SweepSummary summary, SweepTensor(in, out, request, *device));
    const std::string near_ties = method == SweepChoice::kExhaustive
                                      ? absl::StrCat(", ", summary.near_ties, " near-ties")
                                      : "";
    absl::PrintF("%s: %d blocks, %s, %.2f evaluations per block%s, %.3f s on %s\n", out,
                 summary.blocks, ToAbsl(NameOf(method)),
                 summary.blocks == 0 ? 0.0
                                     : static_cast<double>(summary.evaluations) /
                                           static_cast<double>(summary.blocks),
                 near_ties, summary.seconds, device->name());
    return absl::OkStatus();
  }
};

// --- nibble tensor dequantize -------------------------------------------------------------------

struct DequantizeCommand {
  std::string in, out, dtype = "bf16";
  BackendFlags backend;

  explicit DequantizeCommand(CLI::App* app) {
    app->add_option("IN", in, "file that `nibble tensor quantize` wrote")->required();
    app->add_option("--out", out, "safetensors file to write")->required();
    app->add_option("--dtype", dtype, "bf16 or fp32")
        ->check(CLI::IsMember({"bf16", "fp32"}))
        ->capture_default_str();
    backend.Add(app);
  }

  absl::Status Run() {
    NIBBLE_ASSIGN_OR_RETURN(const auto device, backend.Make());
    return DequantizeTensor(in, out, dtype == "bf16" ? DType::kBf16 : DType::kF32, *device);
  }
};

// --- nibble inspect -----------------------------------------------------------------------------

struct InspectCommand {
  std::string path;
  bool json = false;

  explicit InspectCommand(CLI::App* app) {
    app->add_option("PATH", path, "safetensors file, or a folder of them")->required();
    app->add_flag("--json", json, "machine-readable");
  }

  absl::Status Run() {
    NIBBLE_ASSIGN_OR_RETURN(const auto files, Inspect(path));
    std::cout << (json ? InspectionAsJson(files) : InspectionAsText(files));
    return absl::OkStatus();
  }
};

// --- nibble demo --------------------------------------------------------------------------------

struct DemoCommand {
  int64_t rows = 4096, cols = 4096;
  BackendFlags backend;

  explicit DemoCommand(CLI::App* app) {
    app->add_option("--rows", rows, "of the tensor")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
    app->add_option("--cols", cols, "a multiple of 16")
        ->check(CLI::Range(16, 1 << 20))
        ->check([](const std::string& text) {
          return std::stoll(text) % 16 == 0 ? "" : "expected a multiple of 16, got " + text;
        })
        ->capture_default_str();
    backend.Add(app);
  }

  absl::Status Run() {
    NIBBLE_ASSIGN_OR_RETURN(const auto device, backend.Make());
    absl::PrintF("A weight-like tensor, %d x %d bf16, to NVFP4 (checkpoint rule) on %s\n\n", rows,
                 cols, device->name());
    std::fflush(stdout);
    const std::vector<std::byte> bytes =
        ToBytes(SyntheticValues(Distribution::kWeightLike, rows * cols, /*seed=*/1), DType::kBf16);
    NIBBLE_ASSIGN_OR_RETURN(const auto table,
                            CompareMethods({bytes.data(), DType::kBf16, rows, cols}, *device));
    absl::PrintF("%-20s %12s %13s %10s %14s %12s\n", "scales chosen by", "bits/weight",
                 "relative MSE", "SQNR [dB]", "gain over max", "M weights/s");
    const double max_mse = table.front().error.relative_mse();
    for (const MethodRow& row : table) {
      const double gain = max_mse == 0 ? 0 : 100 * (1 - row.error.relative_mse() / max_mse);
      absl::PrintF("%-20s %12.4f %13.4e %10.2f %13.1f%% %12.0f\n", row.method, row.bits_per_weight,
                   row.error.relative_mse(), row.error.sqnr_db(), gain,
                   static_cast<double>(rows * cols) / row.seconds * 1e-6);
    }
    return absl::OkStatus();
  }
};

// --- nibble tune --------------------------------------------------------------------------------

struct TuneCommand {
  TuneRequest request;
  std::string device = "cuda:0", out;
  std::vector<std::string> shapes;

  explicit TuneCommand(CLI::App* app) {
    app->add_option("--ops", request.ops, "operations, with commas between them [all]")
        ->delimiter(',');
    app->add_option("--device", device, "cuda:N")->capture_default_str();
    app->add_option("--shapes", shapes, "ROWSxCOLUMNS, with commas between them [small to large]")
        ->delimiter(',');
    app->add_option("--out", out, "store to add the picks to [the one that is used]")
        ->check(NotEmpty());
  }

  static std::string NameOfRow(const TuneRow& row) {
    return absl::StrCat(row.op, " ", ToAbsl(DTypeName(row.dtype)), " ", row.shape.rows, "x",
                        row.shape.cols);
  }

  static void PrintProgress(const TuneRow& row, size_t number, size_t of) {
    absl::FPrintF(stderr, "[%d/%d] %s\n", number, of, NameOfRow(row));
  }

  static void PrintTable(const std::vector<TuneRow>& rows) {
    absl::PrintF("%-20s %-5s %-12s %-36s %10s   %-36s %10s %7s\n", "operation", "type", "shape",
                 "default", "ms", "best", "ms", "gain");
    for (const TuneRow& row : rows) {
      const std::string shape = absl::StrCat(row.shape.rows, "x", row.shape.cols);
      absl::PrintF("%-20s %-5s %-12s ", row.op, ToAbsl(DTypeName(row.dtype)), shape);
      if (!row.status.ok()) {
        absl::PrintF("no pick: %s\n", Printable(ToStd(row.status.message())));
        continue;
      }
      absl::PrintF("%-36s %10.4f   %-36s %10.4f %6.1f%%\n", row.default_config, row.default_ms,
                   row.best_config, row.best_ms, 100 * (1 - row.best_ms / row.default_ms));
      for (const std::string& dropped : row.dropped) {
        absl::PrintF("  not measured: %s\n", Printable(dropped));
      }
    }
  }

  absl::Status Run() {
    for (size_t i = 0; i < shapes.size(); ++i) {
      NIBBLE_ASSIGN_OR_RETURN(const TuneShape shape, ParseTuneShape(shapes[i]));
      if (i == 0) request.shapes.clear();
      request.shapes.push_back(shape);
    }
    NIBBLE_RETURN_IF_ERROR(CheckTuneRequest(request, CudaTunableOps()));
    const std::optional<int> number = CudaDeviceOf(device);
    if (!number) {
      return absl::InvalidArgumentError(
          absl::StrCat("--device: expected cuda:N, got ", Quoted(device)));
    }
    const std::string path = out.empty() ? UserTuningPath() : out;
    if (path.empty()) {
      return absl::InvalidArgumentError(
          "--out: expected a file, since neither NIBBLE_TUNING_STORE nor XDG_CACHE_HOME nor HOME "
          "says where picks are kept, got none");
    }
    NIBBLE_RETURN_IF_ERROR(CheckTuningFile(path));
    const auto measured_on = MakeCudaTuningDevice(*number);
    if (!measured_on.ok()) {
      return absl::Status(measured_on.status().code(),
                          absl::StrCat(measured_on.status().message(),
                                       "; tune on a machine that has one, with a CUDA build; the "
                                       "CPU needs no tuning"));
    }
    absl::FPrintF(stderr, "tuning on %s\n", (*measured_on)->name());
    NIBBLE_ASSIGN_OR_RETURN(const TuneResult result, Tune(**measured_on, request, PrintProgress));
    PrintTable(result.rows);
    NIBBLE_RETURN_IF_ERROR(SaveTuning(path, result.picks));
    absl::PrintF("%d picks written to %s\n", result.picks.picks().size(), path);
    for (const TuneRow& row : result.rows) {
      // What does not fit or does not apply is no failure; the table says so.
      if (!row.status.ok() && !absl::IsResourceExhausted(row.status) &&
          !absl::IsFailedPrecondition(row.status)) {
        return Annotate(row.status, NameOfRow(row));
      }
    }
    return absl::OkStatus();
  }
};

// ------------------------------------------------------------------------------------------------

// Adds a command that lives as long as `app`.
template <typename Command>
void AddCommand(CLI::App* app, const std::string& name, const std::string& help,
                absl::Status& result) {
  CLI::App* sub = app->add_subcommand(name, help);
  auto command = std::make_shared<Command>(sub);
  sub->callback([command, &result] { result = command->Run(); });
}

int Main(int argc, char** argv) {
  // A limit on the size of files is an error like a full disk, not the end.
  std::signal(SIGXFSZ, SIG_IGN);
  CLI::App app("NVFP4 calibration and post-training quantization", "nibble");
  app.set_version_flag("--version", NIBBLE_VERSION);
  absl::Status result;
  CLI::App* tensor = app.add_subcommand("tensor", "one tensor of a safetensors file");
  AddCommand<QuantizeCommand>(tensor, "quantize", "codes, block scales and amax", result);
  AddCommand<SweepCommand>(tensor, "sweep", "the best block scales, by squared error", result);
  AddCommand<DequantizeCommand>(tensor, "dequantize", "back to bf16 or fp32", result);
  CLI::App* calibration = app.add_subcommand("calibration", "files of what inputs looked like");
  AddCommand<CalibrationCollectCommand>(calibration, "collect", "from captured activations",
                                        result);
  AddCommand<CalibrationMergeCommand>(calibration, "merge", "of several runs or ranks", result);
  AddCommand<InspectCommand>(&app, "inspect", "what a file or a folder holds", result);
  AddCommand<PlanCommand>(&app, "plan", "what a recipe makes of each tensor of a model", result);
  AddCommand<CalibrateCommand>(&app, "calibrate", "what a model's inputs look like, for quantize",
                               result);
  AddCommand<QuantizeModelCommand>(&app, "quantize", "a model folder to a quantized one", result);
  AddCommand<RecipesCommand>(&app, "recipes", "the shipped recipes; one of them in full", result);
  AddCommand<EvalCommand>(&app, "eval", "how well models predict held-out text", result);
  AddCommand<VerifyCommand>(&app, "verify", "check a folder of a quantized model", result);
  AddCommand<TuneCommand>(&app, "tune", "measure launch shapes on a GPU and keep the best", result);
  AddCommand<DemoCommand>(&app, "demo", "compare the ways to choose scales", result);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
      app.exit(error);  // prints the help or the version
      return std::cout.flush() ? kSuccess : kFailed;
    }
    return Report(absl::InvalidArgumentError(
        absl::StrCat(error.what(), "; `nibble --help` lists what there is")));
  } catch (const std::bad_alloc&) {
    return Report(absl::ResourceExhaustedError("memory: expected enough for the tensor, got none"));
  } catch (const std::length_error&) {
    return Report(
        absl::ResourceExhaustedError("memory: expected a tensor that fits, got a larger"));
  }
  // CLI11's own check for a missing command would hide an unknown one.
  const CLI::App& level = tensor->parsed() ? *tensor : calibration->parsed() ? *calibration : app;
  if (level.get_subcommands().empty()) {
    result = absl::InvalidArgumentError("command: expected one that `--help` lists, got none");
  }
  // Output that did not arrive (a full disk, a closed pipe) is a failure, too.
  if (result.ok() && (std::fflush(stdout) != 0 || std::ferror(stdout) || !std::cout.flush())) {
    result = absl::UnknownError("standard output: expected room for all of it, got none");
  }
  return Report(result);
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Main(argc, argv); }
