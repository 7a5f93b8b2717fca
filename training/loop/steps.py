"""The training loop that both stages share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Optional

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs, gather_object
from tqdm import tqdm

from modeling_master_asr.assembly_master_asr import text_kilobytes
from modeling_master_asr.text_master_asr import spell_sentences, without_pairs
from training.loop import checkpoints
from training.loop.config import LoopConfig, as_record
from training.loop.data import Clip, Collator, NothingToRead, bucket_of_step, having, minutes_of, select, to_device
from training.loop.folder import claimed
from training.loop.metrics import evaluate_clips, flattered
from training.loop.optim import allowed_to_skip
from training.loop.sharding import average_languages, is_sharded, load_model_state, shard, whole
from training.loop.sources import Report, read_data
from training.loop.stopping import StopRequest
from training.loop.teacher import divergence
from training.loop.text import beginning, without
from training.loop.watching import state_of_masks, watch

READING_TIMEOUT = timedelta(hours=6)  # in which the first process may read the data while the others wait for it
KEPT_TEXT = 200_000  # characters of sentences a language, transcripts first; 900,000 win half a point more (RESULTS.md, Voices), in a config four times as large


def make_accelerator(config: LoopConfig) -> Accelerator:
    """Accelerate as both stages use it: ranks train different languages, so a step leaves parameters without gradients.

    Raises:
        ValueError: if Accelerate was told to shard the model itself, or to train in fp16, whose losses have to be scaled.
    """
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True), InitProcessGroupKwargs(timeout=READING_TIMEOUT)]
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
        RuntimeError, FileExistsError: see `training.loop.folder.claimed`.
        SystemExit: for data that no run can be made of.
    """
    accelerator = make_accelerator(config)
    with claimed(config.out, config.resume) if accelerator.is_main_process else nullcontext():
        try:
            yield accelerator
        except NothingToRead as error:
            raise SystemExit(str(error)) from error
        accelerator.wait_for_everyone()
        accelerator.end_training()


def place(accelerator, model, config: LoopConfig) -> None:
    """Puts the model where it trains, in shards if `--shard` asks for it: before optimizers are made, or filled by `--resume`."""
    model.to(accelerator.device)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if config.shard:
        shard(model, accelerator)


@dataclass
class Splits:
    """A run's clips."""

    training: list[Clip]
    validation: list[Clip]
    test: list[Clip]
    left_out: list[Clip] = field(default_factory=list)  # of validation and test, by --held_out_minutes


def read(config: LoopConfig, minutes: Optional[float] = None, splits: Optional[Collection[str]] = None) -> tuple[list[Clip], Report]:
    """`training.loop.sources.read_data` as a run's settings say."""
    return read_data(
        config.data, config.out / "recordings", minutes, config.min_s, config.max_s, config.allow_outside, config.max_download_gb,
        config.download_timeout_s, splits,
    )  # fmt: skip


def load_splits(accelerator, config: LoopConfig, languages: list[str], minutes: float) -> Splits:
    """Clips of `--data`, with the report of what was read and what was left out.

    Raises:
        ValueError: if a language has no clips to train on, or none to validate with.
    """
    with accelerator.main_process_first():
        clips, report = read(config, minutes)
    testable = having(clips, "test", languages)
    accelerator.print("\n".join(report.lines(clips)))
    if len(testable) < len(languages):
        accelerator.print(f"No test clips of {[code for code in languages if code not in testable]}: there will be no test figures of them.")
    held_out = [select(clips, split, codes, config.held_out_minutes) for split, codes in (("validation", languages), ("test", testable))]
    kept = {id(clip) for part in held_out for clip in part}
    left = [clip for clip in clips if clip.split != "train" and clip.language in languages and id(clip) not in kept]
    for code, minutes_left in minutes_of(left).items():
        accelerator.print(f"{code}: {minutes_left} minutes of validation and test are left out (--held_out_minutes).")
    training = select(clips, "train", languages, minutes, config.seed)
    say_what_is_left(accelerator, training, [clip for clip in clips if clip.split == "train" and clip.language in languages])
    return Splits(training, *held_out, left)


def say_what_is_left(accelerator, training: list[Clip], there: list[Clip]) -> None:
    """Names the minutes that `--minutes` leaves out, and the letters that nobody trains then."""
    chosen = {id(clip) for clip in training}
    left = [clip for clip in there if id(clip) not in chosen]
    for code, minutes_left in minutes_of(left).items():
        letters = [{letter for clip in of if clip.language == code for letter in clip.text} for of in (left, training)]
        lost = f" Letters that they alone hold: {''.join(sorted(letters[0] - letters[1]))}" if letters[0] - letters[1] else ""
        accelerator.print(f"{code}: {minutes_left} minutes of training clips are left out (--minutes, --minutes_per_language).{lost}")


def keep_text(accelerator, model, language: str, splits: Splits, config, more: Iterable[str] = ()) -> None:
    """Gives a language that has trained the sentences that it is read with from now on, as `--text` says: what it trained on, those
    that it had and further ones, `KEPT_TEXT` characters of them.

    Args:
        more: further ones, of which those stay out that validation or test clips say.
    """
    before, more = model.config.text(language).splitlines(), list(more)
    transcripts = [clip.text for clip in splits.training if clip.language == language]
    kept = [*transcripts, *before] if config.text == "transcripts" else []
    if before and not kept:
        model.config.set_text(language, "")
        accelerator.print(f"The {len(before)} sentences that {language!r} had are gone (--text none).")
    allowed = without(more, (clip.text for clip in [*splits.validation, *splits.test]), language)
    given = list(dict.fromkeys([*kept, *map(without_pairs, allowed)]))  # what is refined has many twice
    try:
        written = spell_sentences(given, language, model.config.vocab(language), raw=False)
        fitting = beginning(written, KEPT_TEXT)
        model.config.set_text(language, "\n".join(fitting))  # as they are spelled already
    except ValueError as error:  # what was trained is saved, whatever its sentences
        accelerator.print(f"Read {'with the sentences that it had' if model.config.text(language) else 'greedily'}: {error}")
        return
    if fitting:
        accelerator.print(f"{language!r} is read with {len(fitting)} sentences in mind, which its files hold: whoever publishes them publishes these (--text none: none).")
    for lost, why in (
        (len(more) - len(allowed), "are said in validation or test clips, whose figures they would flatter"),
        (len(given) - len(written), "hold what the alphabet lacks (digits, signs, letters), or are written as others are"),
        (len(written) - len(fitting), f"do not fit into {KEPT_TEXT:,} characters beside the others (a sentence a line, please)"),
    ):
        if lost:
            accelerator.print(f"{lost} sentences were left out: they {why}.")


def tested(accelerator, model, processor, features, clips: list[Clip], greedy: bool = False) -> Optional[dict]:
    """CER and WER on test clips, and each clip's edits; None where there is nothing to score, with the reason said: what was trained is
    saved already."""
    try:
        rates = evaluate_clips(model, processor, features, clips, accelerator, by_clip=True, greedy=greedy)
        for line in flattered(rates):
            accelerator.print(line)
        return rates
    except ValueError as error:
        accelerator.print(f"Not tested: {error}")
        return None


def measured(accelerator, model, processor, features, splits: Splits) -> dict:
    """`{"validation", "test"}`, greedy, and "with_text" the same with the languages' sentences in mind."""

    def both(greedy: bool) -> dict:
        return {name: tested(accelerator, model, processor, features, getattr(splits, name), greedy) for name in ("validation", "test")}

    kilobytes = {code: text_kilobytes(text) for code in model.languages if (text := model.config.text(code))}
    greedy = both(greedy=True)
    return {**greedy, "with_text": {"kilobytes": kilobytes, **(both(greedy=False) if kilobytes else greedy)}}


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
        clips, validation: `training.loop.data.Clip`s.
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
            "config": {**as_record(config), "mixed_precision": accelerator.mixed_precision}, "batches_a_step": self.batches_a_step,
        }  # fmt: skip
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
        self.saved = step
        self.accelerator.wait_for_everyone()

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
            self.collator.broken.update({Path(path): reason for path, reason in self.progress.broken.items()})
            checkpoints.set_random_state(parts["random"][self.accelerator.process_index % len(parts["random"])])
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
        tqdm.write(f"step {step}: gradients are NaN or infinite, skipped. Clips: {names}")
        allowed = allowed_to_skip(self.config.steps)
        if len(self.progress.skipped) > allowed:
            clips = sorted({name for entry in self.progress.skipped for name in entry["clips"]})
            raise FloatingPointError(f"{len(self.progress.skipped)} steps had gradients that are not finite (allowed: {allowed}). Clips: {clips}.")

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

    def evaluate_and_save(self, step: int) -> None:
        """Evaluates, logs, keeps the best weights, and writes the checkpoint; what a resumed run has done already it does not repeat."""
        if str(step) in self.progress.log["validation"]:
            return
        progress = self.progress
        watch(self.accelerator, self.model, self.processor, self.features, self.validation, step, progress.log, progress.first, self.watched)
        self.accelerator.wait_for_everyone()
        if self.config.patience:
            self.keep_best(step, progress.log["validation"][str(step)]["macro"]["cer"])
        self.save(step)

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
        if step != self.saved:
            self.save(step)
        self.accelerator.end_training()
        self.accelerator.print(f"Stopped at step {step} {reason}. Go on with the same command and --resume.")
        raise SystemExit(0)

    def broken_clips(self) -> dict[str, str]:
        """Recordings that no process could read, with the reason."""
        return dict(pair for pair in gather_object([(str(path), reason) for path, reason in self.collator.broken.items()]))


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
    with StopRequest(accelerator, config.max_minutes) as stop, bar, closing(run.batches(first_step)) as batches:
        for step in range(first_step, config.steps):
            if step and step % config.evaluate_every == 0:
                run.evaluate_and_save(step)
            if run.out_of_patience():
                break
            if step > first_step and (reason := stop.reason()):  # after a step at least, so that --max_minutes end with any number of starts
                bar.close()
                run.stop(step, reason)
            mean = run.log_losses(step, run.one_step(wrapped, step, batches))
            bar.update()
            bar.set_postfix(loss=f"{mean:.3f}", turn=turns.phase(step))
        else:
            run.evaluate_and_save(config.steps)
    run.return_to_best()
    turns.end()
    while accelerator.trackers:
        accelerator.trackers.pop().finish()
    # accelerate leaves its autocast in the model's forward: what is tested, and used, is read as `from_pretrained` would
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False).__dict__.pop("forward", None)
    return {**run.progress.log, "skipped": run.progress.skipped, "broken_clips": run.broken_clips()}
