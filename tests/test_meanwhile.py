"""Languages that come, go and are replaced while the model is read or written."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import inputs_for, tiny_model, vocab
from test_pipeline import CLIPS, make

from modeling_master_asr import MasterASRForCTC, MasterASRPipeline, assembly_master_asr, hub_master_asr


def test_a_language_that_is_replaced_while_it_is_read_is_never_read_with_the_new_alphabet(tmp_path, monkeypatch):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    model = MasterASRForCTC.from_pretrained(tmp_path / "model")
    model.add_language("es", vocab("zyxwvutsrq"))
    model.save_assembly("es", tmp_path / "new")
    model.remove_language("es")
    model.add_language("es", vocab("qrstuvwxyz"))
    asr, forward = MasterASRPipeline(model), model.forward

    def replaced(*args, **kwargs):
        out = forward(*args, **kwargs)
        model.load_assembly(tmp_path / "new", replace=True)
        return out

    monkeypatch.setattr(model, "forward", replaced)
    with pytest.raises(ValueError, match="'es' was replaced while this was read"):
        asr(CLIPS[0], language="es")
    monkeypatch.undo()
    assert isinstance(asr(CLIPS[0], language="es")["text"], str)


@pytest.mark.parametrize("settings", [{}, {"chunk_length_s": 0.4}, {"chunk_length_s": 0.4, "batch_size": 2}])
@pytest.mark.parametrize("moment", ["forward", "paths"])
def test_a_text_is_never_a_mixture_of_a_language_and_of_what_took_its_place(tmp_path, monkeypatch, settings, moment):
    """Their alphabets may be equal, and the other thread may come between two chunks, or when the text is made."""
    tiny_model().save_pretrained(tmp_path / "model")
    model = MasterASRForCTC.from_pretrained(tmp_path / "model")
    model.add_language("es", vocab("abñ"))
    model.save_assembly("es", tmp_path / "new")
    asr, do, calls = MasterASRPipeline(model), getattr(model, moment), []

    def replaced(*args, **kwargs):
        out = do(*args, **kwargs)
        calls.append(model.load_assembly(tmp_path / "new", replace=True)) if not calls else None
        return out

    monkeypatch.setattr(model, moment, replaced)
    first, second = asr([CLIPS[0]] * 2, language=["es", "fr"], on_error="return", **settings)
    assert first["text"] is None and first["error"].startswith("Input 0: 'es' was replaced while this was read")
    monkeypatch.undo()
    assert second == asr(CLIPS[0], language="fr", **settings)


@pytest.mark.parametrize("moment", ["before the forward", "after the forward"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_language_that_is_removed_while_a_list_is_read_costs_its_own_inputs_alone(monkeypatch, moment, batch_size):
    asr, row = make(), {"raw": CLIPS[0], "sampling_rate": 16_000}
    model, rows = asr.model, [{**row, "language": code} for code in ("ru", "fr", "en")]
    good, forward, prepare = [asr(row) for row in rows[1:]], model.forward, asr._chunks_of

    def gone(*args):
        if "ru" in model.languages:
            model.remove_language("ru")
        return args[-1]

    monkeypatch.setattr(model, "forward", lambda *a, **k: gone(forward(*a, **k)) if moment == "after the forward" else forward(*a, **k))
    monkeypatch.setattr(asr, "_chunks_of", lambda *a: gone(list(prepare(*a))) if moment == "before the forward" else prepare(*a))
    answers = asr(rows, on_error="return", batch_size=batch_size)
    assert answers[1:] == good and answers[0]["text"] is None and answers[0]["error"].startswith("Input 0: No assembly for language 'ru'")
    model.add_language("ru", vocab("абв"))
    with pytest.raises(KeyError, match="Input 0: No assembly for language 'ru'"):
        asr(rows, batch_size=batch_size)


def test_a_language_that_is_replaced_is_there_all_the_while(tmp_path, monkeypatch):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    model = MasterASRForCTC.from_pretrained(tmp_path / "model")
    model.save_assembly("fr", tmp_path / "new")
    before, read = (model.config.assemblies["fr"], model.assemblies["fr"]), hub_master_asr.read_tensors

    def watched(*args):
        assert (model.config.assemblies["fr"], model.assemblies["fr"]) == before and model.config.assemblies["fr"] is before[0]
        return read(*args)

    monkeypatch.setattr(hub_master_asr, "read_tensors", watched)
    model.load_assembly(tmp_path / "new", "fr", replace=True)
    assert model.config.assemblies["fr"] is not before[0] and model.assemblies["fr"] is not before[1] and model.languages == ["en", "fr", "ru"]


@pytest.mark.parametrize("change", ["add", "remove"])
def test_languages_that_come_or_go_between_two_chunks_leave_the_others_text_as_it_is(monkeypatch, change):
    asr = make()
    asr.model.add_language("zz", vocab("abcdefghijklmnopqrstuvwxyz"))  # the widest
    expected, read = asr(CLIPS[0], language="fr", chunk_length_s=0.4), asr._read

    def changed(*args):
        read(*args)
        if change == "remove" and "zz" in asr.model.languages:
            asr.model.remove_language("zz")
        elif change == "add" and "wide" not in asr.model.languages:
            asr.model.add_language("wide", vocab("abcdefghijklmnopqrstuvwxyz0123456789"))

    monkeypatch.setattr(asr, "_read", changed)
    assert asr(CLIPS[0], language="fr", chunk_length_s=0.4) == expected


@pytest.mark.parametrize("entry", [{"vocab": vocab("zyxwvutsrq")}, {"vocab": vocab("qrstuvwxyz"), "preset": "small"}])
def test_a_language_that_is_replaced_while_it_is_saved_leaves_no_file_of_both(tmp_path, monkeypatch, entry):
    tiny_model().save_pretrained(tmp_path / "model")
    model = MasterASRForCTC.from_pretrained(tmp_path / "model")
    model.add_language("es", **{"preset": "paper", **entry})
    model.save_assembly("es", tmp_path / "new")
    model.remove_language("es")
    old = model.add_language("es", vocab("qrstuvwxyz"), preset="paper")
    hashed = model.master_asr.stored_fingerprint
    monkeypatch.setattr(model.master_asr, "stored_fingerprint", lambda: (model.load_assembly(tmp_path / "new", replace=True), hashed())[1])
    model.save_assembly("es", tmp_path / "saved")  # of one or of the other, whole: here of the one that was there when it was asked for
    model.remove_language("es")
    monkeypatch.undo()
    model.load_assembly(tmp_path / "saved")
    assert model.config.vocab("es") == vocab("qrstuvwxyz") and torch.equal(model.assemblies["es"].mapping, old.mapping)
    model.config.assemblies["es"]["vocab"] = vocab("zyxwvutsrq")  # as between the two steps of a replacement
    with pytest.raises(ValueError, match="'es' was replaced while it was being saved: .* Save it again."):
        model.save_assembly("es", tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


@pytest.mark.parametrize("change", ["replace", "remove"])
def test_a_model_whose_languages_change_while_it_is_saved_holds_those_of_one_moment(tmp_path, monkeypatch, change):
    tiny_model().save_pretrained(tmp_path / "model")
    model, inputs = MasterASRForCTC.from_pretrained(tmp_path / "model"), inputs_for(tiny_model())
    model.add_language("es", vocab("zyx"))
    model.save_assembly("es", tmp_path / "new")
    model.remove_language("es")
    model.add_language("es", vocab("xyz"))
    write, times = type(model.config).save_pretrained, []

    def changed(*args, **kwargs):
        write(*args, **kwargs)
        times.append(1)
        if len(times) <= most:
            model.load_assembly(tmp_path / "new", replace=True) if change == "replace" or "es" not in model.languages else model.remove_language("es")

    monkeypatch.setattr(type(model.config), "save_pretrained", changed)
    for most in (1, 2):
        times.clear()
        model.save_pretrained(tmp_path / f"saved{most}")
        again = MasterASRForCTC.from_pretrained(tmp_path / f"saved{most}")
        assert len(times) == most + 1 and again.languages == model.languages
        for code in model.languages:
            assert again.config.vocab(code) == model.config.vocab(code)
            assert torch.equal(again(**inputs, language=code).logits, model(**inputs, language=code).logits)
    most = 99
    with pytest.raises(RuntimeError, match="Languages came, went or were replaced while .* was written, 3 times: .* Save it again."):
        model.save_pretrained(tmp_path / "never")


def test_two_models_of_one_config_have_languages_of_their_own():
    one = tiny_model()
    other = MasterASRForCTC(one.config)
    other.remove_language("fr")
    other.add_language("fr", vocab("zyx"))
    assert one.config.vocab("fr") != other.config.vocab("fr") and "fr" in one.languages
    assert one(**inputs_for(one), language="fr").logits.shape[-1] == len(one.config.vocab("fr"))


@pytest.mark.parametrize("read", [list, lambda assemblies: [code for code, _ in assemblies.items()]])
def test_languages_are_listed_as_they_were_when_it_began_while_another_thread_removes_one(monkeypatch, read):
    """As `save_pretrained` lists them."""
    model, decode = tiny_model(), assembly_master_asr.unquote
    before, last = model.languages, model.languages[-1]

    def removed_meanwhile(key):
        if last in model.languages:
            model.remove_language(last)
        return decode(key)

    monkeypatch.setattr(assembly_master_asr, "unquote", removed_meanwhile)
    assert read(model.assemblies) == before and model.languages == before[:-1]


def test_threads_may_share_a_pipeline():
    asr = make()
    asr.model.set_text("fr", ["ab é", "é"])
    jobs = [(clip, code) for clip in CLIPS for code in asr.model.languages] * 4

    def answer(job):
        return asr(job[0], language=job[1], chunk_length_s=0.4, return_timestamps="word")

    expected = [answer(job) for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(answer, jobs)) == expected
