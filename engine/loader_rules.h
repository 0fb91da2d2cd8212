// How loaders read a list of modules that are not quantized. Each has rules of its own; these are
// theirs as of August 2026, written down apart from the exporter, to check what it wrote.
#ifndef NIBBLE_ENGINE_LOADER_RULES_H_
#define NIBBLE_ENGINE_LOADER_RULES_H_

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// Python's fnmatch.fnmatchcase: *, ?, [seq], [!seq].
bool PythonFnmatch(std::string_view pattern, std::string_view name);

// A module as a loader builds it: of its own, fused of several on disk, or a container of experts.
struct LoaderModule {
  std::string name;                  // "model.layers.0.self_attn.qkv_proj"
  std::vector<std::string> members;  // on disk; empty for one that is not fused

  friend bool operator==(const LoaderModule&, const LoaderModule&) = default;
};

// Whether the loader leaves the module unquantized; nullopt where it refuses the model: some
// members of a fused module are listed, others not.

// vLLM for modelopt: the exact name (for a fused module, those of its members), then whether an
// entry is part of the name anywhere, then fnmatch. "X*" may be cut into "X" and "X.*".
std::optional<bool> VllmModeloptExcludes(std::span<const std::string> excludes,
                                         const LoaderModule& module);

// The name of multi-head latent attention that an entry ends in, which SGLang takes for that of
// every layer's module; empty for other entries.
std::string_view SglangNameOfEveryLayer(std::string_view entry);

// SGLang for modelopt: entries as regular expressions with "." escaped and "*" as ".*", over the
// whole name or any one component; the members of a fused module are not looked at. An entry that
// ends in a name of multi-head latent attention is one for every layer: "a.0.kv_b_proj" excludes
// "a.1.kv_b_proj", and "a.0.kv_a_proj_with_mqa" "a.1.fused_qkv_a_proj_with_mqa".
std::optional<bool> SglangModeloptExcludes(std::span<const std::string> excludes,
                                           const LoaderModule& module);

// TensorRT-LLM for modelopt: fnmatch, of the members of a fused module.
std::optional<bool> TensorRtLlmExcludes(std::span<const std::string> excludes,
                                        const LoaderModule& module);

// compressed-tensors, and vLLM for it: exact, or a regular expression after "re:" from the name's
// start on; of the members of a fused module.
std::optional<bool> CompressedTensorsIgnores(std::span<const std::string> ignores,
                                             const LoaderModule& module);

// One entry of `ignore` or `targets` of compressed-tensors; `class_name`: "Linear", or empty.
bool CompressedTensorsMatches(std::string_view entry, std::string_view name,
                              std::string_view class_name = {});

}  // namespace nibble

#endif  // NIBBLE_ENGINE_LOADER_RULES_H_
