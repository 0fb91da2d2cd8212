#include "kernels/cuda/matrix_products.h"

#include <map>
#include <tuple>
#include <utility>

#include "base/status.h"
#include "base/text.h"
#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/device_buffer.h"

namespace nibble {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;
constexpr size_t kMostPlans = 1024;  // experts make a shape for each number of tokens

// What one shape needs.
struct Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t x = nullptr, w = nullptr, y = nullptr;
  cublasLtMatmulAlgo_t algorithm;
};

class CublasLtProducts final : public MatrixProducts {
 public:
  CublasLtProducts(const CublasLt& lt, cudaStream_t stream, DeviceBuffer<char> workspace)
      : lt_(lt), stream_(stream), workspace_(std::move(workspace)) {}
  ~CublasLtProducts() override {
    DropPlans();
    if (handle_ != nullptr) lt_.Destroy(handle_);
  }

  absl::Status Prepare() { return Checked(lt_.Create(&handle_), "handle"); }

  absl::Status Multiply(DType dtype, const void* x, const void* w, float* y, int64_t rows,
                        int64_t cols, int64_t depth, bool add) override {
    if (rows == 0 || cols == 0) return absl::OkStatus();
    NIBBLE_ASSIGN_OR_RETURN(const Plan* plan, PlanFor(dtype, rows, cols, depth));
    const float one = 1.0f, beta = add ? 1.0f : 0.0f;
    return Checked(
        lt_.Matmul(handle_, plan->operation, &one, w, plan->w, x, plan->x, &beta, y, plan->y, y,
                   plan->y, &plan->algorithm, workspace_.get(), kWorkspaceBytes, stream_),
        "product");
  }

 private:
  absl::Status Checked(cublasStatus_t status, const char* what) const {
    if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
    const std::string message = absl::StrCat("matrix product: ", what, ": expected success, got ",
                                             lt_.GetStatusString(status));
    return status == CUBLAS_STATUS_ALLOC_FAILED ? absl::ResourceExhaustedError(message)
                                                : absl::UnknownError(message);
  }

  void DropPlans() {
    for (auto& [shape, plan] : plans_) Drop(plan);
    plans_.clear();
  }
  void Drop(Plan& plan) const {
    for (cublasLtMatrixLayout_t layout : {plan.x, plan.w, plan.y}) {
      if (layout != nullptr) lt_.MatrixLayoutDestroy(layout);
    }
    if (plan.operation != nullptr) lt_.MatmulDescDestroy(plan.operation);
  }

  absl::StatusOr<const Plan*> PlanFor(DType dtype, int64_t rows, int64_t cols, int64_t depth) {
    const Shape shape = {dtype, rows, cols, depth};
    const auto known = plans_.find(shape);
    if (known != plans_.end()) return &known->second;
    if (plans_.size() == kMostPlans) DropPlans();
    Plan plan;
    const absl::Status status = Choose(shape, plan);
    if (!status.ok()) {
      Drop(plan);
      return status;
    }
    return &plans_.emplace(shape, plan).first->second;
  }

  using Shape = std::tuple<DType, int64_t, int64_t, int64_t>;

  absl::Status Choose(const Shape& shape, Plan& plan) const {
    const auto [dtype, rows, cols, depth] = shape;
    // cuBLAS's matrices are column-major: y^T = w x^T, and of both operands it sees the transpose.
    const cudaDataType_t type = dtype == DType::kBf16 ? CUDA_R_16BF : CUDA_R_32F;
    NIBBLE_RETURN_IF_ERROR(Checked(
        lt_.MatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "operation"));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    NIBBLE_RETURN_IF_ERROR(
        Checked(lt_.MatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                           sizeof(transposed)),
                "attribute"));
    NIBBLE_RETURN_IF_ERROR(
        Checked(lt_.MatrixLayoutCreate(&plan.w, type, depth, cols, depth), "layout"));
    NIBBLE_RETURN_IF_ERROR(
        Checked(lt_.MatrixLayoutCreate(&plan.x, type, depth, rows, depth), "layout"));
    NIBBLE_RETURN_IF_ERROR(
        Checked(lt_.MatrixLayoutCreate(&plan.y, CUDA_R_32F, cols, rows, cols), "layout"));
    const cublasStatus_t status = lt_.ChooseAlgorithm(handle_, plan.operation, plan.w, plan.x,
                                                      plan.y, kWorkspaceBytes, plan.algorithm);
    if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
    return absl::UnimplementedError(
        absl::StrCat("matrix product: expected a shape that cuBLASLt has an algorithm for, got ",
                     rows, " x ", cols, " x ", depth, " of ", ToAbsl(DTypeName(dtype)), " (",
                     lt_.GetStatusString(status), ")"));
  }

  const CublasLt& lt_;
  const cudaStream_t stream_;
  const DeviceBuffer<char> workspace_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<Shape, Plan> plans_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MatrixProducts>> MatrixProducts::Make(cudaStream_t stream) {
  NIBBLE_ASSIGN_OR_RETURN(const CublasLt* lt, CublasLt::Open("matrix product"));
  NIBBLE_ASSIGN_OR_RETURN(auto workspace, DeviceBuffer<char>::Make(kWorkspaceBytes, stream));
  auto products = std::make_unique<CublasLtProducts>(*lt, stream, std::move(workspace));
  NIBBLE_RETURN_IF_ERROR(products->Prepare());
  return products;
}

}  // namespace nibble
