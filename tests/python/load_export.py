#!/usr/bin/env python3
"""Loads exported folders with the libraries of other people and compares what they see with ours.

    python3 -m venv peers && peers/bin/pip install torch transformers compressed-tensors accelerate
    build/release/tests/write_models DIR       (or folders that `nibble quantize` wrote)
    peers/bin/python tests/python/load_export.py DIR/compressed-tensors/* DIR/modelopt/*

For each folder: the values that the bytes stand for, by a formula of our own, against
  - compressed-tensors' NVFP4PackedCompressor (modelopt folders through its ModelOptNvfp4Converter),
    with the scheme that its own parser makes of config.json;
  - every weight of the model that transformers' from_pretrained makes of the folder, dequantized
    (compressed-tensors folders of architectures that it knows), whose logits must be finite; and
    that it finds a place for every scale where it keeps the model quantized.
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

from exported import difference, expected_values, load, report


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


def close(theirs, ours, what, problems):
    apart = difference(theirs, ours)
    if not apart <= 2**-7:
        problems.append(f"{what}: transformers' values are {apart:.3g} away")
    return apart


def auto_class(folder):
    import transformers

    config = json.loads((folder / "config.json").read_text())
    beside = config["architectures"][0].endswith("ForConditionalGeneration")
    return transformers.AutoModelForImageTextToText if beside else transformers.AutoModelForCausalLM


def check_dequantized(folder, tensors, expected, problems, notes):
    """The model in fp32, its weights dequantized while they are loaded."""
    import transformers

    model, info = auto_class(folder).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True,
        quantization_config=transformers.CompressedTensorsConfig(dequantize=True))
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        # Nothing reads the scales of inputs here, nor layers of speculative decoding.
        keys = [k for k in map(str, info[kind]) if not k.endswith("input_global_scale")]
        keys = [k for k in keys if not is_elsewhere(k, model.config)]
        if keys:
            problems.append(f"transformers: {kind}: {keys[:4]} of {len(keys)}")
    state = model.state_dict()
    apart, compared, experts = [0.0], 0, {}
    for module, ours in expected.items():
        found = re.match(r"(.*experts\.)(\d+)\.(\w+)$", module)
        theirs = state.get(module + ".weight")
        if theirs is not None:
            compared += 1
            apart.append(close(theirs, ours, module, problems))
        elif found:
            # In memory a layer's experts are one tensor, gate over up, and w1, w3, w2 are renamed.
            container = found[1].replace("block_sparse_moe", "mlp")
            name = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.get(found[3], found[3])
            experts.setdefault((container, int(found[2])), {})[name] = (
                ours, tensors[module + ".weight_global_scale"])
        elif not is_elsewhere(module, model.config):
            problems.append(f"{module}: transformers' model has none")
    unscaled = 0
    for (container, expert), parts in experts.items():
        if container + "down_proj" not in state:
            if not is_elsewhere(container, model.config):
                problems.append(f"{container}{expert}: transformers' model has none")
            continue
        gate_up, down = state[container + "gate_up_proj"][expert], state[container + "down_proj"][expert]
        for theirs, names in ((gate_up, ("gate_proj", "up_proj")), (down, ("down_proj",))):
            ours = torch.cat([parts[n][0] for n in names])
            divisor = parts[names[0]][1]
            compared += 1
            # A defect of theirs, huggingface/transformers#48372: experts lose the global scale.
            if difference(theirs, ours) > 2**-7 and difference(theirs / divisor, ours) <= 2**-7:
                unscaled += 1
                theirs = theirs / divisor
            apart.append(close(theirs, ours, f"{container}{expert} {names}", problems))
    if unscaled:
        notes.append(f"{unscaled} tensors of experts without their global scale (transformers#48372)")
    if compared == 0:
        problems.append("transformers: nothing to compare")
    check_logits(model.float(), problems)  # a text_config may ask for a type of its own
    notes.append(f"transformers within {max(apart):.3g} ({compared} compared)")


def check_quantized(folder, problems):
    """The model as it is stored: every scale of weights and inputs has its place."""
    import transformers

    model, info = auto_class(folder).from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        # Modules of experts are no linear layers of transformers, so their scales have no place.
        keys = [k for k in map(str, info[kind])
                if ".experts" not in k and not is_elsewhere(k, model.config)]
        if keys:
            problems.append(f"transformers, quantized: {kind}: {keys[:4]} of {len(keys)}")
    if not any(".experts" in k for k in map(str, info["missing_keys"])):
        check_logits(model, problems)


def check_logits(model, problems):
    with torch.no_grad():
        logits = model(torch.arange(8)[None]).logits
    if not torch.isfinite(logits).all():
        problems.append("transformers: logits are not finite")


def is_elsewhere(name, config):
    """Of layers of speculative decoding, and of towers, of which made-up folders have a part only."""
    found = re.search(r"\blayers\.(\d+)\.", name)
    beyond = found is not None and int(found[1]) >= config.get_text_config().num_hidden_layers
    return beyond or re.search(r"vis(ion|ual)|multi_modal_projector", name) is not None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    parser.add_argument("--skip-transformers", action="store_true")
    args = parser.parse_args()
    if not args.skip_transformers:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    failed = False
    for folder in args.folders:
        problems = []
        tensors = load(folder)
        config = json.loads((folder / "config.json").read_text())
        modelopt = config["quantization_config"]["quant_method"] == "modelopt"
        expected = expected_values(tensors, modelopt)
        worst = check_compressor(tensors, config, expected, problems, modelopt)
        text = f"{len(expected)} matrices, compressed-tensors within {worst:.3g}"
        if not modelopt and not args.skip_transformers:
            notes = []
            for check in (lambda: check_dequantized(folder, tensors, expected, problems, notes),
                          lambda: check_quantized(folder, problems)):
                try:
                    check()
                except Exception as error:  # what the library raises is its own affair
                    problems.append(f"transformers: {type(error).__name__}: {str(error)[:500]}")
            text += "".join(f", {note}" for note in notes)
        failed |= report(folder, text, problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
