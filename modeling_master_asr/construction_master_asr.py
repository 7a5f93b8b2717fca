"""A model's making: the encoder with its Artisan layers, and a fresh model on a pretrained encoder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Optional

import torch
from torch import nn
from transformers import AutoConfig, AutoFeatureExtractor, PreTrainedModel

from .artisan_master_asr import ArtisanLinear, as_assembled
from .backbone_master_asr import family_of
from .configuration_master_asr import SPECIAL_TOKENS, MasterASRConfig, from_preset
from .files_master_asr import check_folder


def build_backbone(backbone_config, num_specialists: int, targets: Optional[list[str]]) -> PreTrainedModel:
    """The encoder of `backbone_config`, its targeted linear layers turned into `ArtisanLinear`, and the feed-forward layers and layer
    norms, which languages may own changes of, into assembled ones.

    Raises:
        ValueError: for an unknown family, or a target that names no linear layer.
    """
    family = family_of(backbone_config)
    backbone = family.new_encoder(backbone_config)
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
            is_norm = type(child) is nn.LayerNorm and not set(path.split(".")) & set(family.front_end)
            if is_norm or (type(child) is nn.Linear and name in family.feed_forward):
                setattr(parent, name, as_assembled(child))
    for name, module in backbone.named_modules():
        if name.split(".")[-1] in family.never_called:
            module.is_never_called = True
    return backbone


def load_pretrained_backbone(id_or_path: str, dtype: torch.dtype, num_layers: Optional[int], **kwargs) -> tuple[object, dict[str, torch.Tensor]]:
    """Config and weights W of a pretrained encoder, from the hub or a folder.

    Args:
        num_layers: keeps only the first layers; None: all.
        kwargs: entries of the encoder's config (`layerdrop`, `mask_time_prob`, ...) and what its `from_pretrained` takes.

    Returns:
        `(backbone_config, state_dict)`.

    Raises:
        FileNotFoundError: for a folder that is not there.
        ValueError: for an unknown family, or a `num_layers` below 1 or above the layers that there are.
    """
    check_folder(str(id_or_path))
    config = AutoConfig.from_pretrained(id_or_path, **kwargs)
    family = family_of(config)
    if num_layers is not None:
        there = getattr(config, family.layer_count_name)
        if not 1 <= num_layers <= there:
            raise ValueError(f"num_layers: got {num_layers}; allowed: 1 to {there}, as many as {id_or_path} has.")
        setattr(config, family.layer_count_name, num_layers)
    return config, family.load_encoder(id_or_path, config, dtype, **_not_of(config, kwargs)).state_dict()


def _not_of(config, kwargs: dict) -> dict:
    """The keywords that are no entries of the encoder's config, which holds those already: of the hub."""
    return {name: value for name, value in kwargs.items() if not hasattr(config, name)}


def feature_settings(id_or_path: str, **kwargs) -> Optional[dict]:
    """The settings of the feature extractor that a pretrained encoder comes with; None if none can be read."""
    try:
        settings = AutoFeatureExtractor.from_pretrained(id_or_path, **kwargs).to_dict()
    except (OSError, ValueError):
        return None
    return {name: value for name, value in settings.items() if name not in ("feature_extractor_type", "processor_class")}


def _type_of_torch(dtype) -> torch.dtype:
    """`dtype`, or the type that has this name.

    Raises:
        ValueError: for what torch does not have.
    """
    dtype = getattr(torch, dtype) if isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype) else dtype
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype: got {dtype!r}; allowed: one of torch's, such as torch.float16 or its name.")
    return dtype


class Construction:
    """How a `MasterASRForCTC` is made where there is no checkpoint of one yet."""

    @classmethod
    def from_backbone(
        cls,
        id_or_path: str,
        languages: dict[str, dict[str, int]],
        num_specialists: int = 4,
        sparsity: float = 0.3,
        artisan_targets: Optional[list[str]] = None,
        num_layers: Optional[int] = None,
        dtype: torch.dtype = torch.float32,
        preset: str = "paper",
        parts: Optional[Iterable[str]] = None,
        rank: Optional[int] = None,
        targets: Optional[str] = None,
        **backbone_kwargs,
    ):
        """A fresh model on a pretrained encoder: W bit-equal to it, its languages sharing one character bank (CHOICE: W_cls of the paper has a row for
        each character of any language).

        Args:
            id_or_path: hub id or folder of a wav2vec 2.0, HuBERT, WavLM, wav2vec2-BERT, -conformer or Whisper checkpoint.
            languages: `{code: {token: id}}`.
            num_specialists: K.
            sparsity: t, the fraction masked out.
            artisan_targets: names of the linear layers to make Artisan; None: the attention projections.
            num_layers: keeps only the encoder's first layers; None: all.
            dtype: of W and M; what languages own stays float32.
            preset, parts, rank, targets: what each language owns, see `add_language`.
            backbone_kwargs: `revision`, `token`, `attn_implementation`, ... of the encoder's own `from_pretrained`, and entries of its config
                (`hidden_dropout`, `layerdrop`, `mask_time_prob`, ...).

        Raises:
            FileNotFoundError: for a folder that is not there.
            ValueError: for more layers than there are, a type that torch does not have, weights that do not fill the encoder.
        """
        id_or_path = str(Path(id_or_path).resolve() if Path(id_or_path).is_dir() else id_or_path)  # a folder is known as one ever after
        dtype = _type_of_torch(dtype)
        attention = backbone_kwargs.pop("attn_implementation", None)
        backbone_config, weights = load_pretrained_backbone(id_or_path, dtype, num_layers, **backbone_kwargs)
        owned = from_preset(preset, parts, rank, targets)
        characters = sorted({token for vocab in languages.values() for token in vocab} - set(SPECIAL_TOKENS))
        config = MasterASRConfig(
            backbone_config=backbone_config,
            num_specialists=num_specialists,
            sparsity=sparsity,
            artisan_targets=artisan_targets,
            assemblies={code: {"vocab": vocab, "shares_bank": True, **owned} for code, vocab in languages.items()},
            character_bank=[*SPECIAL_TOKENS, *characters],
            base_model=id_or_path,
            feature_extractor=feature_settings(id_or_path, **_not_of(backbone_config, backbone_kwargs)),
        )
        model = cls(config)
        model.master_asr.backbone.to(dtype)
        missing, unexpected = model.master_asr.backbone.load_state_dict(weights, strict=False)
        missing = [name for name in missing if not name.endswith(".specialists")]
        if missing or unexpected:
            raise ValueError(f"{id_or_path} does not fill its encoder: missing {missing}, unexpected {unexpected}.")
        for layer in model.master_asr.artisan_layers:
            layer.reset_specialists()
        if attention is not None:
            model.set_attn_implementation(attention)
        return model.eval()
