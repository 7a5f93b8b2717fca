"""Writes the tables of README.md, RESULTS.md and COMMANDS.md from the JSON files of finished runs: the tables between their markers.

    python -m benchmarks.tables
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from operator import itemgetter
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

from benchmarks import labels

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "RESULTS.md", "benchmarks/COMMANDS.md")
HOW_TO_RUN = [  # above the commands
    "Check out the command's commit (`-dirty`: and changes that were not committed yet; `gpu.json`: `eb7ba53`) and start the script as `python -m training.NAME`, or `python -m benchmarks.NAME` where that folder has it: several scripts and options are there in these commits alone. A command names what it reads by the names of its time:",
    "",
    "* `data/manifest.jsonl`, `data/audio/`: `training.prepare_speech --out data`. A command of stage 1 without `--languages` trained `en fr it ru cs nl`. `../shared/models/whisper-base`: `openai/whisper-base`. `cache` and the file of `--heard` are written by the runs themselves.",
    "* `./checkpoints/master-asr-whisper-base`: the model in the tree of that commit, but for `6d804ca` that of `9cc61fc`, and for `dbe67ef` in Spanish stage 1 of 4,500 steps, seed 0, cut to half precision, with the dense model beside it as `runs/base_dense`. Newer files hold the model's fingerprint (`base`).",
    "* `runs/NAME/model`: of the command with `--out runs/NAME`. In stage 2 `runs/dense_long` and `runs/dense` are of `stage1_dense_3000.json`, `runs/dense_s0` of `stage1_dense.json`, `runs/nocs6_ready`, `runs/noru6_ready` and `runs/noit6_ready` are `training.compact_checkpoint` of `runs/nocs6_master/model`, `runs/noru6_master/model` and `runs/noit6/model`, `runs/refined` the five-layer model with the languages of `refined_*.json` in it. `dense_text` and names that end in `_fortunes` (200, 900: thousand letters) are the same models and languages, given these sentences by `set_text`.",
    "* `data/fortunes/`, `runs/fortunes/`: `benchmarks.fortunes` (before commit `07a1dab` by hand); `cs_11126.txt`: 11,126 of its Czech sentences. `data/own_again.jsonl`: a copy of the manifest with its languages under other codes (`fr-FR` for `fr`), in the place of which `--refine` came.",
    "* `data/voices_*`: `benchmarks.voices`; how `one` and `many` are made says [RESULTS.md](../RESULTS.md#voices), `two` hears `small big`, `own_voices` and `other_voices` are `--heard small` of commit `9cc61fc`, `voices_one_others_unsaid` holds the clips of `voices_many_others`. `voices_altered_heard`: `benchmarks.altered_voices` of commit `f1b2421`; `voices_synthetic`: `benchmarks.synthetic_voices`.",
]
LAST_STEP = "†"  # behind a figure of validation that is of another kind than the others of its table
CODE = {"trainer"}  # what stands between these is a test's


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def load_if_there(name: str) -> dict | None:
    """Of a seed or a variant that not every row of a table has."""
    return load(name) if (RESULTS / f"{name}.json").exists() else None


def validation_of(run: dict) -> float:
    """Macro CER on validation: of what was tested, or in older files of the last step, before weights were averaged or rounded."""
    return (run.get("validation") or list(run["log"]["validation"].values())[-1])["macro"]["cer"]


def whisper_on(code: str) -> dict | None:
    """CER and WER of Whisper as it is on a new language."""
    runs = [load(name)["test"]["languages"] for name in ("zero_shot_new_languages", "zero_shot_ru", "zero_shot_six")]
    return next((rates[code] for rates in runs if code in rates), None)


def whispers_on(code: str) -> list[tuple[str, dict]]:
    """Whisper as it is on a new language, read greedily and thoroughly: a label and CER and WER of each."""
    rates = [(labels.WHISPER, whisper_on(code)), (labels.THOROUGH, load("zero_shot_thorough")["test"]["languages"].get(code))]
    return [(label, rate) for label, rate in rates if rate]


def whisper_edits(code: str) -> np.ndarray:
    """Whisper's edits and characters of the clips of a new language, `(2, clips)`."""
    return edits_in(whisper_on(code) or {})


def whisper_beside(code: str, runs: list[dict]) -> str:
    """`difference` of Whisper, which has no seeds, from runs of a new language."""
    return difference([{"config": run["config"], "test": {"languages": {code: whisper_on(code)}}} for run in runs], runs) if runs else ""


def rates_of(run: dict) -> tuple[float, float]:
    """Macro CER on validation and on test, %."""
    return validation_of(run), run["test"]["macro"]["cer"]


def with_seeds(name: str) -> list[str]:
    """Names of the files of a run of stage 1: NAME.json of seed 0, and NAME_seed1.json, ... of others that have ended."""
    return [name, *(path.stem for path in sorted(RESULTS.glob(f"{name}_seed*.json")))]


def stage_1_table(chosen: dict[str, str]) -> list[str]:
    """A line a model: the mean over its seeds, and the standard deviation of the macro CERs."""
    lines = [f"| test CER, % | {' | '.join(labels.LANGUAGES)} | macro | macro, validation | mask bits that differ | seeds |", "|---" * 11 + "|"]
    for name, label in chosen.items():
        runs = [load(file) for file in with_seeds(name)]
        rates = [f"{statistics.mean(run['test']['languages'][code]['cer'] for run in runs):.1f}" for code in labels.LANGUAGES]
        macro, validation = spread([run["test"]["macro"]["cer"] for run in runs]), spread([validation_of(run) for run in runs])
        differ = statistics.mean(run["mapping"].get("share_of_mask_bits_in_which_languages_differ", 0) for run in runs)
        lines.append(f"| {label} | {' | '.join(rates)} | {macro} | {validation} | {100 * differ:.1f} % | {len(runs)} |")
    return lines


def stock_row() -> str:
    """Whisper without timestamps, as a line of `stage_1_table`."""
    languages = load("zero_shot")["test"]["languages"]
    rates = [languages[code]["cer"] for code in labels.LANGUAGES]
    return f"| stock Whisper-base, zero-shot, with its decoder, timestamps off | {' | '.join(f'{rate:.1f}' for rate in rates)} | {statistics.mean(rates):.1f} | | | |"


def refined_table() -> list[str]:
    """The five-layer model's languages, each given what preset best owns, beside the model as it is and a dense one of as many steps in all."""
    shipped = [load(f"evaluate_five{of}") for of in ("_validation", "")]
    dense = load("stage1_dense_7500")
    refined = {code: load(f"refined_{code}") for code in labels.LANGUAGES}
    lines = {
        "five layers, preset paper: 3,000 steps": [[run["languages"][code]["cer"] for code in labels.LANGUAGES] for run in shipped],
        "... each language given what preset best owns: 750 steps more a language": [[refined[code][of]["macro"]["cer"] for code in labels.LANGUAGES] for of in ("validation", "test")],
        "one shared dense model, 7,500 steps": [[dense[of]["languages"][code]["cer"] for code in labels.LANGUAGES] for of in ("validation", "test")],
    }
    rows = [
        f"| {label} | {' | '.join(f'{a:.1f} / {b:.1f}' for a, b in zip(*rates))} | {' / '.join(f'{statistics.mean(of):.1f}' for of in rates)} |"
        for label, rates in lines.items()
    ]
    return [f"| CER, %, validation / test | {' | '.join(labels.LANGUAGES)} | macro |", "|---" * (len(labels.LANGUAGES) + 2) + "|", *rows]


def other_voices(name: str | None) -> str:
    """CER / WER on the eleven Czech voices that nobody heard; "" where nothing was measured."""
    if name is None:
        return ""
    run = load(name)
    rates = (run.get("test") or run)["languages"]["cs"]
    return f"{rates['cer']:.1f} / {rates['wer']:.0f}"


def shipped_table(chosen: dict[str, tuple[str, str] | str], others: dict[str, str] | None = None) -> list[str]:
    """CER / WER on test of a model as it can be read, beside Whisper zero-shot.

    Args:
        chosen: by label, the evaluations of test and of validation, or a run of stage 1 that read both with its sentences in mind.
        others: by label, the evaluation on other voices; None: no such column.
    """
    column = "" if others is None else " cs, other voices† |"
    lines = [f"| test CER / WER, % | {' | '.join(labels.LANGUAGES)} | macro | macro, validation |{column}", "|---" * (len(labels.LANGUAGES) + 3 + (others is not None)) + "|"]

    def row(label: str, languages: dict, validation: str) -> str:
        rates = [[languages[code][kind] for code in labels.LANGUAGES] for kind in ("cer", "wer")]
        means = " / ".join(f"{statistics.mean(of):.1f}" for of in rates)
        last = "" if others is None else f" {other_voices(others.get(label))} |"
        return f"| {label} | {' | '.join(f'{cer:.1f} / {wer:.0f}' for cer, wer in zip(*rates))} | {means} | {validation} |{last}"

    for label, files in chosen.items():
        if isinstance(files, str):
            test, validation = (load(files)["with_text"][split] for split in ("test", "validation"))
        else:
            test, validation = map(load, files)
        lines.append(row(label, test["languages"], " / ".join(f"{validation['macro'][kind]:.1f}" for kind in ("cer", "wer"))))
    whispers = ((labels.WHISPER, "zero_shot_six"), (labels.THOROUGH, "zero_shot_thorough"))
    return [*lines, *(row(label, load(name)["test"]["languages"], "") for label, name in whispers)]


def text_table(series: str) -> list[str]:
    """Methods of stage 2, greedy and with the sentences of the ten minutes in mind: the same runs, read twice."""
    title, language, _ = labels.SERIES[series]
    lines = [
        f"| {title} | stored, KB* | of these sentences | greedy: CER, %, validation / test | with its sentences: CER, %, validation / test "
        "| CER above best's, same seeds | WER, %, greedy -> with | seeds |", "|---" * 8 + "|",
    ]  # fmt: skip
    best = [run["with_text"] | {"config": run["config"]} for run in of_method("assembly_best", series)]
    for name, label, runs in methods_of(series):
        read = [run["with_text"] | {"config": run["config"]} for run in runs]
        kilobytes = statistics.mean(run["with_text"]["kilobytes"][language] for run in runs)
        rates = [" / ".join(spread([run[split]["macro"]["cer"] for run in of]) for split in ("validation", "test")) for of in (runs, read)]
        wer = " -> ".join(spread([run["test"]["macro"]["wer"] for run in of]) for of in (runs, read))
        above = "" if name == "assembly_best" else difference(read, best)
        lines.append(f"| {label} | {runs[0]['kilobytes'] + kilobytes:,.0f} | {kilobytes:.0f} | {rates[0]} | {rates[1]} | {above} | {wer} | {len(runs)} |")
    for label, rate in whispers_on(language):
        lines.append(f"| {label} | 0 | 0 | {rate['cer']:.1f} on test | | {whisper_beside(language, best) if label == labels.WHISPER else ''} | {rate['wer']:.1f} | |")
    return lines


def new_language_table(series: str) -> list[str]:
    """Methods of stage 2 at a glance, as README has them: the same runs greedily and with the sentences of the ten minutes in mind, and what the other languages are read with then."""
    columns = ["stored, KB*", "greedy: CER, %, validation / test", "with its sentences: CER, %, validation / test", "WER on test, %, greedy -> with", "seeds", "other languages' CER while it is active, %"]
    title, language, _ = labels.SERIES[series]
    lines = [f"| {' | '.join([title, *columns])} |", "|---" * (len(columns) + 1) + "|"]
    for _, label, runs in methods_of(series):
        rates = [" / ".join(spread([of(run)[split]["macro"]["cer"] for run in runs]) for split in ("validation", "test")) for of in (dict, itemgetter("with_text"))]
        wer = " -> ".join(spread([of(run)["test"]["macro"]["wer"] for run in runs]) for of in (dict, itemgetter("with_text")))
        lines.append(f"| {label} | {runs[0]['kilobytes']:,.0f} | {rates[0]} | {rates[1]} | {wer} | {len(runs)} | {fate_of_others(runs)} |")
    for label, rate in whispers_on(language):
        lines.append(f"| {label} | 0 | {rate['cer']:.1f} on test | | {rate['wer']:.1f} | | as they are |")
    return lines


def languages_table() -> list[str]:
    """What a new language reaches with each of a few methods, in every language that was left out of its base: greedily, as README has it."""
    methods = {"assembly_best": "**`best`**", "assembly_best_taught": "**`best`, taught**", "lora_all": "LoRA on the same layers", "full": "full tuning", "full_taught": "full tuning, taught"}
    lines = [f"| CER, %, validation / test | {' | '.join(methods.values())} | Whisper, greedy |", "|---" * (len(methods) + 2) + "|"]
    for series in ("es6", "cs6", "ru6", "it6"):
        _, language, _ = labels.SERIES[series]
        cells = [language]
        for runs in (of_method(name, series) for name in methods):
            rates = " / ".join(f"{statistics.mean(of_split):.1f}" for of_split in zip(*map(rates_of, runs)))
            cells.append(rates + f" ({len(runs)})" * (len(runs) != 3))
        lines.append(f"| {' | '.join([*cells, '/ {:.1f}'.format(whisper_on(language)['cer'])])} |")
    return lines


def said_table(name: str) -> list[str]:
    """CER on test with and without the clips of which a sentence of the training minutes says three words or more (`benchmarks.said`)."""
    lines = ["| test CER, %, all clips -> without those that are said in training | clips left out | greedy | with its sentences | Whisper on the same clips | seeds |", "|---" * 6 + "|"]
    for method, of in load(name)["methods"].items():
        cells = [" -> ".join(spread([seed[read][which] for seed in of], digits=2) for which in ("all", "others")) for read in ("greedy", "with_text", "whisper")]
        lines.append(f"| {' | '.join([labels.METHODS[method], ', '.join(str(seed['said']) for seed in of), *cells, str(len(of))])} |")
    return lines


def sentences_table() -> list[str]:
    """CER on validation and test by the sentences that a language is read with."""
    codes = [*labels.LANGUAGES, "es"]
    sentences = load("reading")["sentences"]
    lines = [f"| CER, %, validation / test | {' | '.join(codes)} |", "|---" * (len(codes) + 1) + "|"]
    for name, label in labels.SENTENCES.items():
        found = sentences[name]
        cells = [
            " / ".join(f"{found[split]['languages'][code]['cer']:.1f}" for split in ("validation", "test")) if code in found["test"]["languages"] else ""
            for code in codes
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def few_table() -> list[str]:
    """CER / WER on test, seed 0, of Spanish from few minutes: greedy, with the sentences of these minutes, and with another subject's beside them."""
    lines = ["| es, seed 0: CER, %, validation / test (WER on test) | greedy | with the sentences of these minutes | and 200,000 letters of another subject |", "|---|---|---|---|"]
    reading = load("reading_five")
    for name, label in labels.FEW.items():
        run = load(f"estext_assembly_{name}_seed0")
        both = [load(f"fortunes_es_{name}{of}") for of in ("_validation", "")] if name != "best" else [reading["sentences"]["both"][of] for of in ("validation", "test")]
        read = [[of[split]["macro"] for split in ("validation", "test")] for of in (run, run["with_text"])] + [[of["languages"]["es"] for of in both]]
        cells = [f"{validation['cer']:.1f} / {test['cer']:.1f} ({test['wer']:.0f})" for validation, test in read]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def settings_table() -> list[str]:
    """Macro CER on validation and the time of reading, one setting of the reader changed at a time."""
    run = load("reading")
    rows = [("greedy", run["sentences"]["none"]["validation"])]
    for tried in run["settings"]:
        changed = ", ".join(f"`{name}` {value:g}" for name, value in tried["changed"].items())
        rows.append((changed, tried["validation"]))
    lines = [f"| {label} | {rates['macro']['cer']:.2f} | {rates['macro']['wer']:.1f} | {rates['ms_a_second']:.1f} |" for label, rates in rows]
    return ["| seven languages, their own sentences, validation | macro CER, % | macro WER, % | ms a second of speech |", "|---|---|---|---|", *lines]


def over_clips(pairs: list[list[dict]], split: str) -> str:
    """How far the macro CERs of a split lie apart in the mean of the pairs, with the middle 95 % of what other clips would have said (bootstrap
    of the clips of each language, the same for all pairs), and of how many pairs: those whose clips' edits are kept.
    """
    kept = []
    for run, other in pairs:
        rates = [of.get(split, {}).get("languages", {}) for of in (run, other)]
        edits = {code: [edits_in(of.get(code, {})) for of in rates] for code in rates[0]}
        if edits and all(mine.size and mine.shape == theirs.shape for mine, theirs in edits.values()):
            kept.append({code: (mine[0] - theirs[0], mine[1]) for code, (mine, theirs) in edits.items()})
    if not kept:
        return ""
    clips = {code: len(more) for pair in kept for code, (more, _) in pair.items()}
    if any(len(more) != clips[code] for pair in kept for code, (more, _) in pair.items()):
        raise ValueError(f"Pairs of other {split} clips have no mean over clips: compare runs of one corpus.")
    rng = np.random.default_rng(0)

    def apart(chosen: dict[str, np.ndarray]) -> float:
        return statistics.mean(statistics.mean(100 * more[chosen[code]].sum() / characters[chosen[code]].sum() for code, (more, characters) in pair.items()) for pair in kept)

    others = [apart({code: rng.integers(0, count, count) for code, count in clips.items()}) for _ in range(2_000)]
    low, high = np.percentile(others, [2.5, 97.5])
    return f"{apart({code: np.arange(count) for code, count in clips.items()}):+.2f} ({low:+.2f} to {high:+.2f}), {len(kept)}"


def pairs_table() -> list[str]:
    """How far the macro CERs of two models of the same data, steps and seed lie apart, and the mean over all pairs with its standard error:
    once of the runs, once of the clips, which all of them read."""
    runs = {
        label: {steps: pair for steps, name in labels.BUDGETS.items() if all(pair := [load_if_there("stage1_" + name.format(model)) for model in models])}
        for label, models in labels.PAIRS.items()
    }
    budgets = [steps for steps in labels.BUDGETS if any(steps in of for of in runs.values())]
    lines = [
        f"| macro CER, points, validation / test | {' | '.join(budgets)} | mean ± its standard error over runs | mean (95 % over clips), pairs: validation | ... test |",
        "|---" * (len(budgets) + 4) + "|",
    ]
    for label, of in runs.items():
        apart = {steps: [a - b for a, b in zip(*map(rates_of, pair))] for steps, pair in of.items()}
        cells = [f"{apart[steps][0]:+.1f} / {apart[steps][1]:+.1f}" if steps in apart else "" for steps in budgets]
        means = [f"{statistics.mean(points):+.2f}" + (f" ± {statistics.stdev(points) / len(points) ** 0.5:.2f}" if len(points) > 1 else "") for points in zip(*apart.values())]
        lines.append(f"| {' | '.join([label, *cells, ' / '.join(means), *(over_clips(list(of.values()), split) for split in ('validation', 'test'))])} |")
    return lines


def of_method(name: str, series: str) -> list[dict]:
    """The runs of a method, a seed each."""
    return [load(path.stem) for path in sorted(RESULTS.glob(f"{series}_{name}_seed*.json"))]


def methods_of(series: str) -> list[tuple[str, str, list[dict]]]:
    """Name, label and runs of the methods that have run."""
    return [(name, label, runs) for name, label in labels.METHODS.items() if (runs := of_method(name, series))]


def spread(values: list[float], digits: int = 1) -> str:
    """The mean, and with several seeds the standard deviation."""
    return f"{statistics.mean(values):.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def edits_of_clips(run: dict) -> np.ndarray:
    """Edits and characters of the clips of the only language tested, `(2, clips)`."""
    (rates,) = run["test"]["languages"].values()
    return edits_in(rates)


def edits_in(rates: dict) -> np.ndarray:
    """The edits and characters that a language's rates keep of its clips, `(2, clips)`; of size 0 where they keep none."""
    return np.array([[int(n) for n in pair.split("/")] for pair in rates.get("edits", "").split()]).T


def difference(runs: list[dict], others: list[dict]) -> str:
    """How much higher the test CER of `runs` is than that of `others`, seed by seed and clip by clip, with the middle 95 % of what
    other clips would have said (paired bootstrap); "" where they share no seed, kept no edits or heard other clips.
    """
    of_seed = {run["config"]["seed"]: edits_of_clips(run) for run in others}
    pairs = [(edits_of_clips(run), of_seed[run["config"]["seed"]]) for run in runs if run["config"]["seed"] in of_seed]
    if not pairs or any(not mine.size or not theirs.size or not np.array_equal(mine[1], theirs[1]) for mine, theirs in pairs):
        return ""
    more, characters = sum(mine[0] - theirs[0] for mine, theirs in pairs), sum(mine[1] for mine, _ in pairs)

    def points(more, characters, axis=-1):
        return 100 * more.sum(axis) / characters.sum(axis)

    range_ = bootstrap((more, characters), points, paired=True, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return f"{points(more, characters):+.1f} ({range_.low:+.1f} to {range_.high:+.1f})"


def methods_table(series: str) -> list[str]:
    methods = methods_of(series)
    if not methods:
        return []
    title, language, steps = labels.SERIES[series]
    best = of_method("assembly_best", series)
    compared = bool(difference(best, best))
    step_s = {name: f"{timed['step_s']:.2f}" for name, timed in load(steps)["steps"].items()}
    columns = ["trainable", "a step, s", "stored, KB*", "validation CER, %", "CER, %", *(["CER above best's, same seeds"] if compared else []), "WER, %", "seeds", "the languages from before, CER, %"]
    lines = [f"| {' | '.join([title, *columns])} |", "|---" * (len(columns) + 1) + "|"]
    for name, label, runs in methods:
        above = ["" if name == "assembly_best" else difference(runs, best)] if compared else []
        lines.append(f"| {' | '.join([label, *method_row(runs, step_s.get(name, ''), above)])} |")
    for label, rate in whispers_on(language):
        cer, wer = (f"{rate[kind]:.1f}" for kind in ("cer", "wer"))
        beside = [whisper_beside(language, best) if label == labels.WHISPER else ""] if compared else []
        lines.append(f"| {' | '.join([label, '0', '', '0', '', cer, *beside, wer, '', 'as they are'])} |")
    return lines


def across_table() -> list[str]:
    """How many points of macro CER others lie above preset best, on each new language and base, and with how many seeds they do."""
    across = {series: label for series, label in labels.ACROSS.items() if of_method("assembly_best", series)}
    if not across:
        return []
    lines = [f"| CER above best's, points, validation / test | {' | '.join(across.values())} | best ahead, of all seeds |", "|---" * (len(across) + 2) + "|"]
    for name in ("lora_all", "full"):
        cells, ahead = [], []
        for series in across:
            best = {run["config"]["seed"]: run for run in of_method("assembly_best", series)}
            pairs = [(run, best[run["config"]["seed"]]) for run in of_method(name, series) if run["config"]["seed"] in best]
            points = [tuple(a - b for a, b in zip(rates_of(run), rates_of(own))) for run, own in pairs]
            cells.append(" / ".join(f"{statistics.mean(of):+.1f}" for of in zip(*points)))
            ahead += points
        wins = " / ".join(f"{sum(points > 0 for points in of)} of {len(of)}" for of in zip(*ahead))
        lines.append(f"| {labels.METHODS[name]} | {' | '.join(cells)} | {wins} |")
    return lines


def fate_of_base(runs: list[dict]) -> str:
    """What became of W and M, of which older files do not name both fingerprints, or neither."""
    pairs = [(run.get("base"), run.get("base_after")) for run in runs]
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        return "CHANGED"
    return "bit-equal" if all(None not in pair for pair in pairs) else "nothing of theirs trains; not measured"


def fate_of_others(runs: list[dict]) -> str:
    """Macro CER of the languages from before, before -> after; "bit-equal" where nothing that they share has moved."""
    old = [[run[when]["macro"]["cer"] for run in runs] for when in ("old_languages_before", "old_languages_after") if when in runs[0]]
    return " -> ".join(spread(values) for values in old) if old else fate_of_base(runs)


def method_row(runs: list[dict], step_s: str, above: list[str]) -> list[str]:
    last = [validation_of(run) for run in runs]
    cer, wer = ([run["test"]["macro"][kind] for run in runs] for kind in ("cer", "wer"))
    return [f"{runs[0]['trainable']:,}", step_s, f"{runs[0]['kilobytes']:,.0f}", spread(last), spread(cer), *above, spread(wer), str(len(runs)), fate_of_others(runs)]


def tried_table(tried: dict[str, str], steps: str) -> list[str]:
    """A line a run; a mark stands where validation was read in the last step alone, which is not what was tested."""
    lines = [f"| es, 10 minutes, {steps} steps | validation CER, % | test CER, % | training loss at the end |", "|---|---|---|---|"]
    for name, label in tried.items():
        run = load(name)
        validation = f"{validation_of(run):.1f}{'' if run.get('validation') else LAST_STEP}"
        loss = list(run["log"]["loss"].values())[-1]
        lines.append(f"| {label} | {validation} | {run['test']['macro']['cer']:.1f} | {loss:.2f} |")
        if "finetune_test" in run:
            validation = list(run["finetune_log"]["validation"].values())[-1]["macro"]["cer"]
            loss = list(run["finetune_log"]["loss"].values())[-1]
            lines.append(f"| ... then + ft, 300 steps of all weights | {validation:.1f}{LAST_STEP} | {run['finetune_test']['macro']['cer']:.1f} | {loss:.2f} |")
    if any(LAST_STEP in line for line in lines):
        lines += ["", f"{LAST_STEP} of the last step, in the precision of training, before weights were averaged or rounded; without this mark, of what was tested."]
    return lines


def of_minutes(name: str, minutes: int) -> list[dict]:
    """The runs of a method with so many minutes of Spanish, a seed each; ten are the table's."""
    return of_method(name if minutes == 10 else f"{name}_{minutes}min", "es4500")


def minutes_table() -> list[str]:
    """CER on validation and test, a column for each amount of audio."""
    lines = [f"| es, 500 steps (10 minutes: 1,000), on stage 1 of 4,500: CER, %, validation / test | {' | '.join(f'{minutes} min' for minutes in labels.MINUTES)} |", "|---" * (len(labels.MINUTES) + 1) + "|"]
    for name, label in labels.CURVES.items():
        of_each = [of_minutes(name, minutes) for minutes in labels.MINUTES]
        cells = [" / ".join(spread(of) for of in zip(*map(rates_of, runs))) for runs in of_each]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def voices_table() -> list[str]:
    lines = ["| CER, %, 600 steps of cs and nl | cs, voice heard | nl, voice heard | cs, other voices | nl, another voice |", "|---|---|---|---|---|"]
    for name, label in labels.VOICES.items():
        own, others = load(f"voices_{name}"), load(f"voices_{name}_others")
        rates = [of["languages"][code]["cer"] for of in (own["test"], others) for code in ("cs", "nl")]
        lines.append(f"| {label} | {' | '.join(f'{rate:.1f}' for rate in rates)} |")
    return lines


def more_voices_table(chosen: dict[str, str], what: str) -> list[str]:
    lines = [f"| CER, %, cs and nl, {what} | cs, the small fish | nl, the small fish | cs, eleven others, heard by none | seeds |", "|---|---|---|---|---|"]
    for name, label in chosen.items():
        heard, others = ([run for seed in ("", "_seed1") if (run := load_if_there(f"voices_{name}{seed}_{of}"))] for of in ("heard", "others"))
        rates = [[run["languages"][code]["cer"] for run in runs] for runs, code in ((heard, "cs"), (heard, "nl"), (others, "cs"))]
        lines.append(f"| {label} | {' | '.join(spread(of) if of else '' for of in rates)} | {len(others)} |")
    return lines


def more_steps_table() -> list[str]:
    """And Whisper's: its decoder, where it runs away, writes more wrong than was said."""
    others, heard = load("zero_shot_voices"), load("zero_shot_voices_heard")
    cells = [f"{rate['cer']:.1f} ({rate['cer_capped']:.1f})" for rate in (heard["test"]["languages"]["cs"], heard["test"]["languages"]["nl"], others["test"]["languages"]["cs"])]
    whisper = f"| {labels.WHISPER} (where no clip counts for more than all its letters) | {' | '.join(cells)} | |"
    return [*more_voices_table(labels.MORE_STEPS, "as the lines say"), whisper]


def rates_table() -> list[str]:
    lines = ["| es, 10 minutes, 1,000 steps: CER, %, validation / test | seed 0 | seed 1 | seed 2 |", "|---|---|---|---|"]
    for name, label in labels.RATES.items():
        runs = [load_if_there(f"{name}_seed{seed}") for seed in range(3)]
        cells = [" / ".join(f"{rate:.1f}" for rate in rates_of(run)) if run else "" for run in runs]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def halved_table() -> list[str]:
    """Every method at half of its rate, at that rate and at twice as much, seed 0."""
    lines = ["| es, 10 minutes, 1,000 steps, seed 0: CER, %, validation / test | rate | at half of it | at it | at twice as much |", "|---|---|---|---|---|"]
    for method, (half, rate, twice) in labels.HALVED.items():
        tried = f"tried_es6_{method.removeprefix('assembly_')}"
        names = [f"{tried}_{half}_seed0", f"es6_{method}_seed0", f"{tried}_{twice}_seed0"]
        runs = [load_if_there(name) for name in names]
        cells = [" / ".join(f"{rate:.1f}" for rate in rates_of(run)) if run else "" for run in runs]
        lines.append(f"| {labels.METHODS[method]} | {rate} | {' | '.join(cells)} |")
    return lines


def precision_table() -> list[str]:
    rows = [f"| {name} | {row['kilobytes']:,.0f} | {row['validation']['cer']:.2f} | {row['test']['cer']:.2f} |" for name, row in load("precision")["types"].items()]
    return ["| es, preset best, as trained | KB | validation CER, % | test CER, % |", "|---|---|---|---|", *rows]


def masks_table() -> list[str]:
    run = load("masks")
    wanted = {"mask_selection": "at most 3", "assembled_forward": "at most 1.02", "layer_gradient": "below 1", "rule": "at most 0.01", "fingerprint": ""}
    rows = [f"| {name.replace('_', ' ')} | {run[name]['ratio']} | {limit} |" for name, limit in wanted.items()]
    return ["| 1024 x 1024, float32, one thread | ratio | wanted |", "|---|---|---|", *rows]


def row_swap_table() -> list[str]:
    table = load("evaluate_shipped")["row_swap_cer"]
    header = ["| CER, % with the row of | " + " | ".join(table) + " |", "|---" * (len(table) + 1) + "|"]
    return header + [f"| {code} | " + " | ".join(f"{row[other]:.1f}" for other in table) + " |" for code, row in table.items()]


def scale_table() -> list[str]:
    lines = ["| languages | step, s | time | peak memory less their own parameters | their own, MB | start, s | checkpoint, s |", "|---" * 7 + "|"]
    for count, row in load("languages")["languages"].items():
        lines.append(
            f"| {int(count):,} | {row['step_s']:.3f} | x {row['time_ratio']:.3f} | x {row['memory_ratio']:.3f} | {row['own_mb']:.2f} | "
            f"{row['start_s']:.1f} | {row['save_s']:.2f} |"
        )
    return lines


def serving_table() -> list[str]:
    rows = [f"| {labels.REQUESTS.get(name, name)} | {row['ms']:,.0f} | {row['ratio']:.2f} |" for name, row in load("serving")["requests"].items()]
    return ["| a request, seven languages in random order | ms | relative to the plain encoder |", "|---|---|---|", *rows]


def gpu_tables() -> list[str]:
    run = load("gpu")
    rows = [f"| {labels.REQUESTS.get(name, name)} | {row['ms']:.1f} | {row['ratio']:.2f} |" for name, row in run["requests"].items()]
    requests = [f"| a request, seven languages in random order, {run['device']} | ms | relative to the plain encoder |", "|---|---|---|", *rows]
    steps = [f"| {name} | {row['ms']:.1f} | {row['ratio']:.2f} |" for name, row in run["training"].items() if isinstance(row, dict)]
    return [*requests, "", f"| a step of stage 1, {run['training']['batch_s']:.0f} s of audio, bf16 | ms | of the dense model's |", "|---|---|---|", *steps]


def command_lines() -> list[str]:
    """Of every file, in the order of their names, below what has to be known to run one."""
    files = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    return [*HOW_TO_RUN, "", *(f"* `{name}` (commit {run['commit']}): `{run['command']}`" for name, run in files.items() if "command" in run)]


def compact_line() -> list[str]:
    cut, whole = [load(f"evaluate_shipped{of}") for of in ("_validation", "")], load("stage1_master_3000_six")
    rates = [" / ".join(f"{run['macro']['cer']:.2f}" for run in runs) for runs in (cut, (whole["validation"], whole["test"]))]
    return [f"Macro CER on validation / test of the shipped file (fp16; feed-forward weights and specialists in 8 bits): {rates[0]}; before the cut: {rates[1]}."]


def between(text: str, marker: str, lines: list[str]) -> str:
    start, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    head, _, rest = text.partition(start)
    return f"{head}{start}\n" + "\n".join(lines) + f"\n{end}{rest.partition(end)[2]}"


def all_tables() -> dict[str, list[str]]:
    """The lines between each pair of markers."""
    return {
        "shipped": shipped_table(labels.SHIPPED, labels.OTHER_VOICES), "shipped-before": shipped_table(labels.SHIPPED_BEFORE), "compact": compact_line(), "row-swap": row_swap_table(),
        "stage-1": stage_1_table(labels.STAGE_1), "stage-1-parts": stage_1_table(labels.STAGE_1_PARTS), "stage-1-long": stage_1_table(labels.STAGE_1_LONG),
        "stage-1-changed": stage_1_table(labels.STAGE_1_CHANGED), "stage-1-short": stage_1_table(labels.STAGE_1_SHORT),
        "stage-1-choosing": stage_1_table(labels.STAGE_1_CHOOSING), "stage-1-before": [*stage_1_table(labels.STAGE_1_BEFORE), stock_row()], "pairs": pairs_table(), "refined": refined_table(),
        "new-language": new_language_table("es6"), "languages": languages_table(), "methods": methods_table("es6"), "methods-five": methods_table("es"), "methods-2000": methods_table("es2000"), "methods-1500": methods_table("es1500"),
        "methods-4500": methods_table("es4500"), "methods-cs": methods_table("cs"), "methods-cs6": methods_table("cs6"), "methods-ru": methods_table("ru"), "methods-ru6": methods_table("ru6"), "methods-it6": methods_table("it6"), "across": across_table(), "minutes": minutes_table(),
        "text": text_table("es6"), "text-five": text_table("estext"), "text-cs6": text_table("cs6"), "text-ru6": text_table("ru6"), "text-it6": text_table("it6"), "said": said_table("said_es6"), "sentences": sentences_table(), "few": few_table(), "settings": settings_table(),
        "rates": rates_table(), "halved": halved_table(), "tried-3000": tried_table(labels.TRIED_3000, "1,000"), "tried-now": tried_table(labels.TRIED, "1,000"),
        "tried": tried_table(labels.TRIED_IN_STAGE_2, "300"), "tried-long": tried_table(labels.TRIED_LONG, "1,000"), "precision": precision_table(),
        "voices": voices_table(), "more-voices": more_voices_table(labels.MORE_VOICES, "600 steps of 25 minutes each, of so many characters"), "more-steps": more_steps_table(),
        "masks": masks_table(), "serving": serving_table(), "gpu": gpu_tables(), "scale": scale_table(), "commands": command_lines(),
    }  # fmt: skip


def filled(page: str, tables: dict[str, list[str]]) -> str:
    """The text of a page with these tables between its markers.

    Raises:
        ValueError: for a marker that no table has.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    for marker in re.findall(r"^<!-- /(.+) -->$", text, flags=re.MULTILINE):
        if marker in tables:
            text = between(text, marker, tables[marker])
        elif marker not in CODE:
            raise ValueError(f"{page}: <!-- {marker} --> is no table; allowed: {sorted(tables)}.")
    return text


def main(argv=None) -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)  # --help writes nothing
    tables = all_tables()
    for page in PAGES:
        (ROOT / page).write_text(filled(page, tables), encoding="utf-8")
    print(f"Wrote the tables of {', '.join(PAGES)}.")


if __name__ == "__main__":
    main()
