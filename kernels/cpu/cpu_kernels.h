// What a CPU instruction set implements: loops over a range of blocks, single-threaded, without
// allocation. cpu_backend.cc does the rest (checks, threads, copies, swizzling) for all of them.
#ifndef NIBBLE_KERNELS_CPU_CPU_KERNELS_H_
#define NIBBLE_KERNELS_CPU_CPU_KERNELS_H_

#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "base/tensor_view.h"
#include "kernels/backend.h"
#include "quant/numerics/block_error.h"
#include "quant/numerics/float_bits.h"
#include "quant/numerics/hessian_feedback.h"
#include "quant/numerics/hessian_sweep.h"
#include "quant/numerics/scale_sweep.h"
#include "quant/quantize_params.h"

namespace nibble {

struct EncodeJob {
  MatrixView x;
  const QuantizeParams* params;
  const float* amax;            // one, or one a row under per_token
  const uint8_t* given_scales;  // one a block, chosen by a search (checkpoint rule); else null
  uint8_t* packed;
  uint8_t* scale;  // row-major
};

struct SweepJob {
  MatrixView x;
  const SweepTable* table;
  SweepMethod method;
  const HessianFactor* factors;  // one a column block; null for the plain sweep
  uint8_t* code;
  float* loss;
};

// What a block's entries hold is what the sweep found; it is replaced where feedback does better.
struct FeedbackJob {
  MatrixView x;
  const SweepTable* table;
  const HessianFactor* factors;     // one a column block
  const HessianFeedback* feedback;  // one a column block
  uint8_t* code;
  float* loss;
  uint8_t* packed;
};

struct MultiplierJob {
  MatrixView x;
  const SweepTable* table;
  float global_decode_scale;
  const float* multipliers;
  int count;
  uint8_t* code;
  float* best_amax;
  float* loss;
};

struct MeasureJob {
  MatrixView x;  // finite
  const uint8_t* packed;
  const uint8_t* scale;  // row-major
  float global_decode_scale;
};

struct CpuKernels {
  std::string_view name;

  // The largest magnitude among `count` values as the bits of their type: above a type's infinity
  // where one is NaN.
  uint32_t (*max_magnitude)(DType dtype, const void* data, int64_t count);

  // The same of each of `blocks` blocks of 16.
  void (*block_magnitudes)(DType dtype, const void* data, int64_t blocks, uint32_t* largest);
  // largest[i] = the larger of it and element i's magnitude; integers as wide as the type.
  void (*raise_magnitudes)(DType dtype, const void* data, int64_t count, void* largest);

  // Adds tokens [first, last), at most 128, of one slice's 16 channels to `sum`: see
  // HessianAddToken. Entries i > j are unspecified.
  void (*hessian_chain)(const MatrixView& x, int64_t slice, int64_t first, int64_t last,
                        float* sum);

  // per_tensor and per_token, over blocks [begin, end).
  void (*encode_blocks)(const EncodeJob& job, int64_t begin, int64_t end);
  // tile_2d, over 16x16 tiles [begin, end), row-major.
  void (*encode_tiles)(const EncodeJob& job, int64_t begin, int64_t end);

  // Over blocks [begin, end).
  SweepCounts (*scale_sweep)(const SweepJob& job, int64_t begin, int64_t end);
  SweepCounts (*multiplier_search)(const MultiplierJob& job, int64_t begin, int64_t end);
  // Over rows [begin, end).
  SweepCounts (*scale_sweep_hessian)(const SweepJob& job, int64_t begin, int64_t end);
  void (*hessian_feedback)(const FeedbackJob& job, int64_t begin, int64_t end);

  // What MeasureBlock says of blocks [begin, end), into errors[0] and following. Of blocks whose
  // squared_y is not finite the rest is unspecified.
  void (*measure_blocks)(const MeasureJob& job, int64_t begin, int64_t end, BlockError* errors);
};

// The reference: one function of quant/numerics after another.
const CpuKernels& ScalarKernels();

// The best instruction set of this machine.
const CpuKernels& SimdKernels();
// Every instruction set that this machine can run and this build has, best first.
const std::vector<const CpuKernels*>& AllSimdKernels();

// One element as float32, exactly.
inline float LoadElement(DType dtype, const void* data, int64_t index) {
  const char* p = static_cast<const char*>(data) + index * (dtype == DType::kF32 ? 4 : 2);
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, p, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return dtype == DType::kBf16 ? FloatFromBf16(bits) : FloatFromF16(bits);
}

// Sixteen from `index` on.
inline void LoadBlock(const MatrixView& x, int64_t index, float out[kBlockSize]) {
  for (int i = 0; i < kBlockSize; ++i) out[i] = LoadElement(x.dtype, x.data, index + i);
}

inline float BlockAmax(const float x[kBlockSize]) {
  float amax = 0.0f;
  for (int i = 0; i < kBlockSize; ++i) amax = Max(amax, Abs(x[i]));
  return amax;
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_CPU_KERNELS_H_
