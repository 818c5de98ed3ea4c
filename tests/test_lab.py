"""pyconv.lab: kernels of one's own, what it says of them, and the exercises of docs/lab.md."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from pyconv import _native, lab
from pyconv.lab import __main__ as page
from pyconv.lab.exercises import EXERCISES, FOLDER
from tests.sass import tool

pytestmark = pytest.mark.skipif(_native.lib is None, reason=_native.reason)
ROOT = Path(__file__).parents[1]
FILE = ROOT / "tests/lab.cu"


def test_what_the_docs_show_is_what_the_exercises_print():
    docs = (ROOT / "docs/lab.md").read_text()
    if page.compiler() not in docs:
        pytest.skip(f"docs/lab.md is not of {page.compiler()}, and counts are of a compiler's code")
    assert page.page() + "\n" == docs, "python -m pyconv.lab > docs/lab.md"


def test_the_example_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", page.INTRODUCTION, re.S)
    exec(example, {})
    assert "\nrandom      right\n\nno errors\n" in capsys.readouterr().out


def test_each_exercise_teaches_what_it_says():
    (plain, narrow), (racing, ordered), (direct, turned, padded) = (
        [run() for _, run in exercise.steps] for exercise in EXERCISES
    )
    assert [r.ok for r in (plain, narrow, racing, ordered, direct, turned, padded)] == [
        True,
        True,
        False,
        True,
        True,
        True,
        True,
    ]
    assert {e.kind for e in racing.report.errors} == {"race"}
    assert any(v.startswith("wrong: ") for v in racing.values.values())

    def excess(result, memory, access):
        (t,) = [t for t in result.report.traffic if (t.memory, t.access) == (memory, access)]
        return t.excess

    assert excess(direct, "global", "read") == 8
    assert excess(turned, "global", "read") == excess(turned, "global", "write") == 1
    assert excess(turned, "shared", "read") == 32
    assert excess(padded, "shared", "read") == 1


@pytest.mark.skipif(tool("nvcc") is None, reason="there is no nvcc")
def test_the_exercises_are_cuda(tmp_path):
    files = [str(FOLDER / exercise.file) for exercise in EXERCISES]
    command = [tool("nvcc"), "-arch=compute_80", "-ptx", *files]
    subprocess.run(command, check=True, cwd=tmp_path)


def test_every_type_arrives():
    sums = lab.kernel(FILE, "sums")
    assert [f"{p.name} {p.kind} {p.dtype}" for p in sums.parameters] == [
        "a in float32",
        "b in bfloat16",
        "c in int32",
        "y out float64",
        "z out int64",
        "n value int32",
        "f value float32",
    ]
    a, b, c = torch.randn(70), torch.randn(70).bfloat16(), torch.arange(70, dtype=torch.int32)
    y, z = torch.empty(70, dtype=torch.float64), torch.empty(70, dtype=torch.int64)
    arguments = (a, b, c, y, z, 70, 0.5)
    right = (a.double() + b.double() * 0.5, c.long() + 70)
    result = sums.check(*arguments, grid=3, block=32, expected=right, tolerance=1e-12)
    assert result.ok, result
    y.zero_()
    sums.run(*arguments, grid=3, block=32)
    assert torch.equal(y, right[0])
    right[1][66] += 1
    result = sums.check(*arguments, grid=3, block=32, expected=right)
    assert result.values["random"] == (
        "wrong: 1 of 70 values of z, the first z[66] = 136, should be 137"
    )
    result = sums.check(*arguments, grid=3, block=24, expected=(right[0], right[1] * 0 + 140))
    assert "wrong" in result.values["random"]
    assert not result.ok


@pytest.mark.parametrize(
    ("name", "kind", "line"),
    [
        ("unwritten", "uninitialised", "y[threadIdx.x] = v[threadIdx.x];"),
        ("beyond", "out of bounds", "w[threadIdx.x * 200] = 1;"),
    ],
)
def test_a_mistake_with_a_shared_variable_is_found(name, kind, line):
    y = torch.empty(32)
    result = lab.kernel(FILE, name).check(y, grid=1, block=32, expected=torch.ones(32))
    lines = FILE.read_text().splitlines()
    assert {(e.kind, e.line) for e in result.report.errors} == {
        (kind, f"lab.cu:{next(i for i, text in enumerate(lines, 1) if line in text)}")
    }
    assert not result.ok


def test_shared_memory_is_the_block_s():
    y = torch.empty(64)
    reverse = lab.kernel(FILE, "reverse")
    assert reverse.check(y, 64, grid=1, block=64, expected=63 - torch.arange(64.0)).ok
    at_run_time, y = lab.kernel(FILE, "at_run_time"), torch.empty(32)
    assert at_run_time.check(
        y, grid=2, block=32, shared_bytes=128, expected=y.new_ones(32)
    ).report.errors
    assert at_run_time.check(y, grid=1, block=32, shared_bytes=128, expected=y.new_ones(32)).ok
    with pytest.raises(
        RuntimeError, match="uses 128 bytes of shared memory and was launched with 0"
    ):
        at_run_time.run(y, grid=1, block=32)


def test_a_launch_that_is_stopped_says_why():
    diverges, y = lab.kernel(FILE, "diverges"), torch.empty(32)
    with pytest.raises(RuntimeError, match=r"barrier divergence: thread .* lab\.cu:\d+"):
        diverges.run(y, grid=1, block=32)
    result = diverges.check(y, grid=1, block=32, expected=torch.zeros(32))
    assert all(v.startswith("stopped: barrier divergence") for v in result.values.values())
    assert not result.ok


def test_what_does_not_fit_is_refused(tmp_path):
    y = torch.empty(64)
    with pytest.raises(ValueError, match=r"lab\.cu has not one kernel but several.*: sums, rev"):
        lab.kernel(FILE)
    with pytest.raises(ValueError, match=r"lab\.cu has no kernel called 'missing'; it has: sums"):
        lab.kernel(FILE, "missing")
    with pytest.raises(ValueError, match=r"takes_a_struct: the lab cannot pass .* like p$"):
        lab.kernel(FILE, "takes_a_struct")
    reverse = lab.kernel(FILE, "reverse")
    for error, message, arguments in (
        (TypeError, r"reverse: takes \(y, n\), got 1 arguments", (y,)),
        (TypeError, r"reverse: y must be a CPU tensor, got <class 'int'>", (1, 1)),
        (TypeError, r"reverse: y must be float32, got torch.float64", (y.double(), 1)),
        (ValueError, r"reverse: y must be contiguous", (y[::2], 1)),
        (TypeError, r"reverse: n must be a number, got a tensor", (y, y)),
    ):
        with pytest.raises(error, match=message):
            reverse.run(*arguments, grid=1, block=32)
    with pytest.raises(ValueError, match="grid must be one to three numbers"):
        reverse.run(y, 64, grid=(1, 1, 1, 1), block=64)
    with pytest.raises(ValueError, match=r"order must be one of .*, got 'sideways'"):
        reverse.run(y, 64, grid=1, block=64, order="sideways")
    with pytest.raises(
        ValueError, match=r"expected must be of the shapes of y \(64,\), got \(3,\)"
    ):
        reverse.check(y, 64, grid=1, block=64, expected=torch.ones(3))
    wrong = tmp_path / "wrong.cu"
    wrong.write_text("__global__ void wrong(float* y) {\n  y[0] = nothing;\n}\n")
    with pytest.raises(RuntimeError, match=r"wrong\.cu:2:\d+: error: .*nothing"):
        lab.kernel(wrong)
