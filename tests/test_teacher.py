"""A teacher, of which all matrices train, gives its letters to what a language owns, and leaves nothing else behind."""

import itertools
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import VOCABS, terminated_at, tiny_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_runs import base, run_stage_2  # noqa: F401  the fixture
from test_training import corpus, run_stage_1  # noqa: F401  the fixture

from modeling_master_asr import MasterASRForCTC
from training.adapt_language import AdaptConfig
from training.loop import checkpoints, steps
from training.loop.optim import Turns
from training.loop.stopping import StopRequest, minutes_left
from training.loop.teacher import divergence

OPTIONS = ("--teacher_steps", "5", "--parts", "mapping", "head", "delta")


def batch_of(language="fr"):
    torch.manual_seed(0)
    attention_mask = torch.ones(2, 1600, dtype=torch.long)
    attention_mask[1, 800:] = 0
    return {
        "input_values": torch.randn(2, 1600) * attention_mask, "attention_mask": attention_mask, "language": [language] * 2,
        "labels": torch.tensor([[3, 4, 3], [4, -100, -100]]),
    }  # fmt: skip


def test_the_divergence_is_kl_of_the_frames_of_speech_a_letter_of_the_labels():
    teacher, batch = tiny_model().eval(), batch_of()
    with torch.no_grad():
        theirs = teacher(**batch)
    logits = torch.randn_like(theirs.logits).requires_grad_()
    classes = len(VOCABS["fr"])  # fewer than the widest alphabet: what is past them is -inf
    assert theirs.logits.shape[-1] > classes and theirs.frames[1] < theirs.frames[0]
    loss = divergence(teacher, batch, logits, theirs.frames)
    wanted = 0.0
    for clip, count in enumerate(theirs.frames):
        p, q = (x[clip, :count, :classes].softmax(-1) for x in (theirs.logits, logits.detach()))
        wanted += float((p * (p.log() - q.log())).sum())
    assert float(loss.detach()) == pytest.approx(wanted / 4, rel=1e-4)  # four letters
    loss.backward()
    assert logits.grad[1, theirs.frames[1] :].count_nonzero() == 0 and logits.grad[1, : theirs.frames[1], :classes].count_nonzero() > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert float(divergence(teacher, batch, theirs.logits, theirs.frames)) == 0.0


def test_what_trains_beside_a_teacher_is_ctcs_loss_plus_the_divergence_and_without_one_ctcs_alone():
    teacher, model, batch = tiny_model().eval(), tiny_model().train(), batch_of()
    with torch.no_grad():
        model.master_asr.character_bank.weight.mul_(2.0)  # reads otherwise than the teacher

    def gradient(loss):
        assert float(loss.detach()) > 0.0
        return torch.autograd.grad(loss, model.master_asr.character_bank.weight)[0]

    outputs = model(**batch)
    apart = [gradient(loss) for loss in (model(**batch).loss, divergence(teacher, batch, outputs.logits, outputs.frames))]
    assert not any(torch.allclose(part, sum(apart), rtol=1e-2) for part in apart)
    for taught_by, wanted in ((teacher, sum(apart)), (None, apart[0])):
        run = SimpleNamespace(teacher=taught_by, accelerator=SimpleNamespace(autocast=nullcontext))
        torch.testing.assert_close(gradient(steps.Run.loss(run, model, batch)), wanted, msg=lambda m, t=taught_by: f"teacher: {t is not None}: {m}")


def test_a_taught_language_is_another_assembly_of_the_same_size_on_the_same_base(corpus, base, tmp_path):  # noqa: F811
    alone, taught = (run_stage_2(corpus, base, tmp_path / name, *options) for name, options in (("alone", OPTIONS[2:]), ("taught", OPTIONS)))
    assert taught["base"] == taught["base_after"] == alone["base"] and taught["kilobytes"] == alone["kilobytes"]
    assert set(taught["teacher_log"]["validation"]) == {"2", "4", "5"} and taught["teacher_test"]["macro"] and "teacher_test" not in alone
    before = MasterASRForCTC.from_pretrained(base)
    one, other = (MasterASRForCTC.from_pretrained(base, assemblies=[str(tmp_path / name / "assembly")]) for name in ("alone", "taught"))
    assert not torch.equal(one.assemblies["es"].head.weight, other.assemblies["es"].head.weight)
    for name, value in before.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    teacher = torch.load(tmp_path / "taught/teacher/checkpoint-00000005/model.pt", weights_only=True)
    moved = {name for name, value in before.state_dict().items() if not torch.equal(value, teacher[name])}
    matrices = {name for name, module in before.named_modules() if module in before.master_asr.layout.linear}
    assert moved == {f"{name}.weight" for name in matrices}
    ups = [value for name, value in teacher.items() if "lang_es.delta.up." in name]
    assert ups and not any(value.count_nonzero() for value in ups)  # the change is in the matrices themselves


@pytest.mark.parametrize("stopped_at", [("teacher", 5, 3), ("", 4, 2)])
def test_a_taught_run_goes_on_where_it_stopped_bit_for_bit(corpus, base, tmp_path, monkeypatch, stopped_at):  # noqa: F811
    folder, num_steps, at = stopped_at
    whole = run_stage_2(corpus, base, tmp_path / "whole", *OPTIONS)
    with terminated_at(at, num_steps=num_steps):
        run_stage_2(corpus, base, tmp_path / "cut", *OPTIONS)
    assert checkpoints.listed(tmp_path / "cut" / folder)[-1].name == checkpoints.name_of(at + 1)
    with pytest.raises(FileExistsError, match="holds a run already: .*'teacher'"):
        run_stage_2(corpus, base, tmp_path / "cut", *OPTIONS)
    again, begin = [], Turns.begin
    monkeypatch.setattr(Turns, "begin", lambda self, step: (again.append((self.num_steps, step)), begin(self, step)))
    resumed = run_stage_2(corpus, base, tmp_path / "cut", *OPTIONS, "--resume")
    assert again == [(5, step) for step in range(at + 1, 5) if folder] + [(4, step) for step in range(0 if folder else at + 1, 4)]
    for name in ("test", "log", "teacher_test", "teacher_log"):
        assert whole[name] == resumed[name]
    one, other = (MasterASRForCTC.from_pretrained(base, assemblies=[str(tmp_path / name / "assembly")]) for name in ("whole", "cut"))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_the_language_learns_from_a_teacher_that_stays_as_it_is(corpus, base, tmp_path, monkeypatch):  # noqa: F811
    seen, plain = [], steps.divergence

    def spied(teacher, batch, logits, frames):
        assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
        seen.append(teacher.master_asr.base_fingerprint())
        loss = plain(teacher, batch, logits, frames)
        assert loss.requires_grad
        return loss

    monkeypatch.setattr(steps, "divergence", spied)
    result = run_stage_2(corpus, base, tmp_path, *OPTIONS)
    assert len(seen) == 4 and len(set(seen)) == 1 and seen[0][:12] != result["base"]  # in each of the language's steps, in none of its own


def test_a_teachers_broken_checkpoint_is_named_and_the_run_goes_on_without_it(corpus, base, tmp_path, monkeypatch):  # noqa: F811
    whole = run_stage_2(corpus, base, tmp_path / "whole", *OPTIONS)
    begin = Turns.begin
    with monkeypatch.context() as patch:
        patch.setattr(Turns, "begin", lambda self, step: 1 / 0 if self.num_steps == 4 else begin(self, step))
        with pytest.raises(ZeroDivisionError):
            run_stage_2(corpus, base, tmp_path / "cut", *OPTIONS)
    broken = checkpoints.listed(tmp_path / "cut/teacher")[-1]
    (broken / "model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=f"{broken} is damaged: .* checkpoint-00000004, is whole: delete this one and --resume"):
        run_stage_2(corpus, base, tmp_path / "cut", *OPTIONS, "--resume")
    shutil.rmtree(broken)
    resumed = run_stage_2(corpus, base, tmp_path / "cut", *OPTIONS, "--resume")
    assert resumed["teacher_log"] == whole["teacher_log"] and resumed["log"] == whole["log"]


def test_a_run_that_began_with_a_teacher_does_not_go_on_without_it(corpus, base, tmp_path, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        patch.setattr("training.adapt_language.tested", lambda *args, **named: 1 / 0)  # between the teacher and the language
        with pytest.raises(ZeroDivisionError):
            run_stage_2(corpus, base, tmp_path, *OPTIONS)
    with pytest.raises(ValueError, match="--teacher_steps: got 0; .*checkpoint-00000005 is of a run that began with a teacher. Pass the steps of then"):
        run_stage_2(corpus, base, tmp_path, *OPTIONS[2:], "--resume")
    with pytest.raises(ValueError, match="teacher_steps: 5 then, 7 now"):
        run_stage_2(corpus, base, tmp_path, "--teacher_steps", "7", *OPTIONS[2:], "--resume")


def test_the_steps_of_teacher_language_and_finetuning_grow_each_in_a_tracker_of_its_own(corpus, base, tmp_path):  # noqa: F811
    run_stage_2(corpus, base, tmp_path, *OPTIONS, "--finetune_steps", "3")
    seen = {}
    for path in tmp_path.rglob("events.out*"):
        seen.setdefault(path.parent.name, []).extend(event.step for event in EventAccumulator(str(path)).Reload().Scalars("cer/macro"))
    assert seen == {"stage2-teacher": [2, 4, 5], "stage2": [2, 4], "stage2-finetune": [2, 3]}


def test_the_minutes_are_those_of_the_whole_run(corpus, base, tmp_path, monkeypatch):  # noqa: F811
    clock, given = itertools.count(7.0, 7.0), []

    def minutes_left_at(now_s, config, started_s):
        monkeypatch.setattr("training.loop.stopping.time", SimpleNamespace(monotonic=lambda: now_s))
        return minutes_left(config, started_s)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "StopRequest", lambda accelerator, max_minutes: given.append(max_minutes) or StopRequest(accelerator, None))
        for module in ("training.adapt_language", "training.train_multilingual"):
            patch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: 130.0))
            patch.setattr(f"{module}.minutes_left", lambda config, started_s: minutes_left_at(130.0 + next(clock), config, started_s))
        run_stage_2(corpus, base, tmp_path / "es", *OPTIONS, "--finetune_steps", "1", "--max_minutes", "2")
        assert given == pytest.approx([2 - 7 * n / 60 for n in (1, 2, 3)])  # teacher, language, finetuning: each what those before it left
        given.clear()
        clock = itertools.count(7.0, 7.0)
        run_stage_1(corpus, tmp_path / "stage1", "--steps", "1", "--max_minutes", "2")
        assert given == pytest.approx([2 - 7 / 60])  # what reading the data left
    config = AdaptConfig(model="m", data=["d"], language="es", out=tmp_path, max_minutes=2.0)
    monkeypatch.setattr("training.loop.stopping.time.monotonic", lambda: 130.0)
    assert minutes_left(config, 100.0) == 1.5 and 0 < minutes_left(config, 0.0) < 1e-6
    assert minutes_left(AdaptConfig(model="m", data=["d"], language="es", out=tmp_path), 100.0) is None


def test_a_run_that_began_without_a_teacher_trains_none_when_it_goes_on(corpus, base, tmp_path):  # noqa: F811
    run_stage_2(corpus, base, tmp_path)
    with pytest.raises(ValueError, match="made from other data or settings .teacher_steps: 0 then, 5 now"):
        run_stage_2(corpus, base, tmp_path, "--teacher_steps", "5", "--resume")
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize("change, words", [
    (lambda model: model.master_asr.backbone.encoder.layers[0].attention.v_proj.weight.data.mul_(2), "starting_base: '.*' then, '.*' now"),
    (lambda model: model.remove_language("fr"), r"model_languages: \['en', 'fr', 'es'\] then, \['en', 'es'\] now"),
])  # fmt: skip
def test_a_run_does_not_go_on_with_another_base(corpus, base, tmp_path, change, words):  # noqa: F811
    shutil.copytree(base, tmp_path / "base")
    run_stage_2(corpus, tmp_path / "base", tmp_path / "run")
    model = MasterASRForCTC.from_pretrained(tmp_path / "base")
    change(model)
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=f"made from other data or settings .*{words}"):
        run_stage_2(corpus, tmp_path / "base", tmp_path / "run", "--resume")
