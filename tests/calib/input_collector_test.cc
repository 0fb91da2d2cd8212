#include "calib/input_collector.h"

#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "calib/activation_calibrators.h"
#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "quant/numerics/hessian_sum.h"
#include "tests/testing/backends.h"
#include "tests/testing/bytes.h"
#include "tests/testing/is_error.h"
#include "tests/testing/test_matrix.h"

namespace nibble {
namespace {

using ::nibble::testing::AllCpuKernels;
using ::nibble::testing::IsError;
using ::nibble::testing::KernelsName;
using ::nibble::testing::SameBytes;
using ::nibble::testing::TestMatrix;

// Sixteen equal channels a token.
TestMatrix OfBlocks(const std::vector<float>& amax, DType dtype = DType::kF32) {
  std::vector<float> values;
  for (float a : amax) values.insert(values.end(), 16, a);
  return TestMatrix(values, 16, dtype);
}

ActivationSpec SpecOf(ActivationMethod method) {
  ActivationSpec spec;
  spec.method = method;
  return spec;
}

// --- The collector ------------------------------------------------------------------------------

TEST(InputCollectorTest, ChunksOfWholeUnitsAreTheWhole) {
  const auto backend = MakeCpuBackend({});
  for (DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
    const TestMatrix x(Distribution::kOutliers, dtype, 1111, 48);
    InputCollector whole;
    ASSERT_TRUE(whole.Collect(x.view, *backend).ok());
    EXPECT_EQ(whole.tokens(), 1111);
    EXPECT_EQ(whole.columns(), 48);
    EXPECT_EQ(whole.amax(), backend->Amax(x.view).value());
    for (int64_t chunk : {256, 512, 768}) {
      InputCollector chunks;
      for (int64_t first = 0; first < 1111; first += chunk) {
        ASSERT_TRUE(
            chunks.Collect(x.Rows(first, std::min<int64_t>(chunk, 1111 - first)), *backend).ok());
      }
      EXPECT_EQ(chunks, whole);
      EXPECT_EQ(chunks.Save(), whole.Save());
      EXPECT_TRUE(SameBytes(*chunks.Hessians(), *whole.Hessians()));
    }
    // Other cuts agree on all but the last bits of the Hessians.
    InputCollector ragged;
    for (int64_t first = 0; first < 1111; first += 101) {
      ASSERT_TRUE(ragged.Collect(x.Rows(first, 101), *backend).ok());
    }
    EXPECT_EQ(ragged.amax(), whole.amax());
    EXPECT_EQ(ragged.Save().at("blocks.count"), whole.Save().at("blocks.count"));
    const std::vector<float> a = *ragged.Hessians(), b = *whole.Hessians();
    for (size_t i = 0; i < a.size(); ++i) {
      const size_t slice = i / 256 * 256, row = i % 256 / 16, col = i % 16;
      EXPECT_NEAR(a[i], b[i], 1e-5 * std::sqrt(b[slice + row * 17] * b[slice + col * 17]));
    }
  }
}

TEST(InputCollectorTest, HessiansAreMeans) {
  const auto backend = MakeCpuBackend({});
  const TestMatrix x(Distribution::kNormal, DType::kBf16, 777, 32);
  const std::vector<float> values = SyntheticValues(Distribution::kNormal, 777 * 32, 1);
  InputCollector collector;
  ASSERT_TRUE(collector.Collect(x.view, *backend).ok());
  const std::vector<float> mean = *collector.Hessians();
  ASSERT_EQ(mean.size(), 2u * kHessianSize);
  for (int slice = 0; slice < 2; ++slice) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 16; ++j) {
        double sum = 0;
        for (int t = 0; t < 777; ++t) {
          const uint16_t* row = reinterpret_cast<const uint16_t*>(x.bytes.data()) + t * 32;
          sum += double{FloatFromBf16(row[slice * 16 + i])} * FloatFromBf16(row[slice * 16 + j]);
        }
        EXPECT_NEAR(mean[slice * 256 + i * 16 + j], sum / 777, 1e-6);
        EXPECT_EQ(mean[slice * 256 + i * 16 + j], mean[slice * 256 + j * 16 + i]);
      }
    }
  }
}

TEST(InputCollectorTest, EveryInstructionSetGivesTheSame) {
  const TestMatrix x(Distribution::kOutliers, DType::kBf16, 600, 80);
  InputCollector expected;
  ASSERT_TRUE(expected.Collect(x.view, *MakeCpuBackendWith(ScalarKernels(), {.threads = 1})).ok());
  for (const CpuKernels* kernels : AllCpuKernels()) {
    InputCollector seen;
    ASSERT_TRUE(seen.Collect(x.view, *MakeCpuBackendWith(*kernels, {.threads = 2})).ok());
    EXPECT_EQ(seen, expected) << KernelsName(kernels);
  }
}

// Sequences of all lengths and sizes, dealt to ranks and merged in random trees.
TEST(InputCollectorTest, AnyOrderAndTreeOfMergesGivesTheSameBits) {
  const auto backend = MakeCpuBackend({.threads = 1});
  std::mt19937 random(5);
  std::vector<TestMatrix> sequences;
  for (int i = 0; i < 12; ++i) {
    std::vector<float> values =
        SyntheticValues(Distribution::kNormal, (1 + random() % 600) * 32, 100 + i);
    const float size = std::ldexp(1.0f, static_cast<int>(random() % 41) - 20);
    for (float& v : values) v *= size;
    sequences.push_back(TestMatrix(values, 32, i % 2 ? DType::kBf16 : DType::kF32));
  }
  InputCollector expected;
  for (const TestMatrix& s : sequences) ASSERT_TRUE(expected.Collect(s.view, *backend).ok());
  for (int trial = 0; trial < 20; ++trial) {
    std::shuffle(sequences.begin(), sequences.end(), random);
    std::vector<InputCollector> ranks(1 + random() % 6);
    for (const TestMatrix& s : sequences) {
      ASSERT_TRUE(ranks[random() % ranks.size()].Collect(s.view, *backend).ok());
    }
    while (ranks.size() > 1) {
      const size_t from = random() % ranks.size();
      const size_t into = (from + 1 + random() % (ranks.size() - 1)) % ranks.size();
      if (random() % 2) {  // by way of a file
        const CalibratorState state = ranks[from].Save();
        ASSERT_TRUE(ranks[from].Load(state).ok());
      }
      ASSERT_TRUE(ranks[into].Merge(ranks[from]).ok());
      ranks.erase(ranks.begin() + static_cast<int64_t>(from));
    }
    ASSERT_EQ(ranks[0], expected);
  }
}

TEST(InputCollectorTest, ResetIsAsNewAndEmptyChunksCount0) {
  const auto backend = MakeCpuBackend({});
  InputCollector collector;
  const TestMatrix x(Distribution::kNormal, DType::kBf16, 10, 32);
  const TestMatrix empty({}, 32, DType::kBf16);
  ASSERT_TRUE(collector.Collect(empty.view, *backend).ok());
  EXPECT_EQ(collector.tokens(), 0);
  EXPECT_EQ(collector.Hessians(), std::nullopt);
  EXPECT_TRUE(IsError(collector.InputAmax({}), absl::StatusCode::kFailedPrecondition,
                      "expected at least one token, got none"));
  InputCollector loaded;
  ASSERT_TRUE(loaded.Load(collector.Save()).ok());
  EXPECT_EQ(loaded, collector);
  ASSERT_TRUE(collector.Collect(x.view, *backend).ok());
  ASSERT_TRUE(loaded.Merge(collector).ok());
  EXPECT_EQ(loaded, collector);
  collector.Reset();
  EXPECT_EQ(collector, InputCollector());
  const TestMatrix wide(Distribution::kNormal, DType::kBf16, 10, 64);
  EXPECT_TRUE(collector.Collect(wide.view, *backend).ok());
}

TEST(InputCollectorTest, RefusesBadDataAndAddsNothing) {
  const auto backend = MakeCpuBackend({});
  InputCollector collector;
  const TestMatrix x(Distribution::kNormal, DType::kBf16, 300, 32);
  ASSERT_TRUE(collector.Collect(x.view, *backend).ok());
  const InputCollector before = collector;
  std::vector<float> values(300 * 32, 1.0f);
  values[299 * 32 + 5] = std::nanf("");
  EXPECT_TRUE(IsError(collector.Collect(TestMatrix(values, 32).view, *backend),
                      absl::StatusCode::kFailedPrecondition,
                      "got 1 NaN or infinite, the first at row 299, column 5"));
  values[299 * 32 + 5] = 1e30f;  // whose square is beyond float32, in the second unit
  EXPECT_TRUE(IsError(collector.Collect(TestMatrix(values, 32).view, *backend),
                      absl::StatusCode::kFailedPrecondition, "rows from 256 on: hessian"));
  const TestMatrix wide(Distribution::kNormal, DType::kBf16, 10, 64);
  EXPECT_TRUE(IsError(collector.Collect(wide.view, *backend), absl::StatusCode::kFailedPrecondition,
                      "expected 32 columns as before"));
  InputCollector other, without(false);
  ASSERT_TRUE(other.Collect(wide.view, *backend).ok());
  EXPECT_TRUE(IsError(collector.Merge(other), absl::StatusCode::kFailedPrecondition, "got 64"));
  EXPECT_TRUE(IsError(collector.Merge(without), absl::StatusCode::kInvalidArgument, "Hessians"));
  EXPECT_TRUE(
      IsError(collector.Merge(collector), absl::StatusCode::kInvalidArgument, "the same one"));
  EXPECT_EQ(collector, before);
}

TEST(InputCollectorTest, WithoutHessiansItHasNone) {
  const auto backend = MakeCpuBackend({});
  InputCollector collector(/*hessians=*/false), loaded;
  const TestMatrix x(Distribution::kNormal, DType::kBf16, 10, 32);
  ASSERT_TRUE(collector.Collect(x.view, *backend).ok());
  EXPECT_EQ(collector.Hessians(), std::nullopt);
  ASSERT_TRUE(loaded.Load(collector.Save()).ok());
  EXPECT_EQ(loaded, collector);
}

template <typename T>
void Set(CalibratorState& state, const std::string& name, size_t index, T value) {
  std::memcpy(state.at(name).bytes.data() + index * sizeof(T), &value, sizeof(T));
}

TEST(InputCollectorTest, RefusesStatesThatItDidNotSave) {
  const auto backend = MakeCpuBackend({});
  InputCollector collector;
  const TestMatrix x(Distribution::kNormal, DType::kBf16, 300, 32);
  ASSERT_TRUE(collector.Collect(x.view, *backend).ok());
  const CalibratorState good = collector.Save();
  std::vector<std::pair<std::string, CalibratorState>> bad;
  const auto add = [&](const std::string& what,
                       const std::function<void(CalibratorState&)>& change) {
    bad.emplace_back(what, good);
    change(bad.back().second);
  };
  for (const auto& entry : good) {
    const std::string& name = entry.first;  // lambdas take no names of structured bindings
    add(name + " gone", [&](CalibratorState& s) { s.erase(name); });
    add(name + " rank", [&](CalibratorState& s) { s[name].shape.push_back(1); });
    add(name + " length", [&](CalibratorState& s) { ++s[name].shape[0]; });
    add(name + " negative", [&](CalibratorState& s) { s[name].shape[0] = -1; });
    add(name + " huge", [&](CalibratorState& s) { s[name].shape[0] = int64_t{1} << 62; });
    add(name + " type", [&](CalibratorState& s) { s[name].dtype = DType::kI8; });
    add(name + " short", [&](CalibratorState& s) { s[name].bytes.pop_back(); });
  }
  add("more", [&](CalibratorState& s) { s["more"] = s["amax"]; });
  add("amax NaN", [](CalibratorState& s) { Set(s, "amax", 0, std::nanf("")); });
  add("amax inf", [](CalibratorState& s) { Set(s, "amax", 0, HUGE_VALF); });
  add("amax negative", [](CalibratorState& s) { Set(s, "amax", 0, -1.0f); });
  add("amax above all blocks", [](CalibratorState& s) { Set(s, "amax", 0, 1000.0f); });
  add("amax 0", [](CalibratorState& s) { Set(s, "amax", 0, 0.0f); });
  add("tokens negative", [](CalibratorState& s) { Set(s, "tokens", 0, int64_t{-1}); });
  add("tokens 0", [](CalibratorState& s) { Set(s, "tokens", 0, int64_t{0}); });
  add("tokens fewer than blocks", [](CalibratorState& s) { Set(s, "tokens", 0, int64_t{2}); });
  add("tokens more than units", [](CalibratorState& s) { Set(s, "tokens", 0, int64_t{1000}); });
  add("columns 24", [](CalibratorState& s) { Set(s, "columns", 0, int64_t{24}); });
  add("columns 0", [](CalibratorState& s) { Set(s, "columns", 0, int64_t{0}); });
  add("columns -16", [](CalibratorState& s) { Set(s, "columns", 0, int64_t{-16}); });
  add("columns 64", [](CalibratorState& s) { Set(s, "columns", 0, int64_t{64}); });
  add("count 0", [](CalibratorState& s) { Set(s, "blocks.count", 0, int64_t{0}); });
  add("count -5", [](CalibratorState& s) { Set(s, "blocks.count", 1, int64_t{-5}); });
  add("count 2^62", [](CalibratorState& s) { Set(s, "blocks.count", 1, int64_t{1} << 62); });
  add("bins fall", [](CalibratorState& s) { Set(s, "blocks.amax", 1, uint16_t{0}); });
  add("bin NaN", [](CalibratorState& s) {
    Set(s, "blocks.amax", s["blocks.amax"].bytes.size() / 2 - 1, uint16_t{0x7FC0});
  });
  add("units 0", [](CalibratorState& s) { Set(s, "hessian.units", 0, int64_t{0}); });
  add("units -1", [](CalibratorState& s) { Set(s, "hessian.units", 0, int64_t{-1}); });
  add("units 1", [](CalibratorState& s) { Set(s, "hessian.units", 0, int64_t{1}); });
  add("units 2^40", [](CalibratorState& s) { Set(s, "hessian.units", 0, int64_t{1} << 40); });
  add("digit", [](CalibratorState& s) { Set(s, "hessian.digits", 3, int64_t{1} << 50); });
  add("digit negative",
      [](CalibratorState& s) { Set(s, "hessian.digits", 3, -(int64_t{1} << 50)); });
  add("top", [](CalibratorState& s) { Set(s, "hessian.top", 3, uint8_t{10}); });
  add("top too low", [](CalibratorState& s) { Set(s, "hessian.top", 0, uint8_t{0}); });
  const InputCollector before = collector;
  for (const auto& [what, state] : bad) {
    EXPECT_TRUE(IsError(collector.Load(state), absl::StatusCode::kDataLoss, "expected")) << what;
    EXPECT_EQ(collector, before) << what;
  }
}

// --- The calibrators ----------------------------------------------------------------------------

float Amax(const ActivationSpec& spec, const TestMatrix& x) {
  const auto backend = MakeCpuBackend({});
  const auto calibrator = MakeActivationCalibrator(spec).value();
  EXPECT_TRUE(calibrator->Collect(x.view, *backend).ok());
  const absl::StatusOr<float> amax = calibrator->Compute();
  EXPECT_TRUE(amax.ok()) << amax.status();
  return amax.value_or(-1);
}

TEST(ActivationCalibratorTest, Max) {
  EXPECT_EQ(Amax(SpecOf(ActivationMethod::kMax), OfBlocks({1.5f, -7.25f, 3})), 7.25f);
}

TEST(ActivationCalibratorTest, PercentileIsARankAmongBlocksThatAreNotZero) {
  std::vector<float> blocks;
  for (int i = 1; i <= 200; ++i) blocks.insert(blocks.end(), {static_cast<float>(i), 0.0f});
  ActivationSpec spec = SpecOf(ActivationMethod::kPercentile);
  const auto at = [&](double percentile) {
    spec.percentile = percentile;
    return Amax(spec, OfBlocks(blocks, DType::kBf16));
  };
  EXPECT_EQ(at(50), 100);
  EXPECT_EQ(at(50.1), 101);
  EXPECT_EQ(at(99.5), 199);
  EXPECT_EQ(at(99.51), 200);
  EXPECT_EQ(at(100), 200);
  EXPECT_EQ(at(1e-9), 1);
}

TEST(ActivationCalibratorTest, PercentileOfOtherTypesIsWithinABin) {
  const TestMatrix x(Distribution::kNormal, DType::kF32, 1000, 64);
  const auto backend = MakeCpuBackend({});
  std::vector<float> blocks = backend->Observe({.block_amax = true}, x.view)->block_amax;
  std::sort(blocks.begin(), blocks.end());
  ActivationSpec spec = SpecOf(ActivationMethod::kPercentile);
  for (double percentile : {1.0, 50.0, 99.0, 99.9}) {
    spec.percentile = percentile;
    const float exact = blocks[static_cast<size_t>(std::ceil(percentile / 100 * 4000)) - 1];
    const float seen = Amax(spec, x);
    EXPECT_LE(seen, exact);
    EXPECT_GT(seen, exact * (1 - 1.0f / 128));
  }
  spec.percentile = 100;
  EXPECT_EQ(Amax(spec, x), blocks.back());
}

TEST(ActivationCalibratorTest, Headroom) {
  ActivationSpec spec = SpecOf(ActivationMethod::kHeadroom);
  std::vector<float> blocks(1000, 2.0f);
  std::fill_n(blocks.begin(), 100, 0.5f);
  EXPECT_EQ(Amax(spec, OfBlocks(blocks)), 8192.0f);  // 16384 * 0.5
  spec.headroom = 0.25;
  EXPECT_EQ(Amax(spec, OfBlocks(blocks)), 2048.0f);
  // The anchor is at 1 percent: 9 of 1000 are too few, 10 are enough.
  std::fill(blocks.begin(), blocks.end(), 2.0f);
  std::fill_n(blocks.begin(), 9, 0.5f);
  EXPECT_EQ(Amax(spec, OfBlocks(blocks)), 8192.0f);
  blocks[9] = 0.5f;
  EXPECT_EQ(Amax(spec, OfBlocks(blocks)), 2048.0f);
  // Blocks below upper / 10^6 are no anchors.
  std::fill_n(blocks.begin(), 500, 1e-6f);
  EXPECT_EQ(Amax(spec, OfBlocks(blocks)), 8192.0f);
  // A range beyond rho leaves the upper end.
  std::fill_n(blocks.begin(), 500, 1e-4f);
  EXPECT_EQ(Amax(spec, OfBlocks(blocks)), 2.0f);
  // One block of a hundred thousand is above 99.99 percent and does not count.
  std::vector<float> many(100000, 1.0f);
  many[7] = 1e9f;
  spec.headroom = 1;
  EXPECT_EQ(Amax(spec, OfBlocks(many)), 16384.0f);
  // No amax beyond float32.
  EXPECT_EQ(Amax(spec, OfBlocks({1e38f})), kFloatMax);
}

TEST(ActivationCalibratorTest, ConstantIsTheScaleItself) {
  const auto backend = MakeCpuBackend({});
  ActivationSpec spec = SpecOf(ActivationMethod::kConstant);
  for (float scale : {1.0f, 0.125f, 0.00390625f, 3.0f, 0.1f, 1.7e-3f, 1e30f, 1e-37f}) {
    spec.input_scale = scale;
    const auto calibrator = MakeActivationCalibrator(spec).value();
    const float stored = CheckpointGlobalDecodeScale(calibrator->Compute().value(), 448);
    EXPECT_LE(std::fabs(stored - scale), std::nextafter(scale, kFloatMax) - scale) << scale;
    const bool exact = scale == 1.0f || scale == 0.125f || scale == 3.0f;
    EXPECT_TRUE(!exact || stored == scale) << scale;
    EXPECT_TRUE(IsError(calibrator->Collect(OfBlocks({1}).view, *backend),
                        absl::StatusCode::kFailedPrecondition, "expected no data"));
    EXPECT_TRUE(calibrator->Save().empty());
    EXPECT_TRUE(calibrator->Load({}).ok());
    EXPECT_TRUE(IsError(calibrator->Load({{"amax", {}}}), absl::StatusCode::kDataLoss, "amax"));
    EXPECT_TRUE(calibrator->Merge(*MakeActivationCalibrator(spec).value()).ok());
    EXPECT_TRUE(IsError(calibrator->Merge(*MakeActivationCalibrator({}).value()),
                        absl::StatusCode::kInvalidArgument, "got 'max'"));
  }
}

class StatsCalibratorTest : public ::testing::TestWithParam<ActivationMethod> {};

TEST_P(StatsCalibratorTest, MergesSavesLoadsAndResets) {
  const auto backend = MakeCpuBackend({});
  const ActivationSpec spec = SpecOf(GetParam());
  const TestMatrix parts[] = {TestMatrix(Distribution::kNormal, DType::kBf16, 50, 32, 1),
                              TestMatrix(Distribution::kOutliers, DType::kF32, 7, 32, 2),
                              TestMatrix(Distribution::kZero, DType::kF16, 9, 32, 3)};
  const auto all = MakeActivationCalibrator(spec).value();
  EXPECT_EQ(all->name(), NameOf(GetParam()));
  EXPECT_TRUE(IsError(all->Compute(), absl::StatusCode::kFailedPrecondition, "at least one token"));
  std::vector<std::unique_ptr<ActivationCalibrator>> each;
  for (const TestMatrix& part : parts) {
    ASSERT_TRUE(all->Collect(part.view, *backend).ok());
    each.push_back(MakeActivationCalibrator(spec).value());
    ASSERT_TRUE(each.back()->Collect(part.view, *backend).ok());
  }
  for (const std::vector<int>& order : {std::vector{0, 1, 2}, {2, 1, 0}, {1, 2, 0}}) {
    const auto merged = MakeActivationCalibrator(spec).value();
    for (int i : order) ASSERT_TRUE(merged->Merge(*each[i]).ok());
    EXPECT_EQ(merged->Save(), all->Save());
    EXPECT_EQ(*merged->Compute(), *all->Compute());
  }
  const auto loaded = MakeActivationCalibrator(spec).value();
  ASSERT_TRUE(loaded->Load(all->Save()).ok());
  EXPECT_EQ(*loaded->Compute(), *all->Compute());
  CalibratorState bad = all->Save();
  bad["more"] = {};
  EXPECT_TRUE(IsError(loaded->Load(bad), absl::StatusCode::kDataLoss, "more"));
  bad = all->Save();
  Set(bad, "amax", 0, -1.0f);
  EXPECT_TRUE(IsError(loaded->Load(bad), absl::StatusCode::kDataLoss, "not negative, got -1"));
  EXPECT_EQ(loaded->Save(), all->Save());
  loaded->Reset();
  EXPECT_EQ(loaded->Save(), MakeActivationCalibrator(spec).value()->Save());
  EXPECT_TRUE(
      IsError(loaded->Compute(), absl::StatusCode::kFailedPrecondition, "at least one token"));
  ASSERT_TRUE(loaded->Collect(parts[2].view, *backend).ok());
  EXPECT_EQ(*loaded->Compute(), 0.0f);  // all zero: the stored scale is 1
}

TEST_P(StatsCalibratorTest, RefusesOtherShapesAndNaN) {
  const auto backend = MakeCpuBackend({});
  const auto calibrator = MakeActivationCalibrator(SpecOf(GetParam())).value();
  ASSERT_TRUE(calibrator->Collect(OfBlocks({1, 2}).view, *backend).ok());
  const CalibratorState before = calibrator->Save();
  const TestMatrix wide(Distribution::kNormal, DType::kF32, 1, 32);
  EXPECT_TRUE(IsError(calibrator->Collect(wide.view, *backend),
                      absl::StatusCode::kFailedPrecondition, "expected 16 columns as before"));
  EXPECT_TRUE(IsError(calibrator->Collect(OfBlocks({1, HUGE_VALF}).view, *backend),
                      absl::StatusCode::kFailedPrecondition,
                      "got 16 NaN or infinite, the first at row 1, column 0"));
  const MatrixView bytes = {wide.bytes.data(), DType::kU8, 1, 16};
  EXPECT_TRUE(IsError(calibrator->Collect(bytes, *backend),
                      absl::StatusCode::kFailedPrecondition, "dtype"));
  EXPECT_EQ(calibrator->Save(), before);
}

INSTANTIATE_TEST_SUITE_P(All, StatsCalibratorTest,
                         ::testing::Values(ActivationMethod::kMax, ActivationMethod::kPercentile,
                                           ActivationMethod::kHeadroom),
                         [](const auto& info) { return std::string(NameOf(info.param)); });

TEST(ActivationRegistryTest, MakesEveryMethodByItsName) {
  for (std::string_view name : kEnumNames<ActivationMethod>) {
    EXPECT_EQ(MakeActivationCalibrator(DefaultActivationSpec(name).value()).value()->name(), name);
  }
  EXPECT_TRUE(IsError(DefaultActivationSpec("p99"), absl::StatusCode::kInvalidArgument,
                      "expected max, percentile, headroom or constant, got \"p99\""));
}

TEST(ActivationRegistryTest, RefusesSpecificationsThatNoRecipeHas) {
  const auto refused = [](const ActivationSpec& spec, std::string_view piece) {
    return IsError(MakeActivationCalibrator(spec), absl::StatusCode::kInvalidArgument, piece);
  };
  ActivationSpec spec;
  spec.format = ActivationFormat::kNone;
  EXPECT_TRUE(refused(spec, "got none"));
  spec = SpecOf(static_cast<ActivationMethod>(9));
  EXPECT_TRUE(refused(spec, "expected max, percentile"));
  for (double bad : {0.0, -1.0, 100.5, static_cast<double>(std::nanf(""))}) {
    spec = SpecOf(ActivationMethod::kPercentile);
    spec.percentile = bad;
    EXPECT_TRUE(refused(spec, "percentile: expected more than 0 and at most 100"));
  }
  for (double bad : {0.0, -1.0, 1.75, static_cast<double>(std::nanf(""))}) {
    spec = SpecOf(ActivationMethod::kHeadroom);
    spec.headroom = bad;
    EXPECT_TRUE(refused(spec, "headroom: expected more than 0 and less than 1.75"));
  }
  for (float bad : {0.0f, -1.0f, std::nanf(""), HUGE_VALF, 1e36f, 1e-40f}) {
    spec = SpecOf(ActivationMethod::kConstant);
    spec.input_scale = bad;
    EXPECT_TRUE(refused(spec, "input_scale: expected more than 2^-126"));
  }
  spec = SpecOf(ActivationMethod::kMax);
  spec.percentile = 50;
  EXPECT_TRUE(refused(spec, "parameters of the method max alone"));
}

TEST(ActivationRegistryTest, OtherParametersDoNotMerge) {
  ActivationSpec spec = SpecOf(ActivationMethod::kPercentile);
  const auto a = MakeActivationCalibrator(spec).value();
  spec.percentile = 50;
  EXPECT_TRUE(IsError(a->Merge(*MakeActivationCalibrator(spec).value()),
                      absl::StatusCode::kInvalidArgument, "same parameters, got 'percentile'"));
  EXPECT_TRUE(IsError(a->Merge(*a), absl::StatusCode::kInvalidArgument, "another"));
  EXPECT_TRUE(IsError(a->Merge(*MakeWeightCalibrator({}).value()),
                      absl::StatusCode::kInvalidArgument, "got 'max'"));
}

}  // namespace
}  // namespace nibble
