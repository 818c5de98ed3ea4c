"""``make gpu``: the CUDA kernels on the GPU that is here. Builds for it, tests, sanitizes, times, and reports.

One step after the other, each a process; the first that fails ends it. Imports nothing of pyconv, which
may not be built yet.

    benchmarks/results/gpu/*.json   every time beside cuDNN's; docs/gpu.md has the rows, README.md the table
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

RESULTS = "benchmarks/results/gpu"
DTYPES = ("float32", "bfloat16", "float16")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")  # of compute-sanitizer
OLDEST = (8, 0)


def missing() -> str:
    """Why nothing can run here, in one sentence, or ""."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install one that has it"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    if torch.cuda.get_device_capability() < OLDEST:
        has = ".".join(map(str, torch.cuda.get_device_capability()))
        return f"{torch.cuda.get_device_name()} has compute capability {has}; the kernels need 8.0"
    return ""


def steps(architecture: str, sanitizer: str | None) -> list[tuple[str, list[str], dict[str, str]]]:
    """(what, command, environment) in order."""
    python = [sys.executable, "-m"]
    build = {"PYCONV_CUDA": "1", "PYCONV_CUDA_ARCHS": architecture}
    found = [
        ("build", [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], build),
        ("tests", [*python, "pytest", "-q", "-n", "2", "-k", "cuda-"], {}),
    ]
    for tool in TOOLS if sanitizer else ():
        run = [str(sanitizer), "--tool", tool, "--error-exitcode", "1", *python, "pytest", "-q"]
        files = [
            "tests/test_cuda_table.py",
            "tests/test_opinfo.py",
        ]  # every kernel, and torch's samples
        sampled = ["-p", "no:xdist", *files, "-k", "cuda-", "--timeout", "0"]
        # Each tensor an allocation of its own, or a step beyond one lands in another unseen.
        apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        found.append((f"compute-sanitizer {tool}", [*run, *sampled], apart))
    timed = [*python, "benchmarks", "conv2d", "--device", "cuda", "--malloc", "default"]
    for dtype in DTYPES:
        found.append((f"times, {dtype}", [*timed, "--dtype", dtype, "--output", RESULTS], {}))
    found.append(("times, TF32", [*timed, "--tf32", "--output", RESULTS], {}))
    report = [*python, "benchmarks", "report", "--results", RESULTS, "--document", "docs/gpu.md"]
    return [*found, ("report", report, {})]


def main() -> int:
    if why := missing():
        sys.stderr.write(f"make gpu: {why}\n")
        return 2
    major, minor = torch.cuda.get_device_capability()
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer is not here, and left out", flush=True)
    for what, command, environment in steps(f"{major}{minor}", sanitizer):
        print(f"--- {what} on {torch.cuda.get_device_name()}", flush=True)
        here = Path(__file__).parents[1]
        run = subprocess.run(command, cwd=here, env={**os.environ, **environment})
        if run.returncode:
            sys.stderr.write(f"make gpu: {what} failed\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
