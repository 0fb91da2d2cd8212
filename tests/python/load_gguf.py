#!/usr/bin/env python3
"""Converts exported folders with llama.cpp's converter and compares what it wrote with ours.

    python3 -m venv gguf && gguf/bin/pip install torch numpy pyyaml 'transformers<5' sentencepiece 'protobuf<5'
    pip download --no-deps --no-binary :all: llama-cpp-python    (or any source tree of llama.cpp)
    gguf/bin/python tests/python/load_gguf.py LLAMA_CPP FOLDER...

LLAMA_CPP: the folder with convert_hf_to_gguf.py, `vendor/llama.cpp` of the download. Its converter
runs as it is, but for the vocabulary, which it knows by lists of tokenizers that are not asked for
here. Of each folder, quantized by its own NVFP4 type and decoded by its own gguf package:
  - every quantized matrix is of the type NVFP4 and, times its ".scale", the same floats as ours;
  - every ".input_scale" is ours, and there is none where ours has none;
  - everything else has the values that the folder has.
A line for each folder, what differs below it; exit code 1 where anything does. What the converter
itself refuses is a difference, too.
"""

import argparse
import importlib
import json
import pathlib
import pkgutil
import re
import runpy
import sys
import tempfile

import numpy
import torch

from exported import expected_values, input_scale, kept_tensors, load, report


def without_vocabulary(conversion):
    base = importlib.import_module("conversion.base")
    for module in pkgutil.iter_modules(conversion.__path__):
        importlib.import_module(f"conversion.{module.name}")
    classes = [base.TextModel]
    for found in classes:
        classes += found.__subclasses__()
        if "set_vocab" in vars(found):
            found.set_vocab = lambda self: None


def convert(llama_cpp, folder, out):
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outtype", "bf16", "--outfile", str(out)]
    runpy.run_path(str(llama_cpp / sys.argv[0]), run_name="__main__")


def decoded(gguf, tensor):
    shape = tuple(int(n) for n in reversed(tensor.shape))
    return torch.from_numpy(numpy.array(gguf.quants.dequantize(
        tensor.data, tensor.tensor_type))).reshape(shape)


def halves(kept):
    """Stacks of experts as the converter has them: gate and up apart."""
    result = {}
    for name, tensor in kept.items():
        if name.endswith(".experts.gate_up_proj"):
            for part, values in zip(("gate_proj", "up_proj"), tensor.chunk(2, dim=1)):
                result[name.replace("gate_up_proj", part + ".weight")] = values
        else:
            result[name + ".weight" * name.endswith(".experts.down_proj")] = tensor
    return result


def compare(gguf, path, folder, problems):
    config = json.loads((folder / "config.json").read_text())
    modelopt = config["quantization_config"]["quant_method"] == "modelopt"
    tensors = load(folder)
    ours = expected_values(tensors, modelopt)
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    kind = next(k for k, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture)
    names = gguf.get_tensor_name_map(kind, reader.fields[f"{architecture}.block_count"].contents())
    config = config.get("text_config", config)
    heads = {"q_proj": config["num_attention_heads"],
             "k_proj": config.get("num_key_value_heads", config["num_attention_heads"])}
    unseen = set(theirs)

    def name_of(name):
        # A layer's experts are one tensor there.
        name = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        name = re.sub(r"^(language_model\.(?=model|lm_head)|model\.(?=language_model))", "", name)
        name = name.replace("language_model.", "model.", 1)
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        return names.get_name(name, (".weight", ".bias"))

    def turned(name, tensor):
        """The rows of q and k, which Llama's converter has in another order."""
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        if architecture != "llama" or leaf not in heads:
            return tensor
        by_head = tensor.reshape(heads[leaf], 2, tensor.shape[0] // heads[leaf] // 2, -1)
        return by_head.swapaxes(1, 2).reshape(tensor.shape)

    def part(name, suffix, expert):
        """1 where there is none: what the converter leaves out."""
        scale = theirs.get(name.removesuffix(".weight") + suffix)
        if scale is None:
            return 1.0
        unseen.discard(scale.name)
        flat = decoded(gguf, scale).flatten()
        return float(flat[expert if flat.numel() > 1 else 0])

    for module, expected in ours.items():
        name = name_of(module + ".weight")
        tensor = theirs.get(name)
        if tensor is None:
            problems.append(f"{module}: not in the GGUF, as {name}")
            continue
        unseen.discard(name)
        if tensor.tensor_type.name != "NVFP4":
            problems.append(f"{module}: of type {tensor.tensor_type.name}")
            continue
        found = re.search(r"\.experts\.(\d+)\.", module)
        expert = int(found[1]) if found else 0
        weights = decoded(gguf, tensor)
        weights = (weights[expert] if found else weights) * part(name, ".scale", expert)
        # Where a scale is 1 to six digits it is left out; elsewhere not a bit may differ.
        near = name.removesuffix(".weight") + ".scale" not in theirs
        if not torch.allclose(weights, turned(module, expected), rtol=2e-6 if near else 0, atol=0):
            problems.append(f"{module}: other values")
        scale = input_scale(tensors, module, modelopt)
        if abs(part(name, ".input_scale", expert) / (1.0 if scale is None else scale) - 1) > 2e-6:
            problems.append(f"{module}: another input scale")
    kept = kept_tensors(tensors, modelopt)
    for original, tensor in halves(kept).items():
        if re.search(r"vis(ion|ual)|multi_modal_projector", original):
            continue  # goes into a file of its own
        layer = re.search(r"\blayers\.(\d+)\.", original)
        if layer and int(layer[1]) >= config["num_hidden_layers"]:
            continue  # of speculative decoding, which the converter leaves out
        name = name_of(original)
        if original.endswith("kv_b_proj.weight") and name not in theirs:
            parts = [name.replace("kv_b", part) for part in ("k_b", "v_b")]
            unseen -= set(parts)  # taken apart by the converter
            if all(part in theirs for part in parts):
                continue
        found = re.search(r"\.experts\.(\d+)\.", original)
        if name not in theirs:
            problems.append(f"{original}: not in the GGUF, as {name}")
            continue
        unseen.discard(name)
        values = decoded(gguf, theirs[name])
        values = values[int(found[1])] if found else values
        if not torch.equal(values, turned(original, tensor.float())):
            problems.append(f"{original}: other values")
    for name in sorted(unseen):
        problems.append(f"{name}: stands for nothing of the folder")
    return f"{architecture}, {len(ours)} matrices, {len(kept)} other tensors"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("llama_cpp", type=pathlib.Path)
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    sys.path[1:1] = [str(args.llama_cpp), str(args.llama_cpp / "gguf-py")]
    import conversion
    import gguf

    without_vocabulary(conversion)
    importlib.import_module("logging").disable("CRITICAL")
    failed = False
    for folder in args.folders:
        problems, text = [], "refused"
        with tempfile.TemporaryDirectory() as temporary:
            out = pathlib.Path(temporary) / "model.gguf"
            try:
                convert(args.llama_cpp, folder, out)
                text = compare(gguf, out, folder, problems)
            except (Exception, SystemExit) as error:  # what the converter raises is its own affair
                problems.append(f"{type(error).__name__}: {str(error)[:300]}")
        failed |= report(folder, text, problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
