// The CUDA backend against the reference results of tests/golden.
#include "tests/testing/golden.h"

#include "gtest/gtest.h"
#include "tests/testing/cuda.h"

namespace nibble {
namespace {

class CudaGoldenTest : public testing::CudaTest {};

TEST_F(CudaGoldenTest, QuantizeMatchesTransformerEngine) {
  testing::ExpectMatchesTransformerEngine(*cuda_);
}

}  // namespace
}  // namespace nibble
