// Tuning on the device: every config of every tunable operation can be measured. What they compute
// is in every_config_test.cc.
#include <cmath>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/cuda/tunable_ops.h"
#include "kernels/cuda/tuning_device.h"
#include "tests/testing/cuda.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::CudaTest;
using ::nibble::testing::IsError;
using ::nibble::testing::kInputDTypes;

class CudaTuningTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (!IsSkipped()) device_ = *MakeCudaTuningDevice(0);
  }

  std::unique_ptr<TuningDevice> device_;
};

TEST_F(CudaTuningTest, MeasuresEveryConfigOfEveryOperation) {
  const std::vector<float> values = SyntheticValues(Distribution::kNormal, 1 << 16, 1);
  for (const TunableOp& op : device_->ops()) {
    for (DType dtype : op.dtypes) {
      const std::vector<std::byte> sample = ToBytes(values, dtype);
      for (int64_t rows : {16, 256, 2048}) {  // less than the sample, and more
        const auto measure = device_->Prepare(op, {dtype, rows, 512, sample});
        ASSERT_TRUE(measure.ok()) << op.name << ": " << measure.status();
        for (size_t config = 0; config < op.configs.size(); ++config) {
          const absl::StatusOr<double> cost = (*measure)(static_cast<int>(config), 0);
          ASSERT_TRUE(cost.ok()) << op.name << ": " << op.configs[config] << cost.status();
          EXPECT_GT(*cost, 0);
          EXPECT_LT(*cost, 1000);
        }
        EXPECT_FALSE((*measure)(static_cast<int>(op.configs.size()), 0).ok());
      }
    }
  }
}

TEST_F(CudaTuningTest, SaysWhereMemoryIsShort) {
  const std::vector<std::byte> sample = ToBytes({{1.0f, 2.0f}}, DType::kBf16);
  const TunableOp& op = device_->ops().front();
  EXPECT_TRUE(IsError(device_->Prepare(op, {DType::kBf16, int64_t{1} << 30, 4096, sample}),
                      absl::StatusCode::kResourceExhausted, "allocation"));
  EXPECT_TRUE(device_->Prepare(op, {DType::kBf16, 16, 16, sample}).ok());
}

}  // namespace
}  // namespace nibble
