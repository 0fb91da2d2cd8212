#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "policies/recipe.h"
#include "tests/testing/subprocess.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tensors.h"

namespace nibble {
namespace {

using ::nibble::testing::Nibble;
using ::nibble::testing::Process;
using ::nibble::testing::ProcessResult;
using ::nibble::testing::PutFile;
using ::nibble::testing::TempDir;
using ::testing::HasSubstr;
using ::testing::StartsWith;

using Args = std::vector<std::string>;

ProcessResult Recipes(Args args) {
  args.insert(args.begin(), "recipes");
  return Nibble(std::move(args));
}

void ExpectError(const Args& args, int code, const std::string& piece) {
  const ProcessResult result = Recipes(args);
  EXPECT_EQ(result.exit_code, code) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, StartsWith("nibble: "));
  EXPECT_EQ(result.err.find('\n') + 1, result.err.size()) << result.err;
  EXPECT_THAT(result.err, HasSubstr(piece));
}

TEST(RecipesCommandTest, ListsNamesAndDescriptions) {
  const ProcessResult result = Recipes({});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "");
  for (const ShippedRecipe& shipped : ShippedRecipes()) {
    EXPECT_THAT(result.out, HasSubstr(std::string(shipped.name) + " "));
  }
  EXPECT_THAT(result.out, HasSubstr("the one with the least squared error"));
}

TEST(RecipesCommandTest, ShowsARecipeInFull) {
  const ProcessResult result = Recipes({"show", "nvfp4_mse"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("name: \"nvfp4_mse\""));
  EXPECT_THAT(result.out, HasSubstr("fp8_scale_sweep: true"));
  EXPECT_THAT(result.out, HasSubstr("*lm_head*"));
}

TEST(RecipesCommandTest, ShowsWhatWasSet) {
  const ProcessResult result =
      Recipes({"show", "--set", "activations.algorithm.method=constant", "nvfp4", "--set",
               "rules=[{match: [\"*o_proj\", b], use: keep}]"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("{method: constant, input_scale: 1}"));
  EXPECT_THAT(result.out, HasSubstr("match: [\"*o_proj\", \"b\"]"));
}

TEST(RecipesCommandTest, WhatItShowsIsARecipe) {
  const TempDir folder;
  for (const ShippedRecipe& shipped : ShippedRecipes()) {
    const std::string text = Recipes({"show", std::string(shipped.name)}).out;
    PutFile(folder.path("r.yaml"), text);
    EXPECT_EQ(Recipes({"show", folder.path("r.yaml")}).out, text) << shipped.name;
  }
}

TEST(RecipesCommandTest, PathsAreRelativeToTheFile) {
  const TempDir folder;
  PutFile(folder.path("parent.yml"), "extends: nvfp4\nnonfinite: keep\n");
  PutFile(folder.path("child.yaml"), "extends: parent.yml\n");
  const ProcessResult result = Recipes({"show", folder.path("child.yaml")});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("name: \"child\""));
  EXPECT_THAT(result.out, HasSubstr("nonfinite: keep"));
}

TEST(RecipesCommandTest, FailsWithOneLine) {
  const TempDir folder;
  const std::string file = folder.path("bad.yaml");
  PutFile(file, "weights:\n  algoritm: max\n");
  ExpectError({"show", file}, 2, "bad.yaml:2:3: weights: expected one of the keys");
  ExpectError({"show", file}, 2, "did you mean \"algorithm\"?");
  PutFile(file, std::string(2 << 20, '#'));
  ExpectError({"show", file}, 3, "bad.yaml");
  ExpectError({"show", folder.path("gone.yaml")}, 1, "gone.yaml");
  ExpectError({"show", folder.path("")}, 2, "recipe: ");
  ExpectError({"show", "nvfp4_mes"}, 2, "did you mean \"nvfp4_mse\"?");
  ExpectError({"show", "nvfp4", "--set", "export.shard_size=5gb"}, 2, "--set export.shard_size: ");
  ExpectError({"show", "nvfp4", "--set"}, 2, "--set");
  ExpectError({"show"}, 2, "NAME");
  ExpectError({"show", ""}, 2, "expected a value, got nothing");
  ExpectError({"shwo", "nvfp4"}, 2, "shwo");
}

}  // namespace
}  // namespace nibble
