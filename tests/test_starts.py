"""What a new language, its parts and its head start from."""


import copy

import pytest
import torch
from conftest import VOCABS, inputs_for, tiny_backbone_config, tiny_model, vocab
from transformers import AutoModel, WhisperModel

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.artisan_master_asr import open_gates_of_layers
from modeling_master_asr.assembly_master_asr import BankHead, LowRank
from modeling_master_asr.configuration_master_asr import ALL_PARTS


def test_low_rank_parts_begin_as_those_of_add_language_when_a_config_asks_for_them_or_a_checkpoint_lacks_them(model, tmp_path):
    """Both halves at zero could never learn: neither has a gradient."""
    model.config.assemblies["fr"] |= {"parts": list(ALL_PARTS), "rank": 2}
    made = MasterASRForCTC(model.config)
    model.save_pretrained(tmp_path)
    for fresh in (made, MasterASRForCTC.from_pretrained(tmp_path)):
        for part in (fresh.assemblies["fr"].delta, fresh.assemblies["fr"].specialist):
            assert not any(bool(up.any()) for up in part.up) and all(bool(down.any()) for down in part.down)


@torch.no_grad()
def test_a_language_that_starts_from_another_hears_as_it_does(model):
    for rank, own_rank in ((2, 2), (2, 3)):
        model.add_language("from", model.config.vocab("fr"), init="fr", parts=ALL_PARTS, rank=rank, targets="all")
        for parameter in model.assemblies["from"].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.add_language("new", model.config.vocab("fr"), init="from", parts=ALL_PARTS, rank=own_rank, targets="all")
        inputs = inputs_for(model)
        assert torch.equal(model(**inputs, language="new").logits, model(**inputs, language="from").logits)
        model.remove_language("from"), model.remove_language("new")


@torch.no_grad()
def test_a_low_rank_part_starts_from_one_of_more_rank_as_its_best_approximation():
    """Against the singular values of the whole product: no matrix of that rank is nearer."""
    torch.manual_seed(0)
    source, mine = LowRank([(12, 9)], 5, down_std=0.3), LowRank([(12, 9)], 2, down_std=0.3)
    source.up[0].normal_(), source.down[0].normal_()
    mine.start_from(source)
    product = source.up[0] @ source.down[0]
    missed = torch.linalg.svdvals(product)[2:].square().sum().sqrt()
    assert torch.allclose((product - mine.up[0] @ mine.down[0]).norm(), missed, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("known", [0, 1])
def test_a_low_rank_part_started_from_one_that_says_less_than_its_rank_can_learn_in_every_direction(known):
    torch.manual_seed(0)
    source, mine = LowRank([(12, 9)], 5, down_std=0.3), LowRank([(12, 9)], 3, down_std=0.3)
    for part in (source, mine):
        part.up.reset_parameters(), part.down.reset_parameters()
    source.up[0][:, :known].normal_()
    mine.start_from(source)
    assert torch.allclose(mine.up[0] @ mine.down[0], source.up[0] @ source.down[0], atol=1e-6)
    assert [bool(column.any()) for column in mine.up[0].T] == [i < known for i in range(3)] and all(bool(row.any()) for row in mine.down[0])


@torch.no_grad()
@pytest.mark.parametrize("targets, others", [("all", "attention"), ("attention", "all")])
def test_a_delta_of_other_layers_than_the_source_has_one_of_starts_as_none(model, targets, others):
    parts = ("mapping", "head", "delta")
    source = model.add_language("es", model.config.vocab("fr"), parts=parts, targets=others, rank=2)
    for up in source.delta.up:
        up.normal_()
    model.add_language("ca", model.config.vocab("fr"), parts=parts, targets=targets, rank=2, init="es")
    model.add_language("gl", model.config.vocab("fr"), parts=("mapping", "head"), init="es")
    assert torch.equal(model.assemblies["ca"].mapping, source.mapping)
    inputs = inputs_for(model)
    assert torch.equal(model(**inputs, language="ca").logits, model(**inputs, language="gl").logits)


@torch.no_grad()
def test_fresh_optional_parts_change_no_logit(model):
    inputs = inputs_for(model)
    model.add_language("es", vocab("abc"), init="en", preset="paper")
    plain = model(**inputs, language="es").logits
    head, mapping = model.assemblies["es"].head.state_dict(), model.assemblies["es"].mapping.clone()
    model.remove_language("es")
    model.add_language("es", vocab("abc"), init="en", parts=("mapping", "head", "specialist", "delta"))
    model.assemblies["es"].head.load_state_dict(head)
    assert torch.equal(mapping, model.assemblies["es"].mapping)
    assert torch.equal(model(**inputs, language="es").logits, plain)


def test_fresh_low_rank_parts_start_at_zero_with_their_own_spread(model):
    assembly = model.add_language("es", vocab("ab"), parts=("mapping", "head", "specialist", "delta"), rank=8)
    for part, spread in ((assembly.specialist, 0.3), (assembly.delta, 0.02)):
        assert all(not up.any() for up in part.up)
        assert abs(float(torch.cat([down.flatten() for down in part.down]).std().detach()) / spread - 1) < 0.1


def test_a_head_that_starts_from_one_that_shares_the_bank_gathers_its_rows_once(model, monkeypatch):
    """Each asking for them copies all: one a letter took memory with the square of the alphabet."""
    gathered, weight = [], BankHead.weight
    monkeypatch.setattr(BankHead, "weight", property(lambda head: gathered.append(head) or weight.fget(head)))
    model.add_language("es", vocab("abñ"), init="en")
    assert len(gathered) == 1
    own, source = model.assemblies["es"].head, model.assemblies["en"].head
    assert torch.equal(own.weight[model.config.vocab("es")["a"]], source.weight[model.config.vocab("en")["a"]])


@torch.no_grad()
def test_rank_assemblies_prefers_the_language_the_clips_are_in(model):
    inputs = inputs_for(model)
    model.train()  # ranking must not depend on the mode, nor change it
    batch = {**inputs, "labels": torch.tensor([[3, 4], [4, 3]]), "language": "es"}
    losses = model.rank_assemblies([batch], vocab("abñ"))
    assert model.training and list(losses)[-1] == "ru" and losses["ru"] == float("inf")
    assert list(losses.values()) == sorted(losses.values())
    with pytest.raises(ValueError):
        model.rank_assemblies([{"labels": batch["labels"]}], vocab("abñ"))
    assert model.training
    model.add_language("es", vocab("abñ"), init="nearest", batches=[batch])
    assert torch.equal(model.assemblies["es"].mapping, model.assemblies[next(iter(losses))].mapping)


def test_rank_assemblies_reads_shared_letters_in_each_languages_own_alphabet():
    model = tiny_model(vocabs={"en": vocab("abcde"), "fr": vocab("edcba")})
    batch = {**inputs_for(model), "labels": torch.tensor([[3, 4], [4, 3]]), "language": "es"}  # "ab", "ba" in the new one's
    losses = model.rank_assemblies([batch], vocab("ab"))
    for code in model.languages:
        ids = model.config.vocab(code)
        labels = torch.tensor([[ids["a"], ids["b"]], [ids["b"], ids["a"]]])
        with torch.no_grad():
            assert losses[code] == pytest.approx(float(model.eval()(**{**batch, "labels": labels, "language": code}).loss), rel=1e-5), code


@torch.no_grad()
def test_clips_that_nobody_could_spell_have_no_say_in_which_language_is_near():
    """Of a clip of 35 letters in a few frames the one who knows all of them reads nothing, and who knows one would seem to err."""
    model = tiny_model(vocabs={"many": vocab("abcde"), "few": vocab("ax")})
    own, inputs = vocab("abcde"), inputs_for(model, (4000, 4000, 4000))
    frames = int(model(**inputs, language="many").frames.min())
    possible = {**inputs, "labels": torch.tensor([[own["a"], own["b"]]] * 3)}
    long = torch.tensor([own[letter] for letter in ("abcde" * frames)[: frames + 1]])
    twice = torch.full((frames,), own["a"])  # as many letters as frames, but no blank fits between two of them
    labels = torch.full((3, frames + 1), -100)
    labels[0, :2], labels[1], labels[2, :frames] = torch.tensor([own["a"], own["b"]]), long, twice
    mixed = {**inputs, "labels": labels}
    first = {name: value[:1] for name, value in possible.items()}
    assert model.rank_assemblies([mixed], own) == pytest.approx(model.rank_assemblies([first], own), rel=1e-5)
    assert model.rank_assemblies([{name: value[1:] for name, value in mixed.items()}], own)["many"] == float("inf")


@torch.no_grad()
def test_which_language_is_near_is_the_mean_of_clips_however_they_are_batched(model):
    inputs, labels = inputs_for(model, (4000, 4000, 4000)), torch.tensor([[3, 4], [4, 3], [3, 3]])
    clips = [{**{name: value[i : i + 1] for name, value in inputs.items()}, "labels": labels[i : i + 1]} for i in range(3)]
    two_and_one = [{name: torch.cat([clips[0][name], clips[1][name]]) for name in clips[0]}, clips[2]]
    assert model.rank_assemblies(two_and_one, vocab("abñ")) == pytest.approx(model.rank_assemblies(clips, vocab("abñ")), rel=1e-5)


def test_where_nothing_is_masked_neither_masks_nor_choices_train():
    model = tiny_model(sparsity=0.0)
    specialists = [layer.specialists for layer in model.master_asr.artisan_layers]
    model.add_language("es", vocab("ab"))
    model.freeze_except("es")
    assert not model.assemblies["es"].mapping.requires_grad and model.assemblies["es"].head.weight.requires_grad
    model.unfreeze()
    assert not any(still.requires_grad for still in (*specialists, *(assembly.mapping for assembly in model.assemblies.values())))
    masked = tiny_model()
    masked.freeze_except("fr")
    assert masked.assemblies["fr"].mapping.requires_grad


@torch.no_grad()
def test_a_new_head_starts_from_the_rows_of_shared_characters(model):
    assembly = model.add_language("es", vocab("abñé"))
    bank, rows = model.master_asr.character_bank, model.config.character_bank
    for token, base in (("a", "a"), ("é", "é"), ("[PAD]", "[PAD]")):
        row = model.config.vocab("es")[token]
        assert torch.equal(assembly.head.weight[row], bank.weight[rows.index(base)])


def test_from_backbone_keeps_w_bit_equal_and_gives_everything_else_values(family, tmp_path):
    config = tiny_backbone_config(family)
    stock = WhisperModel(config) if family == "whisper" else AutoModel.from_config(config)
    stock.save_pretrained(tmp_path)
    model = MasterASRForCTC.from_backbone(str(tmp_path), VOCABS, num_specialists=2, sparsity=0.3)
    encoder = stock.encoder if family == "whisper" else stock
    ours = model.master_asr.backbone.state_dict()
    for name, value in encoder.state_dict().items():
        assert torch.equal(ours[name], value), name
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all() and parameter.abs().max() < 100, name
    for layer in model.master_asr.artisan_layers:
        relation = torch.corrcoef(torch.stack([layer.specialists[0].flatten(), layer.weight.abs().flatten()]))[0, 1]
        assert relation > 0.8  # the first masks follow |W|


def test_nearest_of_no_language_says_what_to_do(model):
    for code in list(model.languages):
        model.remove_language(code)
    with pytest.raises(ValueError, match='init: got "nearest", and no language is loaded; allowed: "random"'):
        model.add_language("es", {"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 3}, init="nearest", batches=[])


def test_parts_may_come_one_by_one(model):
    model.add_language("es", {"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 3}, parts=(part for part in ("mapping", "head", "norms")))
    assert list(model.assemblies["es"].parts) == ["mapping", "head", "norms"]


@torch.no_grad()
def test_rounding_moves_no_gate(model):
    mapping = model.assemblies["fr"].mapping
    mapping[0] = torch.tensor([1e-9, -1e-9, 3e-8, 0.0])
    gates = mapping > 0
    model.round_assembly("fr")
    assert torch.equal(mapping > 0, gates) and torch.equal(mapping.half().float(), mapping)
    assert model.assemblies["fr"].content_of_file()["mapping"].dtype == torch.float16


@pytest.mark.parametrize("row", [
    [-0.30004, -0.30001, -0.5, -0.30003], [-1e-9, 0.0, -2e-9, -3.0], [-5.0, -3e-8, -2e-8, -4e-8], [0.1, -0.2, 0.1, -0.2], [-65504.0, -65503.0, -65504.0, -65504.0],
])  # fmt: skip
def test_where_no_gate_is_open_the_specialist_that_stands_in_stays_the_same(model, row):
    """Values that half precision cannot tell apart would leave the first of them."""
    mapping = model.assemblies["fr"].mapping.requires_grad_(False)
    mapping[0] = torch.tensor(row)
    gates = open_gates_of_layers(mapping)
    for _ in range(2):
        model.round_assembly("fr")
        assert open_gates_of_layers(mapping) == gates and bool(((mapping[0] - torch.tensor(row)).abs() <= torch.tensor(row).abs() / 1000 + 1.2e-7).all())


def test_a_trained_models_weights_are_not_drawn_again(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = MasterASRForCTC.from_pretrained(tmp_path)
    for one in (loaded, copy.deepcopy(loaded), copy.deepcopy(model)):
        with torch.no_grad():
            for layer in one.master_asr.artisan_layers:
                layer.specialists.mul_(3)
        before = {name: value.clone() for name, value in one.state_dict().items()}
        one.init_weights()
        assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("targets", ["attention", "all"])
@pytest.mark.parametrize("training", [False, True])
def test_all_optional_parts_together_start_without_a_say(targets, training):
    model = tiny_model()
    inputs = inputs_for(model)
    model.add_language("plain", model.config.vocab("en"), init="en", preset="paper")
    model.add_language("es", model.config.vocab("en"), init="en", parts=ALL_PARTS, rank=2, targets=targets)
    model.train(training)
    assert torch.equal(model(**inputs, language="es").logits, model(**inputs, language="plain").logits)
