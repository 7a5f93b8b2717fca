"""What all processes of a run have to have alike: else each trains on with its own, and the mean of their gradients is nobody's."""

from __future__ import annotations

import hashlib
import time
import uuid
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object

SEEN_WITHIN_S = 60.0  # what one machine writes into a network folder another may see this much later


def check_alike(value: object, what: str) -> None:
    """Checks that every process has the same of something, by its `repr`; all of them have to call it.

    Args:
        what: it is, for the error: "clips".

    Raises:
        RuntimeError: in all processes, naming those that have another than the first.
    """
    digests = gather_object([hashlib.sha256(repr(value).encode()).hexdigest()])
    if others := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
        raise RuntimeError(
            f"Processes {others} of {len(digests)} have other {what} than process 0. Give every machine the same --data and --out: the same files, "
            "whole, and a folder that all of them see."
        )


def check_all_see(accelerator, out: Path) -> None:
    """Checks that all processes see one and the same folder: the first writes checkpoints and the best weights there, and all of them read these.

    Raises:
        RuntimeError: in all processes, naming those that do not.
    """
    if accelerator.num_processes == 1:
        return
    mark = out / broadcast_object_list([f".seen-{uuid.uuid4().hex}"])[0]
    if accelerator.is_main_process:
        mark.touch()
    accelerator.wait_for_everyone()
    until = time.monotonic() + SEEN_WITHIN_S
    while not (seen := mark.exists()) and time.monotonic() < until:
        time.sleep(0.1)
    blind = gather_object([] if seen else [accelerator.process_index])
    if accelerator.is_main_process:
        mark.unlink()
    if blind:
        raise RuntimeError(f"--out: processes {blind} of {accelerator.num_processes} do not see what process 0 writes into {out}. Pass a folder that all machines share.")
