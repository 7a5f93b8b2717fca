"""The picture of the table of methods: error against what has to be kept for one language.

    python -m benchmarks.frontier
"""

from __future__ import annotations

from matplotlib.figure import Figure

from benchmarks.tables import METHODS, RESULTS, of_method

PICTURE = RESULTS / "frontier.png"


def draw() -> Figure:
    """CER in % against kilobytes (logarithmic), every method a point, Master-ASR's presets joined."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    ours = []
    for name, label in METHODS.items():
        runs = of_method(name)
        if not runs:
            continue
        kilobytes, cer = runs[0]["kilobytes"], sum(run["test"]["macro"]["cer"] for run in runs) / len(runs)
        is_ours = name.startswith("assembly")
        ours += [(kilobytes, cer)] if label.startswith("**") else []  # the presets
        axes.plot(kilobytes, cer, "o", color="#1f6f5c" if is_ours else "#8a8a8a", markersize=9 if is_ours else 7)
        axes.annotate(label.replace("**", ""), (kilobytes, cer), xytext=(8, 5), textcoords="offset points", fontsize=8.5)
    axes.plot(*zip(*sorted(ours)), color="#1f6f5c", linewidth=1, zorder=0) if len(ours) > 1 else None
    axes.set_xscale("log")
    axes.margins(x=0.1, y=0.12)
    axes.set_xlim(right=axes.get_xlim()[1] * 14)  # room for the last label
    axes.set_xlabel("kept for the language, KB")
    axes.set_ylabel("CER on test, %")
    axes.set_title("Spanish from 10 minutes of speech", loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    draw().savefig(PICTURE, dpi=140)
    print(f"Wrote {PICTURE.relative_to(RESULTS.parent.parent)}.")


if __name__ == "__main__":
    main()
