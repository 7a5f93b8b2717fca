"""Stage 2 fitted in another way: ideas, each tried on preset best.

    python -m benchmarks.fitting --rule plus ...  # and the settings of training.adapt_language

* `plus`: up, which starts at zero, learns eight times as fast as down, around the same rate (LoRA+, arXiv 2402.12354).
* `intermediate`: three tenths of the loss are CTC of the same head on the middle layer (arXiv 2102.03216).
* `plus_intermediate`: both.
"""

from __future__ import annotations

import sys

import torch

from modeling_master_asr import MasterASRForCTC
from training import adapt_language
from training.loop import optim

RATIO, WEIGHT = 8.0, 0.3


def plus() -> None:
    named_groups, learning_rates = optim.named_groups, adapt_language.learning_rates

    def groups_of_halves(model) -> dict[str, list[torch.nn.Parameter]]:
        groups = named_groups(model)
        del groups["delta"]
        deltas = [assembly.delta for assembly in model.assemblies.values() if "delta" in assembly.parts]
        return groups | {half: [p for delta in deltas for p in getattr(delta, half).parameters()] for half in ("up", "down")}

    def rates_of_halves(config) -> dict[str, float]:
        rates = learning_rates(config)
        return rates | {"up": rates["delta"] * RATIO**0.5, "down": rates["delta"] / RATIO**0.5}

    optim.named_groups, adapt_language.learning_rates = groups_of_halves, rates_of_halves


def intermediate() -> None:
    forward, seen = MasterASRForCTC.forward, {}

    def forward_with_the_middle(model, *args, **kwargs):
        labels = kwargs.get("labels")
        if labels is None or not model.training:
            return forward(model, *args, **kwargs)
        encoder = model.master_asr.backbone
        middle = encoder.layers[len(encoder.layers) // 2]

        def keep(module, inputs, hidden) -> None:
            seen["hidden"] = hidden[0] if isinstance(hidden, tuple) else hidden

        with_hook = middle.register_forward_hook(keep)
        outputs = forward(model, *args, **kwargs)
        with_hook.remove()
        code = model.master_asr.resolve_languages(kwargs.get("language"), len(labels))[0]
        hidden = torch.nn.functional.layer_norm(seen.pop("hidden").float(), (model.assemblies[code].head.in_features,))
        pieces, clips = {code: model.assemblies[code].head(hidden)}, {code: list(range(len(labels)))}
        outputs.loss = (1 - WEIGHT) * outputs.loss + WEIGHT * model._ctc_loss(pieces, clips, labels, outputs.frames)
        return outputs

    MasterASRForCTC.forward = forward_with_the_middle


def plus_intermediate() -> None:
    plus()
    intermediate()


RULES = {rule.__name__: rule for rule in (plus, intermediate, plus_intermediate)}


def main(argv: list[str]) -> None:
    if len(argv) < 2 or argv[0] != "--rule" or argv[1] not in RULES:
        sys.exit(f"Begin with --rule and one of {list(RULES)}; got {argv[:2]}.")
    RULES[argv[1]]()
    adapt_language.main(argv[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
