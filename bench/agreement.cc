// How often the fast error path of 4over6 picks the scale that the strict one picks: N(0, 1),
// 8192 x 7168. Prints a Markdown table.
//
//   build/release/bench/agreement [BACKEND]
#include <cstdio>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "kernels/backend.h"

namespace nibble {
namespace {

// Percent of equal scales.
double Agreement(Backend& backend, QuantizeParams params, const MatrixView& x) {
  PackedTensor packed[2] = {PackedTensor(LayoutOf(params, x.rows, x.cols)),
                            PackedTensor(LayoutOf(params, x.rows, x.cols))};
  for (ErrorPath path : {ErrorPath::kStrict, ErrorPath::kFast}) {
    params.four_over_six->path = path;
    const auto status =
        backend.Quantize(params, x, packed[path == ErrorPath::kFast].mutable_view());
    if (!status.ok()) {
      std::fprintf(stderr, "agreement: %s\n", std::string(status.message()).c_str());
      std::exit(1);
    }
  }
  int64_t same = 0;
  const int64_t blocks = packed[0].layout.blocks();
  for (int64_t b = 0; b < blocks; ++b) same += packed[0].scale[b] == packed[1].scale[b];
  return 100.0 * static_cast<double>(same) / static_cast<double>(blocks);
}

void PrintTable(Backend& backend) {
  constexpr int64_t kRows = 8192, kCols = 7168;
  std::printf("%s\n\n| data | metric | bound | per_tensor | per_token | tile_2d |\n",
              backend.name().c_str());
  std::printf("|---|---|---|---|---|---|\n");
  const std::vector<float> values = SyntheticValues(Distribution::kNormal, kRows * kCols, 1);
  for (DType dtype : {DType::kBf16, DType::kF16}) {
    const std::vector<std::byte> bytes = ToBytes(values, dtype);
    const MatrixView x = {bytes.data(), dtype, kRows, kCols};
    for (ErrorMetric metric : {ErrorMetric::kMae, ErrorMetric::kMse}) {
      for (int bound : {256, 448}) {
        std::printf("| %s | %s | %d |", DTypeName(dtype).data(), NameOf(metric).data(), bound);
        for (Scheme scheme : {Scheme::kPerTensor, Scheme::kPerToken, Scheme::kTile2d}) {
          QuantizeParams params;
          params.scheme = scheme;
          params.four_over_six = FourOverSix{metric, ErrorPath::kStrict};
          params.e4m3_max = bound;
          std::printf(" %.4f %% |", Agreement(backend, params, x));
        }
        std::printf("\n");
        std::fflush(stdout);
      }
    }
  }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  auto backend = nibble::MakeBackend(argc > 1 ? argv[1] : "auto");
  if (!backend.ok()) {
    std::fprintf(stderr, "agreement: %s\n", std::string(backend.status().message()).c_str());
    return 1;
  }
  nibble::PrintTable(**backend);
  return 0;
}
