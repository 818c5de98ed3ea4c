"""The arrows of the architecture, checked: which room may know of which, in C++ and in Python.

    models -> nn -> ops -> _register -> csrc/ops -> csrc/<device>/<op> -> csrc/common

The rules are tables below; each checker is itself shown a file that breaks its rule.
"""

import ast
import pathlib
import re

import pytest
import torch

import pyconv.nn as ours

ROOT = pathlib.Path(__file__).parents[1]

# --- C++

SOURCES = sorted(
    p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".inc", ".cu", ".cuh"}
)
KNOW_TORCH = ("bindings.cpp", "ops/")
DEVICES = ("cpu", "cuda", "emulator")
VOCABULARY = "cuda/vocabulary.h"  # the one door between kernels and what they run on


def include_errors(path: str, text: str) -> list[str]:
    """What `path` (relative to csrc/) must not include."""
    errors = []
    room, *inner = path.split("/")
    for include in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', text, re.MULTILINE):
        target, *rest = include.split("/")
        knows_torch = path.startswith(KNOW_TORCH)
        if target in ("torch", "ATen", "c10", "pybind11", "Python.h") and not knows_torch:
            errors.append(f"{path} knows torch or Python: {include}")
        if target == "ops" and not knows_torch:
            errors.append(f"{path} looks up at ops: {include}")
        if room == "common" and (target in DEVICES or target == "ops"):
            errors.append(f"{path} looks up from common: {include}")
        other_device = room in DEVICES and target in DEVICES and target != room
        if other_device and (path, include) != (VOCABULARY, "emulator/words.h"):
            errors.append(f"{path} looks at another device: {include}")
        if (
            room in DEVICES
            and len(inner) > 1
            and target == room
            and len(rest) > 1
            and rest[0] != inner[0]
        ):
            errors.append(f"{path} looks into another operator: {include}")
        if re.match(r"cuda\w*\.h|cooperative_groups|mma\.h", include) and path != VOCABULARY:
            errors.append(f"{path} goes past the vocabulary: {include}")
    if room == "cuda" and path != VOCABULARY:
        words = r"\b(asm|__asm__|__CUDA_ARCH__|__CUDACC__|__shared__)\b|<<<"
        errors += [f"{path} goes past the vocabulary: {w[0]}" for w in re.finditer(words, text)]
    return errors


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_includes(path):
    assert include_errors(str(path.relative_to(ROOT / "csrc")), path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "include"),
    [
        ("cpu/conv2d/direct.h", "<torch/csrc/stable/tensor.h>"),
        ("cpu/parallel.h", "<Python.h>"),
        ("cpu/conv2d/direct.h", '"ops/tensor.h"'),
        ("common/shape.h", '"cpu/simd.h"'),
        ("cpu/pool2d/list.cpp", '"cpu/conv2d/conv2d.h"'),
        ("cpu/pool2d/list.cpp", '"cuda/pool2d/pool2d.h"'),
        ("tests/test_conv2d.cpp", "<pybind11/pybind11.h>"),
        ("cuda/conv2d/reference.cu", "<cuda_runtime.h>"),
        ("cuda/conv2d/reference.cu", '"emulator/words.h"'),
        ("cuda/conv2d/reference.cu", '"cpu/simd.h"'),
        ("cuda/library.cpp", '"ops/tensor.h"'),
        ("emulator/machine.cpp", '"cuda/vocabulary.h"'),
    ],
)
def test_a_wrong_include_is_seen(path, include):
    assert len(include_errors(path, f"#pragma once\n  # include {include}\n")) == 1


@pytest.mark.parametrize("text", ["kernel<<<grid, block>>>(x);", 'asm("");', "__shared__ int x;"])
def test_cuda_past_the_vocabulary_is_seen(text):
    assert len(include_errors("cuda/conv2d/reference.cu", text)) == 1


def test_every_source_is_in_the_one_list_once():
    lines = (ROOT / "csrc/sources.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith(("#", "["))]
    on_disk = [str(p.relative_to(ROOT)) for p in SOURCES if p.suffix in {".cpp", ".cu"}]
    assert sorted(listed) == sorted(on_disk)


# --- Python

MODULES = sorted((ROOT / "pyconv").rglob("*.py"))

# Room of pyconv -> the rooms it may import. A room that is not named here is above all of these.
MAY_IMPORT = {
    "_shapes": set(),
    "_pool_shapes": {"_shapes"},
    "_native": set(),
    "reference": set(),
    "_register": {"_native", "_pool_shapes", "_shapes", "reference"},
    "ops": {"_native", "_pool_shapes", "_register", "_shapes"},
    "grad": {"_register", "_shapes", "ops"},
    "nn": {"ops"},
    "override": {"ops"},
    "convert": {"nn", "ops"},
    "_tracing": {"nn", "ops"},
    "_chains": {"_tracing", "nn", "ops"},
    "fuse": {"_chains", "_tracing", "convert", "nn"},
    "prepack": {"nn"},
    "models": {"nn"},
    "data": set(),
}


def room_of(module: str) -> str:
    """The room of pyconv a dotted module belongs to, "" for pyconv itself."""
    return module.split(".")[1] if "." in module else ""


def imports_of(path: str, tree: ast.AST) -> list[str]:
    """Dotted names of everything imported, relative ones resolved; `path` is relative to ROOT."""
    package = path.removesuffix(".py").split("/")[:-1]
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def import_errors(path: str, text: str) -> list[str]:
    errors = []
    room = room_of(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    for name in imports_of(path, ast.parse(text)):
        if name.split(".")[0] == "pyconv":
            target = room_of(name)
            if room in MAY_IMPORT and target != room and target not in MAY_IMPORT[room]:
                errors.append(f"{path}: {room} must not import {name}")
            if target == "_C" and room != "_native":
                errors.append(f"{path}: only _native loads the extension")
        if room.endswith("_shapes") and name.split(".")[0] == "torch":
            errors.append(f"{path}: shapes are pure integers, not {name}")
    return errors


# Functions of torch that would do our work for us.
TORCHS_KERNELS = re.compile(
    r"\w*conv(olution\w*|(_transpose|_dilated|_depthwise)?[123]d\w*)"
    r"|\w*(max|avg|lp)_?(un)?pool[123]d\w*|\w*batch_norm\w*|unfold|fold|im2col|col2im"
)


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def borrowed_kernels(path: str, text: str) -> list[str]:
    """Uses of torch's convolution, pooling and batch norm: F.conv2d, torch.ops.aten.fold ..."""
    tree, errors = ast.parse(text), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner, _, name = dotted(node).rpartition(".")
            if (
                re.match(r"(torch|F|functional|nn|aten)(\.|$)", owner)
                and "pyconv" not in owner
                and TORCHS_KERNELS.fullmatch(name)
            ):
                errors.append(f"{path}:{node.lineno}: {owner}.{name}")
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            errors += [f"{path}: {a.name}" for a in node.names if TORCHS_KERNELS.fullmatch(a.name)]
    if "torch.ops.pyconv" in text and not path.startswith("pyconv/_register/"):
        errors.append(f"{path}: only _register calls torch.ops.pyconv")
    return errors


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_room(path):
    name, text = str(path.relative_to(ROOT)), path.read_text()
    assert import_errors(name, text) + borrowed_kernels(name, text) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("pyconv/_shapes.py", "import torch"),
        ("pyconv/_shapes.py", "from pyconv import ops"),
        ("pyconv/_register/conv2d.py", "from pyconv.ops import conv2d"),
        ("pyconv/ops/conv2d.py", "import pyconv.nn"),
        ("pyconv/ops/conv2d.py", "from ..models import build"),
        ("pyconv/nn/conv.py", "def f():\n    from pyconv.models import build"),
        ("pyconv/nn/__init__.py", "from pyconv._register import conv2d"),
        ("pyconv/models/lenet.py", "from pyconv import ops"),
        ("pyconv/data/idx.py", "from pyconv.train import loop"),
        ("pyconv/train/loop.py", "from pyconv import _C"),
    ],
)
def test_a_wrong_import_is_seen(path, text):
    assert len(import_errors(path, text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "y = F.conv2d(x, w)",
        "y = torch.nn.functional.max_pool2d(x, 2)",
        "y = torch.ops.aten.convolution_backward(dy)",
        "y = torch.ops.aten._convolution.default(x)",
        "y = torch.batch_norm(x)",
        "y = torch.native_batch_norm(x)",
        "y = torch._C._nn.avg_pool2d(x, 2)",
        "y = nn.functional.unfold(x, 2)",
        "from torch.nn.functional import conv_transpose2d",
        "y = torch.ops.pyconv.conv2d(x)",
    ],
)
def test_a_borrowed_kernel_is_seen(text):
    assert len(borrowed_kernels("pyconv/ops/conv2d.py", text)) == 1


def test_our_own_names_are_not_mistaken_for_torchs():
    assert (
        borrowed_kernels(
            "pyconv/nn/conv.py", "ops.conv2d(x, w), _shapes.conv2d(x), torch.nn.Conv2d"
        )
        == []
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_no_kernel_of_torch_runs(channels_last):
    """Every layer, forward and backward, as the profiler saw it."""
    model = ours.Sequential(
        ours.Conv2d(2, 4, 4, padding="same"),
        ours.BatchNorm2d(4),
        ours.MaxPool2d(3, stride=2, padding=1),
        ours.ConvTranspose2d(4, 4, 3, stride=2),
        ours.AvgPool2d(2),
        ours.AdaptiveMaxPool2d(3),
        ours.AdaptiveAvgPool2d(1),
    )
    x = torch.randn(2, 2, 8, 8, requires_grad=True)
    if channels_last:
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.to(memory_format=torch.channels_last),
        )
    pool, unpool = ours.MaxPool2d(2, return_indices=True), ours.MaxUnpool2d(2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(x).square().sum().backward()
        unpool(*pool(x)).square().sum().backward()
        model.eval()(x).sum().backward()
    names = {event.name for event in profile.events()}
    borrowed = [n for n in names if n.startswith("aten::") and TORCHS_KERNELS.fullmatch(n[6:])]
    assert borrowed == []
    assert {"pyconv::_conv2d", "pyconv::_conv2d_bwd_input", "pyconv::_conv2d_bwd_weight"} <= names
