"""Compiles the emulator, which is the CUDA kernels and a machine to run them on, when it is first used.

It takes seconds and needs a C++20 compiler, g++ or clang, but no CUDA toolkit. Compiled here, on the
machine that runs it, it may use every instruction of this CPU: a kernel's fmaf without FMA would be
six times slower.
"""

from __future__ import annotations

import fcntl
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


def _make(target: Path, command: list[str]) -> None:
    """`target` by a command that ends with its -o, whole or not at all."""
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            _run([*command, "-o", f"{work}/new"])
            os.replace(f"{work}/new", target)


def build(kernels: list[Path], tier: str, root: Path | None = None) -> Path:
    """The shared object of these .cu files and the emulator; what the cache has is not compiled again.

    An object is known by the text of its source and of every header, wherever they lie.
    """
    root, cache = root or sources(), cache_folder()
    flags = [*FLAGS, *_native(), f"-I{root}"]
    files = [(root / f"emulator/{name}.cpp", ["-O2"]) for name in MACHINE[tier]]
    files += [(path, [*KERNEL_FLAGS[tier], "-x", "c++"]) for path in kernels]
    headers = {p for room in ("common", "cuda", "emulator") for p in (root / room).rglob("*.h")}
    headers |= {p for folder in {k.parent for k in kernels} for p in folder.glob("*.h")}
    common = hashlib.sha256(_run([compiler(), "--version"]).encode())
    common.update(repr((compiler(), platform.node(), flags[:-1])).encode())
    for header in sorted(headers, key=lambda p: (p.name, p.read_bytes())):
        common.update(header.read_bytes())

    objects = []
    for source, how in files:
        digest = common.copy()
        digest.update(repr((how, source.name)).encode() + source.read_bytes())
        objects.append(cache / f"{digest.hexdigest()[:24]}.o")
    name = hashlib.sha256(repr(objects).encode()).hexdigest()[:24]
    target = cache / f"emulator-{tier}-{name}.so"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:  # processes that want the same wait for the first
        fcntl.flock(lock, fcntl.LOCK_EX)
        commands = [[compiler(), *flags, *how, "-c", str(source)] for source, how in files]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(_make, objects, commands))
        _make(target, [compiler(), "-shared", "-Wl,-Bsymbolic", *map(str, objects)])
    return target


@cache
def library(tier: str) -> Path:
    """The emulator of pyconv's own kernels."""
    return build(sorted((sources() / "cuda").rglob("*.cu")), tier)
