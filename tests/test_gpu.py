"""What a CPU cannot show: the same laws on a CUDA device. Collected where there is one; conftest leaves the file out elsewhere."""

import copy
import json

import numpy as np
import pytest
import soundfile
import torch
from conftest import FAMILIES, inputs_for, tiny_model, vocab
from peft import PeftModel, get_peft_model
from test_training import a_process_of_its_own, corpus, run_stage_1  # noqa: F401  fixtures
from transformers import Trainer, TrainingArguments, pipeline

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr.artisan_master_asr import pack_mask, select_mask, unpack_mask
from modeling_master_asr.audio_master_asr import decode_audio
from modeling_master_asr.configuration_master_asr import ALL_PARTS
from modeling_master_asr.peft_assembly import AssemblyConfig
from training import adapt_language
from training.loop.sources import read_manifest

CHECKPOINT = "./checkpoints/master-asr-whisper-base"


def to_gpu(inputs: dict) -> dict:
    return {name: value.cuda() for name, value in inputs.items()}


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """cuDNN's convolutions round to TF32 unless told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("scores", [torch.randn(512, 512), torch.randn(33, 17), torch.zeros(33, 17), torch.arange(561.0).view(33, 17) // 7])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.97])
def test_a_mask_is_the_cpus_and_packed_alike(scores, sparsity):
    expected = select_mask(scores, sparsity)
    mask = select_mask(scores.cuda(), sparsity)
    assert torch.equal(mask.cpu(), expected)
    assert torch.equal(pack_mask(mask).cpu(), pack_mask(expected))
    assert torch.equal(unpack_mask(pack_mask(mask), mask.shape), mask)


def test_the_shipped_models_masks_and_texts_are_the_cpus_in_every_language():
    processor = MasterASRProcessor.from_pretrained(CHECKPOINT)
    model = MasterASRForCTC.from_pretrained(CHECKPOINT).eval()
    there, rate_hz = copy.deepcopy(model).cuda(), processor.sampling_rate_hz
    clips = read_manifest("demo/manifest.jsonl")
    for code in model.languages:
        assembled, other = model.master_asr.assembled(code), there.master_asr.assembled(code)
        for layer, same in zip(model.master_asr.artisan_layers, there.master_asr.artisan_layers):
            expected = assembled.parameter(layer, "weight")
            assert torch.equal(other.parameter(same, "weight").cpu(), expected)
            assert bool((expected == 0).any())
        for clip in [clip for clip in clips if clip.language == code and clip.split == "test"][:2]:
            features = processor(decode_audio(clip.audio, rate_hz), sampling_rate=rate_hz)
            logits = model(**features, language=code).logits
            on_gpu = there(**to_gpu(features), language=code).logits.cpu()
            assert torch.allclose(on_gpu, logits, atol=2e-3)
            assert torch.equal(on_gpu.argmax(-1), logits.argmax(-1))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_part_of_a_language_reads_there_as_on_the_cpu_and_as_materialized(family):
    model = tiny_model(family)
    model.add_language("es", vocab("abñ"), init="fr", parts=ALL_PARTS, targets="all")
    for parameter in model.assemblies["es"].parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    inputs = inputs_for(model)
    expected = model.eval()(**inputs, language="es").logits
    there, there_inputs = copy.deepcopy(model).cuda(), to_gpu(inputs)
    logits = there(**there_inputs, language="es").logits
    assert torch.allclose(logits.cpu(), expected, atol=1e-4)
    plain = there.materialize("es").requires_grad_(False)
    assert torch.allclose(plain(**there_inputs).logits, logits, atol=1e-5)
    assert torch.equal(there.cpu()(**inputs, language="es").logits, expected)  # nothing that was kept there is read here


@pytest.mark.parametrize("family", ["wav2vec2", "whisper"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_stage_2_leaves_every_other_tensor_and_language_bit_equal(family, dtype, tmp_path):
    tiny_model(family).save_pretrained(tmp_path / "base")
    model = MasterASRForCTC.from_pretrained(tmp_path / "base").cuda().eval()
    inputs = to_gpu(inputs_for(model))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = {code: model(**inputs, language=code).logits for code in model.languages}
    model.add_language("es", vocab("abñ"), init="fr", parts=ALL_PARTS, targets="all")
    model.freeze_except("es")
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    labels = torch.tensor([[3, 4], [5, 3]], device="cuda")
    losses = []
    for _ in range(10):
        with torch.autocast("cuda", dtype=dtype or torch.float32, enabled=dtype is not None):
            loss = model(**inputs, language="es", labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    model.eval()
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name
    with torch.no_grad():
        for code, logits in expected.items():
            assert torch.equal(model(**inputs, language=code).logits, logits), code
        learnt = model(**inputs, language="es").logits
        model.save_assembly("es", tmp_path / "es")
        elsewhere = MasterASRForCTC.from_pretrained(tmp_path / "base").eval()  # on the CPU
        elsewhere.load_assembly(tmp_path / "es")
        for name, value in model.assemblies["es"].state_dict().items():
            assert torch.equal(elsewhere.assemblies["es"].state_dict()[name], value.cpu()), name
        assert torch.allclose(elsewhere(**{k: v.cpu() for k, v in inputs.items()}, language="es").logits, learnt.cpu(), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_cpus_and_checkpointing_changes_none(family):
    model = tiny_model(family).train()
    inputs, labels = inputs_for(model), torch.tensor([[3, 4], [5, 3]])

    def gradients(model, inputs, labels) -> dict:
        model.zero_grad()
        model(**inputs, language=["en", "fr"], labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients(model, inputs, labels)
    there = copy.deepcopy(model).cuda()
    plain = gradients(there, to_gpu(inputs), labels.cuda())
    there.activation_checkpointing_enable()
    recomputed = gradients(there, to_gpu(inputs), labels.cuda())
    assert set(plain) == set(expected) == set(recomputed)
    for name, value in expected.items():
        scale = float(value.abs().max()) + 1e-6
        assert float((plain[name].cpu() - value).abs().max()) < 2e-3 * scale + 1e-6, name
        assert float((recomputed[name] - plain[name]).abs().max()) < 1e-4 * scale + 1e-6, name


def test_a_clip_of_a_mixed_batch_reads_as_alone(model):
    model.cuda()
    inputs = to_gpu(inputs_for(model, lengths=(4000, 3000, 2000)))
    with torch.no_grad():
        mixed = model(**inputs, language=["en", "ru", "fr"])
        for i, code in enumerate(["en", "ru", "fr"]):
            alone = model(**{name: value[i : i + 1] for name, value in inputs.items()}, language=code)
            frames = int(alone.frames[0])
            assert torch.allclose(mixed.logits[i, :frames, : alone.logits.shape[-1]], alone.logits[0, :frames], atol=1e-4)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_both_stages_train_there_and_are_read_on_the_cpu(corpus, tmp_path, precision, a_process_of_its_own):  # noqa: F811
    model = run_stage_1(corpus, tmp_path / "stage1", "--mixed_precision", precision)
    assert model.device.type == "cpu"
    adapt_language.main([
        "--model", str(tmp_path / "stage1/model"), "--data", str(corpus / "manifest.jsonl"), "--language", "es", "--out",
        str(tmp_path / "es"), "--steps", "4", "--evaluate_every", "2", "--preset", "best", "--mixed_precision", precision,
    ])  # fmt: skip
    result = json.loads((tmp_path / "es/run.json").read_text())
    assert result["base"] == result["base_after"] == model.master_asr.base_fingerprint()[:12]


def test_a_pipeline_there_gives_the_cpus_text_in_every_language(tmp_path):
    rng = np.random.default_rng(0)
    clips = []
    for i in range(3):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(16_000 + 4_000 * i), 16_000)
        clips.append(str(path))
    for code in ("en", "nl"):
        texts = []
        for device in ("cpu", "cuda:0"):
            asr = pipeline("automatic-speech-recognition", CHECKPOINT, trust_remote_code=True, device=device)
            assert str(asr.model.device) == device
            texts.append([out["text"] for out in asr(clips, batch_size=2, language=code)])
        assert texts[0] == texts[1]


def test_a_plain_trainer_teaches_a_language_there_and_saves_what_the_cpu_reads(model, tmp_path):
    model.add_language("es", vocab("abñ"), init="fr", preset="best")
    model.freeze_except("es")
    inputs = inputs_for(model)
    rows = [{**{name: value[i] for name, value in inputs.items()}, "labels": torch.tensor([3, 4 + i])} for i in range(2)] * 4

    def collate(items):
        return {**{name: torch.stack([item[name] for item in items]) for name in items[0]}, "language": ["es"] * len(items)}

    arguments = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2, report_to="none", remove_unused_columns=False,
        bf16=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    assert model.device.type == "cuda"
    trainer.save_model(tmp_path / "model")
    again = MasterASRForCTC.from_pretrained(tmp_path / "model")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.cpu()), name
    model.eval()
    with torch.no_grad():  # Trainer leaves its bf16 in the model's forward
        assert torch.allclose(again.eval()(**inputs, language="es").logits, model(**to_gpu(inputs), language="es").logits.cpu(), atol=1e-2)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@torch.no_grad()
def test_pefts_adapter_lies_where_its_encoder_does(tmp_path, device, low_cpu_mem_usage):
    """PEFT loads values to the GPU it sees, wherever the model is."""
    tiny_model().save_pretrained(tmp_path / "base")
    trained = get_peft_model(MasterASRForCTC.from_pretrained(tmp_path / "base"), AssemblyConfig(language="es", vocab=vocab("abñ"), preset="best")).eval()
    trained.save_pretrained(tmp_path / "peft")
    base = MasterASRForCTC.from_pretrained(tmp_path / "base").to(device)
    model = PeftModel.from_pretrained(base, tmp_path / "peft", low_cpu_mem_usage=low_cpu_mem_usage).eval()
    model.load_adapter(tmp_path / "peft", adapter_name="second", low_cpu_mem_usage=low_cpu_mem_usage)
    inputs = inputs_for(base)
    assert {parameter.device.type for parameter in model.parameters()} == {device}
    for name in ("default", "second"):
        model.set_adapter(name)
        found = model(**{name: value.to(device) for name, value in inputs.items()}).logits.cpu()
        assert torch.allclose(found, trained(**inputs).logits, atol=1e-4)


def test_a_compiled_encoder_switches_languages_there(model):
    model.cuda()
    inputs = to_gpu(inputs_for(model))
    with torch.no_grad():
        expected = {code: model(**inputs, language=code).logits for code in ("en", "ru")}
        compiled = torch.compile(model)
        for code, logits in [*expected.items(), *expected.items()]:
            assert torch.allclose(compiled(**inputs, language=code).logits, logits, atol=1e-4), code
