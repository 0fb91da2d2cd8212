#include "engine/calibrate_model.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/fingerprint.h"
#include "base/status.h"
#include "base/stopwatch.h"
#include "base/text.h"
#include "engine/calibration.h"
#include "engine/choose_scales.h"
#include "engine/input_observer.h"
#include "engine/quantized_inputs.h"
#include "engine/read_model.h"
#include "io/model_folder.h"
#include "io/output_folder.h"
#include "model/decoder.h"
#include "nlohmann/json.hpp"
#include "policies/plan.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;

// A module whose input is to be observed.
struct Wanted {
  const PlanRow* row = nullptr;
  bool hessians = false;
};

// Of the modules of one layer: whether with Hessians.
std::map<std::string, bool> Observed(const std::map<std::string, Wanted>& modules) {
  std::map<std::string, bool> observed;
  for (const auto& [module, wanted] : modules) observed[module] = wanted.hessians;
  return observed;
}

std::string HashOf(const TokenSet& tokens) {
  Fingerprint hash;
  for (const int64_t length : tokens.lengths) hash.Add(static_cast<uint64_t>(length));
  for (const uint32_t id : tokens.ids) hash.Add(uint64_t{id});
  return hash.Hex();
}

std::string PartialOf(const std::string& out) { return out + ".partial"; }

// Only what such a run writes: never somebody's folder that happens to have the name.
absl::Status RemovePartial(const std::string& folder) {
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with("hidden.safetensors") || name.starts_with("layer-")) {
      fs::remove(it->path(), error);
      continue;
    }
    return absl::InvalidArgumentError(absl::StrCat(
        folder, ": expected the partial result of a calibration, got a folder that holds ",
        Quoted(name)));
  }
  if (!error) fs::remove(folder, error);
  return error ? absl::UnknownError(absl::StrCat(folder, ": ", error.message())) : absl::OkStatus();
}

class CalibrateJob {
 public:
  CalibrateJob(const CalibrateModelRequest& request, Backend& backend, const LayerSink& progress)
      : request_(request),
        backend_(backend),
        progress_(progress),
        partial_(PartialOf(request.out)) {}

  absl::StatusOr<CalibrationSummary> Run() {
    NIBBLE_RETURN_IF_ERROR(Prepare());
    NIBBLE_RETURN_IF_ERROR(Begin());
    const Stopwatch watch;
    while (hidden_->next_layer() < layers_end_) {
      NIBBLE_RETURN_IF_ERROR(DoLayer());
      NIBBLE_RETURN_IF_ERROR(hidden_->Save(HiddenPath(), Identity()));
      if (!progress_) continue;
      NIBBLE_RETURN_IF_ERROR(progress_({.model = request_.model,
                                        .layer = hidden_->next_layer(),
                                        .layers = layers_end_,
                                        .seconds = watch.seconds(),
                                        .resumed_layers = summary_.resumed_layers}));
    }
    if (!wanted_[config_.layers].empty()) NIBBLE_RETURN_IF_ERROR(DoHead());
    return Finish();
  }

 private:
  absl::Status Prepare() {
    NIBBLE_ASSIGN_OR_RETURN(ModelFolder folder, ModelFolder::Open(request_.model));
    folder_.emplace(std::move(folder));
    NIBBLE_ASSIGN_OR_RETURN(const Model model, ReadModel(*folder_));
    NIBBLE_ASSIGN_OR_RETURN(config_, ReadDecoderConfig(*folder_));
    NIBBLE_ASSIGN_OR_RETURN(plan_, MakePlan(request_.recipe, model));
    input_groups_ = RowsByInputGroup(plan_);
    NIBBLE_RETURN_IF_ERROR(FindWanted());
    if (IsWithin(request_.out, request_.model)) {
      return absl::InvalidArgumentError(absl::StrCat("output: expected a file outside of ",
                                                     request_.model, ", got ", request_.out));
    }
    NIBBLE_RETURN_IF_ERROR(CheckCalibrationOutput(request_.out));

    DecoderOptions options = DecoderOptionsOf(request_.run, backend_);
    options.force_all_experts = request_.recipe.calibration.force_all_experts;
    WeightSource weights = [this, stored = FolderWeights(*folder_)](
                               const std::string& name) -> absl::StatusOr<HostTensor> {
      const auto packed = packed_.find(name);
      return packed == packed_.end() ? stored(name) : Dequantized(packed->second);
    };
    NIBBLE_ASSIGN_OR_RETURN(decoder_, Decoder::Make(config_, std::move(weights), options));
    return absl::OkStatus();
  }

  absl::Status FindWanted() {
    std::map<std::string, int64_t> layer_of;
    for (int64_t layer = 0; layer < config_.layers; ++layer) {
      for (LinearModule& module : LinearModules(config_, layer)) {
        if (module.expert >= 0) expert_of_[module.name] = module.expert;
        layer_of.emplace(std::move(module.name), layer);
      }
    }
    layer_of.emplace(HeadModule(config_).name, config_.layers);
    for (const PlanRow& row : plan_.rows) {
      if (!row.quantize) continue;
      const bool hessians = row.treatment.weights.method == WeightMethod::kLocalHessian;
      if (!hessians && !NeedsCalibration(row.treatment)) continue;
      const auto layer = layer_of.find(row.module);
      if (layer == layer_of.end() || row.form != WeightForm::kMatrix) {
        return absl::UnimplementedError(absl::StrCat(
            row.module, ": expected a linear layer that ", ToAbsl(NameOf(config_.architecture)),
            " runs, got another, whose input is never seen; "
            "keep it by a rule, or give captured activations with --calib"));
      }
      wanted_[layer->second][row.module] = {&row, hessians};
      layers_end_ = std::max(layers_end_, std::min(layer->second + 1, config_.layers));
      ++summary_.modules;
    }
    if (summary_.modules > 0) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "recipe ", Quoted(request_.recipe.name),
        ": expected methods that need activations, got none; quantize without calibrating"));
  }

  std::map<std::string, std::string> Identity() const {
    return {{"version", request_.version},
            {"recipe", RecipeAsYaml(request_.recipe)},
            {"model", folder_->Fingerprint()},
            {"data", HashOf(request_.tokens)},
            {"dtype", std::string(DTypeName(request_.run.dtype))},
            {"device", backend_.cuda_device() ? "GPU" : "CPU"},
            {"batch tokens", absl::StrCat(DecoderOptionsOf(request_.run, backend_).batch_tokens)}};
  }

  std::string HiddenPath() const { return partial_ + "/hidden.safetensors"; }
  std::string LayerPath(int64_t layer) const {
    return absl::StrFormat("%s/layer-%06d.safetensors", partial_, layer);
  }

  // Takes up what a run before left, or begins.
  absl::Status Begin() {
    std::error_code error;
    const bool there = fs::exists(partial_, error);
    const bool resumable = fs::exists(HiddenPath(), error);
    if (there && !request_.resume && !request_.overwrite) {
      return absl::InvalidArgumentError(
          absl::StrCat(partial_,
                       ": expected no partial result, got one; --resume goes on with it, "
                       "--overwrite starts again"));
    }
    if (request_.resume && resumable) {
      absl::StatusOr<HiddenStates> hidden =
          HiddenStates::Load(HiddenPath(), Identity(), request_.run.hidden_states);
      if (absl::IsFailedPrecondition(hidden.status())) {
        return absl::FailedPreconditionError(
            absl::StrCat(hidden.status().message(), "; --overwrite without --resume starts again"));
      }
      NIBBLE_RETURN_IF_ERROR(hidden.status());
      hidden_.emplace(*std::move(hidden));
      summary_.resumed_layers = hidden_->next_layer();
      return absl::OkStatus();
    }
    if (there) NIBBLE_RETURN_IF_ERROR(RemovePartial(partial_));
    fs::create_directories(partial_, error);
    if (error) return absl::UnknownError(absl::StrCat(partial_, ": ", error.message()));
    NIBBLE_ASSIGN_OR_RETURN(HiddenStates hidden, decoder_->Embed(request_.tokens));
    hidden_.emplace(std::move(hidden));
    return absl::OkStatus();
  }

  absl::Status DoLayer() {
    const int64_t layer = hidden_->next_layer();
    InputObserver observer(Observed(wanted_[layer]), backend_);
    if (request_.recipe.calibration.propagate == Propagate::kOriginal) {
      NIBBLE_RETURN_IF_ERROR(decoder_->RunLayer(*hidden_, &observer));
      return SaveStates(layer, observer);
    }
    NIBBLE_RETURN_IF_ERROR(decoder_->ObserveLayer(*hidden_, observer));
    NIBBLE_RETURN_IF_ERROR(SaveStates(layer, observer));
    QuantizedInputs inputs(backend_);
    NIBBLE_RETURN_IF_ERROR(QuantizeLayer(layer, inputs));
    const absl::Status run = decoder_->RunLayer(*hidden_, &inputs);
    packed_.clear();
    return run;
  }

  absl::Status DoHead() {
    InputObserver observer(Observed(wanted_[config_.layers]), backend_);
    const LogitsSink ignore = [](int64_t, std::span<const float>) { return absl::OkStatus(); };
    NIBBLE_RETURN_IF_ERROR(decoder_->Logits(*hidden_, ignore, &observer));
    return SaveStates(config_.layers, observer);
  }

  absl::Status SaveStates(int64_t layer, InputObserver& observer) const {
    auto states = observer.States();
    if (!states.ok()) return Annotate(states.status(), absl::StrCat("layer ", layer));
    return SaveCalibration(LayerPath(layer), *states);
  }

  // What QuantizeModel would make of the layer with the states that were just saved.
  absl::Status QuantizeLayer(int64_t layer, QuantizedInputs& inputs) {
    NIBBLE_ASSIGN_OR_RETURN(const auto calibration, Calibration::Open(LayerPath(layer)));
    const ScaleChoice choice = {calibration.get(), LayerPath(layer), request_.recipe.calibration};
    std::set<std::string> modules;
    for (const LinearModule& module : LinearModules(config_, layer)) modules.insert(module.name);
    const auto in_layer = [&](const PlanRow& row) { return modules.contains(row.module); };
    for (const FusedGroup& group : plan_.groups) {
      if (!in_layer(plan_.rows[group.rows.front()])) continue;
      NIBBLE_RETURN_IF_ERROR(QuantizeGroup(group, choice));
    }
    for (const auto& [group, rows] : input_groups_) {
      if (!in_layer(*rows.front())) continue;
      NIBBLE_ASSIGN_OR_RETURN(const float scale, ChooseInputScale(rows, choice, backend_));
      for (const PlanRow* row : rows) {
        inputs.Add(row->module,
                   row->treatment.activations.scheme == Scheme::kPerToken
                       ? InputQuantization::kPerToken
                       : InputQuantization::kPerTensor,
                   scale);
      }
    }
    return absl::OkStatus();
  }

  absl::Status QuantizeGroup(const FusedGroup& group, const ScaleChoice& choice) {
    std::vector<const PlanRow*> rows;
    for (const int row : group.rows) rows.push_back(&plan_.rows[row]);
    std::vector<std::string> ignored;  // `nibble quantize` warns
    NIBBLE_ASSIGN_OR_RETURN(const auto calibrator,
                            MakeGroupCalibrator(rows, choice, backend_, ignored));
    std::vector<HostTensor> weights;
    std::vector<MatrixView> views;
    for (const PlanRow* row : rows) {
      NIBBLE_ASSIGN_OR_RETURN(HostTensor weight, FolderWeights(*folder_)(row->tensor.name));
      const MatrixShape shape = MatrixShapeOf(*row);
      views.push_back({weight.bytes.data(), weight.dtype, shape.rows, shape.cols});
      weights.push_back(std::move(weight));
      const absl::Status status = calibrator->Collect(views.back(), backend_);
      if (!status.ok()) return Annotate(status, row->tensor.name);
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      absl::StatusOr<PackedTensor> packed = calibrator->Quantize(views[i], backend_);
      if (!packed.ok()) return Annotate(packed.status(), rows[i]->tensor.name);
      packed_.emplace(rows[i]->tensor.name, *std::move(packed));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<HostTensor> Dequantized(const PackedTensor& packed) const {
    const PackedLayout& layout = packed.layout;
    HostTensor tensor{DType::kF32, {layout.rows, layout.cols}, {}};
    tensor.bytes.resize(static_cast<size_t>(layout.rows * layout.cols) * sizeof(float));
    NIBBLE_RETURN_IF_ERROR(backend_.Dequantize(packed.view(), DType::kF32, tensor.bytes.data()));
    return tensor;
  }

  absl::StatusOr<CalibrationSummary> Finish() {
    std::vector<std::string> parts;
    for (const auto& [layer, modules] : wanted_) {
      if (modules.empty()) continue;
      NIBBLE_RETURN_IF_ERROR(WarnOfExperts(layer, modules));
      parts.push_back(LayerPath(layer));
    }
    NIBBLE_RETURN_IF_ERROR(JoinCalibrations(request_.out, parts));
    if (!request_.keep_partial) NIBBLE_RETURN_IF_ERROR(RemovePartial(partial_));
    summary_.sequences = request_.tokens.sequences();
    summary_.tokens = request_.tokens.tokens();
    summary_.layers = layers_end_;
    summary_.seconds = watch_.seconds();
    return std::move(summary_);
  }

  absl::Status WarnOfExperts(int64_t layer, const std::map<std::string, Wanted>& modules) {
    const int64_t least = std::max<int64_t>(1, request_.recipe.calibration.routed_min_tokens);
    NIBBLE_ASSIGN_OR_RETURN(const auto calibration, Calibration::Open(LayerPath(layer)));
    std::set<int64_t> all;
    std::map<int64_t, int64_t> starved;  // to their tokens
    std::string container;
    bool hessians = false;
    for (const auto& [module, wanted] : modules) {
      const auto expert = expert_of_.find(module);
      if (expert == expert_of_.end()) continue;
      all.insert(expert->second);
      NIBBLE_ASSIGN_OR_RETURN(const int64_t tokens, calibration->Tokens(module));
      if (tokens >= least) continue;
      starved[expert->second] = tokens;
      hessians |= wanted.hessians;
      container = module.substr(0, module.rfind('.', module.rfind('.') - 1));
    }
    if (starved.empty()) return absl::OkStatus();
    summary_.warnings.push_back(
        absl::StrCat(container, ": ", starved.size(), " of ", all.size(),
                     " experts saw fewer than ", least, " tokens: ",
                     absl::StrJoin(starved, ", ",
                                   [](std::string* out, const auto& entry) {
                                     absl::StrAppend(out, entry.first, " (", entry.second, ")");
                                   }),
                     "; the scale of their inputs is that of all experts of the layer",
                     hessians ? ", their weights get the plain sweep" : ""));
    return absl::OkStatus();
  }

  const CalibrateModelRequest& request_;
  Backend& backend_;
  const LayerSink& progress_;
  const std::string partial_;
  const Stopwatch watch_;

  std::optional<ModelFolder> folder_;
  DecoderConfig config_;
  Plan plan_;
  std::map<int, std::vector<const PlanRow*>> input_groups_;
  std::map<int64_t, std::map<std::string, Wanted>> wanted_;  // by layer, then module
  std::map<std::string, int64_t> expert_of_;                 // by module
  int64_t layers_end_ = 0;                                   // no later one is run
  std::unique_ptr<Decoder> decoder_;
  std::optional<HiddenStates> hidden_;
  std::map<std::string, PackedTensor> packed_;  // weights of the layer that is run quantized
  CalibrationSummary summary_;
};

}  // namespace

DecoderOptions DecoderOptionsOf(const RunOptions& run, const Backend& backend) {
  // As many tokens as a GPU's products need to be at their speed.
  constexpr int64_t kGpuTokens = 8192;
  DecoderOptions options;
  options.threads = run.threads;
  options.dtype = run.dtype;
  options.cuda_device = backend.cuda_device();
  if (options.cuda_device) options.batch_tokens = kGpuTokens;
  if (run.batch_tokens > 0) options.batch_tokens = run.batch_tokens;
  options.hidden_states = run.hidden_states;
  return options;
}

std::string ProgressAsJsonLine(const LayerProgress& progress) {
  return OrderedJson({{"event", "layer"},
                      {"model", Printable(progress.model)},
                      {"layer", progress.layer},
                      {"layers", progress.layers},
                      {"seconds", progress.seconds}})
             .dump() +
         "\n";
}

absl::StatusOr<CalibrationSummary> CalibrateModel(const CalibrateModelRequest& request,
                                                  Backend& backend, const LayerSink& progress) {
  return CalibrateJob(request, backend, progress).Run();
}

absl::Status DropPartialCalibration(const std::string& out) {
  std::error_code error;
  return fs::exists(PartialOf(out), error) ? RemovePartial(PartialOf(out)) : absl::OkStatus();
}

std::string CalibrationSummaryAsText(const CalibrationSummary& summary) {
  std::string text =
      absl::StrFormat("%d modules of %d layers, %d sequences, %d tokens, %.1f s", summary.modules,
                      summary.layers, summary.sequences, summary.tokens, summary.seconds);
  if (summary.resumed_layers > 0) {
    absl::StrAppend(&text, ", ", summary.resumed_layers, " layers resumed");
  }
  text += "\n";
  return text;
}

}  // namespace nibble
