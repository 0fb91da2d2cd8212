// `nibble tune`: launch shapes measured on a device, and the files that the picks are kept in.
#ifndef NIBBLE_ENGINE_TUNE_H_
#define NIBBLE_ENGINE_TUNE_H_

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "kernels/tuning/store.h"
#include "kernels/tuning/tunable_op.h"
#include "kernels/tuning/tuner.h"

namespace nibble {

struct TuneShape {
  int64_t rows = 0;
  int64_t cols = 0;
};

// "8192x4096"; InvalidArgument unless both are positive, the columns a multiple of 16, and the
// elements at most 2^48.
absl::StatusOr<TuneShape> ParseTuneShape(std::string_view text);

struct TuneRequest {
  std::vector<std::string> ops = {};  // all where empty
  // At most one a bucket of the store. By default a few from small to large: what lies between
  // takes the pick of the nearest.
  std::vector<TuneShape> shapes = {
      {512, 512}, {2048, 2048}, {8192, 4096}, {28672, 8192}, {98304, 7168}};
  TuningOptions options = {};
};

// InvalidArgument for operations that are not among `ops` and for shapes that share a bucket.
absl::Status CheckTuneRequest(const TuneRequest& request, const std::vector<TunableOp>& ops);

// One operation, type and shape.
struct TuneRow {
  std::string op;
  DType dtype = DType::kBf16;
  TuneShape shape;
  // Why there is no pick. ResourceExhausted: too large for the device's memory.
  absl::Status status;
  std::string default_config, best_config;
  double default_ms = 0, best_ms = 0;
  std::vector<std::string> dropped;  // "<config>: <why>" of candidates that could not be measured
};

struct TuneResult {
  std::vector<TuneRow> rows;
  TuningStore picks;
};

// `number` counts rows from 1 on.
using TuneProgress = std::function<void(const TuneRow& row, size_t number, size_t of)>;

// Measures everything that is asked for; `progress` is called when a row begins. The first row's
// error where no row has a pick.
absl::StatusOr<TuneResult> Tune(TuningDevice& device, const TuneRequest& request,
                                const TuneProgress& progress = nullptr);

// Where a user's own picks lie: $NIBBLE_TUNING_STORE, else nibble/tuning under $XDG_CACHE_HOME or
// ~/.cache; empty where the environment names none of them.
std::string UserTuningPath();

// The picks in a file; none where `path` is empty or there is no such file.
absl::StatusOr<TuningStore> LoadTuning(const std::string& path);

// The error that SaveTuning would return, as far as it can be told before the search.
absl::Status CheckTuningFile(const std::string& path);

// Puts picks into a file, which appears or changes whole or not at all, and makes its folder where
// that is missing. Picks that it had for the same operations and device under other builds go, all
// other picks stay.
absl::Status SaveTuning(const std::string& path, const TuningStore& picks);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_TUNE_H_
