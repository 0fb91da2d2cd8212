#include "tests/testing/golden.h"

#include "tests/testing/bytes.h"

namespace nibble::testing {

int CountDifferentCodes(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
  int different = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    different += (a[i] & 0xF) != (b[i] & 0xF);
    different += (a[i] >> 4) != (b[i] >> 4);
  }
  return different;
}

int CheckTransformerEngineCases(Backend& backend,
                                const std::function<bool(const QuantizeParams&)>& wanted) {
  int cases = 0;
  for (const char* file_name : {"te_shared.safetensors", "te_col_shared.safetensors"}) {
    const GoldenFile file(file_name);
    for (const std::string& name : file.cases()) {
      SCOPED_TRACE(name);
      const GoldenCase c(name);
      if (!wanted(c.params)) continue;
      const GoldenMatrix x(file, c.x);
      const auto packed = backend.Quantize(c.params, x.view);
      ++cases;
      EXPECT_TRUE(packed.ok()) << packed.status();
      if (!packed.ok()) continue;
      const auto expected = file.Read<uint8_t>(name + ".packed");
      if (c.params.rht == Rht::kNone) {
        EXPECT_TRUE(SameBytes(file.Read<float>(name + ".amax"), packed->amax));
        EXPECT_TRUE(SameBytes(file.Read<uint8_t>(name + ".scale"), packed->scale));
        EXPECT_TRUE(SameBytes(expected, packed->packed));
      } else {
        // The reference does not fix its summation order.
        const auto amax = file.Read<float>(name + ".amax");
        const auto scale = file.Read<uint8_t>(name + ".scale");
        EXPECT_EQ(amax.size(), packed->amax.size());
        EXPECT_EQ(scale.size(), packed->scale.size());
        EXPECT_EQ(expected.size(), packed->packed.size());
        if (::testing::Test::HasFailure()) continue;
        for (size_t i = 0; i < amax.size(); ++i) EXPECT_FLOAT_EQ(amax[i], packed->amax[i]);
        int different = 0;
        for (size_t i = 0; i < scale.size(); ++i) different += scale[i] != packed->scale[i];
        EXPECT_LE(different, 0.002 * scale.size());
        EXPECT_LE(CountDifferentCodes(expected, packed->packed), 0.002 * 2 * expected.size());
      }
      if (file.Has(name + ".swizzled_scale")) {
        QuantizeParams swizzled = c.params;
        swizzled.swizzle = true;
        EXPECT_TRUE(SameBytes(file.Read<uint8_t>(name + ".swizzled_scale"),
                              backend.Quantize(swizzled, x.view)->scale));
      }
    }
  }
  return cases;
}

void CheckSwizzledScales(Backend& backend) {
  const GoldenFile file("te_col_shared.safetensors");
  for (const std::string data : {"gauss", "outlier", "zeros"}) {
    SCOPED_TRACE(data);
    const std::string name = data + ".bf16.tensor.none.448";
    const GoldenMatrix x(file, data + ".bf16.x");
    QuantizeParams params;
    EXPECT_TRUE(
        SameBytes(file.Read<uint8_t>(name + ".scale"), backend.Quantize(params, x.view)->scale));
    params.swizzle = true;
    EXPECT_TRUE(SameBytes(file.Read<uint8_t>(name + ".swizzled_scale"),
                          backend.Quantize(params, x.view)->scale));
  }
}

void CheckModelOptimizerExports(Backend& backend) {
  const GoldenFile file("mo_shared.safetensors");
  for (const std::string& name : file.cases()) {
    if (name == "allzero.bf16") continue;  // the reference divides 0 by 0
    SCOPED_TRACE(name);
    const GoldenMatrix x(file, name + ".x");
    QuantizeParams params;
    params.rule = Rule::kCheckpoint;
    const auto max = backend.Quantize(params, x.view);
    ASSERT_TRUE(max.ok()) << max.status();
    EXPECT_TRUE(SameBytes(file.Read<uint8_t>(name + ".export_max.scale"), max->scale));
    EXPECT_TRUE(SameBytes(file.Read<uint8_t>(name + ".export_max.packed"), max->packed));
    EXPECT_EQ(file.Read<float>(name + ".export_max.scale2")[0],
              max->layout.GlobalDecodeScale(max->amax[0]));

    const auto sweep = backend.ScaleSweep({}, x.view);
    ASSERT_TRUE(sweep.ok()) << sweep.status();
    const auto swept = backend.QuantizeWithScales(x.view, sweep->global_amax, 448, sweep->code);
    ASSERT_TRUE(swept.ok()) << swept.status();
    EXPECT_TRUE(SameBytes(file.Read<uint8_t>(name + ".export_sweep.scale"), swept->scale));
    EXPECT_TRUE(SameBytes(file.Read<uint8_t>(name + ".export_sweep.packed"), swept->packed));
  }
}

}  // namespace nibble::testing
