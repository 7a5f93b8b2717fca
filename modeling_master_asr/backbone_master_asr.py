"""The one place that knows encoder families: which layers are Artisan, which input, how many frames, what never trains.

Nobody else asks a config for its `model_type`, or a feature extractor for its class: they ask `family_of` or `family_reading`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModel,
    HubertForCTC,
    PreTrainedModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertForCTC,
    Wav2Vec2ConformerForCTC,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WavLMForCTC,
    WhisperFeatureExtractor,
    WhisperModel,
)

from .whisper_master_asr import TrueLengthWhisperEncoder, WhisperEncoderForCTC, check_mel_frames

ATTENTION_PROJ = ("q_proj", "k_proj", "v_proj", "out_proj")
ATTENTION_LINEAR = ("linear_q", "linear_k", "linear_v", "linear_out")  # not the positional `linear_pos`
DENSE = ("intermediate_dense", "output_dense")
SAMPLING_RATE_HZ = 16_000  # of every family's pretrained encoders
OF_PADDING = {"padding_side", "padding_value", "return_attention_mask", "chunk_length", "n_samples", "nb_max_frames"}  # the processor pads by itself
HOP_SAMPLES = 160  # of Whisper's mel frames


class Float32Windows(TorchFunctionMode):
    """Windows are float32 in it, in this thread, whatever the process's default: Transformers sets that for all threads while one of them loads
    a model in half precision, and Whisper's feature extractor makes its window in it.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **{**({"dtype": torch.float32} if func is torch.hann_window else {}), **(kwargs or {})})


@dataclass(frozen=True)
class Family:
    """What is particular to an encoder family. wav2vec 2.0's ways are the default; a family that differs overrides them.

    Attributes:
        ctc_class: the plain CTC model that `materialize` fills, its head named `lm_head`.
        targets: names of the linear layers that become Artisan.
        feed_forward: names of the linear layers that a language's `delta` may reach too.
        feature_extractor: the class that makes this family's input.
        input_name: the model's input.
        time_axis: of that input, negative: of a clip and of a batch of clips alike.
        layer_count_name: the config's number of encoder layers.
        front_end: modules of the backbone that make frames of audio: what `freeze_feature_encoder` freezes.
        fixed: modules of the backbone that never train.
        never_called: linear layers whose attention reads their weights and never calls them: an adapter around one would be ignored.
        extraction: keywords of a feature extractor's call that keep a clip at its true length.
        convolutions_see_padding: whether the encoder's convolutions carry padding into speech, as the conformer's do.
    """

    ctc_class: type[PreTrainedModel]
    targets: tuple[str, ...] = ATTENTION_PROJ
    feed_forward: tuple[str, ...] = DENSE
    feature_extractor: type = Wav2Vec2FeatureExtractor
    input_name: str = "input_values"
    time_axis: int = -1
    layer_count_name: str = "num_hidden_layers"
    front_end: tuple[str, ...] = ("feature_extractor",)
    fixed: tuple[str, ...] = ()
    never_called: tuple[str, ...] = ()
    extraction: dict = field(default_factory=dict)
    convolutions_see_padding: bool = False

    # ------------------------------------------------------------------ the encoder

    def new_encoder(self, config) -> PreTrainedModel:
        """A fresh encoder."""
        return AutoModel.from_config(config)

    def load_encoder(self, id_or_path: str, config, dtype: torch.dtype, **kwargs) -> PreTrainedModel:
        """The stock pretrained encoder, from the hub or a folder."""
        return AutoModel.from_pretrained(id_or_path, config=config, dtype=dtype, **kwargs)

    def hidden_size(self, config) -> int:
        """Width of `last_hidden_state`."""
        return config.output_hidden_size if getattr(config, "add_adapter", False) else config.hidden_size

    # ------------------------------------------------------------------ audio to input

    def new_feature_extractor(self, config):
        """The feature extractor an encoder was made for, where its repo names none."""
        layer_norm = getattr(config, "feat_extract_norm", "layer") == "layer"
        return self.feature_extractor(return_attention_mask=layer_norm, do_normalize=True)

    def features(self, extractor, samples: np.ndarray) -> np.ndarray:
        """The model's input for one clip of float samples, at its true length: `(samples,)` or `(mels or frames, ...)`."""
        made = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="np", **self.extraction)
        return np.asarray(made[self.input_name][0], dtype=np.float32)

    def check_length(self, config, num_samples: int) -> None:
        """Refuses, before any feature is made of it, what the encoder takes no more of at once.

        Raises:
            ValueError: beyond Whisper's 30 s.
        """

    def input_shape(self, config, length_s: float) -> tuple[int, ...]:
        """Shape of the input of one clip of `length_s` seconds."""
        return (int(length_s * SAMPLING_RATE_HZ),)

    # ------------------------------------------------------------------ input to frames

    def samples_per_frame(self, config) -> int:
        """Audio samples (at 16 kHz) a frame of logits: what the pipeline's chunks and time stamps are made of."""
        return math.prod(config.conv_stride) * _adapter_stride(config)

    def frame_counts(self, backbone: PreTrainedModel, input_lengths: torch.Tensor) -> torch.Tensor:
        """Frames of logits for `input_lengths` (samples, or feature frames where the model takes features), `(B,)` -> `(B,)`."""
        return backbone._get_feat_extract_output_lengths(input_lengths).to(torch.long)

    def padding_leaks(self, config) -> bool:
        """Whether padding changes a clip's output: a group-norm feature extractor averages over it and takes no mask, and the
        conformer's convolutions, and those of an adapter, reach into it.
        """
        return self.convolutions_see_padding or getattr(config, "add_adapter", False) or getattr(config, "feat_extract_norm", "layer") == "group"


@dataclass(frozen=True)
class Wav2Vec2BertFamily(Family):
    """Takes filter-bank frames, two stacked in one: no convolutional front end."""

    targets: tuple[str, ...] = ATTENTION_LINEAR
    feature_extractor: type = SeamlessM4TFeatureExtractor
    input_name: str = "input_features"
    time_axis: int = -2
    front_end: tuple[str, ...] = ()

    def new_feature_extractor(self, config):
        return self.feature_extractor()

    def features(self, extractor, samples: np.ndarray) -> np.ndarray:
        made = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="np", return_attention_mask=True)
        num_frames = max(int(made["attention_mask"][0].sum()), 1)  # an odd frame of 10 ms has only padding to be stacked with
        return np.asarray(made[self.input_name][0][:num_frames], dtype=np.float32)

    def input_shape(self, config, length_s: float) -> tuple[int, ...]:
        return int(length_s * 50), config.feature_projection_input_dim

    def samples_per_frame(self, config) -> int:
        return 320 * _adapter_stride(config)  # 10 ms hops, stacked in pairs by the feature extractor

    def frame_counts(self, backbone: PreTrainedModel, input_lengths: torch.Tensor) -> torch.Tensor:
        return super().frame_counts(backbone, input_lengths) if backbone.config.add_adapter else input_lengths


@dataclass(frozen=True)
class WhisperFamily(Family):
    """The encoder's half of an encoder-decoder; takes log-mel frames, at the clip's true length (see `whisper_master_asr`)."""

    feed_forward: tuple[str, ...] = ("fc1", "fc2")
    feature_extractor: type = WhisperFeatureExtractor
    input_name: str = "input_features"
    layer_count_name: str = "encoder_layers"
    front_end: tuple[str, ...] = ("conv1", "conv2")
    fixed: tuple[str, ...] = ("embed_positions",)  # sinusoids
    extraction: dict = field(default_factory=lambda: {"padding": "do_not_pad", "truncation": False})

    def new_encoder(self, config) -> PreTrainedModel:
        return TrueLengthWhisperEncoder(config)

    def load_encoder(self, id_or_path: str, config, dtype: torch.dtype, **kwargs) -> PreTrainedModel:
        return WhisperModel.from_pretrained(id_or_path, config=config, dtype=dtype, **kwargs).encoder

    def hidden_size(self, config) -> int:
        return config.d_model

    def new_feature_extractor(self, config):
        return self.feature_extractor(feature_size=config.num_mel_bins)

    def features(self, extractor, samples: np.ndarray) -> np.ndarray:
        hop = extractor.hop_length
        with Float32Windows():
            return super().features(extractor, np.asarray(samples)[: len(samples) // hop * hop])  # whole hops, each one mel frame

    def check_length(self, config, num_samples: int) -> None:
        check_mel_frames(num_samples // HOP_SAMPLES, config.max_source_positions)

    def input_shape(self, config, length_s: float) -> tuple[int, ...]:
        return config.num_mel_bins, int(length_s * 100)

    def samples_per_frame(self, config) -> int:
        return 2 * HOP_SAMPLES  # the second convolution has stride 2

    def frame_counts(self, backbone: PreTrainedModel, input_lengths: torch.Tensor) -> torch.Tensor:
        return (input_lengths + 1) // 2


FAMILIES = {
    "wav2vec2": Family(Wav2Vec2ForCTC),
    "hubert": Family(HubertForCTC),
    "wavlm": Family(WavLMForCTC, never_called=ATTENTION_PROJ),
    "wav2vec2-bert": Wav2Vec2BertFamily(Wav2Vec2BertForCTC),
    "wav2vec2-conformer": Family(Wav2Vec2ConformerForCTC, ATTENTION_LINEAR, convolutions_see_padding=True),
    "whisper": WhisperFamily(WhisperEncoderForCTC),
}


def family_of(backbone_config) -> Family:
    """The family of a backbone config.

    Raises:
        ValueError: for an encoder that is not in `FAMILIES`.
    """
    name = getattr(backbone_config, "model_type", None)
    if name not in FAMILIES:
        raise ValueError(f"A backbone of type {name!r} is not supported. Supported: {sorted(FAMILIES)}.")
    return FAMILIES[name]


def family_reading(feature_extractor) -> Family:
    """A family that reads what `feature_extractor` makes; those that share a feature extractor read it alike.

    Raises:
        ValueError: for a feature extractor of no family.
    """
    found = next((family for family in FAMILIES.values() if isinstance(feature_extractor, family.feature_extractor)), None)
    if found is None:
        known = sorted({family.feature_extractor.__name__ for family in FAMILIES.values()})
        raise ValueError(f"No supported encoder reads the features of a {type(feature_extractor).__name__}. Supported: {known}.")
    return found


def _adapter_stride(config) -> int:
    return config.adapter_stride**config.num_adapter_layers if getattr(config, "add_adapter", False) else 1


def keep_frozen_parts_still(backbone: nn.Module) -> None:
    """What frozen parts need in training beside `requires_grad=False`, and BatchNorm in any case."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d):
            # CHOICE: conformer's BatchNorm normalizes in training too by the statistics its encoder was pretrained with: a batch holds one language,
            # whose own would disturb the others'; processes would each move theirs, and recomputation would count a batch twice. An encoder
            # made from scratch would stay at mean 0 and variance 1: Master-ASR begins with a pretrained one.
            module.eval()
            module.reset_running_stats = _keep_running_stats
        if hasattr(module, "_requires_grad"):
            # wav2vec 2.0's front end asks for the gradient of its own output, which is run through the whole encoder
            module._requires_grad = any(p.requires_grad for p in module.parameters())


def _keep_running_stats() -> None:
    raise NotImplementedError(
        "This would set a BatchNorm's statistics to nothing: they stay those of the pretrained encoder, which normalizes by them in training too. Leave out what resets "
        "them, such as torch.optim.swa_utils.update_bn."
    )


def settings_that_differ(extractor, wanted: dict | None) -> dict[str, tuple]:
    """`{setting: (extractor's, wanted)}` of those that change a clip's features.

    Args:
        wanted: `to_dict()` of the extractor that the encoder was trained with; None: unknown, so that only the sampling rate can differ.
    """
    own = extractor.to_dict()
    wanted = {"sampling_rate": SAMPLING_RATE_HZ} if wanted is None else {k: v for k, v in wanted.items() if k not in OF_PADDING}
    return {name: (own.get(name), value) for name, value in wanted.items() if own.get(name) != value}
