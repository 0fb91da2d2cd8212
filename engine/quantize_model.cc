#include "engine/quantize_model.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/stopwatch.h"
#include "base/text.h"
#include "calib/calibrator.h"
#include "engine/calibration.h"
#include "engine/choose_scales.h"
#include "engine/export.h"
#include "engine/overlap.h"
#include "engine/quantize_work.h"
#include "engine/read_model.h"
#include "io/model_folder.h"
#include "io/output_folder.h"
#include "io/safetensors.h"
#include "nlohmann/json.hpp"
#include "policies/plan.h"
#include "quant/non_finite.h"

namespace nibble {
namespace {

using OrderedJson = nlohmann::ordered_json;

// What may be under way besides the largest task, so that the next is read while one is computed.
constexpr int64_t kWindowBytes = int64_t{384} << 20;
constexpr size_t kSpareBytes = size_t{256} << 20;
constexpr double kLost = 0.25;  // of the energy of a matrix, that is worth a warning

// Bytes for a place in a tensor of the result.
struct Piece {
  const PlacedTensor* output;
  uint64_t offset;
  std::span<const std::byte> bytes;
};

using Buffer = std::vector<std::byte>;

// Memory of tasks that are done, for those to come: fresh memory takes longer to come by than it
// takes to read weights into it. From any thread.
class SpareBuffers {
 public:
  Buffer Take(size_t bytes) {
    Buffer buffer;
    {
      std::lock_guard lock(mutex_);
      const auto fits = spare_.lower_bound(bytes);
      if (fits != spare_.end() && fits->first / 2 <= bytes) {
        held_ -= fits->first;
        buffer = std::move(fits->second);
        spare_.erase(fits);
      }
    }
    buffer.resize(bytes);
    return buffer;
  }

  void Return(Buffer buffer) {
    const size_t bytes = buffer.capacity();
    if (bytes == 0) return;
    std::lock_guard lock(mutex_);
    held_ += bytes;
    spare_.emplace(bytes, std::move(buffer));
    while (held_ > kSpareBytes) {  // the smallest are the soonest replaced
      held_ -= spare_.begin()->first;
      spare_.erase(spare_.begin());
    }
  }

 private:
  std::mutex mutex_;
  size_t held_ = 0;
  std::multimap<size_t, Buffer> spare_;  // by capacity
};

// What a task holds on its way.
struct Slot {
  std::vector<Buffer> source;  // one a row
  std::vector<PackedTensor> packed;
  std::vector<std::vector<std::byte>> buffers;
  std::vector<Piece> pieces;
  std::vector<TensorError> errors;
  std::vector<std::string> warnings;
};

struct ShardState {
  int64_t tasks_left = 0;
  bool done = false;                     // by a run before
  std::vector<TensorError> errors = {};  // of its tasks, once it is written
  std::vector<std::string> warnings = {};
};

template <typename T>
std::span<const std::byte> BytesOf(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

// out[c][r] = in[r][c], tile by tile.
template <typename T>
void TransposeInto(const std::byte* in, int64_t rows, int64_t cols, std::byte* out) {
  constexpr int64_t kTile = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += kTile) {
    for (int64_t c0 = 0; c0 < cols; c0 += kTile) {
      for (int64_t r = r0; r < std::min(r0 + kTile, rows); ++r) {
        for (int64_t c = c0; c < std::min(c0 + kTile, cols); ++c) {
          std::memcpy(out + (c * rows + r) * sizeof(T), in + (r * cols + c) * sizeof(T), sizeof(T));
        }
      }
    }
  }
}

void Transpose(const std::byte* in, int64_t rows, int64_t cols, int element_bytes, std::byte* out) {
  switch (element_bytes) {
    case 1:
      return TransposeInto<uint8_t>(in, rows, cols, out);
    case 2:
      return TransposeInto<uint16_t>(in, rows, cols, out);
    default:
      return TransposeInto<uint32_t>(in, rows, cols, out);
  }
}

TensorError ErrorOf(std::string module, ModuleKind kind, const ErrorStats& stats) {
  return {.module = std::move(module),
          .kind = kind,
          .weights = stats.count(),
          .squared_error = stats.squared_error(),
          .squared_weights = stats.squared_x(),
          .max_error = stats.max_error(),
          .saturated = stats.saturated(),
          .flushed = stats.flushed()};
}

OrderedJson ToJson(const TensorError& e) {
  return {{"module", e.module},
          {"kind", std::string(NameOf(e.kind))},
          {"weights", e.weights},
          {"squared_error", e.squared_error},
          {"squared_weights", e.squared_weights},
          {"max_error", e.max_error},
          {"saturated", e.saturated},
          {"flushed", e.flushed}};
}

// Throws what nlohmann throws: the caller turns it into a status.
TensorError FromJson(const OrderedJson& j) {
  TensorError e;
  e.module = j.at("module");
  e.kind = FromName<ModuleKind>(j.at("kind").get<std::string>()).value_or(ModuleKind::kOther);
  e.weights = j.at("weights");
  e.squared_error = j.at("squared_error");
  e.squared_weights = j.at("squared_weights");
  e.max_error = j.at("max_error");
  e.saturated = j.at("saturated");
  e.flushed = j.at("flushed");
  return e;
}

class QuantizeJob {
 public:
  QuantizeJob(const QuantizeModelRequest& request,
              std::span<const std::unique_ptr<Backend>> backends, const QuantizeModelSink& progress)
      : request_(request), backends_(backends), progress_(progress) {}

  absl::StatusOr<ModelSummary> Run() {
    NIBBLE_RETURN_IF_ERROR(Prepare());
    if (request_.dry_run) {
      NIBBLE_RETURN_IF_ERROR(CheckSpace(request_.out, MissingBytes() + folder_->other_bytes()));
      return Summary();
    }
    // Before there is anything that a second try would have to ask about.
    if (!OutputFolder::HasPartial(request_.out)) {
      NIBBLE_RETURN_IF_ERROR(CheckSpace(request_.out, MissingBytes() + folder_->other_bytes()));
    }
    NIBBLE_ASSIGN_OR_RETURN(OutputFolder opened, OutputFolder::Open(FolderRequest()));
    output_ = std::move(opened);
    if (output_->finished()) {
      plan_.warnings = {
          absl::StrCat(request_.out,
                       ": complete already, from the same recipe, source and calibration; nothing "
                       "was done. `nibble verify OUT --against MODEL` computes its errors")};
      return Summary();
    }
    NIBBLE_RETURN_IF_ERROR(TakeUpShards());
    if (output_->complete()) {
      if (MissingBytes() > 0) {
        plan_.warnings.push_back(
            "the run before was killed after its end, so that some errors are not known any more; "
            "`nibble verify OUT --against MODEL` computes them");
      }
    } else {
      NIBBLE_RETURN_IF_ERROR(CheckSpace(output_->path(), MissingBytes() + folder_->other_bytes()));
      NIBBLE_RETURN_IF_ERROR(RunTasks());
      NIBBLE_RETURN_IF_ERROR(WriteOtherFiles());
    }
    NIBBLE_RETURN_IF_ERROR(output_->Finish());
    return Summary();
  }

 private:
  // --- From the request to tasks ----------------------------------------------------------------

  absl::Status Prepare() {
    NIBBLE_ASSIGN_OR_RETURN(ModelFolder folder, ModelFolder::Open(request_.model));
    folder_.emplace(std::move(folder));
    NIBBLE_ASSIGN_OR_RETURN(const Model model, ReadModel(*folder_));
    NIBBLE_ASSIGN_OR_RETURN(plan_, MakePlan(request_.recipe, model, {.strict = request_.strict}));
    if (!request_.calibration.empty()) {
      NIBBLE_ASSIGN_OR_RETURN(calibration_, Calibration::Open(request_.calibration));
    }
    NIBBLE_RETURN_IF_ERROR(OutputFolder::Check(FolderRequest()));
    if (request_.recipe.nonfinite == NonFinite::kKeep) {
      PlanOptions options = {.strict = request_.strict};
      NIBBLE_ASSIGN_OR_RETURN(options.non_finite, FindNonFinite());
      if (!options.non_finite.empty()) {
        NIBBLE_ASSIGN_OR_RETURN(plan_, MakePlan(request_.recipe, model, options));
      }
    }
    NIBBLE_ASSIGN_OR_RETURN(configs_,
                            ConfigFilesOf(plan_, request_.recipe, folder_->config_json()));
    NIBBLE_RETURN_IF_ERROR(ChooseInputScales());
    for (const std::string& file : folder_->unread_weights()) {
      plan_.warnings.push_back(AboutUnreadWeights(file));
    }
    NIBBLE_ASSIGN_OR_RETURN(work_, MakeQuantizeWork(plan_, request_.recipe.output, request_.model));
    for (const ResultShard& shard : work_.shards) states_.push_back({.tasks_left = shard.tasks});
    return absl::OkStatus();
  }

  OutputFolderRequest FolderRequest() const {
    return {.out = request_.out,
            .source = request_.model,
            .identity = {{"version", request_.version},
                         {"recipe", RecipeAsYaml(request_.recipe)},
                         {"source", folder_->Fingerprint()},
                         {"calibration", calibration_ ? calibration_->Fingerprint() : ""}},
            .resume = request_.resume,
            .overwrite = request_.overwrite};
  }

  const ModelTensor& TensorOf(int row) const { return plan_.rows[row].tensor; }
  std::string PlaceOf(int row) const {
    const FolderTensor* tensor = folder_->Find(TensorOf(row).name);
    return absl::StrCat(folder_->ReaderOf(*tensor).path(), ": tensor ", Quoted(TensorOf(row).name));
  }

  // The bytes of a row's tensor from `begin` on.
  absl::Status Read(int row, uint64_t begin, std::span<std::byte> out) const {
    const FolderTensor* tensor = folder_->Find(TensorOf(row).name);
    return folder_->ReaderOf(*tensor).ReadRange(*tensor->info, begin, out);
  }

  // Of the tensors that are to be quantized, those that hold NaN or infinity.
  absl::StatusOr<std::set<std::string>> FindNonFinite() const {
    std::set<std::string> found;
    Buffer chunk;
    for (size_t i = 0; i < plan_.rows.size(); ++i) {
      const PlanRow& row = plan_.rows[i];
      if (!row.quantize) continue;
      const int64_t bytes = BytesOfTensor(row.tensor);
      for (int64_t begin = 0; begin < bytes; begin += kReadBytes) {
        chunk.resize(std::min<int64_t>(kReadBytes, bytes - begin));
        NIBBLE_RETURN_IF_ERROR(Read(static_cast<int>(i), begin, chunk));
        if (!FirstNonFinite(row.tensor.dtype, chunk)) continue;
        found.insert(row.tensor.name);
        break;
      }
    }
    return found;
  }

  absl::Status ChooseInputScales() {
    input_scale_.assign(plan_.input_groups, 1.0f);
    for (const auto& [group, rows] : RowsByInputGroup(plan_)) {
      NIBBLE_ASSIGN_OR_RETURN(input_scale_[group], ChooseInputScale(rows, Choice(), *backends_[0]));
    }
    return absl::OkStatus();
  }

  ScaleChoice Choice() const {
    return {calibration_.get(), request_.calibration, request_.recipe.calibration};
  }

  // --- What a run before left -------------------------------------------------------------------

  absl::Status TakeUpShards() {
    for (size_t i = 0; i < work_.shards.size(); ++i) {
      const ResultShard& shard = work_.shards[i];
      ShardState& state = states_[i];
      NIBBLE_ASSIGN_OR_RETURN(const auto note, output_->ReadNote(shard.name));
      if (!note) continue;
      const auto stamp = FileStamp(absl::StrCat(output_->path(), "/", shard.name));
      if (!stamp.ok()) continue;
      try {
        const OrderedJson json = OrderedJson::parse(*note);
        if (json.at("file") != *stamp) continue;  // somebody else wrote it
        for (const OrderedJson& error : json.at("tensors")) state.errors.push_back(FromJson(error));
        state.warnings = json.at("warnings").get<std::vector<std::string>>();
      } catch (const nlohmann::json::exception&) {
        state.errors.clear();
        continue;
      }
      state.done = true;
      ++resumed_shards_;
      output_->Keep(shard.name);
    }
    return absl::OkStatus();
  }

  uint64_t MissingBytes() const {
    uint64_t bytes = 0;
    for (size_t i = 0; i < work_.shards.size(); ++i) {
      bytes += states_[i].done ? 0 : work_.shards[i].bytes;
    }
    return bytes;
  }

  // --- The pipeline -----------------------------------------------------------------------------

  absl::Status RunTasks() {
    const Stopwatch watch;
    std::vector<int> order;
    int64_t largest = 0;
    for (size_t i = 0; i < work_.tasks.size(); ++i) {
      if (states_[work_.tasks[i].shard].done) continue;
      order.push_back(static_cast<int>(i));
      largest = std::max(largest, work_.tasks[i].bytes);
      all_weights_ += work_.tasks[i].weights;
    }
    slots_.resize(work_.tasks.size());
    OverlapStages stages;
    stages.tasks = static_cast<int64_t>(order.size());
    stages.bytes = [&](int64_t i) { return work_.tasks[order[i]].bytes; };
    stages.read = [&](int64_t i) { return ReadTask(order[i]); };
    stages.compute = [&](int64_t i, int worker) {
      return ComputeTask(order[i], *backends_[worker]);
    };
    stages.write = [&](int64_t i) {
      NIBBLE_RETURN_IF_ERROR(WriteTask(order[i]));
      const QuantizeTask& task = work_.tasks[order[i]];
      written_weights_ += task.weights;
      if (!progress_) return absl::OkStatus();
      return progress_({.weights = written_weights_,
                        .all_weights = all_weights_,
                        .seconds = watch.seconds(),
                        .tensor = TensorOf(task.rows.back()).name});
    };
    return RunOverlapped(stages, static_cast<int>(backends_.size()), largest + kWindowBytes,
                         times_);
  }

  absl::Status ReadTask(int index) {
    const QuantizeTask& task = work_.tasks[index];
    Slot& slot = slots_[index];
    if (task.kind == QuantizeTask::kColumns) return absl::OkStatus();  // it reads expert by expert
    slot.source.resize(task.rows.size());
    for (size_t i = 0; i < task.rows.size(); ++i) {
      const PlanRow& row = plan_.rows[task.rows[i]];
      uint64_t begin = 0, end = BytesOfTensor(row.tensor);
      if (task.kind == QuantizeTask::kCopy) {
        begin = task.begin;
        end = task.end;
      } else if (task.kind == QuantizeTask::kExpert) {
        const uint64_t bytes = end / row.tensor.shape[0];
        begin = task.expert * bytes;
        end = begin + bytes;
      }
      slot.source[i] = spare_.Take(end - begin);
      NIBBLE_RETURN_IF_ERROR(Read(task.rows[i], begin, slot.source[i]));
    }
    return absl::OkStatus();
  }

  absl::Status CheckKept(const QuantizeTask& task, std::span<const std::byte> bytes) const {
    if (request_.recipe.nonfinite == NonFinite::kKeep) return absl::OkStatus();
    const int row = task.rows[0];
    const DType dtype = TensorOf(row).dtype;
    const std::optional<int64_t> first = FirstNonFinite(dtype, bytes);
    if (!first) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(
        PlaceOf(row), ": values: expected finite numbers, got NaN or infinity at element ",
        static_cast<int64_t>(task.begin / DTypeBytes(dtype)) + *first,
        "; --set nonfinite=keep copies it as it is"));
  }

  absl::Status ComputeTask(int index, Backend& backend) {
    const QuantizeTask& task = work_.tasks[index];
    Slot& slot = slots_[index];
    switch (task.kind) {
      case QuantizeTask::kCopy:
        NIBBLE_RETURN_IF_ERROR(CheckKept(task, slot.source[0]));
        slot.pieces.push_back({&work_.tensors[work_.tensors_of[task.rows[0]].front()], task.begin,
                               BytesOf(slot.source[0])});
        return absl::OkStatus();
      case QuantizeTask::kGroup:
      case QuantizeTask::kExpert:
        return ComputeMatrices(task, slot, backend);
      case QuantizeTask::kColumns:
        return ComputeColumns(task, slot, backend);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<WeightCalibrator>> CalibratorOf(const QuantizeTask& task,
                                                                 Slot& slot,
                                                                 Backend& backend) const {
    std::vector<const PlanRow*> rows;
    for (const int row : task.rows) rows.push_back(&plan_.rows[row]);
    return MakeGroupCalibrator(rows, Choice(), backend, slot.warnings);
  }

  static void AddError(const std::string& name, ModuleKind kind, const ErrorStats& stats,
                       Slot& slot) {
    slot.errors.push_back(ErrorOf(name, kind, stats));
    if (stats.relative_mse() < kLost) return;
    slot.warnings.push_back(absl::StrCat(
        name, ": ", static_cast<int>(100 * stats.relative_mse()),
        " % of its energy is lost: its values differ too much in size from those that share its "
        "scale, or overflow in the search for one; keep it by a rule, or use the method max"));
  }

  std::string PlaceOfExpert(int row, int64_t expert) const {
    const bool turned = plan_.rows[row].form != WeightForm::kExpertRows;
    return absl::StrCat(PlaceOf(row), ", expert ", expert, turned ? " (transposed)" : "");
  }
  // Of the i-th row of a task.
  std::string PlaceIn(const QuantizeTask& task, size_t i) const {
    return task.kind == QuantizeTask::kExpert ? PlaceOfExpert(task.rows[i], task.expert)
                                              : PlaceOf(task.rows[i]);
  }

  absl::Status ComputeMatrices(const QuantizeTask& task, Slot& slot, Backend& backend) {
    NIBBLE_ASSIGN_OR_RETURN(const auto calibrator, CalibratorOf(task, slot, backend));
    std::vector<MatrixView> views;
    for (size_t i = 0; i < task.rows.size(); ++i) {
      const PlanRow& row = plan_.rows[task.rows[i]];
      const auto [n, k] = MatrixShapeOf(row);
      if (row.form == WeightForm::kTurnedExperts) {
        Buffer turned = spare_.Take(slot.source[i].size());
        Transpose(slot.source[i].data(), k, n, DTypeBytes(row.tensor.dtype), turned.data());
        spare_.Return(std::exchange(slot.source[i], std::move(turned)));
      }
      views.push_back({slot.source[i].data(), row.tensor.dtype, n, k});
      const absl::Status status = calibrator->Collect(views.back(), backend);
      if (!status.ok()) return Annotate(status, PlaceIn(task, i));
    }
    for (size_t i = 0; i < task.rows.size(); ++i) {
      const absl::Status status = [&]() -> absl::Status {
        NIBBLE_ASSIGN_OR_RETURN(PackedTensor packed, calibrator->Quantize(views[i], backend));
        NIBBLE_ASSIGN_OR_RETURN(const ErrorStats stats,
                                backend.MeasureError(views[i], packed.view()));
        const PlanRow& row = plan_.rows[task.rows[i]];
        const std::string name = task.kind == QuantizeTask::kExpert
                                     ? absl::StrCat(row.module, "[", task.expert, "]")
                                     : row.module;
        AddError(name, row.kind, stats, slot);
        slot.packed.push_back(std::move(packed));
        return absl::OkStatus();
      }();
      if (!status.ok()) return Annotate(status, PlaceIn(task, i));
      spare_.Return(std::exchange(slot.source[i], {}));
    }
    for (size_t i = 0; i < task.rows.size(); ++i) {
      for (const size_t index : work_.tensors_of[task.rows[i]]) {
        const PlacedTensor& output = work_.tensors[index];
        if (task.kind == QuantizeTask::kExpert && output.tensor.expert != task.expert) continue;
        AddPiece(output, slot.packed[i], slot);
      }
    }
    return absl::OkStatus();
  }

  // A tensor [E, K, N]: one global scale, blocks along K, codes and scales back in its orientation.
  absl::Status ComputeColumns(const QuantizeTask& task, Slot& slot, Backend& backend) {
    const int row_index = task.rows[0];
    const PlanRow& row = plan_.rows[row_index];
    const auto [n, k] = MatrixShapeOf(row);
    const int64_t experts = row.tensor.shape[0], element = DTypeBytes(row.tensor.dtype);
    Buffer source = spare_.Take(n * k * element), turned = spare_.Take(source.size());
    const MatrixView view = {turned.data(), row.tensor.dtype, n, k};
    const auto load = [&, n = n, k = k](int64_t expert) -> absl::Status {
      NIBBLE_RETURN_IF_ERROR(Read(row_index, expert * source.size(), source));
      Transpose(source.data(), k, n, static_cast<int>(element), turned.data());
      return absl::OkStatus();
    };
    NIBBLE_ASSIGN_OR_RETURN(const auto calibrator, CalibratorOf(task, slot, backend));
    for (int64_t expert = 0; expert < experts; ++expert) {
      NIBBLE_RETURN_IF_ERROR(load(expert));
      const absl::Status status = calibrator->Collect(view, backend);
      if (!status.ok()) return Annotate(status, PlaceOfExpert(row_index, expert));
    }
    std::vector<std::byte> codes(experts * n * k / 2), scales(experts * n * k / kBlockSize);
    ErrorStats stats;
    float amax = 0;
    int e4m3_max = 448;
    for (int64_t expert = 0; expert < experts; ++expert) {
      NIBBLE_RETURN_IF_ERROR(load(expert));
      const absl::Status status = [&, n = n, k = k]() -> absl::Status {
        NIBBLE_ASSIGN_OR_RETURN(const PackedTensor packed, calibrator->Quantize(view, backend));
        NIBBLE_ASSIGN_OR_RETURN(const ErrorStats error, backend.MeasureError(view, packed.view()));
        stats.Merge(error);
        amax = packed.amax[0];
        e4m3_max = packed.layout.e4m3_max;
        Transpose(BytesOf(packed.packed).data(), n, k / 2, 1, codes.data() + expert * n * k / 2);
        Transpose(BytesOf(packed.scale).data(), n, k / kBlockSize, 1,
                  scales.data() + expert * n * k / kBlockSize);
        return absl::OkStatus();
      }();
      if (!status.ok()) return Annotate(status, PlaceOf(row_index));
    }
    spare_.Return(std::move(source));
    spare_.Return(std::move(turned));
    AddError(row.module, row.kind, stats, slot);
    slot.buffers.push_back(std::move(codes));
    slot.buffers.push_back(std::move(scales));
    for (const size_t index : work_.tensors_of[row_index]) {
      const PlacedTensor* output = &work_.tensors[index];
      switch (output->tensor.part) {
        case OutputPart::kCodes:
          slot.pieces.push_back({output, 0, slot.buffers[0]});
          break;
        case OutputPart::kBlockScale:
          slot.pieces.push_back({output, 0, slot.buffers[1]});
          break;
        default:
          AddScalar(*output, amax, e4m3_max, slot);
      }
    }
    return absl::OkStatus();
  }

  void AddPiece(const PlacedTensor& output, const PackedTensor& packed, Slot& slot) const {
    const OutputTensor& tensor = output.tensor;
    const PackedLayout& layout = packed.layout;
    int64_t begin = 0, end = layout.rows;
    if (tensor.expert >= 0) {
      begin = tensor.row_begin;
      end = tensor.row_end;
    }
    const auto rows_of = [&](const std::vector<uint8_t>& bytes, int64_t row_bytes) {
      return BytesOf(bytes).subspan(begin * row_bytes, (end - begin) * row_bytes);
    };
    switch (tensor.part) {
      case OutputPart::kCodes:
        slot.pieces.push_back({&output, 0, rows_of(packed.packed, layout.cols / 2)});
        return;
      case OutputPart::kBlockScale:
        slot.pieces.push_back({&output, 0, rows_of(packed.scale, layout.blocks_per_row())});
        return;
      default:
        AddScalar(output, packed.amax[0], layout.e4m3_max, slot);
    }
  }

  void AddScalar(const PlacedTensor& output, float global_amax, int e4m3_max, Slot& slot) const {
    const ExportFormat format = request_.recipe.output.format;
    const float scale = output.tensor.part == OutputPart::kGlobalScale
                            ? StoredGlobalScale(global_amax, e4m3_max, format)
                            : StoredScale(input_scale_[plan_.rows[output.row].input_group], format);
    std::vector<std::byte> bytes(sizeof(scale));
    std::memcpy(bytes.data(), &scale, sizeof(scale));
    slot.buffers.push_back(std::move(bytes));
    slot.pieces.push_back({&output, 0, slot.buffers.back()});
  }

  absl::Status WriteTask(int index) {
    const QuantizeTask& task = work_.tasks[index];
    Slot& slot = slots_[index];
    const ResultShard& shard = work_.shards[task.shard];
    auto [writer, is_new] = writers_.try_emplace(task.shard);
    if (is_new) {
      NIBBLE_ASSIGN_OR_RETURN(
          SafetensorsWriter created,
          SafetensorsWriter::Create(absl::StrCat(output_->path(), "/", shard.name), shard.tensors,
                                    {{"format", "pt"}}));
      writer->second.emplace(std::move(created));
    }
    for (const Piece& piece : slot.pieces) {
      NIBBLE_RETURN_IF_ERROR(writer->second->Write(piece.output->index, piece.offset, piece.bytes));
    }
    // What stays of the task: the figures.
    for (Buffer& buffer : slot.source) spare_.Return(std::move(buffer));
    Slot figures;
    figures.errors = std::move(slot.errors);
    figures.warnings = std::move(slot.warnings);
    slot = std::move(figures);
    return --states_[task.shard].tasks_left > 0 ? absl::OkStatus() : FinishShard(task.shard);
  }

  absl::Status FinishShard(int index) {
    const ResultShard& shard = work_.shards[index];
    ShardState& state = states_[index];
    for (size_t i = shard.first_task; i < work_.tasks.size() && work_.tasks[i].shard == index;
         ++i) {
      std::ranges::move(slots_[i].errors, std::back_inserter(state.errors));
      std::ranges::move(slots_[i].warnings, std::back_inserter(state.warnings));
    }
    const auto writer = writers_.find(index);
    NIBBLE_RETURN_IF_ERROR(writer->second->Commit());
    writers_.erase(writer);
    NIBBLE_ASSIGN_OR_RETURN(const std::string stamp,
                            FileStamp(absl::StrCat(output_->path(), "/", shard.name)));
    OrderedJson note = {
        {"file", stamp}, {"tensors", OrderedJson::array()}, {"warnings", state.warnings}};
    for (const TensorError& error : state.errors) note["tensors"].push_back(ToJson(error));
    NIBBLE_RETURN_IF_ERROR(output_->WriteNote(shard.name, note.dump()));
    output_->Keep(shard.name);
    return absl::OkStatus();
  }

  // --- Everything but tensors -------------------------------------------------------------------

  absl::Status WriteFile(const std::string& name, const std::string& text) {
    output_->Keep(name);
    return WriteFileAtomically(absl::StrCat(output_->path(), "/", name), text);
  }

  absl::Status WriteOtherFiles() {
    for (const std::string& name : folder_->other_files()) {
      output_->Keep(name);
      NIBBLE_RETURN_IF_ERROR(CopyFile(absl::StrCat(folder_->path(), "/", name),
                                      absl::StrCat(output_->path(), "/", name)));
    }
    for (const ConfigFile& file : configs_) NIBBLE_RETURN_IF_ERROR(WriteFile(file.name, file.text));
    Recipe recipe = request_.recipe;
    recipe.tuning = {};       // of this machine, and without effect on bytes
    recipe.calibration = {};  // the calibration's own to tell
    NIBBLE_RETURN_IF_ERROR(WriteFile(std::string(kRecipeFile), RecipeAsYaml(recipe)));
    if (work_.shards.size() == 1) return absl::OkStatus();
    std::map<std::string, std::string> weight_map;
    uint64_t total = 0;
    for (const PlacedTensor& output : work_.tensors) {
      weight_map[output.tensor.tensor.name] = work_.shards[output.shard].name;
    }
    for (const ResultShard& shard : work_.shards) total += shard.bytes;
    return WriteFile(kShardIndexFile, ShardIndex(weight_map, total));
  }

  ModelSummary Summary() const {
    ModelSummary summary;
    summary.warnings = plan_.warnings;
    for (const PlanRow& row : plan_.rows) {
      const int64_t weights = ElementsOf(row.tensor);
      summary.weights += weights;
      summary.bytes_before += row.bytes_before;
      if (!row.quantize) {
        ++summary.kept;
        summary.kept_weights += weights;
      }
    }
    for (size_t i = 0; i < work_.shards.size(); ++i) {
      const ShardState& state = states_[i];
      summary.bytes_after += static_cast<int64_t>(work_.shards[i].bytes);
      summary.tensors.insert(summary.tensors.end(), state.errors.begin(), state.errors.end());
      summary.warnings.insert(summary.warnings.end(), state.warnings.begin(), state.warnings.end());
    }
    summary.shards = static_cast<int>(work_.shards.size());
    summary.resumed_shards = resumed_shards_;
    summary.seconds = watch_.seconds();
    summary.read_seconds = times_.read_seconds;
    summary.compute_seconds = times_.compute_seconds;
    summary.write_seconds = times_.write_seconds;
    return summary;
  }

  const QuantizeModelRequest& request_;
  const std::span<const std::unique_ptr<Backend>> backends_;
  const QuantizeModelSink& progress_;
  const Stopwatch watch_;

  std::optional<ModelFolder> folder_;
  std::unique_ptr<Calibration> calibration_;
  Plan plan_;
  std::vector<ConfigFile> configs_;
  std::vector<float> input_scale_;  // multipliers, by input group

  QuantizeWork work_;
  std::vector<ShardState> states_;  // one a shard
  std::vector<Slot> slots_;         // one a task
  SpareBuffers spare_;

  std::optional<OutputFolder> output_;
  std::map<int, std::optional<SafetensorsWriter>> writers_;  // of shards that are being written
  int resumed_shards_ = 0;
  int64_t all_weights_ = 0, written_weights_ = 0;
  OverlapTimes times_;
};

}  // namespace

absl::StatusOr<ModelSummary> QuantizeModel(const QuantizeModelRequest& request,
                                           std::span<const std::unique_ptr<Backend>> backends,
                                           const QuantizeModelSink& progress) {
  return QuantizeJob(request, backends, progress).Run();
}

}  // namespace nibble
