#include "engine/quantize_work.h"

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>

#include "base/status.h"
#include "base/tensor_view.h"
#include "base/text.h"
#include "io/model_folder.h"

namespace nibble {
namespace {

constexpr uint64_t kCopyChunkBytes = uint64_t{32} << 20;

class Maker {
 public:
  Maker(const Plan& plan, const Recipe::Export& output) : plan_(plan), output_(output) {
    work_.tensors_of.resize(plan.rows.size());
  }

  absl::StatusOr<QuantizeWork> Make(const std::string& model) && {
    for (size_t i = 0; i < plan_.rows.size(); ++i) {
      const PlanRow& row = plan_.rows[i];
      std::vector<int> rows = {static_cast<int>(i)};
      if (row.quantize) {
        rows = plan_.groups[row.group].rows;
        if (rows.front() != static_cast<int>(i)) continue;  // done with the group's first
      }
      NIBBLE_RETURN_IF_ERROR(AddJob(rows));
    }
    NIBBLE_RETURN_IF_ERROR(Name(model));
    return std::move(work_);
  }

 private:
  // The tasks of rows that belong together, and their tensors in a shard.
  absl::Status AddJob(const std::vector<int>& rows) {
    std::vector<PlacedTensor> job;
    uint64_t job_bytes = 0;
    for (const int row : rows) {
      NIBBLE_ASSIGN_OR_RETURN(std::vector<OutputTensor> tensors,
                              OutputsOf(plan_.rows[row], output_.format));
      for (OutputTensor& tensor : tensors) {
        job_bytes += BytesOfTensor(tensor.tensor);
        job.push_back({.tensor = std::move(tensor), .row = row});
      }
    }
    std::vector<ResultShard>& shards = work_.shards;
    if (shards.empty() ||
        (shards.back().bytes > 0 && shards.back().bytes + job_bytes > output_.shard_bytes)) {
      shards.push_back({.first_task = work_.tasks.size()});
    }
    ResultShard& shard = shards.back();
    const int shard_index = static_cast<int>(shards.size()) - 1;
    for (PlacedTensor& placed : job) {
      placed.shard = shard_index;
      placed.index = shard.tensors.size();
      const ModelTensor& tensor = placed.tensor.tensor;
      shard.tensors.push_back({tensor.name, tensor.dtype, tensor.shape});
      work_.tensors_of[placed.row].push_back(work_.tensors.size());
      work_.tensors.push_back(std::move(placed));
    }
    shard.bytes += job_bytes;
    AddTasks(rows, shard_index);
    return absl::OkStatus();
  }

  void AddTasks(const std::vector<int>& rows, int shard) {
    const PlanRow& row = plan_.rows[rows[0]];
    const auto add = [&](QuantizeTask task) {
      task.shard = shard;
      ++work_.shards[shard].tasks;
      work_.tasks.push_back(std::move(task));
    };
    if (!row.quantize) {
      const uint64_t bytes = BytesOfTensor(row.tensor);
      for (uint64_t begin = 0; begin < bytes || begin == 0; begin += kCopyChunkBytes) {
        const uint64_t end = std::min(begin + kCopyChunkBytes, bytes);
        add({.kind = QuantizeTask::kCopy,
             .rows = rows,
             .begin = begin,
             .end = end,
             .weights = static_cast<int64_t>((end - begin) / DTypeBytes(row.tensor.dtype)),
             .bytes = static_cast<int64_t>(end - begin)});
        if (end == bytes) break;
      }
      return;
    }
    // Source (twice where it is turned), codes and scales, and what a search finds: 9 bytes a
    // block.
    const auto held = [&](int64_t elements) {
      return elements * DTypeBytes(row.tensor.dtype) + elements / 2 + elements / kBlockSize * 10;
    };
    int64_t weights = 0;
    for (const int r : rows) weights += ElementsOf(plan_.rows[r].tensor);
    if (row.form == WeightForm::kMatrix) {
      add({.kind = QuantizeTask::kGroup, .rows = rows, .weights = weights, .bytes = held(weights)});
    } else if (SplitsExperts(row.form)) {
      const int64_t experts = row.tensor.shape[0];
      const bool turned = row.form == WeightForm::kTurnedExperts;
      for (int64_t expert = 0; expert < experts; ++expert) {
        add({.kind = QuantizeTask::kExpert,
             .rows = rows,
             .expert = expert,
             .weights = weights / experts,
             .bytes = held(weights / experts) +
                      (turned ? weights / experts * DTypeBytes(row.tensor.dtype) : 0)});
      }
    } else {  // an expert twice, the codes and scales of all
      add({.kind = QuantizeTask::kColumns,
           .rows = rows,
           .weights = weights,
           .bytes = 2 * held(weights / row.tensor.shape[0]) + weights * 9 / 16});
    }
  }

  absl::Status Name(const std::string& model) {
    for (size_t i = 0; i < work_.shards.size(); ++i) {
      work_.shards[i].name = ShardFileName(i, work_.shards.size());
    }
    std::map<std::string_view, int> names;
    for (const PlacedTensor& placed : work_.tensors) {
      if (names.emplace(placed.tensor.tensor.name, placed.row).second) continue;
      return absl::FailedPreconditionError(
          absl::StrCat(model, ": expected names that differ in the result, got two tensors ",
                       Quoted(placed.tensor.tensor.name)));
    }
    return absl::OkStatus();
  }

  const Plan& plan_;
  const Recipe::Export& output_;
  QuantizeWork work_;
};

}  // namespace

absl::StatusOr<QuantizeWork> MakeQuantizeWork(const Plan& plan, const Recipe::Export& output,
                                              const std::string& model) {
  return Maker(plan, output).Make(model);
}

int64_t ElementsOf(const ModelTensor& tensor) { return ElementCount(tensor.shape).value_or(0); }

uint64_t BytesOfTensor(const ModelTensor& tensor) {
  return static_cast<uint64_t>(ElementsOf(tensor)) * DTypeBytes(tensor.dtype);
}

}  // namespace nibble
