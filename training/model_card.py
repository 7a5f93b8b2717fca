"""Renders a model's card and its picture of language similarity.

    python -m training.model_card --model checkpoints/master-asr-whisper-base --evaluation benchmarks/results/evaluate_compact.json \
        --facts model_cards/master-asr-whisper-base.json --out model_cards/master-asr-whisper-base

Figures come from the evaluation's JSON, words from --facts, the rest from the model. The card needs matplotlib and scipy (extra `train`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.artisan_master_asr import open_gates

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  after the backend is chosen

TEMPLATE = Path(__file__).parent.parent / "model_cards" / "template.md"
PICTURE = "language_similarity.png"


def gate_differences(model) -> np.ndarray:
    """Share of gates in which each pair of languages differs, `(L, L)`, 0 to 1."""
    rows = [torch.tensor([open_gates(row) for row in model.assemblies[code].mapping]).flatten() for code in model.languages]
    gates = torch.stack(rows).float()  # (L, layers * K)
    return (gates[:, None] != gates[None]).float().mean(-1).numpy()


def draw_similarity(distances: np.ndarray, languages: list[str], path: Path) -> None:
    """A heat map of `distances` `(L, L)`, ordered by the dendrogram beside it."""
    size = max(4.5, 0.45 * len(languages))
    figure, (tree, heat) = plt.subplots(1, 2, figsize=(1.7 * size, size), width_ratios=[1, 2.2], layout="constrained")
    order = list(range(len(languages)))
    if len(languages) > 1:
        leaves = dendrogram(linkage(squareform(distances, checks=False), "average"), orientation="left", ax=tree, no_labels=True,
                            color_threshold=0, above_threshold_color="#444444")  # fmt: skip
        order = leaves["leaves"][::-1]  # the tree counts from the bottom
    tree.set_axis_off()
    image = heat.imshow(100 * distances[np.ix_(order, order)], cmap="viridis_r", vmin=0)
    names = [languages[i] for i in order]
    heat.set_xticks(range(len(names)), names)
    heat.set_yticks(range(len(names)), names)
    if len(names) <= 20:
        middle = image.get_clim()[1] / 2
        for y, first in enumerate(order):
            for x, second in enumerate(order):
                value = 100 * distances[first, second]
                heat.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if value > middle else "black")
    figure.colorbar(image, ax=heat, label="gates that differ, %", shrink=0.85)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def similarity_words(distances: np.ndarray, languages: list[str]) -> str:
    """The closest and the farthest pair, in words."""
    if len(languages) < 2:
        return ""
    pairs = [(distances[a, b], languages[a], languages[b]) for a in range(len(languages)) for b in range(a)]
    (low, *near), (high, *far) = min(pairs), max(pairs)
    return f"Closest: {' and '.join(near)} ({100 * low:.0f} % of gates differ); farthest: {' and '.join(far)} ({100 * high:.0f} %)."


def render(model, evaluation: dict, facts: dict, evaluation_name: str, words: str) -> ModelCard:
    """The card: template, figures, facts, and `model-index` metadata."""
    config = model.config
    results = [
        EvalResult(
            task_type="automatic-speech-recognition", dataset_type="custom", dataset_name=facts["dataset"], dataset_config=code,
            dataset_split=evaluation["split"], metric_type=name, metric_name=name.upper(), metric_value=round(rate[name], 2),
        )
        for code, rate in evaluation["languages"].items() for name in ("cer", "wer")
    ]  # fmt: skip
    data = ModelCardData(
        language=[code.split("-")[0] for code in config.languages], license=facts["license"], library_name="transformers",
        pipeline_tag="automatic-speech-recognition", base_model=config.base_model, tags=["master-asr", "ctc", "multilingual"],
        model_name=facts["title"], eval_results=results,
    )  # fmt: skip
    rows = [{"language": code, "minutes": evaluation["minutes"][code], **rate} for code, rate in evaluation["languages"].items()]
    return ModelCard.from_template(
        data, template_path=str(TEMPLATE), **facts, rows=rows, macro=evaluation["macro"], split=evaluation["split"],
        evaluation_name=evaluation_name, base=config.base_model, languages=", ".join(f"`{code}`" for code in config.languages),
        first_language=config.languages[0], num_specialists=config.num_specialists, sparsity=config.sparsity,
        gate_bits=len(model.master_asr.artisan_layers) * config.num_specialists, similarity_words=words,
    )  # fmt: skip


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--evaluation", required=True, type=Path, help="JSON of training.evaluate")
    parser.add_argument("--facts", required=True, type=Path, help="JSON: title, repo, license, dataset, training_data, limits, licences")
    parser.add_argument("--out", required=True, type=Path, help="folder of README.md and the picture")
    args = parser.parse_args(argv)
    model = MasterASRForCTC.from_pretrained(args.model)
    evaluation = json.loads(args.evaluation.read_text(encoding="utf-8"))
    facts = json.loads(args.facts.read_text(encoding="utf-8"))
    args.out.mkdir(parents=True, exist_ok=True)
    distances = gate_differences(model)
    draw_similarity(distances, model.languages, args.out / PICTURE)
    card = render(model, evaluation, facts, args.evaluation.name, similarity_words(distances, model.languages))
    card.save(args.out / "README.md")
    print(f"Wrote {args.out / 'README.md'} and {args.out / PICTURE}.")
    print(f"Next: python -m training.push_to_hub --model {args.model} --repo OWNER/NAME --card {args.out / 'README.md'}")


if __name__ == "__main__":
    main()
