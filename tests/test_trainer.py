"""Trainer and the Accelerate scripts are the same training; a plain Trainer adds a language."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import tiny_model, vocab
from test_training import corpus  # noqa: F401  the fixture
from transformers import Trainer, TrainingArguments

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.configuration_master_asr import ALL_PARTS
from modeling_master_asr.trainer_utils import ClipCollator, ctc_metrics, greedy_ids
from training.loop.config import LoopConfig
from training.loop.data import Features, select
from training.loop.metrics import evaluate_clips
from training.loop.optim import Turns, TurnsOptimizer
from training.loop.sources import Clip, read_manifest
from training.loop.steps import Run, train
from training.loop.trainer import MasterASRTrainer

ROOT = Path(__file__).parent.parent
STEPS = 8
VOCABS = {"en": vocab("ab"), "fr": vocab("aé")}
ES = vocab("anñ")


def fresh(stage: int):
    model = tiny_model(vocabs=VOCABS)
    if stage == 2:
        torch.manual_seed(1)
        model.add_language("es", ES, parts=("mapping", "head", "delta"), rank=2)
        model.freeze_except("es")
    processor = MasterASRProcessor.from_model(model)
    rates = {"W": 1e-3, "M": 1e-3, "T": 1e-3, "head": 1e-2, "delta": 1e-2}
    script = {"gamma": 3} if stage == 1 else {"gamma": 0, "mapping_gradient": "last", "mapping_decay": True, "mapping_rest": 0.3}
    return model, processor, Turns(model, alpha=10, beta=2, learning_rates=rates, num_steps=STEPS, **script)


def clips_of(corpus, stage, split):  # noqa: F811
    return select(read_manifest(corpus / "manifest.jsonl"), split, ["en", "fr"] if stage == 1 else ["es"])


def arguments(folder, **changes):
    settings = dict(output_dir=str(folder), max_steps=STEPS, logging_steps=1, report_to=[], use_cpu=True, seed=0, save_strategy="no",
                    disable_tqdm=True, dataloader_pin_memory=False)  # fmt: skip
    return TrainingArguments(**{**settings, **changes})


def by_trainer(corpus, stage, folder, resume=None, **changes):  # noqa: F811
    model, processor, turns = fresh(stage)
    trainer = MasterASRTrainer(
        model, arguments(folder, **changes), processor, clips_of(corpus, stage, "train"), clips_of(corpus, stage, "validation"),
        turns, batch_s=3.0, full_augment_step=STEPS // 4,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return model, trainer


@pytest.mark.parametrize("stage", [1, 2])
def test_trainer_and_accelerate_give_equal_losses_and_weights_step_by_step(corpus, tmp_path, stage):  # noqa: F811
    model, processor, turns = fresh(stage)
    losses = []
    model.register_forward_hook(lambda m, i, o: losses.append(float(o.loss.detach())) if m.training and o.loss is not None else None)
    config = LoopConfig(out=tmp_path / "a", data=["manifest.jsonl"], steps=STEPS, evaluate_every=100, batch_s=3.0)
    train(Accelerator(cpu=True), model, processor, Features(processor), turns, clips_of(corpus, stage, "train"),
          clips_of(corpus, stage, "validation"), config, stage="stage1")  # fmt: skip
    other, trainer = by_trainer(corpus, stage, tmp_path / "t")
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == len(logged) == STEPS
    assert logged == pytest.approx(losses, abs=1e-4)  # Trainer rounds what it logs
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values()):
        assert torch.equal(a, b), name


def test_a_trainer_names_steps_without_finite_gradients_and_stops_when_they_are_many(corpus, tmp_path, caplog):  # noqa: F811
    model, processor, turns = fresh(1)
    broken = next(p for group in turns.optimizer.param_groups for p in group["params"])
    broken.register_hook(lambda gradient: gradient * float("nan"))
    turns.num_steps = 30
    trainer = MasterASRTrainer(model, arguments(tmp_path, max_steps=30), processor, clips_of(corpus, 1, "train"), clips_of(corpus, 1, "validation"), turns, batch_s=3.0)
    with pytest.raises(FloatingPointError, match=r"11 steps had gradients that are not finite \(allowed: 10\)"):
        trainer.train()
    assert sum("gradients are NaN or infinite, skipped" in record.getMessage() for record in caplog.records) == 10


@pytest.mark.parametrize("metric, falls", [("eval_cer", True), ("wer", True), ("eval_cer_es", True), ("eval_loss", True), ("eval_reward", False)])
def test_the_best_of_error_rates_is_the_lowest(corpus, tmp_path, metric, falls):  # noqa: F811
    model, processor, turns = fresh(2)
    args = arguments(tmp_path, metric_for_best_model=metric, load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps", eval_steps=2, save_steps=2)
    trainer = MasterASRTrainer(model, args, processor, clips_of(corpus, 2, "train"), clips_of(corpus, 2, "validation"), turns, batch_s=3.0)
    assert trainer.args.greater_is_better is not falls


def test_trainer_gives_back_the_weights_of_the_lowest_error_rate_and_whatever_it_froze(corpus, tmp_path, monkeypatch):  # noqa: F811
    model, processor, turns = fresh(2)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    args = arguments(tmp_path, metric_for_best_model="eval_cer", load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps", eval_steps=2, save_steps=2)
    trainer = MasterASRTrainer(model, args, processor, clips_of(corpus, 2, "train"), clips_of(corpus, 2, "validation"), turns, batch_s=3.0)
    rates = iter([90.0, 20.0, 50.0, 60.0])
    monkeypatch.setattr("training.loop.trainer.evaluate_clips", lambda *_, **__: {"macro": {"cer": next(rates), "wer": 1.0}, "languages": {}})
    trainer.train()
    assert trainer.state.best_metric == 20.0 and trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    monkeypatch.setattr(turns, "step", lambda step: (_ for _ in ()).throw(KeyboardInterrupt))  # a notebook's stop button
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trains


def test_trainer_and_accelerate_hear_the_same_augmented_batches(corpus, tmp_path):  # noqa: F811
    model = tiny_model("whisper", vocabs=VOCABS)
    processor = MasterASRProcessor.from_model(model)
    clips = clips_of(corpus, 1, "train")
    turns = Turns(model, alpha=10, beta=2, gamma=0, learning_rates=dict.fromkeys(("W", "M", "T", "head"), 1e-3), num_steps=STEPS)
    config = LoopConfig(out=tmp_path, data=["manifest.jsonl"], steps=STEPS, evaluate_every=100, batch_s=3.0, spec_masks=3, vtlp=0.9)
    batches = Run(Accelerator(cpu=True), model, processor, Features(processor), turns, clips, [], config).batches(0)
    trainer = MasterASRTrainer(
        model, arguments(tmp_path), processor, clips, [], turns, batch_s=3.0, full_augment_step=STEPS // 4, spec_masks=3, vtlp=0.9
    )  # fmt: skip
    for (_, scripts), trainers in zip(batches, trainer.get_train_dataloader(), strict=True):
        assert torch.equal(scripts["input_features"], trainers["input_features"]) and torch.equal(scripts["labels"], trainers["labels"])


@pytest.mark.parametrize("stage", [1, 2])
def test_the_schedule_that_trainer_logs_is_the_one_that_trains(stage, tmp_path):
    model, processor, turns = fresh(stage)
    clip = Clip(audio=tmp_path / "a.wav", language="es", text="a", duration_s=1.0, split="train")
    trainer = MasterASRTrainer(model, arguments(tmp_path), processor, [clip], [clip], turns)
    trainer.create_optimizer_and_scheduler(STEPS)
    for step in range(STEPS):
        logged = trainer.lr_scheduler.get_last_lr()
        turns.begin(step)
        assert logged == pytest.approx(list(turns.learning_rates().values())), f"step {step}"
        trainer.optimizer.step(), trainer.lr_scheduler.step()


def test_a_resumed_trainer_ends_as_an_uninterrupted_one(corpus, tmp_path):  # noqa: F811
    whole, _ = by_trainer(corpus, 1, tmp_path / "whole", save_strategy="steps", save_steps=5)
    resumed, _ = by_trainer(corpus, 1, tmp_path / "resumed", resume=str(tmp_path / "whole/checkpoint-5"))
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name
    code = {path.name for path in (tmp_path / "whole/checkpoint-5").glob("*_master_asr.py")}
    rooms = {path.name for path in (ROOT / "modeling_master_asr").glob("*_master_asr.py")}
    assert code == rooms  # a Trainer checkpoint is a complete folder for trust_remote_code


def test_trainer_validates_greedily_as_the_scripts_do(corpus, tmp_path):  # noqa: F811
    model, trainer = by_trainer(corpus, 2, tmp_path)
    clips = clips_of(corpus, 2, "validation")
    model.set_text("es", [clip.text for clip in clips])
    greedy, read = (evaluate_clips(model, trainer.processing_class, trainer.features, clips, greedy=of)["macro"]["cer"] for of in (True, False))
    assert trainer.evaluate()["eval_cer"] == greedy != read


def test_steps_have_to_be_counted(corpus, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="counts steps, not epochs"):
        by_trainer(corpus, 1, tmp_path, max_steps=-1, num_train_epochs=1)


def test_turns_are_made_for_the_steps_that_train_and_end_with_them(corpus, tmp_path):  # noqa: F811
    model, processor, turns = fresh(1)
    with pytest.raises(ValueError, match=rf"turns: got Turns\(num_steps={STEPS}\); allowed: 3, as max_steps"):
        MasterASRTrainer(model, arguments(tmp_path, max_steps=3), processor, clips_of(corpus, 1, "train"), [], turns)
    model, trainer = by_trainer(corpus, 1, tmp_path)
    assert all(p.requires_grad for p in (*trainer.turns.masked, *trainer.turns.specialists, *trainer.turns.mappings))
    with pytest.raises(NotImplementedError, match="scores clips: evaluate"):
        trainer.predict([])


def test_steps_that_a_trainer_skipped_are_counted_over_its_checkpoints():
    optimizer = TurnsOptimizer(fresh(1)[2])
    optimizer.skipped = 9
    again = TurnsOptimizer(fresh(1)[2])
    again.load_state_dict(optimizer.state_dict())
    assert again.skipped == 9


def plain_trainer(model, processor, corpus, folder, **changes):  # noqa: F811
    examples = {split: [{"audio": str(clip.audio), "text": clip.text, "language": "es"} for clip in clips_of(corpus, 2, split)]
                for split in ("train", "validation")}  # fmt: skip
    settings = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "remove_unused_columns": False, **changes}
    return Trainer(
        model=model, args=arguments(folder, **settings), train_dataset=examples["train"], eval_dataset=examples["validation"],
        data_collator=ClipCollator(processor), compute_metrics=ctc_metrics(processor, "es"), preprocess_logits_for_metrics=greedy_ids,
        processing_class=processor,
    )  # fmt: skip


def test_a_plain_trainer_adds_a_language_and_keeps_the_best_checkpoint(corpus, tmp_path):  # noqa: F811
    model, processor, _ = fresh(2)
    before = {name: p.clone() for name, p in model.state_dict().items() if "lang_es" not in name}
    trainer = plain_trainer(
        model, processor, corpus, tmp_path, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_cer", greater_is_better=False,
    )  # fmt: skip
    trainer.train()
    cers = [entry["eval_cer"] for entry in trainer.state.log_history if "eval_cer" in entry]
    assert len(cers) == 4 and trainer.state.best_metric == min(cers)
    assert trainer.evaluate()["eval_cer"] == pytest.approx(min(cers))
    assert all(torch.equal(p, model.state_dict()[name]) for name, p in before.items())
    again = MasterASRForCTC.from_pretrained(trainer.state.best_model_checkpoint)
    assert again.languages == ["en", "fr", "es"]


RESTLESS = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "layerdrop": 0.1, "mask_time_prob": 0.2, "mask_time_length": 2}
PARTS = [("mapping", "head", "specialist"), pytest.param(ALL_PARTS, marks=pytest.mark.slow)]


def spanish_on_a_saved_base(tmp_path, parts):
    """A model as README's recipe makes it, on a base whose training is random (dropout, SpecAugment)."""
    if not (tmp_path / "base").exists():
        tiny_model(vocabs=VOCABS, **RESTLESS).save_pretrained(tmp_path / "base")
    model = MasterASRForCTC.from_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    model.add_language("es", ES, parts=parts, rank=2)
    model.freeze_except("es")
    return model, MasterASRProcessor.from_model(model)


def heard(model, trainer):
    """CER, and the logits of the validation clips one batch, with the weights of another language in between."""
    cer = trainer.evaluate()["eval_cer"]
    batch = trainer.data_collator(list(trainer.eval_dataset))
    with torch.no_grad():
        model.eval()(**{**batch, "language": "fr", "labels": None})
        return cer, model(**batch).logits


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("keeps_best", [False, True])
def test_a_plain_trainers_assembly_hears_the_same_in_memory_and_out_of_its_file(corpus, tmp_path, parts, keeps_best):  # noqa: F811
    model, processor = spanish_on_a_saved_base(tmp_path, parts)
    changes = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3, "load_best_model_at_end": True,
               "metric_for_best_model": "eval_cer", "greater_is_better": False} if keeps_best else {}  # fmt: skip
    trainer = plain_trainer(model, processor, corpus, tmp_path / "run", **changes)
    before = model.assemblies["es"].state_dict()["mapping"].clone()
    trainer.train()
    assert not torch.equal(before, model.assemblies["es"].mapping)
    cer, logits = heard(model, trainer)
    model.save_assembly("es", tmp_path / "assembly")
    model.save_pretrained(tmp_path / "whole")
    assert torch.equal(heard(model, trainer)[1], logits)
    for again in (MasterASRForCTC.from_pretrained(tmp_path / "base", assemblies=[tmp_path / "assembly"]), MasterASRForCTC.from_pretrained(tmp_path / "whole")):
        assert all(torch.equal(a, b) for a, b in zip(model.assemblies["es"].state_dict().values(), again.assemblies["es"].state_dict().values()))
        other = plain_trainer(again, processor, corpus, tmp_path / "again")
        found_cer, found = heard(again, other)
        assert found_cer == cer and torch.equal(found, logits)


@pytest.mark.parametrize("parts", PARTS)
def test_a_resumed_plain_trainer_ends_as_an_uninterrupted_one(corpus, tmp_path, parts):  # noqa: F811
    ends = []
    for resume in (None, str(tmp_path / "whole/checkpoint-3")):
        model, processor = spanish_on_a_saved_base(tmp_path, parts)
        trainer = plain_trainer(model, processor, corpus, tmp_path / ("resumed" if resume else "whole"), save_strategy="steps", save_steps=3,
                                eval_strategy="steps", eval_steps=2)  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        ends.append((model.state_dict(), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
    assert ends[0][1] == ends[1][1] and len(ends[0][1]) == STEPS
    for name, value in ends[0][0].items():
        assert torch.equal(value, ends[1][0][name]), name


def test_small_batches_accumulated_are_one_big_batch(corpus, tmp_path):  # noqa: F811
    ends = []
    for size, accumulation in ((6, 1), (2, 3)):
        model, processor, _ = fresh(2)
        trainer = plain_trainer(model, processor, corpus, tmp_path / str(size), per_device_train_batch_size=size, max_steps=3,
                                gradient_accumulation_steps=accumulation, optim="sgd")  # fmt: skip
        trainer.train()
        ends.append(([e["loss"] for e in trainer.state.log_history if "loss" in e], model.assemblies["es"].state_dict()))
    assert ends[0][0] == pytest.approx(ends[1][0], abs=2e-3)
    for name, value in ends[0][1].items():
        torch.testing.assert_close(value, ends[1][1][name], atol=1e-4, rtol=1e-4)


def test_rates_are_counted_in_each_clips_own_alphabet():
    processor = MasterASRProcessor.from_model(tiny_model(vocabs=VOCABS))
    ids = np.array([[3, 0, 4, -100], [3, 4, 4, 3]])  # Trainer fills what is missing of shorter batches with -100
    labels = np.array([[3, 4], [3, 4]])
    rates = ctc_metrics(processor, ["en", "fr"])(SimpleNamespace(predictions=ids, label_ids=labels))
    assert (rates["cer_en"], rates["cer_fr"], rates["cer"]) == (0, 50, 25)  # "aéa" for "aé"
    for logits in (np.zeros((2, 5, 7)), (np.zeros((2, 5, 7)), np.zeros((2, 5, 16)))):  # beside hidden states
        with pytest.raises(ValueError, match="got logits in the place of ids. Give the Trainer preprocess_logits_for_metrics=greedy_ids"):
            ctc_metrics(processor, ["en", "fr"])(SimpleNamespace(predictions=logits, label_ids=labels))


def test_the_readmes_trainer_runs_as_printed(tmp_path, monkeypatch):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    code = page.partition("<!-- trainer -->\n```python\n")[2].partition("```\n<!-- /trainer -->")[0]
    assert 0 < len([line for line in code.splitlines() if line.strip()]) <= 30
    for name in ("checkpoints", "demo"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    short = {"max_steps=200": "max_steps=2", "_steps=100": "_steps=1", 'c.split == s]': 'c.split == s][:4]'}
    for long, brief in short.items():
        assert long in code
        code = code.replace(long, brief)
    exec(compile(code, "README.md", "exec"), {})
    model = MasterASRForCTC.from_pretrained("checkpoints/master-asr-whisper-base", assemblies=["runs/es-trainer/assembly"])
    assert "es" in model.languages


def test_labels_of_another_languages_alphabet_say_that_the_order_is_not_the_one_given():
    processor = MasterASRProcessor.from_model(tiny_model(vocabs={"en": vocab("abcde"), "fr": vocab("a")}))
    outputs = SimpleNamespace(predictions=np.zeros((2, 5), dtype=int), label_ids=np.array([[3, -100], [6, 7]]))
    with pytest.raises(ValueError, match=r"Labels hold \[6, 7\], and 'fr' has 4 tokens.*group_by_length"):
        ctc_metrics(processor, ["en", "fr"])(outputs)


def test_trainers_rates_are_those_of_evaluation_on_the_same_best_tokens():
    model = tiny_model()
    processor, vocab = MasterASRProcessor.from_model(model), model.config.vocab("en")
    a, space, blank = vocab["a"], vocab["|"], vocab["[PAD]"]
    paths = [[a, space, blank, space, a], [a, *[blank] * 60, a]]  # a space said twice; a pause of more than a second
    ids = np.full((2, 62), blank)
    for row, path in zip(ids, paths):
        row[: len(path)] = path
    said = SimpleNamespace(predictions=ids, label_ids=np.array([[a, space, a]] * 2))
    assert ctc_metrics(processor, "en")(said)["wer"] == 0.0
    logits = torch.nn.functional.one_hot(torch.tensor(ids), len(vocab)).float()
    heard = processor.batch_decode(model.paths(logits, "en", [5, 62]), "en", frames=[5, 62], skip_special_tokens=True)
    assert [" ".join(text.split()) for text in heard] == ["a a", "a a"]


@pytest.mark.parametrize("codes", [["en"], ["en", "fr", "en"], []])
def test_another_number_of_languages_than_of_clips_is_refused(codes):
    """As where Trainer reads an entry of a dict of evaluation sets, or predicts another set."""
    processor = MasterASRProcessor.from_model(tiny_model(vocabs=VOCABS))
    prediction = SimpleNamespace(predictions=np.array([[3, 0, 4]] * 2), label_ids=np.array([[3, 4]] * 2))
    with pytest.raises(ValueError, match=rf"language has {len(codes)} codes for 2 clips; pass one code, or one for each clip of the set.*trainer.compute_metrics = ctc_metrics"):
        ctc_metrics(processor, codes)(prediction)
