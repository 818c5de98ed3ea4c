"""explain of CUDA's kernels: the launches it names are those of the call, and it needs no GPU."""

import ctypes
from contextlib import contextmanager

import pytest
import torch

import pyconv
import pyconv.nn as ours
from pyconv import _explain_cuda, _launches, _native, ops
from pyconv._conv_string import conv2d
from pyconv._emulator import build
from pyconv._explain import PASSES, explain_case_on_cuda
from tests.helpers import LAYOUTS
from tests.test_explain import command

pytestmark = pytest.mark.skipif(_native.lib is None, reason=_native.reason)
CASES = ("ic3ih9oc8kh3ph1", "mb1ic16ih9oc24kh3sh2ph1", "ic16ih7oc16kh3ph1g16", "ic72ih5oc72kh1")
NORM = torch.nn.BatchNorm2d(6).eval()
LAYERS = {  # beside the call of the operator that the layer makes
    "max": (torch.nn.MaxPool2d(3, 2, 1), lambda x: ops.max_pool2d(x, 3, 2, 1)),
    "avg": (torch.nn.AvgPool2d(2), lambda x: ops.avg_pool2d(x, 2)),
    "adaptive": (torch.nn.AdaptiveAvgPool2d(3), lambda x: ops.adaptive_avg_pool2d(x, 3)),
    "unpool": (torch.nn.MaxUnpool2d(2), lambda x, i: ops.max_unpool2d(x, i, 2)),
    "norm": (torch.nn.BatchNorm2d(6), lambda x: ops.batch_norm(x, None, None, training=True)),
    "norm in evaluation": (
        NORM,
        lambda x: ops.batch_norm(x, NORM.running_mean, NORM.running_var, NORM.weight, NORM.bias),
    ),
    "norm and relu": (
        ours.BatchNormReLU2d(6),
        lambda x: ops.batch_norm_relu(x, None, None, training=True),
    ),
}
ids = {"ids": str}


class Launch(ctypes.Structure):
    """csrc/common/launch.h"""

    _fields_ = [
        ("kernel", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_size_t),
    ]


@contextmanager
def launched():
    """A list of (grid, block, bytes of shared memory) that calls inside launch in the emulator; nothing runs."""
    found = []

    def note(launch):
        made = launch.contents
        found.append((tuple(made.grid), tuple(made.block), made.shared))

    callback = ctypes.CFUNCTYPE(None, ctypes.POINTER(Launch))(note)
    with pyconv.cuda_emulator():
        library = ctypes.CDLL(str(build.library("emu")))
        library.pyconv_cuda_note(callback)
        try:
            yield found
        finally:
            library.pyconv_cuda_note(None)


def named(found):
    return [(made.grid, made.block, made.shared) for p in found.passes for made in p.launches]


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], **ids)
@pytest.mark.parametrize("text", CASES)
def test_the_launches_of_a_convolution_are_those_of_the_call(text, dtype, layout):
    case = conv2d(text)
    x, w = (torch.randn(s, dtype=dtype).to(memory_format=layout) for s in (case.x, case.w))
    found = pyconv.explain(ops.conv2d, x, w, **case.arguments, device="cuda")
    assert str(found) == str(explain_case_on_cuda(case, dtype, layout == torch.channels_last))
    with launched() as made:
        y = ops.conv2d(x.requires_grad_(), w.requires_grad_(), **case.arguments)
        torch.autograd.grad(y, (x, w), y)
    assert named(found) == made


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("name", LAYERS)
def test_the_launches_of_a_layer_are_those_of_the_call(name, layout):
    layer, call = LAYERS[name]
    inputs = [torch.randn(2, 6, 10, 10).to(memory_format=layout)]
    if name == "unpool":
        inputs = list(ops.max_pool2d(*inputs, 2, return_indices=True))
    with pyconv.cuda_emulator():
        found = pyconv.explain(layer, *inputs)
    assert all(k.line > 0 for p in found.passes for k in p.candidates), found
    inputs[0].requires_grad_()
    with launched() as made:
        y = call(*inputs)
        torch.autograd.grad(y, inputs[0], torch.ones_like(y))
    assert named(found) == made


def test_where_it_looks_for_kernels():
    layer, x = torch.nn.Conv2d(16, 16, 3), torch.randn(1, 16, 8, 8)
    of_cuda = pyconv.explain(layer, x, device="cuda")
    assert [k.name for k in of_cuda.passes[0].candidates] == _native.lib.cuda_algorithms["conv2d"]
    with pyconv.cuda_emulator():
        assert str(pyconv.explain(layer, x)) == str(of_cuda)
        of_cpu = pyconv.explain(layer, x, device="cpu")
    assert [k.name for k in of_cpu.passes[0].candidates] == pyconv.algorithms("conv2d")
    with pytest.raises(ValueError, match="explain: device must be one of cpu, cuda, got 'tpu'"):
        pyconv.explain(layer, x, device="tpu")
    for what in (layer, torch.nn.BatchNorm2d(16)):
        with pytest.raises(ValueError, match="explain: CUDA's kernels are not measured here"):
            pyconv.explain(what, x, device="cuda", measure=True)


def test_what_is_printed():
    found = pyconv.explain(
        torch.nn.Conv2d(64, 64, 3, padding=1), torch.randn(2, 64, 8, 8), device="cuda"
    )
    said = str(found)
    assert found.flops == 2 * 2 * 64 * 64 * 9 * 64
    assert "fwd: implicit_gemm runs; 9.4 MFLOP, 0.21 MB compulsory, 44.3 FLOP per byte" in said
    assert "tensor_cores   needs bfloat16 or float16, or pyconv.backends.cuda.allow_tf32" in said
    assert "tiling of implicit_gemm: block: BM rows x BN columns, BK terms at a time" in said
    assert "gemm<Tile<64, 64>>: grid (2, 1, 1), 2 blocks of 64 threads, 13056 bytes" in said
    assert "reference      could run, and is asked later  [csrc/cuda/conv2d/reference.cu:" in said


def test_without_a_compiler_the_launches_are_missing_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(_launches, "COMPILED", tmp_path / "_cuda.so")
    monkeypatch.setattr(build, "library", lambda tier: build.build([tmp_path / "no.cu"], tier))
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = pyconv.explain(torch.nn.MaxPool2d(2), torch.randn(1, 4, 4, 4), device="cuda")
    assert "launches unknown: the CUDA emulator needs a C++ compiler" in str(found)
    assert found.passes[0].chosen == "packs"


def test_the_emulator_and_nvcc_name_kernels_alike():
    if not _launches.COMPILED.exists():
        pytest.skip("built without nvcc")
    emulated = set(_launches.symbols(build.library("emu")).values())
    kernels = {kernel for _, kernel in _launches.compiled()}
    assert kernels <= emulated
    assert kernels <= set(_launches.symbols(_launches.COMPILED).values())


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "expected"),
    [
        # the occupancy calculator's answers: by threads, by registers, by shared memory, by blocks
        (256, 32, 0, {"sm_80": 8, "sm_90": 8, "sm_120": 6}),
        (128, 168, 36864, {"sm_80": 3, "sm_90": 3, "sm_120": 2}),
        (256, 65, 0, {"sm_80": 3, "sm_90": 3, "sm_120": 3}),
        (32, 16, 0, {"sm_80": 32, "sm_90": 32, "sm_120": 24}),
        (1024, 64, 48 << 10, {"sm_80": 1, "sm_90": 1, "sm_120": 1}),
    ],
)
def test_occupancy(threads, registers, shared, expected):
    for gpu, blocks in expected.items():
        assert _launches.GPUS[gpu].resident(threads, registers, shared) == blocks


def test_command_line():
    run = command("--conv", "ic16ih9oc16kh3ph1", "--dtype", "bfloat16", "--device", "cuda")
    assert run.returncode == 0, run.stderr
    for name in PASSES:
        assert f"{name}: tensor_cores runs" in run.stdout
    run = command("--conv", "ic16ih9oc16kh3ph1", "--device", "cuda", "--measure")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"pyconv {_explain_cuda.UNMEASURED}\n"
