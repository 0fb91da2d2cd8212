// Embedding Nibble: choose the best block scales of a matrix, encode it, measure what it cost.
#include <cmath>
#include <cstdio>
#include <vector>

#include "kernels/backend.h"

int main() {
  constexpr int64_t kRows = 256, kCols = 1024;
  std::vector<float> weights(kRows * kCols);
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] = 0.02f * std::sin(0.37f * static_cast<float>(i)) * static_cast<float>(i % 7);
  }
  const nibble::MatrixView x = {weights.data(), nibble::DType::kF32, kRows, kCols};

  const auto backend = nibble::MakeBackend("auto");
  if (!backend.ok()) {
    std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
    return 1;
  }
  const auto sweep = (*backend)->ScaleSweep({}, x);
  if (!sweep.ok()) {
    std::fprintf(stderr, "%s\n", sweep.status().ToString().c_str());
    return 1;
  }
  const auto packed = (*backend)->QuantizeWithScales(x, sweep->global_amax, 448, sweep->code);
  if (!packed.ok()) {
    std::fprintf(stderr, "%s\n", packed.status().ToString().c_str());
    return 1;
  }
  const auto error = (*backend)->MeasureError(x, packed->view());
  if (!error.ok()) {
    std::fprintf(stderr, "%s\n", error.status().ToString().c_str());
    return 1;
  }
  std::printf("%zu bytes of codes, %zu of scales; SQNR %.2f dB on %s\n", packed->packed.size(),
              packed->scale.size(), error->sqnr_db(), (*backend)->name().c_str());
  return 0;
}
