"""Data, turns and the loop, on synthetic clips and tiny models."""

import json
import os
import random
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from conftest import tiny_backbone_config, tiny_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel

from modeling_master_asr import MasterASRForCTC, MasterASRProcessor
from modeling_master_asr import weights_master_asr as weights
from modeling_master_asr.artisan_master_asr import pack_mask
from modeling_master_asr.configuration_master_asr import PRESETS
from modeling_master_asr.text_master_asr import build_vocab, normalize, spell_sentences, spelled
from modeling_master_asr.trainer_utils import error_rates, macro
from training import adapt_language, evaluate, train_multilingual, transcribe
from training.adapt_language import give_parts, letters_beyond
from training.loop import checkpoints, metrics
from training.loop import text as loop_text
from training.loop.config import LoopConfig
from training.loop.data import bucket, bucket_of_step, select
from training.loop.launch import place, run
from training.loop.optim import Turns, tri_stage
from training.loop.sources import Clip, read_manifest
from training.loop.splits import Splits
from training.loop.watching import share_of_differing_bits


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three languages of noise clips with short texts, in every split."""
    folder = tmp_path_factory.mktemp("corpus")
    rng, lines = np.random.default_rng(0), []
    for language, texts in {"en": ["ab ba", "abba", "a b"], "fr": ["éa", "aé a", "é"], "es": ["ña", "an", "ñ n a"]}.items():
        for split, count in (("train", 6), ("validation", 2), ("test", 2)):
            for i in range(count):
                name = f"{language}-{split}-{i}.wav"
                duration_s = 0.6 + 0.1 * i
                soundfile.write(folder / name, rng.standard_normal(int(16_000 * duration_s)) * 0.1, 16_000)
                lines.append({"audio": name, "language": language, "text": texts[i % 3], "duration_s": duration_s, "split": split})
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    torch.manual_seed(0)
    AutoModel.from_config(tiny_backbone_config("wav2vec2")).save_pretrained(folder / "backbone")
    return folder


def run_stage_1(corpus, out, *extra):
    train_multilingual.main([
        "--data", str(corpus / "manifest.jsonl"), "--out", str(out), "--backbone", str(corpus / "backbone"), "--languages", "en",
        "fr", "--steps", "8", "--batch_s", "3", "--evaluate_every", "4", "--beta", "2", "--gamma", "3",
        "--learning_rate", "1e-3", *extra,
    ])  # fmt: skip
    return MasterASRForCTC.from_pretrained(out / "model")


@pytest.mark.filterwarnings("error")  # of the picture of gates that are all alike
@pytest.mark.parametrize("gates, rows", [("open", [[True, True]] * 2), ("own", [[True, False], [False, True]])])
def test_baselines_train_with_the_gates_they_are_named_after_which_never_move(corpus, tmp_path, gates, rows):
    targets = ["q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense"]
    model = run_stage_1(corpus, tmp_path, "--gates", gates, "--num_specialists", "2", "--artisan_targets", *targets)
    assert len(model.master_asr.artisan_layers) == 2 * len(targets)
    for assembly, row in zip(model.assemblies.values(), rows):
        assert torch.equal(assembly.mapping > 0, torch.tensor(row).expand_as(assembly.mapping))
    with pytest.raises(ValueError, match="--gates own: got --num_specialists 3; allowed: one a language, 2."):
        run_stage_1(corpus, tmp_path / "other", "--gates", "own", "--num_specialists", "3")


def test_the_whole_road_from_a_backbone_to_a_new_languages_text(corpus, tmp_path, capsys):
    run_stage_1(corpus, tmp_path / "stage1")
    result = json.loads((tmp_path / "stage1/run.json").read_text())
    assert set(result["test"]["languages"]) == {"en", "fr"} and "commit" in result and "4" in result["log"]["validation"]
    adapt_language.main([
        "--model", str(tmp_path / "stage1/model"), "--data", str(corpus / "manifest.jsonl"), "--language", "es", "--out",
        str(tmp_path / "es"), "--steps", "4", "--evaluate_every", "2", "--parts", "mapping", "head", "specialist", "delta",
        "--finetune_steps", "2",
    ])  # fmt: skip
    stage2 = json.loads((tmp_path / "es/run.json").read_text())
    assert stage2["parts"] == ["mapping", "head", "specialist", "delta"] and "finetune_test" in stage2
    assert stage2["base"] == stage2["base_after"] == MasterASRForCTC.from_pretrained(tmp_path / "stage1/model").master_asr.base_fingerprint()[:12]
    evaluate.main([
        "--model", str(tmp_path / "stage1/model"), "--assembly", str(tmp_path / "es/assembly"), "--data",
        str(corpus / "manifest.jsonl"), "--out", str(tmp_path / "rates.json"), "--row_swap",
    ])  # fmt: skip
    rates = json.loads((tmp_path / "rates.json").read_text())
    assert set(rates["row_swap_cer"]["es"]) == {"en", "fr", "es"}
    assert rates["row_swap_cer"]["es"]["es"] == round(rates["languages"]["es"]["cer"], 2)
    assert rates["languages"]["es"]["cer"] == pytest.approx(stage2["with_text"]["test"]["languages"]["es"]["cer"])
    evaluate.main(["--model", str(tmp_path / "stage1/model"), "--assembly", str(tmp_path / "es/assembly"), "--data", str(corpus / "manifest.jsonl"),
                   "--languages", "es", "--greedy", "--out", str(tmp_path / "greedy.json")])  # fmt: skip
    greedy = json.loads((tmp_path / "greedy.json").read_text())
    assert greedy["greedy"] and "known" not in greedy and greedy["languages"]["es"]["cer"] == pytest.approx(stage2["test"]["languages"]["es"]["cer"])
    model = MasterASRForCTC.from_pretrained(tmp_path / "stage1/model")
    for code in model.languages:
        model.set_text(code, [])
    model.save_pretrained(tmp_path / "stage1/silent")
    MasterASRProcessor.from_model(model).save_pretrained(tmp_path / "stage1/silent")
    evaluate.main(["--model", str(tmp_path / "stage1/silent"), "--data", str(corpus / "manifest.jsonl"), "--out", str(tmp_path / "silent.json")])
    assert json.loads((tmp_path / "silent.json").read_text())["greedy"]  # as a card says that is made of it
    capsys.readouterr()
    clip = str(corpus / "es-test-0.wav")
    transcribe.main([clip, "--model", str(tmp_path / "stage1/model"), "--assembly", str(tmp_path / "es/assembly"),
                     "--language", "es", "--json"])  # fmt: skip
    answer = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert answer["file"] == clip and isinstance(answer["words"], list)


def test_sentences_that_are_too_many_or_cannot_be_spelled_cost_no_training(capsys, monkeypatch):
    model, config = tiny_model(), SimpleNamespace(text="transcripts")
    letter = next(token for token in model.config.vocab("en") if len(token) == 1 and token != "|")
    keep_text(model, "en", config, [letter * count for count in (3, 14, 4, 5)], monkeypatch=monkeypatch, KEPT_TEXT=9)
    assert model.config.text("en").splitlines() == [letter * 3, letter * 4]  # a long one hides none behind it
    assert "2 sentences were left out: they do not fit into 9 characters" in capsys.readouterr().out
    keep_text(model, "en", config, [letter * 3, letter * 4])  # refined on the same: nothing is counted twice
    assert model.config.text("en").splitlines() == [letter * 3, letter * 4] and "left out" not in capsys.readouterr().out
    keep_text(model, "fr", config, ["語"])
    assert model.config.text("fr") == "" and "Read greedily: None of these 1 sentences can be spelled" in capsys.readouterr().out


def keep_text(model, language, config, texts, held_out=(), more=(), monkeypatch=None, **settings) -> None:
    for name, value in settings.items():
        monkeypatch.setattr(loop_text, name, value)
    clips, tested = ([SimpleNamespace(language=language, text=text) for text in of] for of in (texts, held_out))
    loop_text.keep_text(SimpleNamespace(print=print), model, language, Splits(clips, tested[::3], tested[1::3], tested[2::3]), config, more)


def test_a_letter_that_is_written_as_an_apostrophe_is_kept_at_both_ends_of_a_word_by_labels_sentences_and_scores():
    text = normalize("ʼAshdlaʼ, ‘dó’ ʼhaʼ")
    vocab = build_vocab([text])
    assert text == "'ashdla' dó 'ha'" == normalize(text, raw=False) == spelled(text, {*text}, raw=False) == spell_sentences([text], "nv", vocab, raw=False)[0]
    model = tiny_model(vocabs={"nv": vocab})
    processor = MasterASRProcessor.from_model(model)
    assert processor.decode(processor.encode([text], "nv", raw=False)[0], "nv") == text
    keep_text(model, "nv", SimpleNamespace(text="transcripts"), [text], more=["'dó' had"])
    keep_text(model, "nv", SimpleNamespace(text="transcripts"), [text])  # once more: what was kept is spelled
    assert model.config.text("nv").splitlines() == [text, "dó had"]


def test_a_language_that_is_refined_keeps_the_sentences_that_it_had_unless_it_is_to_have_none(capsys):
    model = tiny_model()
    a, b = [token for token in model.config.vocab("en") if len(token) == 1 and token != "|"][:2]
    model.set_text("en", [a, a * 2])
    keep_text(model, "en", SimpleNamespace(text="transcripts"), [b, a])
    assert model.config.text("en").splitlines() == [b, a, a * 2]  # what it trains on first, should there be too many
    keep_text(model, "en", SimpleNamespace(text="none"), [b])
    assert model.config.text("en") == "" and "The 3 sentences that 'en' had are gone (--text none)" in capsys.readouterr().out
    model.set_text("en", [a])
    keep_text(model, "en", SimpleNamespace(text="transcripts"), [], more=["語"])
    assert model.config.text("en") == a and "1 sentences were left out: they hold what" in capsys.readouterr().out
    for more in ([b], ["語"]):  # whatever takes their place, or cannot
        model.set_text("en", [a])
        keep_text(model, "en", SimpleNamespace(text="none"), [a], more=more)
        assert model.config.text("en") == "".join(set(more) & {b}) and "The 1 sentences that 'en' had are gone" in (said := capsys.readouterr().out)
        assert ("Read greedily: None of these 1 sentences can be spelled" in said) == (more == ["語"])


def test_further_sentences_that_validation_or_test_says_are_left_out_with_a_count(capsys):
    model = tiny_model()
    a, b, c = [token for token in model.config.vocab("en") if len(token) == 1 and token != "|"][:3]
    more = [f"{a} {b} {c}", f"{c} {a.upper()} {b} {c}!", f"{a}{b}", f"{a}{b} {c}", b * 3, a * 3]
    keep_text(model, "en", SimpleNamespace(text="transcripts"), [c], held_out=[f"{a} {b} {c}", f"{a}{b}", a * 3], more=more)  # the last by a test clip beyond --held_out_minutes
    assert model.config.text("en").splitlines() == [c, f"{a}{b} {c}", b * 3]  # a short one may stand in a longer one
    assert "4 sentences were left out: they are said in validation or test clips" in capsys.readouterr().out


def test_further_sentences_that_cannot_be_spelled_take_no_place_from_others_and_are_counted(capsys, monkeypatch):
    model = tiny_model()
    a, b, c = [token for token in model.config.vocab("en") if len(token) == 1 and token != "|"][:3]
    more = ["語語語語", "語語語", f"{a} 7", f"{b}, {b.upper()}!", f"{b} {b}", c * 3]
    keep_text(model, "en", SimpleNamespace(text="transcripts"), [a], more=more, monkeypatch=monkeypatch, KEPT_TEXT=12)
    assert model.config.text("en").splitlines() == [a, f"{b} {b}", c * 3]
    assert "4 sentences were left out: they hold what the alphabet lacks (digits, signs, letters), or are written as others are" in (out := capsys.readouterr().out)
    assert "do not fit" not in out


@pytest.mark.parametrize("text", ["transcripts", "none"])
def test_a_language_keeps_the_sentences_that_its_options_name_and_no_others(corpus, tmp_path, capsys, text):
    run_stage_1(corpus, tmp_path / "stage1", "--text", "none")
    assert not any(MasterASRForCTC.from_pretrained(tmp_path / "stage1/model").config.text(code) for code in ("en", "fr"))
    transcripts = [clip.text for clip in read_manifest(corpus / "manifest.jsonl") if clip.language == "es" and clip.split == "train"]
    further = "".join(dict.fromkeys("".join(transcripts).replace(" ", "")))
    (tmp_path / "more.txt").write_text(f"{further.upper()}!\n\n", encoding="utf-8")
    adapt_language.main(["--model", str(tmp_path / "stage1/model"), "--data", str(corpus / "manifest.jsonl"), "--language", "es", "--out", str(tmp_path / "es"),
                         "--steps", "2", "--preset", "paper", "--text", text, "--more_text", str(tmp_path / "more.txt")])  # fmt: skip
    facts = json.loads((tmp_path / "es/assembly/assembly_config.json").read_text())["assemblies"]["es"]
    assert set(facts["text"].splitlines()) == {further, *(transcripts if text == "transcripts" else ())}
    evaluate.main(["--model", str(tmp_path / "stage1/model"), "--assembly", str(tmp_path / "es/assembly"), "--data", str(corpus / "manifest.jsonl"),
                   "--languages", "es", "--split", "train", "--out", str(tmp_path / "train.json")])  # fmt: skip
    known = json.loads((tmp_path / "train.json").read_text()).get("known", {})
    assert known == ({"es": len(transcripts)} if text == "transcripts" else {})
    assert ("'es' clips say a sentence that it is read with, or a part of one: its figures flatter" in capsys.readouterr().out) == bool(known)
    (tmp_path / "latin.txt").write_bytes("año".encode("latin-1"))
    for name in ("nowhere.txt", "latin.txt"):
        with pytest.raises(ValueError, match=f"--more_text: got .*{name}, which cannot be read .* allowed: a UTF-8 text file, a sentence a line"):
            adapt_language.main(["--model", str(tmp_path / "stage1/model"), "--data", str(corpus / "manifest.jsonl"), "--language", "es", "--out",
                                 str(tmp_path / "none"), "--more_text", str(tmp_path / name)])  # fmt: skip
        assert not (tmp_path / "none").exists()


def test_further_sentences_may_come_from_what_can_be_read_once(corpus, tmp_path):
    run_stage_1(corpus, tmp_path / "stage1", "--text", "none")
    os.mkfifo(pipe := tmp_path / "pipe")
    letters = 3 * next(clip.text for clip in read_manifest(corpus / "manifest.jsonl") if clip.language == "es" and clip.split == "train").replace(" ", "")  # no clip says it
    threading.Thread(target=pipe.write_text, args=(letters,), daemon=True).start()
    adapt_language.main(["--model", str(tmp_path / "stage1/model"), "--data", str(corpus / "manifest.jsonl"), "--language", "es", "--out", str(tmp_path / "es"),
                         "--steps", "2", "--preset", "paper", "--text", "none", "--more_text", str(pipe)])  # fmt: skip
    assert json.loads((tmp_path / "es/assembly/assembly_config.json").read_text())["assemblies"]["es"]["text"] == letters


def test_evaluate_reads_with_further_sentences_which_no_held_out_clip_says_and_leaves_the_model_as_it_is(corpus, tmp_path, capsys):
    run_stage_1(corpus, tmp_path / "stage1")
    said = {clip.split: clip.text for clip in read_manifest(corpus / "manifest.jsonl") if clip.language == "fr"}
    letters = "".join(sorted(set(said["train"]) - {" "})) * 3  # which no clip says
    (tmp_path / "more.txt").write_text(f"{said['test']}\n{said['validation'].upper()}!\n{said['train']}\n{letters}\n{letters}\n7\n", encoding="utf-8")
    given = {path: path.read_bytes() for path in (tmp_path / "stage1/model").iterdir() if path.is_file()}
    asked, rates = [], evaluate.evaluate_clips
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "evaluate_clips", lambda model, *args, **kwargs: asked.append(model.config.text("fr")) or rates(model, *args, **kwargs))
        options = ["--model", str(tmp_path / "stage1/model"), "--data", str(corpus / "manifest.jsonl"), "--out", str(tmp_path / "rates.json")]
        evaluate.main([*options, "--more_text", f"fr={tmp_path / 'more.txt'}"])
    result = json.loads((tmp_path / "rates.json").read_text())
    own = MasterASRForCTC.from_pretrained(tmp_path / "stage1/model").config.text("fr").splitlines()
    assert asked[0].splitlines() == [*own, letters] and result["more_text"] == {"fr": 1} and not result["greedy"]
    assert "'fr' is read with 1 of 6 further sentences in mind" in capsys.readouterr().out
    assert given == {path: path.read_bytes() for path in (tmp_path / "stage1/model").iterdir() if path.is_file()}
    for wrong, why in (("more.txt", "no LANGUAGE= in front"), (f"fr={tmp_path / 'nowhere.txt'}", "No such file")):
        with pytest.raises(SystemExit):
            evaluate.main([*options, "--more_text", wrong])
        assert why in (message := capsys.readouterr().err) and "allowed: LANGUAGE=FILE, a UTF-8 text file" in message
    with pytest.raises(SystemExit):
        evaluate.main([*options, "--more_text", *[f"fr={tmp_path / 'more.txt'}"] * 2])
    assert "allowed: a language once. Join its files" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="has no assembly for ..xx"):
        evaluate.main([*options, "--more_text", f"xx={tmp_path / 'more.txt'}"])
    with pytest.raises(SystemExit):
        evaluate.main([*options, "--greedy", "--more_text", f"fr={tmp_path / 'more.txt'}"])
    assert "--greedy: allowed without --more_text" in capsys.readouterr().err


def test_a_language_is_refined_in_its_place_and_the_others_keep_every_bit(corpus, tmp_path, capsys):
    before = run_stage_1(corpus, tmp_path / "stage1")
    options = ["--model", str(tmp_path / "stage1/model"), "--data", str(corpus / "manifest.jsonl")]
    adapt_language.main([*options, "--language", "fr", "--refine", "--preset", "best", "--rank", "2", "--out", str(tmp_path / "fr"),
                         "--steps", "4", "--evaluate_every", "2"])  # fmt: skip
    result = json.loads((tmp_path / "fr/run.json").read_text())
    assert result["base"] == result["base_after"] == before.master_asr.base_fingerprint()[:12] and result["parts"] == list(PRESETS["best"]["parts"])
    model = MasterASRForCTC.from_pretrained(tmp_path / "stage1/model")
    model.load_assembly(tmp_path / "fr/assembly", replace=True)
    assert model.languages == before.languages and bool(model.assemblies["fr"].norms.values.detach().any())
    mine, theirs = (other.assemblies["en"].state_dict() for other in (model, before))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    with pytest.raises(ValueError, match="Language 'fr' is already there. Remove it first"):
        model.load_assembly(tmp_path / "fr/assembly")
    evaluate.main([*options, "--assembly", str(tmp_path / "fr/assembly"), "--out", str(tmp_path / "rates.json")])
    rates = json.loads((tmp_path / "rates.json").read_text())["languages"]
    assert rates["fr"]["cer"] == pytest.approx(result["with_text"]["test"]["languages"]["fr"]["cer"])
    capsys.readouterr()
    transcribe.main([str(corpus / "fr-test-0.wav"), *options[:2], "--assembly", str(tmp_path / "fr/assembly"), "--language", "fr"])
    assert capsys.readouterr().out


def test_an_assembly_is_trained_on_with_further_recordings_whose_letters_it_lacks(corpus, tmp_path, capsys):
    run_stage_1(corpus, tmp_path / "stage1")
    model = MasterASRForCTC.from_pretrained(tmp_path / "stage1/model")
    model.add_language("es", {"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 3}, preset="paper")
    model.save_assembly("es", tmp_path / "first")
    adapt_language.main(["--model", str(tmp_path / "stage1/model"), "--assembly", str(tmp_path / "first"), "--data", str(corpus / "manifest.jsonl"), "--language", "es",
                         "--refine", "--preset", "small", "--out", str(tmp_path / "es"), "--steps", "2", "--evaluate_every", "2"])  # fmt: skip
    letters = build_vocab(clip.text for clip in select(read_manifest(corpus / "manifest.jsonl"), "train", ["es"]))
    grown = sorted(letters.keys() - {"[PAD]", "[UNK]", "|", "a"})
    assert f"The alphabet of 'es' grows by {grown}." in capsys.readouterr().out
    model.remove_language("es")
    model.load_assembly(tmp_path / "es/assembly")
    assert list(model.config.vocab("es")) == ["[PAD]", "[UNK]", "|", "a", *grown]
    processor = MasterASRProcessor.from_model(MasterASRForCTC.from_pretrained(tmp_path / "stage1/model"))
    clips, config = [Clip(Path("a.wav"), "en", "ж", 1.0, "train")], adapt_language.AdaptConfig(model="m", data=["d"], out=tmp_path, language="en", refine=True)
    before = MasterASRForCTC.from_pretrained(tmp_path / "stage1/model")
    give_parts(before, processor, clips, config)
    assert processor.languages == before.languages and "ж" in processor.vocabs["en"] and processor.tokenizer.target_lang == before.languages[0]


def test_an_alphabet_holds_no_letter_of_a_clip_that_is_dropped_before_training(corpus, tmp_path):
    run_stage_1(corpus, tmp_path / "stage1")
    lines = (corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    spanish = next(json.loads(line) for line in lines if json.loads(line)["language"] == "es" and json.loads(line)["split"] == "train")
    (corpus / "more.jsonl").write_text("\n".join([*lines, json.dumps({**spanish, "text": "\u0167 " * 400})]), encoding="utf-8")
    adapt_language.main(["--model", str(tmp_path / "stage1/model"), "--data", str(corpus / "more.jsonl"), "--language", "es", "--preset", "paper",
                         "--out", str(tmp_path / "es"), "--steps", "2", "--evaluate_every", "2"])  # fmt: skip
    run = json.loads((tmp_path / "es/run.json").read_text())
    model = MasterASRForCTC.from_pretrained(tmp_path / "stage1/model", assemblies=[str(tmp_path / "es/assembly")])
    assert len(run["dropped"]) == 1 and "\u0167" not in model.config.vocab("es") and "a" in model.config.vocab("es")


def test_letters_beyond_an_alphabet_are_what_no_token_writes_in_the_case_that_it_has():
    alphabet = {"[PAD]": 0, "[UNK]": 1, "|": 2}
    assert letters_beyond({**alphabet, "ch": 3, "a": 4}, ["cha ca"], "es") == ["c"]
    assert letters_beyond({**alphabet, "A": 3, "B": 4}, ["ab d"], "es") == ["D"] and letters_beyond({**alphabet, "a": 3, "B": 4}, ["ab d"], "es") == ["d"]


def test_stage_1_trains_the_parts_that_every_language_owns_and_a_new_one_starts_from_the_nearest_ones(corpus, tmp_path):
    model = run_stage_1(corpus, tmp_path / "stage1", "--preset", "best")
    for code in ("en", "fr"):
        assembly = model.assemblies[code]
        assert model.config.assemblies[code]["shares_bank"] and set(assembly.parts) == set(PRESETS["best"]["parts"])
        assert any(bool(up.detach().any()) for up in assembly.delta.up) and bool(assembly.norms.values.detach().any())  # zero at the start
    model.add_language("es", model.config.vocab("fr"), init="fr")
    started = dict(model.assemblies["es"].named_parameters())
    for name, value in model.assemblies["fr"].named_parameters():
        assert name.startswith("head.") or torch.equal(value, started[name]), name


COMMANDS = sorted(path.stem for path in Path(train_multilingual.__file__).parent.glob("*.py") if path.stem != "__init__")


def test_every_command_starts_by_its_path_from_anywhere_as_accelerate_launch_starts_it(tmp_path):
    """In one process, since each start costs seconds of imports."""
    folder = Path(train_multilingual.__file__).parent
    started = "import runpy, sys\nfor path in sys.argv[1:]:\n    sys.argv, sys.path[0] = [path, '--help'], path.rpartition('/')[0]\n" \
              "    for name in [n for n in sys.modules if n.partition('.')[0] == 'training']:\n        del sys.modules[name]\n" \
              "    try:\n        runpy.run_path(path, run_name='__main__')\n    except SystemExit as end:\n        assert end.code == 0, path\n"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    paths = [str(folder / f"{command}.py") for command in COMMANDS]
    done = subprocess.run([sys.executable, "-c", started, *paths], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("usage: ") == len(COMMANDS) and all(f"usage: {command}.py" in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("way", ["by path", "as a module"])
def test_every_command_says_which_extra_is_missing(tmp_path, way):
    folder = Path(train_multilingual.__file__).parent
    hide = "import importlib.util as u, runpy, sys\nfind = u.find_spec\n" \
           "u.find_spec = lambda name, *a: None if name in ('accelerate', 'jiwer') else find(name, *a)\n"
    for command in COMMANDS:
        path = folder / f"{command}.py"
        run = f"sys.path[0] = {str(folder)!r}; runpy.run_path({str(path)!r}, run_name='__main__')"
        if way == "as a module":
            run = f"sys.path[0] = {str(folder.parent)!r}; runpy.run_module('training.{command}', run_name='__main__')"
        done = subprocess.run([sys.executable, "-c", hide + run], capture_output=True, text=True, cwd=tmp_path)
        assert 'training/ needs accelerate, jiwer: pip install -e ".[train]" in this clone' in done.stderr, (command, done.stderr[-500:])


def test_a_resumed_run_ends_bit_equal_to_an_uninterrupted_one(corpus, tmp_path, monkeypatch):
    whole = run_stage_1(corpus, tmp_path / "whole")
    original = checkpoints.save

    def stop_after(*args):
        original(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", stop_after)
    with pytest.raises(KeyboardInterrupt):
        run_stage_1(corpus, tmp_path / "cut")
    monkeypatch.setattr(checkpoints, "save", original)
    resumed = run_stage_1(corpus, tmp_path / "cut", "--resume")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_every_tensor_moves_in_exactly_the_steps_of_its_turn(corpus):
    """W and M in turn every gamma steps, T every beta steps at alpha times its rate, the rest always; tri-stage for all but T."""
    vocabs = {code: {"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 3} for code in ("en", "fr")}
    model = MasterASRForCTC.from_backbone(str(corpus / "backbone"), vocabs)
    model.freeze_feature_encoder()
    beta, gamma, steps = 3, 4, 12
    turns = Turns(model, alpha=10, beta=beta, gamma=gamma, learning_rates=dict.fromkeys(("W", "M", "T", "head"), 1e-3), num_steps=steps)
    masked = {id(layer._parameters["weight"]) for layer in model.master_asr.artisan_layers}
    model.train()
    unused = set()  # tensors that this input never reaches: the embedding of masked frames
    for step in range(steps):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        turns.begin(step)
        assert {g["lr"] for g in turns.optimizer.param_groups} == {1e-3 * tri_stage(step, steps)}
        assert turns.mapping_optimizer.param_groups[0]["lr"] == pytest.approx(1e-2)
        language = ("en", "fr")[step % 2]
        model(torch.randn(2, 4000), language=language, labels=torch.tensor([[3, 3], [3, 3]])).loss.backward()
        unused |= {n for n, p in model.named_parameters() if p.grad is None and "masked_spec_embed" in n}
        assert turns.step(step)
        in_w = (step // gamma) % 2 == 0
        for name, parameter in model.named_parameters():
            moved = not torch.equal(parameter, before[name])
            if name.endswith("mapping"):
                due = (step + 1) % beta == 0  # both languages': their gradients were collected in between
            elif name.endswith("specialists"):
                due = not in_w
            elif id(parameter) in masked:
                due = in_w
            else:
                due = "feature_extractor" not in name and name not in unused
            assert moved == due, f"step {step}: {name} moved: {moved}, due: {due}"


def test_masks_are_selected_only_in_ms_turn_and_in_the_step_after_it(corpus, monkeypatch):
    calls, original = [], weights.select_mask
    monkeypatch.setattr(weights, "select_mask", lambda *a: calls.append(1) or original(*a))
    model = MasterASRForCTC.from_backbone(str(corpus / "backbone"), {c: {"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 3} for c in ("en", "fr")})
    for assembly in model.assemblies.values():  # both select the same, and no gate is near its threshold
        torch.nn.init.ones_(assembly.mapping)
    layers = len(model.master_asr.artisan_layers)
    turns = Turns(model, alpha=1, beta=2, gamma=3, learning_rates=dict.fromkeys(("W", "M", "T", "head"), 1e-4), num_steps=8)
    model.train()
    counts = []
    for step in range(8):
        calls.clear()
        turns.begin(step)
        model(torch.randn(2, 4000), language=("en", "fr")[step % 2], labels=torch.tensor([[3, 3], [3, 3]])).loss.backward()
        turns.step(step)
        counts.append(len(calls) / layers)
    assert counts == [1, 0, 0, 1, 1, 1, 1, 0]  # M has its turn in steps 3, 4 and 5; W's and T's moves cost nothing


def test_in_stage_2_the_encoder_needs_gradients_only_in_the_step_that_moves_t(corpus):
    vocab = {"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 3}
    model = MasterASRForCTC.from_backbone(str(corpus / "backbone"), {"en": vocab})
    model.add_language("es", vocab, preset="paper")
    model.freeze_except("es")
    beta, mapping = 3, model.assemblies["es"].mapping
    turns = Turns(model, 10, beta, 0, dict.fromkeys(("T", "head"), 1e-3), num_steps=6, mapping_gradient="last")
    model.train()
    for step in range(6):
        before = {name: p.detach().clone() for name, p in model.assemblies["es"].named_parameters()}
        turns.begin(step)
        due = (step + 1) % beta == 0
        output = model(torch.randn(2, 4000), language="es", labels=torch.tensor([[3, 3], [3, 3]]), output_hidden_states=True)
        assert output.hidden_states[-1].requires_grad == due
        output.loss.backward()
        grad = mapping.grad
        assert (grad is not None) == due
        turns.step(step)
        for name, parameter in model.assemblies["es"].named_parameters():
            assert torch.equal(parameter, before[name]) == (name == "mapping" and not due), (step, name)
        if step == beta - 1:
            torch.testing.assert_close(turns.mapping_optimizer.state[mapping]["exp_avg"], 0.1 * grad)  # of this step alone


def test_a_model_is_on_its_device_before_an_optimizer_sees_it(model):
    """Else a resumed optimizer would be left behind on the CPU. "meta" stands in for a GPU."""
    config = LoopConfig(out=Path("out"), data=["manifest.jsonl"], steps=2, evaluate_every=2)
    place(SimpleNamespace(device=torch.device("meta")), model, config)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    turns = Turns(model, 10, 2, 0, dict.fromkeys(("W", "M", "T", "head"), 1e-3), num_steps=2)
    state = turns.state_dict()
    turns.load_state_dict({**state, "mapping_grads": [torch.zeros(8, 4) for _ in turns.mappings]})
    assert {g.device.type for g in turns.collected} == {"meta"}


def test_optimizer_state_exists_only_for_what_trained(corpus):
    vocabs = {f"x{i}": {"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 3} for i in range(50)}
    model = MasterASRForCTC.from_backbone(str(corpus / "backbone"), vocabs)
    turns = Turns(model, alpha=10, beta=1, gamma=0, learning_rates=dict.fromkeys(("W", "M", "T", "head"), 1e-3), num_steps=4)
    for step in range(4):
        turns.begin(step)
        model(torch.randn(1, 4000), language="x7", labels=torch.tensor([[3]])).loss.backward()
        turns.step(step)
    assert [p is model.assemblies["x7"].mapping for p in turns.mapping_optimizer.state] == [True]


def test_a_run_can_be_watched_losses_rates_figures_and_a_picture_per_evaluation(corpus, tmp_path):
    run_stage_1(corpus, tmp_path)
    events = EventAccumulator(str(next(tmp_path.rglob("events.out*")).parent), size_guidance={"images": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    wanted = {"loss", "cer/en", "cer/fr", "cer/macro", "learning_rate/W", "learning_rate/M", "learning_rate/T", "T/std_of_T", "T/entropy_of_T_bits",
              "T/share_of_flipped_gates", "T/share_of_changed_mask_bits", "T/specialists_in_use_a_layer", "T/dead_specialists"}  # fmt: skip
    assert wanted <= scalars and any(name.startswith("loss/") for name in scalars), scalars
    assert [image.step for image in events.Images("similarity")] == [4, 8]


def test_the_share_of_differing_bits_counts_every_layer_once():
    some, others = ([torch.rand(shape) > 0.3 for shape in ((37, 11), (5, 5))] for _ in range(2))
    expected = sum(float((a != b).double().mean()) for a, b in zip(some, others)) / 2
    packed = ([pack_mask(mask) for mask in masks] for masks in (some, others))
    assert share_of_differing_bits(*packed, [37 * 11, 25]) == pytest.approx(expected)


def test_tri_stage_warms_up_holds_and_decays():
    factors = [tri_stage(step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert set(factors[10:50]) == {1.0} and factors[50:] == sorted(factors[50:], reverse=True)
    assert factors[-1] == pytest.approx(0.05, rel=0.1)


def test_batches_hold_one_language_and_bounded_seconds_and_repeat_from_any_step(corpus):
    clips = read_manifest(corpus / "manifest.jsonl")
    for batch in bucket(clips, 2.0, random.Random(0)):
        assert len({clip.language for clip in batch}) == 1
        assert len(batch) == 1 or max(c.duration_s for c in batch) * len(batch) <= 2.0
    batch_of = bucket_of_step(clips, 2.0, 7)
    first = [batch_of(step) for step in range(40)]
    later = bucket_of_step(clips, 2.0, 7)
    assert [later(step) for step in range(25, 40)] == first[25:]


def test_budgets_are_minutes_and_depend_on_the_seed_alone(corpus):
    clips = read_manifest(corpus / "manifest.jsonl")
    chosen = select(clips, "train", ["en"], minutes=0.05, seed=1)
    assert 0 < sum(c.duration_s for c in chosen) <= 3
    assert chosen == select(clips, "train", ["en"], minutes=0.05, seed=1)
    with pytest.raises(ValueError, match=r"no train clips of 'sr'; it has clips of \['en', 'es', 'fr'\]\. Pass the code"):
        select(clips, "train", ["sr"])


def test_a_language_without_clips_of_a_split_says_what_to_do_and_ends_a_script_without_a_traceback():
    clips = [Clip(Path(f"{i}.wav"), "es", "a", 1.0, "train") for i in range(3)]
    said = (
        "The data has no validation clips of 'es'; its 3 clips are all in train. Mark some as validation in a column split, or name no split at all: "
        "texts are then divided by a hash, a tenth each to validation and test, which may miss a few clips: record more, or mark some."
    )
    with pytest.raises(ValueError, match=re.escape(said)):  # in a notebook
        select(clips, "validation", ["es"])
    with pytest.raises(SystemExit) as ended:  # in a script
        run(lambda: select(clips, "validation", ["es"]))
    assert ended.value.code == said and not isinstance(ended.value, ValueError)
    others = [Clip(Path(f"{code}.wav"), code, "a", 1.0, "validation") for code in ("en", "fr")]
    with pytest.raises(ValueError, match=re.escape(f"{said} Or leave it out: --languages en fr.")):
        select([*clips, *others], "validation", ["en", "es", "fr"])


def test_a_clip_that_no_longer_fits_into_the_minutes_leaves_the_place_to_shorter_ones():
    clips = [Clip(Path(f"{i}.wav"), "en", "a", 50.0 if i == 10 else 5.0, "train") for i in range(11)]
    assert {sum(clip.duration_s for clip in select(clips, "train", ["en"], minutes=1, seed=seed)) for seed in range(20)} == {50.0, 60.0}


def test_another_seed_draws_other_clips_in_other_batches(corpus):
    clips = read_manifest(corpus / "manifest.jsonl")
    chosen = {tuple(c.audio.name for c in select(clips, "train", ["en"], minutes=0.03, seed=seed)) for seed in range(6)}
    assert len(chosen) > 1 and len({frozenset(names) for names in chosen}) > 1
    drawn = {tuple(tuple(c.audio.name for c in bucket_of_step(clips, 2.0, seed)(step)) for step in range(8)) for seed in range(4)}
    assert len(drawn) == 4
    batch_of, count = bucket_of_step(clips, 0.1, seed=0), len(clips)  # each clip alone
    first, second = ([batch_of(step)[0].audio.name for step in range(start, start + count)] for start in (0, count))
    assert first != second and sorted(first) == sorted(second)  # each epoch its own order


@pytest.mark.parametrize("line, message", [
    ('{"audio": "a.wav"', "line 2 is broken"),
    ('{"audio": "a.wav", "language": "en", "duration_s": 1, "split": "train"}', "line 2: empty transcript .*a.wav.*Mend or drop"),
    ('{"audio": "a.wav", "language": "en", "text": "?!", "duration_s": 1, "split": "train"}', "line 2: empty transcript .*a.wav.*Mend or drop"),
])  # fmt: skip
def test_a_broken_manifest_line_is_named_by_its_number(tmp_path, line, message):
    good = '{"audio": "a.wav", "language": "en", "text": "a", "duration_s": 1, "split": "train"}'
    (tmp_path / "a.wav").write_bytes(b"a")
    path = tmp_path / "manifest.jsonl"
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_manifest(path)
    with pytest.raises(FileNotFoundError, match="python -m training.prepare_speech"):
        read_manifest(tmp_path / "none.jsonl")


def test_error_rates_are_of_the_whole_corpus_and_the_macro_counts_languages_once():
    assert error_rates(["abcd", "x"], ["abcd", "y"]) == {"cer": pytest.approx(20.0), "wer": pytest.approx(50.0)}
    assert macro({"a": {"cer": 10, "wer": 20}, "b": {"cer": 30, "wer": 40}}) == {"cer": 20, "wer": 30}
    with pytest.raises(ValueError, match="No clips to score"):
        error_rates([], [])


@pytest.fixture
def a_process_of_its_own():
    """Accelerate keeps one precision a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_model_trained_in_bf16_reads_in_float32_as_the_saved_one_will(corpus, tmp_path, a_process_of_its_own):
    seen = []

    def logits(model):
        with torch.no_grad():
            return model.cpu().eval()(torch.ones(1, 8000), language="en").logits

    def tested(accelerator, model, *_, **__):
        seen.append(logits(model))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "tested", tested)
        saved = run_stage_1(corpus, tmp_path / "again", "--mixed_precision", "bf16")
    assert len(seen) == 4 and all(torch.equal(read, logits(saved)) for read in seen)
