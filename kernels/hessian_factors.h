#ifndef NIBBLE_KERNELS_HESSIAN_FACTORS_H_
#define NIBBLE_KERNELS_HESSIAN_FACTORS_H_

#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/parallel_for.h"
#include "quant/numerics/hessian_feedback.h"
#include "quant/numerics/hessian_sweep.h"

namespace nibble {

// One factor a slice of 16 x 16 floats. FailedPrecondition names the first slice that is not
// finite, symmetric and positive semidefinite.
absl::StatusOr<std::vector<HessianFactor>> FactorHessians(std::span<const float> hessians,
                                                          ThreadPool& pool);

// Of each factor.
std::vector<HessianFeedback> MakeHessianFeedbacks(std::span<const HessianFactor> factors,
                                                  ThreadPool& pool);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_HESSIAN_FACTORS_H_
