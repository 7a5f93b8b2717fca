r"""What a user could take instead: one new language by every usual method, same encoder, data, loop and steps.

    python -m benchmarks.methods --method lora --model runs/dense/model --data data/manifest.jsonl --language es --out runs/lora \
        --steps 1000 --method_learning_rate 1e-3

Every method trains a head of its own for the language. On the dense model: `head` alone, `full` tuning, PEFT's `lora` on the attention
projections and `lora_all` on the feed-forward layers too, as preset best reaches them, `bottleneck`
(the adapter of Transformers' MMS models after every encoder layer) and `mask` (S3-Router: dense scores, W frozen). Master-ASR's own
presets are `training.adapt_language`. The result says what the method does to the languages that were there before. With `--untranscribed`
a method that has trained writes recordings down and trains on with them, as `training.adapt_language --refine` does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Literal

import torch
from accelerate.utils import set_seed
from peft import LoraConfig, inject_adapter_in_model
from transformers.hf_argparser import HfArg
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2AttnAdapterLayer

from training.adapt_language import (
    RATE_OF_TRAINED_HEAD,
    AdaptConfig,
    add_language,
    further_sentences,
    learning_rates,
    load,
    minutes_left,
    phase,
    train_teacher,
    transcribe_first,
)
from training.loop.config import Positive, as_record, parse
from training.loop.data import Features, drop_impossible, having, minutes_of
from training.loop.launch import opened, place
from training.loop.metrics import measured, tested
from training.loop.optim import Turns
from training.loop.record import facts_of_run, write_json
from training.loop.splits import Splits, load_splits, read
from training.loop.steps import train
from training.loop.text import keep_text
from training.loop.untranscribed import beside

BOTTLENECK = 16  # adapter_attn_dim of the MMS checkpoints
MASK_SPARSITY = 0.1  # of the method `mask`


@dataclass(frozen=True, kw_only=True)
class MethodConfig(AdaptConfig):
    """The settings of one method."""

    method: Literal["head", "full", "lora", "lora_all", "bottleneck", "mask"] = HfArg(help="what trains beside the head")
    method_learning_rate: Positive = HfArg(default=1e-3, help="of what the method trains in the encoder")
    preset: Literal["paper", "small", "best"] = HfArg(default="paper", help="what the language is given; the method says what of it trains")

    def __post_init__(self):
        super().__post_init__()
        defaults = {field.name: field.default for field in fields(self)}
        for name in ("refine", "finetune_steps"):
            if getattr(self, name):
                raise ValueError(f"--{name}: got {getattr(self, name)}; allowed: none here, a method adds a language and trains once. With it: training.adapt_language.")
        if self.method == "head" and self.method_learning_rate != defaults["method_learning_rate"]:
            raise ValueError(f"--method_learning_rate: got {self.method_learning_rate}; allowed: none with --method head, which trains nothing in the encoder.")
        idle = () if self.method == "mask" or self.teacher_steps else ("preset", "parts", "rank", "targets")
        for name in idle:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"--{name}: got {getattr(self, name)!r}; allowed: none with --method {self.method}, which trains none of it; with mask, or with --teacher_steps.")

    def reads_first(self) -> bool:
        return True  # what it is given trains on the transcribed minutes before


def train_head(model, config: MethodConfig) -> None:
    model.requires_grad_(False)
    model.assemblies[config.language].head.requires_grad_(True)


def train_full(model, config: MethodConfig) -> None:
    train_head(model, config)
    model.master_asr.backbone.requires_grad_(True)
    for module in model.master_asr.family.fixed:
        getattr(model.master_asr.backbone, module).requires_grad_(False)
    for layer in model.master_asr.artisan_layers:
        layer.specialists.requires_grad_(False)
    model.freeze_feature_encoder()


def train_lora(model, config: MethodConfig) -> None:
    family = model.master_asr.family
    names = [*family.targets, *(family.feed_forward if config.method == "lora_all" else ())]
    inject_adapter_in_model(LoraConfig(r=8, target_modules=names), model)
    model.assemblies[config.language].head.requires_grad_(True)


def add_bottlenecks(layers, hidden_size: int) -> None:
    """An adapter of MMS behind each layer."""
    settings = SimpleNamespace(adapter_attn_dim=BOTTLENECK, hidden_size=hidden_size)
    for layer in layers:
        adapter = layer.adapter_layer = Wav2Vec2AttnAdapterLayer(settings)
        torch.nn.init.zeros_(adapter.linear_2.weight), torch.nn.init.zeros_(adapter.linear_2.bias)  # starts as the encoder was
        layer.register_forward_hook(lambda layer, args, hidden, adapter=adapter: hidden + adapter(hidden))


def train_bottleneck(model, config: MethodConfig) -> None:
    train_head(model, config)
    backbone = model.master_asr.backbone
    add_bottlenecks(getattr(backbone, "encoder", backbone).layers, model.master_asr.family.hidden_size(backbone.config))


def train_mask(model, config: MethodConfig) -> None:
    """Masks that are the language's own; and what a preset beyond `paper` owns, beside them."""
    train_head(model, config)
    for name, parameter in model.assemblies[config.language].named_parameters():
        parameter.requires_grad_(name != "mapping")
    model.config.sparsity = MASK_SPARSITY
    for layer in model.master_asr.artisan_layers:
        layer.reset_specialists(noise=0.0)
        layer.specialists.requires_grad_(True)


PREPARE = {"head": train_head, "full": train_full, "lora": train_lora, "lora_all": train_lora, "bottleneck": train_bottleneck, "mask": train_mask}


def bytes_to_keep(model) -> int:
    """What has to be kept for the language: in half precision, a mask at one bit a weight."""
    bits = {id(layer.specialists) for layer in model.master_asr.artisan_layers}
    return sum(p.numel() // 8 if id(p) in bits else 2 * p.numel() for p in model.parameters() if p.requires_grad)


def steps_of(accelerator, config: MethodConfig, model, processor, features, splits: Splits, teacher=None, *, again: bool = False) -> dict:
    """The log of the steps of what is free in the model.

    Args:
        again: it has trained before.
    """
    rates = {**learning_rates(config), "W": config.method_learning_rate, "M": config.method_learning_rate}
    if again:
        rates["head"] = config.head_learning_rate or RATE_OF_TRAINED_HEAD
    turns = Turns(model, config.alpha, config.beta, 0, rates, config.steps, beta2=config.beta2)
    return train(accelerator, model, processor, features, turns, splits.training, splits.validation, config, teacher, stage="method-untranscribed" if again else "method")


def on_untranscribed(accelerator, config: MethodConfig, model, processor, features, splits: Splits, more: list[str], started_s: float) -> dict:
    """Trains on with what the model writes down of `--untranscribed`, if there is any; what stands of it in the result."""
    written, found = transcribe_first(accelerator, config, model, processor, features, splits, more)
    if not written:  # nor where all that was asked for was read as nothing, which the result says
        return found
    heard = replace(splits, training=beside(splits.training, written))
    rest = phase(config, "untranscribed", config.steps, started_s)
    return {**found, "untranscribed_log": steps_of(accelerator, rest, model, processor, features, heard, again=True)}


def run(accelerator, config: MethodConfig) -> dict:
    """Trains, tests on the new language and on those that were there before.

    Raises:
        ValueError: for data without test clips of one of them.
    """
    more = further_sentences(config)
    started_s = time.monotonic()
    set_seed(config.seed)
    model, processor = load(accelerator, config)
    facts, before = facts_of_run(model), list(model.languages)
    splits: Splits = load_splits(accelerator, config, [config.language], config.minutes)
    features = Features(processor, config.features_cache)
    splits.training, _ = drop_impossible(splits.training, processor, model)
    add_language(model, processor, features, splits.training, config)
    clips, _ = read(config, splits={"test"})
    if without := [code for code in (config.language, *before) if code not in having(clips, "test", [config.language, *before])]:
        raise ValueError(f"--data has no test clips of {without}, whose errors the result compares; allowed: of {config.language!r} and each of {before}.")
    old = [clip for clip in clips if clip.language in before and clip.split == "test"]
    old_before = tested(accelerator, model, processor, features, old, greedy=True)
    teacher, of_teacher = train_teacher(accelerator, config, model, processor, features, splits, started_s)
    PREPARE[config.method](model, config)
    place(accelerator, model, config)
    trainable, kilobytes = sum(p.numel() for p in model.parameters() if p.requires_grad), bytes_to_keep(model) / 1024
    print(f"{config.method}: {trainable:,} trainable parameters, {kilobytes:.0f} KB to keep")
    rest = replace(config, max_minutes=minutes_left(config, started_s))
    log = steps_of(accelerator, rest, model, processor, features, splits, teacher)
    of_untranscribed = on_untranscribed(accelerator, config, model, processor, features, splits, more, started_s)
    keep_text(accelerator, model, config.language, splits, config, more)
    return {
        **facts, "config": as_record(config), "minutes": minutes_of(splits.training), "trainable": trainable,
        "kilobytes": round(kilobytes, 1), "log": log, **of_teacher, **of_untranscribed,
        **measured(accelerator, model, processor, features, splits),
        "old_languages_before": old_before, "old_languages_after": tested(accelerator, model, processor, features, old, greedy=True),
    }  # fmt: skip


def main(argv=None) -> None:
    config = parse(MethodConfig, __doc__, argv)
    with opened(config) as accelerator:
        result = run(accelerator, config)
        if accelerator.is_main_process:
            write_json(config.out / "run.json", result)
    new, *old = (result[name]["macro"]["cer"] for name in ("test", "old_languages_before", "old_languages_after"))
    print(f"{config.method}: test CER {new:.2f}; the languages from before: {old[0]:.2f} -> {old[1]:.2f}. Wrote {config.out / 'run.json'}.")


if __name__ == "__main__":
    main()
