"""MasterASRTrainer: both stages through `transformers.Trainer`, with the same batches, optimizer and turns as the scripts.

    trainer = MasterASRTrainer(model, args, processor=processor, clips=training, validation=validation, turns=turns, batch_s=24)
    trainer.train()

For a plain Trainer on a new language, `modeling_master_asr.trainer_utils` is all it takes: see the README.
"""

from __future__ import annotations

import re
from typing import Optional

from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from training.loop.data import Collator, Features, bucket_of_step
from training.loop.metrics import evaluate_clips
from training.loop.optim import Turns, TurnsOptimizer, tri_stage
from training.loop.sources import Clip

RATE = re.compile(r"(eval_)?[cw]er(_.*)?")  # of errors, as `evaluate` names them


class StepBatches(Dataset):
    """Item i is the i-th batch of the run, as in the scripts; several processes and accumulation take several a step."""

    def __init__(self, clips: list[Clip], batch_s: float, seed: int, num_batches: int, temperature: float):
        self.batch_of, self.num_batches = bucket_of_step(clips, batch_s, seed, temperature), num_batches

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
        clips, validation: training and validation clips (`training.loop.sources`).
        turns: the optimizer and its schedule (`training.loop.optim.Turns`), made for `args.max_steps` steps; in stage 2 the script's has
            `mapping_gradient="last", mapping_decay=True, mapping_rest=0.3, beta2=0.98`.
        batch_s: seconds of audio a batch, padding included.
        temperature: by which languages with few clips are drawn more often, as the scripts' `--temperature`.
        full_augment_step, spec_masks, vtlp: see `training.loop.data.Collator`; `None`, 1 and 0 are no augmentation; the scripts have a quarter of `args.max_steps`
            times the batches a step, and their `--spec_masks` and `--vtlp`.

    Raises:
        ValueError: if `max_steps` is not set, or is not the steps that `turns` were made for; for fp16, whose losses have to be scaled.
        FloatingPointError: in training, once too many steps had gradients that are not finite.
    """

    def __init__(
        self, model, args: TrainingArguments, processor, clips: list[Clip], validation: list[Clip], turns: Turns,
        batch_s: float = 24.0, temperature: float = 1.0, full_augment_step: Optional[int] = None, spec_masks: int = 1, vtlp: float = 0.0, **kwargs,
    ):  # fmt: skip
        if args.max_steps <= 0:
            raise ValueError(f"MasterASRTrainer counts steps, not epochs: set TrainingArguments(max_steps=...); got {args.max_steps}.")
        if args.fp16:
            raise ValueError("TrainingArguments: got fp16=True; allowed: bf16, or neither. W, M and T take turns, which the scaling of its losses knows nothing of.")
        if turns.num_steps != args.max_steps:
            raise ValueError(f"turns: got Turns(num_steps={turns.num_steps}); allowed: {args.max_steps}, as max_steps: warm-up, decay and T's rest are shares of them.")
        if RATE.fullmatch(args.metric_for_best_model or ""):
            args.greater_is_better = False  # Transformers takes every metric for one that grows, but for losses
        args.per_device_train_batch_size, args.max_grad_norm = 1, 0.0
        args.remove_unused_columns = False
        args.ddp_find_unused_parameters = True  # processes train different languages in the same step
        self.turns, self.features, self.validation = turns, Features(processor), validation
        collator = Collator(self.features, processor, full_augment_step, args.seed, clips, spec_masks, vtlp)
        batches = StepBatches(clips, batch_s, args.seed, args.max_steps * args.gradient_accumulation_steps * args.world_size, temperature)
        super().__init__(
            model, args, train_dataset=batches, eval_dataset=validation, processing_class=processor,
            data_collator=lambda items: collator(items[0][1], items[0][0]), **kwargs,
        )  # fmt: skip
        self.add_callback(_Begin())

    def train(self, *args, **kwargs):
        """As in Transformers; however it ends, all that trains collects gradients again."""
        with self.turns:
            return super().train(*args, **kwargs)

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
            falls = [i < slow or self.turns.mapping_decay for i in range(len(groups))]
            factors = [(lambda step: tri_stage(step, total)) if does else (lambda step: 1.0) for does in falls]
            self.lr_scheduler = LambdaLR(self.optimizer, factors)
        return self.lr_scheduler

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """CER and WER in %, per language and macro, read greedily as the scripts do while they train; `metric_for_best_model="eval_cer"` picks by the macro CER."""
        rates = evaluate_clips(self.model, self.processing_class, self.features, eval_dataset or self.validation, self.accelerator, greedy=True)
        metrics = {f"{metric_key_prefix}_{name}": rates["macro"][name] for name in ("cer", "wer")}
        metrics |= {f"{metric_key_prefix}_cer_{code}": rate["cer"] for code, rate in rates["languages"].items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *args, **kwargs):
        """Not of this trainer, which reads clips.

        Raises:
            NotImplementedError: naming what does.
        """
        raise NotImplementedError("A MasterASRTrainer scores clips: evaluate(clips). To read them: pipeline(\"automatic-speech-recognition\", ...), or training.transcribe.")
