#include "engine/loader_rules.h"

#include "gtest/gtest.h"

namespace nibble {
namespace {

using Names = std::vector<std::string>;

LoaderModule Module(const std::string& name) { return {name, {}}; }
LoaderModule Qkv(const std::string& parent) {
  return {parent + ".qkv_proj", {parent + ".q_proj", parent + ".k_proj", parent + ".v_proj"}};
}

TEST(PythonFnmatchTest, Globs) {
  EXPECT_TRUE(PythonFnmatch("", ""));
  EXPECT_TRUE(PythonFnmatch("*", ""));
  EXPECT_TRUE(PythonFnmatch("a*c*", "abcb"));
  EXPECT_TRUE(PythonFnmatch("*.mlp.*", "model.layers.0.mlp.up_proj"));
  EXPECT_TRUE(PythonFnmatch("a?c", "abc"));
  EXPECT_TRUE(PythonFnmatch("gat[e]", "gate"));
  EXPECT_TRUE(PythonFnmatch("layers.[0-9]", "layers.7"));
  EXPECT_TRUE(PythonFnmatch("[!a]b", "cb"));
  EXPECT_TRUE(PythonFnmatch("[]]", "]"));
  EXPECT_TRUE(PythonFnmatch("a[b", "a[b"));
  EXPECT_TRUE(PythonFnmatch("*a*b*c*d", "xxaxxbxxcxcxxd"));
  EXPECT_FALSE(PythonFnmatch("gate", "gate_proj"));
  EXPECT_FALSE(PythonFnmatch("gat[e]", "gatex"));
  EXPECT_FALSE(PythonFnmatch("[!a]b", "ab"));
  EXPECT_FALSE(PythonFnmatch("a?c", "ac"));
  EXPECT_FALSE(PythonFnmatch("*a*b*c*d", "xxaxxbxxcxcxx"));
}

TEST(VllmModeloptTest, PartsOfNamesMatch) {
  // The trap: layer 1 is part of the name of layer 10.
  EXPECT_EQ(VllmModeloptExcludes(Names{"model.layers.1"}, Module("model.layers.10.mlp.up_proj")),
            true);
  EXPECT_EQ(VllmModeloptExcludes(Names{"model.layers.0.mlp.gate"},
                                 Module("model.layers.0.mlp.gate_up_proj")),
            true);
  EXPECT_EQ(VllmModeloptExcludes(Names{"model.layers.0.mlp.gat[e]"},
                                 Module("model.layers.0.mlp.gate_up_proj")),
            false);
  EXPECT_EQ(
      VllmModeloptExcludes(Names{"model.layers.0.mlp.gat[e]"}, Module("model.layers.0.mlp.gate")),
      true);
  EXPECT_EQ(VllmModeloptExcludes(Names{"visual*"}, Module("model.visual.blocks.0.fc1")), true);
  EXPECT_EQ(VllmModeloptExcludes(Names{"lm_head"}, Module("language_model.lm_head")), true);
  EXPECT_EQ(VllmModeloptExcludes({}, Module("lm_head")), false);
}

TEST(VllmModeloptTest, MembersOfAFusedModuleMustAgree) {
  EXPECT_EQ(VllmModeloptExcludes(Names{"a.q_proj", "a.k_proj", "a.v_proj"}, Qkv("a")), true);
  EXPECT_EQ(VllmModeloptExcludes(Names{"a.q_proj", "a.v_proj"}, Qkv("a")), std::nullopt);
  EXPECT_EQ(VllmModeloptExcludes(Names{"b.q_proj"}, Qkv("a")), false);
}

TEST(SglangModeloptTest, WholeNameOrOneComponent) {
  EXPECT_EQ(SglangModeloptExcludes(Names{"lm_head"}, Module("language_model.lm_head")), true);
  EXPECT_EQ(SglangModeloptExcludes(Names{"model.layers.0"}, Module("model.layers.0.mlp.gate")),
            false);
  EXPECT_EQ(SglangModeloptExcludes(Names{"model.layers.0.*"}, Module("model.layers.0.mlp.gate")),
            true);
  EXPECT_EQ(SglangModeloptExcludes(Names{"mtp*"}, Module("model.mtp_block.fc")), true);
  EXPECT_EQ(SglangModeloptExcludes(Names{"a.mlp.gat[e]"}, Module("a.mlp.gate")), true);
  EXPECT_EQ(SglangModeloptExcludes(Names{"a.mlp.gat[e]"}, Module("a.mlp.gate_proj")), false);
  EXPECT_EQ(SglangModeloptExcludes(Names{"a.mlp.experts.*"}, Module("a.mlp.experts")), false);
  EXPECT_EQ(SglangModeloptExcludes(Names{"a.("}, Module("a.b")), false);
}

TEST(SglangModeloptTest, FusedNamesAreNotTakenApart) {
  EXPECT_EQ(SglangModeloptExcludes(Names{"a.q_proj", "a.k_proj", "a.v_proj"}, Qkv("a")), false);
  EXPECT_EQ(SglangModeloptExcludes(Names{"a.qkv_proj"}, Qkv("a")), true);
}

TEST(SglangModeloptTest, NamesOfLatentAttentionAreThoseOfEveryLayer) {
  EXPECT_EQ(SglangModeloptExcludes(Names{"a.0.kv_b_proj"}, Module("a.1.kv_b_proj")), true);
  EXPECT_EQ(SglangModeloptExcludes(Names{"a.0.kv_a_proj_with_mqa"},
                                   Module("a.1.fused_qkv_a_proj_with_mqa")),
            true);
  EXPECT_EQ(SglangModeloptExcludes(Names{"a.0.kv_b_pro[j]"}, Module("a.1.kv_b_proj")), false);
  EXPECT_EQ(SglangModeloptExcludes(Names{"a.0.kv_b_pro[j]"}, Module("a.0.kv_b_proj")), true);
  EXPECT_EQ(SglangModeloptExcludes(Names{"a.0.o_proj"}, Module("a.1.o_proj")), false);
}

TEST(TensorRtLlmTest, Fnmatch) {
  EXPECT_EQ(TensorRtLlmExcludes(Names{"model.layers.1"}, Module("model.layers.10.x")), false);
  EXPECT_EQ(TensorRtLlmExcludes(Names{"a.*"}, Qkv("a")), true);
  EXPECT_EQ(TensorRtLlmExcludes(Names{"a.q_proj"}, Qkv("a")), std::nullopt);
}

TEST(CompressedTensorsTest, ExactOrRegex) {
  EXPECT_EQ(CompressedTensorsIgnores(Names{"lm_head"}, Module("lm_head")), true);
  EXPECT_EQ(CompressedTensorsIgnores(Names{"lm_head"}, Module("language_model.lm_head")), false);
  EXPECT_EQ(CompressedTensorsIgnores(Names{"model.visual*"}, Module("model.visual.fc")), false);
  EXPECT_EQ(CompressedTensorsIgnores(Names{"re:.*visual.*"}, Module("model.visual.fc")), true);
  // From the start on, not to the end.
  EXPECT_EQ(CompressedTensorsIgnores(Names{"re:visual"}, Module("model.visual.fc")), false);
  EXPECT_EQ(CompressedTensorsIgnores(Names{"re:model"}, Module("model.visual.fc")), true);
  EXPECT_EQ(CompressedTensorsIgnores(Names{"re:("}, Module("(")), false);
  EXPECT_EQ(CompressedTensorsIgnores(Names{"a.q_proj"}, Qkv("a")), std::nullopt);
  EXPECT_TRUE(CompressedTensorsMatches("Linear", "a.b", "Linear"));
  EXPECT_FALSE(CompressedTensorsMatches("Linear", "a.b"));
}

}  // namespace
}  // namespace nibble
