"""The command line: output, exit codes, interruption by signals and by SIGKILL, two processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import pyconv
from pyconv import __main__, _native, data
from pyconv.info import info

ROOT = Path(pyconv.__file__).parents[1]
SMALL = ["--data=mnist", "--classes=3,7", "--layers=torch", "--model=lenet5_relu", "--threads=1"]


def run_main(capsys, *arguments):
    """Run the command line in this process; return the exit code, stdout and stderr."""
    code = __main__.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def start(*arguments, launcher=(), **environment):
    """Start the command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "pyconv", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def saved(folder, name="model.pt"):
    return torch.load(folder / name, weights_only=True)


def assert_same_bits(state, expected):
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)


def test_train_prints_a_line_per_epoch_and_writes_the_weights(tmp_path, capsys):
    code, out, err = run_main(capsys, "train", *SMALL, "--epochs=2", "--output", tmp_path / "run")
    assert code == 0
    assert err == ""  # no progress bar where there is no terminal
    lines = out.splitlines()
    assert lines[0].startswith("lenet5_relu (61,026 parameters, torch layers) on mnist (embedded")
    for line, number in zip(lines[1:3], "12", strict=True):
        words = line.split()
        assert words[:2] == ["epoch", f"{number}/2"]
        assert words[2::2][:3] == ["loss", "train", "test"]
        assert line.endswith("images/s")
    assert float(lines[2].split()[7]) > 0.9  # 0.96 measured
    assert lines[3].startswith("test accuracy 0.9")
    assert saved(tmp_path / "run")["fc3.weight"].shape == (2, 84)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"model.pt", "checkpoint.pt"}


def test_json_lines(tmp_path, capsys):
    code, out, _ = run_main(capsys, "train", *SMALL, "--epochs=1", "--json", "--output", tmp_path)
    assert code == 0
    first, epoch, end = map(json.loads, out.splitlines())
    assert first["event"] == "start"
    assert first["settings"]["classes"] == [3, 7]
    assert first["train_images"] == 2000
    assert epoch["event"] == "epoch"
    assert {"loss", "train_accuracy", "test_accuracy", "seconds", "images_per_second"} < set(epoch)
    assert end["test_accuracy"] == epoch["test_accuracy"]


def test_json_has_null_where_a_run_diverged(tmp_path, capsys):
    flags = ("--optimizer=sgd", "--lr=1e30", "--batch-size=1000", "--epochs=1", "--json")
    code, out, _ = run_main(capsys, "train", *SMALL, *flags, "--output", tmp_path)
    assert code == 0
    assert json.loads(out.splitlines()[1], parse_constant=pytest.fail)["loss"] is None


def test_finished_run_can_be_replaced_resumed_and_extended(tmp_path, capsys):
    arguments = ("train", *SMALL, "--batch-size=500", "--output", tmp_path)
    assert run_main(capsys, *arguments, "--epochs=1")[0] == 0
    assert run_main(capsys, *arguments, "--epochs=1")[0] == 0  # a finished run is replaced
    code, out, _ = run_main(capsys, "train", "--resume", "--output", tmp_path)
    assert code == 0
    assert "epoch " not in out.split("\n", 1)[1]  # nothing was left to do
    code, out, _ = run_main(capsys, *arguments, "--epochs=3", "--resume")
    assert [line[:9] for line in out.splitlines()[1:3]] == ["epoch 2/3", "epoch 3/3"]
    extended = saved(tmp_path)
    assert run_main(capsys, *arguments, "--epochs=3")[0] == 0
    assert_same_bits(extended, saved(tmp_path))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_between_two_steps_and_the_rest_can_be_resumed(tmp_path, capsys, signum, code):
    arguments = ("train", *SMALL, "--epochs=4", "--batch-size=50")
    process = start(*arguments, "--output", tmp_path / "stopped")
    process.stdout.readline()  # training begins
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert f"stopped by {signum.name} in epoch" in out
    state = saved(tmp_path / "stopped", "checkpoint.pt")
    assert (0, 0) < (state["epoch"], state["step"]) < (4, 0)

    refused, _, err = run_main(capsys, *arguments, "--output", tmp_path / "stopped")
    assert refused == 2
    assert "holds an unfinished run: continue it with --resume" in err

    assert run_main(capsys, "train", "--resume", "--output", tmp_path / "stopped")[0] == 0
    assert run_main(capsys, *arguments, "--output", tmp_path / "whole")[0] == 0
    assert_same_bits(saved(tmp_path / "stopped"), saved(tmp_path / "whole"))


def test_killed_at_any_moment_the_resumed_run_ends_with_the_same_bits(tmp_path, capsys):
    arguments = ("train", *SMALL, "--epochs=6", "--batch-size=50", "--checkpoint-every=3")
    path = tmp_path / "killed" / "checkpoint.pt"
    positions = []
    for _ in range(2):  # killed, resumed, killed again
        resume = ["--resume"] if path.exists() else []
        process = start(*arguments, "--output", path.parent, *resume)
        before = path.stat().st_mtime_ns if path.exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if path.exists() and path.stat().st_mtime_ns > before:
                break
            time.sleep(0.002)
        process.kill()
        _, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, err
        state = saved(path.parent, "checkpoint.pt")
        positions.append((state["epoch"], state["step"]))
    assert (0, 0) < positions[0] < positions[1] < (6, 0)
    assert not (path.parent / "model.pt").exists()
    assert run_main(capsys, *arguments, "--output", path.parent, "--resume")[0] == 0
    assert run_main(capsys, *arguments, "--output", tmp_path / "whole")[0] == 0
    assert_same_bits(saved(path.parent), saved(tmp_path / "whole"))


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
# Plain momentum, because Adam magnifies rounding; 2,000 images leave a last batch of one image, of
# which the second process has none. The weights then differ by 5e-6 (measured).
TWO = (*SMALL, "--layers=pyconv", "--optimizer=sgd", "--lr=0.05", "--batch-size=1999", "--epochs=3")


def test_two_processes_train_the_same_model_as_one(tmp_path, capsys):
    process = start("train", *TWO, "--json", "--output", tmp_path / "two", launcher=TORCHRUN)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert [e["event"] for e in events] == ["start", "epoch", "epoch", "epoch", "end"]
    assert events[0]["processes"] == 2

    _, out, _ = run_main(capsys, "train", *TWO, "--json", "--output", tmp_path / "one")
    for event, expected in zip(events[1:4], map(json.loads, out.splitlines()[1:4]), strict=True):
        assert event["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert event["test_accuracy"] == pytest.approx(expected["test_accuracy"], abs=1e-3)
    weights, expected = saved(tmp_path / "two"), saved(tmp_path / "one")
    for key in expected:
        torch.testing.assert_close(weights[key], expected[key], rtol=0, atol=5e-5)


def start_two(*arguments):
    """Start two processes that train together, as torchrun would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [start(*arguments, RANK=str(r), LOCAL_RANK=str(r), **environment) for r in range(2)]


def test_two_processes_stop_together_and_resume_to_the_same_bits(tmp_path):
    """The signal reaches one of them. Of batch norm's statistics, those of rank 0 count."""
    arguments = ["train", *SMALL, "--model=simple_cnn_bn", "--batch-size=100", "--epochs=3"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    first, second = start_two(*arguments, "--output", stopped)
    first.stdout.readline()  # training begins
    second.terminate()
    out, err = first.communicate(timeout=120)
    assert first.returncode == 143, err
    assert out.startswith("stopped by SIGTERM in epoch")
    assert second.communicate(timeout=120)[0] == ""
    assert second.returncode == 143
    assert not (stopped / "model.pt").exists()
    for folder, resume in ((stopped, ["--resume"]), (whole, [])):
        for process in start_two(*arguments, *resume, "--output", folder):
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
    assert_same_bits(saved(stopped), saved(whole))


BAD_USAGE = [
    (["--lr=-1"], "--lr must be positive, got -1.0"),
    (["--device=tpu"], "--device must be cpu, cuda or cuda:N, got tpu"),
    (["--device=cuda:99"], r"--device cuda:99: torch .* sees \d+ CUDA device"),
    (["--sync-bn"], "--sync-bn needs --device cuda"),
    (["--threads=0"], "--threads must be at least 1, got 0"),
    (["--checkpoint-every=-1"], "--checkpoint-every must not be negative"),
    (["--resume"], "no such file, so there is no run to resume"),
    (["--root=nowhere"], "nowhere: no IDX file of mnist there"),
    (["--model=simple_cnn_bn", "--batch-size=1"], "batch norm needs two images or more"),
    (
        ["--schedule=one-cycle", "--epochs=1", "--batch-size=2000"],
        "one-cycle needs 5 steps",
    ),
]


@pytest.mark.parametrize(("flags", "sentence"), BAD_USAGE)
def test_bad_usage_is_one_sentence_and_exit_code_2(tmp_path, capsys, monkeypatch, flags, sentence):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_main(capsys, "train", *SMALL, *flags)
    assert code == 2
    assert out == ""
    assert err.startswith("pyconv train: ")
    assert err.count("\n") == 1
    assert re.search(sentence, err)
    assert not list(tmp_path.iterdir())


def test_contradicting_a_resumed_run_is_refused(tmp_path, capsys):
    arguments = ("train", *SMALL, "--batch-size=1000", "--output", tmp_path)
    assert run_main(capsys, *arguments, "--epochs=1")[0] == 0
    code, _, err = run_main(capsys, *arguments, "--epochs=2", "--resume", "--seed=4")
    assert code == 2
    assert "--seed is 4 but the run to resume has 0" in err
    write_idx_files(tmp_path / "other")
    resume = ("train", "--resume", "--output", tmp_path)
    code, _, err = run_main(capsys, *resume, "--root", tmp_path / "other")
    assert code == 2
    assert "not the images the run to resume was trained on" in err


def write_idx_files(folder):
    """Write twenty training and ten test images of threes and sevens."""
    folder.mkdir()
    for split, count in (("train", 20), ("t10k", 10)):
        images = torch.zeros(count, 28, 28, dtype=torch.uint8)
        data.write_idx(folder / f"{split}-images-idx3-ubyte", images)
        labels = torch.tensor([3, 7] * (count // 2), dtype=torch.uint8)
        data.write_idx(folder / f"{split}-labels-idx1-ubyte", labels)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("truncated", "truncated: 4,000 bytes unpacked, expected 15,696 for 20x28x28 of uint8"),
        ("mislabelled", "the magic number is 2049, labels"),
        ("missing", "no such file, plain or gzipped"),
        ("wrong magic", "the magic number is 538976288, expected 2051, images"),
        ("count", "4 labels, expected 20"),
    ],
)
def test_bad_file_is_one_sentence_and_exit_code_2(tmp_path, capsys, fault, sentence):
    folder = tmp_path / "files"
    write_idx_files(folder)
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    if fault == "truncated":
        images.write_bytes(images.read_bytes()[:4000])
    elif fault == "mislabelled":
        images.write_bytes(labels.read_bytes())
    elif fault == "missing":
        images.unlink()
    elif fault == "wrong magic":
        images.write_bytes(b"    " + images.read_bytes()[4:])
    else:
        data.write_idx(labels, torch.zeros(4, dtype=torch.uint8))
    output = tmp_path / "run"
    code, out, err = run_main(capsys, "train", *SMALL, "--root", folder, "--output", output)
    assert code == 2
    assert out == ""
    assert err.startswith(f"pyconv train: {labels if fault == 'count' else images}: {sentence}")
    assert err.count("\n") == 1
    assert not output.exists()


def test_output_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    code, _, err = run_main(capsys, "train", *SMALL, "--output", tmp_path / "file" / "run")
    assert code == 2
    assert "cannot be made: Not a directory" in err


def test_damaged_checkpoint(tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    code, _, err = run_main(capsys, "train", *SMALL, "--resume", "--output", tmp_path)
    assert code == 2
    assert "checkpoint.pt: damaged, or not a checkpoint" in err


def test_a_command_is_required(capsys):
    with pytest.raises(SystemExit) as caught:
        __main__.main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_info_names_versions_and_the_reason_for_what_is_missing(capsys):
    code, out, _ = run_main(capsys, "info")
    assert code == 0
    assert torch.__version__ in out
    found = json.loads(run_main(capsys, "info", "--json")[1])
    assert found == {**info(), "libraries": found["libraries"]}
    assert (found["extension"] is None) == bool(found["extension_missing"])
    assert found["threads"] == torch.get_num_threads()
    if found["extension"]:
        assert found["isa"] in found["available_isas"]
        assert "reference" in found["algorithms"]["conv2d"]
        assert found["extension"] in found["libraries"]
    if not torch.cuda.is_available():
        assert "CUDA" in found["cuda_missing"]


def test_info_without_the_extension_gives_the_reason(capsys, monkeypatch):
    monkeypatch.setattr(_native, "lib", None)
    monkeypatch.setattr(_native, "reason", "the moon is full")
    _, out, _ = run_main(capsys, "info")
    assert "missing: the moon is full" in out
    code, _, err = run_main(capsys, "demo")
    assert code == 2
    assert "the demo times our kernels, which are missing: the moon is full" in err


def test_demo_prints_both_layers_side_by_side(capsys):
    code, out, _ = run_main(capsys, "demo", "--epochs=1")
    assert code == 0
    row = next(line.split() for line in out.splitlines() if line.startswith("    1"))
    loss, twin_loss, accuracy, twin_accuracy = map(float, row[1:5])
    assert loss == pytest.approx(twin_loss, rel=0.02)
    assert accuracy == pytest.approx(twin_accuracy, abs=0.05)
    assert accuracy > 0.5  # 0.677 measured with torch.nn
