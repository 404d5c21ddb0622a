"""Probing: how well physical quantities can be predicted from a frozen latent (paper, section 5 and tables 1, 3, 4).

For each quantity of the task a linear map and a small MLP are fitted from the latent of one frame, and evaluated on
other episodes. Targets are standardised by the fitting episodes, so that predicting the mean has a squared error of 1
and a correlation of 0. The paper does not say how its probes were fitted; ours are:

- linear: ridge regression in closed form on standardised latents, penalty `RIDGE` per frame, far below the data's;
- MLP: two hidden layers of `HIDDEN`, AdamW; the state over training that is best on a tenth of the fitting
  episodes, set aside, is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.analysis.statistics import Score, error_and_correlation
from benchmarks.analysis.worlds import describe_dataset, divide, encoded, load_worlds, open_dataset
from benchmarks.options import OnDevice
from benchmarks.report.published import probes, sentence
from benchmarks.report.records import Measurement
from benchmarks.report.tables import Cell, Mark, Section, Table, task_title, theirs
from lewm_gym.commands import argument, option
from lewm_gym.data.dataset import Dataset
from lewm_gym.plots import QUIET, Figure, colour_of
from lewm_gym.results import Json, Record
from lewm_gym.tasks import TASKS

RIDGE = 1e-4
HIDDEN = 128
ROUNDED_TO_ZERO = 5e-4  # where an error published as 0.000 stands on a logarithmic axis: the most that it can be

Groups = list[NDArray[np.float64]]  # one (T, k) per episode


@dataclass(frozen=True, kw_only=True)
class Probe(Measurement, OnDevice):
    """Fits linear and MLP probes from frozen latents to each physical quantity of the task and evaluates them on
    held-out episodes: squared error and Pearson's r, with the paper's values.
    """  # noqa: D205

    kind = "probe"

    runs: tuple[Path, ...] = argument("run folders of world models of one task")
    dataset: Path = argument("folder that `python -m collect` wrote")
    fit_episodes: int = option(200, "episodes to fit probes on, at most", least=1)
    episodes: int = option(50, "episodes to evaluate probes on, at most", least=1)
    steps: int = option(1500, "optimiser steps of an MLP probe", least=1)
    control: bool = option(False, "also probe the first run's network with random weights")

    def measure(self, bars: Any) -> Json:
        """Returns the scores of every run on every quantity."""
        worlds = load_worlds(self.runs, self.device)
        dataset = open_dataset(self.dataset, worlds)
        episodes = divide(dataset, worlds, self.fit_episodes, self.episodes)
        stride = max(world.frame_skip for world in worlds)
        worlds += [worlds[0].control()] if self.control else []
        chosen = np.concatenate([episodes.fit, episodes.test])
        latents: list[Groups] = [[] for _ in worlds]
        targets: dict[str, Groups] = {}
        for done, (index, steps, parts) in enumerate(encoded(dataset, chosen, worlds, stride), 1):
            for groups, world, part in zip(latents, worlds, parts, strict=True):
                groups.append(world.pooled(part).double().numpy())
            for name, values in quantities(dataset, index).items():
                targets.setdefault(name, []).append(values[steps].astype(np.float64))
            bars("encode", done, len(chosen))
        n_fit = len(episodes.fit)
        models = []
        for world, groups in zip(worlds, latents, strict=True):
            found: Json = {}
            for done, (name, true) in enumerate(targets.items(), 1):
                scores = probe(groups[:n_fit], true[:n_fit], groups[n_fit:], true[n_fit:], self.steps)
                if scores is not None:
                    linear, mlp = (score._asdict() for score in scores)
                    found[name] = {"size": true[0].shape[1], "linear": linear, "mlp": mlp}
                bars(f"probe {world.title}", done, len(targets))
            models.append({**world.describe(), "width": int(groups[0].shape[1]), "quantities": found})
        return {
            "task": dataset.task,
            "dataset": describe_dataset(dataset),
            "fresh_episodes": episodes.fresh,
            "fit_episodes": n_fit,
            "fit_frames": sum(map(len, latents[0][:n_fit])),
            "test_episodes": len(episodes.test),
            "test_frames": sum(map(len, latents[0][n_fit:])),
            "stride": stride,
            "mlp_steps": self.steps,
            "models": models,
        }

    @staticmethod
    def show(record: Record) -> Section:
        """Returns a row per quantity and model, the paper's LeWM in italics."""
        known, models = probes(record["task"]), record["models"]
        names = list(dict.fromkeys(name for model in models for name in model["quantities"]))
        rows: list[list[Cell]] = []
        for name in names:
            label = name.replace("_", " ")
            for model in (model for model in models if name in model["quantities"]):
                rows.append([label, model["title"], *_cells(model["quantities"][name])])
            if name in known:
                rows.append([label, Mark("LeWM in the paper", "theirs"), *(theirs(v, ".3f") for v in known[name])])
        text = (
            f"Predicted from the latent of one frame by a linear map and by an MLP, fitted on {record['fit_episodes']} "
            f"episodes and evaluated on {record['test_frames']:,} frames of {record['test_episodes']} others, which "
            "were not used for training. Targets are standardised: predicting the mean has an error of 1. ± is the "
            "standard deviation of the errors over episodes; brackets: 95 % interval of r, bootstrapped over "
            f"episodes. A single frame does not show velocities. The paper: {sentence('source')}."
        )
        header = ["quantity", "model", "linear MSE", "linear r", "MLP MSE", "MLP r"]
        title = f"Probing: {task_title(record['task'])}"
        return Section(title, [text, Table(header, rows, words=2), _figure(title, names, models, known)])


def _cells(scores: Json) -> list[str]:
    cells = []
    for score in (scores["linear"], scores["mlp"]):
        cells += [f"{score['mse'][0]:.3f} ± {score['mse_std']:.3f}", "{:.3f} [{:.3f}, {:.3f}]".format(*score["r"])]
    return cells


def _figure(title: str, names: list[str], models: list[Json], known: dict[str, Any]) -> Figure:
    """Returns correlation and error of every probe, the paper's beside them (crosses)."""

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        dots = [(number, model, probe) for number, model in enumerate(models) for probe in ("linear", "mlp")]
        for axis, key, place in zip(axes, ("r", "mse"), (1, 0), strict=True):
            for row, name in enumerate(names):
                for place_of, (number, model, probe) in enumerate(dots):
                    if name in model["quantities"]:
                        value, low, high = model["quantities"][name][probe][key]
                        at, colour = row + 0.66 * ((place_of + 0.5) / len(dots) - 0.5), colour_of(number)
                        label = None if row else f"{model['title']}, {probe}"
                        axis.plot((low, high), (at, at), color=colour, linewidth=1.4)
                        face = colour if probe == "mlp" else "white"
                        axis.plot(value, at, "o", markerfacecolor=face, color=colour, label=label)
                for published, marker, probe in zip(
                    known.get(name, ())[place::2], "x+", ("linear", "MLP"), strict=False
                ):
                    if published is not None:
                        at_least = max(published, ROUNDED_TO_ZERO) if key == "mse" else published
                        label = None if row else f"the paper's LeWM, {probe}"
                        axis.plot(at_least, row + 0.42, marker, color=QUIET, label=label)
            axis.grid(axis="y", visible=False)
        axes[0].set(xlabel="Pearson's correlation r", yticks=range(len(names)), ylim=(len(names) - 0.4, -0.6))
        axes[0].set_yticklabels([name.replace("_", " ") for name in names])
        axes[1].axvline(1.0, color=QUIET, linewidth=0.8, linestyle=":")
        axes[1].set(xscale="log", xlabel="mean squared error on standardised targets (log scale);\nthe mean has 1")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)

    caption = f"{title}: probes of frozen latents. An error published as 0.000 stands at {ROUNDED_TO_ZERO:g}."
    return Figure(caption, draw, 9.5, 1.6 + len(names) * (0.28 + 0.2 * len(models)))


def quantities(dataset: Dataset, index: int) -> dict[str, NDArray[Any]]:
    """Returns the physical quantities of an episode, name -> (T, k): its columns, then those in its states alone."""
    episode = dataset.episode(index, pixels=False)
    places = TASKS[dataset.task].env_class().derived_quantities if dataset.task in TASKS else {}
    derived = {name: episode.state[:, place] for name, place in places.items() if name not in episode.quantities}
    return {**episode.quantities, **derived}


def probe(
    fit_latents: Groups, fit_targets: Groups, test_latents: Groups, test_targets: Groups, mlp_steps: int
) -> tuple[Score, Score] | None:
    """Returns the scores of a linear and of an MLP probe, or None for a quantity that does not vary.

    Latents are (T, Z) and targets (T, k) of each episode, to fit on and to judge on.
    """
    x, y = np.concatenate(fit_latents), np.concatenate(fit_targets)
    varies = y.std(axis=0) > 1e-9 * (1.0 + np.abs(y).max())
    if not varies.any():
        return None
    y = y[:, varies]
    of_x, of_y = standardisation(x), standardisation(y)
    x, y = of_x(x), of_y(y)
    seen, true = [of_x(latents) for latents in test_latents], [of_y(values[:, varies]) for values in test_targets]
    linear = fit_linear(x, y)
    n_kept = sum(map(len, fit_latents[: -max(1, len(fit_latents) // 10)])) or len(x)
    mlp = fit_mlp(x, y, n_kept, mlp_steps)
    predicted = ([part @ linear for part in seen], [_apply(mlp, part) for part in seen])
    return error_and_correlation(true, predicted[0]), error_and_correlation(true, predicted[1])


def standardisation(values: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Returns the standardisation by some values; a column that does not vary stays 0."""
    mean, std = values.mean(axis=0), values.std(axis=0)
    return lambda other: (other - mean) / np.where(std > 1e-9, std, 1.0)


def fit_linear(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the weights (Z, k) of ridge regression from standardised x (n, Z) to y (n, k); no intercept is needed."""
    weights: NDArray[Any] = np.linalg.solve(x.T @ x / len(x) + RIDGE * np.eye(x.shape[1]), x.T @ y / len(x))
    return weights


def fit_mlp(x: NDArray[np.float64], y: NDArray[np.float64], n_kept: int, steps: int) -> nn.Module:
    """Returns an MLP from x (n, Z) to y (n, k), the state of its training that is best on rows `n_kept` and on."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = [nn.Linear(x.shape[1], HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU()]
        mlp = nn.Sequential(*hidden, nn.Linear(HIDDEN, y.shape[1]))
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
