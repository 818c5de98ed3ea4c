"""Each mistake of tests/mutants.py is noticed, by the tier that the table says, in the way it says."""

import ctypes
import os
import select
import signal
from functools import cache

import pytest
import torch
import torch.nn.functional as F

import pyconv
from pyconv import _native, ops
from pyconv._emulator import build
from pyconv._emulator.report import Report
from tests import mutants
from tests.cases import conv2d
from tests.helpers import LAYOUTS, integers, random
from tests.mutants import (
    CHUNKS,
    CLIP,
    CONV,
    CORES,
    DEPTHWISE,
    DIRECT,
    EACH,
    GEMM,
    MUTANTS,
    NORM,
    PACKS,
    PARTS,
    POOL,
    PRODUCT,
    SUMS,
    TURN,
    WALK,
    WINDOWS,
)  # fmt: skip

pytestmark = pytest.mark.skipif(_native.lib is None, reason=_native.reason)
SECONDS = 60  # until a launch counts as endless
# Rows and columns that leave tiles and warps half empty; dilation and a stride with a common factor;
# groups, and a weight gradient in two parts of 145 and 144 pixels.
CASES = [
    conv2d("mb1ic16ih9iw7oc40kh3sh2sw1ph1"),
    conv2d("mb1ic8ih9iw7oc8kh3sh2ph2dh2"),
    conv2d("mb1ic16ih19oc16kh3ph1dh2g2"),
]


# Rows that leave a run of 8 half empty; channels that leave lanes idle, and more taps than are kept at once.
FEW = [*CASES, conv2d("mb1ic3ih9iw7oc20kh3ph1")]
ONE = [conv2d("mb1ic36ih9iw7oc36kh3sh2sw1ph1g36"), conv2d("mb1ic8ih19oc8kh9ph4g8")]


def convolve(algorithm, dtype, layout, cases=CASES, draw=random):
    for case in cases:
        x, w = (draw(*size, dtype=dtype, layout=layout, grad=True) for size in (case.x, case.w))
        b = draw(case.oc, dtype=dtype)
        X, W = (t.detach().double().requires_grad_() for t in (x, w))
        Y = F.conv2d(X, W, b.double(), **case.arguments)
        dy = draw(*Y.shape, dtype=dtype, layout=layout)
        right = [Y.detach(), *torch.autograd.grad(Y, (X, W), dy.double())]

        def run(x=x, w=w, b=b, dy=dy, arguments=case.arguments):
            y = ops.conv2d(x, w, b, **arguments, algorithm=algorithm)
            return [y, *torch.autograd.grad(y, (x, w), dy)]

        yield run, right
    x, w, z = (t.detach() for t in (x, w, random(*Y.shape, dtype=dtype, layout=layout)))
    z[0, 0, 0, 0] = torch.nan
    fused = (F.conv2d(x.double(), w.double(), b.double(), **case.arguments) + z).relu()
    yield (
        lambda: [ops.conv2d_fused(x, w, b, z, True, **case.arguments, algorithm=algorithm)],
        [fused],
    )


def pool(algorithm, channels, layout):
    x = torch.randint(0, 4, (1, channels, 9, 11)).float().contiguous(memory_format=layout)
    x[0, 1, 4, 4] = torch.nan
    x.requires_grad_()
    y, indices = F.max_pool2d(x, 3, 2, return_indices=True)
    a = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    dy, da = random(*y.shape), random(*a.shape)
    back = F.max_unpool2d(dy, indices, 3, 2)

    def run():
        y, i = ops.max_pool2d(x, 3, 2, return_indices=True, algorithm=algorithm)
        a = ops.avg_pool2d(x, 3, 2, 1, count_include_pad=False, algorithm=algorithm)
        u = ops.max_unpool2d(dy, indices, 3, 2, algorithm="reference")
        return [y, i, a, u, *torch.autograd.grad(y, x, dy), *torch.autograd.grad(a, x, da)]

    yield (
        run,
        [y, indices, a, back, *torch.autograd.grad(y, x, dy), *torch.autograd.grad(a, x, da)],
    )


def normalise(algorithm, layout):
    for size in ((5, 36, 20, 15), (3, 5, 3, 7)):
        x, w = (random(*size) + 1).to(memory_format=layout).requires_grad_(), random(size[1])
        w.requires_grad_()
        X, W = (t.detach().double().requires_grad_() for t in (x, w))
        Y = F.batch_norm(X, None, None, W, training=True)
        dy = random(*size).to(memory_format=layout)

        def run(x=x, w=w, dy=dy):
            y = ops.batch_norm(x, None, None, w, training=True, algorithm=algorithm)
            return [y, *torch.autograd.grad(y, (x, w), dy)]

        yield run, [Y.detach(), *torch.autograd.grad(Y, (X, W), dy.double())]
    yield from normalise_and_clip(algorithm, layout)


def normalise_and_clip(algorithm, layout):
    """Of halves, in eights and in fours; nothing comes from above where rounding may decide."""
    for size in ((3, 16, 4, 6), (2, 36, 5, 4)):
        x, z, dy = (random(*size, dtype=torch.bfloat16, layout=layout, grad=True) for _ in range(3))
        w = random(size[1], grad=True)
        X, Z, W = (t.detach().double().requires_grad_() for t in (x, z, w))
        before = F.batch_norm(X, None, None, W, training=True) + Z
        dy = dy.detach() * ((before.abs() > 0.05) & ((before - 1).abs() > 0.05))
        Y = F.hardtanh(before, 0.0, 1.0)

        def run(x=x, z=z, w=w, dy=dy):
            y = ops.batch_norm_relu(
                x, None, None, w, training=True, residual=z, ceiling=1.0, algorithm=algorithm
            )
            return [y, *torch.autograd.grad(y, (x, z, w), dy)]

        yield run, [Y.detach(), *torch.autograd.grad(Y, (X, Z, W), dy.double())]


@cache
def work(file):
    """What the kernels of a file compute, each beside what is right."""
    torch.manual_seed(0)
    cases = []
    for layout in LAYOUTS:
        if file in (GEMM, WALK, PRODUCT):
            cases += convolve("implicit_gemm", torch.float32, layout)
        if file == CONV:
            cases += convolve("reference", torch.float32, layout)
        if file in (NORM, SUMS, PARTS):
            cases += normalise("reference" if file == SUMS else "welford", layout)
        if file == CLIP:
            cases += convolve("direct", torch.float32, layout, FEW[-1:])
            cases += normalise_and_clip("welford", layout)
        if file in (CORES, CHUNKS, TURN):
            cases += convolve("tensor_cores", torch.bfloat16, layout)
        if file == CHUNKS:  # small integers, which TF32 has
            cases += convolve("tensor_cores", torch.float32, layout, draw=integers)
        if file == DIRECT:
            cases += convolve("direct", torch.float32, layout, FEW)
    if file in (WALK, PRODUCT):
        cases += convolve("tensor_cores", torch.bfloat16, LAYOUTS[1])
    if file == DEPTHWISE:
        cases += convolve("depthwise", torch.float32, LAYOUTS[1], ONE)
    if file in (POOL, EACH, WINDOWS):
        cases += pool("reference", 3, LAYOUTS[0])
    if file in (PACKS, WINDOWS):
        for channels in (6, 8):  # taken one by one, and by fours
            cases += pool("packs", channels, LAYOUTS[1])
    return cases


def is_right(result, right):
    loose = 2e-2 if result.dtype == torch.bfloat16 else 1e-4
    return torch.allclose(
        result.double(), right.double(), rtol=loose, atol=10 * loose, equal_nan=True
    )


def excess(report):
    """Sectors, and passes over shared memory, over the fewest possible."""
    sums = {}
    for t in report.traffic:
        cost, least = sums.get(t.memory, (0, 0))
        sums[t.memory] = cost + t.cost, least + t.least
    return {memory: cost / least for memory, (cost, least) in sums.items()}


class Tier:
    """The emulator of one tier, with all mutants."""

    def __init__(self, name, folder):
        self.name = name
        self.path = build.build(mutants.planted_sources(folder), name, folder)
        self.library = ctypes.CDLL(str(self.path))
        self.planted = ctypes.c_int.in_dll(self.library, "pyconv_planted")
        self.usual = cache(lambda file: self.run(file, 0)[1])

    def run(self, file, number):
        """(what was noticed, the traffic), in several orders of threads, with copies late and at once."""
        traffic = {}
        self.planted.value = number
        _native.emulate_cuda(str(self.path))
        try:
            for order, late in ((0, 1), (1, 0), (2, 1)):
                self.library.pyconv_emulator_configure(order, ctypes.c_uint64(3), late)
                noticed, traffic = self.once(file)
                if noticed != "lives":
                    return noticed, traffic
            return "lives", traffic
        finally:
            _native.emulate_cuda("")

    def once(self, file):
        report, noticed = Report(), "lives"
        for call, right in work(file):
            try:
                if not all(map(is_right, call(), right)):
                    noticed = "wrong"
            except RuntimeError:
                noticed = "stopped"
            if noticed != "lives":
                break
        if self.name == "chk":
            report.read(self.library, self.path)
            if report.errors:
                noticed = report.errors[0].kind
        return noticed, excess(report)

    def verdict(self, mutant):
        """In a process of its own, for a mutant may write anywhere, or never end."""
        usual = self.usual(mutant.file)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            noticed, traffic = self.run(mutant.file, MUTANTS.index(mutant) + 1)
            if noticed == "lives" and any(traffic[m] > 1.01 * usual[m] for m in usual):
                noticed = "traffic"
            os.write(write, noticed.encode())
            os._exit(0)
        os.close(write)
        answer = os.read(read, 100).decode() if select.select([read], [], [], SECONDS)[0] else ""
        os.close(read)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return answer or "stopped"


@pytest.fixture(scope="module", params=["emu", "chk"])
def tier(request, tmp_path_factory):
    pyconv.backends.cuda.allow_tf32 = True
    yield Tier(request.param, tmp_path_factory.mktemp(request.param))
    pyconv.backends.cuda.allow_tf32 = False


@pytest.mark.parametrize("file", sorted({m.file for m in MUTANTS}))
def test_what_is_not_broken_lives(tier, file):
    assert tier.run(file, 0)[0] == "lives"


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_noticed_as_the_table_says(tier, mutant):
    expected = getattr(mutant, tier.name)
    if expected != "undefined":
        assert tier.verdict(mutant) == expected


def test_none_lives_everywhere_and_the_table_is_that_of_the_docs():
    assert len(MUTANTS) >= 30
    assert all(m.chk != "lives" for m in MUTANTS)
    assert mutants.table() in (mutants.ROOT / "docs/cuda.md").read_text()
