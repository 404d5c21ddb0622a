"""The cross-entropy method, as published with LeWM (arXiv 2603.19312, section 4 and its released configuration)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lewm_gym.controller import Deadline
from lewm_gym.planning.budget import Budgeted
from lewm_gym.planning.noise import candidates
from lewm_gym.types import Cost, PlanResult


@dataclass(frozen=True)
class CEMConfig(Budgeted):
    """Settings of `CEM`; the defaults are the paper's for Push-T."""

    n_samples: int = 300  # candidates per iteration, the current mean among them
    n_elites: int = 30  # best candidates, to which the next proposal is fitted
    n_iterations: int = 30  # paper: 30 on Push-T, 10 elsewhere

    def __post_init__(self) -> None:
        self.check_elites("CEM")


class CEM:
    """Samples plans from a Gaussian, keeps the elites, fits the Gaussian to them, and repeats.

    No momentum and no clipping; the current mean is always one of the samples; the result is the mean of the last
    elites.
    """

    def __init__(self, config: CEMConfig | None = None) -> None:
        self.config = config or CEMConfig()

    def plan(
        self,
        cost: Cost,
        mean: Tensor,
        std: Tensor,
        generators: list[torch.Generator],
        deadline: float | None = None,
    ) -> PlanResult:
        """Returns the plan found from the proposal N(mean, std), each (B, H, A); see `lewm_gym.types.Planner`."""
        config = self.config
        costs, spreads = [], []
        clock = Deadline(deadline)
        for _ in range(config.n_iterations):
            samples = candidates(generators, config.n_samples, mean, std)
            elites, elite_values = best(samples, cost(samples), config.n_elites)
            mean, std = elites.mean(dim=1), elites.std(dim=1)
            costs.append(elite_values.mean(dim=1))
            spreads.append(std.flatten(1).mean(dim=1))
            if clock.ends():
                break
        return PlanResult(mean, torch.stack(costs, dim=1), torch.stack(spreads, dim=1))


def best(samples: Tensor, costs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the `count` samples of lowest cost, (B, count, H, A), and their costs, (B, count), ascending.

    A cost that is not a number ranks last.
    """
    values, index = costs.nan_to_num(nan=torch.inf).topk(count, dim=1, largest=False)
    return samples.gather(1, index[..., None, None].expand(-1, -1, *samples.shape[2:])), values
