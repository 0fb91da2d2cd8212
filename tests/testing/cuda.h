// What the tests of the CUDA kernels share: the device or a printed reason to skip, memory on it,
// and launches replayed from a graph.
#ifndef NIBBLE_TESTS_TESTING_CUDA_H_
#define NIBBLE_TESTS_TESTING_CUDA_H_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cuda/packed_args.h"
#include "kernels/cuda/tunable_ops.h"
#include "kernels/cuda/tuning_device.h"
#include "tests/testing/params.h"

namespace nibble::testing {

// Device memory that frees itself; copies to and from it are done when they return. Fresh memory is
// no copy of what an earlier array left there, so that what a kernel does not write shows.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count) : count_(count) {
    void* data = nullptr;
    EXPECT_EQ(cudaMalloc(&data, count * sizeof(T) + 16), cudaSuccess);
    data_ = static_cast<T*>(data);
    Fill(0xA7);
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
    WaitForIt();
  }
  // Every byte.
  void Fill(uint8_t byte) {
    ASSERT_EQ(cudaMemset(data_, byte, count_ * sizeof(T)), cudaSuccess);
    WaitForIt();
  }
  std::vector<T> Get() const {
    std::vector<T> values(count_);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }

 private:
  // Small copies and fills return before the device has done them, and the streams that read what
  // they wrote do not wait for the default one.
  static void WaitForIt() { ASSERT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess); }

  T* data_ = nullptr;
  int64_t count_;
};

// A packed tensor on the device.
class DevicePackedTensor {
 public:
  explicit DevicePackedTensor(const PackedLayout& layout)
      : packed(layout.packed_bytes()),
        scale(layout.scale_bytes()),
        amax(layout.amax_count()),
        layout_(layout) {}
  explicit DevicePackedTensor(const PackedTensor& tensor) : DevicePackedTensor(tensor.layout) {
    Set(tensor);
  }
  void Set(const PackedTensor& tensor) {
    packed.Set(tensor.packed);
    scale.Set(tensor.scale);
    amax.Set(tensor.amax);
  }
  PackedArgs args() const {
    return {
        .packed = packed.get(),
        .scale = scale.get(),
        .amax = amax.get(),
        .rows = layout_.rows,
        .blocks_per_row = layout_.blocks_per_row(),
        .amax_per_row = layout_.scheme == Scheme::kPerToken,
        .checkpoint = layout_.rule == Rule::kCheckpoint,
        .bound = static_cast<float>(layout_.e4m3_max),
        .swizzled = layout_.swizzled,
    };
  }

  DeviceArray<uint8_t> packed, scale;
  DeviceArray<float> amax;

 private:
  PackedLayout layout_;
};

// Whether the device has that much memory to give; where not, a test of huge tensors skips.
inline bool DeviceHasFree(int64_t bytes) {
  size_t free_bytes = 0, total = 0;
  return cudaMemGetInfo(&free_bytes, &total) == cudaSuccess &&
         static_cast<int64_t>(free_bytes) > bytes;
}

// Captures `launch` in a graph, calls `refresh` (which puts other data where the launch reads),
// replays the graph and waits. On a stream of its own, or on `on`, which what launches is bound to.
inline void ReplayFromGraph(const std::function<cudaError_t(cudaStream_t)>& launch,
                            const std::function<void()>& refresh, cudaStream_t on = nullptr) {
  cudaStream_t stream = on;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  if (on == nullptr) {
    ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  }
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
  if (on == nullptr) cudaStreamDestroy(stream);
}

// How many launch shapes the operation with the most of them has.
inline size_t MostConfigs() {
  size_t most = 0;
  for (const TunableOp& op : CudaTunableOps()) most = std::max(most, op.configs.size());
  return most;
}

// On the first device, with that launch shape for every operation and size; the last for operations
// that have fewer.
inline std::unique_ptr<Backend> BackendWithConfig(size_t index) {
  const std::string device = (*MakeCudaTuningDevice(0))->name();
  BackendOptions options;
  for (const TunableOp& op : CudaTunableOps()) {
    const std::string& config = op.configs[std::min(index, op.configs.size() - 1)];
    for (DType dtype : op.dtypes) {
      for (int bucket = 0; bucket < 63; ++bucket) {
        EXPECT_TRUE(options.tuning.Put({device, op.name, op.build_id, dtype, bucket}, config).ok());
      }
    }
  }
  return *MakeBackend("cuda:0", options);
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
