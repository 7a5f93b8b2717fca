"""The pictures of the tables of methods: error against what has to be kept for one language, and against minutes of its speech.

    python -m benchmarks.frontier
"""

from __future__ import annotations

import argparse

from matplotlib.figure import Figure

from benchmarks.labels import CURVES, MINUTES
from benchmarks.tables import RESULTS, load, methods_of, of_minutes

FRONTIER, FIVE, CURVE = RESULTS / "frontier.png", RESULTS / "frontier_five.png", RESULTS / "minutes.png"
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}  # keeps a label readable over lines
OURS, OTHERS, TODAY = "#1f6f5c", "#777777", "#b5651d"
SHORT = {  # small, taught, lies where small does
    "assembly_paper": "paper", "assembly_small": "small", "assembly_small_taught": "", "assembly_best": "best",
    "assembly_best_taught": "best, taught", "lora_all_taught": "LoRA, taught", "full_taught": "full, taught", "head": "head alone", "lora": "LoRA, attention",
    "lora_all": "LoRA, all layers", "bottleneck": "bottleneck", "mask": "mask tuning", "full": "full tuning",
}  # fmt: skip
PLACES = {  # of labels that would lie on others
    "assembly_paper": {"xytext": (4, 9)}, "bottleneck": {"xytext": (4, 24), "ha": "right"}, "mask": {"xytext": (-9, -11), "ha": "right"},
    "lora_all": {"xytext": (12, -7)}, "assembly_best": {"xytext": (9, 1)}, "assembly_small": {"xytext": (-9, -5), "ha": "right"}, "lora_all_taught": {"xytext": (12, -15)}, "full_taught": {"xytext": (-9, -3), "ha": "right"},
    "assembly_best_taught": {"xytext": (9, -17)},
}  # fmt: skip


def means(series: str, with_text: bool = False) -> dict[str, tuple[float, float, list[float]]]:
    """`{method: (kilobytes, mean CER on test, each seed's)}` of the methods that have run.

    Args:
        series: of runs, as `of_method` takes it.
        with_text: of those read with the sentences of the ten minutes in mind, which count as kilobytes too.
    """
    found = {}
    for name, _, runs in methods_of(series):
        rates = [(run["with_text"] if with_text else run)["test"]["macro"]["cer"] for run in runs]
        text = runs[0]["with_text"]["kilobytes"]["es"] if with_text else 0
        found[name] = runs[0]["kilobytes"] + text, sum(rates) / len(rates), rates
    return found


def whisper_line(axes, at: float = 0.02, above_pt: float = -13) -> None:
    """What a user has today, without any training; its name begins `at` a share of the axis, so many points above the line."""
    cer = load("zero_shot_new_languages")["test"]["languages"]["es"]["cer"]
    axes.axhline(cer, color=TODAY, linewidth=1, linestyle="--", zorder=0)
    axes.annotate("Whisper itself, zero-shot", (at, cer), xycoords=("axes fraction", "data"), xytext=(0, above_pt), textcoords="offset points", fontsize=9, color=TODAY)


def dress(axes, title: str) -> None:
    axes.set_ylabel("CER on test, %")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw_minutes() -> Figure:
    """CER in % against minutes of Spanish (logarithmic), the mean of the seeds, a line a method."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, label), style in zip(CURVES.items(), ({"color": OURS}, {"color": OTHERS, "linestyle": ":"}, {"color": OTHERS})):
        of_each = {minutes: [run["test"]["macro"]["cer"] for run in of_minutes(name, minutes)] for minutes in MINUTES}
        axes.plot([*of_each], [sum(rates) / len(rates) for rates in of_each.values()], marker="o", label=label, **style)
    whisper_line(axes)
    axes.set_xscale("log")
    axes.set_xticks(MINUTES, [str(minutes) for minutes in MINUTES])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes of Spanish, mean of three seeds")
    axes.legend(frameon=False)
    dress(axes, "A new language from little speech")
    return figure


def draw_frontier(series: str = "es6", read: str = "es6", title: str = "Spanish from 10 minutes of speech") -> Figure:
    """CER in % against kilobytes (logarithmic): a method's mean, its seeds as a bar, Master-ASR's presets joined, Whisper zero-shot as a line;
    the same methods once more, runs of the series `read`, as they are read with sentences in mind."""
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()
    points = means(series)
    for name, (kilobytes, cer, rates) in points.items():
        color, place = (OURS, {"xytext": (-7, -13), "ha": "right"}) if name.startswith("assembly") else (OTHERS, {"xytext": (7, 5)})
        place = PLACES.get(name, place)
        axes.plot([kilobytes, kilobytes], [min(rates), max(rates)], color=color, linewidth=1.5, alpha=0.6)
        axes.plot(kilobytes, cer, "o", color=color, markersize=8)
        axes.annotate(SHORT[name] + (" (one seed)" if len(rates) == 1 else ""), (kilobytes, cer), textcoords="offset points", fontsize=9, color=color, bbox=BEHIND, zorder=1, **place)
    with_text = means(read, with_text=True)
    for name, (kilobytes, cer, rates) in with_text.items():
        color = OURS if name.startswith("assembly") else OTHERS
        axes.plot([kilobytes, kilobytes], [min(rates), max(rates)], color=color, linewidth=1.5, alpha=0.6)
        axes.plot(kilobytes, cer, "D", color=color, markerfacecolor="white", markersize=7)
    for of_series in (points, with_text):
        ours = sorted(of_series[name][:2] for name in of_series if name.startswith("assembly") and not name.endswith("taught"))
        if ours:
            axes.plot(*zip(*ours), color=OURS, linewidth=1, zorder=0)
    axes.plot([], [], "o", color=OURS, label="read greedily (a bar: from the best of its seeds to the worst)")
    axes.plot([], [], "D", color=OURS, markerfacecolor="white", label="read with the sentences of the ten minutes in mind")
    axes.legend(frameon=False, fontsize=9)
    whisper_line(axes, at=0.6, above_pt=4)
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.12)
    axes.set_xlabel("kept for the language, KB (ours in 8 bits, as tested; others in 16)")
    dress(axes, title)
    return figure


def draw_five() -> Figure:
    """All methods, on five layers."""
    return draw_frontier("es", "estext", "Spanish from 10 minutes of speech, five layers of the encoder")


def main(argv=None) -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)  # --help writes nothing
    for draw, path in ((draw_frontier, FRONTIER), (draw_five, FIVE), (draw_minutes, CURVE)):
        draw().savefig(path, dpi=140)
        print(f"Wrote {path.relative_to(RESULTS.parent.parent)}.")


if __name__ == "__main__":
    main()
