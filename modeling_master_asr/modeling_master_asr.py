"""Master-ASR models: MasterASRModel, the assembled encoder, and MasterASRForCTC, with a head for every language.

    audio -> backbone with the weights W * B_l of language l -> head of l -> logits
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Optional, Union

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.utils import logging

from .artisan_master_asr import ArtisanLinear, assembled_as, checkpoint_contexts
from .assembly_master_asr import (
    Assemblies,
    BankHead,
    CharacterBank,
    LanguageAssembly,
    LowRank,
    Vectors,
    fingerprint,
)
from .backbone_master_asr import (
    build_backbone,
    family_of,
    frame_counts,
    hidden_size,
    keep_frozen_parts_still,
    load_pretrained_backbone,
    padding_leaks,
    samples_per_frame,
)
from .configuration_master_asr import SPECIAL_TOKENS, MasterASRConfig, copy_code
from .hub_master_asr import HubVerbs
from .languages_master_asr import LanguageVerbs
from .masks_master_asr import MaskStore
from .weights_master_asr import AssembledWeights, Layout
from .wrapping_master_asr import may_wrap

if TYPE_CHECKING:  # the remote-code scanner ships the files that are imported here
    from .pipeline_master_asr import MasterASRPipeline  # noqa: F401

logger = logging.get_logger(__name__)
register_module_module_registration_hook(may_wrap)

Languages = Union[str, list[str], tuple[str, ...], None]


class MasterASRPreTrainedModel(PreTrainedModel):
    config_class = MasterASRConfig
    base_model_prefix = "master_asr"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    accepts_loss_kwargs = False  # the loss is a mean already: Trainer then divides by its accumulation steps

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, dtype=None, **kwargs):
        """As in Transformers, but float32 unless a dtype is asked for, so a checkpoint stored in fp16 runs on any CPU."""
        dtype = torch.float32 if dtype in (None, "auto") else dtype
        model = super().from_pretrained(pretrained_model_name_or_path, *args, dtype=dtype, **kwargs)
        base = model[0] if isinstance(model, tuple) else model
        base.base_model._mark_base_as_stored()
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LanguageAssembly):
            module.reset_mapping()
        elif isinstance(module, CharacterBank):
            init.normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        elif isinstance(module, BankHead):
            module.reset_rows()
        elif isinstance(module, (LowRank, Vectors)):
            module.reset_parameters()

    def initialize_weights(self) -> None:
        """Values for what a checkpoint lacks; specialists sit inside a stock backbone, which knows nothing of them."""
        super().initialize_weights()
        for module in self.modules():
            if isinstance(module, ArtisanLinear):
                module.reset_specialists()

    def _set_gradient_checkpointing(self, enable: bool = True, gradient_checkpointing_func=checkpoint, **kwargs) -> None:
        if enable:
            if getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant", False):
                raise ValueError(
                    "use_reentrant=True cannot carry a call's language into the recomputation. "
                    'Use gradient_checkpointing_kwargs={"use_reentrant": False}.'
                )
            gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, context_fn=checkpoint_contexts)
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """As in Transformers, plus the base's fingerprint in the config and every code file remote loading needs."""
        base = self.base_model
        if base.stored_fingerprint() is None:
            self.config.fingerprint = fingerprint(base.base_tensors())
        super().save_pretrained(save_directory, *args, **kwargs)
        base._mark_base_as_stored()
        copy_code(save_directory)


class MasterASRModel(MasterASRPreTrainedModel):
    """The assembled encoder: backbone, specialists, character bank and assemblies."""

    def __init__(self, config: MasterASRConfig):
        super().__init__(config)
        config.inputs_to_logits_ratio = samples_per_frame(config.backbone_config)
        self.main_input_name = family_of(config.backbone_config).input_name
        self.backbone = build_backbone(config.backbone_config, config.num_specialists, config.artisan_targets)
        self.layout = Layout(self.backbone)
        hidden = hidden_size(config.backbone_config)
        self.character_bank = CharacterBank(hidden, len(config.character_bank)) if config.character_bank else None
        self.assemblies = Assemblies()
        for language in config.languages:
            self.assemblies[language] = self._new_assembly(language)
        self._stored_versions: Optional[tuple] = None
        self._masks = MaskStore()
        self._is_sharded = False
        self.post_init()

    def _new_assembly(self, language: str) -> LanguageAssembly:
        return LanguageAssembly(self.config, language, self.layout, hidden_size(self.config.backbone_config), self)

    @property
    def artisan_layers(self) -> list[ArtisanLinear]:
        """The layers that masks reach, in the order of a mapping's rows."""
        return self.layout.artisan

    # ------------------------------------------------------------------ the base: W and M

    def base_tensors(self) -> dict[str, torch.Tensor]:
        """W and M by name: what assemblies are made for."""
        return dict(self.backbone.state_dict())

    def _base_versions(self) -> tuple:
        """Moves when W or M is written to or cast (a cast replaces the values and leaves the version counter)."""
        parameters = list(self.backbone.parameters())
        return sum(0 if p.is_inference() else p._version for p in parameters), tuple(p.dtype for p in parameters)

    def _mark_base_as_stored(self) -> None:
        self._stored_versions = self._base_versions()

    def stored_fingerprint(self) -> Optional[str]:
        """The fingerprint of the saved base this model still is, or None: never saved, or trained since."""
        if self.config.fingerprint is not None and self._stored_versions != self._base_versions():
            if fingerprint(self.base_tensors()) == self.config.fingerprint:  # written to, with the same values: Trainer's best checkpoint
                self._mark_base_as_stored()
        return self.config.fingerprint if self._stored_versions == self._base_versions() else None

    # ------------------------------------------------------------------ languages of a call

    def resolve_languages(self, language: Languages, batch_size: int) -> list[str]:
        """One loaded code for each clip.

        Raises:
            ValueError: for none where several are loaded and no default is set, or a list of another length.
            KeyError: for a language that is not loaded.
        """
        config = self.config
        if language is None:
            language = config.default_language or (config.languages[0] if len(config.languages) == 1 else None)
        if language is None:
            raise ValueError(
                f"Which language? Loaded: {config.languages}. Pass language=... with the call, or model.set_language(...)."
            )
        codes = [language] * batch_size if isinstance(language, str) else list(language)
        if len(codes) != batch_size:
            raise ValueError(f"language has {len(codes)} codes for {batch_size} clips; pass one code, or one for each clip.")
        for code in set(codes):
            config.check_language(code)
        return codes

    # ------------------------------------------------------------------ assembled weights

    def assembled(self, language: str) -> AssembledWeights:
        """The parameters of `language`, each made when its layer first reads it."""
        # Once seen it holds: a model that keeps its weights gathered after a forward shows plain tensors in the next.
        self._is_sharded = self._is_sharded or self.layout.is_sharded()
        store = None if self._is_sharded else self._masks
        assembly = self.assemblies[language]
        return AssembledWeights(self.layout, assembly, language, self.config.sparsity, store, len(self.assemblies), self.training)

    def _forget(self) -> None:
        """Drops what was kept of masks and weights: called by everything that may write to what they are made of."""
        self._masks.forget()

    def train(self, mode: bool = True):
        """As in PyTorch, but frozen parts stay as they are, and what the other mode has kept is let go."""
        if mode != self.training:
            self._forget()
        super().train(mode)
        if mode:
            keep_frozen_parts_still(self.backbone)
        return self

    def _apply(self, *args, **kwargs):
        self._forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self._forget()
        return super()._load_from_state_dict(*args, **kwargs)

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        input_values: Optional[torch.Tensor] = None,
        input_features: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        language: Languages = None,
        **kwargs,
    ) -> BaseModelOutput:
        """Encodes a batch, every clip with the weights of its own language.

        Args:
            input_values: `(B, samples)`, or
            input_features: `(B, mels, frames)` (Whisper) or `(B, frames, features)` (wav2vec2-BERT).
            attention_mask: `(B, samples or frames)`, 1 where there is speech.
            language: one code, or one for each clip; None: the default, or the only one loaded.

        Returns:
            `last_hidden_state` `(B, T, hidden)`.

        Raises:
            ValueError, KeyError: for a missing, unknown or miscounted language; for audio without a single frame.
        """
        inputs = self.check_inputs(input_values, input_features)
        codes = self.resolve_languages(language, len(inputs))
        groups = self._groups(codes, attention_mask)
        if len(groups) == 1 and groups[0][1] is None:
            return self._encode(inputs, attention_mask, codes[0], **kwargs)
        pieces, order = [], []
        for clips, length in groups:
            index = torch.tensor(clips, device=inputs.device)
            mask = None if attention_mask is None else attention_mask[index]
            piece = inputs[index]
            if length is not None:  # equal lengths: no padding at all
                piece, mask = piece[:, :length], None if mask is None else mask[:, :length]
            pieces.append(self._encode(piece, mask, codes[clips[0]], **kwargs))
            order += clips
        return _merge(pieces, order)

    def check_inputs(self, input_values: Optional[torch.Tensor], input_features: Optional[torch.Tensor]) -> torch.Tensor:
        """The one input this backbone takes.

        Raises:
            ValueError: if it is missing, or too short for a single frame.
        """
        given = {"input_values": input_values, "input_features": input_features}
        inputs = given[self.main_input_name]
        if inputs is None:
            found = [name for name, value in given.items() if value is not None]
            raise ValueError(f"This backbone takes {self.main_input_name}; got {found or 'neither'}. Use its own processor.")
        length = inputs.shape[-1 if self.config.backbone_config.model_type != "wav2vec2-bert" else 1]
        if length == 0 or int(frame_counts(self.backbone, torch.tensor([length]))) < 1:
            raise ValueError(f"The audio is too short: {length} {self.main_input_name} give not one frame of logits.")
        return inputs

    def _groups(self, codes: list[str], attention_mask) -> list[tuple[list[int], Optional[int]]]:
        """Clips to encode together: one language, and one length where padding would change the result."""
        lengths = [None] * len(codes)
        if attention_mask is not None and padding_leaks(self.config.backbone_config) and not self.training:
            lengths = attention_mask.sum(-1).tolist()
            if set(lengths) == {attention_mask.shape[1]}:
                lengths = [None] * len(codes)
        groups: dict[tuple, list[int]] = {}
        for clip, key in enumerate(zip(codes, lengths)):
            groups.setdefault(key, []).append(clip)
        return [(clips, length) for (_, length), clips in groups.items()]

    def _encode(self, inputs, attention_mask, language: str, **kwargs) -> BaseModelOutput:
        with assembled_as(self.assembled(language)):
            return self.backbone(inputs, attention_mask=attention_mask, **kwargs)

    def frame_counts(self, inputs: torch.Tensor, attention_mask: Optional[torch.Tensor]) -> torch.Tensor:
        """Frames of logits of each clip, `(B,)`."""
        if attention_mask is None:
            axis = 1 if self.config.backbone_config.model_type == "wav2vec2-bert" else -1
            lengths = torch.full((len(inputs),), inputs.shape[axis], device=inputs.device)
        else:
            lengths = attention_mask.sum(-1)
        return frame_counts(self.backbone, lengths).to(torch.long)


def _merge(pieces: list[BaseModelOutput], order: list[int]) -> BaseModelOutput:
    """Puts the groups' outputs back into the batch's order, `(b, t, hidden)` each -> `(B, T, hidden)`."""
    back = torch.tensor(order).argsort()
    longest = max(piece.last_hidden_state.shape[1] for piece in pieces)

    def join(tensors):
        padded = [nn.functional.pad(t, (0, 0, 0, longest - t.shape[1])) for t in tensors]
        return torch.cat(padded)[back.to(padded[0].device)]

    hidden_states = None
    if getattr(pieces[0], "hidden_states", None):
        hidden_states = tuple(join(layer) for layer in zip(*(piece.hidden_states for piece in pieces)))
    return BaseModelOutput(last_hidden_state=join([p.last_hidden_state for p in pieces]), hidden_states=hidden_states)


@dataclass
class MasterASROutput(CausalLMOutput):
    """A `CausalLMOutput` that also says how many of its frames are speech.

    Attributes:
        frames: each clip's frames of logits, `(B,)`; what follows them in a batch is padding.
    """

    frames: Optional[torch.LongTensor] = None


class MasterASRForCTC(LanguageVerbs, HubVerbs, MasterASRPreTrainedModel):
    """The assembled encoder with a CTC head for every language."""

    def __init__(self, config: MasterASRConfig):
        super().__init__(config)
        self.master_asr = MasterASRModel(config)
        self.main_input_name = self.master_asr.main_input_name
        self.post_init()

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
        **backbone_kwargs,
    ) -> MasterASRForCTC:
        """A fresh model on a pretrained encoder: W bit-equal to it, its languages sharing one character bank.

        Args:
            id_or_path: hub id or folder of a wav2vec 2.0, HuBERT, WavLM, wav2vec2-BERT, -conformer or Whisper checkpoint.
            languages: `{code: {token: id}}`.
            num_specialists: K.
            sparsity: t, the fraction masked out.
            artisan_targets: names of the linear layers to make Artisan; None: the attention projections.
            num_layers: keeps only the encoder's first layers; None: all.
            backbone_kwargs: `revision`, `token`, ... of the encoder's own `from_pretrained`.
        """
        backbone_config, weights = load_pretrained_backbone(id_or_path, dtype, num_layers, **backbone_kwargs)
        characters = sorted({token for vocab in languages.values() for token in vocab} - set(SPECIAL_TOKENS))
        config = MasterASRConfig(
            backbone_config=backbone_config,
            num_specialists=num_specialists,
            sparsity=sparsity,
            artisan_targets=artisan_targets,
            assemblies={code: {"vocab": vocab, "shares_bank": True} for code, vocab in languages.items()},
            character_bank=[*SPECIAL_TOKENS, *characters],
            base_model=str(id_or_path),
        )
        model = cls(config).to(dtype)
        missing, unexpected = model.master_asr.backbone.load_state_dict(weights, strict=False)
        missing = [name for name in missing if not name.endswith(".specialists")]
        if missing or unexpected:
            raise ValueError(f"{id_or_path} does not fill its encoder: missing {missing}, unexpected {unexpected}.")
        for layer in model.master_asr.artisan_layers:
            layer.reset_specialists()
        return model.eval()

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        input_values: Optional[torch.Tensor] = None,
        input_features: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        labels: Optional[torch.Tensor] = None,
        language: Languages = None,
        **kwargs,
    ) -> MasterASROutput:
        """Logits, and with labels the loss: the mean over clips of CTC nll / label length, however they are grouped.

        Args:
            input_values, input_features, attention_mask, language: see `MasterASRModel.forward`.
            labels: `(B, label length)` in the ids of each clip's own language, -100 where padded.

        Returns:
            `logits` `(B, T, V)`, V that of the largest head in the batch and -inf past each clip's own; `frames` `(B,)`; `loss`.

        Raises:
            ValueError: for labels outside a clip's alphabet, and what `MasterASRModel.forward` raises.
        """
        inputs = self.master_asr.check_inputs(input_values, input_features)
        codes = self.master_asr.resolve_languages(language, len(inputs))
        outputs = self.master_asr(input_values, input_features, attention_mask, codes, **kwargs)
        hidden_states = outputs.last_hidden_state
        clips_of: dict[str, list[int]] = {}
        for clip, code in enumerate(codes):
            clips_of.setdefault(code, []).append(clip)
        pieces = {}  # language -> (b, T, V of that language)
        for code, clips in clips_of.items():
            of_language = hidden_states if len(clips_of) == 1 else hidden_states[clips]
            pieces[code] = self.assemblies[code].head(of_language)
        frames = self.master_asr.frame_counts(inputs, attention_mask)
        loss = None
        if labels is not None:
            loss = self._ctc_loss(pieces, clips_of, labels, frames)
        return MasterASROutput(
            loss=loss,
            logits=_join_logits(pieces, clips_of),
            frames=frames,
            hidden_states=outputs.hidden_states,
            attentions=outputs.get("attentions"),
        )

    def _ctc_loss(self, pieces, clips_of, labels: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        per_clip = []
        for code, logits in pieces.items():
            clips = clips_of[code]
            vocab = self.config.vocab(code)
            targets = labels[clips]
            if int(targets.max()) >= len(vocab):
                raise ValueError(
                    f"Label id {int(targets.max())} is outside the {len(vocab)} tokens of {code!r}: "
                    f"encode with processor(text=..., language={code!r})."
                )
            is_label = targets >= 0
            lengths = is_label.sum(-1)
            # (b, T, V) -> (T, b, V): CTC wants time first; over the unpadded logits, -inf classes would give NaN gradients
            log_probs = logits.float().log_softmax(-1).transpose(0, 1)
            nll = nn.functional.ctc_loss(
                log_probs, targets[is_label], frames[clips], lengths, blank=vocab["[PAD]"], reduction="none",
                zero_infinity=True,
            )  # fmt: skip
            impossible = frames_needed(targets) > frames[clips]
            if bool(impossible.any()):
                self._name_impossible([clips[i] for i in impossible.nonzero()[:, 0].tolist()], frames, labels)
            per_clip.append(nll / lengths.clamp(min=1))
        return torch.cat(per_clip).mean()

    def _name_impossible(self, clips: list[int], frames: torch.Tensor, labels: torch.Tensor) -> None:
        """Warns of, or refuses, clips whose labels no path of their frames can spell."""
        named = ", ".join(f"clip {c} ({int((labels[c] >= 0).sum())} labels, {int(frames[c])} frames)" for c in clips)
        if not self.config.ctc_zero_infinity:
            raise ValueError(f"Labels need more frames than there are: {named}. Drop these clips or cut their transcripts.")
        logger.warning(f"Labels need more frames than there are; these clips count as zero loss: {named}.")


def frames_needed(labels: torch.Tensor) -> torch.Tensor:
    """Fewest frames CTC can spell `labels` `(B, L)` in (-100 where padded): one a label, and a blank between repeats."""
    is_label = labels >= 0
    return is_label.sum(-1) + ((labels[:, 1:] == labels[:, :-1]) & is_label[:, 1:]).sum(-1)


def _join_logits(pieces: dict[str, torch.Tensor], clips_of: dict[str, list[int]]) -> torch.Tensor:
    """`{language: (b, T, V_l)}` -> `(B, T, max V_l)` in the batch's order, -inf past each clip's own classes."""
    if len(pieces) == 1:
        return next(iter(pieces.values()))
    largest = max(piece.shape[-1] for piece in pieces.values())
    padded = [nn.functional.pad(p, (0, largest - p.shape[-1]), value=float("-inf")) for p in pieces.values()]
    order = torch.tensor([clip for clips in clips_of.values() for clip in clips], device=padded[0].device)
    return torch.cat(padded)[order.argsort()]
