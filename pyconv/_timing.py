"""The only timer: alternating, in one process, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of `rounds`, and the spread of the middle half."""

    median: float
    iqr: float
    rounds: int

    @property
    def reliable(self) -> bool:
        """torch.utils.benchmark's rule: the middle half lies within 10 % of the median."""
        return self.iqr <= 0.1 * self.median


def _once(call: Callable[[], object], calls: int, synchronize: Callable[[], None]) -> float:
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
    repeats = {}
    for name, call in calls.items():
        call()  # first calls pack, fault pages and build plans
        once = min(_once(call, 1, synchronize) for _ in range(2))
        repeats[name] = max(1, min(10000, int(seconds / rounds / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(_once(call, repeats[name], synchronize))
    timings = {}
    for name, values in samples.items():
        low, median, high = statistics.quantiles(values, n=4)
        timings[name] = Timing(median, high - low, rounds)
    return timings
