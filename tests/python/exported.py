"""What the load_*.py beside share: what the bytes of an exported folder stand for, by a formula of our own."""

import re

import torch
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


def input_scale(tensors, module, modelopt):
    """The multiplier, or None where the module has none."""
    scale = tensors.get(module + (".input_scale" if modelopt else ".input_global_scale"))
    return None if scale is None else float(scale if modelopt else 1 / scale)


def kept_tensors(tensors, modelopt):
    """Those that belong to no quantized matrix."""
    parts = r"_weight_scale(_2)?|_input_scale" if modelopt else r"\.weight_packed"
    parts += r"|\.(weight_scale(_2)?|weight_global_scale|input_scale|input_global_scale)"
    quantized = expected_values(tensors, modelopt)
    return {name: tensor for name, tensor in tensors.items()
            if not re.search(f"({parts})$", name) and name.removesuffix(".weight") not in quantized}


def difference(a, b):
    """Relative to the largest value; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-30))


def report(folder, text, problems):
    """A line for the folder, one for each of its problems; whether there were any."""
    print(f"{folder}: {text}", flush=True)
    for problem in problems[:20]:
        print(f"  {problem}")
    return bool(problems)
