// What the tests of the CUDA kernels share: the device or a printed reason to skip, memory on it,
// and launches replayed from a graph.
#ifndef NIBBLE_TESTS_TESTING_CUDA_H_
#define NIBBLE_TESTS_TESTING_CUDA_H_

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"

namespace nibble::testing {

inline constexpr DType kInputDTypes[] = {DType::kBf16, DType::kF16, DType::kF32};

// Device memory that frees itself; copies to and from it are synchronous.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count) : count_(count) {
    void* data = nullptr;
    EXPECT_EQ(cudaMalloc(&data, count * sizeof(T) + 16), cudaSuccess);
    data_ = static_cast<T*>(data);
  }
  explicit DeviceArray(std::span<const T> values) : DeviceArray(values.size()) { Set(values); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  T* get() const { return data_; }
  void Set(std::span<const T> values) {
    ASSERT_EQ(static_cast<int64_t>(values.size()), count_);
    ASSERT_EQ(cudaMemcpy(data_, values.data(), values.size_bytes(), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  // Every byte, so that what a kernel does not write shows.
  void Fill(uint8_t byte) { ASSERT_EQ(cudaMemset(data_, byte, count_ * sizeof(T)), cudaSuccess); }
  std::vector<T> Get() const {
    std::vector<T> values(count_);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }

 private:
  T* data_ = nullptr;
  int64_t count_;
};

// Captures `launch` in a graph, calls `refresh` (which puts other data where the launch reads),
// replays the graph and waits.
inline void ReplayFromGraph(const std::function<cudaError_t(cudaStream_t)>& launch,
                            const std::function<void()>& refresh) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_EQ(launch(stream), cudaSuccess);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  refresh();
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

// Skips its tests, with the reason, where there is no device.
class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto backend = MakeBackend("cuda:0");
    if (!backend.ok()) GTEST_SKIP() << backend.status().message();
    cuda_ = std::move(*backend);
  }

  std::unique_ptr<Backend> cpu_ = *MakeBackend("cpu");
  std::unique_ptr<Backend> cuda_;
};

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_CUDA_H_
