#!/usr/bin/env python3
"""Checks a folder of an exported NVFP4 model, knowing nothing of the program that made it.

    check_export.py OUT [--against SOURCE] [--max-scales] [--worst N]

Reads safetensors and JSON by itself, in plain Python. Prints a line for each defect; exit code 1
where there is one. With --against, every quantized value is decoded, must be the nearest that its
block's scale allows, and adds to its tensor's error; everything else must be a copy. --max-scales:
block scales must be those of the blocks' largest magnitudes (no search, no 4over6).
"""

import argparse
import bisect
import fnmatch
import json
import math
import os
import re
import struct
import sys

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
CODES = E2M1 + [-x for x in E2M1]
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2,
         "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8}


def e4m3(byte):
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    value = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -value if byte & 128 else value


E4M3 = [e4m3(b) for b in range(256)]


def float32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def nearest_e4m3(x):
    """Of 0 <= x <= 448, ties to the even code."""
    above = min(bisect.bisect_left(E4M3, x, 0, 127), 126)
    return min((above, max(above - 1, 0)), key=lambda code: (abs(E4M3[code] - x), code & 1))


class Tensor:
    def __init__(self, file, begin, end, dtype, shape):
        self.file, self.begin, self.end, self.dtype, self.shape = file, begin, end, dtype, shape

    def bytes(self):
        with open(self.file, "rb") as f:
            f.seek(self.begin)
            return f.read(self.end - self.begin)

    def floats(self):
        data = self.bytes()
        if self.dtype == "F32":
            return struct.unpack(f"<{len(data) // 4}f", data)
        if self.dtype == "F16":
            return struct.unpack(f"<{len(data) // 2}e", data)
        if self.dtype == "BF16":
            words = struct.unpack(f"<{len(data) // 2}H", data)
            return struct.unpack(f"<{len(words)}f", struct.pack(f"<{len(words)}I",
                                                               *(w << 16 for w in words)))
        raise ValueError(f"no floats in {self.dtype}")


class Checker:
    def __init__(self):
        self.defects = []

    def expect(self, condition, text):
        if not condition:
            self.defects.append(text)
        return bool(condition)

    # --- Files ----------------------------------------------------------------------------------

    def read_shard(self, path):
        size = os.path.getsize(path)
        with open(path, "rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(length))
        metadata = header.pop("__metadata__", {})
        self.expect(metadata.get("format") == "pt", f"{path}: no metadata format=pt")
        tensors, covered = {}, 0
        for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = info["data_offsets"]
            self.expect(begin == covered, f"{path}: {name}: a hole or an overlap at {begin}")
            covered = end
            elements = math.prod(info["shape"])
            self.expect(elements * SIZES[info["dtype"]] == end - begin,
                        f"{path}: {name}: {end - begin} bytes for {info}")
            tensors[name] = Tensor(path, 8 + length + begin, 8 + length + end, info["dtype"],
                                   info["shape"])
        self.expect(8 + length + covered == size, f"{path}: {size} bytes, the header says otherwise")
        return tensors

    def read_folder(self, folder, is_result):
        files = sorted(f for f in os.listdir(folder) if f.endswith(".safetensors"))
        self.expect(files, f"{folder}: no safetensors")
        tensors, places = {}, {}
        for file in files:
            for name, tensor in self.read_shard(os.path.join(folder, file)).items():
                self.expect(name not in tensors, f"{name}: in {places.get(name)} and {file}")
                tensors[name], places[name] = tensor, file
        index = os.path.join(folder, "model.safetensors.index.json")
        if os.path.exists(index):
            with open(index) as f:
                index = json.load(f)
            self.expect(index["weight_map"] == places, "index: weight_map is not what is in files")
            total = sum(t.end - t.begin for t in tensors.values())
            self.expect(index["metadata"]["total_size"] == total, f"index: total_size is not {total}")
        else:
            self.expect(files == ["model.safetensors"], "no index")
        if is_result and len(files) > 1:
            expected = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
            self.expect(files == expected, f"shards are called {files}")
        with open(os.path.join(folder, "config.json")) as f:
            return tensors, json.load(f)

    # --- Configurations -------------------------------------------------------------------------

    def check_modelopt_config(self, folder, q):
        with open(os.path.join(folder, "hf_quant_config.json")) as f:
            file = json.load(f)
        self.expect(file["producer"]["name"] == "modelopt", "producer is not modelopt")
        file = file["quantization"]
        self.expect(file["quant_algo"] == q["quant_algo"], "quant_algo of the two files differ")
        self.expect("kv_cache_quant_algo" in file, "no kv_cache_quant_algo")
        cache = {"dynamic": False, "num_bits": 8, "type": "float"}
        self.expect(q.get("kv_cache_scheme") == (cache if file["kv_cache_quant_algo"] else None),
                    "kv cache of the two files differ")
        groups = list(q["config_groups"].values())
        args = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
        for group in groups:
            self.expect(group["weights"] == args, f"weights are {group['weights']}")
            self.expect(group.get("input_activations", args) == args, "input_activations are odd")
        if q["quant_algo"] == "MIXED_PRECISION":
            self.expect(file["quantized_layers"] == q["quantized_layers"] != {}, "quantized_layers")
            self.expect("exclude_modules" not in file and q["ignore"] == [], "excludes where mixed")
            declared = {}
            for group in groups:
                for target in group["targets"]:
                    declared[target] = "input_activations" in group
            layers = {name: layer["quant_algo"] == "NVFP4"
                      for name, layer in q["quantized_layers"].items()}
            self.expect(declared == layers, "config_groups and quantized_layers differ")
            return lambda module: layers.get(module)
        self.expect(q["quant_algo"] in ("NVFP4", "W4A16_NVFP4"), q["quant_algo"])
        self.expect(file["exclude_modules"] == q["ignore"], "excludes of the two files differ")
        self.expect(file["group_size"] == 16, "group_size is not 16")
        self.expect(len(groups) == 1 and groups[0]["targets"] == ["Linear"], "groups")
        w4a4 = q["quant_algo"] == "NVFP4"
        self.expect(("input_activations" in groups[0]) == w4a4, "input_activations and quant_algo")
        return lambda module: w4a4

    def check_compressed_tensors_config(self, folder, q):
        self.expect(not os.path.exists(os.path.join(folder, "hf_quant_config.json")),
                    "a hf_quant_config.json beside compressed-tensors")
        self.expect(q["format"] == "nvfp4-pack-quantized", "format")
        self.expect(q["quantization_status"] == "compressed", "status")
        groups = []
        for group in q["config_groups"].values():
            for args in (group["weights"], group["input_activations"]):
                fits = args is None or all(
                    args[key] == value for key, value in
                    {"num_bits": 4, "type": "float", "group_size": 16, "symmetric": True,
                     "strategy": "tensor_group"}.items())
                self.expect(fits, f"scheme {args}")
            self.expect(group["weights"]["dynamic"] is False, "weights dynamic")
            inputs = group["input_activations"]
            self.expect(inputs is None or inputs["dynamic"] == "local", "inputs not dynamic local")
            groups.append((group["targets"], inputs is not None))

        def w4a4(module):
            for classes in ([], ["Linear"]):
                for targets, has_inputs in groups:
                    if any(ct_match(t, module) or t in classes for t in targets):
                        return has_inputs
            return None

        return w4a4

    # --- Tensors --------------------------------------------------------------------------------

    def find_matrices(self, tensors, modelopt):
        """module -> dict of its parts; columns: packed along the middle axis."""
        if modelopt:
            kinds = [(".weight", ".weight_scale", ".weight_scale_2", ".input_scale", False),
                     ("", "_weight_scale", "_weight_scale_2", "_input_scale", True)]
        else:
            kinds = [(".weight_packed", ".weight_scale", ".weight_global_scale",
                      ".input_global_scale", False)]
        matrices, used = {}, set()
        for codes, scale, outer, inputs, columns in kinds:
            for name in tensors:
                if not name.endswith(scale) or (columns and name.endswith("." + scale[1:])):
                    continue
                module = name[: -len(scale)]
                names = {"codes": module + codes, "scale": name, "outer": module + outer,
                         "input": module + inputs}
                matrices[module] = {part: tensors.get(n) for part, n in names.items()}
                matrices[module]["columns"] = columns
                used |= {n for n in names.values() if n in tensors}
        for name, tensor in tensors.items():
            if name in used:
                continue
            self.expect(tensor.dtype not in ("U8", "F8_E4M3"), f"{name}: {tensor.dtype}, part of none")
            self.expect(not re.search(r"(weight_scale_2|global_scale|input_scale|_scale_inv|_blocks|"
                                      r"_scales|_amax|weight_packed)$", name), f"{name}: left over")
        return matrices, used

    def check_scalar(self, name, tensor, modelopt):
        if not self.expect(tensor.dtype == "F32" and tensor.shape == ([] if modelopt else [1]),
                           f"{name}: {tensor.dtype} {tensor.shape}"):
            return None
        (value,) = tensor.floats()
        smallest = 2.0**-126
        good = smallest <= value < math.inf and smallest <= 1 / value < math.inf
        return value if self.expect(good, f"{name}: {value}") else None

    def check_matrix(self, module, m, w4a4, modelopt):
        if not self.expect(w4a4 is not None, f"{module}: quantized, the configuration says not"):
            return
        for part in ("codes", "scale", "outer"):
            if not self.expect(m[part], f"{module}: no {part}"):
                return
        self.expect((m["input"] is not None) == w4a4, f"{module}: input scale and configuration")
        if m["input"]:
            self.check_scalar(module + " input", m["input"], modelopt)
        m["multiplier"] = self.check_scalar(module + " outer", m["outer"], modelopt)
        if m["multiplier"] and not modelopt:
            m["multiplier"] = float32(1 / m["multiplier"])
        codes, scale = m["codes"], m["scale"]
        axis = 1 if m["columns"] else len(codes.shape) - 1
        self.expect(codes.dtype == "U8" and len(codes.shape) == (3 if m["columns"] else 2),
                    f"{module}: codes {codes.dtype} {codes.shape}")
        shape = list(codes.shape)
        shape[axis] //= 8
        self.expect(codes.shape[axis] % 8 == 0 and scale.shape == shape and
                    scale.dtype == "F8_E4M3", f"{module}: scale {scale.dtype} {scale.shape}")
        bad = [b for b in scale.bytes() if not 1 <= b <= 126]
        self.expect(not bad, f"{module}: {len(bad)} block scales like {bad[:3]}")

    def check_shared(self, matrices):
        sets = [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"),
                ("q_a_proj", "kv_a_proj_with_mqa"), ("in_proj_qkv", "in_proj_z")]
        for module, m in matrices.items():
            parent, _, last = module.rpartition(".")
            for members in sets:
                if last != members[0]:
                    continue
                for other in members[1:]:
                    o = matrices.get(f"{parent}.{other}")
                    for part in ("outer", "input") if o else ():
                        if m[part] and o[part]:
                            self.expect(m[part].bytes() == o[part].bytes(),
                                        f"{parent}.{other}: {part} scale is not {last}'s")
            found = re.match(r"(.*\bexperts)\.0\.(\w+)$", module)
            for e in range(1, 100000) if found else ():
                o = matrices.get(f"{found[1]}.{e}.{found[2]}")
                if o is None:
                    break
                if m["input"] and o["input"]:
                    self.expect(m["input"].bytes() == o["input"].bytes(),
                                f"{found[1]}.{e}.{found[2]}: input scale is not that of expert 0")

    # --- What loaders exclude -------------------------------------------------------------------

    def check_excludes(self, tensors, used, matrices, ignore, modelopt):
        fused = {"q_proj": (["q_proj", "k_proj", "v_proj"], "qkv_proj"),
                 "gate_proj": (["gate_proj", "up_proj"], "gate_up_proj"),
                 "q_a_proj": (["q_a_proj", "kv_a_proj_with_mqa"], "fused_qkv_a_proj_with_mqa")}
        state = {module: True for module in matrices}
        for name, tensor in tensors.items():
            if name in used or tensor.dtype not in ("BF16", "F16", "F32"):
                continue
            if len(tensor.shape) == 3 and ".experts." in name:
                state[name.removesuffix(".weight")] = False
            elif len(tensor.shape) == 2 and name.endswith(".weight"):
                module = name.removesuffix(".weight")
                if not re.search(r"(embed\w*|norm\w*|conv1d)$", module):
                    state[module] = False
        if not any(re.search(r"\blm_head$", module) for module in state):
            state["lm_head"] = False
        asked = []  # (name, members on disk, quantized)
        containers = {}
        done = set()
        for module, quantized in state.items():
            found = re.match(r"(.*\bexperts)\.", module)
            if found:
                containers.setdefault(found[1], set()).add(quantized)
                done.add(module)
        for container, states in containers.items():
            if self.expect(len(states) == 1, f"{container}: some experts quantized, some not"):
                asked.append((container, [], states.pop()))
        for module in state:
            parent, _, last = module.rpartition(".")
            if module in done or last not in fused:
                continue
            members = [f"{parent}.{m}" for m in fused[last][0]]
            if not all(m in state for m in members):
                continue
            done |= set(members)
            if self.expect(len({state[m] for m in members}) == 1, f"{members}: not alike"):
                asked.append((f"{parent}.{fused[last][1]}", members, state[module]))
        asked += [(module, [], state[module]) for module in state if module not in done]

        for name, members, quantized in asked:
            names = members or [name]
            if modelopt:
                exact = {n in ignore for n in names}
                vllm = (exact == {True} or any(p in name for p in ignore) or
                        any(fnmatch.fnmatchcase(name, p) for p in ignore))
                self.expect(len(exact) == 1 and vllm != quantized, f"{name}: vLLM excludes it: {vllm}")
                sglang = any(
                    re.fullmatch(p.replace(".", r"\.").replace("*", ".*"), text)
                    for p in ignore for text in [name] + name.split("."))
                sglang = sglang or any(
                    p.split(".")[-1] in name.split(".")[-1] for p in ignore
                    if p.split(".")[-1] in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa",
                                            "kv_b_proj"))
                self.expect(sglang != quantized, f"{name}: SGLang excludes it: {sglang}")
                trt = {any(fnmatch.fnmatchcase(n, p) for p in ignore) for n in names}
                self.expect(trt == {not quantized}, f"{name}: TensorRT-LLM excludes it: {trt}")
            else:
                if re.search(r"\bexperts$", name):
                    names = [name + ".0.gate_proj"]
                ct = {any(ct_match(p, n) for p in ignore) for n in names}
                self.expect(ct == {not quantized}, f"{name}: compressed-tensors ignores it: {ct}")
                # SGLang, where an architecture does not tell it what is fused.
                own = any(ct_match(p, name) for p in ignore)
                self.expect(own != quantized, f"{name}: SGLang ignores it: {own}")

    # --- Values ---------------------------------------------------------------------------------

    def check_values(self, module, m, weights, rows, k, at, max_scales):
        """weights: rows x k floats, of the matrix (of a stack of them) that starts at value `at`."""
        g = m["multiplier"]
        codes, scales = m["code_bytes"], m["scale_bytes"]
        error = norm = 0.0
        worst = 0.0
        for row in range(rows):
            for block in range(0, k, 16):
                if m["columns"]:  # [k / 16, rows] and [k / 2, rows] from `at` on
                    s = scales[at // 16 + block // 16 * rows + row]
                    part = [codes[at // 2 + (block // 2 + j) * rows + row] for j in range(8)]
                else:
                    s = scales[(at + row * k + block) // 16]
                    begin = (at + row * k + block) // 2
                    part = codes[begin : begin + 8]
                if m["columns"]:
                    values = [weights[(block + j) * rows + row] for j in range(16)]
                else:
                    values = weights[row * k + block : row * k + block + 16]
                step = E4M3[s] * g
                if max_scales:
                    ratio = max(abs(w) for w in values) / (6 * g)
                    ratio = 1.0 if ratio == 0 else min(max(ratio, 2.0**-9), 448.0)
                    # Where rounding was a matter of the last bit, either neighbour will do.
                    near = {nearest_e4m3(min(ratio * (1 + d), 448.0)) for d in (-1e-6, 0, 1e-6)}
                    self.expect(s in near, f"{module}: row {row}, block at {block}: scale {s}")
                for j, w in enumerate(values):
                    code = part[j // 2] >> 4 * (j & 1) & 15
                    q = CODES[code] * step
                    distance = abs(w - q)
                    nearest = min(abs(abs(w) - x * step) for x in E2M1)
                    if step > 0:
                        worst = max(worst, (distance - nearest) / step)
                    error += distance * distance
                    norm += w * w
        self.expect(worst < 1e-5, f"{module}: a value {worst:.3g} steps beyond its nearest code")
        return error, norm

    def are_turned(self, parent, source, matrices):
        """Whether experts of [E, K, N] became matrices [N, K], by any tensor that is no square."""
        for name, tensor in source.items():
            module = name.removesuffix(".weight")
            if module.rpartition(".")[0] != parent or len(tensor.shape) != 3:
                continue
            last = module.rpartition(".")[2]
            parts, first = (2, "gate_proj") if last == "gate_up_proj" else (1, last)
            found = matrices.get(f"{parent}.0.{first}")
            _, a, b = tensor.shape
            if found and "codes" in found and a != b:
                return found["codes"].shape == [b // parts, a // 2]
        return False

    def check_against(self, source, result, used, matrices, max_scales, errors):
        claimed = set(used)
        for name, tensor in source.items():
            module = name.removesuffix(".weight")
            parent, _, last = module.rpartition(".")
            pieces = []  # (module, rows, k, first value in the source)
            shape, turned = tensor.shape, False
            if module in matrices and matrices[module]["columns"]:
                pieces = [(module, shape[2], shape[1], e * shape[1] * shape[2]) for e in range(shape[0])]
            elif module in matrices:
                pieces = [(module, shape[0], shape[1], 0)]
            elif name not in result and len(shape) == 3:
                names = ["gate_proj", "up_proj"] if last == "gate_up_proj" else [last]
                turned = self.are_turned(parent, source, matrices)
                n, k = (shape[2], shape[1]) if turned else (shape[1], shape[2])
                rows = n // len(names)
                for e in range(shape[0]):
                    for i, part in enumerate(names):
                        pieces.append((f"{parent}.{e}.{part}", rows, k, (e * n + i * rows) * k))
            if not pieces:
                if self.expect(name in result, f"{name}: missing"):
                    copy = result[name]
                    same = (copy.dtype, copy.shape) == (tensor.dtype, tensor.shape)
                    self.expect(same and copy.bytes() == tensor.bytes(), f"{name}: not a copy")
                    claimed.add(name)
                continue
            floats = tensor.floats()
            if turned:  # [E, K, N] becomes [E, N, K]
                floats = [floats[(e * k + j) * n + i]
                          for e in range(shape[0]) for i in range(n) for j in range(k)]
            for piece, rows, k, first in pieces:
                m = matrices.get(piece)
                if not self.expect(m and m.get("multiplier"), f"{piece}: missing"):
                    continue
                m["claimed"] = True
                expected = [shape[0], k // 2, rows] if m["columns"] else [rows, k // 2]
                if not self.expect(m["codes"].shape == expected, f"{piece}: {m['codes'].shape}"):
                    continue
                m["code_bytes"], m["scale_bytes"] = m["codes"].bytes(), m["scale"].bytes()
                error, norm = self.check_values(piece, m, floats[first : first + rows * k], rows, k,
                                                first if m["columns"] else 0, max_scales)
                old = errors.get(piece, (0.0, 0.0))
                errors[piece] = (old[0] + error, old[1] + norm)
        for module, m in matrices.items():
            self.expect(m.get("claimed"), f"{module}: stands for nothing of the source")
        for name in result:
            self.expect(name in claimed, f"{name}: extra")


def ct_match(entry, name):
    return re.match(entry[3:], name) is not None if entry.startswith("re:") else entry == name


def without_quantization(config):
    return {key: without_quantization(value) if isinstance(value, dict) else value
            for key, value in config.items()
            if key not in ("quantization_config", "compression_config")}


def has_key(config, key):
    return isinstance(config, dict) and (
        key in config or any(has_key(value, key) for value in config.values()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--against")
    parser.add_argument("--max-scales", action="store_true")
    parser.add_argument("--worst", type=int, default=5)
    args = parser.parse_args()

    checker = Checker()
    tensors, config = checker.read_folder(args.out, is_result=True)
    q = config.get("quantization_config", {})
    modelopt = q.get("quant_method") == "modelopt"
    checker.expect(modelopt or q.get("quant_method") == "compressed-tensors", "no quant_method")
    rest = {key: value for key, value in config.items() if key != "quantization_config"}
    checker.expect(not has_key(rest, "quantization_config"), "a stale quantization_config")
    check_config = (checker.check_modelopt_config if modelopt
                    else checker.check_compressed_tensors_config)
    w4a4 = check_config(args.out, q)
    matrices, used = checker.find_matrices(tensors, modelopt)
    checker.expect(matrices, "nothing is quantized")
    for module, m in matrices.items():
        checker.check_matrix(module, m, w4a4(module), modelopt)
    checker.check_shared(matrices)
    if q.get("quant_algo") != "MIXED_PRECISION":
        checker.check_excludes(tensors, used, matrices, q["ignore"], modelopt)
    else:
        for name in q["quantized_layers"]:
            checker.expect(name in matrices, f"{name}: declared as quantized, is not")
    errors = {}
    if args.against:
        source, source_config = checker.read_folder(args.against, is_result=False)
        checker.expect(without_quantization(config) == without_quantization(source_config),
                       "config.json: other keys changed")
        checker.expect(list(without_quantization(config)) ==
                       list(without_quantization(source_config)), "config.json: order of keys")
        checker.check_against(source, tensors, used, matrices, args.max_scales, errors)
    for defect in checker.defects:
        print(defect)
    ratios = sorted(((e / n if n else e, name) for name, (e, n) in errors.items()), reverse=True)
    for ratio, name in ratios[: args.worst]:
        print(f"relative MSE {ratio:.6g} {name}", file=sys.stderr)
    print(f"{len(tensors)} tensors, {len(matrices)} quantized, {len(checker.defects)} defects",
          file=sys.stderr)
    return 1 if checker.defects else 0


if __name__ == "__main__":
    sys.exit(main())
