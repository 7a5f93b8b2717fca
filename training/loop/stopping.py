"""SIGTERM, or `--max_minutes` that are over: a run is asked to stop, and does so at the same step in every process."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Optional

import torch


class StopRequest:
    """A context in which SIGTERM, what clusters send, asks for a stop instead of ending the process.

    Args:
        max_minutes: ask for a stop after so long; None: never.
    """

    def __init__(self, accelerator, max_minutes: Optional[float]):
        self.accelerator, self.max_minutes = accelerator, max_minutes
        self.started_s, self.terminated = time.monotonic(), False

    def __enter__(self) -> StopRequest:
        self.handles = threading.current_thread() is threading.main_thread()  # Python allows signal handlers nowhere else
        if self.handles:
            self.previous = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, kind, *_) -> None:
        if self.handles:
            signal.signal(signal.SIGTERM, self.previous)
            if self.terminated and kind is None:  # it came too late for a step to answer it
                os.kill(os.getpid(), signal.SIGTERM)

    def _terminate(self, *_) -> None:
        self.terminated = True

    def reason(self) -> Optional[str]:
        """Why to stop, or None; all processes have to ask, and all get the same answer."""
        late = self.max_minutes is not None and time.monotonic() - self.started_s > 60 * self.max_minutes
        asked = torch.tensor([float(self.terminated), float(late)], device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            asked = self.accelerator.reduce(asked, "sum")
        terminated, late = (asked > 0).tolist()
        return "on SIGTERM" if terminated else "since --max_minutes are over" if late else None
