"""Predicted and real cost: the elites of each iteration of a search, executed.

A search keeps the candidates of lowest cost under the model's prediction. Each is executed from the same start; its
real cost is that of the latent of the last frame. If a model is suited to planning, real costs fall along with
predicted ones; if the planner exploits model error, they do not. The prediction error on recorded actions does not
distinguish the two cases (arXiv 2609.30264).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.planning import terminal_cost
from benchmarks.analysis.statistics import column_json, interval_text
from benchmarks.analysis.worlds import World, load_worlds
from benchmarks.evaluation.runs import planner_of
from benchmarks.options import OnDevice
from benchmarks.report.plots import band
from benchmarks.report.records import Measurement
from benchmarks.report.tables import Cell, Section, Table, task_title
from collect.episodes import make_env
from lewm_gym.commands import Settings, argument, option
from lewm_gym.pairs import Pair, load_shipped, stream_seed
from lewm_gym.planning import PLANNERS
from lewm_gym.plots import Panel, figure_of
from lewm_gym.results import Json, Record

LINES = {"imagined": "imagined", "real": "executed"}
COLUMNS = (*LINES, "regret", "correlation", "reached")


@dataclass(frozen=True, kw_only=True)
class Elites(Measurement, OnDevice):
    """Executes the elites of a search in the environment and compares their real cost with the predicted one."""

    kind = "elites"

    run: Path = argument("run folder of an agent that plans")
    planning: Settings = option(
        {}, "settings of the planner that replace the run's, e.g. --planning planner=cem n_iterations=10"
    )
    offset: int = option(25, "distance from start to goal (environment steps)", least=1)
    n_pairs: int = option(20, "number of pairs, from the first", least=2)
    n_elites: int = option(8, "candidates of lowest cost to execute per iteration", least=2)
    seed: int = option(0, "planner seed", least=0)

    def measure(self, bars: Any) -> Json:
        """Returns imagined and real costs by iteration."""
        (world,) = load_worlds([self.run], self.device)
        agent = planner_of(world.agent, self.run)
        if self.planning:
            agent = agent.with_planning(self.planning)
        planner = agent.planning.planner_name
        if getattr(PLANNERS[planner][0], "searches_residuals", False):
            raise ValueError(f"the planner {planner} searches what is added to an actor's actions: choose another one")
        pairs = load_shipped(str(world.description["task"]), self.offset)
        count = min(self.n_pairs, len(pairs.pairs))
        rows = []
        env: Any = make_env(pairs.task, world.render_quality)
        with contextlib.closing(env):
            for index, pair in enumerate(pairs.pairs[:count]):
                rows.append(self._of_pair(world, agent, env, pair, index))
                bars("execute elites", index + 1, count)
        if any(len(row) != len(rows[0]) for row in rows):
            raise ValueError("the searches had different numbers of iterations: leave out the time limit")
        if not rows[0]:
            raise ValueError(f"the planner {planner} does not search: there are no elites")
        table = np.asarray(rows)  # (pairs, iterations, COLUMNS)
        return {
            **world.describe(),
            "planning": agent.planning.to_json(),
            "pairs": {"offset_steps": self.offset, "count": count, "hash": pairs.content_hash},
            "n_elites": self.n_elites,
            "seed": self.seed,
            **{name: column_json(table[:, :, k]) for k, name in enumerate(COLUMNS)},
        }

    def _of_pair(self, world: World, agent: Any, env: Any, pair: Pair, index: int) -> list[list[float]]:
        """Returns the COLUMNS of each iteration of one search."""
        kept: list[tuple[Tensor, Tensor]] = []

        def keep(actions: Tensor, costs: Tensor) -> None:
            order = costs[0].nan_to_num(nan=torch.inf).argsort()[: self.n_elites]
            kept.append((actions[0, order].cpu(), costs[0, order].cpu()))

        reset = {"state": pair.start_state, "goal_state": pair.goal_state}
        obs, _ = env.reset(options=reset)
        agent.reset([stream_seed(self.seed, index)])
        agent.on_candidates = keep
        steps = {"steps_left": float(self.offset)} if agent.uses_steps_left else {}
        (plan,) = agent.plan({key: obs[key][None] for key in ("pixels", "goal")}, **steps)
        agent.on_candidates = None
        goal = torch.from_numpy(plan.goal)[None]
        searched = kept[: len(plan.cost)]  # what a planner scores after its last iteration is no iteration
        return [self._of_iteration(world, agent, env, reset, goal, *elites) for elites in searched]

    def _of_iteration(
        self, world: World, agent: Any, env: Any, reset: dict[str, Any], goal: Tensor, elites: Tensor, costs: Tensor
    ) -> list[float]:
        frames, reached = zip(*(_executed(agent, env, reset, plan) for plan in elites), strict=True)
        real = terminal_cost(world.encode(np.stack(frames))[None, :, None], goal)[0].double().numpy()
        imagined = costs.double().numpy()
        regret = real[0] - real.min()  # of the candidate that the model likes best
        return [imagined.mean(), real.mean(), regret, rank_correlation(imagined, real), float(np.mean(reached))]

    @staticmethod
    def show(record: Record) -> Section:
        """Returns imagined and real cost of the elites against the iteration."""
        n = len(record["real"]["value"])
        shown = sorted({0, n // 2, n - 1})
        header = ["iteration", "predicted cost", "real cost", "regret", "rank correlation", "goal reached"]
        rows: list[list[Cell]] = [[str(k + 1), *(interval_text(record[name], k, 2) for name in COLUMNS)] for k in shown]
        text = (
            f"The {record['n_elites']} candidates of lowest cost in each iteration of {record['planning']['planner']}, "
            f"executed from the same start, over {record['pairs']['count']} pairs "
            f"{record['pairs']['offset_steps']} steps apart. Costs are squared latent distances to the goal; regret is "
            "the real cost of the candidate with the lowest predicted cost, minus the lowest real cost. "
            "Brackets: 95 % interval, bootstrapped over pairs. The planner exploits model error if the real cost does "
            "not fall with the predicted one."
        )
        steps = list(range(1, n + 1))
        series = [band(label, steps, record[name], colour) for colour, (name, label) in enumerate(LINES.items())]
        panel = Panel(record["title"], series, "iteration of the search", "squared latent distance")
        title = f"Predicted and real cost of elites: {task_title(record['task'])}, {record['title']}"
        return Section(title, [text, Table(header, rows, 1), figure_of("Cost of the elites by iteration.", [panel])])


def rank_correlation(imagined: NDArray[np.float64], real: NDArray[np.float64]) -> float:
    """Returns Spearman's rank correlation of costs (n,); 0 where one of them does not vary."""
    if np.ptp(imagined) == 0 or np.ptp(real) == 0:
        return 0.0
    return float(np.corrcoef(imagined.argsort().argsort(), real.argsort().argsort())[0, 1])


def _executed(agent: Any, env: Any, reset: dict[str, Any], plan: Tensor) -> tuple[NDArray[np.uint8], bool]:
    """Returns the frame in which a plan (H, A), z-scored, ends, and whether the goal was met on the way."""
    actions = agent.model.denormalize_actions(plan.to(agent.device)).cpu().numpy()
    env.reset(options=reset)
    reached = False
    for action in actions.reshape(-1, len(agent.action_low)):
        obs, _, _, _, info = env.step(np.clip(action, agent.action_low, agent.action_high).astype(np.float32))
        reached = reached or bool(info["is_success"])
    return np.asarray(obs["pixels"]), reached
