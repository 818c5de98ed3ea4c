"""Builds pyconv._C: kernels, operators and host services in one extension module.

    pip install .                           to use it
    python setup.py build_ext --inplace     to work on it (ninja compiles only what changed)

Metadata is in pyproject.toml, the list of sources in csrc/sources.txt (CMakeLists.txt reads the
same list). Set MAX_JOBS to bound the compiler processes; the default is one per available core.
"""

import os
import re
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10: the oldest torch whose stable ABI we ask for
FLAGS = ["-O3", "-fvisibility=hidden", "-g0", "-Wall", "-Wextra", "-Wno-psabi"]
REMEDY = """pyconv cannot be built here: {reason}.
In this environment, run: pip install "torch>=2.10" "setuptools>=77" ninja "pybind11>=2.13"
Then repeat the command; or leave out --no-build-isolation, and pip fetches what it needs."""


def sources(*sections: str) -> list[str]:
    """Files that csrc/sources.txt lists under `[section]`, in order."""
    files, current = [], None
    for line in (ROOT / "csrc/sources.txt").read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("["):
            current = line.strip("[]")
        elif line and current in sections:
            files.append(line)
    return files


def version() -> str:
    return re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def missing_tools(reason: str) -> type[build_ext]:
    """A build_ext that refuses with the remedy; sdist and metadata need no torch and still work."""

    class RefusingBuild(build_ext):
        def run(self) -> None:
            sys.exit(REMEDY.format(reason=reason))

    return RefusingBuild


try:
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths

    if torch.__version__ < (2, 10):
        raise ImportError(f"torch {torch.__version__} is older than 2.10")
except ImportError as error:
    command = missing_tools(str(error))
    extension = Extension("pyconv._C", sources("core", "ops"))
else:
    os.environ.setdefault("MAX_JOBS", str(available_cores()))
    # ninja from PyPI lies beside the interpreter, also when its environment is not activated.
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    command = BuildExtension
    extension = CppExtension(
        "pyconv._C",
        sources("core", "ops"),
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
        define_macros=[
            ("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION),
            ("PYCONV_VERSION", f'"{version()}"'),
            ("PYCONV_BUILD_TORCH", f'"{torch.__version__}"'),
            ("PYCONV_BUILD_FLAGS", f'"{" ".join(FLAGS)}"'),
        ],
        # No warnings about torch's headers: -isystem outranks the -I that CppExtension adds.
        extra_compile_args=FLAGS + [f"-isystem{path}" for path in include_paths()],
    )
    # CppExtension also names c10, torch and torch_python, which are not part of the stable ABI.
    extension.libraries = ["torch_cpu"]

setup(
    packages=[*find_packages(include=["pyconv*"]), "pyconv.benchmarks", "pyconv.csrc"],
    # `python -m pyconv bench` and pyconv.cuda_emulator(), which compiles, without a checkout.
    package_dir={"pyconv.benchmarks": "benchmarks", "pyconv.csrc": "csrc"},
    ext_modules=[extension],
    cmdclass={"build_ext": command},
)
