"""A map of the latent space: a grid of positions, drawn, encoded and laid out in the plane (paper, figure 9).

Where neighbours in the room lie beside each other on the map, the latent has the room's geometry. The layout is t-SNE
where scikit-learn is installed, otherwise the first two principal components; the record says which.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.knowledge import pictures
from benchmarks.knowledge.records import Json, Record
from benchmarks.knowledge.worlds import Progress, load_world
from collect.episodes import make_env

State = NDArray[np.float64]
Array = NDArray[np.float64]


class Point(NamedTuple):
    """A state of the grid and the places by which it is coloured, name -> (2,)."""

    state: State
    places: dict[str, tuple[float, float]]


def _two_room(side: int, rest: State) -> Iterator[Point]:
    for x in np.linspace(24, 200, 2 * side):
        for y in np.linspace(24, 200, 2 * side):
            yield Point(np.array([x, y]), {"agent": (x, y)})


def _pusht(side: int, rest: State) -> Iterator[Point]:
    middle = max(2, side // 2)
    for block in np.stack(np.meshgrid(*[np.linspace(150, 360, middle)] * 2), -1).reshape(-1, 2):
        for agent in np.stack(np.meshgrid(*[np.linspace(60, 450, side)] * 2), -1).reshape(-1, 2):
            state = np.array([*agent, *block, np.pi / 4, *np.zeros(5)])
            yield Point(state, {"agent": tuple(agent), "block": tuple(block)})


def _cube(side: int, rest: State) -> Iterator[Point]:
    for x in np.linspace(0.3, 0.55, 2 * side):
        for y in np.linspace(-0.3, 0.3, 2 * side):
            state = rest.copy()
            state[14:17], state[17:21], state[21:] = (x, y, 0.02), (1, 0, 0, 0), 0.0
            yield Point(state, {"cube": (x, y)})


def _reacher(side: int, rest: State) -> Iterator[Point]:
    for shoulder in np.linspace(-np.pi, np.pi, 2 * side, endpoint=False):
        for wrist in np.linspace(-2.6, 2.6, side):
            forearm = shoulder + wrist
            reach = float(np.cos(shoulder) + np.cos(forearm)), float(np.sin(shoulder) + np.sin(forearm))
            yield Point(np.array([shoulder, wrist, 0, 0, 0, 0]), {"finger": reach})


#: Task -> (cells along a side, a random state) -> points, of which those that the task cannot be in are left out.
GRIDS: dict[str, Callable[[int, State], Iterator[Point]]] = {
    "two_room": _two_room,
    "pusht": _pusht,
    "cube": _cube,
    "reacher": _reacher,
}


def measure_map(
    run: str | Path,
    *,
    side: int = 10,
    device: str | None = None,
    out: Path,
    progress: Progress | None = None,
) -> Json:
    """Returns the record of a run's latent map, after writing it and its picture.

    Args:
        run: Run folder of a world model of a task in GRIDS.
        side: Cells along a side of the grid, at least 3.
        device: Where to compute.
        out: JSON file; pictures go beside it.
        progress: Called with (stage, done, total).

    Raises:
        ValueError: If there is no grid for the run's task.
        OSError: If something is missing or cannot be written.
    """
    record = Record("latent map")
    world = load_world(run, device)
    task = world.description["task"]
    if task not in GRIDS:
        raise ValueError(f"there is no grid for {task!r}; expected one of: {', '.join(GRIDS)}")
    env: Any = make_env(task, world.render_quality)
    env.draw_observations = False
    points = list(_possible(env, GRIDS[task](side, env.reset(seed=0)[1]["state"])))
    frames = []
    for done, point in enumerate(points, 1):
        frames.append(env.render_state(point.state))
        if progress:
            progress("draw", done, len(points))
    env.close()
    method, layout = laid_out(world.encode(np.stack(frames)))
    body = {
        "task": task,
        "method": method,
        "points": len(points),
        "places": {name: [list(map(float, point.places[name])) for point in points] for name in points[0].places},
        "layout": layout.tolist(),
        "picture": out.with_suffix(".png").name,
        "models": [world.describe()],
    }
    saved = record.save(out, body)
    pictures.draw_map(saved, out.with_suffix(".png"))
    return saved


def _possible(env: Any, points: Iterator[Point]) -> Iterator[Point]:
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
        manifold: Any = importlib.import_module("sklearn.manifold")
    except ModuleNotFoundError:
        return "principal components (scikit-learn is not installed)", principal
    perplexity = min(30.0, (len(values) - 1) / 3)
    start = principal / principal[:, 0].std() * 1e-4
    layout: Array = manifold.TSNE(2, perplexity=perplexity, init=start, random_state=0).fit_transform(values)
    return "t-SNE", layout
