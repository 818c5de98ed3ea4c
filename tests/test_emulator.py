"""The emulator itself: what it computes, what it refuses, and that mistakes in a kernel show."""

import ctypes
import itertools
import re
from pathlib import Path

import pytest
import torch

import pyconv
from pyconv import _native, ops
from pyconv._emulator import ORDERS, build
from pyconv._emulator.report import Report
from tests.cases import conv2d
from tests.helpers import LAYOUTS, random

pytestmark = pytest.mark.skipif(_native.lib is None, reason=_native.reason)
SHARED = 64 * 32 * 4 + 8 * 4


@pytest.fixture(scope="module")
def kernels():
    return ctypes.CDLL(str(build.build([Path(__file__).parent / "emulator.cu"], "emu")))


class Failed(Exception):
    pass


def run(kernels, name, threads=32, shared=SHARED, order="ascending", late=True):
    kernels.pyconv_emulator_configure(ORDERS.index(order), ctypes.c_uint64(7), int(late))
    y = torch.arange(64, dtype=torch.float32)
    if getattr(kernels, name)(ctypes.c_void_p(y.data_ptr()), threads, shared):
        kernels.pyconv_emulator_error.restype = ctypes.c_char_p
        raise Failed(kernels.pyconv_emulator_error().decode())
    return y[:threads]


def lanes(of, threads=32):
    return torch.tensor([float(of(i)) for i in range(threads)])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("threads", [1, 31, 32, 33, 64])
def test_a_barrier(kernels, threads, order):
    y = run(kernels, "reverse", threads, order=order)
    assert torch.equal(y, lanes(lambda i: threads - 1 - i, threads))


@pytest.mark.parametrize("order", ORDERS)
def test_collectives(kernels, order):
    assert torch.equal(run(kernels, "warp_sum", 64, order=order), lanes(lambda _: 496, 64))
    assert torch.equal(run(kernels, "half_warps", order=order), lanes(lambda _: 16))
    expected = lanes(lambda i: min(i + 1, 31) + 100 * max(i - 1, 0) + 10000 * 3 + 100000)
    assert torch.equal(run(kernels, "shuffles", order=order), expected)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_asynchronous_copies(kernels, order, late):
    y = run(kernels, "copies", 64, order=order, late=late)
    assert torch.equal(y, lanes(lambda i: (63 - i) * ((63 - i) % 2 == 0), 64))


THREAD = r"thread \(\d+, 0, 0\) of block \(0, 0, 0\)"
LINE = r"\S*emulator\.cu:\d+"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("name", "threads", "message"),
    [
        ("barrier_for_some", 32, rf"barrier divergence: {THREAD} (returned while|waits at)"),
        ("two_barriers", 32, rf"barrier divergence: {THREAD} waits at {LINE}, others at {LINE}"),
        ("barrier_after_return", 64, rf"barrier divergence: {THREAD}"),
        ("shuffle_without_some", 32, rf"a shuffle at {LINE}"),
        ("lane_outside_its_mask", 32, rf"a shuffle at {LINE}: lane \d+ is not in its own mask"),
        ("lane_outside_the_mask", 32, rf"a shuffle at {LINE}: lane \d+ reads lane \d+, which"),
        ("misaligned", 32, rf"misaligned access of 16 bytes at {LINE} by {THREAD}"),
        ("warp_sum", 31, rf"a shuffle at {LINE}: the mask names lanes that .* do not exist"),
    ],
)
def test_a_wrong_kernel_is_stopped(kernels, name, threads, message, order):
    with pytest.raises(Failed, match=message):
        run(kernels, name, threads, order=order)


def test_a_wrong_launch_is_refused(kernels):
    for threads, shared in ((0, SHARED), (1025, SHARED), (32, 200 << 10)):
        with pytest.raises(Failed, match=rf"invalid launch: .*\({threads}, 1, 1\), {shared} bytes"):
            run(kernels, "reverse", threads, shared)
    with pytest.raises(Failed, match=rf"uses {SHARED} bytes .* was launched with 16"):
        run(kernels, "reverse", 32, 16)


def test_a_missing_barrier_shows_in_some_order(kernels):
    right = run(kernels, "reverse")
    assert not all(torch.equal(run(kernels, "no_barrier", order=o), right) for o in ORDERS)


@pytest.mark.parametrize("name", ["no_wait", "waits_for_too_little"])
def test_a_missing_wait_shows_when_copies_are_late(kernels, name):
    assert torch.equal(run(kernels, name, late=False), lanes(float))
    assert run(kernels, name, late=True).isnan().all()


def test_shared_memory_starts_as_nan(kernels):
    assert run(kernels, "unwritten_shared").isnan().all()


# --- what the checking emulator finds


@pytest.fixture(scope="module")
def checked():
    path = build.build([Path(__file__).parent / "emulator.cu"], "chk")
    return path, ctypes.CDLL(str(path))


def check(checked, name, threads=32, order="ascending", writable=True, late=True):
    """The report of one kernel, whose operand "y" is 64 floats."""
    path, kernels = checked
    kernels.pyconv_emulator_configure(ORDERS.index(order), ctypes.c_uint64(7), int(late))
    y = torch.zeros(64)
    operand = kernels.pyconv_emulator_operand
    operand(b"y", ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(256), int(writable))
    getattr(kernels, name)(ctypes.c_void_p(y.data_ptr()), threads, SHARED)
    operand(None, None, ctypes.c_int64(0), 0)
    report = Report()
    report.read(kernels, path)
    return report


def line_of(text):
    """Line of tests/emulator.cu that has this text, as a report names it."""
    lines = (Path(__file__).parent / "emulator.cu").read_text().splitlines()
    return f"emulator.cu:{next(i for i, line in enumerate(lines, 1) if text in line)}"


@pytest.mark.parametrize("order", ORDERS)
def test_right_kernels_have_no_findings(checked, order):
    for name in ("reverse", "warp_sum", "shuffles", "half_warps", "warp_writes_with_sync"):
        assert check(checked, name, order=order).errors == []


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("name", "kinds", "line"),
    [
        ("no_barrier", {"race", "uninitialised"}, None),
        ("warp_writes_without_sync", {"race", "uninitialised"}, None),
        ("all_write_one", {"race"}, "y[0] = float(threadIdx.x)"),
        ("unwritten_shared", {"uninitialised"}, "shared<Shared>().v[threadIdx.x]; }"),
        ("past_the_end", {"out of bounds"}, "y[threadIdx.x + 64 - n + 1]"),
        ("far_away", {"out of bounds"}, "(1 << 20)"),
        ("past_shared", {"out of bounds"}, "s.vector[threadIdx.x] = 1"),
        ("reads_what_another_writes", {"race", "uninitialised"}, None),
    ],
)
def test_a_mistake_is_found_in_every_order(checked, name, kinds, line, order):
    errors = check(checked, name, order=order).errors
    assert errors
    assert {e.kind for e in errors} <= kinds
    if line:
        assert {e.line for e in errors} == {line_of(line)}
    for e in errors:
        assert re.fullmatch(r"emulator\.cu:\d+", e.line), e
        assert e.times >= 1
        assert str(e).startswith(f"{e.line}: {e.kind}, ")


def test_an_input_that_is_written_is_found(checked):
    (error,) = check(checked, "all_write_one", writable=False).errors
    assert (error.kind, error.times) == ("input written", 32)


def test_a_missing_wait_is_found_when_copies_are_late(checked):
    kinds = {e.kind for e in check(checked, "no_wait", writable=False).errors}
    assert kinds == {"uninitialised", "input written"}  # shared memory, and y is both here


@pytest.mark.parametrize(
    ("name", "sectors", "passes"), [("stride_1", 4, 1), ("stride_2", 8, 2), ("stride_32", 8, 32)]
)
def test_sectors_and_bank_conflicts(checked, name, sectors, passes):
    """32 lanes: floats side by side are 4 sectors, every second float 8; shared memory has 32 banks."""
    report = check(checked, name, writable=False)
    found = {(t.memory, t.access): t for t in report.traffic}
    read, write = found["global", "read"], found["shared", "write"]
    assert (read.requests, read.lanes, read.cost, read.least) == (1, 32, sectors, 4)
    assert (write.requests, write.lanes, write.cost, write.least) == (1, 32, passes, 1)
    assert write.excess == passes
    assert "no errors" in str(report)
    assert read.line in str(report)


# --- pyconv.cuda_emulator


def test_a_report_names_the_lines_of_pyconvs_kernels():
    x, w = random(1, 8, 9, 9), random(9, 8, 3, 3)
    with pyconv.cuda_emulator(check=True) as report:
        ops.conv2d(x, w, algorithm="implicit_gemm")
    assert report.errors == []
    assert report.traffic
    root = Path(__file__).parents[1]
    for t in report.traffic:
        source, line = t.line.split(":")
        assert (root / source).parent == root / "csrc/cuda/conv2d"
        assert int(line) <= len((root / source).read_text().splitlines())
        assert t.cost >= t.least > 0
    with pyconv.cuda_emulator() as report:
        ops.conv2d(x, w)
    assert report == Report()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_same_bits_in_every_order(layout):
    case = conv2d("mb5ic9ih13iw12oc70kh3sh2sw1ph1")
    x, w, b = random(*case.x, layout=layout, grad=True), random(*case.w, grad=True), random(70)
    results = []
    for order, late in itertools.product(ORDERS, (False, True)):
        with pyconv.cuda_emulator(order=order, late_copies=late):
            y = ops.conv2d(x, w, b, **case.arguments, algorithm="implicit_gemm")
            dy = torch.linspace(-1, 1, y.numel()).view(y.shape)
            z = ops.batch_norm(y, None, None, training=True)
            results.append((y, z, *torch.autograd.grad(y, (x, w), dy)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_runs_inside_and_outside():
    x, w = random(1, 3, 8, 8), random(4, 3, 3, 3)
    with (
        pytest.raises(ValueError, match=r'conv2d on CUDA: there is no algorithm "winograd"; there'),
        pyconv.cuda_emulator(),
    ):
        ops.conv2d(x, w, algorithm="winograd")
    ops.conv2d(x, w, algorithm="winograd")  # the CPU's kernels again
    with pyconv.cuda_emulator():
        with pytest.raises(RuntimeError, match="must not be nested"), pyconv.cuda_emulator():
            pass
        assert torch.equal(ops.conv2d(x, w), ops.conv2d(x, w))
    sideways = pyconv.cuda_emulator(order="sideways")
    with pytest.raises(ValueError, match=r"order must be one of .* got 'sideways'"), sideways:
        pass


@pytest.mark.parametrize(
    ("text", "dtype", "channels_last", "fwd", "bwd_input", "bwd_weight"),
    [
        ("ic1ih28oc6kh5ph2", "float32", False, "direct", "direct", "direct"),  # LeNet-5
        ("ic3ih64oc64kh7sh2ph3", "float32", False, "implicit_gemm", "direct", "implicit_gemm"),
        ("ic3ih64oc64kh7sh2ph3", "bfloat16", True, "direct", "direct", "direct"),
        ("ic64ih8oc64kh3ph1g64", "float32", True, "depthwise", "depthwise", "depthwise"),
        ("ic64ih8oc64kh3ph1g64", "float16", False, "direct", "direct", "direct"),
        ("ic18ih8oc18kh3ph1g18", "float32", True, "direct", "direct", "direct"),
        ("ic64ih8oc64kh3ph1", "float32", True) + 3 * ("implicit_gemm",),
        ("ic64ih8oc64kh3ph1", "bfloat16", False) + 3 * ("tensor_cores",),
        ("ic64ih8oc64kh3ph1", "float64", False, "reference", "reference", "reference"),
    ],
)
def test_which_convolution_runs(text, dtype, channels_last, fwd, bwd_input, bwd_weight):
    c = conv2d(text)
    shape = _native.lib.Conv2dShape(
        N=c.mb, G=c.g, IC=c.ic, IH=c.ih, IW=c.iw, OC=c.oc, KH=c.kh, KW=c.kw, OH=c.y[2], OW=c.y[3],
        SH=c.sh, SW=c.sw, PH=c.ph, PW=c.pw, DH=c.dh, DW=c.dw, dtype=dtype, channels_last=channels_last,
    )  # fmt: skip
    for direction, expected in (("fwd", fwd), ("bwd_input", bwd_input), ("bwd_weight", bwd_weight)):
        rows = _native.lib.ask_cuda(shape, direction)
        assert next(name for name, _, _, refuses in rows if not refuses) == expected, rows


def test_packed_weights_are_left_aside():
    x, w = random(1, 16, 8, 8), random(16, 16, 3, 3)
    with pyconv.cuda_emulator():
        assert ops.conv2d_pack(x, w) is None


def test_a_compiler_that_is_missing_or_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PYCONV_CACHE", str(tmp_path))
    broken = tmp_path / "broken.cu"
    broken.write_text('#include "cuda/vocabulary.h"\nthis is not C++\n')
    with pytest.raises(RuntimeError, match=r"could not be compiled by [\s\S]*broken\.cu:2"):
        build.build([broken], "emu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"needs a C\+\+ compiler: .*no-such-compiler"):
        build.build([broken], "emu")
    assert not list(tmp_path.glob("*.so"))


def test_what_nvcc_built_says_what_it_lacks():
    """The library loads on a machine with no driver, has every entry point, and a launch is one clean error."""
    path = Path(pyconv.__file__).with_name("_cuda.so")
    if torch.cuda.is_available() or not path.exists():
        pytest.skip("there is a GPU" if path.exists() else "built without nvcc")
    x = random(1, 16, 8, 8)
    _native.emulate_cuda(str(path))
    try:
        for call in (lambda: ops.conv2d(x, x), lambda: ops.max_pool2d(x, 2)):
            with pytest.raises(RuntimeError, match=r"2d on CUDA: kernel \w+: CUDA error \d+: \w+"):
                call()
    finally:
        _native.emulate_cuda("")


def test_kernels_are_listed_with_sources_that_exist():
    root = Path(__file__).parents[1]
    shape = _native.lib.Conv2dShape(
        N=1, G=1, IC=1, IH=3, IW=3, OC=1, KH=1, KW=1, OH=3, OW=3, SH=1, SW=1, PH=0, PW=0, DH=1, DW=1,
        dtype="float32", channels_last=False,
    )  # fmt: skip
    names = [name for name, *_ in _native.lib.ask_cuda(shape, "fwd")]
    assert names == _native.lib.cuda_algorithms["conv2d"]
    for op, algorithms in _native.lib.cuda_algorithms.items():
        assert algorithms[-1] == "reference", op
    for _, source, cannot, _ in _native.lib.ask_cuda(shape, "fwd"):
        assert (root / source).exists()
        assert not cannot or re.match(r"\w", cannot)
