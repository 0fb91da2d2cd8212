#!/usr/bin/env python3
"""Counts the telling instructions of every kernel in a build, for each architecture; see bench/results/sass.md.

    pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm     (or a toolkit that has them)
    python3 bench/sass.py build/release/libnibble_kernels.a --cuobjdump .../nvidia/cu13/bin/cuobjdump
        [--ptxas LOG, what a build with CMAKE_CUDA_FLAGS="-Xptxas -v" printed: adds spilled registers]
"""

import argparse
import collections
import os
import re
import subprocess
import sys

# What to count in a line of SASS: heading, pattern.
TELLING = (
    ("FP4 conversions", re.compile(r"\bF2FP\S*\.E2M1")),
    ("E4M3 conversions", re.compile(r"\bF2FP\S*\.E4M3|\bHADD2\S*\.E4M3|\bF2F\S*\.E4M3")),
    ("HMMA", re.compile(r"\bHMMA\b")),
    ("DMMA", re.compile(r"\bDMMA\b")),
    ("LDGSTS", re.compile(r"\bLDGSTS\b")),
    ("local loads and stores", re.compile(r"\b(STL|LDL)\b")),
)


def kernel_name(mangled):
    """The function's own name: the last of a mangled nested name."""
    name, rest = mangled, mangled.removeprefix("_ZN")
    while match := re.match(r"(\d+)", rest):
        end = match.end() + int(match[1])
        name, rest = rest[match.end():end], rest[end:]
    return name


def spilled_bytes(log):
    """By kernel and architecture: bytes that all variants of a kernel store and load as spills."""
    spills = collections.defaultdict(lambda: collections.defaultdict(int))
    kernel = architecture = ""
    for line in log:
        if match := re.search(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", line):
            kernel, architecture = kernel_name(match[1]), match[2]
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spills[kernel][architecture] += int(match[1]) + int(match[2])
    return spills


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", help="a library, object or program of ours")
    parser.add_argument("--cuobjdump", default="cuobjdump")
    parser.add_argument("--ptxas", help="output of a build of all kernels")
    arguments = parser.parse_args()
    spills = None
    if arguments.ptxas:
        with open(arguments.ptxas, encoding="utf-8") as log:
            spills = spilled_bytes(log)
    # cuobjdump finds nvdisasm, which it needs, in PATH.
    path = os.pathsep.join((os.path.dirname(arguments.cuobjdump), os.environ["PATH"]))
    dump = subprocess.Popen([arguments.cuobjdump, "-sass", arguments.binary], text=True,
                            stdout=subprocess.PIPE, env={**os.environ, "PATH": path})
    architecture, counts = "", None
    # By kernel and architecture: how many variants there are, and each one's counts.
    kernels = collections.defaultdict(lambda: collections.defaultdict(list))
    for line in dump.stdout:
        if match := re.search(r"(?:code for|arch =) sm_(\w+)", line):
            architecture = match[1]
        elif match := re.search(r"Function : (\w+)", line):
            counts = [0] * len(TELLING)
            kernels[kernel_name(match[1])][architecture].append(counts)
        elif counts is not None and "/*" in line:
            for i, (_, pattern) in enumerate(TELLING):
                counts[i] += pattern.search(line) is not None
    if dump.wait() != 0 or not kernels:
        print(f"sass.py: expected kernels in {arguments.binary}, got none", file=sys.stderr)
        return 1

    architectures = sorted({a for variants in kernels.values() for a in variants},
                           key=lambda a: int(re.match(r"\d+", a)[0]))
    print(f"Each cell: {', '.join('sm_' + a for a in architectures)}.\n")
    headings = ["kernel", "variants", *(name for name, _ in TELLING)]
    if spills is not None:
        headings.append("spilled bytes")
    print("| " + " | ".join(headings) + " |\n" + "|---" * len(headings) + "|")
    for kernel in sorted(kernels):
        variants = [kernels[kernel][a] for a in architectures]
        cells = [[len(v) for v in variants]]
        cells += [[sum(counts[i] for counts in v) for v in variants] for i in range(len(TELLING))]
        if spills is not None:
            cells.append([spills[kernel].get(a, "?") for a in architectures])
        print(f"| {kernel} | " + " | ".join(
            str(c[0]) if len(set(c)) == 1 else ", ".join(map(str, c)) for c in cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
