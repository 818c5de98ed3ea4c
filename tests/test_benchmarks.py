"""The benchmarks' own arithmetic: sums, tables, the turns of processes, and that every command starts."""

import csv
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import torch

import benchmarks.__main__ as command
from benchmarks import (
    conv2d,
    everything,
    instructions,
    networks,
    output,
    peers,
    report,
    sizes,
    steps,
    summary,
    tables,
)
from benchmarks.subject import Subject, errors, rotating
from benchmarks.turns import MALLOC, Stage
from benchmarks.worker import serve
from pyconv import _native
from pyconv._conv_string import conv2d as case_of
from tests import players

ROOT = Path(__file__).parents[1]
kernels = pytest.mark.skipif(_native.lib is None, reason=_native.reason)


def row(layer, ours, torchs, *, layout="NCHW", direction="fwd", malloc="default", **players):
    """A row as `benchmarks conv2d` writes it; a time of None is a wrong result."""
    times = {"pyconv": ours, "torch": torchs, **players}
    return {
        "layer": layer,
        "case": layer,
        "family": "3x3",
        "layout": layout,
        "pass": direction,
        "malloc": malloc,
        "kernel": "winograd",
        "flops": 10**9,
        "bytes": 10**6,
        "bound": 0.5e-3,
        "players": {
            name: {"error": 1.0, "max_error": 1.0, "right": False}
            if time is None
            else {
                "error": 1e-7,
                "max_error": 1e-6,
                "right": True,
                "median": time,
                "reliable": True,
                "faults": 0,
            }
            for name, time in times.items()
        },
    }


def record(benchmark, rows, **arguments):
    machine = {
        "cpu": "a CPU",
        "threads": 2,
        "cores_in_use_by_others": 0.1,
        "isa": "avx2",
        "torch": "2.13",
        "date": "2026-01-01T00:00",
        "commit": "abc",
        "flops": 1e11,
        "copy_bytes_per_second": 1e10,
        "cores_share_a_cache": True,
        "core_to_core_ns": 70.0,
        "gpus": [],
    }
    return {"benchmark": benchmark, "arguments": arguments, "conditions": machine, "rows": rows}


ROWS = [
    row("a", 1e-3, 4e-3),
    row("a", 2e-3, 1e-3, layout="NHWC"),
    row("b", 1e-3, None),
    row("a", 1e-3, 2e-3, malloc="tuned", openvino=1e-3),
]


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("ic64ih56oc64kh3ph1", "3x3"),
        ("ic64ih56oc64kh3sh2ph1", "other"),
        ("ic64ih56oc64kh3ph2dh2", "other"),
        ("ic64ih56oc64kh1sh2", "1x1"),
        ("ic3ih56oc64kh3ph1", "few channels"),
        ("g64ic64ih56oc64kh3ph1", "depthwise"),
        ("g2ic64ih56oc64kh3ph1", "grouped"),
    ],
)
def test_family(text, family):
    assert summary.family(case_of(text)) == family


def test_every_family_has_a_layer_and_every_layer_a_line():
    layers = conv2d.layers()
    assert {summary.family(x.case) for x in layers} == set(summary.FAMILIES)
    assert len({x.case.name for x in layers}) == len(layers) == 37
    assert all(x.gpu_batch > 0 for x in layers)


def test_sums_take_no_time_of_a_wrong_result():
    c = summary.compare(ROWS)
    assert (c.rows, c.losses, c.least, c.most) == (3, 1, 0.5, 4)
    assert c.mean == pytest.approx((4 * 0.5 * 2) ** (1 / 3))
    assert summary.compare(ROWS, "openvino").rows == 1
    assert summary.compare(ROWS, "onnxruntime") is None
    fused = row("c", 2e-3, 4e-3, **{summary.FUSED: 1e-3})
    assert (summary.speedup(fused), summary.speedup(fused, ours=summary.FUSED)) == (2, 4)
    assert summary.others([fused]) == ["torch"]
    assert "pyconv fused x4.00 over torch" in summary.text([fused])
    assert summary.wrong(ROWS) == [(ROWS[2], "torch")]
    assert summary.worst(ROWS) == [ROWS[1]]
    assert summary.others(ROWS) == ["torch", "openvino"]
    assert summary.share_of_roof(ROWS[0]) == 0.5
    assert (
        summary.over_best_layout(ROWS[:2]) == 1
    )  # torch's best is 1 ms in NHWC, ours 1 ms in NCHW
    assert math.isnan(summary.geometric_mean([]))


def test_text_names_losses_and_wrong_results():
    text = summary.text(ROWS)
    assert "slower than torch: a NHWC fwd x0.50 winograd" in text
    assert "WRONG, not timed: b NCHW fwd torch" in text
    broken = {**ROWS[0], "players": {"openvino": {"failed": "RuntimeError: no"}}}
    assert "FAILED: a NCHW fwd openvino: RuntimeError: no" in summary.text([broken])


def test_report_rewrites_between_its_markers_only():
    text = "before\n<!-- benchmark conv2d -->\nold\n<!-- end -->\n<!-- benchmark steps -->\n<!-- end -->\nafter\n"
    new = report.rewrite(text, "conv2d", "a \\1 | b")
    assert new == text.replace("old", "a \\1 | b")
    assert report.rewrite(new, "conv2d", "old") == text
    with pytest.raises(ValueError, match="no markers for the table sizes"):
        report.rewrite(text, "sizes", "")


def test_readme_has_a_place_for_every_table():
    runs = [record("conv2d", ROWS), record("steps", [])]
    runs[1]["rows"] = [{**ROWS[0], "network": "n", "mode": "train", "batch": None}]
    text = (ROOT / "README.md").read_text()
    for name, table in tables.readme(runs).items():
        text = report.rewrite(text, name, table)
    assert "| slowest beside torch |" in text
    assert "| a NHWC fwd | winograd | 0.50 |" in text
    assert "share a last-level cache (70 ns round trip)" in text


def test_report_from_files_with_the_plain_run_first(tmp_path, capsys):
    results, readme, document = tmp_path / "results", tmp_path / "README.md", tmp_path / "every.md"
    flags = {"dtype": "float32", "batch": "None", "peers": "[]"}
    for name, changes in (("a", {"batch": "1"}), ("b", {}), ("c", {"peers": "['openvino']"})):
        output.write(results, name, record("conv2d", ROWS, **(flags | changes)))
    sized = {"first": 1.0, "again": 0.5}
    what = {"what": "3x3", "sizes": 200, "players": {"pyconv": sized, "torch": sized}}
    output.write(results, "d", record("sizes", [what]))
    extra = {"players": {"winograd": {"extra": 2**20}, "torch": {"extra": 2**21}}, "result": 0}
    output.write(results, "e", record("memory", [{**ROWS[0], **extra}]))
    gpu = {**ROWS[0], "players": {"cudnn": ROWS[0]["players"]["torch"]}}
    output.write(results, "f", record("conv2d", [gpu], **(flags | {"device": "cuda"})))
    output.write(results, "g-part", record("conv2d", ROWS, **flags))
    readme.write_text((ROOT / "README.md").read_text())
    arguments = ["report", "--results", results, "--readme", readme, "--document", document]
    assert main(*arguments) == 0
    titles = re.findall(r"^## (.*)", document.read_text(), re.M)
    assert titles == [
        "conv2d: float32, 2 threads",
        "conv2d: float32, 2 threads, batch 1",
        "conv2d: float32, 2 threads, each player in its own process",
        "conv2d: float32, 2 threads, GPU",
        "sizes: 2 threads",
        "memory: 2 threads",
    ]
    assert "- a NHWC fwd, default malloc: 0.50 (winograd)" in document.read_text()
    assert "| a NCHW fwd | winograd | 0.0 | 1.0 | 2.0 |" in document.read_text()
    assert "| milliseconds | cudnn |\n| --- | --- |\n| a NCHW fwd | 4.000 |" in document.read_text()
    with (results / "b.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["player"] for line in lines[:2]] == ["pyconv", "torch"]
    assert lines[0]["median"] == "0.001"


def main(*arguments):
    """`python -m benchmarks` in this process."""
    return command.main([str(a) for a in arguments])


def ask(*requests):
    """benchmarks.worker's answers, in this process."""
    answers = io.StringIO()
    serve(io.StringIO("\n".join(map(json.dumps, requests))), answers, players.prepare)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_worker_answers_every_line_and_outlives_failures():
    task = {"seconds": 2.0}
    made, time, unable, fails, forgot, gone = ask(
        {"do": "prepare", "player": "torch", "task": task},
        {"do": "time", "player": "torch", "calls": 3},
        {"do": "prepare", "player": "unable", "task": task},
        {"do": "prepare", "player": "fails", "task": task},
        {"do": "forget"},
        {"do": "time", "player": "torch", "calls": 3},
    )
    assert made["right"]
    assert made["error"] == 1e-7
    assert time["seconds"] == 2.0
    assert time["faults"] >= 0
    assert unable == {"unable": "there is no such thing here"}
    assert fails == {"failed": "ZeroDivisionError: by zero"}
    assert forgot == {}
    assert gone["failed"].startswith("KeyError")


def test_stage_takes_turns_in_processes_that_sleep_between():
    with Stage(1, MALLOC["tuned"], apart=True, module="tests.players") as stage:
        found = stage.measure({"seconds": 1e-3}, ["pyconv", "wrong", "dies"], seconds=0.01)
        pids = [found[p]["about"]["pid"] for p in ("pyconv", "wrong")]
        states = [
            Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] for pid in pids
        ]
    assert states == ["T", "T"]  # stopped
    assert found["pyconv"]["median"] == 1e-3
    assert found["pyconv"]["about"]["malloc"] == MALLOC["tuned"]["MALLOC_TOP_PAD_"]
    assert "median" not in found["wrong"]
    assert "ended with 3" in found["dies"]["failed"]


def test_errors_are_relative_to_float64():
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert errors(torch.tensor([3.0, 4.5]), exact) == (0.1, 0.125)
    assert not Subject(lambda: None, float("nan"), 0, 1).right
    made = []
    call = rotating(lambda: lambda: made.append(1), bytes_each=2**40)
    call()
    assert made == [1]


def test_peers_refuse_what_they_cannot_do_and_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(peers.NEEDS, "openvino", ("no_such_module",))
    assert peers.missing("openvino").startswith(
        "openvino is left out: no_such_module not installed"
    )
    assert not peers.missing("torch.compile")
    task = {"kind": "layer", "layout": "NCHW", "dtype": "float32", "pass": "fwd"}
    peers.require("onnxruntime", task)
    for change in ({"layout": "NHWC"}, {"dtype": "float64"}, {"pass": "bwd_input"}):
        with pytest.raises(peers.Unable, match="onnxruntime"):
            peers.require("onnxruntime", task | change)


@kernels
@pytest.mark.parametrize("name", ["mobilenet_v2", "convnext_stack", "lenet5"])
def test_networks_have_the_size_they_say(name):
    network = networks.NETWORKS[name]
    model = network.build()
    counts = {"mobilenet_v2": 3_504_872, "lenet5": 61_706}
    assert sum(p.numel() for p in model.parameters()) == counts.get(name, 1_236_586)
    small = torch.randn(1, network.image[0], *(min(s, 64) for s in network.image[1:]))
    assert model.eval()(small).shape == (1, network.classes)


@kernels
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_a_step_is_checked_against_float64(mode):
    subject = networks.subject("pyconv", "lenet5", 2, True, mode)
    assert subject.right
    assert 0 < subject.error < 1e-5
    subject.call()


@kernels
def test_a_layer_is_timed_and_written(tmp_path, capsys):
    flags = ["--conv", "mb2ic3ih8oc4kh3ph1", "--seconds", 0.001, "--malloc", "default", "--pass"]
    assert (
        main("conv2d", *flags, "fwd,bwd_weight", "--dtype", "bfloat16", "--output", tmp_path) == 0
    )
    rows = json.loads((tmp_path / "conv2d-bfloat16-1t-fwd-bwd_weight-part.json").read_text())[
        "rows"
    ]
    assert [(r["layout"], r["pass"]) for r in rows] == [
        (layout, p) for layout in ("NCHW", "NHWC") for p in ("fwd", "bwd_weight")
    ]
    for r in rows:
        assert set(r["players"]) == {"pyconv", "torch", "pyconv float32"}
        assert all(m["median"] > 0 and m["right"] for m in r["players"].values())
    assert main("conv2d", *flags, "autograd", "--layout", "nhwc", "--output", tmp_path) == 0
    (r,) = json.loads((tmp_path / "conv2d-float32-1t-autograd-part.json").read_text())["rows"]
    assert all(m["median"] > 0 and m["right"] for m in r["players"].values())
    assert main("conv2d", *flags, "backwards") == 2
    assert main("conv2d", "--cold", "--peers", "openvino") == 2
    assert main("conv2d", "--conv", "ic3") == 2


COUNTS = {"a NCHW fwd winograd chosen": 1000, "a channels_last fwd winograd": 100}


def test_more_instructions_than_recorded_fail():
    compiler, recorded = instructions.read(instructions.written("12.2.0", COUNTS))
    assert (compiler, recorded) == ("12.2.0", COUNTS)
    more = {call: int(number * 1.05) for call, number in COUNTS.items()}
    fails, notes = instructions.compare(COUNTS, more, 0.03)
    assert fails[0] == "a NCHW fwd winograd: 1050 instructions, +5.0% of the recorded 1000"
    assert (len(fails), notes) == (2, [])
    assert instructions.compare(COUNTS, COUNTS, 0.03) == ([], [])
    fails, notes = instructions.compare(COUNTS, {"a channels_last fwd winograd chosen": 90}, 0.03)
    assert fails == []  # which kernel is chosen may change
    assert len(notes) == 2
    fails, _ = instructions.compare({}, COUNTS, 0.03)
    assert all("none recorded" in f for f in fails)


def test_a_layout_of_many_instructions_is_seen():
    assert instructions.slow_layouts(COUNTS) == []  # only one was chosen
    both = {**COUNTS, "a channels_last fwd direct_planes chosen": 3001}
    assert instructions.slow_layouts(both) == [
        "a fwd: 3001 instructions in one layout, 1000 in the other"
    ]


def test_recorded_counts_are_whole():
    compiler, recorded = instructions.read(instructions.RECORDED.read_text())
    assert compiler
    assert {call.split()[0] for call in recorded} == set(instructions.LAYERS)
    assert instructions.slow_layouts(recorded) == []


def test_sizes_are_different_and_always_the_same():
    images = sizes.images(200)
    assert len(set(images)) == 200
    assert images == sizes.images(200)


def test_every_line_of_runs_is_a_command():
    parser = command.parser()
    for line in everything.commands():
        parser.parse_args(line.split())
    assert everything.commands()[-1] == "report"


def test_pyconv_bench_is_the_same_command(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "pyconv", "bench", "steps", "--help"],
        env={"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "--modes" in run.stdout
    assert {"train", "infer", "infer1"} == set(steps.MODES)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_requirements_pin_the_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "benchmarks/requirements.txt").read_text(), re.M)
    assert pinned == extras["bench"]
