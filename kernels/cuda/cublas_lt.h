// cuBLASLt, opened when it is first asked for: half a gigabyte that no program of ours should need
// in order to start.
#ifndef NIBBLE_KERNELS_CUDA_CUBLAS_LT_H_
#define NIBBLE_KERNELS_CUDA_CUBLAS_LT_H_

#include <cublasLt.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace nibble {

// Its functions, of the major version that this was compiled for.
class CublasLt {
 public:
  // Unavailable, naming `user`, where there is none. Stays open: its threads and memory outlive any
  // user.
  static absl::StatusOr<const CublasLt*> Open(std::string_view user);

  // The first choice of its heuristics for D = op(A) op(B), C being D; NOT_SUPPORTED where it has
  // none.
  cublasStatus_t ChooseAlgorithm(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                                 cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                 cublasLtMatrixLayout_t d, size_t workspace_bytes,
                                 cublasLtMatmulAlgo_t& algorithm) const;

  decltype(&cublasLtCreate) Create;
  decltype(&cublasLtDestroy) Destroy;
  decltype(&cublasLtGetStatusString) GetStatusString;
  decltype(&cublasLtMatmul) Matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) MatmulAlgoGetHeuristic;
  decltype(&cublasLtMatmulDescCreate) MatmulDescCreate;
  decltype(&cublasLtMatmulDescDestroy) MatmulDescDestroy;
  decltype(&cublasLtMatmulDescSetAttribute) MatmulDescSetAttribute;
  decltype(&cublasLtMatmulPreferenceCreate) MatmulPreferenceCreate;
  decltype(&cublasLtMatmulPreferenceDestroy) MatmulPreferenceDestroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) MatmulPreferenceSetAttribute;
  decltype(&cublasLtMatrixLayoutCreate) MatrixLayoutCreate;
  decltype(&cublasLtMatrixLayoutDestroy) MatrixLayoutDestroy;

 private:
  CublasLt();

  std::string error_;
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_CUBLAS_LT_H_
