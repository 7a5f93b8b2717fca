"""MasterASRTrainer: both stages through `transformers.Trainer`, with the same batches, optimizer and turns as the scripts.

    trainer = MasterASRTrainer(model, args, processor=processor, clips=training, validation=validation, turns=turns, batch_s=24)
    trainer.train()

For a plain Trainer on a new language, `ClipCollator` and `ctc_metrics` are all it takes: see the README.
"""

from __future__ import annotations

from typing import Optional, Union

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from modeling_master_asr.processing_master_asr import check_audio, decode_audio
from training.loop.data import Clip, Collator, Features, bucket_of_step
from training.loop.metrics import error_rates, evaluate_clips, macro
from training.loop.optim import Turns, TurnsOptimizer, tri_stage
from training.loop.text import normalize


class StepBatches(Dataset):
    """Item i is the i-th batch of the run, as in the scripts; several processes and accumulation take several a step."""

    def __init__(self, clips: list[Clip], batch_s: float, seed: int, num_batches: int):
        self.batch_of, self.num_batches = bucket_of_step(clips, batch_s, seed), num_batches

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> tuple[int, list[Clip]]:
        return index, self.batch_of(index)


class _Begin(TrainerCallback):
    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        getattr(optimizer, "optimizer", optimizer).begin()


class MasterASRTrainer(Trainer):
    """Trains with the paper's turns.

    Args:
        model: a `MasterASRForCTC`; for stage 2 after `add_language` and `freeze_except`.
        args: `max_steps` is the number of steps. Batches hold `batch_s` seconds, so the batch size is set to 1 batch, and
            gradients are clipped by `turns`.
        clips, validation: training and validation clips (`training.loop.data`).
        turns: the optimizer and its schedule (`training.loop.optim.Turns`), made for `args.max_steps` steps; in stage 2 the script's has
            `mapping_gradient="last"`.
        batch_s: seconds of audio a batch, padding included.
        full_augment_step: see `training.loop.data.Collator`.

    Raises:
        ValueError: if `max_steps` is not set.
    """

    def __init__(
        self, model, args: TrainingArguments, processor, clips: list[Clip], validation: list[Clip], turns: Turns,
        batch_s: float = 24.0, full_augment_step: Optional[int] = None, **kwargs,
    ):  # fmt: skip
        if args.max_steps <= 0:
            raise ValueError(f"MasterASRTrainer counts steps, not epochs: set TrainingArguments(max_steps=...); got {args.max_steps}.")
        args.per_device_train_batch_size, args.max_grad_norm = 1, 0.0
        args.remove_unused_columns = False
        args.ddp_find_unused_parameters = True  # processes train different languages in the same step
        self.turns, self.features, self.validation = turns, Features(processor), validation
        self.batch_s = batch_s
        collator = Collator(self.features, processor, full_augment_step, seed=args.seed, spares=clips)
        batches = StepBatches(clips, batch_s, args.seed, args.max_steps * args.gradient_accumulation_steps * args.world_size)
        super().__init__(
            model, args, train_dataset=batches, eval_dataset=validation, processing_class=processor,
            data_collator=lambda items: collator(items[0][1], items[0][0]), **kwargs,
        )  # fmt: skip
        self.add_callback(_Begin())

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            self.optimizer = TurnsOptimizer(self.turns)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """What is logged as the learning rate; `Turns.begin` sets the same values."""
        if self.lr_scheduler is None:
            total, groups = self.turns.num_steps, self.optimizer.param_groups
            slow = len(self.turns.optimizer.param_groups)
            factors = [(lambda step: tri_stage(step, total)) if i < slow else (lambda step: 1.0) for i in range(len(groups))]
            self.lr_scheduler = LambdaLR(self.optimizer, factors)
        return self.lr_scheduler

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """CER and WER in %, per language and macro; `metric_for_best_model="eval_cer"` picks by the macro CER."""
        rates = evaluate_clips(self.model, self.processing_class, self.features, eval_dataset or self.validation, self.accelerator)
        metrics = {f"{metric_key_prefix}_{name}": rates["macro"][name] for name in ("cer", "wer")}
        metrics |= {f"{metric_key_prefix}_cer_{code}": rate["cer"] for code, rate in rates["languages"].items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class ClipCollator:
    """A plain Trainer's `data_collator`: `{"audio": path or samples, "text", "language"}` -> a batch.

    Args:
        processor: a `MasterASRProcessor`.
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, examples: list[dict]) -> dict:
        rate_hz = self.processor.sampling_rate_hz
        clips = []
        for example in examples:
            audio = example["audio"]
            samples = decode_audio(audio, rate_hz) if isinstance(audio, (str, bytes)) else audio
            clips.append(self.processor.features(check_audio(samples, None, rate_hz)))
        languages = [example["language"] for example in examples]
        labels = self.processor.encode([normalize(example["text"]) for example in examples], languages)
        return {**self.processor.pad(clips), "labels": labels, "language": languages}


def greedy_ids(outputs, labels) -> tuple[torch.Tensor, torch.Tensor]:
    """A plain Trainer's `preprocess_logits_for_metrics`: ids of the best tokens, so that no logits are kept, and true lengths."""
    logits, frames = outputs[0], outputs[-1]
    return logits.argmax(-1), frames


def ctc_metrics(processor, language: Union[str, list[str]]):
    """A plain Trainer's `compute_metrics`: CER and WER in %, each clip in its own alphabet.

    Args:
        language: of all clips, or one for each clip of the evaluation set, in its order.
    """

    def compute(prediction) -> dict[str, float]:
        ids, frames = prediction.predictions
        codes = [language] * len(ids) if isinstance(language, str) else list(language)
        heard = processor.batch_decode(ids, codes, frames=frames)
        said = [spell(processor, row, code) for row, code in zip(prediction.label_ids, codes)]
        rates = {}
        for code in dict.fromkeys(codes):
            of_code = [i for i, c in enumerate(codes) if c == code]
            rates[code] = error_rates([heard[i] for i in of_code], [said[i] for i in of_code])
        whole = macro(rates)
        return {"cer": whole["cer"], "wer": whole["wer"], **{f"cer_{code}": rate["cer"] for code, rate in rates.items()}}

    return compute


def spell(processor, label_ids: np.ndarray, language: str) -> str:
    """The text of label ids, repeats kept."""
    token_of = {i: token for token, i in processor.vocabs[language].items()}
    return "".join(token_of[int(i)] for i in label_ids if i >= 0).replace("|", " ")
