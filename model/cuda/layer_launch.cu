#include <algorithm>

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/warp.cuh"
#include "model/cuda/layer_launch.h"
#include "quant/numerics/float_bits.h"

namespace nibble {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;

// Consecutive values of one thread, so that it reads 16 bytes at a time where counts allow.
template <int kVec>
struct alignas(4 * kVec) Floats {
  float v[kVec];
};

template <int kVec>
__device__ __forceinline__ Floats<kVec> Load(const float* p) {
  return *reinterpret_cast<const Floats<kVec>*>(p);
}

template <int kVec>
__device__ __forceinline__ void Store(float* p, const Floats<kVec>& x) {
  *reinterpret_cast<Floats<kVec>*>(p) = x;
}

template <int kVec>
struct alignas(2 * kVec) Halves {
  uint16_t v[kVec];
};

template <int kVec>
__device__ __forceinline__ void StoreBf16(uint16_t* p, const Floats<kVec>& x) {
  Halves<kVec> h;
#pragma unroll
  for (int i = 0; i < kVec; ++i) h.v[i] = Bf16FromFloat(x.v[i]);
  *reinterpret_cast<Halves<kVec>*>(p) = h;
}

template <int kVec, bool kBf16>
__device__ __forceinline__ void StoreInput(void* out, int64_t i, const Floats<kVec>& x) {
  if constexpr (kBf16) {
    StoreBf16<kVec>(static_cast<uint16_t*>(out) + i, x);
  } else {
    Store<kVec>(static_cast<float*>(out) + i, x);
  }
}

unsigned Blocks(int64_t work) {
  return static_cast<unsigned>(std::min((work + kThreads - 1) / kThreads, kMostBlocks));
}

// Calls launch(std::integral_constant) with 4 where all of `counts` are multiples of it, else 1.
template <typename Launch, typename... Count>
cudaError_t DispatchVec(const Launch& launch, Count... counts) {
  if (((counts % 4 == 0) && ...)) {
    launch(std::integral_constant<int, 4>{});
  } else {
    launch(std::integral_constant<int, 1>{});
  }
  return cudaGetLastError();
}

template <typename Launch>
void DispatchBool(bool value, const Launch& launch) {
  if (value) {
    launch(std::true_type{});
  } else {
    launch(std::false_type{});
  }
}

__device__ __forceinline__ int64_t FirstThread() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t AllThreads() { return int64_t{gridDim.x} * blockDim.x; }

// kRowThreads share a row: each adds up its own squares in the order of columns, then they join as
// a tree.
template <int kRowThreads, int kVec, bool kBf16>
__global__ void __launch_bounds__(kThreads) RmsNormKernel(RmsNormArgs args) {
  constexpr int kRows = kThreads / kRowThreads;
  __shared__ float of_warp[kThreads / 32];
  const int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / kRowThreads;
  if (kRowThreads == 32 && row >= args.rows) return;
  const float* x = args.x + row * args.cols;
  const int first = threadIdx.x % kRowThreads * kVec;
  const int cols = static_cast<int>(args.cols);
  float sum = 0;
  for (int i = first; i < cols; i += kRowThreads * kVec) {
    const Floats<kVec> v = Load<kVec>(x + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) sum += v.v[j] * v.v[j];
  }
#pragma unroll
  for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, half);
  if constexpr (kRowThreads > 32) {
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = of_warp[0];
#pragma unroll
    for (int w = 1; w < kThreads / 32; ++w) sum += of_warp[w];
  }
  const float factor = DivRn(1.0f, sqrtf(sum / static_cast<float>(cols) + args.eps));
  for (int i = first; i < cols; i += kRowThreads * kVec) {
    Floats<kVec> v = Load<kVec>(x + i);
    const Floats<kVec> weight = Load<kVec>(args.weight + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) v.v[j] = weight.v[j] * (v.v[j] * factor);
    StoreInput<kVec, kBf16>(args.out.out, row * args.cols + i, v);
  }
}

template <int kVec>
__global__ void __launch_bounds__(kThreads) RopeKernel(RopeArgs args) {
  const int half = static_cast<int>(args.half);
  const int pieces = half / kVec, all = static_cast<int>(args.heads) * pieces;
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const int64_t angle = int64_t{args.position[row]} * half;
    float* x = args.x + row * args.heads * 2 * half;
    for (int piece = threadIdx.x; piece < all; piece += kThreads) {
      const int i = piece % pieces * kVec;
      float* low = x + piece / pieces * 2 * half + i;
      const Floats<kVec> cos = Load<kVec>(args.cos + angle + i);
      const Floats<kVec> sin = Load<kVec>(args.sin + angle + i);
      Floats<kVec> a = Load<kVec>(low), b = Load<kVec>(low + half);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const float turned = a.v[j] * cos.v[j] - b.v[j] * sin.v[j];
        b.v[j] = b.v[j] * cos.v[j] + a.v[j] * sin.v[j];
        a.v[j] = turned;
      }
      Store<kVec>(low, a);
      Store<kVec>(low + half, b);
    }
  }
}

template <int kVec, bool kBf16>
__global__ void __launch_bounds__(kThreads)
    SwiGluKernel(const float* gate, const float* up, int64_t count, void* out) {
  for (int64_t i = FirstThread() * kVec; i < count; i += AllThreads() * kVec) {
    Floats<kVec> g = Load<kVec>(gate + i);
    const Floats<kVec> u = Load<kVec>(up + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) g.v[j] = g.v[j] / (1.0f + expf(-g.v[j])) * u.v[j];
    StoreInput<kVec, kBf16>(out, i, g);
  }
}

template <int kVec>
__global__ void __launch_bounds__(kThreads) AddKernel(float* x, const float* y, int64_t count) {
  for (int64_t i = FirstThread() * kVec; i < count; i += AllThreads() * kVec) {
    Floats<kVec> a = Load<kVec>(x + i);
    const Floats<kVec> b = Load<kVec>(y + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) a.v[j] = AddRn(a.v[j], b.v[j]);
    Store<kVec>(x + i, a);
  }
}

template <int kVec>
__global__ void __launch_bounds__(kThreads)
    AddBiasKernel(float* x, const float* bias, int64_t rows, int64_t cols) {
  for (int64_t i = FirstThread() * kVec; i < rows * cols; i += AllThreads() * kVec) {
    Floats<kVec> a = Load<kVec>(x + i);
    const Floats<kVec> b = Load<kVec>(bias + i % cols);
#pragma unroll
    for (int j = 0; j < kVec; ++j) a.v[j] = AddRn(a.v[j], b.v[j]);
    Store<kVec>(x + i, a);
  }
}

template <typename Word>
__global__ void __launch_bounds__(kThreads)
    GatherKernel(const Word* x, const int64_t* row, int64_t rows, int64_t row_words, Word* out) {
  for (int64_t i = FirstThread(); i < rows * row_words; i += AllThreads()) {
    out[i] = x[row[i / row_words] * row_words + i % row_words];
  }
}

template <int kVec>
__global__ void __launch_bounds__(kThreads) AddScaledRowsKernel(const AddScaledRowsArgs args) {
  const int64_t words = args.cols / kVec;
  for (int64_t t = FirstThread(); t < args.rows * words; t += AllThreads()) {
    const int64_t j = t / words, column = t % words * kVec;
    float* const to = args.out + args.row[j] * args.cols + column;
    Floats<kVec> sum = Load<kVec>(to);
    for (int64_t i = args.first[j]; i < args.first[j + 1]; ++i) {
      const Floats<kVec> x = Load<kVec>(args.x + args.from[i] * args.cols + column);
#pragma unroll
      for (int v = 0; v < kVec; ++v) sum.v[v] = AddRn(sum.v[v], MulRn(args.weight[i], x.v[v]));
    }
    Store<kVec>(to, sum);
  }
}

template <typename T>
__device__ __forceinline__ float ElementOf(const void* x, int64_t i) {
  if constexpr (std::is_same_v<T, F32>) {
    return static_cast<const float*>(x)[i];
  } else if constexpr (std::is_same_v<T, Bf16>) {
    return FloatFromBf16(static_cast<const uint16_t*>(x)[i]);
  } else {
    return FloatFromF16(static_cast<const uint16_t*>(x)[i]);
  }
}

template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads) WidenKernel(const void* x, int64_t count, float* out) {
  for (int64_t i = FirstThread() * kVec; i < count; i += AllThreads() * kVec) {
    Floats<kVec> v;
#pragma unroll
    for (int j = 0; j < kVec; ++j) v.v[j] = ElementOf<T>(x, i + j);
    Store<kVec>(out + i, v);
  }
}

template <int kVec>
__global__ void __launch_bounds__(kThreads)
    ToBf16Kernel(const float* x, int64_t count, uint16_t* out) {
  for (int64_t i = FirstThread() * kVec; i < count; i += AllThreads() * kVec) {
    StoreBf16<kVec>(out + i, Load<kVec>(x + i));
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    SplitKernel(const void* x, int64_t count, uint16_t* high, uint16_t* low) {
  for (int64_t i = FirstThread(); i < count; i += AllThreads()) {
    const float v = ElementOf<T>(x, i);
    const uint16_t h = Bf16FromFloat(v);
    high[i] = h;
    low[i] = Bf16FromFloat(SubRn(v, FloatFromBf16(h)));
  }
}

template <int kVec>
__global__ void __launch_bounds__(kThreads)
    FindNonFiniteKernel(const float* x, int64_t count, unsigned long long* first) {
  for (int64_t i = FirstThread() * kVec; i < count; i += AllThreads() * kVec) {
    const Floats<kVec> v = Load<kVec>(x + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      if (!IsFinite(v.v[j])) atomicMin(first, static_cast<unsigned long long>(i + j));
    }
  }
}

}  // namespace

cudaError_t LaunchRmsNorm(const RmsNormArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  return DispatchVec(
      [&](auto vec) {
        DispatchBool(args.out.bf16, [&](auto bf16) {
          // Where a row is short, a warp does.
          if (args.cols <= 1024) {
            constexpr int kRows = kThreads / 32;
            const unsigned blocks = static_cast<unsigned>((args.rows + kRows - 1) / kRows);
            RmsNormKernel<32, vec, bf16><<<blocks, kThreads, 0, stream>>>(args);
          } else {
            RmsNormKernel<kThreads, vec, bf16>
                <<<static_cast<unsigned>(args.rows), kThreads, 0, stream>>>(args);
          }
        });
      },
      args.cols);
}

cudaError_t LaunchRope(const RopeArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  const unsigned blocks = static_cast<unsigned>(std::min(args.rows, kMostBlocks));
  return DispatchVec([&](auto vec) { RopeKernel<vec><<<blocks, kThreads, 0, stream>>>(args); },
                     args.half);
}

cudaError_t LaunchSwiGlu(const float* gate, const float* up, int64_t count,
                         const LinearInputArgs& out, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return DispatchVec(
      [&](auto vec) {
        DispatchBool(out.bf16, [&](auto bf16) {
          SwiGluKernel<vec, bf16>
              <<<Blocks(count / vec), kThreads, 0, stream>>>(gate, up, count, out.out);
        });
      },
      count);
}

cudaError_t LaunchAdd(float* x, const float* y, int64_t count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return DispatchVec(
      [&](auto vec) { AddKernel<vec><<<Blocks(count / vec), kThreads, 0, stream>>>(x, y, count); },
      count);
}

cudaError_t LaunchAddBias(float* x, const float* bias, int64_t rows, int64_t cols,
                          cudaStream_t stream) {
  if (rows * cols == 0) return cudaSuccess;
  return DispatchVec(
      [&](auto vec) {
        AddBiasKernel<vec><<<Blocks(rows * cols / vec), kThreads, 0, stream>>>(x, bias, rows, cols);
      },
      cols);
}

cudaError_t LaunchGather(const void* x, const int64_t* row, int64_t rows, int64_t row_bytes,
                         void* out, cudaStream_t stream) {
  if (rows * row_bytes == 0) return cudaSuccess;
  const auto launch = [&](auto word) {
    using Word = decltype(word);
    const int64_t words = row_bytes / static_cast<int64_t>(sizeof(Word));
    GatherKernel<Word><<<Blocks(rows * words), kThreads, 0, stream>>>(
        static_cast<const Word*>(x), row, rows, words, static_cast<Word*>(out));
  };
  if (row_bytes % 16 == 0) {
    launch(uint4{});
  } else {
    launch(uint16_t{});
  }
  return cudaGetLastError();
}

cudaError_t LaunchAddScaledRows(const AddScaledRowsArgs& args, cudaStream_t stream) {
  if (args.rows * args.cols == 0) return cudaSuccess;
  return DispatchVec(
      [&](auto vec) {
        AddScaledRowsKernel<vec>
            <<<Blocks(args.rows * args.cols / vec), kThreads, 0, stream>>>(args);
      },
      args.cols);
}

cudaError_t LaunchWiden(DType dtype, const void* x, int64_t count, float* out,
                        cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return DispatchInput(dtype, [&](auto type) {
    DispatchVec(
        [&](auto vec) {
          WidenKernel<decltype(type), vec>
              <<<Blocks(count / vec), kThreads, 0, stream>>>(x, count, out);
        },
        count);
  });
}

cudaError_t LaunchToBf16(const float* x, int64_t count, uint16_t* out, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return DispatchVec(
      [&](auto vec) {
        ToBf16Kernel<vec><<<Blocks(count / vec), kThreads, 0, stream>>>(x, count, out);
      },
      count);
}

cudaError_t LaunchSplit(DType dtype, const void* x, int64_t count, uint16_t* high, uint16_t* low,
                        cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return DispatchInput(dtype, [&](auto type) {
    SplitKernel<decltype(type)><<<Blocks(count), kThreads, 0, stream>>>(x, count, high, low);
  });
}

cudaError_t LaunchFindNonFinite(const float* x, int64_t count, unsigned long long* first,
                                cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return DispatchVec(
      [&](auto vec) {
        FindNonFiniteKernel<vec><<<Blocks(count / vec), kThreads, 0, stream>>>(x, count, first);
      },
      count);
}

}  // namespace nibble
