// The small kernels of a decoder's layer: raw device pointers aligned to 256 bytes, a stream. No
// allocation, no synchronisation; may be captured in a graph. Each result depends on its own row or
// element alone, computed in one order.
#ifndef NIBBLE_MODEL_CUDA_LAYER_LAUNCH_H_
#define NIBBLE_MODEL_CUDA_LAYER_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace nibble {

// What products read may be bf16; everything else is float32.
struct LinearInputArgs {
  void* out = nullptr;
  bool bf16 = false;  // rounded to nearest; else float32
};

struct RmsNormArgs {
  const float* x = nullptr;  // rows x cols
  const float* weight = nullptr;
  float eps = 0;
  int64_t rows = 0, cols = 0;
  LinearInputArgs out = {};  // may be x
};
cudaError_t LaunchRmsNorm(const RmsNormArgs& args, cudaStream_t stream);

struct RopeArgs {
  float* x = nullptr;                          // rows x (heads * 2 * half), turned in place
  const float *cos = nullptr, *sin = nullptr;  // positions x half
  const int32_t* position = nullptr;           // of each row
  int64_t rows = 0, heads = 0, half = 0;
};
cudaError_t LaunchRope(const RopeArgs& args, cudaStream_t stream);

// out = silu(gate) * up, element by element.
cudaError_t LaunchSwiGlu(const float* gate, const float* up, int64_t count,
                         const LinearInputArgs& out, cudaStream_t stream);

// x += y
cudaError_t LaunchAdd(float* x, const float* y, int64_t count, cudaStream_t stream);

// Each row of x += bias.
cudaError_t LaunchAddBias(float* x, const float* bias, int64_t rows, int64_t cols,
                          cudaStream_t stream);

// out[i] = x[row[i]], rows of so many bytes.
cudaError_t LaunchGather(const void* x, const int64_t* row, int64_t rows, int64_t row_bytes,
                         void* out, cudaStream_t stream);

// For each j, and one i after another in [first[j], first[j + 1]):
// out[row[j]] += weight[i] * x[from[i]], the product rounded, then the sum.
struct AddScaledRowsArgs {
  const float* x = nullptr;
  const int64_t* from = nullptr;
  const float* weight = nullptr;
  const int64_t *row = nullptr, *first = nullptr;  // rows that differ
  int64_t rows = 0, cols = 0;                      // of them
  float* out = nullptr;
};
cudaError_t LaunchAddScaledRows(const AddScaledRowsArgs& args, cudaStream_t stream);

// Of bf16, fp16 or fp32 values.
cudaError_t LaunchWiden(DType dtype, const void* x, int64_t count, float* out, cudaStream_t stream);
// Rounded to nearest.
cudaError_t LaunchToBf16(const float* x, int64_t count, uint16_t* out, cudaStream_t stream);
// high + low = x but for what is below 2^-17 of it: high the nearest bf16 value, low the nearest
// one to what is left.
cudaError_t LaunchSplit(DType dtype, const void* x, int64_t count, uint16_t* high, uint16_t* low,
                        cudaStream_t stream);

// *first = the smaller of itself and the index of the first NaN or infinity.
cudaError_t LaunchFindNonFinite(const float* x, int64_t count, unsigned long long* first,
                                cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_MODEL_CUDA_LAYER_LAUNCH_H_
