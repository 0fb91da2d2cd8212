#include "kernels/cuda/check_gemm.h"

#include <optional>
#include <string>
#include <utility>

#include "base/status.h"
#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/dequantize_launch.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/post_scale_launch.h"
#include "quant/swizzle.h"

namespace nibble {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;

class CublasLtPlan final : public CheckGemmPlan {
 public:
  CublasLtPlan(const CublasLt& lt, CheckGemmPath path, int64_t rows, int64_t cols, int64_t depth)
      : lt_(lt), path_(path), rows_(rows), cols_(cols), depth_(depth) {}
  ~CublasLtPlan() override {
    for (cublasLtMatrixLayout_t layout : {a_, w_, d_}) {
      if (layout != nullptr) lt_.MatrixLayoutDestroy(layout);
    }
    if (operation_ != nullptr) lt_.MatmulDescDestroy(operation_);
    if (handle_ != nullptr) lt_.Destroy(handle_);
  }

  absl::Status Prepare() {
    if (path_ == CheckGemmPath::kBlockScaled) NIBBLE_RETURN_IF_ERROR(CheckDevice());
    if (rows_ == 0 || cols_ == 0) return absl::OkStatus();
    // cuBLAS's matrices are column-major: D^T = W * A^T, and of both operands it sees the
    // transpose.
    const cudaDataType_t type = path_ == CheckGemmPath::kBlockScaled ? CUDA_R_4F_E2M1 : CUDA_R_16BF;
    NIBBLE_RETURN_IF_ERROR(Checked(lt_.Create(&handle_), "handle"));
    NIBBLE_RETURN_IF_ERROR(
        Checked(lt_.MatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "operation"));
    NIBBLE_RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T));
    NIBBLE_RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N));
    if (path_ == CheckGemmPath::kBlockScaled) {
      const cublasLtMatmulMatrixScale_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3;
      NIBBLE_RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode));
      NIBBLE_RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode));
    }
    NIBBLE_RETURN_IF_ERROR(
        Checked(lt_.MatrixLayoutCreate(&w_, type, depth_, cols_, depth_), "layout"));
    NIBBLE_RETURN_IF_ERROR(
        Checked(lt_.MatrixLayoutCreate(&a_, type, depth_, rows_, depth_), "layout"));
    NIBBLE_RETURN_IF_ERROR(
        Checked(lt_.MatrixLayoutCreate(&d_, CUDA_R_32F, cols_, rows_, cols_), "layout"));
    NIBBLE_RETURN_IF_ERROR(Allocate(workspace_, kWorkspaceBytes));
    if (path_ == CheckGemmPath::kBlockScaled) {  // the choice may look at the pointers' alignment
      NIBBLE_RETURN_IF_ERROR(SetScales(workspace_->get(), workspace_->get()));
    }
    NIBBLE_RETURN_IF_ERROR(ChooseAlgorithm());
    NIBBLE_RETURN_IF_ERROR(Allocate(row_decode_scale_, rows_));
    NIBBLE_RETURN_IF_ERROR(Allocate(col_decode_scale_, cols_));
    if (path_ == CheckGemmPath::kDequantize) {
      NIBBLE_RETURN_IF_ERROR(Allocate(a_values_, rows_ * depth_));
      NIBBLE_RETURN_IF_ERROR(Allocate(w_values_, cols_ * depth_));
    }
    return CudaStatus(cudaStreamSynchronize(nullptr), "synchronization");
  }

  absl::Status Launch(const PackedArgs& activations, const PackedArgs& weights, float* d,
                      cudaStream_t stream) override {
    NIBBLE_RETURN_IF_ERROR(CheckOperands(activations, weights));
    if (rows_ == 0 || cols_ == 0) return absl::OkStatus();
    const void* a = activations.packed;
    const void* w = weights.packed;
    if (path_ == CheckGemmPath::kBlockScaled) {
      NIBBLE_RETURN_IF_ERROR(SetScales(activations.scale, weights.scale));
    } else {
      NIBBLE_RETURN_IF_ERROR(BlockScaledValues(activations, a_values_->get(), stream));
      NIBBLE_RETURN_IF_ERROR(BlockScaledValues(weights, w_values_->get(), stream));
      a = a_values_->get();
      w = w_values_->get();
    }
    const float one = 1.0f, zero = 0.0f;
    NIBBLE_RETURN_IF_ERROR(
        Checked(lt_.Matmul(handle_, operation_, &one, w, w_, a, a_, &zero, d, d_, d, d_,
                           &algorithm_, workspace_->get(), kWorkspaceBytes, stream),
                "product"));
    NIBBLE_CUDA_RETURN_IF_ERROR(
        LaunchGlobalDecodeScale(activations, row_decode_scale_->get(), stream));
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchGlobalDecodeScale(weights, col_decode_scale_->get(), stream));
    const PostScaleArgs args = {
        .d = d,
        .rows = rows_,
        .cols = cols_,
        .row_decode_scale = row_decode_scale_->get(),
        .col_decode_scale = col_decode_scale_->get(),
        .per_row = activations.amax_per_row,
        .per_col = weights.amax_per_row,
    };
    return CudaStatus(LaunchPostScale(DType::kF32, args, /*config=*/0, stream), "post-scale");
  }

 private:
  absl::Status Checked(cublasStatus_t status, const char* what) const {
    if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
    return absl::UnknownError(absl::StrCat("check gemm: ", what, ": expected success, got ",
                                           lt_.GetStatusString(status)));
  }
  template <typename T>
  absl::Status Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    return Checked(lt_.MatmulDescSetAttribute(operation_, attribute, &value, sizeof(value)),
                   "attribute");
  }
  absl::Status SetScales(const void* activations, const void* weights) {
    NIBBLE_RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, weights));
    return Set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, activations);
  }
  template <typename T>
  static absl::Status Allocate(std::optional<DeviceBuffer<T>>& buffer, int64_t count) {
    NIBBLE_ASSIGN_OR_RETURN(auto made, DeviceBuffer<T>::Make(count, nullptr));
    buffer.emplace(std::move(made));
    return absl::OkStatus();
  }

  static absl::Status CheckDevice() {
    int device, major, minor;
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaGetDevice(&device));
    NIBBLE_CUDA_RETURN_IF_ERROR(
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    NIBBLE_CUDA_RETURN_IF_ERROR(
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    if (major >= 10) return absl::OkStatus();
    return absl::UnavailableError(
        absl::StrCat("check gemm: expected compute capability 10.0 or above for the block-scaled "
                     "path, got ",
                     major, ".", minor));
  }

  absl::Status CheckOperands(const PackedArgs& a, const PackedArgs& w) const {
    const int64_t blocks = depth_ / kBlockSize;
    if (a.rows != rows_ || w.rows != cols_ || a.blocks_per_row != blocks ||
        w.blocks_per_row != blocks) {
      return absl::InvalidArgumentError(
          "check gemm: expected operands of the plan's shape, got others");
    }
    if (path_ == CheckGemmPath::kBlockScaled && !(a.swizzled && w.swizzled)) {
      return absl::InvalidArgumentError(
          "check gemm: expected swizzled block scales, got row-major ones");
    }
    return absl::OkStatus();
  }

  absl::Status ChooseAlgorithm() {
    const cublasStatus_t status =
        lt_.ChooseAlgorithm(handle_, operation_, w_, a_, d_, kWorkspaceBytes, algorithm_);
    if (status != CUBLAS_STATUS_SUCCESS) {
      return absl::UnimplementedError(
          absl::StrCat("check gemm: expected a shape that cuBLASLt has an algorithm for, got ",
                       rows_, " x ", cols_, " x ", depth_, " by ", std::string(NameOf(path_)), " (",
                       lt_.GetStatusString(status), ")"));
    }
    return absl::OkStatus();
  }

  static absl::Status BlockScaledValues(PackedArgs in, uint16_t* out, cudaStream_t stream) {
    in.amax = nullptr;
    return CudaStatus(LaunchDequantize(DType::kBf16, {in, out}, /*config=*/0, stream),
                      "dequantization");
  }

  const CublasLt& lt_;
  const CheckGemmPath path_;
  const int64_t rows_, cols_, depth_;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, w_ = nullptr, d_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_;
  std::optional<DeviceBuffer<char>> workspace_;
  std::optional<DeviceBuffer<float>> row_decode_scale_, col_decode_scale_;
  std::optional<DeviceBuffer<uint16_t>> a_values_, w_values_;  // bf16; of kDequantize
};

// `packed` on the device, its block scales swizzled if asked for.
struct Operand {
  std::optional<DeviceBuffer<uint8_t>> packed, scale;
  std::optional<DeviceBuffer<float>> amax;
  PackedArgs args;

  absl::Status Load(const PackedView& in, bool swizzle) {
    const PackedLayout& layout = in.layout;
    std::vector<uint8_t> swizzled;
    const uint8_t* scales = in.scale;
    int64_t scale_bytes = layout.scale_bytes();
    if (swizzle && !layout.swizzled) {
      swizzled.resize(SwizzledBytes(layout.rows, layout.blocks_per_row()));
      Swizzle({in.scale, static_cast<size_t>(layout.blocks())}, layout.rows,
              layout.blocks_per_row(), swizzled);
      scales = swizzled.data();
      scale_bytes = static_cast<int64_t>(swizzled.size());
    }
    NIBBLE_RETURN_IF_ERROR(Copy(in.packed, layout.packed_bytes(), packed));
    NIBBLE_RETURN_IF_ERROR(Copy(scales, scale_bytes, scale));
    NIBBLE_RETURN_IF_ERROR(Copy(in.amax, layout.amax_count(), amax));
    args = {
        .packed = packed->get(),
        .scale = scale->get(),
        .amax = amax->get(),
        .rows = layout.rows,
        .blocks_per_row = layout.blocks_per_row(),
        .amax_per_row = layout.scheme == Scheme::kPerToken,
        .checkpoint = layout.rule == Rule::kCheckpoint,
        .bound = static_cast<float>(layout.e4m3_max),
        .swizzled = swizzle || layout.swizzled,
    };
    return CudaStatus(cudaStreamSynchronize(nullptr), "copy to the device");
  }

  template <typename T>
  static absl::Status Copy(const T* values, int64_t count, std::optional<DeviceBuffer<T>>& out) {
    NIBBLE_ASSIGN_OR_RETURN(auto buffer, DeviceBuffer<T>::Make(count, nullptr));
    NIBBLE_RETURN_IF_ERROR(buffer.CopyFrom(values));
    out.emplace(std::move(buffer));
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<CheckGemmPlan>> CheckGemmPlan::Make(CheckGemmPath path, int64_t rows,
                                                                   int64_t cols, int64_t depth) {
  if (rows < 0 || cols < 0 || depth <= 0 || depth % kBlockSize != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("check gemm: expected rows and a positive multiple of 16 columns, got ", rows,
                     " and ", cols, " rows of ", depth));
  }
  NIBBLE_ASSIGN_OR_RETURN(const CublasLt* lt, CublasLt::Open("check gemm"));
  auto plan = std::make_unique<CublasLtPlan>(*lt, path, rows, cols, depth);
  NIBBLE_RETURN_IF_ERROR(plan->Prepare());
  return plan;
}

absl::StatusOr<std::vector<float>> CheckGemm(int device, CheckGemmPath path,
                                             const PackedView& activations,
                                             const PackedView& weights) {
  const PackedLayout &a = activations.layout, &w = weights.layout;
  if (a.cols != w.cols) {
    return absl::InvalidArgumentError(
        absl::StrCat("check gemm: expected weights of as many columns as the activations, ", a.cols,
                     ", got ", w.cols));
  }
  NIBBLE_RETURN_IF_ERROR(UseCudaDevice(device).status());
  NIBBLE_ASSIGN_OR_RETURN(const auto plan, CheckGemmPlan::Make(path, a.rows, w.rows, a.cols));
  Operand a_operand, w_operand;
  const bool swizzle = path == CheckGemmPath::kBlockScaled;
  NIBBLE_RETURN_IF_ERROR(a_operand.Load(activations, swizzle));
  NIBBLE_RETURN_IF_ERROR(w_operand.Load(weights, swizzle));
  NIBBLE_ASSIGN_OR_RETURN(const auto d, DeviceBuffer<float>::Make(a.rows * w.rows, nullptr));
  NIBBLE_RETURN_IF_ERROR(plan->Launch(a_operand.args, w_operand.args, d.get(), nullptr));
  std::vector<float> values(a.rows * w.rows);
  NIBBLE_RETURN_IF_ERROR(d.CopyTo(values.data()));
  NIBBLE_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(nullptr), "synchronization"));
  return values;
}

}  // namespace nibble
