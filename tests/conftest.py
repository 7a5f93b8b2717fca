"""Tiny models of every family, made without a network and alike for every test; and a Hub on loopback."""

import logging
import os
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

from hub_server import Hub

HUB = Hub().start()
# Before anything imports huggingface_hub, which reads these once: no test can reach another hub than the one on loopback.
os.environ |= {"HF_ENDPOINT": HUB.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": tempfile.mkdtemp(prefix="hf-"), "HF_HUB_DISABLE_TELEMETRY": "1"}
os.environ.pop("HF_TOKEN", None)

import pytest
import torch
from transformers import (
    HubertConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    WavLMConfig,
    WhisperConfig,
)

from modeling_master_asr import MasterASRConfig, MasterASRForCTC, MasterASRProcessor
from training.loop.optim import Turns

torch.set_num_threads(1)  # tiny models: threads that wait for each other made them ten times slower on a busy machine

collect_ignore = ["peers/cache"]  # the suites of others, which `make test-peers` fetched: its files call what they mean to run
if not torch.cuda.is_available():
    collect_ignore.append("test_gpu.py")

SPECIALS = ["[PAD]", "[UNK]", "|"]
FAMILIES = ("wav2vec2", "hubert", "wavlm", "wav2vec2-bert", "wav2vec2-conformer", "whisper")
FAMILIES_AND_NORMS = [(name, norm) for name in FAMILIES for norm in ("layer", "group") if norm == "layer" or name not in ("whisper", "wav2vec2-bert")]

# For tests that take long in every family: two in every run, the others in `make test-all`.
TWO_FAMILIES = [pytest.param(name, marks=[] if name in ("wav2vec2", "whisper") else pytest.mark.slow) for name in FAMILIES]


def vocab(letters: str) -> dict[str, int]:
    return {token: i for i, token in enumerate([*SPECIALS, *letters])}


VOCABS = {"en": vocab("abcde"), "fr": vocab("abcé"), "ru": vocab("абв")}


def tiny_backbone_config(family: str, **changes):
    raw = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, hidden_dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0, layerdrop=0.0,
        mask_time_prob=0.0, mask_feature_prob=0.0, conv_dim=(16, 16), conv_stride=(5, 4), conv_kernel=(10, 8),
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, feat_extract_norm="layer", do_stable_layer_norm=True,
    )  # fmt: skip
    raw.update(changes)
    if family == "wav2vec2":
        return Wav2Vec2Config(**raw)
    if family == "hubert":
        return HubertConfig(**raw)
    if family == "wavlm":
        return WavLMConfig(**raw, num_buckets=16, max_bucket_distance=32)
    if family == "wav2vec2-conformer":
        return Wav2Vec2ConformerConfig(**raw, conformer_conv_dropout=0.0, conv_depthwise_kernel_size=7)
    if family == "wav2vec2-bert":
        keep = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_dropout",
                "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout", "layerdrop",
                "mask_time_prob", "mask_feature_prob")  # fmt: skip
        return Wav2Vec2BertConfig(
            **{k: raw[k] for k in keep}, feature_projection_input_dim=160, conformer_conv_dropout=0.0,
            conv_depthwise_kernel_size=7,
        )  # fmt: skip
    return WhisperConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=1500, vocab_size=60, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip


def tiny_model(family: str = "wav2vec2", vocabs=VOCABS, sparsity=0.3, num_specialists=4, **changes) -> MasterASRForCTC:
    torch.manual_seed(0)
    characters = sorted({t for v in vocabs.values() for t in v} - set(SPECIALS))
    config = MasterASRConfig(
        backbone_config=tiny_backbone_config(family, **changes), num_specialists=num_specialists, sparsity=sparsity,
        assemblies={code: {"vocab": v, "shares_bank": True} for code, v in vocabs.items()},
        character_bank=[*SPECIALS, *characters],
    )  # fmt: skip
    model = MasterASRForCTC(config).eval()
    with torch.no_grad():
        for assembly in model.assemblies.values():
            assembly.mapping.normal_()
    return model


def inputs_for(model, lengths=(4000, 4000), seed=1) -> dict:
    """Random inputs of the model's kind with an attention mask."""
    generator = torch.Generator().manual_seed(seed)
    family = model.config.backbone_config.model_type
    if family == "whisper":
        lengths = [n // 40 for n in lengths]
        shape = (len(lengths), 8, max(lengths))
    elif family == "wav2vec2-bert":
        lengths = [n // 40 for n in lengths]
        shape = (len(lengths), max(lengths), 160)
    else:
        shape = (len(lengths), max(lengths))
    values = torch.randn(shape, generator=generator)
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    if family == "whisper":
        values = values * mask[:, None]
    elif family == "wav2vec2-bert":
        values = values * mask[..., None]
    else:
        values = values * mask
    return {model.main_input_name: values, "attention_mask": mask}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(autouse=True)
def one_thread():
    """Whatever the test before has set: another number of threads is another order of sums."""
    torch.set_num_threads(1)


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def processor(model):
    return MasterASRProcessor.from_model(model)


def save_tiny_model(folder: Path) -> Path:
    """The folder, which holds a tiny model and its processor now."""
    model = tiny_model()
    model.save_pretrained(folder)
    MasterASRProcessor.from_model(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a tiny model and its processor; for reading alone."""
    return save_tiny_model(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def hub():
    """The Hub on loopback, empty and without faults."""
    HUB.repos.clear()
    HUB.blobs.clear()
    HUB.requests.clear()
    HUB.drop_downloads.clear()
    HUB.drop_uploads = 0
    HUB.stalls.clear()
    HUB.released.clear()
    yield HUB
    HUB.stalls.clear()
    HUB.released.set()


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What our rooms have warned of; Transformers' own logger hands nothing on by default."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("modeling_master_asr"), "propagate", True)
    return lambda: caplog.text


@contextmanager
def terminated_at(step, num_steps=None):
    """SIGTERM comes as this step begins, where several trainings are made of that which has so many steps; the run saves and ends."""
    begin = Turns.begin

    def terminate(turns, now):
        if now == step and num_steps in (None, turns.num_steps):
            os.kill(os.getpid(), signal.SIGTERM)
        begin(turns, now)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Turns, "begin", terminate)
        yield
