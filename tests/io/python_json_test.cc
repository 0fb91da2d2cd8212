#include "io/python_json.h"

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nibble {
namespace {

TEST(PythonJsonTest, ConstantsSurviveReadingAndWriting) {
  const std::string text = R"({"limit":[0.0,Infinity,-Infinity,NaN,-1],"Infinity":"NaN"})";
  EXPECT_FALSE(nlohmann::ordered_json::accept(text));
  const auto json = nlohmann::ordered_json::parse(QuoteConstants(text), nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json["limit"].size(), 5u);
  EXPECT_EQ(UnquoteConstants(json.dump()), text);
}

TEST(PythonJsonTest, StringsAreLeftAlone) {
  for (const std::string text : {R"(["NaN","a\"NaN","\\",1])", R"(["\\\"Infinity\\"])",
                                 R"({"-Infinity":"x: NaN, "})", "", "\"", "\"\\", "[\"NaN"}) {
    EXPECT_EQ(QuoteConstants(text), text);
    EXPECT_EQ(UnquoteConstants(text), text);
  }
}

TEST(PythonJsonTest, WhatIsNoJsonStaysNone) {
  for (const std::string text : {"Infinit", "-NaN", "NaNNaN", "[Infinityx]", "nan", "+Infinity"}) {
    EXPECT_FALSE(nlohmann::ordered_json::accept(QuoteConstants(text))) << text;
  }
}

}  // namespace
}  // namespace nibble
