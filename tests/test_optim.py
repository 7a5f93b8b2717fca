"""What the optimizer adds to the paper's turns: a T that comes to rest."""

import pytest
import torch
from conftest import inputs_for, tiny_model, vocab

from training.loop.optim import Turns, allowed_to_skip, tri_stage

RATES = {"T": 1e-2, "head": 1e-2, "norms": 1e-2}


def stage_2(**options):
    model = tiny_model()
    model.add_language("es", vocab("ab"), parts=("mapping", "head", "norms"))
    model.freeze_except("es")
    return model, Turns(model, 10, 1, 0, RATES, num_steps=10, **options)


def run(model, turns, steps) -> None:
    inputs, labels = inputs_for(model), torch.tensor([[3, 4], [4, 3]])
    for step in steps:
        model.train()
        turns.begin(step)
        model(**inputs, labels=labels, language="es").loss.backward()
        turns.step(step)


def test_a_steps_gradients_have_at_most_a_norm_of_one_and_smaller_ones_are_left_as_they_are(monkeypatch):
    (_, turns), seen = stage_2(), []
    moving = [p for group in turns.optimizer.param_groups for p in group["params"]]
    monkeypatch.setattr(turns.optimizer, "step", lambda: seen.append(float(torch.nn.utils.get_total_norm([p.grad for p in moving]))))
    for scale in (1e3, 1e-3):
        for p in moving:
            p.grad = torch.full_like(p, scale / sum(p.numel() for p in moving) ** 0.5)  # a norm of `scale`
        turns.begin(0)
        assert turns.step(0)
    assert seen == pytest.approx([1.0, 1e-3], rel=1e-3)


def test_t_rests_in_the_last_share_of_the_steps_and_its_rate_falls_if_asked_to():
    model, turns = stage_2(mapping_rest=0.2, mapping_decay=True)
    for step in range(10):
        before = model.assemblies["es"].mapping.detach().clone()
        run(model, turns, [step])
        assert torch.equal(model.assemblies["es"].mapping, before) == (step >= 8), step
        assert turns.learning_rates()["learning_rate/T"] == pytest.approx(0.1 * tri_stage(step, 10))


def test_adam_remembers_squares_for_as_long_as_beta2_says_and_ts_gradient_adds_up_between_its_steps():
    model = tiny_model()
    turns = Turns(model, alpha=2, beta=3, gamma=0, learning_rates=dict.fromkeys(("W", "M", "T", "head"), 1e-3), num_steps=9, beta2=0.7)
    assert all(group["betas"] == (0.9, 0.7) for optimizer in (turns.optimizer, turns.mapping_optimizer) for group in optimizer.param_groups)
    mapping, sum_of_both = turns.mappings[0], None
    for step, value in enumerate((1.0, 2.0)):
        turns.begin(step)
        mapping.grad = torch.full_like(mapping, value)
        assert turns.step(step)
        sum_of_both = turns.collected[0]
    assert torch.equal(sum_of_both, torch.full_like(mapping, 3.0)) and mapping.grad is None


@pytest.mark.parametrize("options", [{"gamma": 2}, {"gamma": 0, "mapping_gradient": "last"}])
def test_whoever_trains_after_the_turns_trains_all_that_they_trained(options):
    model = tiny_model()
    inputs, labels = inputs_for(model), torch.tensor([[3, 4], [4, 3]])
    rates = dict.fromkeys(("W", "M", "T", "head"), 1e-3)
    first = Turns(model, 10, 3, learning_rates=rates, num_steps=4, **options)
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for step in range(4):
        model.train()
        first.begin(step)
        model(**inputs, labels=labels, language="fr").loss.backward()
        first.step(step)
    first.end()
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == before
    second = Turns(model, 10, 3, learning_rates=rates, num_steps=4, **options)
    assert (len(second.masked), len(second.specialists), len(second.mappings)) == (len(first.masked), len(first.specialists), len(first.mappings))


@pytest.mark.parametrize("options", [{"gamma": 2}, {"gamma": 0, "mapping_gradient": "last"}])
def test_a_training_that_ends_in_an_error_gives_back_what_the_turns_took(options):
    model = tiny_model()
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with pytest.raises(KeyboardInterrupt), Turns(model, 10, 3, learning_rates=dict.fromkeys(("W", "M", "T", "head"), 1e-3), num_steps=4, **options) as turns:
        turns.begin(0)
        assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} != before
        raise KeyboardInterrupt
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == before


def test_in_a_dense_model_nothing_waits_for_masks_to_have_their_turn():
    model = tiny_model(sparsity=0.0)
    turns = Turns(model, 10, 3, gamma=2, learning_rates=dict.fromkeys(("W", "M", "T", "head"), 1e-3), num_steps=4)
    assert not turns.takes_turns and not turns.specialists and not turns.mappings and turns.masked


def test_turns_say_which_rates_they_lack_and_that_nothing_trains():
    model, _ = stage_2()
    with pytest.raises(ValueError, match=r"learning_rates: got .'T', 'head'.; .'norms'. train as well"):
        Turns(model, 10, 1, 0, {"T": 1e-2, "head": 1e-2}, num_steps=10)
    model.requires_grad_(False)
    model.assemblies["es"].mapping.requires_grad_(True)
    with pytest.raises(ValueError, match="Nothing but T trains, or nothing at all"):
        Turns(model, 10, 1, 0, RATES, num_steps=10)


@pytest.mark.parametrize("bad", ["head", "mapping"])
def test_a_step_whose_gradients_are_not_finite_leaves_values_moments_and_what_t_has_collected(bad):
    model = tiny_model()
    model.add_language("es", vocab("ab"), parts=("mapping", "head", "norms"))
    model.freeze_except("es")
    turns, owned = Turns(model, 10, 2, 0, {"T": 1e-2, "head": 1e-2, "norms": 1e-2}, num_steps=10), model.assemblies["es"]

    def step(number, spoilt=None) -> bool:
        turns.begin(number)
        for parameter in owned.parameters():
            parameter.grad = torch.ones_like(parameter) * (float("nan") if parameter is spoilt else 1.0)
        return turns.step(number)

    assert step(0)
    collected, before, moments = [gradient.clone() for gradient in turns.collected], {name: p.detach().clone() for name, p in owned.named_parameters()}, str(turns.optimizer.state_dict())
    turns.beta = 10  # T's own step is not due
    assert not step(1, owned.mapping if bad == "mapping" else owned.head.weight)
    assert all(torch.equal(parameter, before[name]) for name, parameter in owned.named_parameters()) and str(turns.optimizer.state_dict()) == moments
    assert collected and all(torch.equal(one, other) for one, other in zip(collected, turns.collected, strict=True))


def test_a_run_may_skip_ten_steps_or_one_in_a_hundred():
    assert [allowed_to_skip(steps) for steps in (20, 1000, 1100, 100_000)] == [10, 10, 11, 1000]
