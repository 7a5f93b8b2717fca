"""Parameter groups, learning rates and the paper's turns: W and M every gamma steps, T every beta steps."""

from __future__ import annotations

import torch
from transformers.utils import logging

from modeling_master_asr.artisan_master_asr import ArtisanLinear
from modeling_master_asr.configuration_master_asr import PAPER_PARTS
from training.loop.sharding import clip_gradients, load_optimizer_state

logger = logging.get_logger(__name__)
# CHOICE: CTC's first gradients are far larger than the later ones; unclipped they fill Adam's second moment, and the blank
# plateau lasts several times longer.
MAX_GRAD_NORM = 1.0
MIN_SKIPPED, MAX_SKIPPED_SHARE = 10, 0.01  # steps that may be lost to gradients that are not finite
WARMUP, HOLD, FINAL_SCALE = 0.1, 0.4, 0.05  # CHOICE: shares of the steps; the rest decays exponentially to FINAL_SCALE


def tri_stage(step: int, num_steps: int) -> float:
    """The tri-stage factor of the learning rate: linear warm-up, flat, exponential decay to 0.05."""
    warmup, hold = WARMUP * num_steps, (WARMUP + HOLD) * num_steps
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if step < hold:
        return 1.0
    return FINAL_SCALE ** ((step - hold) / max(num_steps - hold, 1))


def allowed_to_skip(num_steps: int) -> int:
    """How many steps of a run may be lost to gradients that are not finite."""
    return max(MIN_SKIPPED, int(MAX_SKIPPED_SHARE * num_steps))


def named_groups(model) -> dict[str, list[torch.nn.Parameter]]:
    """Parameters by their role in the paper: W (backbone), M (specialists), T (mappings), head, and the languages' own parts."""
    base = model.master_asr
    specialists = [layer.specialists for layer in base.artisan_layers]
    of_m = {id(p) for p in specialists}
    groups = {"W": [p for p in base.backbone.parameters() if id(p) not in of_m], "M": specialists, "T": [], "head": []}
    if base.character_bank is not None:
        groups["head"] += base.character_bank.parameters()
    for assembly in base.assemblies.values():
        groups["T"].append(assembly.mapping)
        groups["head"] += assembly.head.parameters()
        for part in assembly.parts:
            if part not in PAPER_PARTS:
                groups.setdefault(part, []).extend(getattr(assembly, part).parameters())
    return groups


class Turns:
    """Whose turn it is: W or M, every gamma steps; T every beta steps, its gradient accumulated in between.

    CHOICE: T's gradient accumulates over its beta steps, else with one-language batches most rows would never move.
    CHOICE: W's turn is over the weights that have masks (the Artisan layers'); what no mask touches trains all the time. W is first, and T moves in
    the turns of both.
    CHOICE: each language's row is a parameter of its own, so that one without a batch in its beta steps stays; in one table Adam's momentum would move it.

    Args:
        mapping_gradient: of T: "accumulated" over its beta steps, or that of the "last" of them alone (CHOICE, in stage 2: every step
            reaches the one row that trains, and with mapping, head, delta and norms the steps in between need no gradient of an assembled weight).
        mapping_decay: T's rate follows the others' (the paper's is constant).
        mapping_rest: share of the steps, at the end, in which T no longer moves.
        beta2: of Adam; 0.999 remembers CTC's first, largest gradients for a thousand steps.

    Raises:
        ValueError: for something that trains and has no rate in `learning_rates`; where nothing trains but T.
    """

    def __init__(
        self, model, alpha: float, beta: int, gamma: int, learning_rates: dict[str, float], num_steps: int,
        mapping_gradient: str = "accumulated", beta2: float = 0.999, mapping_decay: bool = False, mapping_rest: float = 0.0,
    ):  # fmt: skip
        model.freeze_idle_masks()  # in a dense model M has no say, and W would wait for its turns
        self.beta, self.gamma, self.num_steps, self.mapping_gradient = beta, gamma, num_steps, mapping_gradient
        self.mapping_decay, self.mapping_steps = mapping_decay, (1 - mapping_rest) * num_steps
        groups = {name: [p for p in ps if p.requires_grad] for name, ps in named_groups(model).items()}
        self.masked = [m._parameters["weight"] for m in model.modules() if isinstance(m, ArtisanLinear)]
        self.masked = [p for p in self.masked if p.requires_grad]
        self.specialists, self.mappings = groups["M"], groups["T"]
        if missing := sorted(name for name, ps in groups.items() if ps and name not in learning_rates):
            raise ValueError(f"learning_rates: got {sorted(learning_rates)}; {missing} train as well. Give each a rate, or freeze it.")
        if not any(ps for name, ps in groups.items() if name != "T"):
            raise ValueError("Nothing but T trains, or nothing at all. Free the model (unfreeze), or give the language a part of its own: a head that shares the bank has no values.")
        slow = [{"params": ps, "lr": learning_rates[name], "name": name} for name, ps in groups.items() if ps and name != "T"]
        self.optimizer = torch.optim.Adam(slow, betas=(0.9, beta2))
        self.base_lrs = [group["lr"] for group in slow]
        self.mapping_lr = alpha * learning_rates["T"]
        self.mapping_optimizer = torch.optim.Adam(self.mappings, lr=self.mapping_lr, betas=(0.9, beta2)) if self.mappings else None
        self.collected: list = [None] * len(self.mappings)  # T's gradients since it last moved
        self.takes_turns = gamma > 0 and bool(self.masked) and bool(self.specialists)

    def phase(self, step: int) -> str:
        """"W", "M", or "all" where nothing takes turns."""
        if not self.takes_turns:
            return "all"
        return "W" if (step // self.gamma) % 2 == 0 else "M"

    def begin(self, step: int) -> None:
        """Sets the learning rates and lets only the phase's weights collect gradients."""
        for group, rate in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = rate * tri_stage(step, self.num_steps)
        if self.mapping_decay and self.mapping_optimizer is not None:
            self.mapping_optimizer.param_groups[0]["lr"] = self.mapping_lr * tri_stage(step, self.num_steps)
        if self.takes_turns:
            phase = self.phase(step)
            for parameter in self.masked:
                parameter.requires_grad_(phase == "W")
            for parameter in self.specialists:
                parameter.requires_grad_(phase == "M")
        if self.mapping_gradient == "last":
            for parameter in self.mappings:
                parameter.requires_grad_(self._moves_mapping(step))

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *_) -> None:
        self.end()

    def end(self) -> None:
        """Gives back what `begin` took: all that trains collects gradients again, for whoever trains it next. `with turns:` does, however a training ends."""
        for parameter in (*self.masked, *self.specialists, *self.mappings):
            parameter.requires_grad_(True)

    def _moves_mapping(self, step: int) -> bool:
        return self.mapping_optimizer is not None and (step + 1) % self.beta == 0 and step < self.mapping_steps

    def learning_rates(self) -> dict[str, float]:
        """`{"learning_rate/W": ...}` of every group, as they are now."""
        rates = {f"learning_rate/{group['name']}": group["lr"] for group in self.optimizer.param_groups}
        if self.mapping_optimizer is not None:
            rates["learning_rate/T"] = self.mapping_optimizer.param_groups[0]["lr"]
        return rates

    def step(self, step: int) -> bool:
        """After backward: moves what has its turn, and T at the end of each beta steps.

        Returns:
            False if the gradients held NaN or infinity: then they moved nothing, and T moves by what the steps before this one gave.
        """
        norm = clip_gradients([p for g in self.optimizer.param_groups for p in g["params"]], MAX_GRAD_NORM)
        finite = bool(norm.isfinite()) and all(bool(p.grad.isfinite().all()) for p in self.mappings if p.grad is not None)
        if finite:
            self.optimizer.step()
            self._collect()
        self.optimizer.zero_grad(set_to_none=True)
        for parameter in self.mappings:
            parameter.grad = None
        if self._moves_mapping(step):
            for parameter, grad in zip(self.mappings, self.collected):
                parameter.grad = grad
            self.mapping_optimizer.step()
            self.mapping_optimizer.zero_grad(set_to_none=True)
            self.collected = [None] * len(self.mappings)
        return finite

    def _collect(self) -> None:
        """Moves T's gradients of this step into a buffer of ours: Trainer clears `.grad` after every step."""
        for i, parameter in enumerate(self.mappings):
            if parameter.grad is not None:
                self.collected[i] = parameter.grad if self.collected[i] is None else self.collected[i] + parameter.grad

    def state_dict(self) -> dict:
        """Everything a resumed run needs, T's half-collected gradients included."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "mapping_optimizer": self.mapping_optimizer.state_dict() if self.mapping_optimizer else None,
            "mapping_grads": list(self.collected),
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        load_optimizer_state(self.optimizer, state["optimizer"])
        if self.mapping_optimizer is not None:
            load_optimizer_state(self.mapping_optimizer, state["mapping_optimizer"])
        self.collected = [g if g is None else g.to(p.device) for g, p in zip(state["mapping_grads"], self.mappings)]


class TurnsOptimizer(torch.optim.Optimizer):
    """`Turns` in the shape that `transformers.Trainer` drives: it counts its own steps."""

    def __init__(self, turns: Turns):
        self.turns, self.steps_done, self.skipped = turns, 0, 0
        super().__init__([{"params": [p for g in turns.optimizer.param_groups for p in g["params"]]}], {"lr": 0.0})
        self.param_groups = turns.optimizer.param_groups + (turns.mapping_optimizer.param_groups if turns.mapping_optimizer else [])

    def begin(self) -> None:
        """Before the step's forward: learning rates, and whose turn it is."""
        self.turns.begin(self.steps_done)

    def step(self, closure=None) -> None:
        """The move.

        Raises:
            FloatingPointError: once too many steps had gradients that are not finite.
        """
        if not self.turns.step(self.steps_done):
            self.skipped += 1
            allowed = allowed_to_skip(self.turns.num_steps)
            if self.skipped > allowed:
                raise FloatingPointError(f"{self.skipped} steps had gradients that are not finite (allowed: {allowed}). The scripts name the clips of such steps.")
            logger.warning(f"Step {self.steps_done}: gradients are NaN or infinite, skipped.")
        self.steps_done += 1

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.turns.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        return {"turns": self.turns.state_dict(), "steps_done": self.steps_done, "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict) -> None:
        self.turns.load_state_dict(state_dict["turns"])
        self.steps_done, self.skipped = state_dict["steps_done"], state_dict.get("skipped", 0)
