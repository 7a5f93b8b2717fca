"""Pictures of a model's mappings."""

from __future__ import annotations

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from modeling_master_asr.artisan_master_asr import open_gates_of_layers


def gates_of(mapping: torch.Tensor) -> torch.Tensor:
    """Which specialists select a language's masks, `(layers, K)` booleans, of its `(layers, K)` mapping."""
    return torch.tensor(open_gates_of_layers(mapping))


def gate_differences(model) -> np.ndarray:
    """Share of gates in which each pair of languages differs, `(L, L)`, 0 to 1."""
    gates = torch.stack([gates_of(model.assemblies[code].mapping).flatten() for code in model.languages]).float()  # (L, layers * K)
    return torch.cdist(gates, gates, p=1).div(gates.shape[1]).numpy()


def similarity_figure(distances: np.ndarray, languages: list[str]) -> Figure:
    """A heat map of `distances` `(L, L)`, ordered by the dendrogram beside it."""
    size = max(4.5, 0.45 * len(languages))
    figure = Figure(figsize=(1.7 * size, size), layout="constrained")
    tree, heat = figure.subplots(1, 2, width_ratios=[1, 2.2])
    order = list(range(len(languages)))
    if distances.any():  # a tree needs a height: one language alone, or gates all alike, have none
        leaves = dendrogram(linkage(squareform(distances, checks=False), "average"), orientation="left", ax=tree, no_labels=True,
                            color_threshold=0, above_threshold_color="#444444")  # fmt: skip
        order = leaves["leaves"][::-1]  # the tree counts from the bottom
    tree.set_axis_off()
    image = heat.imshow(100 * distances[np.ix_(order, order)], cmap=matplotlib.colormaps["viridis_r"], vmin=0)
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
    return figure
