"""Stage 1 with something else to choose by, or at its end: ideas, each tried against the paper's rule.

    python -m benchmarks.choosing --rule diverse ...  # and the settings of training.train_multilingual

* `diverse`: a term for M that rewards specialists whose masks differ: the gradient of their overlap, with a tenth of the norm of the loss's.
* `clustered:runs/NAME/model`: specialists that start as the means of two clusters of the languages' own ones (a short run with `--gates own`), in every
  layer the two whose masks differ least inside; T starts with a language's cluster and is free.
* `averaged`: W, M, T and heads of the last fifth of the steps, averaged.
"""

from __future__ import annotations

import sys
from itertools import combinations

import torch

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.artisan_master_asr import select_mask
from training import train_multilingual
from training.loop.optim import Turns

SHARE, START, LAST = 0.1, 0.1, 0.2


def after_build(change) -> None:
    plain = train_multilingual.build

    def build(config, clips):
        model, processor = plain(config, clips)
        change(model, config)
        return model, processor

    train_multilingual.build = build


def before_step(change) -> None:
    plain = Turns.step

    def step(turns, step: int) -> bool:
        change(turns, step)
        return plain(turns, step)

    Turns.step = step


def diverse(_: str) -> None:
    sparsity = []
    after_build(lambda model, config: sparsity.append(config.sparsity))

    @torch.no_grad()
    def push_apart(turns, step: int) -> None:
        for specialists in turns.specialists:
            if specialists.grad is None:
                continue
            kept = torch.stack([select_mask(scores, sparsity[0]) for scores in specialists]).float()  # (K, out, in)
            overlap = kept.sum(0) - kept
            overlap -= overlap.mean((1, 2), keepdim=True)
            specialists.grad += SHARE * overlap * specialists.grad.norm() / overlap.norm()

    before_step(push_apart)


def two_clusters(masks: torch.Tensor) -> tuple[int, ...]:
    """The members of the first of two clusters whose masks, `[languages, weights]`, differ least inside."""
    flat = masks.flatten(1).float()
    differ = (flat[:, None] != flat[None]).float().mean(-1)
    everyone = set(range(len(flat)))
    parts = [(0, *rest) for size in range(len(flat) - 1) for rest in combinations(range(1, len(flat)), size)]

    def inside(part) -> float:
        return sum(differ[list(c)][:, list(c)].sum().item() / len(c) for c in (part, everyone - set(part)))

    return min(parts, key=inside)


def clustered(folder: str) -> None:
    @torch.no_grad()
    def change(model, config) -> None:
        owned = MasterASRForCTC.from_pretrained(folder)
        for index, (layer, own) in enumerate(zip(model.master_asr.artisan_layers, owned.master_asr.artisan_layers)):
            first = two_clusters(torch.stack([select_mask(scores, config.sparsity) for scores in own.specialists]))
            second = [n for n in range(len(own.specialists)) if n not in first]
            print(f"layer {index}: {[owned.languages[n] for n in first]} {[owned.languages[n] for n in second]}")
            layer.specialists.copy_(torch.stack([own.specialists[list(first)].mean(0), own.specialists[second].mean(0)]))
            for n, assembly in enumerate(model.assemblies.values()):
                assembly.mapping[index] = torch.tensor([START, -START] if n in first else [-START, START])

    after_build(change)


def averaged(_: str) -> None:
    plain, means = Turns.step, {}

    @torch.no_grad()
    def step(turns, step: int) -> bool:
        finite = plain(turns, step)
        done = step + 1 - int((1 - LAST) * turns.num_steps)
        moving = [p for group in turns.optimizer.param_groups for p in group["params"]] + turns.mappings
        for number, parameter in enumerate(moving if done > 0 else []):
            means.setdefault(number, torch.zeros_like(parameter)).lerp_(parameter, 1 / done)
            if step + 1 == turns.num_steps:
                parameter.copy_(means[number])
        return finite

    Turns.step = step


RULES = {rule.__name__: rule for rule in (diverse, clustered, averaged)}


def main(argv: list[str]) -> None:
    rule, _, argument = argv[1].partition(":") if len(argv) > 1 and argv[0] == "--rule" else ("", "", "")
    if rule not in RULES:
        sys.exit(f"Begin with --rule and one of {list(RULES)}; got {argv[:2]}.")
    RULES[rule](argument)
    train_multilingual.main(argv[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
