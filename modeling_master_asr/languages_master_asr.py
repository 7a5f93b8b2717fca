"""What one can do with the languages of a model: add, give parts, rank, freeze, remove, materialize."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from copy import deepcopy
from typing import Optional, Union

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .assembly_master_asr import Assemblies, LanguageAssembly, is_adapted
from .backbone_master_asr import keep_frozen_parts_still
from .configuration_master_asr import (
    DEFAULT_PRESET,
    PAD_TOKEN,
    SPACE_TOKEN,
    SPECIAL_TOKENS,
    UNK_TOKEN,
    MasterASRConfig,
    from_preset,
)
from .ngrams_master_asr import ngrams_of, read
from .text_master_asr import spell_sentences

logger = logging.get_logger(__name__)


def frames_needed(labels: torch.Tensor) -> torch.Tensor:
    """Fewest frames CTC can spell `labels` `(B, L)` in (-100 where padded), `(B,)`: one a label, and a blank between repeats."""
    is_label = labels >= 0
    return is_label.sum(-1) + ((labels[:, 1:] == labels[:, :-1]) & is_label[:, 1:]).sum(-1)


def nearest_of(losses: dict[str, float]) -> str:
    """The language that `rank_assemblies` found nearest; where none could be compared, the first, with a warning.

    Raises:
        ValueError: of none.
    """
    if not losses:
        raise ValueError('init: got "nearest", and no language is loaded; allowed: "random".')
    nearest = min(losses, key=losses.get)
    if losses[nearest] == float("inf"):
        logger.warning(f"No loaded language shares a letter with the new one's clips, as far as their frames can spell their texts, so none is known to be near: it starts from {nearest!r}, the first.")
    return nearest


def check_nothing_is_lost(language: str, before: dict, owned: dict) -> None:
    """Refuses to replace what a language owns by less.

    Args:
        before, owned: its entries, `{"parts", "rank", "targets"}`.

    Raises:
        ValueError: naming what would go.
    """
    missing = [part for part in before["parts"] if part not in owned["parts"]]
    low_rank = {"delta", "specialist"} & set(before["parts"])
    if missing or (low_rank and owned["rank"] < before["rank"]) or ("delta" in before["parts"] and owned["targets"] != before["targets"]):
        had = {name: before[name] for name in owned}
        raise ValueError(f"{language!r} would lose something that it owns: it has {had} and would get {owned}. Give it as much or more, of the same targets.")


class LanguageMixin:
    """The methods of `MasterASRForCTC` that change which languages it has, and what of them trains."""

    @property
    def assemblies(self) -> Assemblies:
        """`{language: LanguageAssembly}`."""
        return self.master_asr.assemblies

    @property
    def languages(self) -> list[str]:
        """Loaded language codes, in the order they were added."""
        return self.config.languages

    def set_language(self, language: Optional[str]) -> None:
        """The language of calls that name none.

        Raises:
            KeyError: if it is not loaded.
        """
        self.config.default_language = None if language is None else self.config.check_language(language)
        if hasattr(self.assemblies, "set_base_default"):  # PEFT adapters are on, each of which has a default of its own
            self.assemblies.set_base_default(language)

    def add_language(
        self,
        language: str,
        vocab: dict[str, int],
        init: str = "random",
        preset: str = DEFAULT_PRESET,
        parts: Optional[Iterable[str]] = None,
        rank: Optional[int] = None,
        targets: Optional[str] = None,
        batches: Optional[Iterable[dict]] = None,
    ) -> LanguageAssembly:
        """Adds a language with an assembly of its own; touches nothing that others use.

        Args:
            language: its code, ISO 639 or BCP-47.
            vocab: `{token: id}`.
            init: where it starts: "random", a loaded language's code, or "nearest" (needs `batches`); of a loaded language it
                takes the mapping, the head's rows of shared letters, and the parts that both own.
            preset: what it owns: "paper", "small" or "best" (`configuration_master_asr.PRESETS`); parts, rank and targets override it.
            parts: "mapping" and "head", and optionally "specialist", "delta", "scales" and "norms".
            rank: r of the low-rank parts.
            targets: what a delta reaches: "attention", the Artisan layers, or "all", the feed-forward layers too.
            batches: for "nearest": batches of the new language, labels in `vocab`'s ids.

        Raises:
            ValueError, KeyError: for a language already there, a bad vocab, unknown parts or an unknown `init`.
        """
        if init == "nearest":
            if batches is None:
                raise ValueError('init="nearest" needs batches=... of the new language to rank the loaded ones on.')
            init = nearest_of(self.rank_assemblies(batches, vocab))
        source = None if init == "random" else self.config.check_language(init)
        return self._start(language, source, self.config.with_assembly(language, {"vocab": vocab, **from_preset(preset, parts, rank, targets)}))

    def _register(self, language: str, assembly: LanguageAssembly, config: MasterASRConfig) -> None:
        """Puts an assembly into its place, with its entry in `config`: both at once, and when all of it is there, since others may be reading."""
        for module in assembly.modules():
            module._is_hf_initialized = True  # `init_weights` of a model that has it passes it over
        self.assemblies[language] = assembly
        self.config.assemblies[language] = config.assemblies[language]

    @torch.no_grad()
    def _start(self, language: str, source: Optional[str], config: MasterASRConfig) -> LanguageAssembly:
        """A new assembly of the language's entry in `config`, in its place in the model, started from the assembly of `source`."""
        assembly = self.master_asr.new_assembly(language, config)
        for module in assembly.modules():
            self._init_weights(module)
        if source is not None:
            assembly.start_from(self.assemblies[source])
        self._start_head(assembly.head, config.vocab(language), source)
        has_values = assembly.mapping.device.type != "meta"  # PEFT's low_cpu_mem_usage: the file's values follow
        self._register(language, assembly.to(self.device) if has_values else assembly, config)
        return assembly

    def _start_head(self, head: nn.Linear, vocab: dict[str, int], source: Optional[str]) -> None:
        """Rows of the new head start from the source language's rows, else the bank's, else their base letter's.

        CHOICE: a letter nobody has ("ñ") starts from its base ("n"); what has no base keeps its random row.
        """
        known: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        bank = self.master_asr.character_bank
        if bank is not None:
            weight, bias = bank(torch.arange(len(self.config.character_bank)))  # called, as a head does: PEFT may have wrapped it
            known = {token: (weight[i], bias[i]) for i, token in enumerate(self.config.character_bank)}
        if source is not None:
            own = self.assemblies[source].head
            weight, bias = own.weight, own.bias  # of a head that shares the bank each is a gather of all its rows
            known |= {token: (weight[i], bias[i]) for token, i in self.config.vocab(source).items()}
        for token, row in vocab.items():
            start = known.get(token) or known.get(unicodedata.normalize("NFD", token)[:1])
            if start is not None:
                head.weight[row], head.bias[row] = start

    def give_parts(
        self, language: str, preset: str = DEFAULT_PRESET, parts: Optional[Iterable[str]] = None, rank: Optional[int] = None, targets: Optional[str] = None,
        vocab: Optional[dict[str, int]] = None,
    ) -> LanguageAssembly:  # fmt: skip
        """Gives a loaded language further parts, and a head that is its own where it shared the bank's; it reads as before until they train.

        Args:
            preset, parts, rank, targets: what it owns then, see `add_language`: no less than now.
            vocab: its alphabet then, where it grows: the one that it has, and further tokens, whose rows start as a new language's do.

        Raises:
            KeyError: if it is not loaded.
            ValueError: where it would lose something that it owns, or a token of its alphabet, or while a PEFT adapter is on it, or it.
        """
        self.check_is_own(language, "has the parts of its own config: AssemblyConfig(..., preset=...)")
        before, old = self.config.assemblies[language], self.assemblies[language]
        owned = from_preset(preset, parts, rank, targets)
        check_nothing_is_lost(language, before, owned)
        vocab = vocab or before["vocab"]
        if moved := [token for token, i in before["vocab"].items() if vocab.get(token) != i]:
            raise ValueError(f"vocab: {moved} of {language!r} would be lost or get other ids; allowed: its alphabet as it is, and further tokens behind.")
        if is_adapted(old):
            raise ValueError(f"A PEFT adapter is on {language!r}. Take it off first: peft_model.unload().")
        config = self.config.with_assembly(language, {"vocab": vocab, "text": self.config.text(language), **owned}, replace=True)
        assembly = self._start(language, language, config)
        self.master_asr.masks.forget_language(language)
        return assembly

    def check_is_own(self, language: str, instead: str) -> None:
        """Refuses a language that is a PEFT adapter: what is done to it then would change the config and not what is read.

        Raises:
            KeyError: if it is not loaded.
            ValueError: while it is a PEFT adapter, which `instead`.
        """
        own = getattr(self.assemblies, "base_layer", self.assemblies)  # without those of PEFT
        if self.config.check_language(language) not in own:
            raise ValueError(f"{language!r} is a PEFT adapter and {instead}.")

    def remove_language(self, language: str) -> None:
        """Deletes a language's assembly; the others keep every bit.

        Raises:
            KeyError: if it is not loaded.
            ValueError: while it is a PEFT adapter.
        """
        self.check_is_own(language, "is removed as one: peft_model.delete_adapter(name)")
        del self.config.assemblies[language]
        del self.assemblies[language]
        if self.config.default_language == language:
            self.config.default_language = None
        self.master_asr.masks.forget_language(language)

    # ------------------------------------------------------------------ what is written

    def set_text(self, language: str, sentences: Iterable[str], raw: bool = True) -> int:
        """Gives a loaded language sentences, in the place of those it had, and returns how many it keeps: wherever it is read (`paths`,
        pipelines, scripts), letters that stand together in them weigh more (`ngrams_master_asr`). None at all: it is read greedily.

        The language's files hold them, so whoever publishes it publishes them.

        Args:
            sentences: as people write them; each is spelled with the language's alphabet and kept once. Those with a letter, digit or sign
                that it lacks are left out, since nobody could be heard saying them.
            raw: False for sentences that were normalised already, whose apostrophes are all letters.

        Raises:
            KeyError: if it is not loaded.
            ValueError: if all are left out, or those that are kept are too long together; while it is a PEFT adapter.
        """
        self.check_is_own(language, "has the sentences of its own config: AssemblyConfig(..., sentences=[...])")
        kept = spell_sentences(sentences, language, self.config.vocab(language), raw)
        self.config.set_text(language, "\n".join(kept))
        return len(kept)

    @torch.no_grad()
    def paths(self, logits: torch.Tensor, language: Union[str, list[str], None] = None, frames=None, greedy: bool = False) -> torch.Tensor:
        """The token of every frame, `(B, T)`, -1 past a clip's own: what `processor.batch_decode` makes text of.

        Where a language has sentences (`set_text`), they lie on the way that CTC and their n-grams together find best; else each frame has its likeliest.
        Letters more than a second apart (50 frames) have a space between.

        Args:
            logits: `(B, T, V)` of `forward`.
            language: as in that call.
            frames: each clip's own, `outputs.frames`; None: all.
            greedy: whether sentences are to have no say.

        Raises:
            KeyError, ValueError: for a missing or unknown language, or another number of them, or of frames, than of clips; for logits of other tokens than its
                alphabet has, or of no numbers.
        """
        if logits.ndim != 3:
            raise ValueError(f"logits: got shape {tuple(logits.shape)}; allowed: (clips, frames, tokens), as forward returns them. Of one clip: logits[None].")
        codes = self.master_asr.resolve_languages(language, len(logits))
        if frames is not None and len(frames) != len(logits):
            raise ValueError(f"{len(frames)} numbers of frames for {len(logits)} clips: each clip has its own. Pass outputs.frames of the call that made the logits.")
        ids = torch.full(logits.shape[:2], -1, dtype=torch.long, device=logits.device)
        for clip, code in enumerate(codes):
            end, vocab = (logits.shape[1] if frames is None else int(frames[clip])), self.config.vocab(code)
            surplus = logits[clip, :end, len(vocab) :]  # -inf where clips of other alphabets may stand in the batch
            if logits.shape[-1] < len(vocab) or not bool(surplus.isneginf().all()):
                raise ValueError(f"The logits have {logits.shape[-1]} tokens and {code!r} has {len(vocab)}: they are those of another language. Pass the language of the call that made them.")
            text = "" if greedy else self.config.text(code)
            ngrams = ngrams_of(text, tuple(sorted(vocab, key=vocab.get))) if text else None
            ids[clip, :end] = read(logits[clip, :end, : len(vocab)], ngrams, vocab[PAD_TOKEN], [vocab[UNK_TOKEN]], vocab[SPACE_TOKEN])
        return ids

    # ------------------------------------------------------------------ what trains

    def freeze_except(self, *languages: str) -> None:
        """Stage 2: only what these languages own trains, one as a rule.

        Raises:
            KeyError: if one is not loaded.
            TypeError: for no code, or a list of them.
        """
        if not languages or not all(isinstance(code, str) for code in languages):
            raise TypeError(f"freeze_except: got {', '.join(map(repr, languages)) or 'nothing'}; allowed: codes, such as freeze_except('es') or freeze_except('es', 'gl').")
        for code in languages:
            self.config.check_language(code)
        self.requires_grad_(False)
        for code in languages:
            self.assemblies[code].requires_grad_(True)
        self.freeze_idle_masks()
        keep_frozen_parts_still(self.master_asr.backbone)

    def round_assembly(self, language: str) -> None:
        """Rounds what `language` owns to values that its file holds in few bits (`packing_master_asr`), so that what is tested is
        what the file holds.

        Raises:
            KeyError: if it is not loaded.
        """
        self.assemblies[self.config.check_language(language)].round_values()

    def unfreeze(self) -> None:
        """Everything trains again, but what the backbone itself keeps fixed (Whisper's sinusoid positions)."""
        self.requires_grad_(True)
        self.master_asr.keep_fixed_parts()
        self.freeze_idle_masks()
        self.train(self.training)  # what stood still moves again

    def freeze_idle_masks(self) -> None:
        """M and T (not a language's own specialists) stand still where nothing is masked (a sparsity of 0), and they have no say."""
        if self.config.sparsity == 0:
            for still in (*(layer.specialists for layer in self.master_asr.artisan_layers), *(assembly.mapping for assembly in self.assemblies.values())):
                still.requires_grad_(False)

    def freeze_feature_encoder(self) -> None:
        """Keeps the convolutional front end as it was pretrained, as is usual in fine-tuning; wav2vec2-BERT has none."""
        for name in self.master_asr.family.front_end:
            getattr(self.master_asr.backbone, name).requires_grad_(False)
        keep_frozen_parts_still(self.master_asr.backbone)

    @torch.no_grad()
    def rank_assemblies(self, batches: Iterable[dict], vocab: dict[str, int]) -> dict[str, float]:
        """Each loaded language's CTC loss on a new language's clips, over the characters both share, in the mean of clips; best first.

        Args:
            batches: inputs of `forward` with `labels` in `vocab`'s ids; a `language` entry is ignored. Clips whose frames cannot spell their labels have
                no say: the fewer of the letters a language had, the worse it would look.
            vocab: the new language's `{token: id}`.

        Returns:
            `{language: loss}`; infinite where no letter is shared with a clip that can be spelled.
        """
        batches = [self._possible({name: value.to(self.device) for name, value in batch.items() if name != "language"}) for batch in batches]
        was_training = self.training
        self.eval()
        try:
            losses = {language: self._loss_as(language, batches, vocab) for language in self.languages}
        finally:
            self.train(was_training)
        return dict(sorted(losses.items(), key=lambda item: item[1]))

    def _possible(self, batch: dict) -> dict:
        """The clips of a batch whose frames can spell their labels, one a label and a blank between two of the same."""
        if self.main_input_name not in batch:
            return batch  # `forward` says what it wants
        kept = self.master_asr.frame_counts(batch[self.main_input_name], batch.get("attention_mask")) >= frames_needed(batch["labels"])
        return {name: value[kept] for name, value in batch.items()}

    def _loss_as(self, language: str, batches: list[dict], vocab: dict[str, int]) -> float:
        """What `rank_assemblies` says of one language."""
        theirs = self.config.vocab(language)
        shared = {vocab[token]: theirs[token] for token in vocab if token in theirs}
        letters = {i for token, i in theirs.items() if token in vocab and token not in SPECIAL_TOKENS}
        if not letters:
            return float("inf")
        loss, clips = 0.0, 0
        for batch in batches:
            rows = [[shared[i] for i in row.tolist() if i in shared] for row in batch["labels"]]
            kept = [clip for clip, row in enumerate(rows) if any(i in letters for i in row)]
            if not kept:  # nothing of this batch can be spelled
                continue
            labels = [torch.tensor(rows[clip], device=self.device) for clip in kept]
            of_kept = {name: value[kept] for name, value in batch.items()}
            of_kept["labels"] = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
            loss, clips = loss + len(kept) * float(self(**of_kept, language=language).loss), clips + len(kept)
        return loss / clips if clips else float("inf")

    @torch.no_grad()
    def materialize(self, language: str) -> PreTrainedModel:
        """A plain CTC model with `language`'s assembled weights baked in: the same logits (nearly those of a model in half precision, whose
        heads stay float32: here it is rounded too), and nothing of ours in the way.

        Returns:
            The stock class of the backbone's family, no custom code; Transformers has none for Whisper's encoder, so there
            a `WhisperEncoderForCTC`, whose saved folder holds the one file it needs, and which Transformers' own pipeline takes for a Whisper with
            a decoder: read it by its logits. Each exports: `training.export_onnx`.

        Raises:
            KeyError: if the language is not loaded.
            ValueError: while a PEFT adapter is on the encoder, or on a part of what the language owns.
        """
        assembly = self.assemblies.with_values(self.config.check_language(language))
        if is_adapted(self.master_asr.backbone) or is_adapted(assembly):
            raise ValueError("materialize bakes in no PEFT adapter of the encoder or the head. Take it off first: model = peft_model.unload().")
        ctc_class = self.master_asr.family.ctc_class
        config = deepcopy(self.config.backbone_config)
        vocab = self.config.vocab(language)
        config.vocab_size, config.pad_token_id, config.architectures = len(vocab), vocab[PAD_TOKEN], [ctc_class.__name__]
        config.bos_token_id = config.eos_token_id = None  # CTC has none, and a decoder's lie outside of this alphabet
        if hasattr(config, "decoder_start_token_id"):  # Whisper's is a number
            config.decoder_start_token_id, config.begin_suppress_tokens = config.pad_token_id, None
        config.ctc_loss_reduction, config.ctc_zero_infinity = self.config.ctc_loss_reduction, self.config.ctc_zero_infinity
        plain = ctc_class(config).to(device=self.device, dtype=self.dtype)
        state = {k: v for k, v in self.master_asr.backbone.state_dict().items() if not k.endswith(".specialists")}
        plain.base_model.load_state_dict(state | self.master_asr.assembled_parameters(language, assembly))
        plain.lm_head.weight.copy_(assembly.head.weight)
        plain.lm_head.bias.copy_(assembly.head.bias)
        return plain.eval()
