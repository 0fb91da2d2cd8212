#include "engine/tune.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <system_error>

#include "absl/strings/numbers.h"
#include "base/status.h"
#include "base/text.h"
#include "engine/synthetic.h"
#include "io/atomic_file.h"
#include "io/text_file.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {
namespace {

constexpr size_t kMostStoreBytes = size_t{1} << 20;
constexpr int64_t kMostElements = int64_t{1} << 48;  // their bytes, twice, still fit an int64
constexpr int64_t kSampleElements = int64_t{1} << 20;

int BucketOf(const TuneShape& shape) { return TuningBucket(shape.rows * shape.cols / kBlockSize); }

std::string ShapeText(const TuneShape& shape) { return absl::StrCat(shape.rows, "x", shape.cols); }

bool IsAsked(const TuneRequest& request, const TunableOp& op) {
  return request.ops.empty() || std::ranges::count(request.ops, op.name) > 0;
}

// Fills in what measuring the row finds.
absl::Status TuneOne(TuningDevice& device, const TunableOp& op, std::span<const std::byte> sample,
                     const TuningOptions& options, TuneRow& row) {
  NIBBLE_ASSIGN_OR_RETURN(const MeasureCandidate measure,
                          device.Prepare(op, {row.dtype, row.shape.rows, row.shape.cols, sample}));
  NIBBLE_ASSIGN_OR_RETURN(const TuningOutcome outcome,
                          PickBest(static_cast<int>(op.configs.size()), measure, options));
  row.default_config = op.configs[outcome.baseline];
  row.default_ms = outcome.candidates[outcome.baseline].cost;
  row.best_config = op.configs[outcome.best];
  row.best_ms = outcome.candidates[outcome.best].cost;
  for (size_t c = 0; c < op.configs.size(); ++c) {
    const absl::Status& status = outcome.candidates[c].status;
    if (!status.ok()) row.dropped.push_back(absl::StrCat(op.configs[c], ": ", status.message()));
  }
  return absl::OkStatus();
}

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

absl::StatusOr<TuneShape> ParseTuneShape(std::string_view text) {
  TuneShape shape;
  const size_t x = std::min(text.find('x'), text.size());
  int64_t size;
  if (x == text.size() || !absl::SimpleAtoi(ToAbsl(text.substr(0, x)), &shape.rows) ||
      !absl::SimpleAtoi(ToAbsl(text.substr(x + 1)), &shape.cols) || shape.rows <= 0 ||
      shape.cols <= 0 || shape.cols % kBlockSize != 0 ||
      __builtin_mul_overflow(shape.rows, shape.cols, &size) || size > kMostElements) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shape: expected ROWSxCOLUMNS, the columns a multiple of 16, at most 2^48 elements, got ",
        Quoted(text)));
  }
  return shape;
}

absl::Status CheckTuneRequest(const TuneRequest& request, const std::vector<TunableOp>& ops) {
  for (const std::string& asked : request.ops) {
    if (std::ranges::count(ops, asked, &TunableOp::name) > 0) continue;
    std::string names;
    for (const TunableOp& op : ops) absl::StrAppend(&names, names.empty() ? "" : ", ", op.name);
    return absl::InvalidArgumentError(
        absl::StrCat("ops: expected some of ", names, ", got ", Quoted(asked)));
  }
  std::map<int, TuneShape> buckets;
  for (const TuneShape& shape : request.shapes) {
    const auto [other, is_new] = buckets.emplace(BucketOf(shape), shape);
    if (is_new) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "shapes: expected one between two powers of two of blocks, got ", ShapeText(other->second),
        " and ", ShapeText(shape), " from 2^", other->first, " on"));
  }
  return absl::OkStatus();
}

absl::StatusOr<TuneResult> Tune(TuningDevice& device, const TuneRequest& request,
                                const TuneProgress& progress) {
  NIBBLE_RETURN_IF_ERROR(CheckTuneRequest(request, device.ops()));
  TuneResult result;
  for (const TunableOp& op : device.ops()) {
    if (!IsAsked(request, op)) continue;
    for (DType dtype : op.dtypes) {
      for (const TuneShape& shape : request.shapes) {
        TuneRow& row = result.rows.emplace_back();
        row.op = op.name;
        row.dtype = dtype;
        row.shape = shape;
      }
    }
  }
  const std::vector<float> values =
      SyntheticValues(Distribution::kNormal, kSampleElements, /*seed=*/1);
  std::map<DType, std::vector<std::byte>> samples;
  for (size_t i = 0; i < result.rows.size(); ++i) {
    TuneRow& row = result.rows[i];
    const TunableOp& op = *std::ranges::find(device.ops(), row.op, &TunableOp::name);
    if (progress) progress(row, i + 1, result.rows.size());
    std::vector<std::byte>& sample = samples[row.dtype];
    if (sample.empty()) sample = ToBytes(values, row.dtype);
    row.status = TuneOne(device, op, sample, request.options, row);
    if (!row.status.ok()) continue;
    NIBBLE_RETURN_IF_ERROR(result.picks.Put(
        {device.name(), op.name, op.build_id, row.dtype, BucketOf(row.shape)}, row.best_config));
  }
  if (result.picks.picks().empty() && !result.rows.empty()) return result.rows.front().status;
  return result;
}

std::string UserTuningPath() {
  if (std::string path = Environment("NIBBLE_TUNING_STORE"); !path.empty()) return path;
  const std::string cache = Environment("XDG_CACHE_HOME"), home = Environment("HOME");
  if (cache.starts_with('/')) return cache + "/nibble/tuning";  // a relative one is to be ignored
  return home.empty() ? "" : home + "/.cache/nibble/tuning";
}

absl::StatusOr<TuningStore> LoadTuning(const std::string& path) {
  if (path.empty()) return TuningStore();
  const absl::StatusOr<std::string> text = ReadTextFile(path, kMostStoreBytes);
  if (absl::IsNotFound(text.status())) return TuningStore();
  if (!text.ok()) return text.status();
  return TuningStore::Parse(*text, path);
}

absl::Status CheckTuningFile(const std::string& path) {
  NIBBLE_RETURN_IF_ERROR(LoadTuning(path).status());
  const absl::Status status = AtomicFile::Create(path).status();
  return absl::IsNotFound(status) ? absl::OkStatus() : status;  // SaveTuning makes the folder
}

absl::Status SaveTuning(const std::string& path, const TuningStore& picks) {
  NIBBLE_ASSIGN_OR_RETURN(TuningStore store, LoadTuning(path));
  for (const auto& [key, config] : picks.picks()) {
    store.DropStale(key.device, key.op, key.build_id);
  }
  store.Merge(picks);
  std::error_code error;  // where the folder cannot be made, writing the file says why
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  return WriteFileAtomically(path, store.Format());
}

}  // namespace nibble
