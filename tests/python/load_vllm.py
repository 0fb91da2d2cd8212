#!/usr/bin/env python3
"""Loads exported folders into vLLM's own models and compares every parameter with the folder.

    python3.11 -m venv vllm && vllm/bin/pip install vllm==0.33.0
    vllm/bin/python tests/python/load_vllm.py FOLDER...

No GPU is needed: vLLM makes its configuration, its model and its parameters on the CPU, and its
loader fills them; nothing is run. Two things are put in place of what a CPU lacks: the choice of a
kernel for linear layers and for experts, neither of which looks at the checkpoint. Of each folder:
  - every linear layer and every expert that the folder holds quantized is quantized in the model,
    with the parts of fused layers side by side and with the folder's bytes, and no other is;
  - the scalars of a fused layer are one value, so that vLLM's own choice among them is ours;
  - every other parameter has the values of the folder, and none is left as it was allocated.
A line for each folder, what differs below it; exit code 1 where anything does.
"""

import argparse
import importlib
import json
import os
import pathlib
import pkgutil
import re
import sys

os.environ["VLLM_TARGET_DEVICE"] = "cpu"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import (destroy_model_parallel, init_distributed_environment,
                              initialize_model_parallel)
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearLayerConfig
from vllm.model_executor.kernels.linear.nvfp4.emulation import EmulationNvFp4LinearKernel
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization import compressed_tensors, modelopt
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model

from exported import expected_values, kept_tensors, load, report


def replace_choices_of_kernels():
    for found in pkgutil.walk_packages(compressed_tensors.__path__, compressed_tensors.__name__ + "."):
        if "fp4" in found.name:
            importlib.import_module(found.name)
    kernel = EmulationNvFp4LinearKernel(NvFp4LinearLayerConfig())
    backend = modelopt.NvFp4MoeBackend.EMULATION
    for name, module in list(sys.modules.items()):
        if not name.startswith("vllm.model_executor.layers.quantization"):
            continue
        if hasattr(module, "init_nvfp4_linear_kernel"):
            module.init_nvfp4_linear_kernel = lambda *args, **kwargs: kernel
        if hasattr(module, "select_nvfp4_moe_backend"):
            module.select_nvfp4_moe_backend = lambda *args, **kwargs: (backend, None)


# What a member of a layer is called on disk, in either format, and in vLLM's parameters.
PARTS = {
    "modelopt": {"weight": "weight", "weight_scale": "weight_scale",
                 "weight_scale_2": "weight_scale_2", "input_scale": "input_scale"},
    "compressed-tensors": {"weight_packed": "weight_packed", "weight_scale": "weight_scale",
                           "weight_global_scale": "weight_global_scale",
                           "input_global_scale": "input_global_scale"},
}
EXPERT_NAMES = [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")]


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(
        a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))


def rename(name, prefixes):
    """A name on disk as the model's own: "model.language_model.a" -> "language_model.model.a"."""
    found = next((p for p in prefixes if name.startswith(p)), "")
    return (prefixes[found] or "") + name.removeprefix(found) if found else name


class Comparison:
    def __init__(self, folder, model, config):
        quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
        self.parts = PARTS[quantization["quant_method"]]
        modelopt_format = quantization["quant_method"] == "modelopt"
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        prefixes = getattr(mapper, "orig_to_new_prefix", None) or {}
        self.tensors = {rename(name, prefixes): tensor for name, tensor in load(folder).items()}
        self.quantized = set(expected_values(self.tensors, modelopt_format))
        self.kept = kept_tensors(self.tensors, modelopt_format)
        self.packed = getattr(model, "packed_modules_mapping", {})
        self.layers = config.model_config.hf_text_config.num_hidden_layers
        self.model, self.config = model, config
        self.claimed, self.problems = set(), []

    def members(self, name):
        parent, dot, leaf = name.rpartition(".")
        return [parent + dot + m for m in self.packed.get(leaf, [leaf])]

    def turned(self, name):
        """A tensor of the folder, with the rows of q and k in the order that Llama-4 has in vLLM."""
        tensor = self.tensors[name]
        found = re.search(r"^language_model\..*\.(q|k)_proj\.weight", name)
        if self.config.model_config.hf_config.model_type != "llama4" or not found or tensor.dim() < 2:
            return tensor
        text = self.config.model_config.hf_text_config
        heads = text.num_attention_heads if found[1] == "q" else text.num_key_value_heads
        return tensor.reshape(heads, -1, 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)

    def check_parameter(self, what, parameter, name):
        """One tensor of the folder and where it went."""
        self.claimed.add(name)
        if name not in self.tensors:
            self.problems.append(f"{what}: vLLM has a parameter for {name}, the folder none")
        elif not same(parameter, self.turned(name)):
            self.problems.append(f"{what}: {list(parameter.shape)} {parameter.dtype} is not {name}: "
                                 f"{list(self.tensors[name].shape)} {self.tensors[name].dtype}")

    def check_scalars(self, what, parameter, names):
        """One float a member; `parameter` is flat."""
        values = {float(v) for v in parameter}
        if len(values) != 1:
            self.problems.append(f"{what}: scalars of a fused layer differ: {sorted(values)[:4]}")
        for value, name in zip(parameter, names):
            tensor = self.tensors.get(name)
            self.check_parameter(what, value.reshape(() if tensor is None else tensor.shape), name)

    def check_linear(self, name, layer):
        members = self.members(name)
        if not any(name.startswith(m + ".") for m in members for name in self.tensors):
            return  # of a tower that the folder leaves out
        on_disk = {m in self.quantized for m in members}
        packed = next(iter(self.parts))
        in_model = hasattr(layer, "weight_scale")
        if on_disk != {in_model}:
            self.problems.append(f"{name}: quantized in vLLM: {in_model}, in the folder: {on_disk}")
            return
        widths = getattr(layer, "output_partition_sizes", None) or [len(getattr(
            layer, packed if in_model else "weight"))]
        if len(members) == 1:  # fused on disk already
            widths = [sum(widths)]
        if len(widths) != len(members):
            self.problems.append(f"{name}: {len(widths)} parts for {members}")
            return
        for disk, own in self.parts.items() if in_model else [("weight", "weight")]:
            parameter = getattr(layer, own, None)
            # Of weights alone, vLLM makes room for a scale of the input and throws it away.
            spec = getattr(layer.quant_method, "spec", None)
            if own == "input_scale" and spec is not None and spec.activation is None:
                parameter = None
            names = [f"{m}.{disk}" for m in members]
            if parameter is None:
                if any(n in self.tensors for n in names):
                    self.problems.append(f"{name}: no parameter for {names[0]}")
                    self.claimed |= set(names)
            elif isinstance(layer, ParallelLMHead):  # padded to a multiple of 64 words
                self.check_parameter(name, parameter[:len(self.tensors[names[0]])], names[0])
            elif parameter.dim() == 2:
                for rows, n in zip(parameter.split(widths), names):
                    self.check_parameter(name, rows, n)
            else:
                self.check_scalars(name, parameter.flatten(), names)

    def check_stacks(self, container, layer):
        """Of experts in one tensor [E, K, N], whose scalars hold for all of them."""
        for own, projection in (("w13", "gate_up_proj"), ("w2", "down_proj")):
            for part in ("weight", "weight_scale", "weight_scale_2", "input_scale"):
                name = f"{container}.{projection}" + ("" if part == "weight" else f"_{part}")
                self.claimed.add(name)
                parameter, tensor = getattr(layer, f"{own}_{part}"), self.tensors[name]
                if not same(parameter, tensor.mT if tensor.dim() else tensor.expand_as(parameter)):
                    self.problems.append(f"{container}: {own}_{part} is not {name}")

    def check_experts(self, name, layer):
        """w13 holds gate over up."""
        container = name.removesuffix(".routed_experts")
        if container + ".down_proj" in self.quantized:
            return self.check_stacks(container, layer)
        if container + ".down_proj" in self.kept:
            for own, projection in (("w13", "gate_up_proj"), ("w2", "down_proj")):
                name, parameter = f"{container}.{projection}", getattr(layer, own + "_weight")
                self.claimed.add(name)
                if not any(same(parameter, t) for t in (self.kept[name], self.kept[name].mT)):
                    self.problems.append(f"{container}: {own}_weight is not {name}")
            return
        gate, up, down = next(n for n in EXPERT_NAMES
                              if any(t.startswith(f"{container}.0.{n[0]}.") for t in self.tensors))
        in_model = hasattr(layer, "w13_weight_scale")
        if (f"{container}.0.{gate}" in self.quantized) != in_model:
            self.problems.append(f"{name}: quantized in vLLM: {in_model}, in the folder not so")
            return
        for disk, own in self.parts.items() if in_model else [("weight", "weight")]:
            for which, leaves in (("w13", (gate, up)), ("w2", (down,))):
                parameter = getattr(layer, f"{which}_{own}", None)
                names = [[f"{container}.{e}.{leaf}.{disk}" for leaf in leaves]
                         for e in range(layer.global_num_experts)]
                if parameter is None or names[0][0] not in self.tensors:
                    # Of weights alone, vLLM makes room for scales of inputs and does not use them.
                    if names[0][0] in self.tensors:
                        self.problems.append(f"{name}: no parameter for {names[0][0]}")
                    elif parameter is not None and disk not in ("input_scale",
                                                                "input_global_scale"):
                        self.problems.append(f"{name}: the folder has no {names[0][0]}")
                    continue
                for expert, of in enumerate(names):
                    if parameter.dim() == 3:
                        for rows, n in zip(parameter[expert].chunk(len(leaves)), of):
                            self.check_parameter(name, rows, n)
                    else:
                        self.check_scalars(f"{name}[{expert}]", parameter[expert].flatten(), of)

    def run(self):
        seen = 0
        for name, layer in self.model.named_modules():
            if isinstance(layer, (LinearBase, ParallelLMHead)) and (
                    name + ".weight" in self.tensors or not isinstance(layer, ParallelLMHead)
                    or hasattr(layer, "weight_scale")):
                self.check_linear(name, layer)
                seen += 1
            elif isinstance(layer, RoutedExperts):
                self.check_experts(name, layer)
                seen += 1
        # Everything else that vLLM has under the name on disk.
        parameters = dict(self.model.named_parameters())
        for name, tensor in self.kept.items():
            if name in self.claimed:
                continue
            self.claimed.add(name)
            found = re.search(r"\blayers\.(\d+)\.", name)
            if name in parameters:
                padded = parameters[name][:tensor.shape[0]] if tensor.dim() else parameters[name]
                if not same(padded, tensor.to(padded.dtype)):
                    self.problems.append(f"{name}: other values")
            elif not (found and int(found[1]) >= self.layers):
                self.problems.append(f"{name}: vLLM has no such parameter")
        for name in sorted(set(self.tensors) - self.claimed):
            found = re.search(r"\blayers\.(\d+)\.", name)
            if not (found and int(found[1]) >= self.layers):
                self.problems.append(f"{name}: vLLM has no place for it")
        return seen


def load_model(folder):
    config = EngineArgs(model=str(folder), skip_tokenizer_init=True, dtype="bfloat16",
                        max_model_len=64, enforce_eager=True).create_engine_config()
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            init_distributed_environment(1, 0, "tcp://127.0.0.1:29511", 0, "gloo")
        initialize_model_parallel(1, 1)
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = initialize_model(config)
            DefaultModelLoader(config.load_config).load_weights(model, config.model_config)
        finally:
            torch.set_default_dtype(torch.float32)
            destroy_model_parallel()
    return model, config


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    replace_choices_of_kernels()
    failed = False
    for folder in args.folders:
        problems, text = [], "refused"
        try:
            model, config = load_model(folder)
            comparison = Comparison(folder, model, config)
            seen = comparison.run()
            problems = comparison.problems
            text = (f"{type(model).__name__}, {config.model_config.quantization}, {seen} layers, "
                    f"{len(comparison.quantized)} matrices")
        except Exception as error:  # what the library raises is its own affair
            problems.append(f"{type(error).__name__}: {str(error)[:400]}")
        failed |= report(folder, text, problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
