#include "bench/gpu_products.h"

namespace nibble {

double GpuProductSeconds(int, DType, const std::vector<ProductShape>&) { return 0; }

}  // namespace nibble
