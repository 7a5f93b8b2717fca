"""Every figure that README says in words is that of a file of `benchmarks/results`: no prose stays behind its runs."""

import re
import statistics
from collections.abc import Callable

import pytest

from benchmarks import labels, tables
from benchmarks.tables import load, load_if_there, of_method, rates_of
from modeling_master_asr import MasterASRConfig

CHECKPOINT = tables.ROOT / "checkpoints/master-asr-whisper-base"
MB_A_KB = 1024 / 1e6  # a KB of the files has 1,024 bytes, an MB of prose 10^6


def macro(name: str, kind: str = "cer") -> float:
    return load(name)["macro"][kind]


def whisper(name: str) -> dict:
    """CER and WER of Whisper as it is: of Spanish, or with "six" the mean of the six languages."""
    languages = load(f"zero_shot_{name}")["test"]["languages"]
    codes = labels.LANGUAGES if name == "six" else ["es"]
    return {kind: statistics.mean(languages[code][kind] for code in codes) for kind in ("cer", "wer")}


def mean(name: str, kind: str = "cer", with_text: bool = False) -> float:
    """Of a method's seeds on Spanish, on test."""
    return statistics.mean((run["with_text"] if with_text else run)["test"]["macro"][kind] for run in of_method(name, "es6"))


def czech() -> list[float]:
    """CER on test with its own sentences in mind, Whisper's, with fortunes beside them, and with recordings without transcripts as well."""
    own, written = ([load(f"cs6_{name}_seed{seed}")["with_text"]["test"]["macro"]["cer"] for seed in (0, 1)] for name in ("assembly_best", "assembly_best_untranscribedtext"))
    fortunes = [macro(f"cs6fortunes_best_seed{seed}_test") for seed in (0, 1)]
    return [statistics.mean(own), tables.whisper_on("cs")["cer"], thorough("cs"), statistics.mean(fortunes), statistics.mean(written)]


def ahead(name: str, series: str = "es6", best: str = "assembly_best") -> list[tuple[float, float]]:
    """How many points `best` is ahead of a method, on validation and test, a pair for each seed that both have."""
    best = {run["config"]["seed"]: rates_of(run) for run in of_method(best, series)}
    return [tuple(a - b for a, b in zip(rates_of(run), best[run["config"]["seed"]])) for run in of_method(name, series) if run["config"]["seed"] in best]


def means(pairs: list[tuple[float, float]]) -> list[float]:
    return [statistics.mean(of) for of in zip(*pairs)]


def kept_with_text(name: str, series: str = "es6") -> float:
    """Kilobytes of a method's file and of the sentences of the ten minutes."""
    return statistics.mean(run["kilobytes"] + run["with_text"]["kilobytes"]["es"] for run in of_method(name, series))


def with_all_sentences() -> float:
    """Megabytes of preset best and of the most sentences that were measured beside it."""
    return (of_method("assembly_best", "es6")[0]["kilobytes"] + load("reading")["sentences"]["both"]["kilobytes"]["es"]) * MB_A_KB


def sentences_of_a_language() -> list[float]:
    kept = load("reading")["sentences"]["its own"]["kilobytes"]
    return [pick(kept[code] for code in labels.LANGUAGES) for pick in (min, max)]


def thorough(code: str) -> float:
    """CER of Whisper with five beams, and again where that fails."""
    return load("zero_shot_thorough")["test"]["languages"][code]["cer"]


def pairs_on_test(label: str, layers: str = "") -> float:
    """The mean over all pairs of runs, or those on "five" or "six" layers: how much lower the first model's CER is."""
    models, found = labels.PAIRS[label], []
    for budget, name in labels.BUDGETS.items():
        if layers and ("six layers" in budget) != (layers == "six"):
            continue
        runs = [load_if_there("stage1_" + name.format(model)) for model in models]
        if all(runs):
            found.append(runs[1]["test"]["macro"]["cer"] - runs[0]["test"]["macro"]["cer"])
    return statistics.mean(found)


def seeds_ahead(method: str) -> list[int]:
    """With how many seeds `best` is ahead of a method on validation, of how many; and on test."""
    points = [pair for series in labels.ACROSS for pair in ahead(method, series)]
    return [count for of in zip(*points) for count in (sum(more > 0 for more in of), len(of))]


def czech_at_twice_the_rate() -> list[float]:
    """How much fewer errors LoRA makes on validation at 2e-3 than at 1e-3, with the same seeds."""
    less = means([[at - twice for at, twice in zip(rates_of(load(f"cs6_lora_all_seed{seed}")), rates_of(load(f"tried_cs6_lora_all_2e-3_seed{seed}")))] for seed in (0, 1)])
    assert abs(less[1]) < 0.1  # on test
    return less[:1]


def said_left_out(read: str) -> float:
    """CER of `best`, or of Whisper, on the Spanish test clips of which no training sentence says a part, in the mean of the seeds."""
    return statistics.mean(seed[read]["others"] for seed in load("said_es6")["methods"]["assembly_best"])


def kept_mb() -> float:
    """Assembled weights of a language, float32."""
    backbone = MasterASRConfig.from_pretrained(CHECKPOINT).backbone_config
    return 4 * backbone.encoder_layers * (4 * backbone.d_model**2 + 2 * backbone.d_model * backbone.encoder_ffn_dim) / 1e6


def voices() -> list[float]:
    capped, rate = (load("zero_shot_voices")["test"]["languages"]["cs"][kind] for kind in ("cer_capped", "cer"))
    seeds = [statistics.mean(load(f"voices_{of}{seed}_others")["languages"]["cs"]["cer"] for seed in ("", "_seed1")) for of in ("six5000", "six5000fortunes900")]
    return [load("voices_unheard_others")["languages"]["cs"]["cer"], *seeds, rate, capped, load("zero_shot_voices_thorough")["test"]["languages"]["cs"]["cer"]]


def fewer(kind: str) -> float:
    return 100 * (1 - macro("evaluate_text", kind) / macro("evaluate_shipped", kind))


def request(name: str, what: str = "ms") -> float:
    return load("serving")["requests"][name][what]


SAID: dict[str, Callable[[], list[float]]] = {  # as README has it, the figures left out: these
    "({:.0f} KB to {:.1f} MB with its sentences, in Latin script)": lambda: [kept_with_text("assembly_paper", "estext"), with_all_sentences()],
    "gives six languages {:.0f} % fewer character errors (CER) and {:.0f} % fewer word errors (WER) on test": lambda: [fewer("cer"), fewer("wer")],
    "The shipped model, {:.0f} MB": lambda: [(CHECKPOINT / "model.safetensors").stat().st_size / 1e6],
    "With sentences of {:.0f} to {:.0f} KB a language": sentences_of_a_language,
    "the model's mean CER is {:.1f} %; Whisper base has {:.1f} % greedily and {:.1f} % with five beams":
        lambda: [macro("evaluate_text"), whisper("six")["cer"], statistics.mean(thorough(code) for code in labels.LANGUAGES)],
    "takes {:.1f} ms a second of speech on one core": lambda: [load("reading")["settings"][0]["validation"]["ms_a_second"]],
    "the encoder {:.0f} ([how]": lambda: [request("plain encoder, one language") * load("serving")["clips"] / load("serving")["audio_s"]],
    "Decoded greedily, `best` has {:.1f} % CER": lambda: [mean("assembly_best")],
    "Whisper, which knows Spanish from thousands of hours, {:.1f} %: level": lambda: [whisper("new_languages")["cer"]],
    "repeat part of a training sentence [{:.1f} % and {:.1f} %]": lambda: [said_left_out(of) for of in ("greedy", "whisper")],
    "With its sentences `best` has {:.1f} %, and about Whisper's WER ({:.1f} % and {:.1f} %)":
        lambda: [mean("assembly_best", with_text=True), mean("assembly_best", "wer", with_text=True), whisper("new_languages")["wer"]],
    "`small`, {:.0f} KB in all, and `best`, {:.0f} KB, both have {:.1f} % CER; LoRA on the same layers as `best`, {:.0f} KB, {:.1f} %":
        lambda: [kept_with_text("assembly_small"), kept_with_text("assembly_best"), mean("assembly_small", with_text=True), kept_with_text("lora_all"), mean("lora_all", with_text=True)],
    "`best` has {:.1f} % CER greedily; with its sentences {:.1f} %, and {:.1f} % WER":
        lambda: [mean("assembly_best_taught"), mean("assembly_best_taught", with_text=True), mean("assembly_best_taught", "wer", with_text=True)],
    "With {:.0f} KB of jokes and quotations": lambda: [load("reading")["sentences"]["of another subject"]["kilobytes"]["es"]],
    "(the best of its seeds) has {:.1f} % CER and {:.0f} % WER": lambda: [load("reading")["sentences"]["both"]["test"]["languages"]["es"][kind] for kind in ("cer", "wer")],
    "has {:.1f} % CER with its own sentences (Whisper: {:.1f} % greedily, {:.1f} % with five beams), {:.1f} % with Czech jokes beside them, and {:.1f} % after self-training on 77 further minutes as well (two seeds)": czech,
    "is {:.2f} points better on test than the dense model and {:.2f} better than one mask for all":
        lambda: [pairs_on_test("a specialist each less dense"), pairs_on_test("a specialist each less one mask")],
    "(mask tuning, {:.0f} KB) serves a new language nearly as well as LoRA on all layers ({:.0f} KB): {:.1f} points behind on validation and {:.1f} on test":
        lambda: [*(of_method(name, "es6")[0]["kilobytes"] for name in ("mask", "lora_all")), *(-points for points in means(ahead("lora_all", best="mask")))],
    "is level with one mask for all ({:.2f} better), and {:.2f} better than the dense model: on five layers {:.2f} (nine pairs), on six {:.2f} (four)":
        lambda: [pairs_on_test("Master-ASR less one mask"), *(pairs_on_test("Master-ASR less dense", layers) for layers in ("", "five", "six"))],
    "gains {:.1f} points on validation and {:.1f} on test over a head alone on the dense model": lambda: means(ahead("head", best="assembly_paper")),
    "on three other bases {:.1f} to {:.1f} points, and {:.1f} to {:.1f} points": lambda: [
        pick(of) for of in zip(*(means(ahead("head", series, "assembly_paper")) for series in ("es", "es4500", "es1500"))) for pick in (min, max)
    ],
    "it is ahead of `best` by {:.1f} points on validation and {:.1f} on test, and behind `best` with a teacher by {:.1f} and {:.1f}":
        lambda: [*(-points for points in means(ahead("full"))), *means(ahead("full", best="assembly_best_taught"))],
    "where both have one, it is ahead by {:.1f} and {:.1f}": lambda: [-points for points in means(ahead("full_taught", best="assembly_best_taught"))],
    "a file of {:.0f} MB and costs the other languages {:.0f} points":
        lambda: [of_method("full", "es6")[0]["kilobytes"] * MB_A_KB, statistics.mean(run["old_languages_after"]["macro"]["cer"] - run["old_languages_before"]["macro"]["cer"] for run in of_method("full", "es6"))],
    "LoRA of rank 8 on attention on validation ({:.1f} % and {:.1f} %) and level on test ({:.1f} % and {:.1f} %), with a sixth of the bytes":
        lambda: [statistics.mean(rates_of(run)[split] for run in of_method(name, "es6")) for split in (0, 1) for name in ("assembly_small", "lora")],
    "it is {:.1f} points behind `best` on validation and {:.1f} ahead on test": lambda: [means(ahead("lora_all"))[0], -means(ahead("lora_all"))[1]],
    "ahead with {} of {} seeds on validation and {} of {} on test ([how far, and where not]": lambda: seeds_ahead("lora_all"),
    "in Czech that rate gains {:.1f} points on validation, and nothing on test: two seeds": czech_at_twice_the_rate,
    "ahead of it with {} of {} seeds on validation and {} of {} on test": lambda: seeds_ahead("full"),
    "a request of three seconds costs it {:.0f} times as much": lambda: [request("Whisper-base with its decoder", "ratio")],
    "For this speed {:.0f} MB of assembled weights": lambda: [kept_mb()],
    "are read with {:.0f} % of the letters wrong by the shipped recipe trained without them; after 81 minutes of thirteen others and 5,000 steps with {:.0f} %, and with all the sentences at hand {:.0f} % (two seeds); Whisper base makes {:.0f} % there greedily, {:.0f} % where no clip counts for more than all its letters, {:.0f} % with five beams":
        voices,
}  # fmt: skip
NOT_MEASURED = {
    "145 MB",  # of Whisper base in half precision
    "95 %",  # a confidence
}
FIGURE = re.compile(r"\d[\d.,]*\d*\s(?:%|KB|MB|ms\b|points?\b)")


def prose() -> str:
    """README without tables, code and addresses, on one line."""
    text = re.sub(r"^(?:\||    |!\[).*$", "", re.sub(r"```.*?```", "", (tables.ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL), flags=re.MULTILINE)
    return " ".join(re.sub(r"\]\([^)]*\)", "]", text).split())


@pytest.mark.parametrize("sentence", SAID)
def test_what_readme_says_in_figures_is_what_the_files_of_the_runs_hold(sentence):
    assert sentence.format(*SAID[sentence]()) in prose()


def test_readme_says_no_figure_that_no_file_is_asked_for():
    left = prose()
    for sentence, figures in SAID.items():
        left = left.replace(sentence.format(*figures()), "")
    assert set(FIGURE.findall(left)) - NOT_MEASURED == set()


def test_the_words_beside_the_figures_have_their_direction():
    best = [run["test"]["macro"]["cer"] for run in of_method("assembly_best", "es6")]
    low, high = map(float, re.search(r"\(([-+.\d]+) to ([-+.\d]+)\)", tables.whisper_beside("es", of_method("assembly_best", "es6"))).groups())
    assert low < 0 < high  # level by these clips
    small, lora, lora_all = (of_method(name, "es6") for name in ("assembly_small", "lora", "lora_all"))
    assert len(small) == len(lora) == 3 and mean("assembly_small") <= mean("lora") < mean("assembly_small") + 0.15  # as many
    assert 5.5 < lora[0]["kilobytes"] / small[0]["kilobytes"] < 6.5 and 0.9 < lora_all[0]["kilobytes"] / of_method("assembly_best", "es6")[0]["kilobytes"] < 1.1
    with_text = [mean(name, with_text=True) for name in ("assembly_small", "assembly_best", "lora", "lora_all", "full")]
    assert max(with_text) - min(with_text) < 0.5  # come together
    assert max(abs(points) for points in means(ahead("mask", best="lora_all"))) <= 0.5  # nearly as
    taught = of_method("assembly_best_taught", "es6")
    assert len(taught) == 3 and mean("full_taught") < mean("assembly_best_taught") < mean("full")  # ahead, behind, ahead again
    assert abs(mean("assembly_small", with_text=True) - mean("assembly_best", with_text=True)) < 0.1  # as many
    assert [run["config"]["seed"] for run in of_method("assembly_best", "es6") if run["test"]["macro"]["cer"] == min(best)] == [0]  # the one that `reading.json` reads
