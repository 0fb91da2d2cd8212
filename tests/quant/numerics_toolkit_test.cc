// Every one of the 2^32 floats through both encoders, against the CUDA toolkit's host conversions.
// They need the toolkit's headers only, no GPU.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <string>

#include "base/parallel_for.h"
#include "gtest/gtest.h"
#include "quant/numerics/e2m1.h"
#include "quant/numerics/e2m1_convert.h"
#include "quant/numerics/e4m3.h"
#include "quant/numerics/float_bits.h"
#include "tests/testing/sanitizers.h"

#if __has_include(<cuda_fp4.h>)
#include <cuda_fp4.h>
#include <cuda_fp8.h>
#define NIBBLE_HAS_CUDA_HEADERS 1
#else
#define NIBBLE_HAS_CUDA_HEADERS 0
#endif

namespace nibble {
namespace {

constexpr int64_t kStep = ::nibble::testing::kSanitized ? 61 : 1;

// Calls differs(float) on all floats (under sanitizers, on one of 61); returns how many times it
// said yes, and the first such bits.
struct Outcome {
  int64_t different = 0;
  uint32_t first = 0;
};

template <typename Differs>
Outcome ForAllFloats(const Differs& differs) {
  if (kStep != 1) std::printf("one float of 61, as sanitizers are slow\n");
  std::mutex mutex;
  Outcome outcome;
  ThreadPool pool;
  pool.ParallelFor(int64_t{1} << 32, 1 << 22, [&](int64_t begin, int64_t end) {
    int64_t different = 0;
    uint32_t first = 0;
    for (int64_t bits = begin; bits < end; bits += kStep) {
      if (!differs(FloatFromBits(static_cast<uint32_t>(bits)))) continue;
      if (different++ == 0) first = static_cast<uint32_t>(bits);
    }
    if (different == 0) return;
    std::lock_guard lock(mutex);
    if (outcome.different == 0 || first < outcome.first) outcome.first = first;
    outcome.different += different;
  });
  return outcome;
}

TEST(NumericsToolkitTest, SeesADifference) {
  const Outcome outcome = ForAllFloats([](float x) { return FloatBits(x) % 0x40000000u == 61; });
  EXPECT_EQ(outcome.different, 4);
  EXPECT_EQ(outcome.first, 61u);
}

#if NIBBLE_HAS_CUDA_HEADERS

TEST(NumericsToolkitTest, E2m1EncodesAllFloats) {
  const Outcome outcome = ForAllFloats([](float x) {
    uint8_t expected = __nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest);
    // The contract's two canonical forms: -0.0 is code 0, NaN is the largest magnitude.
    if (x == 0.0f) expected = 0;
    if (x != x) expected = 7;
    return E2m1Encode(x) != expected;
  });
  EXPECT_EQ(outcome.different, 0) << std::hex << outcome.first;
}

TEST(NumericsToolkitTest, ConvertsAllFloatsToE2m1AsTheInstructionDoes) {
  const Outcome outcome = ForAllFloats([](float x) {
    if (FloatBits(x) % 8 != 0) return false;  // eight neighbours at a time
    float v[8];
    uint32_t expected = 0;
    for (uint32_t i = 0; i < 8; ++i) {
      v[i] = FloatFromBits(FloatBits(x) + i);
      expected |= uint32_t{__nv_cvt_float_to_fp4(v[i], __NV_E2M1, cudaRoundNearest)} << (4 * i);
    }
    return ConvertToE2m1(v) != expected;
  });
  EXPECT_EQ(outcome.different, 0) << std::hex << outcome.first;
}

TEST(NumericsToolkitTest, E4m3EncodesAllFloats) {
  const Outcome outcome = ForAllFloats([](float x) {
    const uint8_t expected = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
    if (x != x) return (E4m3Encode(x) & 0x7F) != 0x7F || (expected & 0x7F) != 0x7F;
    return E4m3Encode(x) != expected;
  });
  EXPECT_EQ(outcome.different, 0) << std::hex << outcome.first;
}

#else

TEST(NumericsToolkitTest, EncodesAllFloats) {
  GTEST_SKIP() << "cuda_fp4.h and cuda_fp8.h are not installed: nothing to compare with";
}

#endif

}  // namespace
}  // namespace nibble
