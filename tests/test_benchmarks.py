"""What stands behind the figures of benchmarks: texts made comparable, facts of recordings, the same work for everybody."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import tiny_model
from test_training import corpus, run_stage_1  # noqa: F401  the fixture

from benchmarks import fortunes, labels, languages, masks, methods, reading, said, serving, steps, synthetic_voices, tables
from benchmarks.voices import divide
from benchmarks.worst_clips import audio_facts, worst
from benchmarks.zero_shot import by_name, spell_numbers, transcribe_all
from modeling_master_asr import MasterASRConfig, MasterASRProcessor
from modeling_master_asr import ngrams_master_asr as ngrams
from modeling_master_asr.text_master_asr import normalize
from training.loop.config import parse
from training.loop.data import select
from training.loop.sources import Clip
from training.loop.steps import train


@pytest.mark.parametrize("language, written, spoken", [
    ("es", "Pulse 1.", "pulse uno"), ("en", "1, 2, 3-4", "one two three four"), ("en", "12 of 1,000", "twelve of one thousand"),
    ("cs", "12:30", "dvanáct třicet"), ("ru", "код 007", "код ноль ноль семь"), ("nl", "2,5", "twee vijf"), ("fr", "rien", "rien"),
    ("en", "the 16th", "the sixteenth"), ("fr", "la 2ème", "la deuxième"), ("it", "9° piano", "nono piano"),
    ("ru", "6-й", "шестой"), ("en", "4these", "four these"),
])  # fmt: skip
def test_a_recogniser_that_writes_digits_is_scored_on_the_words_they_stand_for(language, written, spoken):
    assert normalize(spell_numbers(written, language)) == spoken


def test_a_tones_level_peak_clipping_and_band_are_those_it_was_made_with():
    seconds = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 1000 * seconds)
    facts = audio_facts(0.5 * tone)
    assert facts["peak_db"] == pytest.approx(-6.0, abs=0.1) and facts["rms_db"] == pytest.approx(-9.0, abs=0.1)
    assert facts["clipped_share"] == 0 and facts["snr_db"] < 1 and 900 < facts["bandwidth_hz"] < 1200
    assert audio_facts(np.clip(2 * tone, -1, 1))["clipped_share"] > 0.5
    silent_half = np.where(seconds < 0.5, 0.001, 0.5) * tone
    assert audio_facts(silent_half)["snr_db"] == pytest.approx(54, abs=1)


def test_the_worst_clips_are_each_languages_own_and_of_equal_rates_the_longer_first():
    rates = [("en", "a", 50, 1), ("en", "b", 50, 4), ("en", "c", 90, 1), ("fr", "d", 10, 1)]
    entries = [{"language": code, "file": name, "cer": cer, "edits": edits} for code, name, cer, edits in rates]
    assert [entry["file"] for entry in worst(entries, 2)] == ["c", "b", "d"]


@torch.inference_mode()
def test_whoever_serves_starts_from_the_same_encoder_and_every_language_of_ours_reads_with_its_own_weights():
    features = torch.randn(1, 80, 100)
    (adapter, _), (merged, _), (ours, kept), (anew, _) = serving.lora(), serving.lora_merged(), serving.master_asr("best"), serving.master_asr("best", keep=False)
    stock = serving.plain()[0](features, "en")
    assert torch.equal(merged(features, "it"), stock)
    assert torch.equal(adapter(features, "it"), stock) and torch.equal(adapter(features, "en"), stock)  # untrained adapters add zero
    logits = [ours(features, code) for code in serving.LANGUAGES]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations([stock, *logits], 2))
    backbone = MasterASRConfig.from_pretrained(serving.CHECKPOINT).backbone_config
    of_a_language = 4 * backbone.encoder_layers * (4 * backbone.d_model**2 + 2 * backbone.d_model * backbone.encoder_ffn_dim)  # float32 of every layer
    assert len(serving.LANGUAGES) <= kept() / of_a_language < len(serving.LANGUAGES) + 1
    assert torch.equal(anew(features, "it"), anew(features, "it"))


def test_what_a_look_at_what_moved_costs_is_taken_inside_a_forward():
    found = masks.rule(rounds=1)
    assert 0 < found["ms"] < found["reference_ms"] and 0 < found["ratio"] < 1


def run_with(edits: str, seed: int = 0) -> dict:
    return {"config": {"seed": seed}, "test": {"languages": {"es": {"edits": edits} if edits else {}}}}


def test_two_methods_are_compared_clip_by_clip_and_only_on_the_seeds_that_both_have():
    ours, theirs = run_with("1/10 0/20 2/10"), run_with("2/10 1/20 2/10")
    assert tables.difference([theirs], [ours]).startswith("+5.0 (") and tables.difference([ours], [theirs]).startswith("-5.0 (")
    assert tables.difference([ours], [ours]) == "+0.0 (+0.0 to +0.0)"
    assert tables.difference([theirs, run_with("9/10 9/20 9/10", seed=1)], [ours]) == tables.difference([theirs], [ours])
    assert tables.difference([theirs], [run_with("1/10 0/20 2/10", seed=1)]) == "" == tables.difference([theirs], [run_with("")])
    assert tables.difference([theirs], [run_with("1/10 0/30 2/10")]) == ""  # other clips
    low, high = (float(bound) for bound in tables.difference([theirs], [ours]).split("(")[1].rstrip(")").split(" to "))
    assert 0 <= low < 5 < high <= 10  # no clip is better, one in ten letters is the most that one is worse


@pytest.fixture(scope="module")
def written():
    """What `benchmarks.tables` would write now."""
    return tables.all_tables()


@pytest.mark.parametrize("page", tables.PAGES)
def test_every_table_of_a_page_is_what_the_files_of_the_runs_say(written, page):
    assert (tables.ROOT / page).read_text(encoding="utf-8") == tables.filled(page, written)


def test_a_file_of_results_that_is_gone_is_named_unless_it_may_be_missing():
    with pytest.raises(FileNotFoundError, match=r"results/gone\.json"):
        tables.load("gone")
    assert tables.load_if_there("gone") is None and tables.load_if_there("masks") == tables.load("masks")


def test_a_marker_that_no_table_fills_is_named(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text("<!-- rates -->\nold\n<!-- /rates -->\n<!-- ratse -->\n<!-- /ratse -->\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"page.md: <!-- ratse --> is no table; allowed: \['rates'\]"):
        tables.filled("page.md", {"rates": ["new"]})
    assert tables.filled("page.md", {"rates": ["new"], "ratse": []}) == "<!-- rates -->\nnew\n<!-- /rates -->\n<!-- ratse -->\n\n<!-- /ratse -->\n"


def test_the_peak_memory_of_a_process_is_not_that_of_the_process_that_started_it():
    held = torch.ones(2**26)  # 256 MB
    code = "from benchmarks.languages import peak_mb; print(peak_mb())"
    child = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 20 < child < languages.peak_mb() - held.nbytes / 2**21


def clip(language, speaker, text, split):
    return {"language": language, "speaker": speaker, "text": text, "split": split}


def test_other_voices_are_tested_with_no_sentence_that_training_holds():
    heard = [clip("cs", "small", "a", "train"), clip("cs", "small", "b", "test"), clip("en", "Allison", "c", "train")]
    others = [clip("cs", "big", "a", "test"), clip("cs", "big", "d", "train"), clip("cs", "big", "e", "validation"), clip("cs", "crab", "f", "train")]
    own, tested = divide([*heard, *others], {"small"})
    assert own == heard and [c["text"] for c in tested] == ["e", "f"] and {c["split"] for c in tested} == {"test"}
    assert divide([*heard, *others], {"small"}, {"crab"}) == (heard, [{**others[3], "split": "test"}])


def test_what_one_whisper_heard_is_not_scored_under_anothers_name(tmp_path):
    heard = tmp_path / "heard.jsonl"
    heard.write_text(json.dumps({"audio": "a.wav", "language": "en", "text": "A", "tokens": 3, "by": {"model": "small", "timestamps": False}}) + "\n")
    clips = [Clip(tmp_path / "a.wav", "en", "a", 1.0, "test")]
    assert [line["text"] for line in transcribe_all("small", clips, heard)] == ["A"]
    for folder, timestamps in (("large", False), ("small", True)):
        with pytest.raises(ValueError, match=r"was heard by .*'small', 'timestamps': False.*Name another file with --heard"):
            transcribe_all(folder, clips, heard, timestamps)


def test_two_recordings_of_one_name_are_refused_before_anything_is_heard_since_what_was_heard_is_kept_by_name(tmp_path):
    clips = [Clip(tmp_path / folder / "001.wav", language, "a", 1.0, "test") for folder, language in (("one", "en"), ("one", "fr"), ("two", "en"))]
    assert list(by_name(clips[:2])) == [("en", "001.wav"), ("fr", "001.wav")]
    with pytest.raises(ValueError, match=r"--data: got .*one/001.wav and .*two/001.wav, both of 'en'; allowed: a file name once in a language"):
        transcribe_all("no model", clips, tmp_path / "heard.jsonl")
    assert not list(tmp_path.iterdir())


KINDS = {"head": "head", "lora_": "lora", "adapter_layer": "bottleneck", "specialists": "masks", "delta": "delta", "norms": "norms", "backbone": "W"}


@pytest.fixture(scope="module")
def dense(corpus, tmp_path_factory):  # noqa: F811
    """The folder of a model that nothing masks."""
    folder = tmp_path_factory.mktemp("dense")
    run_stage_1(corpus, folder, "--sparsity", "0", "--gamma", "0", "--num_specialists", "1")
    return folder / "model"


@pytest.mark.parametrize("method, preset, expected", [
    ("head", "paper", {"head"}), ("full", "paper", {"head", "W"}), ("lora", "paper", {"head", "lora"}), ("lora_all", "paper", {"head", "lora"}),
    ("bottleneck", "paper", {"head", "bottleneck"}), ("mask", "paper", {"head", "masks"}), ("mask", "best", {"head", "masks", "delta", "norms"}),
    ("lora_all taught", "paper", {"head", "lora"}),
])  # fmt: skip
def test_a_method_moves_what_it_is_named_after_and_nothing_else(corpus, dense, tmp_path, monkeypatch, method, preset, expected):  # noqa: F811
    (method, *taught), moved = method.split(), set()

    def watched(accelerator, model, *args, **named):
        assert isinstance(args[-1], type(model)) == bool(taught) and args[-1] is not model
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        if method.startswith("lora"):
            adapted = [name for name in before if "lora_" in name]
            assert any(layer in name for name in adapted for layer in model.master_asr.family.feed_forward) == (method == "lora_all")
        log = train(accelerator, model, *args, **named)
        for name, value in model.named_parameters():
            if not torch.equal(value, before[name]):
                moved.add(next(kind for word, kind in KINDS.items() if word in name))
                assert not name.startswith("master_asr.assemblies") or ".lang_es." in name
        return log

    monkeypatch.setattr(methods, "train", watched)
    methods.main([
        "--method", method, "--preset", preset, "--model", str(dense), "--data", str(corpus / "manifest.jsonl"), "--language", "es",
        "--steps", "3", "--evaluate_every", "3", "--init", "random", "--out", str(tmp_path / "run"), *(["--teacher_steps", "2"] if taught else []),
    ])  # fmt: skip
    result = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))
    assert moved == expected and result["trainable"] > 0 and result["kilobytes"] > 0
    if method == "head":
        assert result["old_languages_before"]["macro"] == result["old_languages_after"]["macro"]


@pytest.mark.parametrize("method, option, refusal", [
    ("head", "--refine", "--refine: got True; allowed: none here"), ("head", "--finetune_steps 3", "--finetune_steps: got 3; allowed: none here"),
    ("head", "--method_learning_rate 3e-3", "--method_learning_rate: got 0.003; allowed: none with --method head"),
    ("full", "--preset best", "--preset: got 'best'; allowed: none with --method full"),
    ("lora_all", "--parts mapping head norms", "--parts: got ['mapping', 'head', 'norms']; allowed: none with --method lora_all"),
])  # fmt: skip
def test_a_method_refuses_what_it_would_not_do(tmp_path, capsys, method, option, refusal):
    with pytest.raises(SystemExit):
        methods.main(["--method", method, "--model", "m", "--data", "d", "--language", "es", "--out", str(tmp_path), *option.split()])
    assert refusal in capsys.readouterr().err


def test_no_command_of_a_run_that_is_listed_is_refused():
    commands = [run["command"].split()[1:] for path in tables.RESULTS.glob("*.json") if (run := tables.load(path.stem)).get("command", "").startswith("methods.py ")]
    assert len(commands) > 50 and all(parse(methods.MethodConfig, "", command) for command in commands)


def test_what_a_preset_owns_may_be_named_where_a_mask_or_a_teacher_trains_it(tmp_path):
    given = {"model": "m", "data": ["d"], "language": "es", "out": tmp_path, "preset": "best"}
    assert methods.MethodConfig(method="mask", **given) and methods.MethodConfig(method="lora", teacher_steps=6, **given)


def test_each_method_is_timed_on_updates_of_as_many_values_as_its_runs_on_spanish_train(tmp_path, monkeypatch):
    for name, value in {"BETA": 1, "WINDOWS": 1, "CLIPS": 1, "FRAMES": 40, "LABELS": 4, "VOCAB": 35}.items():
        monkeypatch.setattr(steps, name, value)
    moved, update, candidates, now = {}, torch.optim.Adam.step, steps.candidates, []

    def watched(optimizer):
        values = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        moved.setdefault(now[-1], {}).setdefault(id(optimizer), []).append(sum(p.numel() for p in values))
        update(optimizer)

    def named(name, step):
        return lambda *args: (now.append(name), step(*args))

    monkeypatch.setattr(steps, "candidates", lambda: {name: named(name, step) for name, step in candidates().items()})
    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    steps.main(["--out", str(tmp_path / "steps.json")])
    timed = json.loads((tmp_path / "steps.json").read_text(encoding="utf-8"))["steps"]
    assert set(timed) == set(labels.METHODS) - {"full_taught", "lora_all_taught", "lora_all_untranscribedtext", "assembly_best_refined", "assembly_best_untranscribed", "assembly_best_untranscribedtext"} and timed[steps.BASE]["ratio"] == 1 and all(row["step_s"] > 0 for row in timed.values())
    gates, gates_five = 6 * 4 * 2, 5 * 4 * 2  # T, which has an optimizer of its own: layers, projections, K
    head = tables.load("es_head_seed0")["trainable"]

    def of_run(name):
        """What its run on the shipped model trained, less T; where there is none, that of five layers, every one of which has as many."""
        of_assembly = name.startswith("assembly")
        if run := tables.load_if_there(f"es6_{name}_seed0"):
            return run["trainable"] - gates * of_assembly
        return head + (tables.load(f"es_{name}_seed0")["trainable"] - gates_five * of_assembly - head) * 6 // 5

    counts = {name: list(of.values()) for name, of in moved.items()}  # of each optimizer, in a window that warms up and in one that counts
    wanted = {name: [of_run(name.removesuffix("_taught")), *([gates] if name.startswith("assembly") else [])] for name in timed}
    assert {name: sorted(of) for name, of in counts.items()} == {name: sorted([count, count] for count in of) for name, of in wanted.items()}


def test_a_setting_of_the_reader_that_was_changed_is_put_back_whatever_happens():
    before = {name: getattr(ngrams, name) for name in reading.SETTINGS}
    with pytest.raises(KeyError), reading.settings({"ORDER": 3, "BEAM": 1}):
        assert (ngrams.ORDER, ngrams.BEAM) == (3, 1)
        raise KeyError
    assert {name: getattr(ngrams, name) for name in reading.SETTINGS} == before and set().union(*reading.TRIED) <= set(before)


def test_what_sentences_are_worth_is_measured_on_logits_that_were_heard_once():
    model = tiny_model()
    processor = MasterASRProcessor.from_model(model)
    vocab = model.config.vocab("en")
    a, b, c = [token for token in vocab if len(token) == 1 and token != "|"][:3]
    logits = torch.nn.functional.one_hot(torch.tensor([vocab[a], vocab["[PAD]"], vocab[c], vocab["[PAD]"]]), len(vocab)).float() * 20
    logits[2, vocab[b]] = 19.9  # c by a hair
    heard = {"en": {split: [(logits, a + b)] for split in reading.SPLITS}}
    assert reading.rates(model, processor, heard, "test", greedy=True)["macro"]["cer"] == 50
    found = reading.with_sentences(model, processor, heard, {"en": [a + b] * 2})
    assert found["kilobytes"] == {"en": 0.0} and [found[split]["macro"]["cer"] for split in reading.SPLITS] == [0, 0]


def test_sentences_of_another_subject_are_those_that_no_held_out_clip_says(tmp_path):
    clips = [Clip(tmp_path / "a.wav", "it", text, 1.0, split) for text, split in (("non disturbare", "validation"), ("numero di telefono", "test"), ("ciao a tutti", "train"))]
    lines = ["Non disturbare.", "Il suo numero di telefono, prego.", "Ciao a tutti!", "Uno."]
    assert reading.of_another_subject({"it": lines, "es": lines}, clips) == {"it": lines[2:], "es": lines}


@pytest.mark.parametrize("text, refusal", [
    (["xx=own.txt"], "has no assembly for ['xx']"), (["own.txt"], "allowed: LANGUAGE=FILE"), (["en=none.txt"], "allowed: LANGUAGE=FILE"),
    (["en=own.txt", "en=own.txt"], "--other_text: got ['en', 'en']; allowed: a language once"),
])  # fmt: skip
def test_sentences_that_cannot_be_used_are_refused_before_anything_is_heard(tmp_path, monkeypatch, capsys, text, refusal):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.txt").write_text("one\n")
    monkeypatch.setattr(reading, "read_data", lambda *args: pytest.fail("data was read"))
    tiny_model().save_pretrained("model")
    with pytest.raises(SystemExit) as stopped:
        reading.main(["--model", "model", "--data", "none", "--out", "out.json", "--other_text", *text])
    assert refusal in f"{stopped.value} {capsys.readouterr().err}"


def test_a_synthesizer_that_runs_out_of_sentences_keeps_what_it_said_and_says_what_is_missing(tmp_path, monkeypatch, capsys):
    def spoken(voice, sentences, folder):
        paths = [folder / f"{i}.wav" for i in range(len(sentences))]
        for path in paths:
            soundfile.write(path, np.zeros(16_000), 16_000)
        return paths

    monkeypatch.setattr(synthetic_voices, "spoken", spoken)
    heard, text, out = tmp_path / "heard.jsonl", tmp_path / "cs.txt", tmp_path / "out.jsonl"
    heard.write_text(json.dumps(clip("cs", "small", "a b c", "train")) + "\n")
    text.write_text("A b c.\n" * 60)  # of a second each; of the first 50 the first voice needs 30
    synthetic_voices.main(["--data", str(heard), "--text", str(text), "--minutes", "2", "--out", str(out)])
    made = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(made) == 41 and {c["speaker"] for c in made} == {"small", "czech_ph", "czech_dita"}
    assert "too few sentences: 1.3 of 2 min are missing." in capsys.readouterr().out


def figures(rate: float) -> dict:
    return {"macro": {"cer": rate}}


def test_a_figure_of_the_last_step_is_marked_where_others_are_of_what_was_tested(monkeypatch):
    log = {"loss": {"3": 0.5}, "validation": {"3": figures(9.0)}}
    runs = {"old": {"log": log, "test": figures(7.0)}, "new": {"log": log, "test": figures(7.0), "validation": figures(8.0), "finetune_log": log, "finetune_test": figures(6.0)}}
    monkeypatch.setattr(tables, "load", runs.get)
    of_both = tables.tried_table({"old": "old", "new": "new"}, "3")
    assert of_both[2:5] == ["| old | 9.0† | 7.0 | 0.50 |", "| new | 8.0 | 7.0 | 0.50 |", "| ... then + ft, 300 steps of all weights | 9.0† | 6.0 | 0.50 |"]
    assert of_both[5] == "" and of_both[6].startswith("† of the last step")
    del runs["new"]["finetune_test"]
    assert len(tables.tried_table({"new": "new"}, "3")) == 3


@pytest.mark.parametrize("pairs, words", [
    ([("a", "a"), ("a", "a")], "bit-equal"), ([("a", "a"), ("a", "b")], "CHANGED"), ([("a", "b"), (None, None)], "CHANGED"),
    ([("a", "a"), (None, None)], "nothing of theirs trains; not measured"), ([("a", None)], "nothing of theirs trains; not measured"),
])  # fmt: skip
def test_bit_equal_is_said_of_what_was_measured(pairs, words):
    assert tables.fate_of_base([{name: value for name, value in zip(("base", "base_after"), pair) if value} for pair in pairs]) == words


def test_a_series_without_runs_has_no_table_and_one_run_alone_no_error_of_its_mean(monkeypatch):
    monkeypatch.setattr(tables, "of_method", lambda name, series: [])
    assert tables.methods_table("cs6") == tables.across_table() == []
    runs = {f"stage1_nocs6_{name}": {"validation": figures(rate), "test": figures(rate)} for name, rate in (("master", 14.0), ("dense", 15.0))}
    monkeypatch.setattr(tables, "load_if_there", runs.get)
    assert tables.pairs_table()[0].count("|") == 6 and tables.pairs_table()[2] == "| Master-ASR less dense | -1.0 / -1.0 | -1.00 / -1.00 |  |  |"


def test_the_mean_of_pairs_is_as_sure_as_the_clips_that_all_of_them_read():
    def run(**edits):
        return {"test": {"languages": {code: {"edits": of} for code, of in edits.items()}}}

    ours, theirs = run(en="1/10 0/10", fr="2/10"), run(en="2/10 1/10", fr="2/10")
    assert tables.over_clips([[theirs, ours]], "test") == "+5.00 (+5.00 to +5.00), 1"  # 10 points in English, none in French
    assert tables.over_clips([[theirs, ours], [ours, ours], [run(en=""), ours]], "test").startswith("+2.50 (+2.50 to +2.50), 2")
    assert tables.over_clips([[theirs, ours]], "validation") == "" == tables.over_clips([[run(en="1/10"), run(en="1/10 1/10")]], "test")
    unsure = tables.over_clips([[run(en="9/10 0/10 0/10"), run(en="0/10 3/10 3/10")]], "test")
    assert unsure.startswith("+10.00 (-30.00 to +90.00)")


def test_whisper_is_compared_with_the_clips_of_each_seed(monkeypatch):
    monkeypatch.setattr(tables, "whisper_on", {"es": {"edits": "2/10 2/10"}, "ru": {}}.get)
    runs = [{"config": {"seed": seed}, "test": {"languages": {"es": {"edits": "1/10 1/10"}}}} for seed in (0, 1)]
    assert tables.whisper_beside("es", runs) == "+10.0 (+10.0 to +10.0)" and tables.whisper_beside("ru", runs) == "" == tables.whisper_beside("es", [])


def test_clips_of_which_a_training_sentence_holds_three_words_are_left_out_of_both_figures():
    def clip(name, text, split):
        return Clip(Path(name), "es", text, 1.0, split)

    clips = [clip("a.wav", "fulano ha dejado la conferencia", "train"), clip("b.wav", "ha dejado la conferencia", "test"), clip("c.wav", "otra cosa", "test")]
    mask = said.said(clips, "es", {"minutes": 10.0, "seed": 0})
    order = [c.text for c in select(clips, "test", ["es"])]
    assert dict(zip(order, mask.tolist())) == {"ha dejado la conferencia": True, "otra cosa": False}
    edits = " ".join("0/24" if text.startswith("ha") else "3/9" for text in order)
    whisper = tables.edits_in({"edits": edits.replace("0/", "6/")})
    found = said.of_run({"command": "x", "config": {"seed": 1}, "with_text": {"test": (test := {"languages": {"es": {"edits": edits}}})}, "test": test}, mask, whisper)
    assert found["said"] == 1 and found["seed"] == 1 and found["greedy"] == {"all": pytest.approx(100 * 3 / 33), "others": pytest.approx(100 * 3 / 9)}
    assert found["whisper"] == {"all": pytest.approx(100 * 9 / 33), "others": pytest.approx(100 * 3 / 9)}
    with pytest.raises(ValueError, match="x: tested on other clips than --data holds"):
        said.of_run({"command": "x", "config": {"seed": 1}, "with_text": {"test": test}, "test": test}, mask[:1], whisper)


def test_what_was_reckoned_from_runs_is_of_the_runs_that_stand_in_the_tables():
    for path in sorted(tables.RESULTS.glob("said_*.json")):
        kept, series = tables.load(path.stem)["methods"], path.stem.removeprefix("said_")
        of_runs = {
            name: {run["config"]["seed"]: [said.cer(tables.edits_of_clips(read)) for read in (run, run["with_text"])] for run in runs}
            for name, _, runs in tables.methods_of(series) if name in kept or all("with_text" in run for run in runs)
        }  # fmt: skip
        assert {name: {run["seed"]: [run["greedy"]["all"], run["with_text"]["all"]] for run in runs} for name, runs in kept.items()} == of_runs


def test_a_series_on_six_layers_is_timed_on_six(monkeypatch):
    asked = []
    monkeypatch.setattr(tables, "of_method", lambda name, series: [{}] if name == "full" else [])
    monkeypatch.setattr(tables, "method_row", lambda *args: [])
    monkeypatch.setattr(tables, "load", lambda name: asked.append(name) or {"steps": {}, "test": {"languages": {}}})
    for series in ("es6", "cs6", "es", "es4500", "cs"):
        tables.methods_table(series)
    assert [name for name in asked if name.startswith("steps")] == ["steps", "steps", "steps_five", "steps_five", "steps_five"]


def test_whisper_stands_beside_a_new_language_with_its_own_figures():
    es, cs, ru = (tables.whisper_on(code)["cer"] for code in ("es", "cs", "ru"))
    assert ru < es < cs and tables.whisper_on("xx") is None
    line, thorough = tables.text_table("es6")[-2:]
    assert line.startswith("| Whisper-base") and f"{es:.1f} on test" in line
    assert thorough.startswith("| ... with five beams") and f"{tables.whispers_on('es')[1][1]['cer']:.1f} on test" in thorough


def test_fortunes_are_sentences_a_line_each_once_without_who_said_them(tmp_path):
    (tmp_path / "sayings").write_text("Primero pensar.\nDespués hablar,\n  y poco.\n\t\t-- Anónimo\n%\nPrimero pensar. ¿Y tú qué?\n%\nUno.\n", encoding="utf-8")
    (tmp_path / "sayings.dat").write_bytes(b"\x00\x01")
    assert fortunes.sentences(tmp_path) == ["Primero pensar.", "Después hablar, y poco.", "¿Y tú qué?"]
