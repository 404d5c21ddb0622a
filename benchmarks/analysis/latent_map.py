"""A map of the latent space: a grid of positions, rendered, encoded and embedded in the plane (paper, figure 9).

If neighbouring positions are neighbours on the map, the latents preserve the geometry of the room. The layout is t-SNE
where scikit-learn is installed, otherwise the first two principal components; the record says which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.analysis.worlds import load_world
from benchmarks.options import OnDevice
from benchmarks.report.records import Measurement
from benchmarks.report.tables import Section, task_title
from collect.episodes import make_env
from lewm_gym.commands import argument, option
from lewm_gym.plots import Figure
from lewm_gym.results import Json, Record
from lewm_gym.tasks import TASKS

Array = NDArray[np.float64]
CORNERS = np.array([[[0.06, 0.46, 0.43], [0.31, 0.27, 0.90]], [[0.98, 0.75, 0.14], [0.85, 0.12, 0.36]]])  # of colours


@dataclass(frozen=True, kw_only=True)
class LatentMap(Measurement, OnDevice):
    """Renders and encodes a grid of positions and maps the latents to the plane by t-SNE, coloured by position."""

    kind = "tsne"

    run: Path = argument("run folder of a world model")
    side: int = option(10, "cells per side of the grid", least=3)

    def measure(self, bars: Any) -> Json:
        """Returns the layout of the grid's latents.

        Raises:
            ValueError: If the run's task has no grid of states.
        """
        world = load_world(self.run, self.device)
        task = world.description["task"]
        env: Any = make_env(task, world.render_quality)
        env.draw_observations = False
        points = list(possible(env, env.placed_states(self.side)))
        if not points:
            raise ValueError(f"there is no grid of states for {task!r}: its environment has no `placed_states`")
        frames = []
        for done, point in enumerate(points, 1):
            frames.append(env.render_state(point.state))
            bars("draw", done, len(points))
        env.close()
        method, layout = laid_out(world.encode(np.stack(frames)))
        return {
            "task": task,
            "method": method,
            "points": len(points),
            "places": {name: [list(map(float, point.places[name])) for point in points] for name in points[0].places},
            "layout": layout.tolist(),
            "models": [world.describe()],
        }

    @staticmethod
    def show(record: Record) -> Section:
        """Returns the map of the latents."""
        distances = " (t-SNE does not preserve distances)" if record["method"] == "t-SNE" else ""
        title = record["models"][0]["title"]
        text = (
            f"{record['points']} frames on a grid of positions, encoded by {title} and mapped to the plane by "
            f"{record['method']}. Each position has its own colour: if the colours of the map change as smoothly as "
            f"those of the grid, the latents preserve neighbourhoods{distances}."
        )
        places = {name: np.array(values) for name, values in record["places"].items()}
        caption = f"Left: the grid; right: its map. {title}."
        figure = Figure(caption, lambda canvas: _draw(canvas, record, places), max(9.5, 6.4 * len(places)), 4.6)
        return Section(f"Map of the latents: {task_title(record['task'])}", [text, figure])


def _draw(canvas: Any, record: Record, places: dict[str, Array]) -> None:
    """Draws the layout once for each place that points are coloured by, with the colours' key beside it."""
    task, layout = TASKS.get(record["task"]), np.array(record["layout"])
    unit, y_down = (task.env_class().place_unit, task.env_class().place_y_down) if task else ("", False)
    axes = canvas.subplots(1, 2 * len(places), squeeze=False)[0]
    for (name, values), key, axis in zip(places.items(), axes[::2], axes[1::2], strict=True):
        colours = plane_colours(values)
        key.scatter(*values.T, c=colours, s=26, marker="s", linewidths=0)
        key.set(title=f"position of the {name}", xlabel=f"x, {unit}", ylabel=f"y, {unit}", aspect="equal")
        if y_down:
            key.invert_yaxis()
        axis.scatter(*layout.T, c=colours, s=9 if len(layout) < 800 else 4, linewidths=0)
        axis.set(title=f"latents, coloured by the {name}", xticks=[], yticks=[])
        axis.set_aspect("equal", adjustable="datalim")
        axis.grid(visible=False)


def plane_colours(places: Array) -> Array:
    """Returns colours (n, 3) of places (n, 2): one hue along x, another along y, so that each place has its own."""
    unit = (places - places.min(axis=0)) / np.maximum(np.ptp(places, axis=0), 1e-9)
    across, up = unit[:, :1], unit[:, 1:]
    low, high = (CORNERS[side, 0] * (1 - up) + CORNERS[side, 1] * up for side in (0, 1))
    colours: Array = low * (1 - across) + high * across
    return colours


def possible(env: Any, points: Iterable[Any]) -> Iterator[Any]:
    """Yields the points that the task can be in."""
    for point in points:
        try:
            env.check_state(point.state)
        except ValueError:
            continue
        yield point


def laid_out(latents: Tensor) -> tuple[str, Array]:
    """Returns the method's name and the latents (n, Z) laid out in the plane, (n, 2)."""
    values = latents.double().numpy()
    centred = values - values.mean(axis=0)
    principal = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError:
        return "principal components (scikit-learn is not installed)", principal
    perplexity = min(30.0, (len(values) - 1) / 3)
    start = principal / principal[:, 0].std() * 1e-4
    layout: Array = TSNE(2, perplexity=perplexity, init=start, random_state=0).fit_transform(values)
    return "t-SNE", layout
