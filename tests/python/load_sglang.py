#!/usr/bin/env python3
"""Asks SGLang's quantization classes what they make of exported folders.

    python3.11 -m venv sglang && sglang/bin/pip install sglang==0.5.23
    sglang/bin/python tests/python/load_sglang.py FOLDER...

No GPU is needed, and no model is made: config.json's quantization_config goes through the class
that SGLang picks for it, which is asked, for every linear layer and every container of experts
under the names that SGLang's models give them (q, k and v are qkv_proj), for its method. Compared
with the folder are
  - whether the layer is quantized, with activations or without;
  - the shapes and types of the parameters that the method registers for it.
A line for each folder, what differs below it; exit code 1 where anything does.
"""

import argparse
import json
import pathlib
import re
import sys
from unittest import mock

import torch
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.quantization import modelopt_quant
from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig)
from sglang.srt.layers.quantization.compressed_tensors.schemes import CompressedTensorsW4A4Nvfp4MoE
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from sglang.srt.models.registry import ModelRegistry

from exported import expected_values, kept_tensors, load, report

# What SGLang's models fuse; some tell its loader, by packed_modules_mapping.
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"],
          "fused_qkv_a_proj_with_mqa": ["q_a_proj", "kv_a_proj_with_mqa"]}


def config_of(config):
    quantization = config["quantization_config"]
    model, _ = ModelRegistry.resolve_model_cls(config["architectures"])
    mapping = dict(getattr(model, "packed_modules_mapping", {}))
    if "q_lora_rank" in config:  # DeepSeek's tell when they are made
        mapping["fused_qkv_a_proj_with_mqa"] = PACKED["fused_qkv_a_proj_with_mqa"]
    quantization = dict(quantization, packed_modules_mapping=mapping)
    if quantization["quant_method"] == "compressed-tensors":
        return CompressedTensorsConfig.from_config(quantization)
    mixed = quantization["quant_algo"] == "MIXED_PRECISION"
    return (modelopt_quant.ModelOptMixedPrecisionConfig if mixed
            else modelopt_quant.ModelOptFp4Config).from_config(quantization)


def bare(kind):
    layer = kind.__new__(kind)
    torch.nn.Module.__init__(layer)
    return layer


class Method:
    """Instead of the class for experts, whose constructor asks for a GPU."""

    def __init__(self, config):
        self.quant_config = config


def state_of(method, layer):
    """None: not quantized; else whether activations are."""
    if method is None or type(method).__name__.startswith("Unquantized"):
        return None
    name = type(getattr(layer, "scheme", None) or method).__name__
    if isinstance(method, Method):
        return not getattr(method.quant_config, "is_w4a16", False)
    return not re.search(r"A16", name, re.IGNORECASE)


def units_of(modules):
    """SGLang's modules, each with its members on disk; experts by their container."""
    units, fused = {}, {member: name for name, of in PACKED.items() for member in of}
    for module in modules:
        found = re.match(r"(.*\bexperts)\.", module)
        if found:
            units.setdefault(found[1], []).append(module)
            continue
        parent, dot, leaf = module.rpartition(".")
        together = fused.get(leaf)
        whole = together and all(parent + dot + m in modules for m in PACKED[together])
        units.setdefault(parent + dot + together if whole else module, []).append(module)
    return units


def check_parameters(name, method, members, tensors, problems):
    """Of a linear layer, by the sizes that the folder has."""
    layer = torch.nn.Module()
    codes = [next(tensors[f"{m}.{p}"] for p in ("weight_packed", "weight")
                  if f"{m}.{p}" in tensors) for m in members]
    method.create_weights(layer, codes[0].shape[1] * 2, [len(c) for c in codes],
                          codes[0].shape[1] * 2, sum(map(len, codes)), torch.bfloat16,
                          weight_loader=None)
    for part, parameter in layer.named_parameters():
        shapes = [tensors.get(f"{m}.{part}") for m in members]
        if part == "input_scale" and re.search("A16", type(method).__name__):
            continue  # registered and not used
        if any(t is None for t in shapes):
            problems.append(f"{name}: SGLang registers {part}, the folder has none")
        elif parameter.dim() == 2:
            together = torch.cat([t.view(torch.uint8) for t in shapes])
            if (together.shape, shapes[0].dtype) != (parameter.shape, parameter.dtype):
                problems.append(f"{name}: {part} is {list(parameter.shape)} {parameter.dtype}")
        elif parameter.numel() != len(members) or any(t.numel() != 1 for t in shapes):
            problems.append(f"{name}: {part} is {list(parameter.shape)}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    failed = False
    for folder in args.folders:
        problems = []
        model_config = json.loads((folder / "config.json").read_text())
        quantization = model_config["quantization_config"]
        modelopt = quantization["quant_method"] == "modelopt"
        tensors = load(folder)
        inputs = "_input_scale" if modelopt else "_input_global_scale"
        quantized = {m: m + inputs in tensors or f"{m}.{inputs[1:]}" in tensors
                     for m in expected_values(tensors, modelopt)}
        states = dict(quantized)
        for name, tensor in kept_tensors(tensors, modelopt).items():
            linear = tensor.dim() == 2 and name.endswith(".weight")
            if linear and not re.search(r"(embed\w*|norm\w*|conv1d)\.weight$", name):
                states[name.removesuffix(".weight")] = None
        if not any(re.search(r"\blm_head$", name) for name in states):
            states["lm_head"] = None  # tied
        config = config_of(model_config)
        units = units_of(states)
        for name, members in units.items():
            expected = {states[m] for m in members}
            if len(expected) != 1:
                problems.append(f"{name}: members are treated in different ways")
                continue
            experts = re.search(r"\bexperts$", name)
            layer = bare(FusedMoE if experts else
                         ParallelLMHead if name.endswith("lm_head") else LinearBase)
            try:
                with mock.patch.object(modelopt_quant, "ModelOptNvFp4FusedMoEMethod", Method), \
                        mock.patch.object(CompressedTensorsW4A4Nvfp4MoE, "requires_blackwell",
                                          False), \
                        mock.patch("torch.cuda.get_device_capability", lambda *args: (10, 0)):
                    method = config.get_quant_method(layer, name)
                if {state_of(method, layer)} != expected:
                    problems.append(f"{name}: SGLang: {type(method).__name__}, ours: {expected}")
                elif expected != {None} and not experts and modelopt:
                    check_parameters(name, method, members, tensors, problems)
            except Exception as error:  # what the library raises is its own affair
                problems.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        failed |= report(folder, f"{type(config).__name__}, {len(units)} modules, "
                         f"{len(quantized)} matrices", problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
