"""Learning from a teacher: beside CTC, the letters that it reads, frame by frame."""

from __future__ import annotations

import torch
from torch.nn.functional import kl_div

from modeling_master_asr import MasterASRForCTC


def divergence(teacher: MasterASRForCTC, batch: dict, logits: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ model) of the classes in each frame, summed over the batch's frames of speech, for each letter of its labels.

    Hinton et al., arXiv 1503.02531, at temperature 1. CHOICE: for each letter, as CTC's loss is, so that the two weigh alike; over the letters of the whole
    batch, where CTC's is the mean of clips.

    Args:
        batch: of one language, as both models take it.
        logits: the model's, `(B, T, V)`.
        frames: each clip's frames of logits, `(B,)`; what follows them is padding.
    """
    classes = len(teacher.config.vocab(batch["language"][0]))  # of a list of codes, logits are -inf past its own
    with torch.no_grad():
        goal = teacher(**{name: value for name, value in batch.items() if name != "labels"}).logits[..., :classes].float().log_softmax(-1)
    apart = kl_div(logits[..., :classes].float().log_softmax(-1), goal, log_target=True, reduction="none").sum(-1)  # (B, T)
    heard = torch.arange(apart.shape[1], device=frames.device)[None] < frames[:, None]
    return apart[heard].sum() / (batch["labels"] >= 0).sum()
