"""Families differ in one room alone, and what it says of them is true of their stock classes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import VOCABS, inputs_for, tiny_backbone_config, tiny_model
from transformers import AutoModel, AutoModelForCTC, ClapFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperModel

from modeling_master_asr import MasterASRForCTC, MasterASRModel, MasterASRProcessor
from modeling_master_asr.backbone_master_asr import FAMILIES, family_of, family_reading

ROOT = Path(__file__).parent.parent
FEATURE_EXTRACTORS = {family.feature_extractor.__name__ for family in FAMILIES.values()}


def test_no_other_room_asks_for_a_family():
    # the config's are its own model_type and its backbone's; models.py asks whether a folder holds a Master-ASR model at all
    rooms = {"backbone_master_asr.py", "configuration_master_asr.py", "models.py"}
    asking = re.compile("|".join([r"\bmodel_type\b", *FEATURE_EXTRACTORS]))
    for folder in ("modeling_master_asr", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            assert path.name in rooms or not asking.search(path.read_text(encoding="utf-8")), path


def test_the_processor_of_a_model_uses_the_familys_feature_extractor(family):
    model = tiny_model(family)
    extractor = MasterASRProcessor.from_model(model).feature_extractor
    assert type(extractor) is model.master_asr.family.feature_extractor
    assert extractor.model_input_names[0] == model.main_input_name == model.master_asr.family.input_name


def test_the_features_of_clips_give_as_many_frames_as_the_family_says(family):
    """Time axis, frame counts and samples a frame agree with what the encoder does."""
    model = tiny_model(family)
    processor = MasterASRProcessor.from_model(model)
    family = model.master_asr.family
    if family.input_name == "input_features" and family.time_axis == -1:  # tiny Whisper listens to 8 mel bands
        processor.feature_extractor = family.feature_extractor(feature_size=8)
    clips = [np.random.default_rng(0).standard_normal(n).astype(np.float32) for n in (8_000, 5_120)]
    features = [processor.features(clip) for clip in clips]
    batch = processor.pad(features)
    lengths = [f.shape[family.time_axis] for f in features]
    assert batch["attention_mask"].sum(-1).tolist() == lengths
    assert batch[family.input_name].shape[family.time_axis] == max(lengths)
    with torch.no_grad():
        for feature, clip in zip(features, clips):
            alone = model(**{family.input_name: torch.from_numpy(feature)[None]}, language="en")
            assert alone.logits.shape[1] == int(alone.frames)
            assert abs(int(alone.frames) * family.samples_per_frame(model.config.backbone_config) - len(clip)) <= 640


def test_an_input_of_the_familys_shape_is_one_clip(family):
    model = tiny_model(family)
    shape = model.master_asr.family.input_shape(model.config.backbone_config, 0.5)
    with torch.no_grad():
        frames = int(model(**{model.main_input_name: torch.randn(1, *shape)}, language="en").frames)
    expected = 8_000 / model.config.inputs_to_logits_ratio
    assert abs(frames - expected) <= 2


def test_unknown_encoders_and_feature_extractors_are_refused_with_a_list():
    config = tiny_backbone_config("wav2vec2")
    config.model_type = "clap"
    with pytest.raises(ValueError, match=r"A backbone of type 'clap' is not supported. Supported: \['hubert', "):
        family_of(config)
    with pytest.raises(ValueError, match=r"reads the features of a ClapFeatureExtractor. Supported: \['Seamless"):
        family_reading(ClapFeatureExtractor())
    assert family_reading(Wav2Vec2FeatureExtractor()) is FAMILIES["wav2vec2"]


def test_freeze_feature_encoder_freezes_the_front_end_alone_as_in_the_stock_class(family):
    model = tiny_model(family)
    config = tiny_backbone_config(family)
    config.vocab_size = 8
    stock = model.master_asr.family.ctc_class(config)
    model.freeze_feature_encoder()
    ours = {name for name, p in model.master_asr.backbone.named_parameters() if not p.requires_grad}
    if hasattr(stock, "freeze_feature_encoder"):
        stock.freeze_feature_encoder()
        assert ours == {name for name, p in stock.base_model.named_parameters() if not p.requires_grad}
    else:  # no such method: Whisper's two convolutions (its positions never train), and nothing for wav2vec2-BERT
        assert {name.split(".")[0] for name in ours} == ({"conv1", "conv2", "embed_positions"} if family == "whisper" else set())
    model.train()
    model(**inputs_for(model), language="en", labels=torch.tensor([[3], [4]])).loss.backward()
    for name, parameter in model.master_asr.backbone.named_parameters():
        assert name not in ours or parameter.grad is None, name
    assert any(p.grad is not None for p in model.master_asr.backbone.parameters())


def test_what_a_family_keeps_fixed_never_trains_once_a_model_is_unfrozen_or_loaded(family, tmp_path):
    model = tiny_model(family)
    model.freeze_except("en")
    model.unfreeze()
    model.save_pretrained(tmp_path)
    in_memory = MasterASRForCTC.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    for one in (model, in_memory, MasterASRForCTC.from_pretrained(tmp_path), AutoModelForCTC.from_pretrained(tmp_path), MasterASRModel.from_pretrained(tmp_path)):
        frozen = {f"master_asr.{name.removeprefix('master_asr.')}" for name, p in one.named_parameters() if not p.requires_grad}
        assert frozen == ({"master_asr.backbone.embed_positions.weight"} if family == "whisper" else set())


def test_batch_norms_statistics_stand_still_while_all_weights_train_and_recomputation_changes_nothing():
    """Else each process would end with statistics of its own, and recomputation would count every batch twice."""
    ends = []
    for recomputes in (False, True):
        model = tiny_model("wav2vec2-conformer")
        model.unfreeze()
        if recomputes:
            model.activation_checkpointing_enable()
        before = {name: value.clone() for name, value in model.state_dict().items() if "batch_norm" in name}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step, language in enumerate(("en", "fr")):
            model.train()
            model(**inputs_for(model, seed=step), language=language, labels=torch.tensor([[3, 4], [4, 3]])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(model.eval().state_dict())
        still = {name for name, value in before.items() if torch.equal(value, ends[-1][name])}
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        assert before and still == {name for name in before if name.endswith(statistics)}  # weights and biases train
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_num_layers_keeps_the_first_layers_of_every_family(family, tmp_path):
    config = tiny_backbone_config(family)
    stock = WhisperModel(config) if family == "whisper" else AutoModel.from_config(config)
    stock.save_pretrained(tmp_path)
    model = MasterASRForCTC.from_backbone(str(tmp_path), VOCABS, num_layers=1)
    assert len(model.master_asr.artisan_layers) == 4


@pytest.mark.parametrize("samples", [16_000, 16_080, 16_160])
def test_wav2vec2_bert_hears_the_frames_that_its_own_extractor_calls_speech(samples):
    """An odd frame of 10 ms has only padding to be stacked with."""
    processor = MasterASRProcessor.from_model(tiny_model("wav2vec2-bert"))
    clip = np.random.default_rng(0).standard_normal(samples).astype(np.float32) * 0.1
    stock = processor.feature_extractor(clip, sampling_rate=16_000, return_tensors="np")
    count = int(stock["attention_mask"][0].sum())
    ours = processor(clip, sampling_rate=16_000)
    assert int(ours["attention_mask"].sum()) == count == ours["input_features"].shape[1]
    assert np.array_equal(ours["input_features"][0].numpy(), stock["input_features"][0][:count])


def test_from_backbone_heeds_what_it_is_told_of_attention_layers_and_types(tmp_path):
    WhisperModel(tiny_backbone_config("whisper")).save_pretrained(tmp_path)
    made = MasterASRForCTC.from_backbone(str(tmp_path), VOCABS, attn_implementation="eager", dtype="float16", num_layers=1)
    assert made.master_asr.backbone.config._attn_implementation == "eager"
    assert made.master_asr.backbone.layers[0].fc1.weight.dtype == torch.float16 and len(made.master_asr.backbone.layers) == 1
    with pytest.raises(ValueError, match="num_layers: got 5; allowed: 1 to 2, as many as"):
        MasterASRForCTC.from_backbone(str(tmp_path), VOCABS, num_layers=5)
    with pytest.raises(ValueError, match="dtype: got 'small'; allowed: one of torch's"):
        MasterASRForCTC.from_backbone(str(tmp_path), VOCABS, dtype="small")


@pytest.mark.parametrize("family", ["wav2vec2", "whisper"])
def test_an_encoder_takes_the_entries_of_its_config_that_its_own_from_pretrained_takes(family, tmp_path):
    AutoModel.from_config(tiny_backbone_config(family)).save_pretrained(tmp_path)
    name = "hidden_dropout" if family == "wav2vec2" else "dropout"
    made = MasterASRForCTC.from_backbone(str(tmp_path), VOCABS, **{name: 0.3}, attention_dropout=0.2, revision="main")
    of = made.config.backbone_config
    assert (getattr(of, name), of.attention_dropout) == (0.3, 0.2) and name not in (made.config.feature_extractor or {})
    assert made.config.fingerprint == MasterASRForCTC.from_backbone(str(tmp_path), VOCABS).config.fingerprint
    with pytest.raises(TypeError, match="hidden_dropuot"):
        MasterASRForCTC.from_backbone(str(tmp_path), VOCABS, hidden_dropuot=0.3)


def test_a_frozen_front_end_asks_for_no_gradients_of_what_it_makes():
    model = tiny_model().train()
    model.freeze_except("en")
    assert model.master_asr.backbone.feature_extractor._requires_grad is False
    model.unfreeze()
    assert model.master_asr.backbone.feature_extractor._requires_grad is True
