"""The equations, against a loop written from the paper."""

import math

import numpy as np
import pytest
import torch

from modeling_master_asr import artisan_master_asr as artisan
from modeling_master_asr.artisan_master_asr import (
    ArtisanLinear,
    mask_frozen_weight,
    mask_weight,
    open_gates,
    open_gates_of_layers,
    pack_mask,
    select_mask,
    specialist_scores,
    unpack_mask,
)


def loop_oracle(weight, specialists, row, sparsity):
    """Eq. 1 to 3, entry by entry."""
    gates = [1 / (1 + math.exp(-t)) > 0.5 for t in row.tolist()]
    rows, columns = weight.shape
    scores = [[sum(float(specialists[k, i, j]) for k in range(len(gates)) if gates[k]) for j in range(columns)] for i in range(rows)]
    kept = rows * columns - math.floor(sparsity * rows * columns)
    ordered = sorted(((scores[i][j], -(i * columns + j)) for i in range(rows) for j in range(columns)), reverse=True)
    winners = {-position for _, position in ordered[:kept]}
    out = torch.zeros_like(weight)
    for i in range(rows):
        for j in range(columns):
            if i * columns + j in winners:
                out[i, j] = weight[i, j]
    return out


@pytest.mark.parametrize("row", [[0.3, -0.2, 1.0, -2.0], [0.3, 0.2, 1.0, 2.0], [0.3, 0.2, -1.0, 2.0], [-0.3, -0.2, -1.0, 2.0]])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.77, 0.99])
def test_assembled_weight_equals_the_loop_oracle(sparsity, row):
    torch.manual_seed(0)
    weight, specialists, row = torch.randn(7, 9), torch.randn(4, 7, 9), torch.tensor(row)
    gates = open_gates(row)
    mask = select_mask(specialist_scores(specialists, gates), sparsity)
    assert torch.equal(mask_weight(weight, specialists, row, mask, gates), loop_oracle(weight, specialists, row, sparsity))


def test_a_languages_own_specialist_is_added_to_all_that_are_open():
    torch.manual_seed(0)
    shared, left, right = torch.randn(3, 5, 6), torch.randn(5, 2), torch.randn(2, 6)
    torch.testing.assert_close(specialist_scores(shared, (True, False, True), (left, right)), shared[0] + shared[2] + left @ right)


def test_each_row_that_opens_nothing_falls_back_to_its_own_largest_entry():
    rows = torch.tensor([[-3.0, -1.0, -2.0], [1.0, -1.0, 1.0], [-1.0, -2.0, -3.0]])
    assert open_gates_of_layers(rows) == [(False, True, False), (True, False, True), (True, False, False)]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("scores", [torch.randn(33, 17), torch.zeros(33, 17), torch.arange(561.0).view(33, 17) // 7])
def test_exactly_the_stated_fraction_is_masked_also_among_ties(sparsity, scores):
    mask = select_mask(scores, sparsity)
    assert int((~mask).sum()) == math.floor(sparsity * scores.numel())


@pytest.mark.parametrize("values", [
    np.random.default_rng(0).standard_normal(50_000), np.arange(50_000.0), np.arange(50_000.0)[::-1], np.zeros(50_000), np.arange(7.0),
    np.where(np.arange(50_000) % (50_000 // artisan.SAMPLE) == 0, 1e6, np.random.default_rng(0).random(50_000)),  # the sample sees only 1e6
    np.random.default_rng(0).integers(0, 5, 50_000), np.array([3.0]),
])  # fmt: skip
def test_the_thresholds_rank_is_exact_whatever_the_sample_says(values):
    values = np.ascontiguousarray(values, dtype=np.float32)
    for share in (0.0, 0.001, 0.3, 0.5, 0.97, 0.9999):
        rank = int(share * values.size)
        ordered = np.sort(values)
        assert artisan._kth_smallest(values, rank) == (ordered[rank], np.count_nonzero(ordered[:rank] == ordered[rank]))


def test_of_equal_scores_the_last_are_masked():
    assert select_mask(torch.zeros(2, 5), 0.3).tolist() == [[True] * 5, [True, True, False, False, False]]


@pytest.mark.parametrize("scores", [torch.randn(33, 17), torch.zeros(33, 17), torch.arange(561.0).view(33, 17) // 7])
def test_a_gpus_masks_are_the_same_and_packed_alike(scores, monkeypatch):
    """What runs on other devices, run on the CPU."""
    expected = select_mask(scores, 0.3)
    monkeypatch.setattr(artisan, "_kept_by_numpy", artisan._kept_by_torch)
    assert torch.equal(select_mask(scores, 0.3), expected)
    assert torch.equal(artisan._pack_by_torch(expected), pack_mask(expected))
    assert torch.equal(artisan._unpack_by_torch(pack_mask(expected), expected.shape), expected)


@pytest.mark.parametrize("find", ["_kept_by_numpy", "_kept_by_torch"])
@pytest.mark.parametrize("scores", [torch.randn(8, 8), torch.zeros(8, 8)], ids=["different", "equal, which would hide it"])
def test_scores_with_nan_are_refused(scores, find, monkeypatch):
    monkeypatch.setattr(artisan, "_kept_by_numpy", getattr(artisan, find))
    scores = scores.clone()
    scores[3, 3] = float("nan")
    with pytest.raises(ValueError, match="hold NaN .1 of 64"):
        select_mask(scores, 0.3)


def test_a_row_that_selects_nothing_falls_back_to_its_largest_entry():
    assert open_gates(torch.tensor([-3.0, -1.0, -2.0])) == (False, True, False)
    assert open_gates(torch.tensor([0.0, 0.0])) == (True, False)  # sigmoid(0) = 0.5 is not above 0.5


def test_packing_a_mask_loses_nothing():
    mask = torch.rand(13, 11) > 0.3
    packed = pack_mask(mask)
    assert packed.numel() == math.ceil(13 * 11 / 8)
    assert torch.equal(unpack_mask(packed, mask.shape), mask)


def test_gradients_are_the_papers_straight_through_ones():
    torch.manual_seed(0)
    weight, specialists = torch.randn(5, 6, requires_grad=True), torch.randn(3, 5, 6, requires_grad=True)
    row = torch.tensor([0.5, -0.5, 0.2], requires_grad=True)
    u, v = torch.randn(5, 2, requires_grad=True), torch.randn(2, 6, requires_grad=True)
    gates = open_gates(row)
    mask = select_mask(specialist_scores(specialists, gates, (u, v)), 0.3)
    grad = torch.randn(5, 6)
    mask_weight(weight, specialists, row, mask, gates, (u, v)).backward(grad)
    d_scores = grad * weight.detach()
    assert torch.equal(weight.grad, grad * mask)
    for k, is_open in enumerate(gates):
        assert torch.equal(specialists.grad[k], d_scores if is_open else torch.zeros_like(d_scores))
        gate = torch.sigmoid(row[k].detach())
        expected = (d_scores * specialists[k].detach()).sum() * gate * (1 - gate)
        torch.testing.assert_close(row.grad[k], expected)
    torch.testing.assert_close(u.grad, d_scores @ v.detach().T)
    torch.testing.assert_close(v.grad, u.detach().T @ d_scores)


def test_gradcheck_where_it_is_differentiable():
    """In W the masked weight is smooth, so numeric gradients must agree."""
    torch.manual_seed(0)
    weight = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    specialists, row = torch.randn(2, 4, 3, dtype=torch.double), torch.tensor([1.0, -1.0], dtype=torch.double)
    mask = select_mask(specialists[0], 0.3)
    assert torch.autograd.gradcheck(lambda w: mask_weight(w, specialists, row, mask, (True, False)), (weight,))


def test_a_frozen_product_gives_the_mapping_the_same_gradient():
    torch.manual_seed(0)
    weight, specialists, grad = torch.randn(5, 6), torch.randn(3, 5, 6), torch.randn(5, 6)
    rows = [torch.tensor([0.5, -0.5, 0.2], requires_grad=True) for _ in range(2)]
    gates = open_gates(rows[0])
    mask = select_mask(specialist_scores(specialists, gates), 0.3)
    one, other = mask_weight(weight, specialists, rows[0], mask, gates), mask_frozen_weight(weight * mask, weight, specialists, rows[1])
    assert torch.equal(one, other)
    one.backward(grad), other.backward(grad)
    assert torch.equal(rows[0].grad, rows[1].grad)


def test_a_product_is_never_taken_for_a_mask_nor_a_trainable_weight_for_a_frozen_one():
    weight, specialists, row = torch.randn(5, 6, requires_grad=True), torch.randn(2, 5, 6), torch.tensor([0.5, -0.5])
    with pytest.raises(TypeError, match="boolean B that select_mask returns; got torch.float32"):
        mask_weight(weight, specialists, row, weight.detach() * 1.0, (True, False))
    for w, m in ((weight, specialists), (weight.detach(), specialists.clone().requires_grad_(True))):
        with pytest.raises(ValueError, match="W or M asks for a gradient here and would get none"):
            mask_frozen_weight(w.detach(), w, m, row)


def test_specialists_start_at_half_of_w_and_apart_by_their_noise():
    torch.manual_seed(0)
    layer = ArtisanLinear(64, 64, num_specialists=3)
    with torch.no_grad():
        layer._parameters["weight"].normal_().abs_().add_(0.1)
    half = 0.5 * layer._parameters["weight"].detach()
    layer.reset_specialists(noise=0.0)
    assert all(torch.equal(specialist, half) for specialist in layer.specialists)
    for noise in (0.1, 1.0):
        layer.reset_specialists(noise=noise)
        apart = layer.specialists.detach() / half - 1  # (K, out, in)
        assert float(apart.std()) == pytest.approx(noise, rel=0.05) and abs(float(apart.mean())) < 0.05 * noise
        assert abs(float(torch.corrcoef(apart.flatten(1))[0, 1])) < 0.05  # each has noise of its own


def test_a_zero_specialist_changes_no_mask():
    specialists = torch.randn(3, 5, 6)
    gates = (True, False, True)
    mask, own_mask = (select_mask(specialist_scores(specialists, gates, own), 0.3) for own in (None, (torch.zeros(5, 2), torch.randn(2, 6))))
    assert torch.equal(mask, own_mask)


def test_an_artisan_layer_is_a_linear_layer_outside_an_assembled_forward():
    layer = ArtisanLinear(4, 3, num_specialists=2)
    x = torch.randn(2, 4)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    assert sorted(layer.state_dict()) == ["bias", "specialists", "weight"]
    assert torch.isfinite(layer.specialists).all()
