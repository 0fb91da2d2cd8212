#include "kernels/hessian_factors.h"

#include "absl/strings/str_cat.h"
#include "quant/numerics/singular_hessian.h"

namespace nibble {
namespace {

HessianDefect Factor(const float* h, HessianFactor* factor) {
  // What the losses of a factor may be off by, relative to H's diagonal.
  constexpr double kResidual = 1e-5;
  const HessianDefect defect = FactorHessian(h, factor);
  const bool accurate = defect == HessianDefect::kNone && HessianResidual(h, *factor) <= kResidual;
  const bool hopeless =
      defect == HessianDefect::kNotFinite || defect == HessianDefect::kNotSymmetric;
  return accurate || hopeless ? defect : FactorSingularHessian(h, factor);
}

}  // namespace

absl::StatusOr<std::vector<HessianFactor>> FactorHessians(std::span<const float> hessians,
                                                          ThreadPool& pool) {
  constexpr int kSize = kBlockSize * kBlockSize;
  std::vector<HessianFactor> factors(hessians.size() / kSize);
  std::vector<HessianDefect> defects(factors.size());
  pool.ParallelFor(static_cast<int64_t>(factors.size()), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      defects[i] = Factor(hessians.data() + i * kSize, &factors[i]);
    }
  });
  for (size_t i = 0; i < defects.size(); ++i) {
    if (defects[i] == HessianDefect::kNone) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("hessian: expected finite, symmetric, positive semidefinite slices, got one "
                     "that is not ",
                     defects[i] == HessianDefect::kNotFinite      ? "finite"
                     : defects[i] == HessianDefect::kNotSymmetric ? "symmetric"
                                                                  : "positive semidefinite",
                     ": slice ", i));
  }
  return factors;
}

std::vector<HessianFeedback> MakeHessianFeedbacks(std::span<const HessianFactor> factors,
                                                  ThreadPool& pool) {
  std::vector<HessianFeedback> made(factors.size());
  pool.ParallelFor(static_cast<int64_t>(factors.size()), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) made[i] = MakeHessianFeedback(factors[i]);
  });
  return made;
}

}  // namespace nibble
