"""Probing: how well physical quantities can be read off a frozen latent (paper, section 5 and tables 1, 3, 4).

For each quantity of the task a linear map and a small MLP are fitted from the latent of one frame, on episodes apart
from those they are judged on. Targets are standardised by the fitting episodes, so that always answering the mean has
a squared error of 1 and a correlation of 0. The paper does not say how its probes were fitted; ours are:

- linear: ridge regression in closed form on standardised latents, penalty `RIDGE` per frame, far below the data's;
- MLP: two hidden layers of `HIDDEN`, AdamW; of its states over training the one that is best on a tenth of the
  fitting episodes set aside is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.knowledge import pictures
from benchmarks.knowledge.records import Json, Record
from benchmarks.knowledge.statistics import Interval, error_and_correlation
from benchmarks.knowledge.worlds import Progress, divide, encoded, load_worlds, open_dataset
from lewm_gym.data.dataset import Dataset

RIDGE = 1e-4
HIDDEN = 128
#: Quantities in the state that a task's columns lack: task -> name -> place in the state.
IN_STATE: dict[str, dict[str, slice]] = {"cube": {"joint_velocities": slice(21, 27)}}

Groups = list[NDArray[np.float64]]  # one (T, k) per episode


@dataclass(frozen=True)
class Score:
    """How well a probe reads a quantity.

    Attributes:
        mse: Mean squared error on standardised targets, over all test frames; 1 is what the mean achieves.
        mse_std: Standard deviation of the episodes' own errors.
        r: Pearson's correlation, averaged over the quantity's coordinates.
    """

    mse: Interval
    mse_std: float
    r: Interval

    def to_json(self) -> dict[str, Any]:
        """Returns the score for a record."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def measure_probes(
    runs: Sequence[str | Path],
    dataset_folder: str | Path,
    *,
    fit_episodes: int = 200,
    test_episodes: int = 50,
    mlp_steps: int = 1500,
    control: bool = False,
    device: str | None = None,
    out: Path,
    progress: Progress | None = None,
) -> Json:
    """Returns the record of probes on every run, after writing it and its picture.

    Args:
        runs: Run folders of world models of one task.
        dataset_folder: Episodes of that task.
        fit_episodes: How many to fit probes on, at most.
        test_episodes: How many to judge them on, at most, all unseen by every run.
        mlp_steps: Optimiser steps of an MLP probe.
        control: Whether to probe the first run's network with random weights too.
        device: Where to compute.
        out: JSON file; pictures go beside it.
        progress: Called with (stage, done, total).

    Raises:
        ValueError: If runs and dataset do not fit one another, or no episode is left to judge on.
        OSError: If something is missing or cannot be written.
    """
    record = Record("probe")
    worlds = load_worlds(runs, device)
    dataset = open_dataset(dataset_folder, worlds)
    episodes = divide(dataset, worlds, fit_episodes, test_episodes)
    stride = max(world.frame_skip for world in worlds)
    worlds += [worlds[0].control()] if control else []
    chosen = np.concatenate([episodes.fit, episodes.test])
    latents: list[Groups] = [[] for _ in worlds]
    targets: dict[str, Groups] = {name: [] for name in quantity_names(dataset)}
    for done, (index, steps, parts) in enumerate(encoded(dataset, chosen, worlds, stride), 1):
        for groups, world, part in zip(latents, worlds, parts, strict=True):
            groups.append(world.pooled(part).double().numpy())
        for name, values in quantities(dataset, index).items():
            targets[name].append(values[steps].astype(np.float64))
        if progress:
            progress("encode", done, len(chosen))
    judged = [
        {
            **world.describe(),
            "width": int(groups[0].shape[1]),
            "quantities": _judge(groups, targets, len(episodes.fit), mlp_steps, world.title, progress),
        }
        for world, groups in zip(worlds, latents, strict=True)
    ]
    body = {
        "task": dataset.task,
        "dataset": describe_dataset(dataset),
        "fresh_episodes": episodes.fresh,
        "fit_episodes": len(episodes.fit),
        "fit_frames": sum(map(len, latents[0][: len(episodes.fit)])),
        "test_episodes": len(episodes.test),
        "test_frames": sum(map(len, latents[0][len(episodes.fit) :])),
        "stride": stride,
        "mlp_steps": mlp_steps,
        "picture": out.with_suffix(".png").name,
        "models": judged,
    }
    saved = record.save(out, body)
    pictures.draw_probes(saved, out.with_suffix(".png"))
    return saved


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Returns what a record says of a dataset."""
    header = dataset.header
    return {
        "folder": str(dataset.folder),
        "hash": dataset.content_hash,
        "episodes": dataset.n_episodes,
        "seed": header.seed,
        "policy": header.policy,
        "render_quality": header.render_quality,
    }


def quantity_names(dataset: Dataset) -> list[str]:
    """Returns the names of the physical quantities of a dataset, in the order of its columns."""
    columns = dataset.header.columns
    own = [name for name, column in columns.items() if column.role == "quantity"]
    return own + [name for name in IN_STATE.get(dataset.task, {}) if name not in own]


def quantities(dataset: Dataset, index: int) -> dict[str, NDArray[Any]]:
    """Returns the physical quantities of an episode, name -> (T, k)."""
    episode = dataset.episode(index, pixels=False)
    derived = {name: episode.state[:, place] for name, place in IN_STATE.get(dataset.task, {}).items()}
    return {**derived, **episode.quantities}


def _judge(
    latents: Groups, targets: dict[str, Groups], n_fit: int, mlp_steps: int, title: str, progress: Progress | None
) -> dict[str, Any]:
    scores = {}
    for done, (name, values) in enumerate(targets.items(), 1):
        found = probe(latents[:n_fit], values[:n_fit], latents[n_fit:], values[n_fit:], mlp_steps)
        if found is not None:
            linear, mlp = found
            scores[name] = {"size": values[0].shape[1], "linear": linear.to_json(), "mlp": mlp.to_json()}
        if progress:
            progress(f"probe {title}", done, len(targets))
    return scores


def probe(
    fit_latents: Groups, fit_targets: Groups, test_latents: Groups, test_targets: Groups, mlp_steps: int
) -> tuple[Score, Score] | None:
    """Returns the scores of a linear and of an MLP probe, or None for a quantity that does not vary.

    Args:
        fit_latents: (T, Z) of each episode to fit on.
        fit_targets: (T, k) of the same.
        test_latents: (T, Z) of each episode to judge on.
        test_targets: (T, k) of the same.
        mlp_steps: Optimiser steps of the MLP.
    """
    x, y = np.concatenate(fit_latents), np.concatenate(fit_targets)
    varies = y.std(axis=0) > 1e-9 * (1.0 + np.abs(y).max())
    if not varies.any():
        return None
    y = y[:, varies]
    x_scale, y_scale = _Scale.of(x), _Scale.of(y)
    seen = [x_scale(latents) for latents in test_latents]
    true = [y_scale(values[:, varies]) for values in test_targets]
    linear = fit_linear(x_scale(x), y_scale(y))
    n_kept = len(np.concatenate(fit_latents[: -max(1, len(fit_latents) // 10)])) if len(fit_latents) > 1 else len(x)
    mlp = fit_mlp(x_scale(x), y_scale(y), n_kept, mlp_steps)
    return _score(true, [part @ linear for part in seen]), _score(true, [_apply(mlp, part) for part in seen])


def _score(true: Groups, predicted: Groups) -> Score:
    return Score(*error_and_correlation(true, predicted))


@dataclass(frozen=True)
class _Scale:
    """Standardisation by what it was made of; a column that does not vary stays 0."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> _Scale:
        std = values.std(axis=0)
        return cls(values.mean(axis=0), np.where(std > 1e-9, std, 1.0))

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return (values - self.mean) / self.std


def fit_linear(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the weights (Z, k) of ridge regression from standardised x (n, Z) to y (n, k); no intercept is needed."""
    weights: NDArray[Any] = np.linalg.solve(x.T @ x / len(x) + RIDGE * np.eye(x.shape[1]), x.T @ y / len(x))
    return weights


def fit_mlp(x: NDArray[np.float64], y: NDArray[np.float64], n_kept: int, steps: int) -> nn.Module:
    """Returns an MLP from x (n, Z) to y (n, k), the state of its training that is best on rows `n_kept` and on."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mlp = nn.Sequential(
            nn.Linear(x.shape[1], HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, y.shape[1]),
        )
    inputs, targets = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    optimizer = torch.optim.AdamW(mlp.parameters(), lr=2e-3, weight_decay=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best: tuple[float, dict[str, Tensor]] = (float("inf"), {})
    for step in range(steps):
        rows = torch.randint(n_kept, (min(256, n_kept),), generator=generator)
        loss = (mlp(inputs[rows]) - targets[rows]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, steps // 15) == 0 or step + 1 == steps:
            with torch.no_grad():
                error = float((mlp(inputs[n_kept:]) - targets[n_kept:]).square().mean()) if n_kept < len(x) else 0.0
            if error <= best[0]:
                best = error, {name: tensor.clone() for name, tensor in mlp.state_dict().items()}
    mlp.load_state_dict(best[1])
    return mlp


@torch.no_grad()
def _apply(mlp: nn.Module, x: NDArray[np.float64]) -> NDArray[np.float64]:
    predicted: NDArray[np.float64] = mlp(torch.from_numpy(x).float()).double().numpy()
    return predicted
