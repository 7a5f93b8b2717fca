"""The training loop that both stages share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Optional

import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from training.loop import checkpoints
from training.loop.config import LoopConfig
from training.loop.data import Collator, bucket_of_step, there_now, to_device
from training.loop.launch import STEPS_BEGUN, settings_of
from training.loop.optim import allowed_to_skip
from training.loop.sharding import average_languages, is_sharded, load_model_state, whole
from training.loop.sources import Clip
from training.loop.stopping import StopRequest
from training.loop.teacher import divergence
from training.loop.watching import state_of_masks, watch


@dataclass
class Progress:
    """What a run has seen so far; kept in its checkpoints, so that a resumed run reports the whole."""

    log: dict = field(default_factory=lambda: {"validation": {}, "loss": {}, "mapping": {}})
    recent: list = field(default_factory=list)  # losses of the last 20 steps
    skipped: list = field(default_factory=list)  # steps whose gradients were not finite, with their clips
    broken: dict = field(default_factory=dict)  # recording -> why it cannot be read
    best: dict = field(default_factory=lambda: {"step": None, "cer": float("inf")})
    evaluations_since_best: int = 0
    first: Optional[dict] = None  # gates and masks at the start; in the main process


class Run:
    """One training run: its state, its checkpoints and its watching.

    Args:
        clips, validation: `training.loop.sources.Clip`s.
        config: how it trains, and `out`, the folder of its checkpoints.
        teacher: a model that stays as it is, from which this one learns beside CTC; or None.
    """

    def __init__(self, accelerator, model, processor, features, turns, clips, validation, config: LoopConfig, teacher=None):
        self.accelerator, self.model, self.processor, self.features, self.turns = accelerator, model, processor, features, turns
        self.validation, self.out, self.config, self.teacher = validation, config.out, config, teacher
        self.batch_of = bucket_of_step(clips, config.batch_s, config.seed, config.temperature)
        self.batches_a_step = accelerator.num_processes * accelerator.gradient_accumulation_steps
        self.collator = Collator(features, processor, config.steps * self.batches_a_step // 4, config.seed, clips, config.spec_masks, config.vtlp)
        self.clips = [f"{c.audio.name} ({c.split}, {c.language}, {c.duration_s} s): {c.text}" for c in [*clips, *validation]]
        self.facts = {
            "config": settings_of(accelerator, config), "batches_a_step": self.batches_a_step, "model_languages": model.languages,
        }  # fmt: skip
        if not is_sharded(model):
            self.facts["starting_base"] = model.master_asr.base_fingerprint()  # a folder's name says nothing of its values
        moving = {id(mapping) for mapping in turns.mappings}
        self.watched = [code for code, a in model.assemblies.items() if id(a.mapping) in moving] or model.languages
        self.progress, self.saved = Progress(), None

    def save(self, step: int) -> None:
        """Writes the checkpoint of a step; all processes have to call it."""
        every_rank = gather_object([checkpoints.random_state()])
        self.progress.broken = self.broken_clips()
        is_main = self.accelerator.is_main_process
        parts = whole({"model": self.model.state_dict(), "turns": self.turns.state_dict()}, keep=is_main)
        if is_main:
            parts |= {"progress": asdict(self.progress), "random": every_rank, "clips": self.clips}
            checkpoints.save(self.out, step, parts, self.facts)
        self.saved = self.known(step)
        self.accelerator.wait_for_everyone()
        self.collator.broken.update({Path(path): reason for path, reason in self.progress.broken.items()})
        for language in self.collator.spares:  # of all processes: each of them alone has met a part of what cannot be read
            self.collator.check_losses(language)

    def known(self, step: int) -> tuple[int, int]:
        """What a checkpoint of now would hold: steps, and evaluations."""
        return step, len(self.progress.log["validation"])

    def keep(self, step: int) -> None:
        """Writes the checkpoint of a step, unless the one that is there holds as much."""
        if self.saved != self.known(step):
            self.save(step)

    def resume(self) -> int:
        """Restores what `--resume` names, or starts; returns the next step.

        Raises:
            ValueError: if settings or clips have changed since, naming them.
        """
        if self.config.resume == "newest" and not checkpoints.listed(self.out):
            self.accelerator.print(f"Nothing to resume in {self.out}: the run ended before its first checkpoint. Starting at step 0.")
        elif self.config.resume:
            step, parts = checkpoints.load(self.out, self.config.resume, self.facts)
            check_clips(parts["clips"], self.clips)
            load_model_state(self.model, parts["model"])
            self.turns.load_state_dict(parts["turns"])
            self.progress = Progress(**parts["progress"])
            spares = list(chain.from_iterable(self.collator.spares.values()))
            self.collator.broken.update({there_now(Path(path), spares): reason for path, reason in self.progress.broken.items()})
            checkpoints.set_random_state(parts["random"][self.accelerator.process_index % len(parts["random"])])
            self.saved = self.known(step)
            self.accelerator.print(f"Resumed at step {step}.")
            return step
        self.progress.first = state_of_masks(self.accelerator, self.model, self.watched)
        return 0

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

    def one_step(self, wrapped, step: int, batches: Iterator) -> list[tuple[str, float]]:
        """This process's batches of a step, forward and backward, and the move.

        Returns:
            Language and loss of each of the batches.
        """
        accumulation, losses, names = self.accelerator.gradient_accumulation_steps, [], []
        self.model.train()
        self.turns.begin(step)
        for i in range(accumulation):
            clips, batch = next(batches)
            names += [str(clip.audio) for clip in clips]
            batch = to_device(batch, self.accelerator.device)
            is_last = i == accumulation - 1
            with self.gradients_kept_apart(wrapped, is_last):
                loss = self.loss(wrapped, batch)
                self.accelerator.backward(loss)  # divided by the accumulation steps there
            losses.append((clips[0].language, float(loss.detach())))
        if is_sharded(self.model):
            average_languages(self.model)
        if not self.turns.step(step):
            self.skip(step, names)
        return losses

    def loss(self, wrapped, batch: dict) -> torch.Tensor:
        """CTC's, and with a teacher the divergence from what it reads."""
        outputs = wrapped(**batch)
        if self.teacher is None:
            return outputs.loss
        with self.accelerator.autocast():
            return outputs.loss + divergence(self.teacher, batch, outputs.logits, outputs.frames)

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
        if self.accelerator.is_main_process:
            tqdm.write(f"step {step}: gradients are NaN or infinite, skipped. {len(names)} clips, such as {names[:5]}")
        allowed = allowed_to_skip(self.config.steps)
        if len(self.progress.skipped) > allowed:
            clips = sorted({name for entry in self.progress.skipped for name in entry["clips"]})
            raise FloatingPointError(f"{len(self.progress.skipped)} steps had gradients that are not finite (allowed: {allowed}). {len(clips)} clips, such as {clips[:5]}.")

    def log_losses(self, step: int, losses: list[tuple[str, float]]) -> float:
        """Logs a step's losses, each under its batch's language; returns the mean of the last 20 steps."""
        progress = self.progress
        progress.recent = [*progress.recent[-19:], sum(loss for _, loss in losses) / len(losses)]
        mean = sum(progress.recent) / len(progress.recent)
        if step % 5 == 0:
            of_language = defaultdict(list)
            for language, loss in losses:
                of_language[f"loss/{language}"].append(loss)
            self.accelerator.log({name: sum(values) / len(values) for name, values in of_language.items()}, step=step)
        if step % 20 == 0:
            progress.log["loss"][str(step)] = round(mean, 4)
            self.accelerator.log({"loss": progress.log["loss"][str(step)], **self.turns.learning_rates()}, step=step)
        return mean

    def save_and_evaluate(self, step: int) -> None:
        """Writes the checkpoint, evaluates, logs, and keeps the best weights: an evaluation may outlast what time a cluster leaves, or end for want
        of memory, and no step is lost by that. What a resumed run has done already it does not repeat."""
        if str(step) in self.progress.log["validation"]:
            return
        self.keep(step)
        progress = self.progress
        watch(self.accelerator, self.model, self.processor, self.features, self.validation, step, progress.log, progress.first, self.watched)
        self.accelerator.wait_for_everyone()
        if self.config.patience:
            self.keep_best(step, progress.log["validation"][str(step)]["macro"]["cer"])

    def keep_best(self, step: int, cer: float) -> None:
        """Keeps the weights if their macro CER on validation is the lowest so far."""
        self.progress.evaluations_since_best += 1
        if cer < self.progress.best["cer"]:
            self.progress.best, self.progress.evaluations_since_best = {"step": step, "cer": cer}, 0
            best = whole(self.model.state_dict(), keep=self.accelerator.is_main_process)
            if self.accelerator.is_main_process:
                checkpoints.save(self.out / "best", step, {"model": best}, self.facts, keep=checkpoints.KEEP + 1)  # what each checkpoint knows of
            self.accelerator.wait_for_everyone()

    def out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.progress.evaluations_since_best

    def return_to_best(self) -> None:
        """Loads this run's best weights, if `--patience` asks for them."""
        if self.config.patience and self.progress.best["step"] is not None:
            best = checkpoints.name_of(self.progress.best["step"])
            load_model_state(self.model, checkpoints.load(self.out / "best", best, self.facts)[1]["model"])
            self.accelerator.print(f"Back to the best step, {self.progress.best['step']}: validation CER {self.progress.best['cer']:.2f}.")

    def stop(self, step: int, reason: str) -> None:
        """Saves and ends the program, with exit code 0: nothing went wrong."""
        self.keep(step)
        self.accelerator.end_training()
        self.accelerator.print(f"Stopped at step {step} {reason}. Go on with the same command and --resume.")
        raise SystemExit(0)

    def broken_clips(self) -> dict[str, str]:
        """Recordings that a process could not read, with the reason."""
        broken = list(self.collator.broken.items())  # of now: the next batch is made meanwhile
        return dict(gather_object([(str(path), reason) for path, reason in broken]))


def check_clips(before: list[str], now: list[str]) -> None:
    """Checks that a run goes on with the clips it began with.

    Raises:
        ValueError: naming what is gone and what is new.
    """
    gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    if gone or new or len(before) != len(now):
        raise ValueError(
            f"The clips are not those that the run began with: {len(gone)} are gone {gone[:5]}, {len(new)} are new {new[:5]} "
            f"({len(before)} then, {len(now)} now). Restore them, or start a new run in another --out."
        )
    if before != now:
        raise ValueError(
            "The clips are those that the run began with, in another order, and batches are drawn by their order: pass --data in the order of then, "
            "or start a new run in another --out."
        )


def train(accelerator, model, processor, features, turns, clips, validation, config: LoopConfig, teacher=None, *, stage: str) -> dict:
    """Runs the steps that are left; returns the log: losses, validation figures, T's behaviour, skipped steps.

    Args:
        teacher: see `Run`.
        stage: the tracker's name of these steps. Each training counts its steps from zero, and trackers want steps that grow.

    Raises:
        SystemExit: with code 0, after a checkpoint, once `--max_minutes` are over or SIGTERM came.
    """
    run = Run(accelerator, model, processor, features, turns, clips, validation, config, teacher)
    first_step = run.resume()
    accelerator.init_trackers(stage)
    # evaluation_mode: autocast and no DDP, since a sharded model exchanges gradients itself
    wrapped = accelerator.prepare_model(model, evaluation_mode=True) if is_sharded(model) else accelerator.prepare(model)
    bar = tqdm(total=config.steps, initial=first_step, desc="training", unit="step", dynamic_ncols=True,
               disable=not accelerator.is_main_process)  # fmt: skip
    STEPS_BEGUN.set()

    def stop_if_asked(step: int) -> None:
        if step > first_step and (reason := stop.reason()):  # after a step at least, so that --max_minutes end with any number of starts
            bar.close()
            run.stop(step, reason)

    with turns, StopRequest(accelerator, config.max_minutes) as stop, bar, closing(run.batches(first_step)) as batches:
        for step in range(first_step, config.steps):
            if step and step % config.evaluate_every == 0:
                stop_if_asked(step)  # an evaluation may last longer than there is time: who goes on begins with it
                run.save_and_evaluate(step)
            if run.out_of_patience():
                run.keep(step)
                break
            stop_if_asked(step)
            mean = run.log_losses(step, run.one_step(wrapped, step, batches))
            bar.update()
            bar.set_postfix(loss=f"{mean:.3f}", turn=turns.phase(step))
        else:
            run.save_and_evaluate(config.steps)
            run.keep(config.steps)  # with its figures: who tests again evaluates nothing
    run.return_to_best()
    while accelerator.trackers:
        accelerator.trackers.pop().finish()
    # accelerate leaves its autocast in the model's forward: what is tested, and used, is read as `from_pretrained` would
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False).__dict__.pop("forward", None)
    return {**run.progress.log, "skipped": run.progress.skipped, "broken_clips": run.broken_clips()}
