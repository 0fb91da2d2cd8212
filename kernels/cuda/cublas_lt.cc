#include "kernels/cuda/cublas_lt.h"

#include <dlfcn.h>

#include <type_traits>

#include "base/status.h"
#include "base/text.h"

namespace nibble {

CublasLt::CublasLt() {
  const std::string name = absl::StrCat("libcublasLt.so.", CUBLAS_VER_MAJOR);
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    error_ = dlerror();
    return;
  }
  const auto find = [&](const char* symbol, auto& function) {
    function =
        reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
    if (function == nullptr && error_.empty()) error_ = absl::StrCat("one without ", symbol);
  };
  find("cublasLtCreate", Create);
  find("cublasLtDestroy", Destroy);
  find("cublasLtGetStatusString", GetStatusString);
  find("cublasLtMatmul", Matmul);
  find("cublasLtMatmulAlgoGetHeuristic", MatmulAlgoGetHeuristic);
  find("cublasLtMatmulDescCreate", MatmulDescCreate);
  find("cublasLtMatmulDescDestroy", MatmulDescDestroy);
  find("cublasLtMatmulDescSetAttribute", MatmulDescSetAttribute);
  find("cublasLtMatmulPreferenceCreate", MatmulPreferenceCreate);
  find("cublasLtMatmulPreferenceDestroy", MatmulPreferenceDestroy);
  find("cublasLtMatmulPreferenceSetAttribute", MatmulPreferenceSetAttribute);
  find("cublasLtMatrixLayoutCreate", MatrixLayoutCreate);
  find("cublasLtMatrixLayoutDestroy", MatrixLayoutDestroy);
}

absl::StatusOr<const CublasLt*> CublasLt::Open(std::string_view user) {
  static const CublasLt library;
  if (library.error_.empty()) return &library;
  return absl::UnavailableError(absl::StrCat(
      ToAbsl(user), ": expected cuBLASLt ", CUBLAS_VER_MAJOR, " in the library path, got ",
      library.error_,
      "; install the CUDA toolkit's libcublas, or name its folder in LD_LIBRARY_PATH"));
}

cublasStatus_t CublasLt::ChooseAlgorithm(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                                         cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                         cublasLtMatrixLayout_t d, size_t workspace_bytes,
                                         cublasLtMatmulAlgo_t& algorithm) const {
  cublasLtMatmulPreference_t preference;
  cublasStatus_t status = MatmulPreferenceCreate(&preference);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  MatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                               &workspace_bytes, sizeof(workspace_bytes));
  cublasLtMatmulHeuristicResult_t found;
  int count = 0;
  status = MatmulAlgoGetHeuristic(handle, operation, a, b, d, d, preference, 1, &found, &count);
  MatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (count == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
  algorithm = found.algo;
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace nibble
