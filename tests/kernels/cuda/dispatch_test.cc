#include "kernels/cuda/dispatch.h"

#include "gtest/gtest.h"

namespace nibble {
namespace {

TEST(DispatchTest, TellsWhatALaunchSaid) {
  for (DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
    EXPECT_EQ(DispatchInput(dtype, [](auto) { return cudaErrorNoKernelImageForDevice; }),
              cudaErrorNoKernelImageForDevice);
    EXPECT_EQ(DispatchInput(dtype, [](auto) { return cudaSuccess; }), cudaSuccess);
  }
  for (int index = 0; index < 3; ++index) {
    int called = -1;
    const cudaError_t error = DispatchIndex<3>(index, [&](auto i) {
      called = i;
      return i == 1 ? cudaErrorLaunchOutOfResources : cudaSuccess;
    });
    EXPECT_EQ(error, index == 1 ? cudaErrorLaunchOutOfResources : cudaSuccess);
    EXPECT_EQ(called, index);
  }
}

TEST(DispatchTest, TellsItThroughAnotherDispatch) {
  const auto launch = [](auto) {
    return DispatchIndex<2>(1, [](auto) { return cudaErrorInvalidConfiguration; });
  };
  EXPECT_EQ(DispatchInput(DType::kBf16, launch), cudaErrorInvalidConfiguration);
}

TEST(DispatchTest, RefusesWhatItDoesNotKnow) {
  const auto never = [](auto) {
    ADD_FAILURE();
    return cudaSuccess;
  };
  EXPECT_EQ(DispatchInput(DType::kU8, never), cudaErrorInvalidValue);
  EXPECT_EQ(DispatchIndex<2>(-1, never), cudaErrorInvalidValue);
  EXPECT_EQ(DispatchIndex<2>(2, never), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace nibble
