"""``python -m pyconv train``: flags, and the order of events of a run."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pyconv import data, models

from . import checkpoint, distributed
from .report import Report
from .run import Run
from .settings import (
    AUTOCAST,
    INITS,
    LAYERS,
    OPTIMIZERS,
    RECIPES,
    SCHEDULES,
    Settings,
    UsageError,
    resolve,
)

# Flags of this invocation alone; every other flag is a setting that decides the result.
_INVOCATION = {"recipe", "root", "download", "device", "threads", "output", "resume", "overwrite"}
_INVOCATION |= {"checkpoint_every", "json", "command", "run"}


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; the checkpoint is written."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.code = 128 + signum


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``train``. Settings have no default here: `settings.resolve` finds it."""
    parser.description = (
        "Train a model on real images. Unset flags take what the recipe or the model prefers; "
        "under torchrun several processes share each batch."
    )
    a = parser.add_argument
    switch: dict[str, Any] = {"action": argparse.BooleanOptionalAction}

    a("--recipe", choices=RECIPES, help="start from the settings of a known experiment")
    a("--model", choices=models.names())
    a("--layers", choices=LAYERS, help="our layers, or torch.nn's in the same model")
    a("--init", choices=INITS, help="initial weights")
    a("--data", choices=data.names())
    a("--root", type=Path, help="folder of full IDX files, plain or gzipped")
    a("--download", action="store_true", help="fetch the canonical files first")
    a("--classes", type=_labels, help="keep only these labels, such as 3,7")
    a("--normalize", **switch, help="mean 0, deviation 1 over the training pixels")

    a("--epochs", type=int)
    a("--batch-size", type=int, help="images per step, over all processes")
    a("--drop-last", **switch, help="skip the epoch's last batch if it is smaller")
    a("--optimizer", choices=OPTIMIZERS)
    a("--lr", type=float, help="learning rate; with one-cycle, the highest")
    a("--momentum", type=float, help="of sgd, or beta1 of adam and adamw")
    a("--beta2", type=float, help="of adam and adamw")
    a("--eps", type=float, help="of adam and adamw")
    a("--weight-decay", type=float)
    a("--schedule", choices=SCHEDULES)
    a("--seed", type=int, help="of the initial weights and the order of images")

    a("--device", default="cpu", help="cpu, cuda or cuda:N")
    a("--threads", type=int, help="of the CPU")
    a("--channels-last", **switch, help="keep images and weights as NHWC")
    a("--autocast", choices=AUTOCAST, help="compute in low precision where it is safe")
    a(
        "--sync-bn",
        **switch,
        help="batch-norm statistics over all processes' shares (GPUs only)",
    )

    a("--output", type=Path, help="folder of checkpoint.pt and model.pt (runs/MODEL-DATA-LAYERS)")
    a("--resume", action="store_true", help="continue the run in the output folder")
    a("--overwrite", action="store_true", help="replace an unfinished run there")
    a("--checkpoint-every", type=int, default=0, metavar="STEPS", help="besides each epoch")
    a("--json", action="store_true", help="print JSON lines")
    parser.set_defaults(run=main)


def _labels(text: str) -> tuple[int, ...]:
    return tuple(int(label) for label in text.split(","))


def main(args: argparse.Namespace) -> int:
    """Train; return the exit code.

    Raises:
        UsageError, DataError: a flag or a file is wrong; the message is one sentence.
    """
    flags: Settings = {
        key: value
        for key, value in vars(args).items()
        if value is not None and key not in _INVOCATION
    }
    device = _device(args.device)
    if args.threads is not None:
        if args.threads < 1:
            raise UsageError(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    if args.checkpoint_every < 0:
        raise UsageError(f"--checkpoint-every must not be negative, got {args.checkpoint_every}")
    saved, output = _saved_run(args, flags)
    settings = resolve(flags, saved and saved["settings"], args.recipe)
    if settings["sync_bn"] and device.type == "cpu":
        raise UsageError("--sync-bn needs --device cuda: torch's SyncBatchNorm has no CPU kernel")

    report = Report(args.json)
    with distributed.process_group(device):
        dataset = _load(args, settings)
        try:
            with _signals() as received:  # before Run, in which the processes wait for each other
                run = Run(settings, dataset, device)
                if saved is not None:
                    run.load_state_dict(saved)
                report.start(run, torch.get_num_threads())
                _train(run, report, output, args.checkpoint_every, received)
        except Interrupted as stop:
            report.event(
                "interrupted",
                f"{stop} in epoch {run.epoch + 1} at step {run.step} of {run.steps}; continue with "
                f"--resume --output {output}",
                epoch=run.epoch,
                step=run.step,
                output=str(output),
            )
            return stop.code
    accuracy = run.history[-1]["test_accuracy"]
    report.event(
        "end",
        f"test accuracy {accuracy:.4f}; weights in {output / 'model.pt'}",
        test_accuracy=accuracy,
        seconds=sum(row["seconds"] for row in run.history),
        weights=str(output / "model.pt"),
    )
    return 0


def _device(name: str) -> torch.device:
    """Return the device; under torchrun "cuda" is each process's own."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device must be cpu, cuda or cuda:N, got {name}")
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    index = distributed.local_rank() if device.index is None else device.index
    if index >= count:
        raise UsageError(f"--device {name}: torch {torch.__version__} sees {count} CUDA device(s)")
    # cuDNN and cuBLAS choose by speed unless told otherwise; reruns must give the same bits.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return torch.device("cuda", index)


def _saved_run(args: argparse.Namespace, flags: Settings) -> tuple[dict[str, Any] | None, Path]:
    """Return the checkpoint to resume, if any, and the output folder."""
    output = args.output
    if output is None:
        fresh = resolve(flags, recipe=args.recipe)
        output = Path("runs") / "-".join(fresh[key] for key in ("model", "data", "layers"))
    path = output / "checkpoint.pt"
    if args.resume:
        return checkpoint.load(path), output
    if path.exists() and not args.overwrite:
        state = checkpoint.load(path)
        if state["epoch"] < state["settings"]["epochs"]:
            raise UsageError(
                f"{output} holds an unfinished run: continue it with --resume, replace it with "
                "--overwrite, or choose another --output"
            )
    return None, output


def _load(args: argparse.Namespace, settings: Settings) -> data.Dataset:
    """Load the data, rank 0 first: one download serves all processes of a machine."""
    if args.download and distributed.rank() != 0:
        distributed.gather(None)
    dataset = data.load(
        settings["data"], args.root, args.download, settings["classes"], settings["normalize"]
    )
    if args.download and distributed.rank() == 0:
        distributed.gather(None)
    return dataset


def _train(run: Run, report: Report, output: Path, every: int, received: list[int]) -> None:
    """Take the run to its end, with a checkpoint after each epoch, when asked, and when stopped.

    Raises:
        Interrupted: there is a signal in ``received``, in this process or another.
    """
    writes = distributed.rank() == 0
    if writes:
        _make_folder(output)

    def save() -> None:
        state = run.state_dict()  # in every process: it gathers
        if writes:
            checkpoint.save(state, output / "checkpoint.pt")

    def after_step() -> None:
        report.progress(run)
        signum = max(received, default=0)
        if distributed.any_true(signum > 0):
            save()
            raise Interrupted(signum or signal.SIGTERM)
        if every and run.step % every == 0:
            save()

    while not run.finished():
        row = run.train_epoch(after_step)
        save()
        report.epoch(row, run.settings["epochs"])
    if writes:
        checkpoint.save(run.module.state_dict(), output / "model.pt")


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be made: {error.strerror}") from None


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM instead of dying of it; the second one kills."""
    received: list[int] = []

    def note(signum: int, frame: object) -> None:
        received.append(signum)
        signal.signal(signum, signal.SIG_DFL)

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
