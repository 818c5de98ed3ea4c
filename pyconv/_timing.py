"""The only timer: alternating, in one process, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of `rounds`, the spread of the middle half, and the fastest round."""

    median: float
    iqr: float
    fastest: float
    rounds: int

    @property
    def reliable(self) -> bool:
        """torch.utils.benchmark's rule: the middle half lies within 10 % of the median."""
        return self.iqr <= 0.1 * self.median


def once(call: Callable[[], object], calls: int, synchronize: Callable[[], None]) -> float:
    """Seconds of one of `calls` calls in a row."""
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize()
    return (time.perf_counter() - start) / calls


def alternate(
    calls: Mapping[str, Callable[[], object]],
    seconds: float = 0.3,
    rounds: int = 9,
    device: str = "cpu",
) -> dict[str, Timing]:
    """Times the calls in turn, A B C A B C ..., so that what disturbs one disturbs all.

    Each is called often enough to fill about `seconds` over at least `rounds` rounds.
    """
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    for call in calls.values():
        call()  # first calls pack, fault pages and build plans
    return take_turns(
        {name: partial(_turn, call, synchronize) for name, call in calls.items()}, seconds, rounds
    )


def _turn(call: Callable[[], object], synchronize: Callable[[], None], calls: int) -> float:
    return once(call, calls, synchronize)


def take_turns(
    turns: Mapping[str, Callable[[int], float]], seconds: float, rounds: int = 9
) -> dict[str, Timing]:
    """As `alternate`, for turns that time themselves, wherever they run: turn(calls) is a call's seconds."""
    repeats = {}
    for name, turn in turns.items():
        shortest = min(turn(1) for _ in range(2))
        repeats[name] = max(1, min(10000, int(seconds / rounds / max(shortest, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            samples[name].append(turn(repeats[name]))
    timings = {}
    for name, values in samples.items():
        low, median, high = statistics.quantiles(values, n=4)
        timings[name] = Timing(median, high - low, min(values), rounds)
    return timings
