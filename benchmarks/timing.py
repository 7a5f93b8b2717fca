"""Functions timed in turn, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable

from tqdm import tqdm


def in_turn(
    functions: dict[Hashable, Callable[[], object]], rounds: int, warm_up: int, clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[], object] = lambda: None,
) -> dict[Hashable, list[float]]:  # fmt: skip
    """Seconds of each function in each round.

    Args:
        warm_up: rounds before those that count.
        wait: for what a function has started, before either look at the clock.
    """
    times: dict[Hashable, list[float]] = {name: [] for name in functions}
    for round_ in tqdm(range(warm_up + rounds), desc="rounds"):
        for name, function in functions.items():
            wait()
            start = clock()
            function()
            wait()
            if round_ >= warm_up:
                times[name].append(clock() - start)
    return times


def ratio(times: list[float], others: list[float]) -> float:
    """The median of the ratios of the same round."""
    return statistics.median(a / b for a, b in zip(times, others))
