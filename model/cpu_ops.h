// LayerOps on the CPU. Everything is float32 in memory, rounded where it stands for bf16.
#ifndef NIBBLE_MODEL_CPU_OPS_H_
#define NIBBLE_MODEL_CPU_OPS_H_

#include <memory>

#include "base/dtype.h"
#include "base/parallel_for.h"
#include "model/layer_ops.h"

namespace nibble {

// Work is split by shapes alone, and BLAS is called for one piece at a time, so that results do not
// depend on the number of threads. linear_input: fp32 or bf16. The pool outlives the result.
std::unique_ptr<LayerOps> MakeCpuOps(ThreadPool& pool, DType linear_input);

}  // namespace nibble

#endif  // NIBBLE_MODEL_CPU_OPS_H_
