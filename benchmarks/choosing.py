"""Stage 1 with something else for T to choose by: ideas, each tried against the paper's rule.

    python -m benchmarks.choosing --rule invariant ...  # and the settings of training.train_multilingual

Masks depend on the order of S alone, so of the straight-through gradient dS two components change no mask: the one along S and the one
along a constant. They are the same for all specialists that follow |W|, and so say "more" or "less" of every gate, never which.

* `invariant`: dS without both, for M and for T.
* `centred`: T's gradient less its mean over k.
* `relative`: T's gradient less what languages want on average (a running mean): what this one wants beyond the others.
* `apart`: specialists that differ at the start among the weights near the threshold alone (ranks of |W| within 0.15 of t).
* `invariant_apart`: both.
* `grow`: the sparsity grows from 0 to t over the first half of the steps.
* `own_start`: T starts with a specialist for every language (`--num_specialists` as many) and is free to choose others.
"""

from __future__ import annotations

import sys

import torch

from modeling_master_asr import artisan_master_asr as artisan
from training import train_multilingual
from training.loop.optim import Turns

WINDOW, GROWING, MEMORY, START = 0.15, 0.5, 0.98, 0.1


def without_invariances(grad_scores: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """dS less its mean and less its component along the centred S."""
    grad, along = grad_scores.float(), scores - scores.mean()
    grad = grad - grad.mean()
    return grad - along * ((grad * along).sum() / along.square().sum())


def backward_without_invariances(ctx, grad_assembled):
    """`_StraightThrough.backward` for presets without a specialist of their own."""
    weight, specialists, mapping_row, _, _, mask = ctx.saved_tensors
    need_weight, need_specialists, need_mapping = ctx.needs_input_grad[:3]
    grad_weight = grad_assembled * mask if need_weight else None
    grad_specialists = grad_mapping = None
    if need_specialists or need_mapping:
        grad_scores = without_invariances(grad_assembled * weight, artisan.specialist_scores(specialists, ctx.gates))
    if need_specialists:
        grad_specialists = torch.stack([grad_scores if is_open else torch.zeros_like(grad_scores) for is_open in ctx.gates]).to(specialists.dtype)
    if need_mapping:
        grad_mapping = artisan._mapping_gradient(grad_scores, specialists, mapping_row)
    return grad_weight, grad_specialists, grad_mapping, None, None, None, None


def invariant() -> None:
    artisan._StraightThrough.backward = staticmethod(backward_without_invariances)


def centred() -> None:
    plain = artisan._mapping_gradient

    def less_the_mean(*arguments):
        grad = plain(*arguments)
        return grad - grad.mean()

    artisan._mapping_gradient = less_the_mean


def relative() -> None:
    plain = Turns._collect

    def less_what_all_want(turns) -> None:
        for parameter in turns.mappings:
            if parameter.grad is not None:
                mean = turns.__dict__.setdefault("wanted", torch.zeros_like(parameter))
                wanted = parameter.grad.clone()
                parameter.grad -= mean
                mean.lerp_(wanted, 1 - MEMORY)
        plain(turns)

    Turns._collect = less_what_all_want


def apart() -> None:
    plain = artisan.ArtisanLinear.reset_specialists

    @torch.no_grad()
    def near_the_threshold(layer, generator=None, noise=artisan.SPECIALIST_NOISE) -> None:
        plain(layer, generator, noise)
        magnitude = layer._parameters["weight"].detach().abs()
        low, high = (torch.quantile(magnitude.flatten()[:: magnitude.numel() // 100_000 + 1], rank) for rank in (0.3 - WINDOW, 0.3 + WINDOW))
        window = (magnitude > low) & (magnitude < high)
        for specialist in layer.specialists:
            specialist[window] = artisan.SPECIALIST_SCALE * (low + (high - low) * torch.rand(int(window.sum())))

    artisan.ArtisanLinear.reset_specialists = near_the_threshold


def invariant_apart() -> None:
    invariant()
    apart()


def after_build(change) -> None:
    plain = train_multilingual.build

    def build(config, clips):
        model, processor = plain(config, clips)
        change(model, config)
        return model, processor

    train_multilingual.build = build


def grow() -> None:
    begin = Turns.begin

    def change(model, config) -> None:
        def begin_sparser(turns, step: int) -> None:
            model.config.sparsity = config.sparsity * min(1.0, step / (GROWING * config.steps))
            begin(turns, step)

        Turns.begin = begin_sparser

    after_build(change)


def own_start() -> None:
    @torch.no_grad()
    def change(model, config) -> None:
        for own, assembly in enumerate(model.assemblies.values()):
            assembly.mapping.fill_(-START)
            assembly.mapping[:, own] = START

    after_build(change)


RULES = {rule.__name__: rule for rule in (invariant, centred, relative, apart, invariant_apart, grow, own_start)}


def main(argv: list[str]) -> None:
    if len(argv) < 2 or argv[0] != "--rule" or argv[1] not in RULES:
        sys.exit(f"Begin with --rule and one of {list(RULES)}; got {argv[:2]}.")
    RULES[argv[1]]()
    train_multilingual.main(argv[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
