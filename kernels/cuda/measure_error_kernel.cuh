// Error statistics on the device: a thread measures one block of 16 after another, and what it
// finds is added up without rounding, so that no order can show.
//
// A thread adds into 128-bit windows of the fixed-point sums of exact_sum.h, a warp into one digit
// a lane, a thread block in shared memory, the grid by atomic additions of carried digits.
#ifndef NIBBLE_KERNELS_CUDA_MEASURE_ERROR_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_MEASURE_ERROR_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/measure_error_launch.h"
#include "kernels/cuda/packed_decode.cuh"

namespace nibble {

// One sum of a warp.
class WarpExactSum {
 public:
  // Whether x's digits are none of this lane's window.
  __device__ __forceinline__ bool Misses(const ExactTerm& x) const {
    return x.mantissa != 0 && static_cast<unsigned>(x.shift / 32 - first_digit_) > 1u;
  }
  // Makes room for x. All 32 lanes call it.
  __device__ __forceinline__ void MoveTo(const ExactTerm& x) {
    Flush();
    if (!Misses(x)) return;
    // Upwards by as little as will do, so that a sum between two digits does not move for ever.
    const int digit = x.shift / 32;
    first_digit_ = digit < first_digit_ || first_digit_ < 0 ? digit : digit - 1;
  }
  // x is in the window. Below 53 + 63 bits each, so that 2^10 of them fit.
  __device__ __forceinline__ void Add(const ExactTerm& x) {
    const int shift = x.mantissa == 0 ? 0 : x.shift - 32 * first_digit_;
    const unsigned __int128 wide = static_cast<unsigned __int128>(x.mantissa) << shift;
    window_ += x.negative ? -wide : wide;
  }
  // Empties the windows into the lanes' digits. All 32 lanes call it.
  __device__ __forceinline__ void Flush() {
    digit_ += DigitOfWindows(static_cast<uint64_t>(window_), static_cast<uint64_t>(window_ >> 64),
                             first_digit_);
    window_ = 0;
  }
  // Digit `lane`, after Flush.
  __device__ __forceinline__ int64_t digit() const { return digit_; }

 private:
  // What this lane's digit gets from all lanes' windows. Out of line: it is rarely called.
  __device__ static __noinline__ int64_t DigitOfWindows(uint64_t low, uint64_t high,
                                                        int first_digit) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const uint32_t digits[4] = {static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32),
                                static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32)};
    const bool any = (low | high) != 0;
    int64_t sum = 0;
    unsigned left = __ballot_sync(~0u, any);
    while (left != 0) {
      const int first = __shfl_sync(~0u, first_digit, __ffs(static_cast<int>(left)) - 1);
      const bool mine = any && first_digit == first;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Halves of 16 bits, so that 32 of them do not overflow; the highest keeps the sign.
        const uint32_t digit = mine ? digits[i] : 0u;
        const int top = i == 3 ? static_cast<int32_t>(digit) >> 16 : static_cast<int>(digit >> 16);
        const int64_t upper = __reduce_add_sync(~0u, top);
        const int64_t lower = __reduce_add_sync(~0u, static_cast<int>(digit & 0xFFFFu));
        if (lane == first + i) sum += upper * 0x10000 + lower;
      }
      left &= ~__ballot_sync(~0u, mine);
    }
    return sum;
  }

  unsigned __int128 window_ = 0;  // two's complement, in units of digit first_digit_
  int first_digit_ = -4;          // no term is near
  int64_t digit_ = 0;
};

template <typename T, int kWarps, int kResident>
__global__ void __launch_bounds__(kWarps * 32, kResident)
    MeasureErrorKernel(const void* x, PackedArgs p, FastDivide row_of_block, ErrorTotals* totals) {
  constexpr int kThreads = kWarps * 32;
  constexpr int kAddsBeforeFlush = 512;
  __shared__ int64_t digits[kWarps][ErrorTotals::kSums][kExactDigits];
  __shared__ unsigned long long max_error;
  __shared__ unsigned saturated, flushed, bad_x, bad_y;
  if (threadIdx.x == 0) {
    max_error = 0;
    saturated = flushed = bad_x = bad_y = 0;
  }
  __syncthreads();
  WarpExactSum sums[ErrorTotals::kSums];
  double largest_error = 0;
  int own_saturated = 0, own_flushed = 0, own_bad_x = 0, own_bad_y = 0;
  const bool by_row = p.amax_per_row || p.swizzled;
  float global = by_row ? 0.0f : GlobalDecodeScale(p, Amax(p, 0));
  const int64_t blocks = p.blocks();
  int adds = 0;
  for (int64_t first = int64_t{blockIdx.x} * kThreads; first < blocks;
       first += int64_t{gridDim.x} * kThreads) {
    const int64_t own = first + threadIdx.x;
    const bool valid = own < blocks;
    const int64_t b = valid ? own : blocks - 1;
    int64_t offset = b;
    if (by_row) {
      const int64_t row = row_of_block(b);
      global = GlobalDecodeScale(p, Amax(p, row));
      if (p.swizzled) offset = SwizzledOffset(row, b - row * p.blocks_per_row, p.blocks_per_row);
    }
    const uint8_t scale = __ldg(p.scale + offset);
    const uint2 codes = __ldg(reinterpret_cast<const uint2*>(p.packed) + b);
    float values[kBlockSize], y[kBlockSize];
    LoadBlock<T>(x, b, values);
    const CodeDecoder decoder(scale, global);
    decoder.Decode(codes.x, reinterpret_cast<float(&)[8]>(y[0]));
    decoder.Decode(codes.y, reinterpret_cast<float(&)[8]>(y[8]));
    BlockError e = MeasureBlock(values, y, Dequantize(/*code=*/7, scale, global));
    const bool good_x = IsFinite(e.squared_x);
    const bool good_y = IsFinite(e.squared_y) && !IsNanScale(scale);
    own_bad_x += valid && !good_x;
    own_bad_y += valid && !good_y;
    if (!valid || !good_x || !good_y) e = BlockError();
    own_saturated += e.saturated;
    own_flushed += e.flushed;
    if (e.max_error > largest_error) largest_error = e.max_error;
    const ExactTerm terms[ErrorTotals::kSums] = {SplitExact(e.squared_error),
                                                 SplitExact(e.squared_x), SplitExact(e.squared_y),
                                                 SplitExact(e.product)};
    const bool full = ++adds % kAddsBeforeFlush == 0;
#pragma unroll
    for (int i = 0; i < ErrorTotals::kSums; ++i) {
      if (__any_sync(~0u, full || sums[i].Misses(terms[i]))) sums[i].MoveTo(terms[i]);
      sums[i].Add(terms[i]);
    }
  }
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int i = 0; i < ErrorTotals::kSums; ++i) {
    sums[i].Flush();
    if (lane < kExactDigits) digits[warp][i][lane] = sums[i].digit();
  }
  atomicMax(&max_error, DoubleBits(largest_error));
  atomicAdd(&saturated, static_cast<unsigned>(own_saturated));
  atomicAdd(&flushed, static_cast<unsigned>(own_flushed));
  atomicAdd(&bad_x, static_cast<unsigned>(own_bad_x));
  atomicAdd(&bad_y, static_cast<unsigned>(own_bad_y));
  __syncthreads();
  // Carried, a thread block's digits are small, so that any number of them fits.
  if (threadIdx.x < ErrorTotals::kSums) {
    int64_t(&sum)[kExactDigits] = digits[0][threadIdx.x];
    for (int w = 1; w < kWarps; ++w) {
      for (int i = 0; i < kExactDigits; ++i) sum[i] += digits[w][threadIdx.x][i];
    }
    CarryExact(sum);
  }
  __syncthreads();
  const auto add = [](void* total, int64_t value) {
    if (value != 0) {
      atomicAdd(static_cast<unsigned long long*>(total), static_cast<unsigned long long>(value));
    }
  };
  for (int i = threadIdx.x; i < ErrorTotals::kSums * kExactDigits; i += kThreads) {
    add(&totals->digits[i / kExactDigits][i % kExactDigits],
        digits[0][i / kExactDigits][i % kExactDigits]);
  }
  if (threadIdx.x == 0) {
    atomicMax(reinterpret_cast<unsigned long long*>(&totals->max_error_bits), max_error);
    add(&totals->saturated, saturated);
    add(&totals->flushed, flushed);
    add(&totals->bad_x_blocks, bad_x);
    add(&totals->bad_y_blocks, bad_y);
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_MEASURE_ERROR_KERNEL_CUH_
