"""The laws of the models, in every encoder family."""

import threading
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FAMILIES_AND_NORMS, VOCABS, inputs_for, tiny_backbone_config, tiny_model, vocab
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from transformers import AutoConfig, AutoModel, AutoModelForCTC
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from modeling_master_asr import LanguageAssembly, MasterASRConfig, MasterASRForCTC, MasterASRModel, MasterASRProcessor
from modeling_master_asr.artisan_master_asr import ArtisanLinear
from modeling_master_asr.backbone_master_asr import FAMILIES as FAMILY_TABLE
from modeling_master_asr.configuration_master_asr import ALL_PARTS
from modeling_master_asr.modeling_master_asr import frames_needed
from modeling_master_asr.whisper_master_asr import device_of_ctc


def labels_for(model, codes):
    rows = [[3, 4, 3], [4, 3, -100], [3, -100, -100], [5, 5, 4]]
    return torch.tensor([rows[i % 4] for i in range(len(codes))])


def stock_twin(model, code):
    """The family's stock encoder + CTC head with the model's own W and the language's head."""
    state = {k: v for k, v in model.master_asr.backbone.state_dict().items() if not k.endswith("specialists")}
    head = model.assemblies[code].head
    config = tiny_backbone_config(model.config.backbone_config.model_type)
    if config.model_type == "whisper":  # of which Transformers has no class with a CTC head
        encoder = WhisperEncoder(config).eval()
        encoder.load_state_dict(state)
        return lambda **kw: torch.nn.functional.linear(encoder(**kw).last_hidden_state, head.weight, head.bias)
    config.vocab_size = len(model.config.vocab(code))
    stock = FAMILY_TABLE[config.model_type].ctc_class(config).eval().requires_grad_(False)  # torch picks another kernel for weights that may ask for gradients
    stock.base_model.load_state_dict(state)
    stock.lm_head.weight.data.copy_(head.weight)
    stock.lm_head.bias.data.copy_(head.bias)
    return lambda **kw: stock(**kw).logits


@torch.no_grad()
def test_all_ones_masks_give_bit_equal_logits_to_the_stock_model(family):
    model = tiny_model(family, sparsity=0.0)
    if family == "whisper":  # the stock encoder takes nothing but 30 s
        inputs = {"input_features": torch.randn(1, 8, 3000)}
    else:
        inputs = inputs_for(model)
    assert torch.equal(model(**inputs, language="fr").logits, stock_twin(model, "fr")(**inputs))


@torch.no_grad()
def test_every_artisan_layers_mask_reaches_the_logits(family):
    model = tiny_model(family)
    inputs = inputs_for(model)
    layers = [m for m in model.modules() if isinstance(m, ArtisanLinear)]
    assert len(layers) == 8  # q, k, v, out in two layers
    before = model(**inputs, language="en").logits
    for layer in layers:
        kept = layer.specialists.clone()
        layer.specialists.copy_(torch.randn_like(kept))
        after = model(**inputs, language="en").logits
        layer.specialists.copy_(kept)
        assert not torch.equal(before, after)
    assert torch.equal(before, model(**inputs, language="en").logits)


@torch.no_grad()
def test_a_mixed_batch_equals_one_clip_after_the_other(family):
    model = tiny_model(family)
    inputs = inputs_for(model, lengths=(4000, 3200, 4000))
    codes = ["ru", "en", "ru"]
    mixed = model(**inputs, language=codes).logits
    assert mixed.shape[-1] == len(VOCABS["en"])
    for i, code in enumerate(codes):
        alone = model(**{k: v[i : i + 1] for k, v in inputs.items()}, language=code).logits[0]
        frames = int(model.master_asr.frame_counts(inputs[model.main_input_name], inputs["attention_mask"])[i])
        size = len(VOCABS[code])
        torch.testing.assert_close(mixed[i, :frames, :size], alone[:frames], atol=1e-5, rtol=1e-5)
        assert bool(torch.isneginf(mixed[i, :, size:]).all())


@torch.no_grad()
def test_in_a_mixed_batch_no_language_is_padded_to_the_longest_of_another(family, monkeypatch):
    """A long clip of one language would cost every other language's clips its own length."""
    model, seen = tiny_model(family), []
    inputs = inputs_for(model, lengths=(1600, 8000, 2400, 8000))
    original = type(model.master_asr)._encode
    monkeypatch.setattr(type(model.master_asr), "_encode", lambda self, piece, mask, *rest, **kwargs: (seen.append((*mask.shape, *piece.shape)), original(self, piece, mask, *rest, **kwargs))[1])
    lengths = inputs["attention_mask"].sum(-1).tolist()
    batch = model(**inputs, language=["en", "ru", "en", "fr"])
    for clips, length, *shape in seen:
        assert shape[model.master_asr.family.time_axis] == length and length in ({lengths[0], lengths[2]} if clips == 2 else set(lengths))
    assert sum(clips * length for clips, length, *_ in seen) <= 2 * lengths[1] + 2 * lengths[2]
    for clip, code in enumerate(["en", "ru", "en", "fr"]):
        frames = int(batch.frames[clip])
        alone = model(**{name: value[clip : clip + 1] for name, value in inputs.items()}, language=code).logits[0, :frames]
        torch.testing.assert_close(batch.logits[clip, :frames, : alone.shape[-1]], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family, norm", FAMILIES_AND_NORMS)
def test_batched_equals_single(family, norm):
    model = tiny_model(family, feat_extract_norm=norm)
    inputs = inputs_for(model, lengths=(4000, 2400))
    batched = model(**inputs, language="en").logits[1]
    length = int(inputs["attention_mask"][1].sum())
    axis = {"whisper": 2, "wav2vec2-bert": 1}.get(family, 1)
    single = model(**{model.main_input_name: inputs[model.main_input_name][1:].narrow(axis, 0, length)}, language="en").logits[0]
    torch.testing.assert_close(batched[: len(single)], single, atol=1e-5, rtol=1e-5)


def test_checkpointing_gives_equal_gradients_with_mixed_languages(family):
    grads = []
    for checkpointing in (False, True):
        model = tiny_model(family).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        codes = ["ru", "en", "ru"]
        inputs = inputs_for(model, lengths=(4000, 4000, 4000))
        model(**inputs, language=codes, labels=labels_for(model, codes)).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and any("specialists" in name for name in grads[0])
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_hooks_may_look_at_weights_during_backward_and_the_encoder_alone_recomputes_its_plain_ones(checkpointing):
    model, seen = tiny_model("whisper").train(), []
    if checkpointing:
        model.activation_checkpointing_enable()
    model.master_asr.backbone.layers[0].fc1.register_full_backward_hook(lambda module, *grads: seen.append(float(module.weight.norm())))
    model(**inputs_for(model), language="fr", labels=torch.tensor([[3, 4], [4, 3]])).loss.backward()
    assert len(seen) == 1
    grads = []
    for plain in (model.master_asr.backbone, tiny_model("whisper").train().master_asr.backbone):
        plain.zero_grad()
        plain(**inputs_for(model)).last_hidden_state.square().sum().backward()
        grads.append({name: p.grad for name, p in plain.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and all(torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())


@pytest.mark.parametrize("switched_on", ["encoder", "wrapper"])
def test_checkpointing_that_the_model_does_not_hear_of_is_refused_where_it_would_read_plain_weights(switched_on):
    model = tiny_model("whisper").train()
    model.requires_grad_(False)
    encoder = model.master_asr.backbone
    for layer in encoder.layers:
        layer.fc1.weight.requires_grad_(True)  # nothing of the mask trains
    if switched_on == "encoder":
        encoder.activation_checkpointing_enable()
    else:
        apply_activation_checkpointing(
            encoder, checkpoint_wrapper_fn=partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT),
            check_fn=lambda module: module in list(encoder.layers),
        )  # fmt: skip
    loss = model(**inputs_for(model), language="fr", labels=torch.tensor([[3, 4], [4, 3]])).loss
    with pytest.raises(RuntimeError, match=r"computed again during backward.*model.activation_checkpointing_enable\(\)"):
        loss.backward()


def test_reentrant_checkpointing_is_refused(model):
    with pytest.raises(ValueError, match="use_reentrant=True cannot carry"):
        model.activation_checkpointing_enable({"use_reentrant": True})


def test_stage_2_leaves_every_other_tensor_and_language_bit_equal(family):
    model = tiny_model(family)
    inputs = inputs_for(model)
    model.add_language("es", vocab("abñ"), init="fr", parts=("mapping", "head", "specialist", "delta"), rank=2)
    with torch.no_grad():
        logits = {code: model(**inputs, language=code).logits for code in VOCABS}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.freeze_except("es")
    own = {id(p) for p in model.assemblies["es"].parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == own
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    model.train()
    for _ in range(3):
        model(**inputs, language="es", labels=torch.tensor([[3, 4], [5, 3]])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    for name, value in model.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved == ("lang_es" in name), name
    with torch.no_grad():
        for code in VOCABS:
            assert torch.equal(model(**inputs, language=code).logits, logits[code])


def test_several_languages_train_together_and_no_list_of_them_is_taken_for_one(family):
    model = tiny_model(family)
    for code in ("es", "gl"):
        model.add_language(code, vocab("abñ"), preset="small")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.freeze_except("es", "gl")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()(**inputs_for(model), language=["es", "gl"], labels=torch.tensor([[3, 4], [5, 3]])).loss.backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all("lang_es" in name or "lang_gl" in name for name in moved)
    assert any("lang_es" in name for name in moved) and any("lang_gl" in name for name in moved)
    trains = [parameter.requires_grad for parameter in model.parameters()]
    for wrong, error in ((["es", "gl"],), TypeError), ((), TypeError), (("es", "xx"), KeyError):
        with pytest.raises(error, match="freeze_except: got .*; allowed: codes, such as freeze_except|No assembly for language 'xx'"):
            model.freeze_except(*wrong)
    assert [parameter.requires_grad for parameter in model.parameters()] == trains


def test_a_factored_delta_in_training_equals_the_merged_one(family):
    """x (W * B)' + (x down') up' of training against x W_l' of everything else: logits and gradients."""
    model = tiny_model(family)
    inputs = inputs_for(model)
    model.add_language("es", vocab("abñ"), init="fr", parts=ALL_PARTS, rank=2, targets="all")
    with torch.no_grad():
        for parameter in model.assemblies["es"].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.freeze_except("es")
    found = []
    for is_training in (True, False):
        model.train(is_training)
        outputs = model(**inputs, language="es", labels=torch.tensor([[3, 4], [5, 3]]))
        outputs.loss.backward()
        found.append({"logits": outputs.logits.detach(), **{n: p.grad for n, p in model.assemblies["es"].named_parameters()}})
        model.zero_grad()
    assert all(bool(value.any()) for value in found[0].values())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-3 * float(value.abs().max()), rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@torch.no_grad()
def test_in_every_family_every_part_of_every_layer_reaches_the_logits(family):
    model = tiny_model(family)
    model.add_language("es", vocab("abñ"), init="fr", parts=ALL_PARTS, rank=2, targets="all")
    inputs, assembly = inputs_for(model), model.assemblies["es"]
    for parameter in assembly.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))

    def is_heard(values: torch.Tensor) -> bool:
        before, kept = model(**inputs, language="es").logits, values.clone()
        values.add_(torch.randn_like(values))
        heard = not torch.equal(model(**inputs, language="es").logits, before)
        values.copy_(kept)
        return heard

    for part in ("specialist", "delta"):
        for place, up in enumerate(getattr(assembly, part).up):
            assert is_heard(up), (part, place)
    for vectors in (dict(enumerate(assembly.scales())), assembly.norms()):
        for place, vector in vectors.items():
            assert is_heard(vector) or not len(vector), place


@torch.no_grad()
def test_materialized_equals_assembled(family, tmp_path):
    model = tiny_model(family)
    model.add_language("es", vocab("abñ"), init="fr", parts=ALL_PARTS, targets="all")
    for parameter in model.assemblies["es"].parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    inputs = inputs_for(model)
    expected = model(**inputs, language="es").logits
    # torch's linear picks another kernel where a weight may ask for gradients: WavLM differs from itself by 1e-7 there
    plain = model.materialize("es").requires_grad_(False)
    assert torch.equal(plain(**inputs).logits, expected)
    assert not any(isinstance(module, (ArtisanLinear, LanguageAssembly)) for module in plain.modules())
    of_a_decoder = [getattr(plain.config, name, None) for name in ("bos_token_id", "eos_token_id", "decoder_start_token_id")]
    assert of_a_decoder == [None, None, plain.config.pad_token_id if family == "whisper" else None]
    plain.save_pretrained(tmp_path)
    code = ["whisper_master_asr.py"] if family == "whisper" else []  # Transformers has no CTC class for its encoder
    assert [path.name for path in tmp_path.glob("*.py")] == code
    again = AutoModelForCTC.from_pretrained(tmp_path, trust_remote_code=bool(code)).requires_grad_(False)
    assert torch.equal(again(**inputs).logits, expected)


@torch.no_grad()
def test_threads_each_see_their_own_language(model):
    inputs = inputs_for(model)
    alone = {code: model(**inputs, language=code).logits for code in VOCABS}
    wrong = []

    def work(code):
        with torch.no_grad():
            wrong.extend(code for _ in range(20) if not torch.equal(model(**inputs, language=code).logits, alone[code]))

    threads = [threading.Thread(target=work, args=(code,)) for code in list(VOCABS) * 2]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


def test_the_loss_is_the_mean_over_clips_however_they_are_grouped(model):
    codes = ["ru", "en", "ru", "fr"]
    inputs, labels = inputs_for(model, lengths=[4000] * 4), labels_for(model, codes)
    labels[labels > 4] = 4
    whole = model(**inputs, language=codes, labels=labels).loss
    halves = [
        model(**{k: v[i : i + 2] for k, v in inputs.items()}, language=codes[i : i + 2], labels=labels[i : i + 2]).loss
        for i in (0, 2)
    ]
    torch.testing.assert_close(whole, sum(halves) / 2)
    assert MasterASRForCTC.accepts_loss_kwargs is False


def test_a_label_longer_than_its_frames_is_named_and_harmless(model, caplog):
    inputs = inputs_for(model, lengths=(400, 400))
    labels = torch.tensor([[3] * 40, [3] + [-100] * 39])
    assert frames_needed(labels).tolist() == [79, 1]
    loss = model(**inputs, language="en", labels=labels).loss
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.config.ctc_zero_infinity = False
    with pytest.raises(ValueError, match=r"more frames than there are: clip 0 \(40 labels, "):
        model(**inputs, language="en", labels=labels)


def test_labels_of_another_alphabet_are_refused(model):
    with pytest.raises(ValueError, match="Label id 7 is outside the 6 tokens of 'ru'"):
        model(**inputs_for(model), language="ru", labels=torch.tensor([[7], [3]]))


def test_an_unknown_language_is_refused(model):
    with pytest.raises(KeyError, match=r"No assembly for language 'sr'. Loaded: \['en', 'fr', 'ru'\]"):
        model(**inputs_for(model), language="sr")


def test_no_language_where_several_are_loaded_is_refused_until_a_default_is_set(model):
    with pytest.raises(ValueError, match=r"Which language\? Loaded: \['en', 'fr', 'ru'\].*Transformers' own pipeline hands no language on"):
        model(**inputs_for(model))
    model.set_language("fr")
    assert torch.equal(model(**inputs_for(model)).logits, model(**inputs_for(model), language="fr").logits)
    with pytest.raises(KeyError, match="'sr'"):
        model.set_language("sr")


def test_a_list_of_another_length_is_refused(model):
    with pytest.raises(ValueError, match="3 codes for 2 clips"):
        model(**inputs_for(model), language=["en"] * 3)


def test_audio_without_a_frame_is_refused(family):
    model = tiny_model(family)
    short = {"whisper": torch.zeros(1, 8, 0), "wav2vec2-bert": torch.zeros(1, 0, 160)}.get(family, torch.zeros(1, 5))
    with pytest.raises(ValueError, match="too short"):
        model(**{model.main_input_name: short}, language="en")


def test_more_than_30_s_of_whisper_names_chunking():
    with pytest.raises(ValueError, match="chunk_length_s=10"):
        tiny_model("whisper")(input_features=torch.zeros(1, 8, 3002), language="en")


def test_whisper_takes_features_without_a_mask():
    model = tiny_model("whisper")
    assert model(input_features=torch.zeros(1, 8, 101), language="en").logits.shape[1] == 51


@torch.no_grad()
def test_any_language_code_is_legal(model):
    for code in ("to", "pop", "cpu", "pa-IN", "zh.Hant", "keys"):
        model.add_language(code, vocab("xyz"))
        assert code in model.assemblies and model.languages[-1] == code
        model(**inputs_for(model), language=code)
        model.remove_language(code)
    assert list(model.assemblies) == ["en", "fr", "ru"]


def test_hidden_states_come_through_for_mixed_batches_too(model):
    one = model(**inputs_for(model), language="en", output_hidden_states=True).hidden_states
    mixed = model(**inputs_for(model), language=["en", "ru"], output_hidden_states=True).hidden_states
    assert len(one) == len(mixed) == 3
    torch.testing.assert_close(one[-1][0], mixed[-1][0])


def test_four_clips_overfit():
    torch.manual_seed(0)
    model = tiny_model().train()
    inputs, codes = inputs_for(model, lengths=[2000] * 4), ["en", "fr", "en", "fr"]
    labels = torch.tensor([[3, 4, 5], [4, 3, 6], [5, 5, 3], [3, 6, 4]])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(250):
        loss = model(**inputs, language=codes, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 0.05


def test_a_clip_too_short_for_any_frame_has_none_and_counts_as_zero_loss(model, caplog):
    inputs = inputs_for(model)
    inputs["attention_mask"][1] = 0
    inputs["attention_mask"][1, :3] = 1
    outputs = model.train()(**inputs, labels=torch.tensor([[3, 4], [4, 3]]), language="en")
    alone = model(**{name: value[:1] for name, value in inputs.items()}, labels=torch.tensor([[3, 4]]), language="en")
    assert outputs.frames.tolist()[1] == 0 and "these clips count as zero loss" in caplog.text
    torch.testing.assert_close(outputs.loss, alone.loss / 2)


def test_artisan_targets_may_name_other_layers(tmp_path):
    AutoModel.from_config(tiny_backbone_config("wav2vec2")).save_pretrained(tmp_path)
    model = MasterASRForCTC.from_backbone(str(tmp_path), VOCABS, artisan_targets=["output_dense"])
    assert len(model.master_asr.artisan_layers) == 2
    with pytest.raises(ValueError, match=r"artisan_targets \['qproj'\] name no linear layer"):
        MasterASRForCTC.from_backbone(str(tmp_path), VOCABS, artisan_targets=["qproj"])


def test_a_checkpoint_without_our_tensors_loads_with_defined_values(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = {k: v for k, v in load_file(path).items() if "specialists" not in k and "assemblies" not in k and "bank" not in k}
    save_file(state, path, metadata={"format": "pt"})
    model = MasterASRForCTC.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.isfinite(value.float()).all() and value.float().abs().max() < 100, name
    layer = model.master_asr.artisan_layers[0]
    assert torch.corrcoef(torch.stack([layer.specialists[0].flatten(), layer.weight.abs().flatten()]))[0, 1] > 0.8
    model(**inputs_for(model), language="en")


@torch.no_grad()
def test_a_saved_model_loads_bit_equal_through_the_auto_classes(family, tmp_path):
    model = tiny_model(family)
    inputs = inputs_for(model)
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).languages == model.languages
    again = AutoModelForCTC.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs, language="fr").logits, model(**inputs, language="fr").logits)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert isinstance(encoder, MasterASRModel)
    expected = model.master_asr(**inputs, language="ru").last_hidden_state
    assert torch.equal(encoder(**inputs, language="ru").last_hidden_state, expected)


def test_a_checkpoint_stored_in_fp16_loads_as_float32_unless_asked(tmp_path):
    tiny_model().half().save_pretrained(tmp_path)
    assert MasterASRForCTC.from_pretrained(tmp_path).dtype == torch.float32
    assert MasterASRForCTC.from_pretrained(tmp_path, dtype=torch.float16).dtype == torch.float16


def test_an_input_in_the_place_of_a_stock_models_mask_is_refused(model):
    inputs = inputs_for(model, (4000, 2500))
    with pytest.raises(ValueError, match="takes input_values alone; got input_values and input_features.*attention_mask, is another input here"):
        model(inputs["input_values"], inputs["attention_mask"], language="en")


@pytest.mark.parametrize("family, keyword", [("wav2vec2", "languages"), ("whisper", "target_lang"), ("wav2vec2-bert", "Language")])
def test_a_keyword_that_nothing_reads_is_refused_and_not_answered_in_the_default_language(family, keyword):
    model = tiny_model(family)
    model.set_language("en")
    with pytest.raises(TypeError, match=f"forward got {keyword}, which nothing here reads.*language="):
        model(**inputs_for(model), **{keyword: "fr"})
    model(**inputs_for(model), output_hidden_states=True, return_dict=True)  # what stock models take beside their inputs
    model(**inputs_for(model), input_ids=None, inputs_embeds=None)  # and wrappers that pass every stock name


def test_labels_padded_with_the_blank_are_refused(model):
    with pytest.raises(ValueError, match=r"Labels of 'en' hold the id 0, \[PAD\], which CTC keeps for its blank. Pad labels with -100"):
        model(**inputs_for(model), language="en", labels=torch.tensor([[3, 4], [3, 0]]))


def test_what_is_frozen_in_training_mode_stands_still_and_moves_again():
    model = tiny_model("wav2vec2-conformer").train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.freeze_except("en")
    inputs, labels = inputs_for(model), torch.tensor([[3], [4]])
    model(**inputs, language="en", labels=labels).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    norms = [p for name, p in model.named_parameters() if "batch_norm" in name]
    assert norms and all(p.grad is None for p in norms)
    model.unfreeze()
    model(**inputs, language="en", labels=labels).loss.backward()
    assert all(p.grad is not None for p in norms)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())  # BatchNorm's statistics never move


@torch.no_grad()
@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2-bert"])
def test_an_encoder_with_an_adapter_reads_a_padded_clip_as_it_reads_it_alone(family):
    config = tiny_backbone_config(family)
    config.add_adapter, config.output_hidden_size, config.num_adapter_layers = True, config.hidden_size, 1
    model = MasterASRForCTC(MasterASRConfig(backbone_config=config, num_specialists=2, assemblies={"en": {"vocab": vocab("ab")}})).eval()
    inputs = inputs_for(model, (8000, 5000))
    together, axis = model(**inputs, language="en"), model.master_asr.family.time_axis
    alone = {name: value[1:].narrow(1 if name == "attention_mask" else axis, 0, int(inputs["attention_mask"][1].sum())) for name, value in inputs.items()}
    frames = int(together.frames[1])
    # the head sees another number of rows, hence not bit-equal
    torch.testing.assert_close(model(**alone, language="en").logits[0, :frames], together.logits[1, :frames], atol=1e-6, rtol=0)


def test_each_clip_has_its_own_labels_and_each_row_its_own_clip(model):
    processor, clips = MasterASRProcessor.from_model(model), [np.random.default_rng(i).standard_normal(4000).astype(np.float32) for i in range(2)]
    with pytest.raises(ValueError, match="3 rows of labels for 2 clips"):
        model(**inputs_for(model), language="fr", labels=torch.full((3, 2), 3))
    for wrong, named in ((torch.tensor([3, 4]), r"shape \(2,\)"), ([[3], [3]], "list")):
        with pytest.raises(ValueError, match=rf"labels: got {named}; allowed: a tensor \(clips, label length\)"):
            model(**inputs_for(model), language="fr", labels=wrong)
    with pytest.raises(ValueError, match="3 texts for 2 clips"):
        processor(audio=clips, text=["ab"] * 3, language="fr")
    with pytest.raises(ValueError, match="3 rows of labels for 2 clips"):
        processor.pad(clips, [[3]] * 3)
    with pytest.raises(ValueError, match="frames has 2 numbers for 3 clips"):
        processor.batch_decode(np.full((3, 5), 3), "fr", frames=[5, 5])


def test_the_plain_model_of_a_language_has_the_same_loss(family):
    model = tiny_model(family)
    lengths = (4000, 4000) if "conformer" in family else (4000, 3200)  # its convolutions hear padding (README, Limits)
    inputs, labels = inputs_for(model, lengths=lengths), torch.tensor([[3, 4, 5], [4, 3, -100]])
    plain = model.materialize("fr")
    torch.testing.assert_close(plain(**inputs, labels=labels).loss, model(**inputs, labels=labels, language="fr").loss)
    assert plain.config.ctc_zero_infinity is model.config.ctc_zero_infinity
    with pytest.raises(ValueError, match="ctc_loss_reduction is 'sum'; allowed: 'mean'"):
        MasterASRConfig.from_dict({**model.config.to_dict(), "ctc_loss_reduction": "sum"})


@pytest.mark.parametrize("keyword, value, words", [
    ("ctc_loss_reduction", "sum", "ctc_loss_reduction is 'sum'; allowed: 'mean'"), ("sparsity", 1.0, "sparsity is the fraction .* got 1.0"),
    ("num_specialists", 0, "num_specialists must be a whole number, at least 1; got 0"),
])  # fmt: skip
def test_a_keyword_of_from_pretrained_is_checked_as_the_same_word_in_the_config(tmp_path, keyword, value, words):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=words):
        MasterASRForCTC.from_pretrained(tmp_path, **{keyword: value})
    assert MasterASRForCTC.from_pretrained(tmp_path, sparsity=0.5).config.sparsity == 0.5


def test_a_state_dict_of_other_rows_of_the_bank_is_refused_at_once(model):
    other = tiny_model(vocabs={**VOCABS, "fr": vocab("éabc")})
    with pytest.raises(RuntimeError, match=r"fr.*rows of the character bank.*other characters"):
        other.load_state_dict(model.state_dict())
    other.load_state_dict(other.state_dict())


def test_the_loss_of_what_lies_on_apples_gpu_is_computed_on_the_cpu():
    """Which cannot be watched here: PyTorch's CTC knows CPUs and CUDA."""
    assert [str(device_of_ctc(torch.device(name))) for name in ("mps", "cpu", "cuda:1")] == ["cpu", "cpu", "cuda:1"]


def test_a_language_that_stands_in_the_config_alone_is_not_saved_without_values(model, tmp_path):
    model.config.assemblies["pt"] = model.config.assemblies["fr"]
    with pytest.raises(ValueError, match=r"config.assemblies names \['pt'\], and this model has no values.*add_language or load_assembly"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_gradient_checkpointing_keeps_what_is_asked_of_it_and_refuses_a_context_of_ones_own():
    model = tiny_model().train()
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False) and hasattr(m, "_gradient_checkpointing_func")]
    assert layers and all(m._gradient_checkpointing_func.keywords["preserve_rng_state"] is False for m in layers)
    assert not any(m._gradient_checkpointing_func.keywords["use_reentrant"] for m in layers)
    with pytest.raises(ValueError, match="got context_fn; allowed: others"):
        model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": lambda: None})


def test_labels_without_a_column_are_those_of_clips_that_say_nothing():
    model, inputs = tiny_model(), inputs_for(tiny_model())
    clips = len(next(iter(inputs.values())))
    none, padded = (model(**inputs, labels=labels, language="en").loss for labels in (torch.empty(clips, 0, dtype=torch.long), torch.full((clips, 2), -100)))
    assert torch.isfinite(none) and torch.equal(none, padded)


def test_a_files_name_is_no_folder_to_save_in(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(NotADirectoryError, match="save_directory: got .*x', which is a file; allowed: a folder"):
        (model := tiny_model()).save_pretrained(tmp_path / "x")
    assert model.config.fingerprint is None


def test_sentences_are_texts():
    with pytest.raises(ValueError, match="sentences: got 1 among them; allowed: texts"):
        tiny_model().set_text("fr", ["a", 1])


def test_an_alphabet_may_have_its_special_tokens_anywhere():
    model = tiny_model(vocabs={"en": vocab("ab")})
    model.add_language("xx", {"a": 0, "|": 1, "b": 2, "[UNK]": 3, "[PAD]": 4}, init="en")
    labels = torch.tensor([[0, 2], [2, 0]])
    out = model(**inputs_for(model, (4000, 2400)), language="xx", labels=labels)
    wanted = torch.nn.functional.ctc_loss(out.logits.log_softmax(-1).transpose(0, 1), labels, out.frames, torch.tensor([2, 2]), blank=4, reduction="none") / 2
    torch.testing.assert_close(out.loss, wanted.mean())
    assert out.logits[1, int(out.frames[1]) :].argmax(-1).unique().tolist() == [4]
    logits = torch.nn.functional.one_hot(torch.tensor([[4, 0, 4, 2, 2, 1, 0, 4]]), 5).float() * 20
    processor = MasterASRProcessor.from_model(model)
    model.set_text("xx", ["ab a", "ab"])
    for greedy in (True, False):
        assert processor.batch_decode(model.paths(logits, "xx", greedy=greedy), "xx", skip_special_tokens=True) == ["ab a"]
