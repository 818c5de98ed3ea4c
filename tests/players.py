"""Players for the tests of benchmarks.worker: `prepare` as in benchmarks.players, of known time and error."""

import os

from benchmarks.subject import Subject, Unable


def prepare(player, task):
    if player == "unable":
        raise Unable("there is no such thing here")
    if player == "fails":
        raise ZeroDivisionError("by zero\nand more")
    if player == "dies":
        os._exit(3)
    print("what a library says goes to stderr")
    error = 1.0 if player == "wrong" else 1e-7
    about = {"pid": os.getpid(), "malloc": os.environ.get("MALLOC_TOP_PAD_")}
    return Subject(
        lambda: None, error, error, 1e-4, about, timer=lambda call, calls: task["seconds"]
    )
