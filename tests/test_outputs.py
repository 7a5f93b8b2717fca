"""What a call returns is what the encoder's stock class returns, however the batch was grouped inside."""

import copy

import numpy as np
import pytest
import torch
from conftest import FAMILIES_AND_NORMS, TWO_FAMILIES, VOCABS, inputs_for, tiny_backbone_config, tiny_model
from torch.utils.data import Dataset
from transformers import AutoModel, AutoModelForCTC, Trainer, TrainingArguments
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor

ALL = {"output_hidden_states": True, "output_attentions": True}


def eager(family, **kwargs):
    model = tiny_model(family, **kwargs)
    model.set_attn_implementation("eager")  # the others keep no attentions
    return model


def one_by_one(model, inputs, codes, **kwargs):
    """Each clip alone and unpadded."""
    axis = model.master_asr.family.time_axis
    for i, code in enumerate(codes):
        length = int(inputs["attention_mask"][i].sum())
        clip = inputs[model.main_input_name][i : i + 1]
        yield model(**{model.main_input_name: clip.narrow(axis % clip.ndim, 0, length)}, language=code, **kwargs)


@torch.no_grad()
def test_one_language_gives_the_stock_classs_hidden_states_and_attentions(family):
    model = eager(family)
    inputs = inputs_for(model)
    plain = model.materialize("fr").requires_grad_(False)  # torch's linear picks its kernel by that flag too
    plain.set_attn_implementation("eager")
    stocks = [(plain, inputs)]
    if family == "whisper":  # that class is ours; the stock encoder takes nothing but 30 s
        encoder = WhisperEncoder(plain.config).eval().requires_grad_(False)
        encoder.load_state_dict(plain.encoder.state_dict())
        stocks.append((encoder, {"input_features": torch.randn(1, 8, 3000)}))
    for stock, inputs in stocks:
        expected, found = stock(**inputs, **ALL), model(**inputs, language="fr", **ALL)
        for name in ("hidden_states", "attentions"):
            assert len(found[name]) == len(expected[name]) > 0
            assert all(torch.equal(a, b) for a, b in zip(found[name], expected[name])), name
        chosen = model(**inputs, language="fr", output_hidden_states=[0, -1]).hidden_states
        assert [state is not None for state in chosen] == [True, False, True]
        assert torch.equal(chosen[2], expected.hidden_states[2])
        assert torch.equal(chosen[2], stock(**inputs, output_hidden_states=[0, -1]).hidden_states[2])


@torch.no_grad()
@pytest.mark.parametrize("family, norm", FAMILIES_AND_NORMS)
def test_a_mixed_unpadded_batch_has_each_clips_hidden_states_and_attentions_in_its_place(family, norm):
    model = eager(family, feat_extract_norm=norm)
    inputs, codes = inputs_for(model, lengths=(4000, 2400, 3200, 2400)), ["ru", "en", "ru", "fr"]
    mixed = model(**inputs, language=codes, **ALL)
    chosen = model(**inputs, language=codes, output_hidden_states=[-1]).hidden_states
    assert [state is not None for state in chosen] == [False, False, True]
    assert torch.equal(chosen[-1], mixed.hidden_states[-1])
    for i, alone in enumerate(one_by_one(model, inputs, codes, **ALL)):
        frames = alone.logits.shape[1]
        for theirs, ours in zip(alone.hidden_states, mixed.hidden_states, strict=True):
            torch.testing.assert_close(ours[i, :frames], theirs[0], atol=1e-5, rtol=1e-5)
        for theirs, ours in zip(alone.attentions, mixed.attentions, strict=True):
            assert ours.shape[-1] == ours.shape[-2] == mixed.logits.shape[1]
            torch.testing.assert_close(ours[i, :, :frames, :frames], theirs[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("codes", ["fr", ["ru", "fr", "en"], ["fr", "fr", "fr"]])
def test_who_reads_all_frames_of_a_padded_batch_hears_each_clip_and_nothing_more(family, codes):
    """As everyone does who knows Transformers' CTC models: an argmax, a batch_decode."""
    model = loud(family)
    processor = MasterASRProcessor.from_model(model)
    inputs = inputs_for(model, lengths=(1600, 8000, 4000))
    outputs, each = model(**inputs, language=codes), [codes] * 3 if isinstance(codes, str) else codes
    alone = [processor.batch_decode(one.logits.argmax(-1), code)[0] for one, code in zip(one_by_one(model, inputs, each), each)]
    assert all(alone) and processor.batch_decode(outputs.logits.argmax(-1), codes) == alone
    for clip, code in enumerate(each):
        past, blank = outputs.logits[clip, int(outputs.frames[clip]) :, : len(VOCABS[code])], VOCABS[code]["[PAD]"]
        assert torch.equal(past.log_softmax(-1).exp(), torch.eye(len(VOCABS[code]))[blank].expand(past.shape))  # certain, and in finite numbers
        assert past.isfinite().all() and (clip == 1 or len(past))


@torch.no_grad()
def test_a_materialized_whispers_padding_is_blank_too():
    model = loud("whisper")
    inputs = inputs_for(model, lengths=(1600, 8000))
    plain = model.materialize("fr")
    assert torch.equal(plain(**inputs).logits, model(**inputs, language="fr").logits)


def loud(family):
    """Letters in every frame, of padding too, where nobody makes it blank."""
    model = eager(family)
    for code, assembly in model.assemblies.items():
        assembly.head.bias[VOCABS[code]["[PAD]"]] = -100.0
    return model


@torch.no_grad()
def test_return_dict_false_gives_the_same_values_as_a_tuple(family):
    model = eager(family)
    inputs = inputs_for(model, lengths=(4000, 3200))
    for target, codes in ((model, "en"), (model, ["en", "ru"]), (model.master_asr, "en"), (model.master_asr, ["en", "ru"])):
        whole = target(**inputs, language=codes, **ALL)
        found = target(**inputs, language=codes, return_dict=False, **ALL)
        assert isinstance(found, tuple) and len(found) == len(whole)
        for a, b in zip(found, whole.to_tuple(), strict=True):
            pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
            assert all(torch.equal(x, y) for x, y in pairs)
    model.config.return_dict = False
    labels = torch.tensor([[3, 4], [4, 3]])
    loss, logits, *_, frames = model(**inputs, language=["en", "ru"], labels=labels)
    assert loss.ndim == 0 and logits.ndim == 3 and frames.shape == (2,)
    assert isinstance(model.master_asr(**inputs, language="en"), tuple)


@torch.no_grad()
def test_the_config_can_ask_for_hidden_states(family):
    model = tiny_model(family)
    model.config.output_hidden_states = True
    assert len(model(**inputs_for(model), language=["en", "ru"]).hidden_states) == 3
    assert model(**inputs_for(model), language="en", output_hidden_states=False).hidden_states is None


# ---------------------------------------------------------------------- one width


@torch.no_grad()
def test_a_list_of_languages_has_the_models_width_and_one_language_its_own(model):
    inputs = inputs_for(model)
    widest = max(map(len, VOCABS.values()))
    processor = MasterASRProcessor.from_model(model)
    for code, vocab in VOCABS.items():
        own = model(**inputs, language=code).logits
        assert own.shape[-1] == len(vocab)
        listed = model(**inputs, language=[code, code]).logits
        assert listed.shape[-1] == widest
        assert torch.equal(listed[..., : len(vocab)], own) and bool(torch.isneginf(listed[..., len(vocab) :]).all())
        assert processor.batch_decode(listed.argmax(-1), code) == processor.batch_decode(own.argmax(-1), code)


class Clips(Dataset):
    """Clips of several languages, one language a batch: no two batches alike."""

    def __init__(self, model):
        self.codes = ["ru"] * 2 + ["fr"] * 2 + ["en"] * 2 + ["ru", "en"]
        inputs = inputs_for(model, lengths=[4000, 3200] * 4)
        self.rows = [{name: value[i] for name, value in inputs.items()} for i in range(8)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {**self.rows[i], "labels": torch.tensor([3, 4]), "language": self.codes[i]}


def collate(rows):
    tensors = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "language"}
    return {**tensors, "language": [row["language"] for row in rows]}


@pytest.mark.parametrize("has_labels", [True, False])
def test_a_plain_trainer_predicts_over_clips_of_several_languages(model, tmp_path, has_labels):
    clips = Clips(model)
    if not has_labels:
        clips.__class__ = type("Unlabelled", (Clips,), {"__getitem__": lambda self, i: {**self.rows[i], "language": self.codes[i]}})
    args = TrainingArguments(str(tmp_path), per_device_eval_batch_size=2, report_to=[], use_cpu=True)
    trainer = Trainer(model, args, data_collator=collate)
    predicted = trainer.predict(clips).predictions
    assert predicted.shape[0] == 8 and predicted.shape[-1] == len(VOCABS["en"])
    with torch.no_grad():
        for i, code in enumerate(clips.codes):
            alone = model(**{name: value[None] for name, value in clips.rows[i].items()}, language=code)
            of_clip = alone.logits[0, : int(alone.frames[0])].numpy()
            np.testing.assert_allclose(predicted[i, : len(of_clip), : of_clip.shape[-1]], of_clip, atol=1e-5)
            assert not predicted[i, len(of_clip) :].argmax(-1).any()  # blanks in its own batch's padding, equal entries past that
    if has_labels:
        assert np.isfinite(trainer.evaluate(clips)["eval_loss"])


# ---------------------------------------------------------------------- dtypes


def own_dtypes(model):
    base = model.base_model
    owned = [*base.assemblies.parameters(), *([] if base.character_bank is None else base.character_bank.parameters())]
    return {p.dtype for p in base.backbone.parameters()}, {p.dtype for p in owned}


@torch.no_grad()
@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("auto_class", [MasterASRForCTC, AutoModelForCTC, AutoModel])
def test_a_dtype_is_honoured_and_what_languages_own_stays_float32(auto_class, argument, tmp_path):
    stored = tiny_model()
    stored.master_asr.backbone.to(torch.bfloat16)
    stored.save_pretrained(tmp_path)
    half = torch.bfloat16
    for asked, expected in (("auto", half), (half, half), ("float16", torch.float16), (None, torch.float32), (torch.float32, torch.float32)):
        model = auto_class.from_pretrained(tmp_path, **({} if asked is None else {argument: asked}))
        assert own_dtypes(model) == ({expected}, {torch.float32}), asked
        assert model.dtype == expected


@pytest.mark.parametrize("parts", [("mapping", "head"), ("mapping", "head", "specialist", "delta")])
def test_a_language_learns_in_float32_on_a_bfloat16_encoder(family, parts, tmp_path):
    tiny_model(family).save_pretrained(tmp_path)
    model = MasterASRForCTC.from_pretrained(tmp_path, dtype=torch.bfloat16)
    model.add_language("es", VOCABS["fr"], init="fr", parts=parts)
    assert own_dtypes(model) == ({torch.bfloat16}, {torch.float32})
    model.freeze_except("es")
    model.train()
    inputs = inputs_for(model)
    inputs[model.main_input_name] = inputs[model.main_input_name].bfloat16()
    before = copy.deepcopy(model.assemblies["es"].state_dict())
    optimizer = torch.optim.Adam(model.assemblies["es"].parameters(), lr=1e-4)  # steps that are lost in bfloat16
    outputs = model(**inputs, language="es", labels=torch.tensor([[3, 4], [4, 3]]))
    outputs.loss.backward()
    optimizer.step()
    assert outputs.logits.dtype == torch.float32
    assert not torch.equal(model.assemblies["es"].head.weight, before["head.weight"])
    assert not torch.equal(model.assemblies["es"].mapping, before["mapping"])


def test_from_backbone_in_half_precision_keeps_what_languages_own_in_float32(tmp_path):
    AutoModel.from_config(tiny_backbone_config("wav2vec2")).save_pretrained(tmp_path)
    model = MasterASRForCTC.from_backbone(str(tmp_path), VOCABS, dtype=torch.bfloat16)
    assert own_dtypes(model) == ({torch.bfloat16}, {torch.float32})


def test_data_parallel_is_refused_with_the_launch_command(model):
    for target in (model, model.master_asr):
        with pytest.raises(RuntimeError, match=r"Start one process a GPU: torchrun --nproc_per_node=NUM_GPUS train.py"):
            target._replicate_for_data_parallel()  # what nn.DataParallel calls before it splits a batch


@pytest.mark.parametrize("language", [{"fr", "en"}, {"fr": 1, "en": 2}])
def test_languages_without_an_order_are_given_to_no_clip(model, language):
    processor = MasterASRProcessor.from_model(model)
    for ask in (lambda: model(**inputs_for(model), language=language), lambda: processor(text=["ab", "ab"], language=language)):
        with pytest.raises(TypeError, match="language is {.*; one code, or a list of one for each"):
            ask()


@pytest.mark.parametrize("language", ["fr", ["fr", "en"]])
@pytest.mark.parametrize("family", TWO_FAMILIES)
def test_a_mask_that_says_another_length_of_speech_than_there_is_is_refused(family, language):
    model = tiny_model(family)
    inputs = inputs_for(model, lengths=(4000, 2000))
    left = inputs | {"attention_mask": inputs["attention_mask"].flip(-1)}
    with pytest.raises(ValueError, match=r"padding before or amid the speech of clips \[1\]; allowed: padding after it"):
        model(**left, language=language)
    for wrong in (2 * inputs["attention_mask"], 0.5 * inputs["attention_mask"], inputs["attention_mask"] - 1):
        with pytest.raises(ValueError, match="attention_mask: got values such as .*; allowed: 1 where there is speech, and 0 after it"):
            model(**inputs | {"attention_mask": wrong}, language=language)
    assert torch.equal(model(**inputs | {"attention_mask": inputs["attention_mask"].bool()}, language=language).logits, model(**inputs, language=language).logits)
    for mask in (inputs["attention_mask"][:1], inputs["attention_mask"][:, :-1], inputs["attention_mask"][0]):
        with pytest.raises(ValueError, match=r"attention_mask: got shape .*; allowed: \(2, [0-9]+\), a value for each step"):
            model(**inputs | {"attention_mask": mask}, language=language)


@pytest.mark.parametrize("language", ["fr", ["fr", "en"]])
@pytest.mark.parametrize("family", TWO_FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.bfloat16, torch.float16])
def test_a_mask_counts_the_same_in_every_type(family, language, dtype):
    """Whole batches are cast to a half precision, which holds no 513 and, in fp16, no 70,000."""
    model = tiny_model(family)
    inputs = inputs_for(model, lengths=(80_000, 70_013))
    found, wanted = (model(**inputs | {"attention_mask": mask}, language=language) for mask in (inputs["attention_mask"].to(dtype), inputs["attention_mask"]))
    assert torch.equal(found.frames, wanted.frames) and torch.equal(found.logits, wanted.logits)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_hidden_states_are_masked_clip_by_clip_where_they_are_asked_to_be(norm):
    """`mask_time_indices`, which wav2vec 2.0 and its kin take; clips are encoded by language, and with a group norm by length."""
    model, codes = tiny_model("wav2vec2", apply_spec_augment=True, mask_time_prob=0.1, feat_extract_norm=norm), ["fr", "en", "fr"]
    torch.nn.init.normal_(model.master_asr.backbone.masked_spec_embed)
    inputs = inputs_for(model, lengths=(4000, 3000, 2000))
    frames = model(**inputs, language=codes).frames
    hidden = torch.rand(3, int(frames.max()), generator=torch.manual_seed(0)) < 0.3
    found, plain = model(**inputs, language=codes, mask_time_indices=hidden), model(**inputs, language=codes)
    for clip, code in enumerate(codes):
        own = {name: value[clip : clip + 1] for name, value in inputs.items()}
        count, alone = int(frames[clip]), model(**own, language=code, mask_time_indices=hidden[clip : clip + 1])
        width = alone.logits.shape[-1]
        torch.testing.assert_close(found.logits[clip, :count, :width], alone.logits[0, :count], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(found.logits[clip, :count, :width], plain.logits[clip, :count, :width])


@pytest.mark.parametrize("family", TWO_FAMILIES)
def test_what_is_no_batch_of_clips_is_refused(family):
    model = tiny_model(family)
    clips = inputs_for(model)[model.main_input_name]
    for given in (clips[0], clips[:0], clips[None]):
        with pytest.raises(ValueError, match=f"{model.main_input_name}: got shape .*; allowed: [23] axes, the first of at least one clip"):
            model(**{model.main_input_name: given}, language="fr")
