"""Stage 1 in which T starts with a specialist for every language and is free to choose others; for one try.

    python -m benchmarks.choosing ...  # the settings of training.train_multilingual, with a specialist for every language
"""

from __future__ import annotations

import torch

from training import train_multilingual

START = 0.1  # |T|: three hundred steps of its rate


def main() -> None:
    plain = train_multilingual.build

    @torch.no_grad()
    def build(config, clips):
        model, processor = plain(config, clips)
        for n, assembly in enumerate(model.assemblies.values()):
            assembly.mapping.fill_(-START)[:, n] = START  # (layers, K)
        return model, processor

    train_multilingual.build = build
    train_multilingual.main()


if __name__ == "__main__":
    main()
