"""Whisper's encoder at a clip's true length, and with a CTC head: what Transformers has no class for. Stands alone as remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import torch
from torch import nn
from transformers import WhisperConfig, WhisperPreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs


def check_mel_frames(mel_frames: int, max_source_positions: int) -> None:
    """Refuses more than there are positions for.

    Raises:
        ValueError: for more than 30 s.
    """
    if mel_frames > 2 * max_source_positions:
        raise ValueError(
            f"A Whisper backbone takes at most {2 * max_source_positions} mel frames (30 s) at once; got {mel_frames}. "
            "Cut long audio: pipeline(..., chunk_length_s=10), or training.transcribe."
        )


class TrueLengthWhisperEncoder(WhisperEncoder):
    """The Whisper encoder at the clip's true length: positions cut to its frames, padding masked.

    Stock Whisper pads every clip to 30 s; a 3 s clip then costs ten times its price. At 3,000 unmasked mel frames the
    outputs are bit-equal to the stock encoder's. No branch looks at values, so that it exports and compiles.
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
        check_mel_frames(input_features.shape[-1], self.max_source_positions)
        speech = None if attention_mask is None else attention_mask.to(input_features.dtype)[:, None, :]  # (B, 1, mel_frames)
        if speech is not None:  # as if each clip ended where its speech does: zeros are what the convolutions pad with
            input_features = input_features * speech
        hidden_states = nn.functional.gelu(self.conv1(input_features))
        if speech is not None:
            hidden_states = hidden_states * speech
        hidden_states = nn.functional.gelu(self.conv2(hidden_states))
        hidden_states = hidden_states.permute(0, 2, 1)  # (B, d, T) -> (B, T, d)
        positions = torch.arange(num_frames, device=hidden_states.device)
        hidden_states = hidden_states + self.embed_positions(positions)
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        layer_mask = None
        if attention_mask is not None:
            frames_mask = attention_mask[:, ::2]  # (B, mel_frames) -> (B, T)
            hidden_states = hidden_states * frames_mask[..., None].to(hidden_states.dtype)
            # None where nothing is padded, so that a mask of ones gives the bits of no mask
            layer_mask = create_bidirectional_mask(self.config, hidden_states, frames_mask)
        for layer in self.layers:
            if self.training and self.layerdrop > 0 and torch.rand([]) < self.layerdrop:
                continue
            hidden_states = layer(hidden_states, layer_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layer_norm(hidden_states))


def blank_after(logits: torch.Tensor, frames: torch.Tensor, blank: int) -> torch.Tensor:
    """`logits` `(b, T, V)` in which the frames past each clip's own, `(b,)`, are blanks: in padding nobody speaks, whoever reads it.

    Finite beside the blank, so that sums and products over all frames stay numbers; e^-10,000 is zero in every precision.
    """
    past = torch.arange(logits.shape[1], device=logits.device) >= frames.to(logits.device)[:, None]  # (b, T)
    is_blank = torch.arange(logits.shape[2], device=logits.device) == blank  # (V,)
    return torch.where(past[..., None], torch.where(is_blank, 0.0, -1e4).to(logits.dtype), logits)


def device_of_ctc(device: torch.device) -> torch.device:
    """Where PyTorch computes the loss of what lies on `device`: for Apple's GPUs it has no CTC."""
    return torch.device("cpu") if device.type == "mps" else device


class WhisperEncoderForCTC(WhisperPreTrainedModel):
    """A Whisper encoder with one CTC head: what `materialize` makes of one language on a Whisper backbone.

    A saved folder holds this file: `AutoModelForCTC.from_pretrained(folder, trust_remote_code=True)` needs nothing else.
    """

    base_model_prefix = "encoder"

    def __init__(self, config: WhisperConfig):
        super().__init__(config)
        config.auto_map = {"AutoModelForCTC": "whisper_master_asr.WhisperEncoderForCTC"}
        self.encoder = TrueLengthWhisperEncoder(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_features: torch.Tensor, attention_mask: Optional[torch.Tensor] = None, labels: Optional[torch.Tensor] = None, **kwargs
    ) -> CausalLMOutput:
        """Logits `(B, ceil(mel_frames / 2), vocab_size)` of `input_features` `(B, num_mel_bins, mel_frames)`; with `labels` `(B, L)`,
        -100 where padded, the CTC loss as Transformers' own classes have it. Blanks follow each clip's own frames.

        Raises:
            ValueError: for more than 30 s.
        """
        outputs = self.encoder(input_features, attention_mask=attention_mask, return_dict=True, **kwargs)
        logits = self.lm_head(outputs.last_hidden_state)
        frames = None if attention_mask is None else attention_mask[:, ::2].sum(-1, dtype=torch.long)  # as the encoder masks its layers
        loss = None if labels is None else self._ctc_loss(logits, frames, labels)
        if frames is not None:
            logits = blank_after(logits, frames, self.config.pad_token_id)
        return CausalLMOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions)

    def _ctc_loss(self, logits: torch.Tensor, frames: Optional[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        frames = logits.new_full((len(logits),), logits.shape[1], dtype=torch.long) if frames is None else frames
        is_label = labels >= 0
        log_probs = logits.float().log_softmax(-1).transpose(0, 1)  # (B, T, V) -> (T, B, V)
        device = device_of_ctc(log_probs.device)
        loss = nn.functional.ctc_loss(
            log_probs.to(device), labels[is_label].to(device), frames.to(device), is_label.sum(-1).to(device), blank=self.config.pad_token_id,
            reduction=getattr(self.config, "ctc_loss_reduction", "mean"), zero_infinity=getattr(self.config, "ctc_zero_infinity", True),
        )  # fmt: skip
        return loss.to(log_probs.device)

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """As in Transformers, plus this file."""
        source, target = Path(__file__), Path(save_directory) / "whisper_master_asr.py"
        if target.is_symlink() and target.resolve() != source.resolve():
            target.unlink()  # what it leads to is somebody's source; before Transformers copies code by itself
        super().save_pretrained(save_directory, *args, **kwargs)
        if target.resolve() != source.resolve():
            target.write_bytes(source.read_bytes())
