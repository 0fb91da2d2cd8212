#include "engine/calibration.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "base/fingerprint.h"
#include "base/status.h"
#include "base/tensor_view.h"
#include "base/text.h"
#include "calib/activation_calibrators.h"
#include "calib/hessian_sums.h"
#include "calib/input_stats.h"
#include "engine/tensor_ops.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"

namespace nibble {
namespace {

constexpr std::string_view kInputSuffix = ".input";
constexpr int64_t kCaptureBytes = 16 << 20;  // of a capture that are in memory at a time
constexpr std::string_view kFormatName = "nibble.calibration.";
constexpr int kVersion = 1;
constexpr int64_t kMaxChannels = 1 << 20;
constexpr std::string_view kArrays[] = {"amax",           "blocks.amax", "blocks.count",  "columns",
                                        "hessian.digits", "hessian.top", "hessian.units", "tokens"};

bool IsOfHessians(std::string_view array) { return array.starts_with("hessian."); }

absl::Status AtTensor(const absl::Status& status, const SafetensorsReader& reader,
                      std::string_view tensor) {
  return Annotate(status, absl::StrCat(reader.path(), ": tensor ", Quoted(tensor)));
}

// --- Fingerprints -------------------------------------------------------------------------------

std::string HashOf(const SafetensorsReader& reader) {
  nibble::Fingerprint hash;
  for (const auto& [key, value] : reader.metadata()) {
    hash.Add(key);
    hash.Add(value);
  }
  std::vector<std::byte> chunk;
  for (const TensorInfo& tensor : reader.tensors()) {
    hash.Add(tensor.name);
    hash.Add(DTypeName(tensor.dtype));
    for (const int64_t dim : tensor.shape) hash.Add(static_cast<uint64_t>(dim));
    for (uint64_t at = 0; at < tensor.bytes(); at += chunk.size()) {
      chunk.resize(std::min<uint64_t>(kCaptureBytes, tensor.bytes() - at));
      const absl::Status status = reader.ReadRange(tensor, at, chunk);
      if (!status.ok()) return absl::StrCat("unreadable: ", status.message());
      hash.Add(chunk);
    }
  }
  return hash.Hex();
}

class FileCalibration : public Calibration {
 public:
  explicit FileCalibration(SafetensorsReader reader) : reader_(std::move(reader)) {}

  std::string Fingerprint() const final {
    std::call_once(hashed_, [&] { fingerprint_ = HashOf(reader_); });
    return fingerprint_;
  }

 protected:
  const SafetensorsReader& reader() const { return reader_; }

 private:
  const SafetensorsReader reader_;
  mutable std::once_flag hashed_;
  mutable std::string fingerprint_;
};

absl::Status CheckColumns(int64_t expected, int64_t columns) {
  if (columns == expected) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("shape: expected ", expected, " channels, got ",
                                                    columns,
                                                    "; is it a calibration of another model?"));
}

// --- Captures -----------------------------------------------------------------------------------

bool IsCapture(std::string_view name) {
  return name.size() > kInputSuffix.size() && name.ends_with(kInputSuffix);
}

absl::StatusOr<MatrixView> ShapeOf(const TensorInfo& tensor) {
  if (tensor.shape.size() < 2) {
    return absl::FailedPreconditionError(
        absl::StrCat("shape: expected tokens x channels, got ", ShapeName(tensor.shape)));
  }
  NIBBLE_ASSIGN_OR_RETURN(const MatrixView x,
                          AsQuantizableMatrix(nullptr, tensor.dtype, tensor.shape));
  if (x.cols > kMaxChannels) {
    return absl::FailedPreconditionError(absl::StrCat("shape: expected at most ", kMaxChannels,
                                                      " channels, got ", ShapeName(tensor.shape)));
  }
  return x;
}

// Calls collect(chunk) for chunks of rows, each but the last a multiple of what HessianSums adds up
// at a time: the result is that of the whole.
template <typename Collect>
absl::Status ForChunks(const SafetensorsReader& reader, const TensorInfo& tensor,
                       const Collect& collect) {
  NIBBLE_ASSIGN_OR_RETURN(MatrixView x, ShapeOf(tensor));
  const int64_t rows = x.rows, row_bytes = x.cols * DTypeBytes(x.dtype);
  const int64_t units = std::max<int64_t>(1, kCaptureBytes / (row_bytes * kInputUnitTokens));
  std::vector<std::byte> chunk;
  // An empty capture is a chunk, too.
  int64_t first = 0;
  do {
    x.rows = std::min(units * kInputUnitTokens, rows - first);
    chunk.resize(x.rows * row_bytes);
    NIBBLE_RETURN_IF_ERROR(reader.ReadRange(tensor, first * row_bytes, chunk));
    x.data = chunk.data();
    const absl::Status status = collect(x);
    if (!status.ok()) {
      return first == 0 ? status : Annotate(status, absl::StrCat("rows from ", first, " on"));
    }
    first += x.rows;
  } while (first < rows);
  return absl::OkStatus();
}

class Captures final : public FileCalibration {
 public:
  using FileCalibration::FileCalibration;

  absl::StatusOr<std::optional<float>> InputAmax(const std::string& module,
                                                 const ActivationSpec& spec, int64_t columns,
                                                 Backend& backend) const override {
    NIBBLE_RETURN_IF_ERROR(Validate(spec));
    InputStats stats(NeedsHistogram(spec));
    if (NeedsInput(spec)) {
      NIBBLE_RETURN_IF_ERROR(ForModule(module, [&](const TensorInfo&, const MatrixView& x) {
        NIBBLE_RETURN_IF_ERROR(CheckColumns(columns, x.cols));
        return stats.Collect(x, backend);
      }));
      if (stats.tokens() == 0) return std::nullopt;
    }
    return nibble::InputAmax(spec, stats);
  }

  absl::StatusOr<std::optional<std::vector<float>>> Hessians(const std::string& module,
                                                             int64_t columns,
                                                             Backend& backend) const override {
    HessianSums sums;
    int64_t tokens = 0;
    NIBBLE_RETURN_IF_ERROR(ForModule(module, [&](const TensorInfo&, const MatrixView& x) {
      NIBBLE_RETURN_IF_ERROR(CheckColumns(columns, x.cols));
      tokens += x.rows;
      return sums.Collect(x, backend);
    }));
    if (tokens == 0) return std::nullopt;
    return sums.Mean(tokens);
  }

  absl::StatusOr<int64_t> Tokens(const std::string& module) const override {
    const TensorInfo* tensor = Find(module);
    if (tensor == nullptr) return 0;
    const absl::StatusOr<MatrixView> x = ShapeOf(*tensor);
    if (!x.ok()) return AtTensor(x.status(), reader(), tensor->name);
    return x->rows;
  }

 private:
  const TensorInfo* Find(const std::string& module) const {
    return reader().Find(absl::StrCat(module, ToAbsl(kInputSuffix)));
  }

  // Nothing where there is no capture of the module.
  template <typename Collect>
  absl::Status ForModule(const std::string& module, const Collect& collect) const {
    const TensorInfo* tensor = Find(module);
    if (tensor == nullptr) return absl::OkStatus();
    return AtTensor(
        ForChunks(reader(), *tensor, [&](const MatrixView& x) { return collect(*tensor, x); }),
        reader(), tensor->name);
  }
};

// --- States -------------------------------------------------------------------------------------

// Arrays of a module by name, and the tensors that hold them.
using StateIndex = std::map<std::string, std::map<std::string, const TensorInfo*>>;

// Whether the metadata says that this is a file of states; DataLoss where it says so wrongly.
absl::StatusOr<bool> HasStates(const SafetensorsReader& reader) {
  const auto it = reader.metadata().find(kFormatKey);
  if (it == reader.metadata().end()) return false;
  const std::string_view format = it->second;
  int version = 0;
  const bool ours = format.starts_with(kFormatName) &&
                    absl::SimpleAtoi(ToAbsl(format.substr(kFormatName.size())), &version);
  if (ours && version == kVersion) return true;
  return absl::DataLossError(absl::StrCat(
      reader.path(), ": metadata '", kFormatKey, "': expected '", kCalibrationFormat,
      ours && version > kVersion ? "' or older, which this version reads, got " : "', got ",
      Quoted(format)));
}

absl::StatusOr<StateIndex> IndexStates(const SafetensorsReader& reader) {
  StateIndex index;
  for (const TensorInfo& tensor : reader.tensors()) {
    const std::string_view name = tensor.name;
    const size_t end = name.rfind(absl::StrCat(ToAbsl(kInputSuffix), "."));
    const std::string_view array =
        end == name.npos ? std::string_view() : name.substr(end + kInputSuffix.size() + 1);
    if (end == 0 || std::find(std::begin(kArrays), std::end(kArrays), array) == std::end(kArrays)) {
      return AtTensor(
          absl::DataLossError("name: expected '<module>.input.<array>' of a calibration, got "
                              "another"),
          reader, name);
    }
    index[std::string(name.substr(0, end))][std::string(array)] = &tensor;
  }
  return index;
}

absl::StatusOr<InputCollector> LoadState(const SafetensorsReader& reader, const std::string& module,
                                         const StateIndex::mapped_type& arrays, bool hessians) {
  CalibratorState state;
  for (const auto& [array, tensor] : arrays) {
    if (!hessians && IsOfHessians(array)) continue;
    NIBBLE_ASSIGN_OR_RETURN(std::vector<std::byte> bytes, reader.ReadAll(*tensor));
    state[array] = {tensor->dtype, tensor->shape, std::move(bytes)};
  }
  InputCollector collector;
  const absl::Status status = collector.Load(state);
  if (!status.ok()) {
    return Annotate(status, absl::StrCat(reader.path(), ": module ", Quoted(module)));
  }
  return collector;
}

class States final : public FileCalibration {
 public:
  States(SafetensorsReader reader) : FileCalibration(std::move(reader)) {}

  absl::Status Index() {
    NIBBLE_ASSIGN_OR_RETURN(index_, IndexStates(reader()));
    return absl::OkStatus();
  }

  absl::StatusOr<std::optional<float>> InputAmax(const std::string& module,
                                                 const ActivationSpec& spec, int64_t columns,
                                                 Backend&) const override {
    NIBBLE_RETURN_IF_ERROR(Validate(spec));
    if (!NeedsInput(spec)) return InputCollector().InputAmax(spec);
    const auto it = index_.find(module);
    if (it == index_.end()) return std::nullopt;
    NIBBLE_ASSIGN_OR_RETURN(const InputCollector collector,
                            LoadState(reader(), module, it->second, /*hessians=*/false));
    if (collector.tokens() == 0) return std::nullopt;
    NIBBLE_RETURN_IF_ERROR(CheckColumnsOf(module, columns, collector));
    return collector.InputAmax(spec);
  }

  absl::StatusOr<std::optional<std::vector<float>>> Hessians(const std::string& module,
                                                             int64_t columns,
                                                             Backend&) const override {
    const auto it = index_.find(module);
    if (it == index_.end()) return std::nullopt;
    NIBBLE_ASSIGN_OR_RETURN(const InputCollector collector,
                            LoadState(reader(), module, it->second, /*hessians=*/true));
    if (collector.tokens() == 0) return std::nullopt;
    NIBBLE_RETURN_IF_ERROR(CheckColumnsOf(module, columns, collector));
    return collector.Hessians();
  }

  absl::StatusOr<int64_t> Tokens(const std::string& module) const override {
    const auto it = index_.find(module);
    if (it == index_.end()) return 0;
    NIBBLE_ASSIGN_OR_RETURN(const InputCollector collector,
                            LoadState(reader(), module, it->second, /*hessians=*/false));
    return collector.tokens();
  }

 private:
  absl::Status CheckColumnsOf(const std::string& module, int64_t columns,
                              const InputCollector& collector) const {
    const absl::Status status = CheckColumns(columns, collector.columns());
    return status.ok()
               ? status
               : Annotate(status, absl::StrCat(reader().path(), ": module ", Quoted(module)));
  }

  StateIndex index_;
};

absl::StatusOr<SafetensorsReader> OpenCaptures(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(SafetensorsReader reader, SafetensorsReader::Open(path));
  for (const TensorInfo& tensor : reader.tensors()) {
    if (IsCapture(tensor.name)) return reader;
  }
  return absl::DataLossError(absl::StrCat(path, ": expected a calibration, which has '", kFormatKey,
                                          "' in its metadata, or captured "
                                          "activations, tensors '<module>.input'; got neither"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Calibration>> Calibration::Open(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(SafetensorsReader reader, SafetensorsReader::Open(path));
  NIBBLE_ASSIGN_OR_RETURN(const bool states, HasStates(reader));
  if (states) {
    auto calibration = std::make_unique<States>(std::move(reader));
    NIBBLE_RETURN_IF_ERROR(calibration->Index());
    return calibration;
  }
  NIBBLE_ASSIGN_OR_RETURN(SafetensorsReader captures, OpenCaptures(path));
  return std::make_unique<Captures>(std::move(captures));
}

absl::StatusOr<CalibrationStates> CollectCalibration(const std::string& captures, bool hessians,
                                                     Backend& backend) {
  NIBBLE_ASSIGN_OR_RETURN(const SafetensorsReader reader, OpenCaptures(captures));
  CalibrationStates states;
  for (const TensorInfo& tensor : reader.tensors()) {
    if (!IsCapture(tensor.name)) continue;
    InputCollector collector(hessians);
    NIBBLE_RETURN_IF_ERROR(
        AtTensor(ForChunks(reader, tensor,
                           [&](const MatrixView& x) { return collector.Collect(x, backend); }),
                 reader, tensor.name));
    states.emplace(tensor.name.substr(0, tensor.name.size() - kInputSuffix.size()),
                   std::move(collector));
  }
  return states;
}

absl::Status SaveCalibration(const std::string& path, const CalibrationStates& states) {
  std::vector<std::pair<std::string, StateArray>> arrays;
  for (const auto& [module, collector] : states) {
    if (module.empty()) {
      return absl::InvalidArgumentError("module: expected a name, got an empty one");
    }
    for (auto& [name, array] : collector.Save()) {
      arrays.emplace_back(absl::StrCat(module, ToAbsl(kInputSuffix), ".", name), array);
    }
  }
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, array] : arrays) {
    tensors.push_back({name, array.dtype, array.shape, array.bytes});
  }
  return WriteSafetensors(path, tensors, {{kFormatKey, kCalibrationFormat}});
}

absl::Status JoinCalibrations(const std::string& path, std::span<const std::string> parts) {
  std::vector<TensorSpec> specs;
  for (const std::string& part : parts) {
    NIBBLE_ASSIGN_OR_RETURN(const SafetensorsReader reader, SafetensorsReader::Open(part));
    NIBBLE_ASSIGN_OR_RETURN(const bool states, HasStates(reader));
    NIBBLE_CHECK(states);
    for (const TensorInfo& tensor : reader.tensors()) {
      specs.push_back({tensor.name, tensor.dtype, tensor.shape});
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::Create(path, specs, {{kFormatKey, kCalibrationFormat}}));
  size_t index = 0;
  for (const std::string& part : parts) {
    NIBBLE_ASSIGN_OR_RETURN(const SafetensorsReader reader, SafetensorsReader::Open(part));
    for (const TensorInfo& tensor : reader.tensors()) {
      NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, reader.ReadAll(tensor));
      NIBBLE_RETURN_IF_ERROR(writer.Write(index++, 0, bytes));
    }
  }
  return writer.Commit();
}

absl::Status CheckCalibrationOutput(const std::string& path) {
  const absl::StatusOr<SafetensorsReader> there = SafetensorsReader::Open(path);
  if (absl::IsNotFound(there.status())) return absl::OkStatus();
  if (there.ok() && HasStates(*there).value_or(false)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "output: expected a name that is free, or a calibration state to replace, got ", path));
}

absl::StatusOr<CalibrationStates> LoadCalibration(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(const SafetensorsReader reader, SafetensorsReader::Open(path));
  NIBBLE_ASSIGN_OR_RETURN(const bool has_states, HasStates(reader));
  if (!has_states) {
    return absl::DataLossError(absl::StrCat(path, ": metadata '", kFormatKey, "': expected '",
                                            kCalibrationFormat, "', got none"));
  }
  NIBBLE_ASSIGN_OR_RETURN(const StateIndex index, IndexStates(reader));
  CalibrationStates states;
  for (const auto& [module, arrays] : index) {
    NIBBLE_ASSIGN_OR_RETURN(InputCollector collector,
                            LoadState(reader, module, arrays, /*hessians=*/true));
    states.emplace(module, std::move(collector));
  }
  return states;
}

absl::StatusOr<CalibrationStates> MergeCalibrations(std::span<const std::string> paths) {
  for (size_t i = 0; i < paths.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      NIBBLE_ASSIGN_OR_RETURN(const bool same, SameFile(paths[i], paths[j]));
      if (!same) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("merge: expected every file once, got ", paths[i], " twice"));
    }
  }
  CalibrationStates merged;
  for (const std::string& path : paths) {
    NIBBLE_ASSIGN_OR_RETURN(CalibrationStates states, LoadCalibration(path));
    for (auto& [module, collector] : states) {
      const auto [it, fresh] = merged.try_emplace(module, collector);
      const absl::Status status = fresh ? absl::OkStatus() : it->second.Merge(collector);
      if (!status.ok()) return Annotate(status, absl::StrCat(path, ": module ", Quoted(module)));
    }
  }
  return merged;
}

}  // namespace nibble
