"""Timing that resists drift and other load: contestants alternate, and medians are compared.

A shared machine is slower in one minute than in the next. So no contestant is timed in one go: each
is timed once per round, in reversed order every other round, and two contestants are compared over
the rounds they share.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Seconds = dict[str, list[float]]
"""What `alternate` measured: a time for each contestant and round."""

RESAMPLES = 2000


def say(message: str) -> None:
    """Prints a line at once."""
    print(message, flush=True)
    sys.stdout.flush()


def stopwatch(function: Callable[[], Any]) -> Callable[[], float]:
    """`function`, which must wait for its own result, as a contestant: a call returns its time."""

    def run() -> float:
        begun = time.perf_counter()
        function()
        return time.perf_counter() - begun

    return run


def alternate(
    contestants: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    warmup: int = 1,
    lead: int = 0,
    what: str = "",
) -> Seconds:
    """Runs each contestant once per round, in alternating order: {name: seconds [rounds]}.

    The first `warmup` rounds are not counted: compilation, caches and allocators settle in them.
    Nor are `lead` calls before each counted one, for work that normally follows work of its kind.
    """
    names = list(contestants)
    seconds: Seconds = {name: [] for name in names}
    for number in range(-warmup, rounds):
        for name in names if number % 2 == 0 else reversed(names):
            for _ in range(lead):
                contestants[name]()
            taken = contestants[name]()
            if number >= 0:
                seconds[name].append(taken)
        if what and number >= 0:
            last = ", ".join(f"{name} {1e3 * seconds[name][-1]:,.1f} ms" for name in names)
            say(f"  {what}: round {number + 1}/{rounds}: {last}")
    return seconds


def summarize(seconds: Sequence[float], work: float = 1.0) -> dict[str, Any]:
    """Median, fastest and slowest time of `work` pieces of something, and the pieces per second."""
    median = float(np.median(seconds))
    return {
        "seconds": [float(s) for s in seconds],
        "median_s": median,
        "min_s": float(min(seconds)),
        "max_s": float(max(seconds)),
        "rate": work / median,
    }


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Median time of theirs over ours, above 1 if ours is faster, with a 95 % interval.

    The interval resamples rounds, so that both times of one round stay together.
    """
    pairs = np.array([theirs, ours], np.float64)
    rng = np.random.default_rng(0)
    which = rng.integers(0, pairs.shape[1], (RESAMPLES, pairs.shape[1]))
    medians = np.median(pairs[:, which], axis=2)
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    middle = np.median(pairs, axis=1)
    return {"ratio": float(middle[0] / middle[1]), "low": float(low), "high": float(high)}


def compare(seconds: Seconds, ours: str, rivals: Sequence[str], work: float) -> dict[str, Any]:
    """Every contestant's summary, the fastest rival, and the speed of `ours` relative to it."""
    result: dict[str, Any] = {
        "contestants": {name: summarize(s, work) for name, s in seconds.items()}
    }
    present = [name for name in rivals if name in seconds]
    if present:
        best = min(present, key=lambda name: float(np.median(seconds[name])))
        result["best_rival"] = best
        result["ours_over_best_rival"] = ratio(seconds[best], seconds[ours])
    return result
