"""The child process of a run: it holds the subjects and times one when told, and does nothing between.

    python -m benchmarks.worker MODULE THREADS

MODULE.prepare(player, task) makes the subjects (benchmarks.players). One JSON object a line on stdin, one back on
stdout; everything else that a library prints goes to stderr.

    {"do": "prepare", "player": p, "task": t}   -> {"error", "max_error", "right", "about"}
    {"do": "time", "player": p, "calls": n}     -> {"seconds": of one call, "faults": page faults of one call}
    {"do": "forget"}                            -> {}

Or {"unable": why} where the player has no such thing, {"failed": why} where it should have.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any, TextIO

import torch

from .subject import Subject, Unable


def serve(
    requests: TextIO, answers: TextIO, prepare: Callable[[str, dict[str, Any]], Subject]
) -> None:
    """Answers until the requests end."""
    subjects: dict[str, Subject] = {}
    for line in requests:
        try:
            answer = _answer(json.loads(line), subjects, prepare)
        except Unable as why:
            answer = {"unable": str(why)}
        except Exception as error:  # a peer that fails at one layer has more to do
            reason = [*str(error).strip().splitlines(), ""][0]
            answer = {"failed": f"{type(error).__name__}: {reason}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(
    request: dict[str, Any],
    subjects: dict[str, Subject],
    prepare: Callable[[str, dict[str, Any]], Subject],
) -> dict[str, Any]:
    if request["do"] == "forget":
        subjects.clear()
        return {}
    if request["do"] == "prepare":
        subject = prepare(request["player"], request["task"])
        subjects[request["player"]] = subject
        return {
            "error": subject.error,
            "max_error": subject.max_error,
            "right": subject.right,
            "about": subject.about,
        }
    calls = request["calls"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = subjects[request["player"]].seconds(calls)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {"seconds": seconds, "faults": faults / (calls + 1)}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(sys.argv[2]))
    serve(sys.stdin, answers, importlib.import_module(sys.argv[1]).prepare)


if __name__ == "__main__":
    main()
