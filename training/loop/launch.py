"""A run from its start and its claim on `--out` to its end: Accelerate as both stages use it, and the model on its devices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

from training.loop import checkpoints
from training.loop.agreement import check_all_see
from training.loop.config import LoopConfig, as_record, speak_any_script
from training.loop.folder import claimed
from training.loop.sharding import shard

WAITING = InitProcessGroupKwargs(timeout=timedelta(hours=6))  # in which the first process may read the data while the others wait for it
STEPS_BEGUN = threading.Event()  # set where the work of this process begins: its first step, its first clip


def run(main: Callable[[], object]) -> None:
    """Runs the `main` of a script, which `python -m`, a path and `accelerate launch` (which, but with --quiet, adds a traceback of its own) all start in a process of its own:
    what it raises of its settings, model or data before its first step ends it with these words alone and exit code 1; who calls `main` in Python gets the error."""
    STEPS_BEGUN.clear()
    speak_any_script()
    try:
        main()
    except (OSError, ValueError) as error:
        if STEPS_BEGUN.is_set():
            raise
        raise SystemExit(str(error) or repr(error)) from error


def make_accelerator(config: LoopConfig) -> Accelerator:
    """Accelerate as both stages use it: ranks train different languages, so a step leaves parameters without gradients.

    Raises:
        ValueError: if Accelerate was told to shard the model itself, or to train in fp16, whose losses have to be scaled.
    """
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True), WAITING]
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, log_with=config.log_with, project_dir=config.out, kwargs_handlers=handlers,
        gradient_accumulation_steps=config.gradient_accumulation,
    )  # fmt: skip
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("Accelerate's own FSDP reduces in lockstep, and ranks train different languages: leave --use_fsdp out, pass --shard.")
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(
            f"Accelerate was told to train in {accelerator.mixed_precision}; allowed: no or bf16. W, M and T take turns, which its loss scaling "
            "knows nothing of. Pass --mixed_precision no (or bf16, where the device has it)."
        )
    return accelerator


@contextmanager
def opened(config: LoopConfig) -> Iterator[Accelerator]:
    """A run from its claim on `--out`, made before any data is read, to its end.

    Raises:
        RuntimeError, FileExistsError: see `training.loop.folder.claimed`; RuntimeError if a process does not see `--out`.
        ValueError: if `--resume` has other settings than the run.
    """
    accelerator = make_accelerator(config)
    with claimed(config.out, config.resume) if accelerator.is_main_process else nullcontext():
        check_all_see(accelerator, config.out)
        if config.resume:
            checkpoints.check_settings(config.out, config.resume, settings_of(accelerator, config))
        yield accelerator
        accelerator.wait_for_everyone()
        accelerator.end_training()


def settings_of(accelerator, config: LoopConfig) -> dict:
    """What a checkpoint keeps of a run's settings."""
    return {**as_record(config), "mixed_precision": accelerator.mixed_precision}


def run_as(accelerator, config: LoopConfig) -> dict:
    """What stands in `run.json` of how a run was made: its settings, the precision that Accelerate was told among them, and its processes."""
    return {"config": settings_of(accelerator, config), "processes": accelerator.num_processes}


def place(accelerator, model, config: LoopConfig) -> None:
    """Puts the model where it trains, in shards if `--shard` asks for it: before optimizers are made, or filled by `--resume`."""
    model.to(accelerator.device)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if config.shard:
        shard(model, accelerator)
