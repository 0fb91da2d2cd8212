#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/cuda/bench.h"
#include "kernels/cuda/copy_amax_launch.h"
#include "kernels/cuda/copy_encode_launch.h"
#include "kernels/cuda/copy_rows_launch.h"

namespace nibble::bench {
namespace {

// Both copies of one matrix, or of groups of its rows.
class Copies {
 public:
  Copies(int64_t rows, int64_t cols, const std::vector<int64_t>& groups)
      : rows_(rows), cols_(cols), group_count_(static_cast<int>(groups.size())), x_(rows, cols) {
    Check(cudaMemcpy(group_rows_.get(), groups.data(), 8 * groups.size(), cudaMemcpyHostToDevice));
    amax_.rows = encode_.rows = rows;
    amax_.cols = encode_.cols = cols;
    amax_.group_count = encode_.group_count = group_count_;
    amax_.groups = encode_.groups = group_count_ == 1 ? nullptr : As<RowGroup>(starts_);
    amax_.source = As<float>(source_);
    amax_.row = As<float>(row_amax_);
    amax_.column = As<float>(column_amax_);
    encode_.row.packed = As<uint8_t>(row_packed_);
    encode_.row.scale = As<uint8_t>(row_scale_);
    encode_.row.amax = amax_.row;
    encode_.column.packed = As<uint8_t>(column_packed_);
    encode_.column.scale = As<uint8_t>(column_scale_);
    encode_.column.amax = amax_.column;
  }

  void Set(Scheme scheme, EncodeMethod method, Rht rht) {
    amax_.per_row = amax_.per_column = scheme == Scheme::kPerToken;
    encode_.row.scheme = encode_.column.scheme = scheme;
    encode_.row.method = encode_.column.method = method;
    amax_.column_rht = encode_.column.rht = rht;
  }
  void SetSwizzle(bool swizzle) { encode_.row.swizzle = encode_.column.swizzle = swizzle; }
  void SetStochastic(bool on) {
    encode_.row.encode.stochastic = encode_.column.encode.stochastic = on;
  }
  void SetCopies(bool row, bool column) {
    encode_.row.packed = row ? As<uint8_t>(row_packed_) : nullptr;
    encode_.column.packed = column ? As<uint8_t>(column_packed_) : nullptr;
    amax_.row = row ? As<float>(row_amax_) : nullptr;
    amax_.column = column ? As<float>(column_amax_) : nullptr;
  }

  double AmaxMs(int config) {
    return MedianMs([&](int run) {
      amax_.x = x_[run];
      return LaunchCopyAmax(DType::kBf16, amax_, config, nullptr);
    });
  }
  double RowsMs(int config) {
    return MedianMs([&](int run) {
      amax_.x = x_[run];
      return LaunchCopyRows(DType::kBf16, amax_, encode_.row, config, nullptr);
    });
  }
  double EncodeMs(int config) {
    return MedianMs([&](int run) {
      encode_.x = x_[run];
      encode_.follows_amax = false;
      return LaunchCopyEncode(DType::kBf16, encode_, config, nullptr);
    });
  }
  // As the backend does it.
  double AllMs(int amax_config, int rows_config, int encode_config) {
    const bool rows_first = CopyRowsFits(DType::kBf16, amax_, encode_.row);
    return MedianMs([&](int run) {
      amax_.x = encode_.x = x_[run];
      encode_.follows_amax = true;
      if (group_count_ > 1) {
        const cudaError_t error = LaunchPlanRowGroups(As<int64_t>(group_rows_), group_count_,
                                                      As<RowGroup>(starts_), nullptr);
        if (error != cudaSuccess) return error;
      }
      CopyEncodeArgs left = encode_;
      cudaError_t error;
      if (rows_first) {
        error = LaunchCopyRows(DType::kBf16, amax_, encode_.row, rows_config, nullptr);
        left.row.packed = nullptr;
        if (left.column.packed == nullptr) return error;
      } else {
        error = LaunchCopyAmax(DType::kBf16, amax_, amax_config, nullptr);
      }
      if (error != cudaSuccess) return error;
      return LaunchCopyEncode(DType::kBf16, left, encode_config, nullptr);
    });
  }

 private:
  int64_t rows_, cols_;
  int group_count_;
  RotatedInputs x_;
  DeviceMemory group_rows_ = Allocate(8 * group_count_);
  DeviceMemory starts_ = Allocate((group_count_ + 1) * sizeof(RowGroup));
  DeviceMemory source_ = Allocate(4 * group_count_);
  DeviceMemory row_amax_ = Allocate(4 * rows_), column_amax_ = Allocate(4 * cols_ * group_count_);
  DeviceMemory row_packed_ = Allocate(rows_ * cols_ / 2);
  DeviceMemory column_packed_ = Allocate(rows_ * cols_ / 2);
  // Room for the padding of swizzled scales.
  DeviceMemory row_scale_ = Allocate(rows_ * cols_ / 16 + group_count_ * 8 * cols_);
  DeviceMemory column_scale_ = Allocate(rows_ * cols_ / 16 + group_count_ * 4 * (cols_ + 128));
  CopyAmaxArgs amax_ = {};
  CopyEncodeArgs encode_ = {};
};

}  // namespace

void BenchQuantizeCopies() {
  constexpr int64_t kRows = 16384, kCols = 6144, kSize = kRows * kCols;
  constexpr int64_t kOut = kSize / 2 + kSize / 16;  // of one copy
  const std::string shape = absl::StrCat(", ", kRows, "x", kCols, " bf16");
  // Two reads and what is written, at the rate of a copy.
  const auto note = [&](double ms, int64_t bytes) {
    return absl::StrCat(ms / CopyMs(bytes), " of the copy's time");
  };
  Copies copies(kRows, kCols, {kRows});
  copies.Set(Scheme::kPerToken, EncodeMethod::kRuntime, Rht::kSigns);
  int best_amax = 0, best_rows = 0, best_encode = 0;
  double least = 1e9;
  for (int config = 0; config < static_cast<int>(std::size(kCopyAmaxConfigs)); ++config) {
    const auto [steps, stages] = kCopyAmaxConfigs[config];
    const double ms = copies.AmaxMs(config);
    if (ms < least) best_amax = config;
    least = std::min(least, ms);
    Row("copy amax, row and column with RHT" + shape,
        absl::StrCat(steps, " steps, ", stages, " stages"), ms, 2.0 * kSize, note(ms, 2 * kSize));
  }
  least = 1e9;
  for (int config = 0; config < static_cast<int>(std::size(kCopyRowsConfigs)); ++config) {
    const double ms = copies.RowsMs(config);
    if (ms < least) best_rows = config;
    least = std::min(least, ms);
    Row("row-wise copy, column amax with RHT" + shape,
        absl::StrCat(kCopyRowsConfigs[config].warps, " warps"), ms, 2.0 * kSize + kOut,
        note(ms, 2 * kSize + kOut));
  }
  for (int config = 0; config < static_cast<int>(std::size(kCopyEncodeConfigs)); ++config) {
    const double ms = copies.EncodeMs(config);
    Row("copy encode, both, per_token, RHT" + shape,
        absl::StrCat("strips of ", kCopyEncodeConfigs[config].strip_tiles), ms,
        2.0 * kSize + 2 * kOut, note(ms, 2 * kSize + 2 * kOut));
  }
  copies.SetCopies(false, true);
  least = 1e9;
  for (int config = 0; config < static_cast<int>(std::size(kCopyEncodeConfigs)); ++config) {
    const double ms = copies.EncodeMs(config);
    if (ms < least) best_encode = config;
    least = std::min(least, ms);
    Row("copy encode, column-wise, per_token, RHT" + shape,
        absl::StrCat("strips of ", kCopyEncodeConfigs[config].strip_tiles), ms, 2.0 * kSize + kOut,
        note(ms, 2 * kSize + kOut));
  }
  copies.SetCopies(true, true);
  const auto all = [&](const std::string& what, Copies& of, int64_t made) {
    const double ms = of.AllMs(best_amax, best_rows, best_encode);
    const int64_t bytes = 4 * kSize + made * kOut;
    Row(what + shape, "", ms, static_cast<double>(bytes), note(ms, bytes));
  };
  all("both copies, per_token, RHT", copies, 2);
  copies.SetSwizzle(true);
  all("both copies, per_token, RHT, swizzled", copies, 2);
  copies.SetStochastic(true);
  all("both copies, per_token, RHT, swizzled, stochastic", copies, 2);
  copies.SetStochastic(false);
  copies.SetSwizzle(false);
  copies.Set(Scheme::kPerToken, EncodeMethod::kRuntime, Rht::kNone);
  all("both copies, per_token, no RHT", copies, 2);
  copies.Set(Scheme::kPerTensor, EncodeMethod::kRuntime, Rht::kSigns);
  all("both copies, per_tensor, RHT", copies, 2);
  copies.Set(Scheme::kTile2d, EncodeMethod::kRuntime, Rht::kNone);
  all("both copies, tile_2d", copies, 2);
  copies.Set(Scheme::kPerToken, EncodeMethod::kFourOverSixMse, Rht::kSigns);
  all("both copies, per_token, RHT, 4over6 mse", copies, 2);
  copies.Set(Scheme::kPerToken, EncodeMethod::kRuntime, Rht::kSigns);
  copies.SetCopies(false, true);
  all("column-wise copy, per_token, RHT", copies, 1);
  copies.SetCopies(true, false);
  all("row-wise copy, per_token", copies, 1);

  std::vector<int64_t> groups(128);
  for (size_t i = 0; i < groups.size(); ++i) groups[i] = i % 8 == 3 ? 0 : 16 * (1 + i * 37 % 15);
  int64_t left = kRows;
  for (int64_t& rows : groups) left -= rows = std::min(rows, left);
  groups.back() += left;
  Copies grouped(kRows, kCols, groups);
  grouped.Set(Scheme::kPerToken, EncodeMethod::kRuntime, Rht::kSigns);
  all("both copies, 128 ragged groups, per_token, RHT", grouped, 2);
}

}  // namespace nibble::bench
