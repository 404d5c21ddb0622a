"""A description of a dataset, as Markdown: its recipe, lengths, sizes, success, and the statistics of every column."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lewm_gym.data.dataset import Dataset


def describe(dataset: Dataset) -> str:
    """Returns the statistics of a dataset: a list of facts, and a table with a line per coordinate of each column.

    The last action of an episode, which is NaN, is ignored.
    """
    header, lengths = dataset.header, dataset.lengths
    success = np.split(dataset.column("success"), dataset.starts[1:-1])
    file_bytes = sum(shard.bytes for shard in dataset.manifest.shards)
    sizes = f"{file_bytes / 1e6:,.1f} MB, {file_bytes / dataset.n_frames:,.0f} bytes per frame"
    if dataset.has_pixels:
        sizes += f", of which pixels {dataset.pixel_bytes / dataset.n_frames:,.0f}"
        if dataset.picture_every != 1:
            sizes += (
                f"; a picture every {dataset.picture_every} frames, {dataset.n_pictures:,} in all, "
                f"{dataset.pixel_bytes / dataset.n_pictures:,.0f} bytes each"
            )
    facts = [
        f"task {dataset.task}, policy {header.policy}, noise {header.noise}, seed {header.seed}",
        f"{dataset.n_episodes:,} episodes, {dataset.n_frames:,} frames; length mean {lengths.mean():.1f}, "
        f"std {lengths.std():.1f}, {lengths.min()} to {lengths.max()}",
        f"episodes with a success {_percent(s.any() for s in success)}, at their last frame "
        f"{_percent(s[-1] for s in success)}",
        sizes,
        f"content {dataset.content_hash}",
    ]
    lines = ["| column | unit | mean | std | min | max |", "|---|---|---|---|---|---|"]
    for name, column in header.columns.items():
        if name == "success":
            continue
        values = dataset.column(name)
        values = values[~np.isnan(values).any(axis=1)]
        for i in range(column.size):
            label = f"{name} {i}" if column.size > 1 else name
            x = values[:, i].astype(np.float64)
            numbers = [f"{number:.4g}" for number in (x.mean(), x.std(), x.min(), x.max())]
            lines.append(f"| {label} | {column.units} | {' | '.join(numbers)} |")
    return "\n".join([*(f"- {fact}" for fact in facts), "", *lines])


def _percent(flags: Iterable[np.bool_]) -> str:
    return f"{100 * np.mean(list(flags)):.1f} %"
