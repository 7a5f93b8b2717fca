"""Two views of each clip that are to be heard alike: consistency-regularised CTC (CR-CTC, arXiv 2410.05101)."""

from __future__ import annotations

import torch


def views_of(consistency: float) -> int:
    """How often a batch holds each of its clips."""
    return 2 if consistency else 1


def disagreement(logits: torch.Tensor, frames: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How differently the two halves of a one-language batch, two views of the same clips, are heard.

    1/2 sum_t [KL(sg(q_t) || p_t) + KL(sg(p_t) || q_t)] / label length, mean over clips: p_t and q_t are what the two views say of
    frame t, and sg stops the gradient, so that each view learns from the other. Divided as the CTC loss is.

    Args:
        logits: `(2B, T, V)`; -inf in classes that are not the language's.
        frames: `(2B,)`, true lengths.
        labels: `(2B, label length)`, -100 where padded.
    """
    log_p, log_q = logits[..., logits[0, 0] > -torch.inf].float().log_softmax(-1).chunk(2)  # (B, T, V of the language)
    p, q = log_p.detach(), log_q.detach()
    differs = 0.5 * (q.exp() * (q - log_p) + p.exp() * (p - log_q)).sum(-1)  # (B, T)
    heard = torch.arange(differs.shape[1], device=differs.device) < frames.chunk(2)[0][:, None]
    return ((differs * heard).sum(-1) / (labels.chunk(2)[0] >= 0).sum(-1).clamp(min=1)).mean()


def whole_loss(output, labels: torch.Tensor, consistency: float) -> torch.Tensor:
    """The CTC loss, and `consistency` times the disagreement of the views."""
    return output.loss + consistency * disagreement(output.logits, output.frames, labels) if consistency else output.loss
