"""Master-ASR models: MasterASRModel, the assembled encoder, and MasterASRForCTC, with a head for every language.

    audio -> backbone with the weights W * B_l of language l -> head of l -> logits
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Set
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
from transformers.utils.generic import can_return_tuple

from .artisan_master_asr import ArtisanLinear, assembled_as, checkpoint_contexts, is_compiled_here, weights_in_their_places
from .assembly_master_asr import (
    Assemblies,
    BankHead,
    CharacterBank,
    LanguageAssembly,
    Matrices,
    Vectors,
)
from .backbone_master_asr import family_of, keep_frozen_parts_still
from .base_master_asr import BaseMixin, StoredMixin
from .configuration_master_asr import PAD_TOKEN, MasterASRConfig
from .construction_master_asr import Construction, build_backbone
from .hub_master_asr import HubMixin
from .languages_master_asr import LanguageMixin, frames_needed
from .masks_master_asr import MaskStore
from .weights_master_asr import AssembledWeights, Layout
from .whisper_master_asr import blank_after, device_of_ctc
from .wrapping_master_asr import may_wrap

if TYPE_CHECKING:  # the remote-code scanner ships the files that are imported here
    from .pipeline_master_asr import MasterASRPipeline  # noqa: F401

logger = logging.get_logger(__name__)
register_module_module_registration_hook(may_wrap)
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # since torch 2.7

Languages = Union[str, list[str], tuple[str, ...], None]
STOCK_PIPELINE = " Transformers' own pipeline hands no language on: MasterASRPipeline(model)(audio, language=...) does."


class MasterASRPreTrainedModel(StoredMixin, PreTrainedModel):
    config_class = MasterASRConfig
    base_model_prefix = "master_asr"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    accepts_loss_kwargs = False  # the loss is a mean already: Trainer then divides by its accumulation steps

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
        elif isinstance(module, (Matrices, Vectors)):
            module.reset_parameters()

    def initialize_weights(self) -> None:
        """Values for what a checkpoint lacks; specialists sit inside a stock backbone, which knows nothing of them."""
        super().initialize_weights()
        for module in self.modules():
            if isinstance(module, ArtisanLinear) and not module.has_specialists:
                module.reset_specialists()
                module.has_specialists = module.specialists.device.type != "meta"  # once: `init_weights` of a trained model changes nothing

    def _set_gradient_checkpointing(self, enable: bool = True, gradient_checkpointing_func=checkpoint, **kwargs) -> None:
        if enable:
            asked = getattr(gradient_checkpointing_func, "keywords", {})
            if "context_fn" in asked:
                raise ValueError("gradient_checkpointing_kwargs: got context_fn; allowed: others. The model has its own, which carries a call's language.")
            if asked.get("use_reentrant", False):
                raise ValueError(
                    "use_reentrant=True cannot carry a call's language into the recomputation. "
                    'Use gradient_checkpointing_kwargs={"use_reentrant": False}.'
                )
            gradient_checkpointing_func = partial(checkpoint, **{**asked, "use_reentrant": False, "context_fn": checkpoint_contexts})
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)

    def _replicate_for_data_parallel(self):
        raise RuntimeError(
            "nn.DataParallel copies a model for every call, and a list of languages cannot be split among the copies. "
            "Start one process a GPU: torchrun --nproc_per_node=NUM_GPUS train.py (or accelerate launch train.py), or show "
            "Trainer one GPU alone: CUDA_VISIBLE_DEVICES=0 python train.py."
        )


class Owned:
    """What the languages of a call own, looked up once: the encoder, the heads and every group of a batch read the same, whatever another thread replaces.

    A class of its own: accelerate's hooks would move modules that a dict among a call's arguments holds.
    """

    def __init__(self, assemblies, codes: list[str]):
        self.assemblies = {code: assemblies[code] for code in dict.fromkeys(codes)}


def check_no_entries(unknown: dict) -> None:
    """Refuses keywords of `from_pretrained` that no config here has: as a rule the encoder's, which stand in a config of its own.

    Raises:
        TypeError: if there are any.
    """
    if unknown:
        raise TypeError(
            f"from_pretrained got {sorted(unknown)}; allowed: what Transformers' takes, assemblies=, and entries of MasterASRConfig. Those of the encoder: "
            "config = AutoConfig.from_pretrained(...), config.backbone_config.attention_dropout = 0.1, from_pretrained(..., config=config). "
            'A language of its own: default_language="fr".'
        )


class MasterASRModel(BaseMixin, MasterASRPreTrainedModel):
    """The assembled encoder: backbone, specialists, character bank and assemblies."""

    def __init__(self, config: MasterASRConfig, **unknown):
        check_no_entries(unknown)
        super().__init__(config)
        self.family = family_of(config.backbone_config)
        config.inputs_to_logits_ratio = self.family.samples_per_frame(config.backbone_config)
        self.main_input_name = self.family.input_name
        self.backbone = build_backbone(config.backbone_config, config.num_specialists, config.artisan_targets)
        keep_frozen_parts_still(self.backbone)
        self.layout = Layout(self.backbone)
        hidden = self.family.hidden_size(config.backbone_config)
        self.character_bank = CharacterBank(hidden, len(config.character_bank)) if config.character_bank else None
        self.assemblies = Assemblies()
        for language in config.languages:
            self.assemblies[language] = self.new_assembly(language)
        named = inspect.signature(self.backbone.forward).parameters.values()
        self._encoder_keywords = frozenset(p.name for p in list(named)[1:] if p.kind is p.POSITIONAL_OR_KEYWORD) - {"attention_mask"}
        self.masks = MaskStore()
        self._is_sharded = False
        self.post_init()

    def new_assembly(self, language: str, config: Optional[MasterASRConfig] = None) -> LanguageAssembly:
        """A fresh assembly of a language's entry in `config` (None: the model's own), in float32: without first values, and in no place of the model yet.

        Raises:
            KeyError: if there is no such entry.
            ValueError: for a rank that the smallest matrix of a part does not have.
        """
        return LanguageAssembly(config or self.config, language, self.layout, self.family.hidden_size(self.config.backbone_config), self).float()

    @property
    def artisan_layers(self) -> list[ArtisanLinear]:
        """The layers that masks reach, in the order of a mapping's rows."""
        return self.layout.artisan

    # ------------------------------------------------------------------ languages of a call

    def resolve_languages(self, language: Languages, batch_size: int, hint: str = "") -> list[str]:
        """One loaded code for each clip.

        Args:
            hint: what is said beside, where there is none.

        Raises:
            ValueError: for none where several are loaded and no default is set, or a list of another length.
            KeyError: for a language that is not loaded.
            TypeError: for what is neither a code nor a list, such as a set, which has no order.
        """
        config = self.config
        if language is None:
            language = config.default_language or (config.languages[0] if len(config.languages) == 1 else None)
        if language is None:
            example = config.languages[0] if config.languages else "..."
            raise ValueError(f'Which language? Loaded: {config.languages}. Pass one with the call, language="{example}", or set one before: model.set_language("{example}").{hint}')
        if not hasattr(language, "__iter__") or isinstance(language, (Set, Mapping)):
            raise TypeError(f"language is {language!r}; one code, or a list of one for each clip, is wanted.")
        codes = [language] * batch_size if isinstance(language, str) else list(language)
        if len(codes) != batch_size:
            raise ValueError(f"language has {len(codes)} codes for {batch_size} clips; pass one code, or one for each clip.")
        for code in set(codes):
            config.check_language(code)
        return codes

    # ------------------------------------------------------------------ assembled weights

    def assembled(self, language: str, assembly: Optional[LanguageAssembly] = None) -> AssembledWeights:
        """The parameters of `language`, each made when its layer first reads it; `assembly`: of a call that has looked it up already."""
        elsewhere, assembly = self.layout.elsewhere(), self.assemblies[language] if assembly is None else assembly
        # Once seen it holds: a model that keeps its weights gathered after a forward shows plain tensors in the next.
        self._is_sharded = self._is_sharded or elsewhere == "shards"
        store = None if self._is_sharded or elsewhere else self.masks
        return AssembledWeights(self.layout, assembly, language, self.config.sparsity, store, len(self.assemblies), self.training)

    def _forget(self) -> None:
        """Drops what was kept of masks, weights and the fingerprint: called by everything that may write to what they are made of."""
        self.masks.forget()
        self.forget_fingerprint()

    def train(self, mode: bool = True):
        """As in PyTorch, but frozen parts and BatchNorm's statistics stay as they are, and what the other mode has kept is let go."""
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

    @can_return_tuple
    def forward(
        self,
        input_values: Optional[torch.Tensor] = None,
        input_features: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        language: Languages = None,
        owned: Optional[Owned] = None,
        **kwargs,
    ) -> BaseModelOutput:
        """Encodes a batch, every clip with the weights of its own language.

        Args:
            input_values: `(B, samples)`, or
            input_features: `(B, mels, frames)` (Whisper) or `(B, frames, features)` (wav2vec2-BERT).
            attention_mask: `(B, samples or frames)`, 1 where there is speech, which padding follows.
            language: one code, or one for each clip; None: the default, or the only one loaded. With `owned`: one for each clip.
            owned: what these languages own, where the caller reads it too; None: what they own now.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and what else the encoder's stock class names.

        Returns:
            `last_hidden_state` `(B, T, hidden)`, and what else the stock class returns, in the batch's order.

        Raises:
            ValueError, KeyError: for a missing, unknown or miscounted language; for audio without a single frame; for a mask of another shape, or
                with padding before speech.
            TypeError: for a keyword that nothing here reads: a misspelt `language` would be answered in the default one.
            RuntimeError: under `torch.export`: a graph cannot select masks.
        """
        kwargs = self._known_keywords(kwargs)
        if is_exporting():  # a mask is a choice among values, which a graph does not have
            raise RuntimeError(
                "An exported graph cannot select masks. Export one language, its weights assembled: "
                "torch.export.export(model.materialize(language), ...), or python -m training.export_onnx for ONNX."
            )
        inputs = self.check_inputs(input_values, input_features)
        self._check_mask(inputs, attention_mask)
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.long()  # half precision, to which whole batches are cast, cannot count so far
        if owned is None:
            language = self.resolve_languages(language, len(inputs))  # from here on one code a clip
            owned = Owned(self.assemblies, language)
        groups = self._groups(language, attention_mask)
        if len(groups) == 1 and groups[0][1] is None:
            return self._encode(inputs, attention_mask, language[0], owned, **kwargs)
        pieces, order = [], []
        for clips, length in groups:
            index = torch.tensor(clips, device=inputs.device)
            mask = None if attention_mask is None else attention_mask[index]
            piece = inputs[index]
            if length is not None:  # equal lengths: no padding at all
                piece, mask = piece.narrow(self.family.time_axis, 0, length), mask[:, :length]
            own = kwargs
            if (hidden := kwargs.get("mask_time_indices")) is not None:  # (B, T), the one keyword that has a row for each clip
                own = {**kwargs, "mask_time_indices": hidden[index][:, : int(self.frame_counts(piece, None)[0])]}
            pieces.append(self._encode(piece, mask, language[clips[0]], owned, **own))
            order += clips
        return _merge(pieces, order)

    def _known_keywords(self, kwargs: dict) -> dict:
        """Without those that are None: wrappers pass every stock name (PEFT's feature extraction: `input_ids`)."""
        allowed = {*self._encoder_keywords, "output_hidden_states", "output_attentions", "return_dict"}
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        unknown = sorted(set(kwargs) - allowed)
        if unknown:
            raise TypeError(f"forward got {', '.join(unknown)}, which nothing here reads. It takes language=, attention_mask= and {sorted(allowed)}; MasterASRForCTC also labels=.")
        return kwargs

    def check_inputs(self, input_values: Optional[torch.Tensor], input_features: Optional[torch.Tensor]) -> torch.Tensor:
        """The one input this backbone takes.

        Raises:
            ValueError: if it is missing, not alone, no batch, or too short for a single frame.
        """
        given = {"input_values": input_values, "input_features": input_features}
        found = [name for name, value in given.items() if value is not None]
        if found != [self.main_input_name]:
            raise ValueError(
                f"This backbone takes {self.main_input_name} alone; got {' and '.join(found) or 'neither'}. Use its own processor, and keywords: "
                "the second place of a stock model's forward, attention_mask, is another input here."
            )
        inputs = given[self.main_input_name]
        axes = 2 if self.main_input_name == "input_values" else 3
        if inputs.ndim != axes or len(inputs) == 0:
            raise ValueError(f"{self.main_input_name}: got shape {tuple(inputs.shape)}; allowed: {axes} axes, the first of at least one clip. processor(audio) makes it.")
        length = inputs.shape[self.family.time_axis]
        if is_compiled_here():  # the number of frames would be a value to wait for
            return inputs
        if length == 0 or int(self.family.frame_counts(self.backbone, torch.tensor([length]))) < 1:
            raise ValueError(f"The audio is too short: {length} {self.main_input_name} give not one frame of logits.")
        return inputs

    def _check_mask(self, inputs: torch.Tensor, attention_mask: Optional[torch.Tensor]) -> None:
        """Refuses what would be read as another length of speech: a mask that is not one row a clip, of ones and then zeros."""
        if attention_mask is None or is_compiled_here():
            return
        wanted = (len(inputs), inputs.shape[self.family.time_axis])
        if tuple(attention_mask.shape) != wanted:
            raise ValueError(f"attention_mask: got shape {tuple(attention_mask.shape)}; allowed: {wanted}, a value for each step of each clip's {self.main_input_name}.")
        if attention_mask.dtype != torch.bool and not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
            raise ValueError(f"attention_mask: got values such as {float(attention_mask.min()):g} and {float(attention_mask.max()):g}; allowed: 1 where there is speech, and 0 after it.")
        before = (attention_mask[:, 1:] > attention_mask[:, :-1]).any(-1)  # (B,)
        if bool(before.any()):
            clips = before.nonzero()[:, 0].tolist()
            raise ValueError(f"attention_mask: got padding before or amid the speech of clips {clips}; allowed: padding after it. processor.pad pads so.")

    def _groups(self, codes: list[str], attention_mask) -> list[tuple[list[int], Optional[int]]]:
        """Clips to encode together, and what they are cut to, None: nothing. One language; one length where padding would change the result, and
        elsewhere the longest's of its language: what others are padded with is no work.
        """
        by_length = not self.training and self.family.padding_leaks(self.config.backbone_config)
        groups: dict[tuple, list[int]] = {}
        if attention_mask is None or not by_length and (len(set(codes)) == 1 or is_compiled_here()):
            for clip, code in enumerate(codes):
                groups.setdefault((code, None), []).append(clip)
            return [(clips, None) for clips in groups.values()]
        sums = attention_mask.sum(-1, dtype=torch.long)
        lengths, frames = torch.stack([sums, self.family.frame_counts(self.backbone, sums)]).tolist()  # one look at values: each ends a graph
        for clip, (code, length) in enumerate(zip(codes, lengths)):
            groups.setdefault((code, length if by_length else None), []).append(clip)
        longest = [max(lengths[clip] for clip in clips) for clips in groups.values()]
        is_cut = [length < attention_mask.shape[1] and max(frames[clip] for clip in clips) > 0 for length, clips in zip(longest, groups.values())]
        return [(clips, length if cut else None) for clips, length, cut in zip(groups.values(), longest, is_cut)]

    def _encode(self, inputs, attention_mask, language: str, owned: Owned, **kwargs) -> BaseModelOutput:
        asked = {name: getattr(self.config, name, None) for name in ("output_hidden_states", "output_attentions")}
        kwargs = {name: value for name, value in asked.items() if value} | kwargs
        kwargs |= {"attention_mask": attention_mask, "return_dict": True}
        if torch.compiler.is_dynamo_compiling():  # is_compiling is true in all threads while one of them compiles
            weights = self.assembled_parameters(language, owned.assemblies[language])
            # again: that call ends a graph, and what follows may run as it is, where readers' threads would meet; training, which is one thread's, needs it
            if torch.compiler.is_dynamo_compiling() or torch.is_grad_enabled():
                return self._encode_in_places(weights, inputs, kwargs)
        return self._encode_as_it_is(inputs, language, owned, kwargs)

    def _encode_in_places(self, weights: dict[str, torch.Tensor], inputs, kwargs: dict) -> BaseModelOutput:
        """A function of its own: where an encoder ends a graph in training, torch gives up compiling what a `with` stands in, for evaluation too."""
        with weights_in_their_places():
            return torch.func.functional_call(self.backbone, weights, (inputs,), kwargs)

    @torch.compiler.disable
    def _encode_as_it_is(self, inputs, language: str, owned: Owned, kwargs: dict) -> BaseModelOutput:
        """Also where torch has given up compiling: it would go on with the layers, one by one, which read the language of the call."""
        with assembled_as(self.assembled(language, owned.assemblies[language])):
            return self.backbone(inputs, **kwargs)

    @torch.compiler.disable
    def assembled_parameters(self, language: str, assembly: LanguageAssembly) -> dict[str, torch.Tensor]:
        """`{name in the backbone: the language's own}`: torch.compile cannot trace the selection of masks, and need not."""
        assembled, named = self.assembled(language, assembly), dict(self.backbone.named_modules())
        layers = {name: named[name] for name in named if named[name] in self.layout.place}
        read = {f"{name}.{kind}": assembled.parameter(layer, kind) for name, layer in layers.items() for kind in ("weight", "bias")}
        return {name: value for name, value in read.items() if value is not None}

    def frame_counts(self, inputs: torch.Tensor, attention_mask: Optional[torch.Tensor]) -> torch.Tensor:
        """Frames of logits of each clip, `(B,)`."""
        if attention_mask is None:
            lengths = torch.full((len(inputs),), inputs.shape[self.family.time_axis], device=inputs.device)
        else:
            lengths = attention_mask.sum(-1, dtype=torch.long)
        return self.family.frame_counts(self.backbone, lengths).to(torch.long).clamp(min=0)  # the convolutions' formula falls below


def _merge(pieces: list[BaseModelOutput], order: list[int]) -> BaseModelOutput:
    """Puts the groups' outputs back into the batch's order, padded with zeros to the longest group's frames.

    Args:
        pieces: the encoder's outputs, fields of `(b, t, features)`, `(b, heads, t, t)`, or tuples of them, one a layer.
        order: clip of the batch that each row of the pieces is, one piece after the other.
    """
    back = torch.tensor(order, device=pieces[0].last_hidden_state.device).argsort()

    def join(values):
        if values[0] is None:  # a layer that was not asked for
            return None
        if isinstance(values[0], tuple):
            return tuple(join(layer) for layer in zip(*values))
        longest = max(value.shape[2 if value.ndim == 4 else 1] for value in values)
        return torch.cat([_pad_frames(value, longest) for value in values])[back]

    return type(pieces[0])(**{name: join([piece[name] for piece in pieces]) for name in pieces[0].keys()})


def _pad_frames(value: torch.Tensor, num_frames: int) -> torch.Tensor:
    """`(b, t, features)` or attentions `(b, heads, t, t)` with zeros up to `num_frames`."""
    missing = num_frames - value.shape[-2]
    return nn.functional.pad(value, (0, missing, 0, missing) if value.ndim == 4 else (0, 0, 0, missing))


@dataclass
class MasterASROutput(CausalLMOutput):
    """A `CausalLMOutput` that also says how many of its frames are speech.

    Attributes:
        frames: each clip's frames of logits, `(B,)`; what follows them in a batch is padding, all blanks. A plain Trainer's predictions leave them out.
    """

    frames: Optional[torch.LongTensor] = None


class MasterASRForCTC(Construction, LanguageMixin, HubMixin, MasterASRPreTrainedModel):
    """The assembled encoder with a CTC head for every language."""

    def __init__(self, config: MasterASRConfig, **unknown):
        check_no_entries(unknown)
        config = copy.deepcopy(config)  # its languages are this model's: another model made of the same config adds and removes its own
        super().__init__(config)
        self.master_asr = MasterASRModel(config)
        self.main_input_name = self.master_asr.main_input_name
        self.post_init()

    # ------------------------------------------------------------------ forward

    @can_return_tuple
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
            input_values, input_features, attention_mask, language, kwargs: see `MasterASRModel.forward`.
            labels: `(B, label length)` in the ids of each clip's own language, -100 where padded.

        Returns:
            `logits` `(B, T, V)`, blanks past each clip's own `frames` `(B,)`; `loss`. For one code (or none) V is that language's own number of classes, as
            in a stock model; for a list of codes it is that of the model's largest head, whichever languages the batch holds,
            and logits are -inf past each clip's own: batches of any languages can be joined.

        Raises:
            ValueError: for labels outside a clip's alphabet, padded with its blank, or of another number of clips; and what `MasterASRModel.forward` raises.
        """
        inputs = self.master_asr.check_inputs(input_values, input_features)
        codes = self.master_asr.resolve_languages(language, len(inputs), STOCK_PIPELINE)
        if labels is not None and getattr(labels, "ndim", 0) != 2:
            got = f"shape {tuple(labels.shape)}" if hasattr(labels, "shape") else type(labels).__name__
            raise ValueError(f"labels: got {got}; allowed: a tensor (clips, label length), -100 where padded. processor(text=...) makes it.")
        if labels is not None and len(labels) != len(inputs):
            raise ValueError(f"{len(labels)} rows of labels for {len(inputs)} clips: each clip has its own.")
        owned = Owned(self.assemblies, codes)
        vocabs = {code: self.config.vocab(code) for code in owned.assemblies}
        outputs = self.master_asr(input_values, input_features, attention_mask, codes, owned, return_dict=True, **kwargs)
        # as the stock CTC classes do; Whisper's encoder has none
        final_dropout = getattr(self.config.backbone_config, "final_dropout", 0.0)
        hidden_states = nn.functional.dropout(outputs.last_hidden_state, final_dropout, self.training)
        clips_of: dict[str, list[int]] = {}
        for clip, code in enumerate(codes):
            clips_of.setdefault(code, []).append(clip)
        pieces = {}  # language -> (b, T, V of that language)
        for code, clips in clips_of.items():
            of_language = hidden_states if len(clips_of) == 1 else hidden_states[clips]
            head = owned.assemblies[code].head
            if not isinstance(bias := head.bias, torch.Tensor):
                raise NotImplementedError(f"The head of {code!r} is a {type(head).__module__}.{type(head).__name__}. Quantize one language: quantize_dynamic(model.materialize({code!r}), ...).")
            pieces[code] = head(of_language.to(bias.dtype))  # float32 under a half-precision encoder
        frames = self.master_asr.frame_counts(inputs, attention_mask)
        loss = None if labels is None else self._ctc_loss(pieces, clips_of, labels, frames, vocabs)
        entries = [] if language is None or isinstance(language, str) else list(self.config.assemblies.items())  # one look: others may go meanwhile
        if attention_mask is not None:
            pieces = {code: blank_after(piece, frames[clips_of[code]], vocabs[code][PAD_TOKEN]) for code, piece in pieces.items()}
        width = max([*(piece.shape[-1] for piece in pieces.values()), *(len(entry["vocab"]) for _, entry in entries)])
        return MasterASROutput(
            loss=loss,
            logits=_join_logits(pieces, clips_of, width),
            frames=frames,
            hidden_states=outputs.hidden_states,
            attentions=outputs.get("attentions"),
        )

    def _ctc_loss(self, pieces, clips_of, labels: torch.Tensor, frames: torch.Tensor, vocabs: dict[str, dict[str, int]]) -> torch.Tensor:
        per_clip = []
        for code, logits in pieces.items():
            clips, vocab = clips_of[code], vocabs[code]
            targets = labels[clips]
            if bool((targets == vocab[PAD_TOKEN]).any()):
                raise ValueError(f"Labels of {code!r} hold the id {vocab[PAD_TOKEN]}, {PAD_TOKEN}, which CTC keeps for its blank. Pad labels with -100: processor.pad does.")
            if targets.numel() and int(targets.max()) >= len(vocab):
                raise ValueError(
                    f"Label id {int(targets.max())} is outside the {len(vocab)} tokens of {code!r}: "
                    f"encode with processor(text=..., language={code!r})."
                )
            is_label = targets >= 0
            lengths = is_label.sum(-1)
            # (b, T, V) -> (T, b, V): CTC wants time first; over the unpadded logits, -inf classes would give NaN gradients
            log_probs = logits.float().log_softmax(-1).transpose(0, 1)
            device = device_of_ctc(log_probs.device)
            nll = nn.functional.ctc_loss(
                log_probs.to(device), targets[is_label].to(device), frames[clips].to(device), lengths.to(device),
                blank=vocab[PAD_TOKEN], reduction="none", zero_infinity=True,
            ).to(log_probs.device)  # fmt: skip
            impossible = frames_needed(targets) > frames[clips]
            if bool(impossible.any()):
                self._name_impossible([clips[i] for i in impossible.nonzero()[:, 0].tolist()], frames, labels)
            # CHOICE: Eq. 4 sums CTC over clips; here each counts by its letters, so that long and short ones weigh alike, and so do batches, however
            # many clips they hold: processes or accumulation equal one bigger batch only where their batches hold as many.
            per_clip.append(nll / lengths.clamp(min=1))
        return torch.cat(per_clip).mean()

    def _name_impossible(self, clips: list[int], frames: torch.Tensor, labels: torch.Tensor) -> None:
        """Warns of, or refuses, clips whose labels no path of their frames can spell."""
        named = ", ".join(f"clip {c} ({int((labels[c] >= 0).sum())} labels, {int(frames[c])} frames)" for c in clips)
        if not self.config.ctc_zero_infinity:
            raise ValueError(f"Labels need more frames than there are: {named}. Drop these clips or cut their transcripts.")
        logger.warning(f"Labels need more frames than there are; these clips count as zero loss: {named}.")


def _join_logits(pieces: dict[str, torch.Tensor], clips_of: dict[str, list[int]], width: int) -> torch.Tensor:
    """`{language: (b, T, V_l)}` -> `(B, T, width)` in the batch's order, -inf past each clip's own classes."""
    padded = [nn.functional.pad(p, (0, width - p.shape[-1]), value=float("-inf")) for p in pieces.values()]
    if len(padded) == 1:
        return padded[0]
    order = torch.tensor([clip for clips in clips_of.values() for clip in clips], device=padded[0].device)
    return torch.cat(padded)[order.argsort()]
