#!/usr/bin/env python3
"""Loads exported folders with the libraries of other people and compares what they see with ours.

    python3 -m venv peers && peers/bin/pip install torch transformers compressed-tensors accelerate
    build/release/tests/write_models DIR       (or folders that `nibble quantize` wrote)
    peers/bin/python tests/python/load_export.py DIR/compressed-tensors/* DIR/modelopt/*

For each folder: the values that the bytes stand for, by a formula of our own, against
  - compressed-tensors' NVFP4PackedCompressor (modelopt folders through its ModelOptNvfp4Converter),
    with the scheme that its own parser makes of config.json;
  - every weight of the model that transformers' from_pretrained makes of the folder, dequantized
    (compressed-tensors folders of architectures that it knows), whose logits must be finite.
A line for each folder, what differs below it; exit code 1 where anything does.
"""

import argparse
import json
import pathlib
import re
import sys

import torch
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.entrypoints.convert.converters.modelopt_nvfp4 import ModelOptNvfp4Converter
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from compressed_tensors.utils.match import match_name
from safetensors.torch import load_file

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def values(codes, scale, multiplier):
    """fp32 [N, K] of packed [N, K/2], E4M3 [N, K/16] and the multiplier."""
    both = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2).long()
    steps = scale.float().repeat_interleave(16, dim=-1)
    return E2M1[both] * steps * multiplier


def load(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def expected_values(tensors, modelopt):
    """Of each matrix, by its module's name; stacks [E, K, N] become [E, N, K]."""
    result = {}
    for name, scale in tensors.items():
        if modelopt and name.endswith("_weight_scale"):
            module = name.removesuffix("_weight_scale")
            outer = tensors[module + "_weight_scale_2"]
            result[module] = values(tensors[module].mT.contiguous(), scale.mT.contiguous(), outer)
        elif name.endswith(".weight_scale"):
            module = name.removesuffix(".weight_scale")
            codes = tensors[module + (".weight" if modelopt else ".weight_packed")]
            outer = tensors[module + (".weight_scale_2" if modelopt else ".weight_global_scale")]
            result[module] = values(codes, scale, outer if modelopt else 1 / outer)
    return result


def difference(a, b):
    """Relative to the largest value; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-30))


def check_compressor(tensors, config, expected, problems, modelopt):
    """What compressed-tensors makes of each module's tensors. Its codes are bf16 and so are the
    products of code and scale: eight bits, in which both are exact; then fp32."""
    quantization = config["quantization_config"]
    if modelopt:
        groups = [(["re:.*"], preset_name_to_scheme("NVFP4", ["Linear"]))]
        converter = ModelOptNvfp4Converter(targets=["re:.*"])
        tensors = dict(tensors)
        converter.process(tensors)
    else:
        parsed = QuantizationConfig.model_validate(quantization)
        groups = [(g.targets, g) for g in parsed.config_groups.values()]
        for module in expected:
            if any(match_name(module, entry) for entry in parsed.ignore):
                problems.append(f"{module}: ignored by the library's own matcher")
    worst = 0.0
    for module, ours in expected.items():
        if module + ".weight_packed" not in tensors:
            continue  # a stack of experts, which the library does not know
        scheme = next((s for targets, s in groups
                       if any(match_name(module, t) or t == "Linear" for t in targets)), None)
        if scheme is None:
            problems.append(f"{module}: no group targets it")
            continue
        state = {part: tensors[f"{module}.{part}"]
                 for part in ("weight_packed", "weight_scale", "weight_global_scale")}
        theirs = NVFP4PackedCompressor.decompress(state, scheme)["weight"]
        # The type it answers in decides how close it can be.
        limit = {torch.float32: 1e-6, torch.bfloat16: 2**-7}[theirs.dtype]
        apart = difference(theirs, ours)
        worst = max(worst, apart)
        if not apart <= limit:
            problems.append(f"{module}: compressed-tensors' values are {apart:.3g} away")
    return worst


def check_transformers(folder, tensors, expected, problems):
    import transformers

    transformers.logging.set_verbosity_error()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True,
        quantization_config=transformers.CompressedTensorsConfig(dequantize=True))
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = [key for key in info[kind] if not re.search(r"layers\.\d+\.(eh_proj|enorm)", str(key))]
        if keys:
            problems.append(f"transformers: {kind}: {keys[:4]} of {len(keys)}")
    state = model.state_dict()
    worst, compared = 0.0, 0
    fused = {}
    for module, ours in expected.items():
        theirs = state.get(module + ".weight")
        if theirs is None:
            # In memory a layer's experts are one tensor: gate over up.
            found = re.match(r"(.*\.)(\d+)\.(\w+)$", module)
            if found:
                fused.setdefault((found[1], int(found[2])), {})[found[3]] = ours
            continue
        compared += 1
        apart = difference(theirs, ours)
        worst = max(worst, apart)
        if not apart <= 2**-7:
            problems.append(f"{module}: transformers' values are {apart:.3g} away")
    for (container, expert), parts in fused.items():
        names = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
        parts = {names.get(k, k): v for k, v in parts.items()}
        for prefix in (container, container.replace("block_sparse_moe", "mlp")):
            gate_up, down = state.get(prefix + "gate_up_proj"), state.get(prefix + "down_proj")
            if gate_up is None:
                continue
            for theirs, ours in ((gate_up[expert], torch.cat([parts["gate_proj"], parts["up_proj"]])),
                                 (down[expert], parts["down_proj"])):
                compared += 1
                apart = difference(theirs, ours)
                worst = max(worst, apart)
                if not apart <= 2**-7:
                    problems.append(f"{prefix}{expert}: transformers' values are {apart:.3g} away")
    with torch.no_grad():
        logits = model(torch.arange(8)[None]).logits
    if not torch.isfinite(logits).all():
        problems.append("transformers: logits are not finite")
    if compared == 0:
        problems.append("transformers: nothing to compare")
    return worst, compared


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    parser.add_argument("--skip-transformers", action="store_true")
    args = parser.parse_args()
    failed = False
    for folder in args.folders:
        problems = []
        tensors = load(folder)
        config = json.loads((folder / "config.json").read_text())
        modelopt = config["quantization_config"]["quant_method"] == "modelopt"
        expected = expected_values(tensors, modelopt)
        worst = check_compressor(tensors, config, expected, problems, modelopt)
        text = f"{folder}: {len(expected)} matrices, compressed-tensors within {worst:.3g}"
        if not modelopt and not args.skip_transformers:
            try:
                apart, compared = check_transformers(folder, tensors, expected, problems)
                text += f", transformers within {apart:.3g} ({compared} compared)"
            except Exception as error:  # what the library raises is its own affair
                problems.append(f"transformers: {type(error).__name__}: {str(error)[:500]}")
        print(text)
        for problem in problems[:20]:
            print(f"  {problem}")
        failed |= bool(problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
