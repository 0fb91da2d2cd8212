#include <vector>

#include "absl/strings/str_cat.h"
#include "base/parallel_for.h"
#include "bench/cuda/bench.h"
#include "engine/synthetic.h"
#include "kernels/cuda/hessian_feedback_launch.h"
#include "kernels/hessian_factors.h"

namespace nibble::bench {

// Where the sweep would start from changes nothing in what is done: every block begins at one code.
void BenchHessianFeedback() {
  constexpr int64_t kRows = 8192, kCols = 4096, kSlices = kCols / kBlockSize;
  constexpr int64_t kBlocks = kRows * kSlices;
  std::vector<float> hessians(kSlices * kBlockSize * kBlockSize);
  for (size_t i = 0; i < hessians.size(); ++i) hessians[i] = i % 256 % 17 == 0 ? 1.0f : 0.5f;
  ThreadPool pool;
  const std::vector<HessianFactor> host_factors = *FactorHessians(hessians, pool);
  const std::vector<HessianFeedback> host_feedback = MakeHessianFeedbacks(host_factors, pool);
  const SweepTable host_table = MakeSweepTable(5.0f, 448);
  const int64_t factor_bytes = kSlices * static_cast<int64_t>(sizeof(HessianFactor));
  const int64_t feedback_bytes = kSlices * static_cast<int64_t>(sizeof(HessianFeedback));
  const DeviceMemory factors = Allocate(factor_bytes), feedback = Allocate(feedback_bytes);
  const DeviceMemory table = Allocate(sizeof(SweepTable)), code = Allocate(kBlocks);
  const DeviceMemory loss = Allocate(4 * kBlocks), packed = Allocate(8 * kBlocks);
  Check(cudaMemcpy(factors.get(), host_factors.data(), factor_bytes, cudaMemcpyHostToDevice));
  Check(cudaMemcpy(feedback.get(), host_feedback.data(), feedback_bytes, cudaMemcpyHostToDevice));
  Check(cudaMemcpy(table.get(), &host_table, sizeof(host_table), cudaMemcpyHostToDevice));
  for (DType dtype : {DType::kBf16, DType::kF32}) {
    const RotatedInputs x(kRows, kCols, dtype);
    for (size_t config = 0; config < std::size(kHessianFeedbackConfigs); ++config) {
      Check(cudaMemset(code.get(), 110, kBlocks));
      Check(cudaMemset(loss.get(), 0x40, 4 * kBlocks));  // 3.0
      HessianFeedbackArgs args = {
          .rows = kRows,
          .slices = kSlices,
          .factors = As<HessianFactor>(factors),
          .feedback = As<HessianFeedback>(feedback),
          .table = As<SweepTable>(table),
          .code = As<uint8_t>(code),
          .loss = As<float>(loss),
          .packed = As<uint8_t>(packed),
      };
      const double ms = MedianMs([&](int run) {
        args.x = x[run];
        return LaunchHessianFeedback(dtype, args, static_cast<int>(config), nullptr);
      });
      Row(absl::StrCat("error feedback, ", kRows, "x", kCols, " ", std::string(DTypeName(dtype))),
          absl::StrCat(kHessianFeedbackConfigs[config].warps, " warps"), ms,
          static_cast<double>(kRows * kCols * DTypeBytes(dtype) + 18 * kBlocks),
          absl::StrCat(static_cast<double>(kRows * kCols) / ms / 1e6, " G weights/s"));
    }
  }
}

}  // namespace nibble::bench
