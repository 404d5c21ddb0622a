"""The picture of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lewm_gym.files import atomic_path

#: column of the log -> (title, whether a logarithmic axis reads better)
PANELS = {
    "loss": ("loss", True),
    "prediction": ("prediction loss, mean squared latent error", True),
    "sigreg": ("SIGReg, 1.05 on a perfect Gaussian", True),
    "reconstruction": ("squared error of decoded frames", True),
    "latent_std": ("standard deviation of latents", False),
    "effective_rank": ("effective rank of latents", False),
    "straightness": ("straightness of latent paths", False),
}


def save_curves(rows: Sequence[Mapping[str, float]], path: str | Path, title: str) -> None:
    """Draws losses over training, held-out episodes dotted, into a PNG.

    Args:
        rows: Of a `log.jsonl`.
        path: Where to write.
        title: Heading of the picture.
    """
    from matplotlib.figure import Figure  # without pyplot: a notebook's backend stays the user's

    panels = [name for name in PANELS if any(name in row or f"validation_{name}" in row for row in rows)]
    columns = min(3, len(panels))
    n_rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4 * columns, 3 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, name in zip(axes.flat, panels, strict=False):
        heading, logarithmic = PANELS[name]
        for column, style, label in ((name, "-", "training"), (f"validation_{name}", "o:", "held-out episodes")):
            points = [(row["step"], row[column]) for row in rows if column in row]
            if points:
                axis.plot(*zip(*points, strict=True), style, markersize=3, linewidth=1.2, label=label)
        axis.set(title=heading, xlabel="step", yscale="log" if logarithmic else "linear")
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.suptitle(title)
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, dpi=110)
