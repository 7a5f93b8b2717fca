r"""Stage 2: adds one language to a trained model from minutes of speech, or gives one of its own more (`--refine`); nothing else moves.

    python -m training.adapt_language --model ./runs/stage1/model --data data/manifest.jsonl --language es --out runs/es

One minute on a CPU, from a clone:

    python -m training.adapt_language --model ./checkpoints/master-asr-whisper-base --data demo/manifest.jsonl --language es \
        --out runs/try --steps 40
"""

from __future__ import annotations

import random
import re
import shlex
import sys
import time
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Optional

if not __package__:  # started by its path, as `accelerate launch` does: the clone's root, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import training  # noqa: F401  # says which packages are missing

from accelerate.utils import set_seed
from transformers.hf_argparser import HfArg

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.assembly_master_asr import parameter_kilobytes
from modeling_master_asr.configuration_master_asr import SPECIAL_TOKENS, from_preset
from modeling_master_asr.languages_master_asr import check_nothing_is_lost, nearest_of
from modeling_master_asr.text_master_asr import build_vocab, characters_of, spelled, tokens_of
from training.loop import checkpoints
from training.loop.config import (
    EVALUATE_EVERY,
    LEARNING_RATES,
    OWN_PARTS,
    Count,
    CountOrZero,
    PartsConfig,
    Positive,
    Share,
    parse,
)
from training.loop.data import Collator, Features, bucket, drop_impossible, minutes_of, without_broken
from training.loop.launch import opened, place, run, run_as
from training.loop.metrics import measured, tested
from training.loop.models import processor_of, resolve_model
from training.loop.optim import Turns
from training.loop.record import facts_of_run, write_json
from training.loop.sharding import unsharded
from training.loop.sources import CODE, CODE_IN_WORDS, Clip
from training.loop.splits import Splits, load_splits
from training.loop.steps import train
from training.loop.stopping import minutes_left
from training.loop.tables import read_text
from training.loop.text import keep_text
from training.loop.untranscribed import beside, transcribe_recordings

RATE_OF_TRAINED_HEAD = 1e-3
RATE_OF_TEACHER = 1e-4  # of its matrices
RATE_OF_RANK_1, RATE_OF_DELTA, RATE_OF_NORMS = 3e-3, 2e-3, 2e-4  # in stage 2; a delta the faster, the smaller its rank (RESULTS.md)


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(PartsConfig):
    """The settings of stage 2."""

    model: str = HfArg(help="folder or hub id of a Master-ASR model")
    language: str = HfArg(help="code of the new language, as the data has it")
    refine: bool = HfArg(default=False, help="the model has the language: it is given the preset's parts, and all that it owns trains on")
    assembly: Optional[str] = HfArg(default=None, help="with --refine: folder or hub id of the language's assembly, where it is no part of --model")
    untranscribed: Optional[list[str]] = HfArg(
        default=None, help="with --refine: recordings of the language, and folders of them, that nobody transcribed: it writes them down first, and trains on them too"
    )
    minutes: Positive = HfArg(default=10.0, help="of training audio, at most")
    # CHOICE: the paper does not say where a new row of T starts; beta2 and the rates, which it does not name, are those that validation chose (RESULTS.md)
    init: str = HfArg(default="nearest", help='"nearest", "random" or a loaded language')
    more_text: Optional[Path] = HfArg(default=None, help="a file of further sentences that the language keeps, one a line; nobody has to have said them")
    steps: Count = HfArg(default=1000, help="updates of what the language owns")
    beta2: Share = HfArg(default=0.98, help="Adam's, for the squares of the gradients")
    spec_masks: Count = HfArg(default=3, help="bands of mels, and times in every 2 s, that SpecAugment masks in log-mel features")
    teacher_steps: CountOrZero = HfArg(default=0, help="first, of the matrices of a copy's layers (whole in each process), from which the language then learns beside CTC")
    finetune_steps: CountOrZero = HfArg(default=0, help='"+ ft": afterwards all weights but the convolutions in front, this many steps, T by the paper\'s rule')
    finetune_learning_rate: Positive = HfArg(default=1e-4, help="of all of them, T's before alpha")
    alpha: Positive = HfArg(default=10.0, help="what --mapping_learning_rate is multiplied by for T")
    beta: Count = HfArg(default=5, help="T moves every beta steps")
    mapping_gradient: Literal["accumulated", "last"] = HfArg(
        default="last", help="of T: over its beta steps, or of the last of them alone, which is faster"
    )
    mapping_learning_rate: Positive = HfArg(default=LEARNING_RATES["T"], help="of T before alpha")
    # DEVIATION: the paper's rate of T is constant to the end; each gate that flips late is a mask that the other parts have not met.
    mapping_decay: bool = HfArg(default=True, help="whether T's rate falls like the others'; with --no_mapping_decay it is constant, as the paper's")
    # DEVIATION: the paper's T moves to the end; for the same reason.
    mapping_rest: Share = HfArg(default=0.3, help="share of the steps, at the end, in which T rests")
    head_learning_rate: Optional[Positive] = HfArg(default=None, help=f"of the head; else {LEARNING_RATES['head']:g}, with --refine {RATE_OF_TRAINED_HEAD:g}")
    delta_learning_rate: Optional[Positive] = HfArg(default=None, help=f"of the part, if there is one; else {RATE_OF_RANK_1:g} at rank 1, {RATE_OF_DELTA:g} above")
    norms_learning_rate: Positive = HfArg(default=RATE_OF_NORMS, help="of the part, if there is one")
    evaluate_every: Count = HfArg(default=250, help=EVALUATE_EVERY)

    def __post_init__(self):
        super().__post_init__()
        if not re.fullmatch(CODE, self.language):
            raise ValueError(f"--language: got {self.language!r}; allowed: {CODE_IN_WORDS}.")
        if self.refine and self.init != "nearest":
            raise ValueError(f"--init: got {self.init!r}; allowed: none beside --refine, which starts from what the language owns.")
        if self.assembly and not self.refine:
            raise ValueError(f"--assembly: got {self.assembly!r}; allowed: beside --refine, which trains it on.")
        if self.untranscribed and not self.reads_first():
            raise ValueError(f"--untranscribed: got {self.untranscribed}; allowed: beside --refine, since a language has to read before it writes. Train it on what is "
                             "transcribed first, then: --refine --assembly THAT_RUN/assembly.")  # fmt: skip

    def reads_first(self) -> bool:
        """Whether the language has trained before it meets what nobody transcribed."""
        return self.refine


def further_sentences(config: AdaptConfig) -> list[str]:
    """Those of `--more_text`, which may be a pipe: read once, and before anything else, not when all is trained.

    Raises:
        ValueError: if it is no text that can be read.
    """
    try:
        return [] if config.more_text is None else read_text(config.more_text).splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"--more_text: got {config.more_text}, which cannot be read ({error}); allowed: a UTF-8 text file, a sentence a line.") from error


def learning_rates(config: AdaptConfig) -> dict[str, float]:
    """`{group of `training.loop.optim.named_groups`: learning rate}`."""
    of_head = RATE_OF_TRAINED_HEAD if config.refine else LEARNING_RATES["head"]
    rates = {"T": config.mapping_learning_rate, "head": config.head_learning_rate or of_head, **config.rates_of_parts()}
    of_delta = RATE_OF_RANK_1 if from_preset(**config.owned())["rank"] == 1 else RATE_OF_DELTA
    return {**rates, "delta": config.delta_learning_rate or of_delta, "W": RATE_OF_TEACHER}  # of W, which only a teacher moves


def load(accelerator, config: AdaptConfig) -> tuple[MasterASRForCTC, MasterASRProcessor]:
    """The trained model that gets the language.

    Raises:
        ValueError: if it cannot get this one, or start it so.
    """
    source = resolve_model(config.model)
    model = MasterASRForCTC.from_pretrained(source, assemblies=[config.assembly] if config.assembly else []).to(accelerator.device)
    if config.language in model.languages and not config.refine:
        raise ValueError(
            f"--language: got {config.language!r}; allowed: one that {config.model} does not have. It has {model.languages}. To give it more of its own: "
            f"--refine. To measure it: python -m training.evaluate --model {shlex.quote(config.model)} --data {shlex.join(config.data)} --languages {config.language} "
            f"--out {shlex.quote(f'{config.out}.json')}. A run of yours that was stopped goes on with its own --model and --resume."
        )
    if config.refine and config.language not in model.languages:
        raise ValueError(f"--refine: {config.model} has no {config.language!r}; it has {model.languages}. One that you trained: --assembly FOLDER. Without --refine the language is added.")
    if config.refine:
        try:
            check_nothing_is_lost(config.language, model.config.assemblies[config.language], from_preset(**config.owned()))
        except ValueError as error:
            raise ValueError(f"--preset, --parts, --rank, --targets: {error}") from error
    starts = ["nearest", "random", *model.languages]
    if config.init not in starts:
        raise ValueError(f"--init: got {config.init!r}; allowed: one of {starts}.")
    return model, processor_of(model, source)


def nearest(model, processor, features, training, vocab, config: AdaptConfig) -> str:
    """The loaded language whose assembly reads five batches of the new one best."""
    sample = bucket(training, config.batch_s, random.Random(config.seed))[:5]
    losses = model.rank_assemblies([Collator(features, processor, spares=training)(batch) for batch in sample], vocab)
    found = nearest_of(losses)
    print(f"Its mapping starts as that of {found!r}, which fits best (CTC loss with each language's, inf: cannot spell it):", {code: round(loss, 2) for code, loss in losses.items()})
    return found


def add_language(model, processor, features, training, config: AdaptConfig) -> None:
    """Adds the language with its alphabet, its mapping started as `--init` says, and freezes the rest."""
    vocab = build_vocab(clip.text for clip in training)
    processor.add_language(config.language, vocab)
    init = nearest(model, processor, features, training, vocab, config) if config.init == "nearest" else config.init
    model.add_language(config.language, vocab, init=init, **config.owned())
    model.freeze_except(config.language)


def transcribe_first(accelerator, config: AdaptConfig, model, processor, features, splits: Splits, more: list[str]) -> tuple[list[Clip], dict]:
    """What the language writes down of `--untranscribed`, with all the sentences in mind that it is to be read with, and what the result says of it."""
    if not config.untranscribed:
        return [], {}
    before = model.config.text(config.language)
    keep_text(accelerator, model, config.language, splits, config, more)
    found = transcribe_recordings(accelerator, config, model, processor, features, splits)
    model.config.set_text(config.language, before)  # it gets them when it has trained, as without
    return found


def give_parts(model, processor, training, config: AdaptConfig) -> None:
    """Gives the language, which the model has, the parts of the preset and the letters that it lacks, and freezes the rest."""
    code, vocab = config.language, model.config.vocab(config.language)
    if new := letters_beyond(vocab, (clip.text for clip in training), code):
        print(f"The alphabet of {code!r} grows by {new}.")
        vocab = vocab | {letter: len(vocab) + i for i, letter in enumerate(new)}
    model.give_parts(code, **config.owned(), vocab=vocab)
    model.freeze_except(code)
    processor.tokenizer = MasterASRProcessor.from_model(model, processor.feature_extractor).tokenizer


def letters_beyond(vocab: dict[str, int], texts: Iterable[str], language: str) -> list[str]:
    """What is in normalised texts that no token of an alphabet writes, in capitals where it has those alone."""
    known = characters_of(vocab)
    tokens = {token for text in texts for token in tokens_of(spelled(text, known, language, raw=False), vocab)} - vocab.keys()
    if any(map(str.isupper, vocab.keys() - set(SPECIAL_TOKENS))) and not any(map(str.islower, vocab)):
        tokens = {token.upper() for token in tokens}
    return sorted(tokens)


def announce(model, config: AdaptConfig, training, dropped) -> dict:
    """Says what trains; returns what of it stands in the result."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assembly, counts = model.assemblies[config.language], {}
    for name, parameter in assembly.named_parameters():
        part = name.partition(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    print(f"{trainable:,} trainable parameters ({', '.join(f'{part} {count:,}' for part, count in counts.items())}); "
          f"minutes {minutes_of(training)}; dropped {len(dropped)} clips")  # fmt: skip
    return {"trainable": trainable, "parameters": counts, "dropped": [str(clip.audio) for clip in dropped], "parts": list(assembly.parts)}


def run_steps(accelerator, config: AdaptConfig, model, processor, features, splits: Splits, teacher=None, *, stage: str) -> tuple[MasterASRForCTC, dict]:
    """The model after the steps of what is free in it, and their log."""
    place(accelerator, model, config)
    turns = Turns(model, config.alpha, config.beta, 0, learning_rates(config), config.steps, config.mapping_gradient, config.beta2,
                  config.mapping_decay, config.mapping_rest)  # fmt: skip
    log = train(accelerator, model, processor, features, turns, splits.training, splits.validation, config, teacher, stage=stage)
    return unsharded(model), log


def train_language(accelerator, config: AdaptConfig, model, processor, features, splits: Splits, teacher=None) -> tuple[MasterASRForCTC, dict]:
    """The model after the steps of the language's assembly, as its file holds it, and their log."""
    model, log = run_steps(accelerator, config, model, processor, features, splits, teacher, stage="stage2")
    # DEVIATION: what a language owns is stored in 8 bits, T in 16. Before it is tested: what is tested is what the file holds.
    model.round_assembly(config.language)
    return model, log


def phase(config: AdaptConfig, name: str, steps: int, started_s: float) -> AdaptConfig:
    """The settings of a part of the run that has steps of its own, and its checkpoints in `out/NAME`."""
    return replace(config, out=config.out / name, steps=steps, resume=config.resume and "newest", max_minutes=minutes_left(config, started_s))


def train_teacher(accelerator, config: AdaptConfig, model, processor, features, splits: Splits, started_s: float) -> tuple[Optional[MasterASRForCTC], dict]:
    """The teacher that `--teacher_steps` asks for, and what the result says of it: a copy of which the matrices train as well as what the language owns
    (but a delta, which is a change of theirs).

    Raises:
        ValueError: for a run that goes on without the teacher that it began with.
    """
    if not config.teacher_steps:
        if begun := checkpoints.listed(config.out / "teacher"):
            raise ValueError(f"--teacher_steps: got 0; {begun[-1]} is of a run that began with a teacher. Pass the steps of then, or choose another --out.")
        return None, {}
    accelerator.print(f"First a teacher: {config.teacher_steps} steps of the matrices of a copy's layers.")
    teacher = deepcopy(model)
    for layer in teacher.master_asr.layout.linear:
        layer._parameters["weight"].requires_grad_(True)
    own = teacher.assemblies[config.language]
    if "delta" in own.parts:
        own.delta.requires_grad_(False)
    teacher, log = run_steps(accelerator, phase(config, "teacher", config.teacher_steps, started_s), teacher, processor, features, splits, stage="stage2-teacher")
    teacher.requires_grad_(False).eval()
    return teacher, {"teacher_log": log, "teacher_test": tested(accelerator, teacher, processor, features, splits.test, greedy=True)}


def save(accelerator, config: AdaptConfig, model, splits: Splits, written: list[Clip], test: Optional[dict] = None) -> None:
    """Writes the assembly: before it is tested, and with its figures afterwards."""
    if accelerator.is_main_process:
        figures = {"cer": test["macro"]["cer"], "wer": test["macro"]["wer"], "greedy": not model.config.text(config.language), **({"known": known} if (known := test.get("known")) else {})} if test else {}
        untranscribed = {"untranscribed_minutes": minutes_of(written)} if written else {}
        model.save_assembly(config.language, config.out / "assembly", **figures, minutes=minutes_of(splits.training), **untranscribed)
        if not test:
            print(f"Trained: {config.out / 'assembly'}.")
    accelerator.wait_for_everyone()


def finetune(accelerator, config: AdaptConfig, model, processor, features, splits: Splits, started_s: float) -> tuple[MasterASRForCTC, dict]:
    """ "+ ft": every weight but the convolutions in front trains, from where stage 2 ended; the model is written, and returned with the log.

    CHOICE: W and M at once; the paper lets them take turns where masks are learnt from noise, and says nothing of "+ ft".
    """
    model.unfreeze()
    model.freeze_feature_encoder()
    place(accelerator, model, config)
    config = phase(config, "finetune", config.finetune_steps, started_s)
    rates = dict.fromkeys(("W", "M", "T", "head", *OWN_PARTS), config.finetune_learning_rate)
    turns = Turns(model, config.alpha, config.beta, 0, rates, config.steps, beta2=config.beta2)
    log = train(accelerator, model, processor, features, turns, splits.training, splits.validation, config, stage="stage2-finetune")
    model = unsharded(model)
    if accelerator.is_main_process:
        folder = config.out.parent / "model"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        print(f"Trained: {folder}.")
    accelerator.wait_for_everyone()
    return model, log


def report(config: AdaptConfig, result: dict) -> None:
    """The result on disk and on one screen, and the next command."""
    write_json(config.out / "run.json", result)
    for name, test in (("test, greedy", result["test"]), ("test", result["with_text"]["test"]), ("test after + ft, greedy", result.get("finetune_test"))):
        if test:
            print(f"{name}: CER {test['macro']['cer']:.2f}, WER {test['macro']['wer']:.2f}.")
    print(f"Wrote {config.out / 'assembly'} and {config.out / 'run.json'}.")
    assembly = shlex.quote(str(config.out / "assembly"))
    print(f"Next: python -m training.transcribe CLIP --model {shlex.quote(config.model)} --assembly {assembly} --language {config.language}")


def main(argv=None) -> None:
    config = parse(AdaptConfig, __doc__, argv)
    more = further_sentences(config)
    with opened(config) as accelerator:
        started_s = time.monotonic()
        set_seed(config.seed)
        model, processor = load(accelerator, config)
        splits = load_splits(accelerator, config, [config.language], config.minutes)
        features = Features(processor, config.features_cache)
        written, of_untranscribed = transcribe_first(accelerator, config, model, processor, features, splits, more)
        splits.training, dropped = drop_impossible(splits.training, processor, model)  # before an alphabet is made of them
        if config.refine:
            give_parts(model, processor, splits.training, config)
        else:
            add_language(model, processor, features, splits.training, config)
        result = {**facts_of_run(model), **run_as(accelerator, config)}
        result |= announce(model, config, splits.training, dropped) | of_untranscribed
        heard = replace(splits, training=beside(splits.training, written))
        teacher, of_teacher = train_teacher(accelerator, config, model, processor, features, heard, started_s)
        result |= of_teacher
        rest = replace(config, max_minutes=minutes_left(config, started_s))
        model, result["log"] = train_language(accelerator, rest, model, processor, features, heard, teacher)
        splits.training = without_broken(splits.training, result["log"])
        result["minutes"] = minutes_of(splits.training)
        result["kilobytes"] = round(parameter_kilobytes(model.assemblies[config.language].content_of_file()), 1)
        result["base_after"] = model.master_asr.base_fingerprint()[:12]  # as "base": nothing of what languages share has moved
        keep_text(accelerator, model, config.language, splits, config, more)
        save(accelerator, config, model, splits, written)
        result |= measured(accelerator, model, processor, features, splits)
        if result["test"]:
            save(accelerator, config, model, splits, written, result["with_text"]["test"])
        if config.finetune_steps:
            model, result["finetune_log"] = finetune(accelerator, config, model, processor, features, heard, started_s)
            result["finetune_test"] = tested(accelerator, model, processor, features, splits.test, greedy=True)
        if accelerator.is_main_process:
            report(config, result)


if __name__ == "__main__":
    run(main)
