"""Nothing is stale: whatever wrote to a tensor, a model answers as a fresh one with the same values."""

import copy
import itertools
import pickle
import resource
import threading
import weakref
from pathlib import Path

import pytest
import torch
from conftest import VOCABS, inputs_for, tiny_backbone_config, tiny_model, vocab
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from modeling_master_asr import MasterASRConfig, MasterASRForCTC
from modeling_master_asr import masks_master_asr as masks
from modeling_master_asr import weights_master_asr as weights
from modeling_master_asr.configuration_master_asr import ALL_PARTS
from modeling_master_asr.masks_master_asr import DENSE_LANGUAGES, Stamp

OPTIONAL = ALL_PARTS[2:]
EVERY_SET_OF_PARTS = [("mapping", "head", *some) for n in range(len(OPTIONAL) + 1) for some in itertools.combinations(OPTIONAL, n)]
LABELS = torch.tensor([[3, 4], [5, 3]])


def optimizer_names(tmp_path) -> list[str]:
    """Those that Trainer offers by name and that need nothing that is not here."""
    names = []
    for name in OptimizerNames:
        try:
            Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(str(tmp_path), optim=name, use_cpu=True))
        except (ImportError, ValueError, AssertionError, RuntimeError, NotImplementedError):
            continue
        names.append(name)
    return names


def tiniest(parts, targets="all") -> MasterASRForCTC:
    """Three languages, one of them with `parts` of its own."""
    torch.manual_seed(0)
    config = MasterASRConfig(
        backbone_config=tiny_backbone_config("wav2vec2", num_hidden_layers=1, hidden_size=16, intermediate_size=16, num_conv_pos_embedding_groups=2),
        num_specialists=3, assemblies={code: {"vocab": v} for code, v in VOCABS.items()},
    )  # fmt: skip
    config.add_assembly("es", vocab("abñ"), parts, rank=2, targets=targets)
    return MasterASRForCTC(config).eval()


@torch.no_grad()
def logits_of(model, inputs) -> dict[str, torch.Tensor]:
    was_training = model.training
    model.eval()
    logits = {code: model(**inputs, language=code).logits for code in model.languages}
    model.train(was_training)
    return logits


def assert_answers_as_a_fresh_model(model, inputs) -> dict[str, torch.Tensor]:
    fresh = MasterASRForCTC(copy.deepcopy(model.config))
    fresh.load_state_dict(model.state_dict())
    fresh.to(model.dtype)
    expected, found = logits_of(fresh, inputs), logits_of(model, inputs)
    for code in expected:
        assert torch.equal(found[code], expected[code]), code
    return found


def train_a_little(model, optimizer, inputs, steps=3) -> None:
    """Evaluates in between, so that there is something to go stale."""
    for _ in range(steps):
        model.train()
        model(**inputs, labels=LABELS, language="es").loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        logits_of(model, inputs)


STAGES = ["stage 1", "stage 2", "+ ft"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_after_training_with_every_optimizer_of_trainer_and_every_set_of_parts_logits_are_those_of_a_reload(stage, tmp_path):
    logits_are_those_of_a_reload(itertools.product(optimizer_names(tmp_path), EVERY_SET_OF_PARTS), stage, tmp_path)


@pytest.mark.parametrize("stage", STAGES)
def test_after_training_with_trainers_own_optimizer_and_every_set_of_parts_logits_are_those_of_a_reload(stage, tmp_path):
    assert TrainingArguments(str(tmp_path), use_cpu=True).optim == OptimizerNames.ADAMW_TORCH_FUSED
    logits_are_those_of_a_reload([(OptimizerNames.ADAMW_TORCH_FUSED, parts) for parts in EVERY_SET_OF_PARTS], stage, tmp_path)


@pytest.mark.parametrize("stage", STAGES)
def test_after_training_with_every_optimizer_of_trainer_and_all_parts_logits_are_those_of_a_reload(stage, tmp_path):
    names = optimizer_names(tmp_path)
    assert {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop", "adagrad"} <= {str(n.value) for n in names}
    logits_are_those_of_a_reload([(name, ALL_PARTS) for name in names], stage, tmp_path)


def logits_are_those_of_a_reload(cases, stage, tmp_path) -> None:
    for name, parts in cases:
        model = tiniest(parts)
        inputs = inputs_for(model, (1600, 1600))
        before = logits_of(model, inputs)["es"]
        if stage != "stage 1":
            model.freeze_except("es")
        if stage == "+ ft":
            train_a_little(model, torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True), inputs, steps=1)
            model.unfreeze()
        cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(str(tmp_path), optim=name, learning_rate=1e-2, use_cpu=True))
        train_a_little(model, cls([p for p in model.parameters() if p.requires_grad], **kwargs), inputs)
        after = assert_answers_as_a_fresh_model(model, inputs)["es"]
        assert not torch.equal(before, after), (name, parts)


def ema_swap(tensor):
    tensor.data.copy_(0.5 * tensor.data + 0.5 * torch.randn_like(tensor))


def replace_parameter(model, tensor):
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is tensor:
                module._parameters[name] = torch.nn.Parameter(torch.randn_like(tensor))


WRITES = {
    "data.mul_": lambda model, tensor: tensor.data.mul_(-10),
    "ema swap": lambda model, tensor: ema_swap(tensor),
    "data =": lambda model, tensor: setattr(tensor, "data", torch.randn_like(tensor)),
    "replaced": replace_parameter,
    "load_state_dict": lambda model, tensor: model.load_state_dict({k: v + torch.randn_like(v) if v.is_floating_point() else v for k, v in model.state_dict().items()}),
    "fused step": lambda model, tensor: (setattr(tensor, "grad", torch.randn_like(tensor)), torch.optim.AdamW([tensor], lr=10.0, fused=True).step()),
    "half().float()": lambda model, tensor: (tensor.data.mul_(1.01), model.half().float()),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("written", ["W", "M", "T", "specialist", "delta", "feed-forward delta", "scales", "norms"])
def test_in_evaluation_every_way_to_write_is_seen_at_the_next_call(write, written):
    model = tiniest(ALL_PARTS)
    with torch.no_grad():
        for name, parameter in model.assemblies["es"].named_parameters():
            parameter.normal_(std=0.01 if "specialist" in name else 1.0)  # not so large that M and T no longer count
    assembly, layer = model.assemblies["es"], model.master_asr.artisan_layers[1]
    tensor = {
        "W": layer._parameters["weight"], "M": layer.specialists, "T": assembly.mapping, "specialist": assembly.specialist.up[0],
        "delta": assembly.delta.up[1], "feed-forward delta": assembly.delta.down[-1], "scales": assembly.scales.values, "norms": assembly.norms.values,
    }[written]  # fmt: skip
    inputs = inputs_for(model, (1600, 1600))
    before = logits_of(model, inputs)["es"]
    assert torch.equal(logits_of(model, inputs)["es"], before)
    WRITES[write](model, tensor)
    after = assert_answers_as_a_fresh_model(model, inputs)["es"]
    assert not torch.equal(before, after)


@torch.no_grad()
@pytest.mark.parametrize("family, preset", [("wav2vec2", "paper"), ("whisper", "small"), ("wav2vec2", "best")])
def test_in_evaluation_a_write_to_any_parameter_that_a_language_is_made_of_is_seen(family, preset):
    model = tiny_model(family)
    model.add_language("es", vocab("abñ"), preset=preset)
    for part in model.assemblies["es"].parameters():
        part.normal_(std=0.1)
    model.eval()
    inputs, seen = inputs_for(model), {}
    for name, parameter in model.named_parameters():
        if ".assemblies." in name and ".lang_es." not in name or "feature_extractor" in name or "conv" in name:
            continue
        before, kept = model(**inputs, language="es").logits, parameter.clone()
        parameter.add_(torch.randn_like(parameter), alpha=0.5)
        fresh = MasterASRForCTC(model.config).eval()
        fresh.load_state_dict(model.state_dict())
        after = model(**inputs, language="es").logits
        assert torch.equal(after, fresh(**inputs, language="es").logits), name
        seen[name] = not torch.equal(after, before)
        parameter.copy_(kept)
    for word in ("fc1.weight" if family == "whisper" else "intermediate_dense.weight", "q_proj.weight", "q_proj.specialists", "lang_es.mapping"):
        assert any(shows for name, shows in seen.items() if word in name), word


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_after_evaluation_answers_alike_and_goes_its_own_way(copied):
    model = tiny_model("whisper")  # torch does not pickle the weight norm of wav2vec 2.0's positions
    model.add_language("es", vocab("abñ"), parts=ALL_PARTS, rank=2, targets="all")
    inputs = inputs_for(model)
    before = logits_of(model, inputs)
    twin = copied(model)
    assert all(torch.equal(found, before[code]) for code, found in logits_of(twin, inputs).items())
    with torch.no_grad():
        twin.master_asr.artisan_layers[0].weight.mul_(-1)
    assert not torch.equal(assert_answers_as_a_fresh_model(twin, inputs)["en"], before["en"])
    assert all(torch.equal(found, before[code]) for code, found in logits_of(model, inputs).items())


def test_a_model_built_under_inference_mode_sees_writes_too():
    with torch.inference_mode():
        model = tiniest(("mapping", "head"))
        inputs = inputs_for(model, (1600, 1600))
        before = model(**inputs, language="es").logits.clone()
        model.master_asr.artisan_layers[0].weight.mul_(-1)
        assert not torch.equal(model(**inputs, language="es").logits, before)


def test_what_inference_mode_kept_serves_no_call_that_records_gradients():
    model = tiniest(("mapping", "head")).requires_grad_(False)
    inputs = inputs_for(model, (1600, 1600))
    with torch.inference_mode():
        expected = model(**inputs, language="es").logits.clone()
    inputs["input_values"].requires_grad_(True)
    logits = model(**inputs, language="es").logits
    logits.sum().backward()
    assert torch.equal(logits.detach(), expected) and bool(inputs["input_values"].grad.any())


def count_selections(monkeypatch) -> list:
    calls, original = [], weights.select_mask
    monkeypatch.setattr(weights, "select_mask", lambda *a: calls.append(1) or original(*a))
    return calls


@torch.no_grad()
def test_a_mask_is_selected_again_only_when_what_it_is_made_of_moved(monkeypatch):
    calls, model = count_selections(monkeypatch), tiniest(("mapping", "head"))
    layers, inputs = len(model.master_asr.artisan_layers), inputs_for(model, (1600, 1600))

    def selections() -> int:
        before = len(calls)
        model(**inputs, language="es")
        return len(calls) - before

    assert (selections(), selections()) == (layers, 0)
    model.assemblies["en"].mapping.copy_(model.assemblies["es"].mapping)
    before = len(calls)
    model(**inputs, language="en")
    assert len(calls) == before  # the same gates: the same masks
    model.master_asr.artisan_layers[0].specialists.neg_()
    assert (selections(), selections()) == (1, 0)
    model.master_asr.artisan_layers[0].weight.neg_()
    assert selections() == 0  # a mask does not depend on W
    model.train()
    assert selections() == layers
    model.eval()
    assert selections() == layers


def test_in_stage_2_a_frozen_layers_product_is_made_once_until_a_gate_flips(monkeypatch):
    calls, model = count_selections(monkeypatch), tiniest(("mapping", "head", "delta"))
    layers, inputs = len(model.master_asr.artisan_layers), inputs_for(model, (1600, 1600))
    model.freeze_except("es")
    model.train()
    optimizer = torch.optim.AdamW(model.assemblies["es"].delta.parameters(), lr=1e-2, fused=True)
    for _ in range(3):
        model(**inputs, labels=LABELS, language="es").loss.backward()
        optimizer.step()
        assert len(calls) == layers
    with torch.no_grad():
        model.assemblies["es"].mapping[0].neg_()
    model(**inputs, labels=LABELS, language="es").loss.backward()
    assert len(calls) == layers + 1


def test_what_trains_keeps_no_mask(monkeypatch):
    calls, model = count_selections(monkeypatch), tiniest(("mapping", "head", "specialist"))
    layers, inputs = len(model.master_asr.artisan_layers), inputs_for(model, (1600, 1600))
    model.freeze_except("es")
    model.train()
    for step in range(1, 4):
        model(**inputs, labels=LABELS, language="es")
        assert len(calls) == step * layers
    store = model.master_asr.masks
    assert not any(store._masks.values()) and not store._products and not store._dense


@torch.no_grad()
def test_no_more_masks_are_kept_than_languages_and_without_room_no_more_dense_weights_than_two_languages():
    model = tiniest(("mapping", "head"))
    model.master_asr.masks.dense_bytes = 0
    inputs = inputs_for(model, (1600, 1600))
    for _ in range(20):  # gates that move leave masks behind that are no language's any more
        for code in model.languages:
            model.assemblies[code].mapping.normal_()
            model(**inputs, language=code)
    store = model.master_asr.masks
    assert max(map(len, store._masks.values())) <= len(model.languages) and len(store._dense) == DENSE_LANGUAGES


@torch.no_grad()
def test_as_many_languages_keep_dense_weights_as_there_is_room_for():
    model = tiniest(("mapping", "head"))
    inputs, store = inputs_for(model, (1600, 1600)), model.master_asr.masks
    for code in "abcd":
        model.add_language(code, model.config.vocab("en"))
    model.eval()
    for code in model.languages:
        model(**inputs, language=code)
    assert [code for code, *_ in store._dense] == model.languages
    room = sum(tensor.nbytes for tensor in next(made for (code, *_), (_, made, _) in store._dense.items() if code == "d").values())  # of the largest: preset best owns more than a mapping
    model.master_asr._forget()
    store.dense_bytes = 3 * room
    for code in "abcd" * 2:
        model(**inputs, language=code)
        assert sum(tensor.nbytes for _, made, _ in store._dense.values() for tensor in made.values()) <= 3 * room
    assert [code for code, *_ in store._dense] == ["b", "c", "d"]


@torch.no_grad()
@pytest.mark.parametrize("preset", ["paper", "small", "best"])
def test_dense_weights_count_from_the_start_as_what_they_will_be(preset):
    """Threads that ask for many languages at once fill all of them after the last has begun."""
    model = tiniest(("mapping", "head"))
    inputs, store = inputs_for(model, (1600, 1600)), model.master_asr.masks
    for code in "abcdef":
        model.add_language(code, model.config.vocab("en"), preset=preset)
    model.eval()
    model(**inputs, language="a")
    of_one = sum(tensor.nbytes for tensor in next(iter(store._dense.values()))[1].values())
    store.dense_bytes = 3 * of_one
    begun = [model.master_asr.assembled(code) for code in "abcdef"]
    for language in begun:
        for layer in [*model.master_asr.layout.linear, *model.master_asr.layout.norms]:
            for name in ("weight", "bias"):
                language.parameter(layer, name)
    assert [code for code, *_ in store._dense] == ["d", "e", "f"]
    assert sum(tensor.nbytes for _, made, _ in store._dense.values() for tensor in made.values()) == 3 * of_one


@torch.no_grad()
def test_a_language_that_is_replaced_or_removed_costs_the_others_nothing(tmp_path):
    model = tiniest(("mapping", "head", "specialist"))
    inputs, store = inputs_for(model, (1600, 1600)), model.master_asr.masks
    first, *others = model.languages
    model.save_pretrained(tmp_path / "base")
    model.save_assembly(first, tmp_path)
    kept = lambda: {code: [id(tensor) for tensor in made.values()] for (code, *_), (_, made, _) in store._dense.items()}  # noqa: E731
    for change in (lambda: model.load_assembly(tmp_path, replace=True), lambda: model.give_parts(first, preset="best"), lambda: model.remove_language(first)):
        before = {code: model(**inputs, language=code).logits for code in model.languages}
        made = kept()
        change()
        assert kept() == {code: made[code] for code in others}
        assert not any(key[-1] == first for of_layer in store._masks.values() for key in of_layer)
        assert all(torch.equal(model(**inputs, language=code).logits, before[code]) for code in others)


@torch.no_grad()
def test_the_language_that_was_asked_for_longest_ago_is_the_first_to_be_forgotten():
    model = tiniest(("mapping", "head"))
    model.master_asr.masks.dense_bytes = 0
    inputs, codes = inputs_for(model, (1600, 1600)), model.languages[:3]
    model.eval()
    assert len(codes) == DENSE_LANGUAGES + 1
    for code in (codes[0], codes[1], codes[0], codes[2]):
        model(**inputs, language=code)
    assert [code for code, *_ in model.master_asr.masks._dense] == [codes[0], codes[2]]


@torch.no_grad()
def test_an_autocast_context_does_not_grow_with_its_calls():
    model = tiny_model("wav2vec2", hidden_size=128)
    inputs = inputs_for(model, (400, 400))
    with torch.autocast("cpu", torch.bfloat16):
        peaks = []
        for call in range(400):
            model(**inputs, language=model.languages[call % 3])
            if call in (60, 399):
                peaks.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20)  # now: a peak may be an earlier test's
    assert peaks[1] - peaks[0] < 20, f"{peaks[1] - peaks[0]:.0f} MB more after 340 calls"  # a copy of the masked weights in bf16 is 0.25 MB


def test_many_threads_in_many_languages_while_weights_are_forgotten():
    model = tiniest(("mapping", "head", "delta"))
    inputs = inputs_for(model, (1600, 1600))
    expected, wrong = logits_of(model, inputs), []

    def ask(first: int) -> None:
        try:
            with torch.no_grad():
                for call in range(60):
                    code = model.languages[(first + call) % len(model.languages)]
                    if not torch.equal(model(**inputs, language=code).logits, expected[code]):
                        wrong.append(code)
                    if call % 7 == 0:
                        model.master_asr._forget()
        except Exception as error:  # a thread's error would be lost
            wrong.append(repr(error))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.int64])
def test_a_stamp_holds_until_values_place_type_or_shape_change(dtype):
    def make():
        return (100 * torch.randn(300)).to(dtype)

    tensors = [make(), make().view(3, 100).T]  # the second does not lie in a row
    stamp = Stamp(tensors)
    assert stamp.holds(tensors) and stamp.holds(iter(tensors))
    assert not stamp.holds(tensors[:1]) and not stamp.holds([tensors[0], tensors[1].clone()])
    other = make()
    tensors[1].data.copy_(other.view(3, 100).T)
    assert not stamp.holds(tensors)


def test_a_stamp_holds_on_nan_and_never_without_values():
    tensor = torch.full((5,), float("nan"))
    assert Stamp([tensor]).holds([tensor])
    empty = torch.empty(5, device="meta")
    assert not Stamp([empty]).holds([empty])


@pytest.mark.parametrize("size", [64, 96, 512, 768, 1024])
def test_a_stamp_sees_a_write_to_some_rows_or_columns_and_a_transposed_square(size):
    for rows, columns in (
        (slice(None), slice(size // 2)), (slice(None), slice(size // 2, None)), (slice(size // 2), slice(None)), (slice(size // 2, None), slice(None)),
    ):  # fmt: skip
        tensor = torch.randn(size, size)
        stamp = Stamp([tensor])
        tensor.data[rows, columns].neg_()
        assert not stamp.holds([tensor]), (rows, columns)
    tensor = torch.randn(size, size)
    stamp = Stamp([tensor])
    tensor.data = tensor.data.T
    assert not stamp.holds([tensor])


@pytest.mark.parametrize("size", [64, 384, 512, 768, 1024, 1280])
def test_a_stamp_sees_a_write_to_a_twentieth_of_the_rows_or_columns_wherever_they_are(size):
    for start in range(0, size - size // 20, max(size // 50, 1)):
        some = slice(start, start + size // 20 + 1)
        for place in ((some, slice(None)), (slice(None), some)):
            tensor = torch.randn(size, size)
            stamp = Stamp([tensor])
            tensor.data[place].neg_()
            assert not stamp.holds([tensor]), place


def test_a_model_in_evaluation_answers_anew_when_a_tenth_of_one_matrix_is_pruned_through_data():
    model = tiny_model()
    inputs = inputs_for(model)
    before = logits_of(model, inputs)
    weight = model.master_asr.artisan_layers[-1].weight
    weight.data[torch.rand(weight.shape) < 0.1] = 0
    after = assert_answers_as_a_fresh_model(model, inputs)
    assert not any(torch.equal(before[code], after[code]) for code in before)


def test_after_a_write_to_one_value_through_data_train_and_eval_are_enough():
    model = tiny_model()
    inputs = inputs_for(model)
    logits_of(model, inputs)
    model.master_asr.artisan_layers[-1].weight.data[0, 1] += 100
    model.train()
    model.eval()
    assert_answers_as_a_fresh_model(model, inputs)


def test_a_stamp_looks_at_every_value_of_what_is_to_be_whole():
    tensor = torch.randn(100, 40)
    stamp = Stamp([tensor], whole=tensor)
    tensor.data[53, 7].neg_()
    assert not stamp.holds([tensor])


def test_one_gate_that_flips_through_data_is_seen_however_few_values_a_stamp_looks_at(monkeypatch):
    monkeypatch.setattr(masks, "SAMPLE", 1)
    model = tiniest(("mapping", "head"))
    inputs = inputs_for(model, (1600, 1600))
    mapping = model.assemblies["es"].mapping
    mapping.data.copy_(torch.tensor([1.0, -1.0, -1.0]).expand_as(mapping))
    before = logits_of(model, inputs)["es"]
    mapping.data[-1, -1] = 1
    assert not torch.equal(assert_answers_as_a_fresh_model(model, inputs)["es"], before)


@pytest.mark.parametrize("training", [False, True])
def test_another_sparsity_on_a_living_model_is_another_mask_at_once(training):
    model = tiny_model().train(training)
    model.freeze_except("en")
    inputs = inputs_for(model)
    before = model(**inputs, language="en").logits
    model.config.sparsity = 0.9
    after = model(**inputs, language="en").logits
    model.master_asr._forget()
    assert not torch.equal(before, after) and torch.equal(after, model(**inputs, language="en").logits)


@torch.no_grad()
@pytest.mark.parametrize("part", ["specialist", "delta"])
def test_weights_are_assembled_in_float32_under_autocast_too(part):
    """A language's own specialist and delta are products, which autocast would take in bfloat16, and keep for later calls."""
    model = tiny_model()
    model.add_language("es", vocab("ab"), parts=("mapping", "head", part), rank=2, targets="all")
    for parameter in model.assemblies["es"].parameters():
        parameter.normal_()
    inputs = inputs_for(model)
    expected = model.eval()(**inputs, language="es").logits
    model.master_asr._forget()
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs, language="es")
    assert torch.equal(model(**inputs, language="es").logits, expected)


@pytest.mark.parametrize("preset", ["paper", "best"])
def test_a_look_in_inference_mode_between_the_steps_changes_no_step(preset):
    """What it made has no part in a backward: T stood still, or the next step failed."""
    moved = []
    for looks in (False, True):
        model = tiny_model()
        model.add_language("es", model.config.vocab("fr"), init="fr", preset=preset)
        model.freeze_except("es")
        model.train()
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        inputs, labels = inputs_for(model), torch.tensor([[3, 4], [5, 3]])
        for _ in range(4):
            if looks:
                with torch.inference_mode():
                    model(**inputs, language="es")
            model(**inputs, language="es", labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        moved.append({name: value.clone() for name, value in model.assemblies["es"].state_dict().items()})
    assert all(torch.equal(moved[0][name], value) for name, value in moved[1].items())
    start = tiny_model().assemblies["fr"].mapping
    assert not torch.equal(moved[1]["mapping"], start)


def test_a_model_that_is_built_in_another_thread_meanwhile_disturbs_no_optimizers_step(monkeypatch):
    """The hook is in every optimizer of the process, whosever it is."""
    kept, asked, built = [], threading.Event(), []

    class Lock:
        """Says when somebody has to wait for it."""

        lock = threading.Lock()

        def __enter__(self):
            if self.lock.locked():
                asked.set()
            self.lock.acquire()

        def __exit__(self, *error):
            self.lock.release()

    def build():
        kept.append(masks.MaskStore())
        asked.set()

    class Stores(weakref.WeakSet):
        def __iter__(self):
            for store in super().__iter__():
                if not built:
                    built.append(threading.Thread(target=build))
                    built[0].start()
                    assert asked.wait(20)
                yield store

    monkeypatch.setattr(masks, "_LOCK", Lock(), raising=False)
    monkeypatch.setattr(masks, "_STORES", Stores())
    kept += [masks.MaskStore() for _ in range(2)]
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    torch.optim.SGD([weight], lr=0.1).step()
    built[0].join()
    assert len(kept) == 3 and set(masks._STORES) == set(kept)


@torch.no_grad()
def test_a_copy_of_a_model_and_a_pickle_have_as_much_room_for_dense_weights_and_nothing_in_it():
    model = tiniest(("mapping", "head"))
    model.master_asr.masks.dense_bytes = 12345
    model(**inputs_for(model, (1600, 1600)), language=model.languages[0])
    for store in (copy.deepcopy(model).master_asr.masks, pickle.loads(pickle.dumps(model.master_asr.masks))):
        assert store is not model.master_asr.masks and store.dense_bytes == 12345 and not store._dense


@torch.no_grad()
def test_a_step_of_a_fused_optimizer_that_moves_one_value_that_no_stamp_looks_at_is_seen():
    model = tiny_model()
    inputs = inputs_for(model)
    before, weight = model(**inputs, language="en").logits, model.master_asr.artisan_layers[-1]._parameters["weight"]
    weight.grad = torch.zeros_like(weight)
    weight.grad[0, 1] = -1.0
    torch.optim.SGD([weight], lr=100.0, fused=True).step()
    after = model(**inputs, language="en").logits
    model.master_asr._forget()
    assert torch.equal(after, model(**inputs, language="en").logits) and not torch.equal(before, after)


def test_a_stamp_does_not_hold_for_the_same_memory_in_another_type_or_shape():
    tensor = torch.zeros(300, dtype=torch.int32)
    stamp = Stamp([tensor])
    assert stamp.holds([tensor]) and not stamp.holds([tensor.view(torch.float32)]) and not stamp.holds([tensor.view(3, 100)])
