"""The training loop that both stages share."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, broadcast, gather_object
from tqdm import tqdm

from training.loop import checkpoints
from training.loop.config import LoopConfig, as_record
from training.loop.data import Clip, Collator, bucket_of_step, to_device
from training.loop.sharding import average_languages, is_sharded, load_model_state, shard, whole
from training.loop.sources import read_data
from training.loop.watching import state_of_masks, watch

MIN_SKIPPED, MAX_SKIPPED_SHARE = 10, 0.01  # steps that may be lost to gradients that are not finite


def make_accelerator(config: LoopConfig, stage: str) -> Accelerator:
    """Accelerate as both stages use it: ranks train different languages, so a step leaves parameters without gradients.

    Raises:
        ValueError: if Accelerate was told to shard the model itself.
    """
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, log_with=config.log_with, project_dir=config.out, kwargs_handlers=[unused],
        gradient_accumulation_steps=config.gradient_accumulation,
    )  # fmt: skip
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("Accelerate's own FSDP reduces in lockstep, and ranks train different languages: leave --use_fsdp out, pass --shard.")
    accelerator.init_trackers(stage)
    return accelerator


def place(accelerator, model, config: LoopConfig) -> None:
    """Puts the model where it trains, in shards if `--shard` asks for it: before optimizers are made, or filled by `--resume`."""
    model.to(accelerator.device)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if config.shard:
        shard(model, accelerator)


def load_clips(accelerator, config: LoopConfig, minutes: float) -> list[Clip]:
    """Clips of `--data`, with the report of what was read and what was left out."""
    with accelerator.main_process_first():
        clips, report = read_data(config.data, config.out / "recordings", minutes, config.min_s, config.max_s)
    if accelerator.is_main_process:
        print("\n".join(report.lines(clips)))
    return clips


@dataclass
class Progress:
    """What a run has seen so far; kept in its checkpoints."""

    log: dict = field(default_factory=lambda: {"validation": {}, "loss": {}, "mapping": {}})
    skipped: list = field(default_factory=list)  # steps whose gradients were not finite, with their clips
    best: dict = field(default_factory=lambda: {"step": None, "cer": float("inf")})
    evaluations_since_best: int = 0


class Run:
    """One training run: its state, its checkpoints and its watching.

    Args:
        clips, validation: `training.loop.data.Clip`s.
        config: how it trains, and `out`, the folder of its checkpoints.
    """

    def __init__(self, accelerator, model, processor, features, turns, clips, validation, config: LoopConfig):
        self.accelerator, self.model, self.processor, self.features, self.turns = accelerator, model, processor, features, turns
        self.validation, self.out, self.config = validation, config.out, config
        self.batch_of = bucket_of_step(clips, config.batch_s, config.seed, config.temperature)
        self.batches_a_step = accelerator.num_processes * accelerator.gradient_accumulation_steps
        self.collator = Collator(features, processor, full_augment_step=config.steps * self.batches_a_step // 4, seed=config.seed, spares=clips)
        listed = "\n".join(sorted(f"{c.audio.name}|{c.language}|{c.text}|{c.duration_s}" for c in clips))
        self.facts = {
            "config": {**as_record(config), "mixed_precision": accelerator.mixed_precision}, "batches_a_step": self.batches_a_step,
            "clips": hashlib.sha256(listed.encode()).hexdigest(),
        }  # fmt: skip
        self.progress = Progress()

    def save(self, step: int) -> None:
        every_rank = gather_object([checkpoints.random_state()])
        is_main = self.accelerator.is_main_process
        parts = whole({"model": self.model.state_dict(), "turns": self.turns.state_dict()}, keep=is_main)
        if is_main:
            checkpoints.save(self.out, step, {**parts, "progress": asdict(self.progress), "random": every_rank}, self.facts)
        self.accelerator.wait_for_everyone()

    def resume(self) -> int:
        """Restores what `--resume` names; returns the next step."""
        if not self.config.resume:
            return 0
        step, parts = checkpoints.load(self.out, self.config.resume, self.facts)
        load_model_state(self.model, parts["model"])
        self.turns.load_state_dict(parts["turns"])
        self.progress = Progress(**parts["progress"])
        checkpoints.set_random_state(parts["random"][self.accelerator.process_index % len(parts["random"])])
        tqdm.write(f"Resumed at step {step}.")
        return step

    def batches(self, first_step: int) -> Iterator[tuple[list[Clip], dict]]:
        """This process's batches in order, with their clips; each is read and decoded in a thread while the one before it trains."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        indices = range(first_step * self.batches_a_step + rank, self.config.steps * self.batches_a_step, world)

        def make(index: int) -> tuple[list[Clip], dict]:
            clips = self.batch_of(index)
            return clips, self.collator(clips, index)

        with ThreadPoolExecutor(1) as thread:
            coming = None
            for index in indices:
                current = coming or thread.submit(make, index)
                coming = thread.submit(make, index + world) if index + world in indices else None
                yield current.result()

    def one_step(self, wrapped, step: int, batches: Iterator) -> tuple[float, str]:
        """This process's batches of a step, forward and backward, and the move.

        Returns:
            This process's loss, and the language of its last batch.
        """
        accumulation, total, names = self.accelerator.gradient_accumulation_steps, 0.0, []
        self.model.train()
        self.turns.begin(step)
        for i in range(accumulation):
            clips, batch = next(batches)
            names += [str(clip.audio) for clip in clips]
            batch = to_device(batch, self.accelerator.device)
            is_last = i == accumulation - 1
            with self.gradients_kept_apart(wrapped, is_last):
                loss = wrapped(**batch).loss
                self.accelerator.backward(loss)  # divided by the accumulation steps there
            total += float(loss.detach()) / accumulation
        if is_sharded(self.model):
            average_languages(self.model)
        if not self.turns.step(step):
            self.skip(step, names)
        return total, clips[0].language

    def gradients_kept_apart(self, wrapped, is_last: bool):
        """A context in which processes exchange gradients after the last batch of a step only."""
        if is_sharded(self.model):
            self.model.set_requires_gradient_sync(is_last)
            return nullcontext()
        return nullcontext() if is_last else self.accelerator.no_sync(wrapped)

    def skip(self, step: int, names: list[str]) -> None:
        """Counts and names the clips of a step whose gradients were not finite.

        Raises:
            FloatingPointError: with the list, once too many steps were lost.
        """
        names = gather_object(names)  # gradients are averaged, so every process is here
        self.progress.skipped.append({"step": step, "clips": names})
        tqdm.write(f"step {step}: gradients are NaN or infinite, skipped. Clips: {names}")
        allowed = max(MIN_SKIPPED, int(MAX_SKIPPED_SHARE * self.config.steps))
        if len(self.progress.skipped) > allowed:
            clips = sorted({name for entry in self.progress.skipped for name in entry["clips"]})
            raise FloatingPointError(f"{len(self.progress.skipped)} steps had gradients that are not finite (allowed: {allowed}). Clips: {clips}.")

    def watch(self, step: int, first) -> None:
        """Evaluates, logs, keeps the best weights."""
        watch(self.accelerator, self.model, self.processor, self.features, self.validation, step, self.progress.log, first)
        self.accelerator.wait_for_everyone()
        if not self.config.patience:
            return
        cer = self.progress.log["validation"][str(step)]["macro"]["cer"]
        self.progress.evaluations_since_best += 1
        if cer < self.progress.best["cer"]:
            self.progress.best, self.progress.evaluations_since_best = {"step": step, "cer": cer}, 0
            best = whole(self.model.state_dict(), keep=self.accelerator.is_main_process)
            if self.accelerator.is_main_process:
                checkpoints.save(self.out / "best", step, {"model": best}, self.facts, keep=1)
            self.accelerator.wait_for_everyone()

    def time_is_up(self, started_s: float) -> bool:
        """Whether `--max_minutes` are over by the main process's clock, so that all stop at the same step."""
        if not self.config.max_minutes:
            return False
        is_late = torch.tensor(float(time.monotonic() - started_s > 60 * self.config.max_minutes), device=self.accelerator.device)
        return bool(broadcast(is_late))

    def return_to_best(self) -> None:
        if self.config.patience and self.progress.best["step"] is not None:
            load_model_state(self.model, checkpoints.load(self.out / "best", "newest", self.facts)[1]["model"])
            tqdm.write(f"Back to the best step, {self.progress.best['step']}: validation CER {self.progress.best['cer']:.2f}.")


def train(accelerator, model, processor, features, turns, clips, validation, config: LoopConfig) -> dict:
    """Runs the steps that are left; returns the log: losses, validation figures, T's behaviour, skipped steps."""
    run = Run(accelerator, model, processor, features, turns, clips, validation, config)
    first_step = run.resume()
    # evaluation_mode: autocast and no DDP, since a sharded model exchanges gradients itself
    wrapped = accelerator.prepare_model(model, evaluation_mode=True) if is_sharded(model) else accelerator.prepare(model)
    log, first, recent, started = run.progress.log, state_of_masks(accelerator, model), [], time.monotonic()
    progress = tqdm(total=config.steps, initial=first_step, desc="training", unit="step", dynamic_ncols=True,
                    disable=not accelerator.is_main_process)  # fmt: skip
    batches = run.batches(first_step)
    for step in range(first_step, config.steps):
        if step % config.evaluate_every == 0 and step and str(step) not in log["validation"]:
            run.watch(step, first)
            run.save(step)
            if config.patience and run.progress.evaluations_since_best >= config.patience:
                break
        if run.time_is_up(started):
            run.save(step)
            progress.close()
            accelerator.end_training()
            raise SystemExit(f"Stopped at step {step} after {config.max_minutes} minutes; go on with --resume.")
        loss, language = run.one_step(wrapped, step, batches)
        recent = [*recent[-19:], loss]
        if step % 5 == 0:
            accelerator.log({f"loss/{language}": loss}, step=step)
        progress.update()
        progress.set_postfix(loss=f"{sum(recent) / len(recent):.3f}", turn=turns.phase(step))
        if step % 20 == 0:
            log["loss"][str(step)] = round(sum(recent) / len(recent), 4)
            accelerator.log({"loss": log["loss"][str(step)], **turns.learning_rates()}, step=step)
    else:
        run.watch(config.steps, first)
    batches.close()
    progress.close()
    run.return_to_best()
    broken = dict(pair for pair in gather_object([(str(path), reason) for path, reason in run.collator.broken.items()]))
    return {**log, "skipped": run.progress.skipped, "broken_clips": broken}
