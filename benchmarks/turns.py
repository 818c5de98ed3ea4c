"""The parent's side of a run: processes that take turns, one awake at a time.

Thread pools that spin between calls slow whoever runs beside them: in one process onnxruntime made torch look twice as
slow. So each peer has a process of its own, and a process is stopped (SIGSTOP) whenever it is not its turn.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from pyconv._timing import take_turns

# The environment that glibc's malloc reads at start. Tuned, it keeps what is freed and asks for memory in large pieces,
# so that an output lands on pages that have been touched before.
MALLOC: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
        "MALLOC_TOP_PAD_": str(2**26),
    },
}


def search_path() -> str:
    """PYTHONPATH with which a child process finds this package, whatever its folder."""
    root = Path(__file__).resolve().parents[str(__package__).count(".") + 1]
    return os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))


class WorkerDied(RuntimeError):
    """A child process ended before it was told to."""


class Worker:
    """One child process; asleep but while it answers."""

    def __init__(
        self, threads: int, environment: Mapping[str, str], module: str = f"{__package__}.players"
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", module, str(threads)],
            env={**os.environ, "PYTHONPATH": search_path(), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Wakes the process for one answer."""
        process = self._process
        assert process.stdin
        assert process.stdout
        process.send_signal(signal.SIGCONT)
        try:
            process.stdin.write(json.dumps(request) + "\n")
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerDied(f"the process ended with {process.wait()} when asked to {request}")
        process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()  # also a stopped process
        self._process.communicate()


class Stage:
    """The processes of one run: one for pyconv and torch, so that they share tensors and threads; or one for each."""

    def __init__(
        self,
        threads: int,
        environment: Mapping[str, str],
        apart: bool = False,
        module: str = f"{__package__}.players",
    ) -> None:
        self._make = lambda: Worker(threads, environment, module)
        self._apart = apart
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers.values():
            worker.close()

    def _worker(self, player: str) -> Worker:
        seat = player if self._apart else ""
        if seat not in self._workers:
            self._workers[seat] = self._make()
        return self._workers[seat]

    def measure(
        self, task: dict[str, Any], players: Sequence[str], seconds: float
    ) -> dict[str, dict[str, Any]]:
        """Of each player: the error and, if that is small, the time.

        {"error", "max_error", "about", "median", "iqr", "reliable", "faults"}, without the last four if the result is
        wrong; {"unable": why} or {"failed": why} if there is none.
        """
        found: dict[str, dict[str, Any]] = {}
        faults: dict[str, list[float]] = {}
        turns = {}
        for player in players:
            found[player] = self._ask(player, do="prepare", player=player, task=task)
            if found[player].get("right"):
                faults[player] = []

                def turn(calls: int, player: str = player) -> float:
                    answer = self._ask(player, do="time", player=player, calls=calls)
                    if "failed" in answer:
                        raise WorkerDied(f"{player} at {task}: {answer['failed']}")
                    faults[player].append(answer["faults"])
                    return answer["seconds"]

                turns[player] = turn
        for player, timing in take_turns(turns, seconds).items():
            found[player] |= {
                "median": timing.median,
                "iqr": timing.iqr,
                "reliable": timing.reliable,
                "faults": median(faults[player]),
            }
        for player in players:
            self._ask(player, do="forget")
        return found

    def _ask(self, player: str, /, **request: Any) -> dict[str, Any]:
        """As Worker.ask; a process that died is replaced at its next turn."""
        try:
            return self._worker(player).ask(**request)
        except WorkerDied as death:
            del self._workers[player if self._apart else ""]
            return {"failed": str(death)}
