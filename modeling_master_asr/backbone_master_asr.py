"""The one place that knows encoder families: which projections are Artisan, which features, how many frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    HubertForCTC,
    PreTrainedModel,
    Wav2Vec2BertForCTC,
    Wav2Vec2ConformerForCTC,
    Wav2Vec2ForCTC,
    WavLMForCTC,
    WhisperModel,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils.output_capturing import capture_outputs

from .artisan_master_asr import ArtisanLinear, as_assembled


class TrueLengthWhisperEncoder(WhisperEncoder):
    """The Whisper encoder at the clip's true length: positions cut to its frames, padding masked.

    Stock Whisper pads every clip to 30 s; a 3 s clip then costs ten times its price. At 3,000 unmasked mel frames the
    outputs are bit-equal to the stock encoder's.
    """

    @capture_outputs
    def forward(self, input_features: torch.Tensor, attention_mask: Optional[torch.Tensor] = None, **kwargs):
        """Encodes log-mel `input_features` `(B, num_mel_bins, mel_frames)`; `attention_mask` `(B, mel_frames)`, 1 = speech.

        Returns:
            `last_hidden_state` `(B, ceil(mel_frames / 2), d_model)`.

        Raises:
            ValueError: for more than 30 s.
        """
        num_frames = (input_features.shape[-1] + 1) // 2  # the second convolution has stride 2
        if num_frames > self.max_source_positions:
            raise ValueError(
                f"A Whisper backbone takes at most {2 * self.max_source_positions} mel frames (30 s) at once; got "
                f"{input_features.shape[-1]}. Cut long audio: pipeline(..., chunk_length_s=30), or training.transcribe."
            )
        padded = attention_mask is not None and not bool(attention_mask.all())
        if padded:  # as if the clip ended here: zeros are what the convolutions pad with
            speech = attention_mask.to(input_features.dtype)[:, None, :]
            input_features = input_features * speech
        hidden_states = nn.functional.gelu(self.conv1(input_features))
        if padded:
            hidden_states = hidden_states * speech
        hidden_states = nn.functional.gelu(self.conv2(hidden_states))
        hidden_states = hidden_states.permute(0, 2, 1)  # (B, d, T) -> (B, T, d)
        positions = torch.arange(num_frames, device=hidden_states.device)
        hidden_states = hidden_states + self.embed_positions(positions)
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        layer_mask = None
        if padded:
            frames_mask = attention_mask[:, ::2]  # (B, mel_frames) -> (B, T)
            hidden_states = hidden_states * frames_mask[..., None].to(hidden_states.dtype)
            layer_mask = create_bidirectional_mask(self.config, hidden_states, frames_mask)
        for layer in self.layers:
            if self.training and self.layerdrop > 0 and torch.rand([]) < self.layerdrop:
                continue
            hidden_states = layer(hidden_states, layer_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layer_norm(hidden_states))


ATTENTION_PROJ = ("q_proj", "k_proj", "v_proj", "out_proj")
ATTENTION_LINEAR = ("linear_q", "linear_k", "linear_v", "linear_out")  # not the positional `linear_pos`
DENSE = ("intermediate_dense", "output_dense")


@dataclass(frozen=True)
class Family:
    """What an encoder family needs: its Artisan targets, its feed-forward layers, the model's input, its feature extractor and stock CTC class."""

    targets: tuple[str, ...]
    feed_forward: tuple[str, ...]
    input_name: str
    feature_extractor: str
    ctc_class: Optional[type[PreTrainedModel]]


FAMILIES = {
    "wav2vec2": Family(ATTENTION_PROJ, DENSE, "input_values", "Wav2Vec2FeatureExtractor", Wav2Vec2ForCTC),
    "hubert": Family(ATTENTION_PROJ, DENSE, "input_values", "Wav2Vec2FeatureExtractor", HubertForCTC),
    "wavlm": Family(ATTENTION_PROJ, DENSE, "input_values", "Wav2Vec2FeatureExtractor", WavLMForCTC),
    "wav2vec2-bert": Family(ATTENTION_LINEAR, DENSE, "input_features", "SeamlessM4TFeatureExtractor", Wav2Vec2BertForCTC),
    "wav2vec2-conformer": Family(ATTENTION_LINEAR, DENSE, "input_values", "Wav2Vec2FeatureExtractor", Wav2Vec2ConformerForCTC),
    "whisper": Family(ATTENTION_PROJ, ("fc1", "fc2"), "input_features", "WhisperFeatureExtractor", None),
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


def build_backbone(backbone_config, num_specialists: int, targets: Optional[list[str]] = None) -> PreTrainedModel:
    """The encoder of `backbone_config`, its targeted linear layers turned into `ArtisanLinear`, and the feed-forward layers and layer
    norms, which languages may own changes of, into assembled ones.
    """
    family = family_of(backbone_config)
    if backbone_config.model_type == "whisper":
        backbone = TrueLengthWhisperEncoder(backbone_config)
    else:
        backbone = AutoModel.from_config(backbone_config)
    names = tuple(targets or family.targets)
    found = [
        (parent, name, child)
        for parent in backbone.modules()
        for name, child in parent.named_children()
        if name in names and isinstance(child, nn.Linear)
    ]
    missing = sorted(set(names) - {name for _, name, _ in found})
    if missing:
        linears = sorted({n.split(".")[-1] for n, m in backbone.named_modules() if isinstance(m, nn.Linear)})
        raise ValueError(f"artisan_targets {missing} name no linear layer of this backbone. It has: {linears}.")
    for parent, name, linear in found:
        setattr(parent, name, ArtisanLinear.from_linear(linear, num_specialists))
    for path, parent in list(backbone.named_modules()):
        for name, child in parent.named_children():
            is_norm = type(child) is nn.LayerNorm and "feature_extractor" not in path
            if is_norm or (type(child) is nn.Linear and name in family.feed_forward):
                setattr(parent, name, as_assembled(child))
    if backbone_config.model_type == "wavlm":  # its attention reads the weights
        for name, module in backbone.named_modules():
            module.is_never_called = name.split(".")[-1] in ATTENTION_PROJ
    return backbone


def load_pretrained_backbone(
    id_or_path: str, dtype: torch.dtype, num_layers: Optional[int] = None, **kwargs
) -> tuple[object, dict[str, torch.Tensor]]:
    """Config and weights W of a pretrained encoder, from the hub or a folder; for Whisper the encoder's half.

    Args:
        num_layers: keeps only the first layers; None: all.

    Returns:
        `(backbone_config, state_dict)`.
    """
    config = AutoConfig.from_pretrained(id_or_path, **kwargs)
    family_of(config)
    if num_layers is not None:
        setattr(config, "encoder_layers" if config.model_type == "whisper" else "num_hidden_layers", num_layers)
    loader = WhisperModel if config.model_type == "whisper" else AutoModel
    stock = loader.from_pretrained(id_or_path, config=config, dtype=dtype, **kwargs)
    encoder = stock.encoder if config.model_type == "whisper" else stock
    return config, encoder.state_dict()


def hidden_size(backbone_config) -> int:
    """Width of `last_hidden_state`."""
    if backbone_config.model_type == "whisper":
        return backbone_config.d_model
    if getattr(backbone_config, "add_adapter", False):
        return backbone_config.output_hidden_size
    return backbone_config.hidden_size


def samples_per_frame(backbone_config) -> int:
    """Audio samples (at 16 kHz) a frame of logits: what the pipeline's chunks and time stamps are made of."""
    if backbone_config.model_type == "whisper":
        return 320  # 10 ms hops, then stride 2
    if backbone_config.model_type == "wav2vec2-bert":
        ratio = 320  # 10 ms hops, stacked in pairs by the feature extractor
    else:
        ratio = math.prod(backbone_config.conv_stride)
    if getattr(backbone_config, "add_adapter", False):
        ratio *= backbone_config.adapter_stride**backbone_config.num_adapter_layers
    return ratio


def frame_counts(backbone: PreTrainedModel, input_lengths: torch.Tensor) -> torch.Tensor:
    """Frames of logits for `input_lengths` (samples, or feature frames where the model takes features), `(B,)` -> `(B,)`."""
    config = backbone.config
    if config.model_type == "whisper":
        return (input_lengths + 1) // 2
    if config.model_type == "wav2vec2-bert" and not config.add_adapter:
        return input_lengths
    return backbone._get_feat_extract_output_lengths(input_lengths).to(torch.long)


def padding_leaks(backbone_config) -> bool:
    """Whether padding changes a clip's output: a group-norm feature extractor averages over it and takes no mask, and the
    conformer's convolutions reach into it.
    """
    is_conformer = backbone_config.model_type == "wav2vec2-conformer"
    return is_conformer or getattr(backbone_config, "feat_extract_norm", "layer") == "group"


def keep_frozen_parts_still(backbone: nn.Module) -> None:
    """What frozen parts need in training beside `requires_grad=False`."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d) and not module.weight.requires_grad:
            module.eval()  # conformer's running statistics are shared: stage 2 may not move them
        if hasattr(module, "_requires_grad"):
            # wav2vec 2.0's front end asks for the gradient of its own output, which is run through the whole encoder
            module._requires_grad = any(p.requires_grad for p in module.parameters())
