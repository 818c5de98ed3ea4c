"""Compiles the emulator, which is the CUDA kernels and a machine to run them on, when it is first used.

It takes seconds and needs a C++20 compiler, g++ or clang, but no CUDA toolkit. Compiled here, on the
machine that runs it, it may use every instruction of this CPU: a kernel's fmaf without FMA would be
six times slower.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
# A tier is a way to compile the kernels; the emulator itself is compiled alike for all. "chk" has every
# load and store reported, by the instrumentation of ThreadSanitizer without its library.
KERNEL_FLAGS = {"emu": ["-O2"], "chk": ["-O1", "-g", "-fsanitize=thread"]}
MACHINE = {"emu": ("machine", "warp"), "chk": ("machine", "warp", "check", "traffic")}


def sources() -> Path:
    """The folder csrc: of the checkout, or as it was installed beside pyconv."""
    package = Path(__file__).parents[1]
    return next(p for p in (package / "csrc", package.parent / "csrc") if p.is_dir())


def compiler() -> str:
    return os.environ.get("CXX", "c++")


def cache_folder() -> Path:
    """PYCONV_CACHE, or pyconv in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PYCONV_CACHE") or Path(home) / "pyconv")


def _run(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"the CUDA emulator needs a C++ compiler: {error}") from error
    if result.returncode:
        raise RuntimeError(
            f"the CUDA emulator could not be compiled by {command[0]}:\n{result.stderr[-4000:]}"
        )
    return result.stdout


def _native() -> list[str]:
    return ["-march=native"] if platform.machine() in ("x86_64", "AMD64") else ["-mcpu=native"]


def build(kernels: list[Path], tier: str, include: Path | None = None) -> Path:
    """The shared object of these .cu files and the emulator, from the cache if it is there."""
    root = sources()
    flags = [*FLAGS, *_native(), f"-I{root}"] + ([f"-I{include}"] if include else [])
    commands = [["-O2", "-c", f"{root}/emulator/{name}.cpp"] for name in MACHINE[tier]]
    commands += [[*KERNEL_FLAGS[tier], "-x", "c++", "-c", str(p)] for p in kernels]
    digest = hashlib.sha256(_run([compiler(), "--version"]).encode())
    digest.update(repr((compiler(), platform.node(), flags, commands)).encode())
    inputs = [p for room in ("common", "cuda", "emulator") for p in (root / room).rglob("*.*")]
    for folder in {p.parent for p in kernels}:
        inputs += folder.glob("*.h")
    for source in sorted({*inputs, *kernels}):
        digest.update(source.read_bytes())
    target = cache_folder() / f"emulator-{tier}-{digest.hexdigest()[:16]}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        objects = [f"{work}/{i}.o" for i in range(len(commands))]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(lambda c, o: _run([compiler(), *flags, *c, "-o", o]), commands, objects))
        library = f"{work}/library.so"
        _run([compiler(), "-shared", "-Wl,-Bsymbolic", *objects, "-o", library])
        os.replace(library, target)  # whole or not at all, whoever else is building it
    return target


@cache
def library(tier: str) -> Path:
    """The emulator of pyconv's own kernels."""
    return build(sorted((sources() / "cuda").rglob("*.cu")), tier)
