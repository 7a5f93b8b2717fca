"""SIGTERM, Ctrl-C, or `--max_minutes` that are over: a run is asked to stop, and does so at the same step in every process."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from typing import Optional

import torch


class StopRequest:
    """A context in which SIGTERM, what clusters send, and the first Ctrl-C ask for a stop instead of ending the process.

    Args:
        max_minutes: ask for a stop after so long; None: never.
    """

    def __init__(self, accelerator, max_minutes: Optional[float]):
        self.accelerator, self.max_minutes = accelerator, max_minutes
        self.started_s, self.asked = time.monotonic(), {signal.SIGTERM: False, signal.SIGINT: False}

    def __enter__(self) -> StopRequest:
        self.handles = threading.current_thread() is threading.main_thread()  # Python allows signal handlers nowhere else
        if self.handles:
            # a shell starts what it leaves in the background with Ctrl-C ignored: so it stays
            self.previous = {number: signal.signal(number, self._ask) for number in self.asked if signal.getsignal(number) != signal.SIG_IGN}
        return self

    def __exit__(self, kind, *_) -> None:
        if self.handles:
            for number, previous in self.previous.items():
                signal.signal(number, previous)
            for number in (number for number, asked in self.asked.items() if asked and kind is None):  # it came too late for a step to answer it
                signal.raise_signal(number)

    def _ask(self, number: int, _) -> None:
        self.asked[number] = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self.previous[signal.SIGINT])
            with suppress(OSError, RuntimeError):  # whoever read it may be gone by the same Ctrl-C (| tee), or a line be half written
                print("\nThe run ends after this step, with a checkpoint. Ctrl-C once more: at once, without.", flush=True)

    def reason(self) -> Optional[str]:
        """Why to stop, or None; all processes have to ask, and all get the same answer."""
        late = self.max_minutes is not None and time.monotonic() - self.started_s > 60 * self.max_minutes
        asked = torch.tensor([*map(float, self.asked.values()), float(late)], device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            asked = self.accelerator.reduce(asked, "sum")
        terminated, interrupted, late = (asked > 0).tolist()
        return "on SIGTERM" if terminated else "on Ctrl-C" if interrupted else "since --max_minutes are over" if late else None


def minutes_left(config, started_s: float) -> Optional[float]:
    """What is left of `--max_minutes`, which count from the run's start: reading data may take hours."""
    return config.max_minutes and max(config.max_minutes - (time.monotonic() - started_s) / 60, 1e-9)
