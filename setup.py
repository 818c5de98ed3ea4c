"""Builds pyconv._C: kernels, operators and host services in one extension module.

    pip install .                           to use it
    python setup.py build_ext --inplace     to work on it (ninja compiles only what changed)

Metadata is in pyproject.toml, the list of sources in csrc/sources.txt (CMakeLists.txt reads the
same list). Set MAX_JOBS to bound the compiler processes; the default is one per available core.

Where there is nvcc, also pyconv/_cuda.so, the CUDA kernels: neither torch's CUDA nor a GPU is needed
to build it. PYCONV_CUDA=0 leaves it out, =1 fails where it cannot be built, =auto is the default;
PYCONV_CUDA_ARCHS=80,90,120 are the GPUs to compile for, the last also as PTX for newer ones.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
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


def find_nvcc() -> Path | None:
    """Of CUDA_HOME, of PATH, or of the package nvidia-cuda-nvcc in this environment."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    found = [Path(home, "bin/nvcc") for home in homes if home]
    found += [Path(path) for path in [shutil.which("nvcc")] if path]
    found += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvcc"))
    return next((path for path in found if path.exists()), None)


def compiled(source: str, said: str) -> str:
    """A line for each kernel and GPU: file, GPU, registers, bytes spilled and mangled name, of what ptxas said."""
    found = re.findall(
        r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes spill stores, (\d+) bytes"
        r" spill loads.*?Used (\d+) registers",
        said,
        re.S,
    )
    return "".join(
        f"{source} {gpu} {registers} {int(stores) + int(loads)} {kernel}\n"
        for kernel, gpu, stores, loads, registers in found
    )


def build_cuda(nvcc: Path, target: Path) -> None:
    """Compiles what is older than its source or any header, one nvcc per file, and links."""
    archs = os.environ.get("PYCONV_CUDA_ARCHS", "80,90,120").split(",")
    flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT}/csrc"]
    flags += ["-Xcompiler=-fPIC,-fvisibility=hidden,-Wall", "-Xptxas=-v"]
    flags += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    flags += [f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]
    folder = ROOT / "build" / ("cuda-" + "-".join(archs))
    folder.mkdir(parents=True, exist_ok=True)
    headers = [*ROOT.glob("csrc/common/*.h"), *ROOT.glob("csrc/cuda/**/*.h"), Path(__file__)]
    newest = max(path.stat().st_mtime for path in headers)

    def compile(source: str) -> str:
        path, result = ROOT / source, folder / (source.replace("/", ".") + ".o")
        if not result.exists() or result.stat().st_mtime < max(newest, path.stat().st_mtime):
            print(f"nvcc {source}", flush=True)
            part = result.with_suffix(".part")
            with tempfile.TemporaryDirectory(dir=folder) as kept:
                command = [nvcc, *flags, "--keep", f"--keep-dir={kept}", "-c", path, "-o", part]
                run = subprocess.run(command, capture_output=True, text=True)
                if run.returncode:
                    sys.stderr.write(run.stderr)
                    run.check_returncode()
                # The PTX on the way to the object, which tests/test_ptx.py runs: of the oldest GPU.
                found = sorted(
                    Path(kept).glob("*.ptx"), key=lambda p: f"_{archs[0]}." not in p.name
                )
                shutil.copy(found[0], result.with_suffix(".ptx"))
            result.with_suffix(".ptxas").write_text(compiled(source, run.stderr))
            part.replace(result)
        return str(result)

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", available_cores()))) as pool:
        objects = list(pool.map(compile, sources("cuda")))
    libraries = [f"-L{p}" for p in (nvcc.parents[1] / "lib", nvcc.parents[1] / "lib64")]
    target.parent.mkdir(parents=True, exist_ok=True)
    link = [nvcc, "-shared", "-cudart=static", *objects, *libraries, "-o", target]
    # The runtime's own symbols stay inside: torch has a runtime of its own in the process.
    subprocess.run([*link, "-Xlinker=--exclude-libs,ALL"], check=True)
    # For pyconv.explain and the tests: what ptxas says of every kernel.
    figures = [Path(o).with_suffix(".ptxas").read_text() for o in objects]
    target.with_suffix(".ptxas").write_text("".join(figures))


def cuda_too(build: type[build_ext]) -> type[build_ext]:
    """`build`, and the CUDA kernels after it as PYCONV_CUDA says."""
    asked = os.environ.get("PYCONV_CUDA", "auto")
    if asked not in ("0", "1", "auto"):
        sys.exit(f"PYCONV_CUDA must be 0, 1 or auto, got {asked!r}")

    class WithCuda(build):  # type: ignore[misc, valid-type]
        def run(self) -> None:
            super().run()
            nvcc = None if asked == "0" else find_nvcc()
            if nvcc is None:
                if asked == "1":
                    sys.exit(
                        "PYCONV_CUDA=1, but there is no nvcc: not in $CUDA_HOME/bin, not in PATH,"
                        " and the package nvidia-cuda-nvcc is not installed here"
                    )
                return
            package = ROOT if self.inplace else Path(self.build_lib)
            try:
                build_cuda(nvcc, package / "pyconv/_cuda.so")
            except (OSError, subprocess.CalledProcessError) as error:
                if asked == "1":
                    sys.exit(f"PYCONV_CUDA=1, but the CUDA kernels could not be built: {error}")
                print(f"no CUDA kernels, for they could not be built: {error}", file=sys.stderr)

    return WithCuda


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
    command = cuda_too(BuildExtension)
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
