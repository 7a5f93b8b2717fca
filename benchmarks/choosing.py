"""Stage 1 with something else to choose by: two ideas, each tried against the paper's rule.

    python -m benchmarks.choosing --rule centred ...  # and the settings of training.train_multilingual

* `centred`: T's gradient less its mean over k in every layer, so that it says which specialist and not how many.
* `free`: a specialist for every language (`--num_specialists`), T starts with each language's own one and is free.
"""

from __future__ import annotations

import sys

import torch

from modeling_master_asr import artisan_master_asr as artisan
from training import train_multilingual

START = 0.1


def centred() -> None:
    plain = artisan._mapping_gradient

    def less_the_mean(*arguments):
        grad = plain(*arguments)
        return grad - grad.mean()

    artisan._mapping_gradient = less_the_mean


def free() -> None:
    plain = train_multilingual.build

    @torch.no_grad()
    def build(config, clips):
        model, processor = plain(config, clips)
        for n, assembly in enumerate(model.assemblies.values()):
            assembly.mapping.fill_(-START)[:, n] = START
        return model, processor

    train_multilingual.build = build


RULES = {rule.__name__: rule for rule in (centred, free)}


def main(argv: list[str]) -> None:
    rule = argv[1] if len(argv) > 1 and argv[0] == "--rule" else ""
    if rule not in RULES:
        sys.exit(f"Begin with --rule and one of {list(RULES)}; got {argv[:2]}.")
    RULES[rule]()
    train_multilingual.main(argv[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
