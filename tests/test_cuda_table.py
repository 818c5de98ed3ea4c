"""Every line of docs/cuda.md's table of kernels, run: emulated and watched here, as PTX in test_ptx."""

import pytest
import torch

import pyconv
from pyconv import _launches, _native
from tests import cuda_table, test_ptx
from tests.backends import BACKENDS

pytestmark = pytest.mark.skipif(_native.lib is None, reason=_native.reason)


@pytest.fixture(autouse=True)
def allow_tf32(monkeypatch):
    monkeypatch.setattr(pyconv.backends.cuda, "allow_tf32", True)


@pytest.mark.parametrize("row", cuda_table.rows(), ids=str)
@pytest.mark.parametrize("tier", BACKENDS)
def test_every_kernel_computes_what_it_should(row, tier):
    if tier == "cuda":
        with torch.device("cuda"):
            call, right = row.work()
            assert all(map(cuda_table.is_right, call(), right))
        return
    call, right = row.work()
    with pyconv.cuda_emulator(check=tier == "chk", order="random") as report:
        mine = call()
    assert all(map(cuda_table.is_right, mine, right))
    assert report.errors == []
    assert bool(report.traffic) == (tier == "chk")


@pytest.mark.skipif(not _launches.COMPILED.exists(), reason="built without nvcc")
@pytest.mark.parametrize("row", cuda_table.rows(), ids=str)
def test_ptxas_made_every_kernel_without_spills(row):
    for made in row.launches():
        assert made.compiled, made.kernel
        for gpu, figures in made.compiled.items():
            assert figures.spilled == 0, f"{made.kernel} for {gpu}"


def test_the_table_is_that_of_the_docs():
    assert cuda_table.table() in cuda_table.DOCS.read_text()
    assert {row.op for row in cuda_table.rows()} >= set(_native.lib.cuda_algorithms)
    for op, names in _native.lib.cuda_algorithms.items():
        assert [*dict.fromkeys(r.kernel for r in cuda_table.rows() if r.op == op)] == names
    for test in (
        test_every_kernel_computes_what_it_should,
        test_ptxas_made_every_kernel_without_spills,
        test_ptx.test_every_kernel_computes_what_it_should,
    ):
        values = [m.args[1] for m in test.pytestmark if m.name == "parametrize"]
        assert cuda_table.rows() in values, test
