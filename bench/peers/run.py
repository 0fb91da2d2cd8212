#!/usr/bin/env python3
"""Times Model-Optimizer's NVFP4 kernels and PyTorch references beside ours; see README.md."""

import argparse
import functools
import importlib
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile

WARM_UP = 10
L2_ROTATION_BYTES = 512 << 20  # as cuda_bench: no input is still cached when its turn comes
E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

torch = None  # imported in main, so that its absence can be said


def row(work, who, ms=None, note=""):
    print(f"| {work} | {who} | {'' if ms is None else f'{ms:.4f}'} | {note} |", flush=True)


def not_run(work, who, reason):
    row(work, who, note=f"not run: {reason}")


def package(name, hint):
    """The module and "", or None and why it is not there."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # a package that is there may still fail to load
        return None, f"{type(error).__name__}: {error} ({hint})"


def median_ms(launch, runs):
    """Median of launch(run) by events, after warm-up."""
    times = []
    for run in range(WARM_UP + runs):
        start = torch.cuda.Event(enable_timing=True)
        stop = torch.cuda.Event(enable_timing=True)
        start.record()
        launch(run)
        stop.record()
        stop.synchronize()
        if run >= WARM_UP:
            times.append(start.elapsed_time(stop))
    return statistics.median(times)


def rotated(rows, cols, dtype):
    """Copies of a normal matrix, more than the L2 cache holds."""
    x = torch.randn(rows, cols, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    x = x.to(dtype)
    copies = max(2, L2_ROTATION_BYTES // (x.numel() * x.element_size()))
    return [x.clone() for _ in range(copies)]


# --- PyTorch references, as one would write them without kernels of one's own ---------------------


def e4m3_values():
    """The 126 positive finite values, in rising order."""
    codes = torch.arange(1, 127, dtype=torch.uint8, device="cuda")
    return codes.view(torch.float8_e4m3fn).float()


@functools.lru_cache(maxsize=None)
def e2m1_tables():
    """The largest number that each index but the last stands for, and the magnitudes."""
    down = torch.tensor((0.25, 1.25, 2.5, 5.0))  # ties go to the even index
    up = torch.nextafter(torch.tensor((0.75, 1.75, 3.5)), torch.zeros(3))
    return torch.cat((down, up)).sort().values.cuda(), torch.tensor(E2M1_MAGNITUDES).cuda()


def e2m1_index(a):
    return torch.bucketize(a, e2m1_tables()[0], out_int32=True)


def e2m1_magnitude(a):
    return e2m1_tables()[1][e2m1_index(a)]


def torch_sweep(x, global_amax):
    """Best amax of each block of 16 by squared error, all 126 candidates one after another."""
    a = x.float().abs().view(-1, 16)
    best_loss = torch.full((a.shape[0],), float("inf"), device=a.device)
    best_amax = torch.zeros_like(best_loss)
    for value in e4m3_values() / 448:
        amax = value * global_amax
        scale = amax / 6
        loss = (a - e2m1_magnitude(a / scale) * scale).square().sum(dim=1)
        better = loss < best_loss
        best_loss = torch.where(better, loss, best_loss)
        best_amax = torch.where(better, amax, best_amax)
    return best_amax


def torch_quantize(x):
    """per_tensor, runtime rule: packed codes and E4M3 scales."""
    blocks = x.float().view(-1, 16)
    amax = blocks.abs().amax()
    encode = 448 * 6 / amax
    scale = (blocks.abs().amax(dim=1) * (encode / 6)).clamp(max=448).to(torch.float8_e4m3fn)
    inverse = (1 / (scale.float() / encode)).clamp(max=torch.finfo(torch.float32).max)
    scaled = (blocks * inverse[:, None]).clamp(-6, 6)
    index = e2m1_index(scaled.abs())
    codes = (index + 8 * (scaled < 0)).to(torch.uint8).view(-1, 2)
    return codes[:, 0] | codes[:, 1] << 4, scale


# --- The works ------------------------------------------------------------------------------------


def share_equal(a, b):
    """Of two lists of amaxes. Those of neighbouring candidates are 6 % apart or more, while PyTorch
    divides by a constant by multiplying with its reciprocal."""
    return f"{100 * torch.isclose(a, b, rtol=1e-5, atol=0).double().mean().item():.3f} %"


def sweeps(shapes, modelopt, modelopt_reason, runs):
    for rows, cols in shapes:
        work = f"sweep {rows}x{cols} bf16"
        copies = rotated(rows, cols, torch.bfloat16)
        g = copies[0].float().abs().amax()
        if modelopt is None:
            not_run(work, "Model-Optimizer, Triton", modelopt_reason)
        else:
            ms = median_ms(
                lambda run: modelopt.nvfp4_fp8_scale_sweep(copies[run % len(copies)], g), runs
            )
            note = ""
            if rows * cols <= 1 << 25:
                same = share_equal(modelopt.nvfp4_fp8_scale_sweep(copies[0], g).flatten(),
                                   torch_sweep(copies[0], g))
                note = f"blocks with the reference's winner: {same}"
            row(work, "Model-Optimizer, Triton", ms, note)
        if rows * cols > 1 << 25:
            not_run(work, "PyTorch, one candidate after another", "slow; see the smaller shape")
            continue
        ms = median_ms(lambda run: torch_sweep(copies[run % len(copies)], g), runs)
        row(work, "PyTorch, one candidate after another", ms)


def hessian_sweep(modelopt, modelopt_reason, runs):
    rows, cols = 8192, 4096
    work = f"Hessian sweep {rows}x{cols} bf16"
    if modelopt is None:
        not_run(work, "Model-Optimizer, Triton", modelopt_reason)
        return
    if not hasattr(modelopt, "nvfp4_fp8_scale_sweep_hessian"):
        not_run(work, "Model-Optimizer, Triton", "this version has no Hessian sweep")
        return
    copies = rotated(rows, cols, torch.bfloat16)
    g = copies[0].float().abs().amax()
    a = torch.randn(cols // 16, 16, 64, device="cuda")
    h = a @ a.transpose(1, 2) / 64
    ms = median_ms(
        lambda run: modelopt.nvfp4_fp8_scale_sweep_hessian(copies[run % len(copies)], g, h), runs
    )
    row(work, "Model-Optimizer, Triton", ms)


def hessian_accumulation(runs):
    tokens, channels = 8192, 4096
    work = f"Hessian accumulation {tokens} tokens x {channels} bf16"
    copies = rotated(tokens, channels, torch.bfloat16)
    h = torch.zeros(channels // 16, 16, 16, device="cuda")

    def slices(run):
        x = copies[run % len(copies)]
        return x.view(tokens, channels // 16, 16).permute(1, 2, 0)  # [slice, 16, tokens]

    def in_float32(run):
        s = slices(run).float()
        h.baddbmm_(s, s.transpose(1, 2))

    row(work, "PyTorch, float32 baddbmm", median_ms(in_float32, runs))

    def in_bf16(run):
        s = slices(run)
        h.add_(torch.bmm(s, s.transpose(1, 2), out_dtype=torch.float32))

    try:
        in_bf16(0)
        torch.cuda.synchronize()
    except (TypeError, RuntimeError) as error:
        not_run(work, "PyTorch, bf16 bmm, float32 sums", str(error).splitlines()[0])
    else:
        row(work, "PyTorch, bf16 bmm, float32 sums", median_ms(in_bf16, runs))


def quantize(compiled, runs):
    for rows, cols in ((8192, 4096), (98304, 7168)):
        work = f"quantize per_tensor {rows}x{cols} bf16"
        copies = rotated(rows, cols, torch.bfloat16)
        row(work, "PyTorch", median_ms(lambda run: torch_quantize(copies[run % len(copies)]), runs))
        if not compiled:
            not_run(work, "PyTorch, compiled", "no --compile was given")
            continue
        function = torch.compile(torch_quantize)
        try:
            ms = median_ms(lambda run: function(copies[run % len(copies)]), runs)
        except Exception as error:  # there is no host compiler, say
            not_run(work, "PyTorch, compiled",
                    f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        else:
            row(work, "PyTorch, compiled", ms)


# --- Ours -----------------------------------------------------------------------------------------


def ours(bench, works):
    """The rows of cuda_bench, each work's fastest config."""
    result = subprocess.run([bench, *works], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        not_run(" ".join(works) or "all", "nibble",
                f"{bench} ended with {result.returncode}: {result.stderr.strip()}")
        return
    best = {}
    for line in result.stdout.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 5 or cells[0] in ("work", "---"):
            continue
        work, config, ms, _, note = cells
        try:
            figure = float(ms)
        except ValueError:
            not_run(work, "nibble", note)
            continue
        if work not in best or figure < best[work][0]:
            best[work] = (figure, ", ".join(part for part in (config, note) if part))
    for work, (figure, note) in best.items():
        row(work, "nibble", figure, note)


def write_safetensors(path, name, tensor):
    data = tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes()
    header = {name: {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def read_safetensors(path, name):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        entry = json.loads(file.read(size))[name]
        file.seek(8 + size + entry["data_offsets"][0])
        data = file.read(entry["data_offsets"][1] - entry["data_offsets"][0])
    return torch.frombuffer(bytearray(data), dtype=torch.float32)


def agreement(program):
    """Whether what is timed is the same thing: our winners against the PyTorch reference's."""
    work = "sweep 1024x4096 bf16"
    x = rotated(1024, 4096, torch.bfloat16)[0]
    with tempfile.TemporaryDirectory() as folder:
        source, out = os.path.join(folder, "x"), os.path.join(folder, "out")
        write_safetensors(source, "x", x)
        command = [program, "tensor", "sweep", source, "--tensor", "x", "--out", out,
                   "--backend", "cuda:0"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            not_run(work, "nibble", result.stderr.strip())
            return
        best_amax = read_safetensors(out, "best_amax").cuda()
    same = share_equal(best_amax, torch_sweep(x, x.float().abs().amax()))
    row(work, "nibble", note=f"blocks with the reference's winner: {same}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", help="our cuda_bench, to be run in between")
    parser.add_argument("--bench-work", nargs="*", default=[], help="its works [all]")
    parser.add_argument("--nibble", help="our program, to compare winners")
    parser.add_argument("--compile", action="store_true", help="time torch.compile's code, too")
    parser.add_argument("--runs", type=int, default=60, help="timed runs, at least 50 [60]")
    arguments = parser.parse_args()
    if arguments.runs < 50:
        parser.error(f"--runs: expected at least 50, got {arguments.runs}")

    global torch
    torch, reason = package("torch", "pip install torch")
    if torch is None or not torch.cuda.is_available():
        reason = reason or "torch sees no CUDA device"
        print(f"run.py: expected PyTorch with a CUDA device, got {reason}", file=sys.stderr)
        return 1
    modelopt, modelopt_reason = package(
        "modelopt.torch.kernels.quantization.gemm", "pip install nvidia-modelopt"
    )
    if modelopt is not None and not hasattr(modelopt, "nvfp4_fp8_scale_sweep"):
        modelopt, modelopt_reason = None, "this version of modelopt has no nvfp4_fp8_scale_sweep"
    torch.backends.cuda.matmul.allow_tf32 = False

    versions = [f"torch {torch.__version__}"]
    for name in ("triton", "modelopt"):
        module, _ = package(name, "")
        versions.append(f"{name} {getattr(module, '__version__', '?')}" if module else f"no {name}")
    print(f"{torch.cuda.get_device_name()}, {', '.join(versions)}; "
          f"medians of {arguments.runs} runs after {WARM_UP}\n")
    print("| work | who | ms | |\n|---|---|---|---|")
    sweeps(((8192, 4096), (28672, 8192)), modelopt, modelopt_reason, arguments.runs)
    hessian_sweep(modelopt, modelopt_reason, arguments.runs)
    hessian_accumulation(arguments.runs)
    quantize(arguments.compile, arguments.runs)
    torch.cuda.empty_cache()
    if arguments.bench:
        ours(arguments.bench, arguments.bench_work)
    else:
        not_run("all", "nibble", "no --bench was given")
    if arguments.nibble:
        agreement(arguments.nibble)
    else:
        not_run("winners of both", "nibble", "no --nibble was given")
    return 0


if __name__ == "__main__":
    sys.exit(main())
