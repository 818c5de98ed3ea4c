"""`make gpu`, as far as that can be tested without a GPU: what it would run and write, and what it says here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import benchmarks.__main__ as command
import pyconv
from benchmarks import cudnn, gpu, players, report, tables
from pyconv import _native
from pyconv._conv_string import conv2d

ROOT = Path(__file__).parents[1]
without_a_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
kernels = pytest.mark.skipif(_native.lib is None, reason=_native.reason)


@without_a_gpu
def test_without_a_gpu_it_fails_with_one_sentence():
    script = [sys.executable, "benchmarks/gpu.py"]
    run = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"make gpu: torch {torch.__version__} ")


@without_a_gpu
@kernels
def test_nothing_is_timed_without_a_gpu(capsys):
    assert command.main(["conv2d", "--device", "cuda", "--tier", "smoke"]) == 2
    said = capsys.readouterr().err
    assert said == f"conv2d: --device cuda: torch {torch.__version__} sees no CUDA device\n"


def test_an_old_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old one")
    for capability, why in (
        ((7, 5), "an old one has compute capability 7.5; the kernels need 8.0"),
        ((8, 0), ""),
        ((12, 0), ""),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert gpu.missing() == why


def test_the_steps_build_for_the_gpu_and_end_with_the_report():
    steps = gpu.steps("90", "/usr/bin/compute-sanitizer")
    assert steps[0][2] == {"PYCONV_CUDA": "1", "PYCONV_CUDA_ARCHS": "90"}
    assert [what for what, *_ in steps] == [
        "build",
        "tests",
        *(f"compute-sanitizer {t}" for t in gpu.TOOLS),
        *(f"times, {d}" for d in gpu.DTYPES),
        "times, TF32",
        "report",
    ]
    for what, _, environment in steps:
        assert ("sanitizer" in what) == ("PYTORCH_NO_CUDA_MEMORY_CACHING" in environment)
    assert not any("sanitizer" in what for what, *_ in gpu.steps("90", None))
    commands = command.parser()
    for _, words, _ in steps:
        if "benchmarks" in words:
            commands.parse_args(words[words.index("benchmarks") + 1 :])
    for name in ("tests/test_opinfo.py", "tests/test_cuda_table.py", "setup.py"):
        assert (ROOT / name).exists()


@kernels
@pytest.mark.parametrize("direction", ["fwd", "bwd_input", "bwd_weight"])
@pytest.mark.parametrize("player", ["pyconv", *cudnn.VARIANTS])
def test_what_is_timed_is_right(player, direction, monkeypatch):
    """On an emulated GPU: torch's part runs on the CPU."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda t: t)
    case = conv2d("mb1ic16ih9oc8kh3ph1")
    task = {"kind": "layer", "case": case.text, "dtype": "float32", "layout": "NHWC"}
    with pyconv.cuda_emulator():
        subject = players.prepare(player, {**task, "pass": direction, "device": "cuda"})
    assert subject.right
    assert subject.timer is cudnn.seconds
    assert subject.allowed == (cudnn.LARGEST_TF32_ERROR if "tf32" in player else 1e-4)


@kernels
def test_tf32_is_judged_as_such(monkeypatch, capsys):
    monkeypatch.setattr(torch.Tensor, "cuda", lambda t: t)
    monkeypatch.setattr(pyconv.backends.cuda, "allow_tf32", True)
    task = {"kind": "layer", "case": "mb1ic16ih9oc8kh3ph1", "dtype": "float32", "layout": "NHWC"}
    with pyconv.cuda_emulator():
        subject = players.prepare("pyconv", {**task, "pass": "fwd", "device": "cuda"})
    assert subject.right
    assert subject.error > 1e-4
    assert subject.allowed == cudnn.LARGEST_TF32_ERROR
    assert command.main(["conv2d", "--tf32", "--dtype", "bfloat16", "--device", "cuda"]) == 2
    assert "--tf32 is of float32 on --device cuda" in capsys.readouterr().err


def test_the_table_takes_the_place_of_the_sentence():
    def row(layout, ours, theirs):
        times = {"pyconv": {"median": ours}, "cudnn": {"median": theirs}, "cudnn tf32": {}}
        return {"layout": layout, "players": times, "malloc": "default"}

    conditions = {"gpus": ["a GPU"], "torch": "2.13", "date": "2026-01-01T00", "commit": "abc"}
    run = {
        "benchmark": "conv2d",
        "arguments": {"device": "cuda", "dtype": "float32"},
        "conditions": conditions,
        "rows": [row("NCHW", 1, 4), row("NCHW", 1, 1), row("NHWC", 2, 1)],
    }
    readme = (ROOT / "README.md").read_text()
    (name, table), *rest = tables.readme([json.loads(json.dumps(run))]).items()
    assert (name, rest) == ("gpu", [])
    text = report.rewrite(readme, name, table)
    assert "| float32 | cudnn | 2.00 | 0 of 2 | 1.00 | 0.50 | 1 of 1 | 0.50 |" in text
    assert "(a GPU, torch 2.13, 2026-01-01, commit abc)" in text
    assert "not yet timed" not in text
