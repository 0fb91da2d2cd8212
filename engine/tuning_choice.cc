#include "engine/tuning_choice.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "base/text.h"
#include "engine/tune.h"
#include "kernels/tuning/shipped.h"

namespace nibble {
namespace {

constexpr int kThreadsOfWarp = 32;

// What a recipe may ask for, of a shape that has it.
struct Shape {
  std::optional<int> warps, blocks_per_program;
};

// Of "warps=4 blocks_per_thread=2".
Shape ShapeOf(const std::string& config) {
  Shape shape;
  std::optional<int> blocks_per_thread;
  for (const auto& word : absl::StrSplit(config, ' ')) {
    const std::pair<std::string, std::string> field = absl::StrSplit(word, absl::MaxSplits('=', 1));
    int value = 0;
    if (!absl::SimpleAtoi(field.second, &value)) continue;
    if (field.first == "warps") shape.warps = value;
    if (field.first == "blocks_per_thread") blocks_per_thread = value;
  }
  if (shape.warps && blocks_per_thread) {
    shape.blocks_per_program = kThreadsOfWarp * *shape.warps * *blocks_per_thread;
  }
  return shape;
}

// Whether `tuning` asks for anything that the shape has, and for nothing that it has otherwise.
bool IsAskedFor(const Recipe::Tuning& tuning, const Shape& shape) {
  bool any = false;
  const auto agrees = [&](const std::optional<int>& asked, const std::optional<int>& has) {
    any |= asked && has;
    return !asked || !has || *asked == *has;
  };
  const bool all = agrees(tuning.warps, shape.warps) &&
                   agrees(tuning.blocks_per_program, shape.blocks_per_program);
  return all && any;
}

std::string List(const std::set<int>& values) {
  return values.empty() ? "none" : absl::StrJoin(values, ", ");
}

absl::Status CheckShapes(const Recipe::Tuning& tuning, const std::vector<TunableOp>& ops) {
  std::set<int> warps, blocks, blocks_with_warps;
  for (const TunableOp& op : ops) {
    for (const std::string& config : op.configs) {
      const Shape shape = ShapeOf(config);
      if (shape.warps) warps.insert(*shape.warps);
      if (!shape.blocks_per_program) continue;
      blocks.insert(*shape.blocks_per_program);
      if (shape.warps == tuning.warps) blocks_with_warps.insert(*shape.blocks_per_program);
    }
  }
  if (tuning.warps && !warps.contains(*tuning.warps)) {
    return absl::InvalidArgumentError(
        absl::StrCat("tuning.warps: expected one of ", List(warps), ", got ", *tuning.warps));
  }
  if (!tuning.blocks_per_program) return absl::OkStatus();
  if (!blocks.contains(*tuning.blocks_per_program)) {
    return absl::InvalidArgumentError(absl::StrCat("tuning.blocks_per_program: expected one of ",
                                                   List(blocks), ", got ",
                                                   *tuning.blocks_per_program));
  }
  if (tuning.warps && !blocks_with_warps.contains(*tuning.blocks_per_program)) {
    return absl::InvalidArgumentError(absl::StrCat("tuning.blocks_per_program: expected one of ",
                                                   List(blocks_with_warps), " with ", *tuning.warps,
                                                   " warps, got ", *tuning.blocks_per_program));
  }
  return absl::OkStatus();
}

absl::Status AtItsPlace(absl::Status status, const Recipe::Tuning& tuning) {
  return status.ok() || tuning.place.empty() ? status : Annotate(status, tuning.place);
}

}  // namespace

absl::Status CheckTuning(const Recipe::Tuning& tuning, const std::vector<TunableOp>& ops) {
  return AtItsPlace(CheckShapes(tuning, ops), tuning);
}

absl::StatusOr<TuningStore> ChooseLaunchShapes(const Recipe::Tuning& tuning,
                                               const std::vector<TunableOp>& ops,
                                               std::string_view device, const TuningStore& picks) {
  NIBBLE_RETURN_IF_ERROR(CheckTuning(tuning, ops));
  TuningStore chosen = picks;
  if (!tuning.warps && !tuning.blocks_per_program) return chosen;
  TuningStore known = ShippedTuning();
  known.Merge(picks);
  for (const TunableOp& op : ops) {
    std::vector<bool> asked_for;
    for (const std::string& config : op.configs) {
      asked_for.push_back(IsAskedFor(tuning, ShapeOf(config)));
    }
    const auto first = std::ranges::find(asked_for, true);
    if (first == asked_for.end()) continue;
    const ConfigPicks usual(op, device, known);
    TuningKey key = {.device = std::string(device), .op = op.name, .build_id = op.build_id};
    for (const DType dtype : op.dtypes) {
      key.dtype = dtype;
      for (key.bucket = 0; key.bucket < kTuningBuckets; ++key.bucket) {
        const int pick = usual(dtype, int64_t{1} << key.bucket);
        const int config = asked_for[pick] ? pick : static_cast<int>(first - asked_for.begin());
        NIBBLE_RETURN_IF_ERROR(chosen.Put(key, op.configs[config]));
      }
    }
  }
  return chosen;
}

absl::StatusOr<TuningStore> LoadPicks(const Recipe::Tuning& tuning) {
  if (tuning.store.empty()) return LoadTuning(UserTuningPath());
  std::error_code error;
  if (!std::filesystem::exists(tuning.store, error)) {
    return AtItsPlace(
        absl::NotFoundError(absl::StrCat("tuning.store: expected a store of picks, got ",
                                         Quoted(tuning.store), ", which is not there")),
        tuning);
  }
  absl::StatusOr<TuningStore> picks = LoadTuning(tuning.store);
  if (!picks.ok()) return AtItsPlace(Annotate(picks.status(), "tuning.store"), tuning);
  return picks;
}

}  // namespace nibble
