// How long a GPU's bare matrix products take.
#ifndef NIBBLE_BENCH_GPU_PRODUCTS_H_
#define NIBBLE_BENCH_GPU_PRODUCTS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "base/dtype.h"

namespace nibble {

struct ProductShape {
  int64_t rows = 0, cols = 0, depth = 0;
};

// One after another, without what comes before the first; the median of several times. Ends the
// program where it cannot; 0 in a build without CUDA.
double GpuProductSeconds(int device, DType dtype, const std::vector<ProductShape>& shapes);

}  // namespace nibble

#endif  // NIBBLE_BENCH_GPU_PRODUCTS_H_
