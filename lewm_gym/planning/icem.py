"""iCEM: the cross-entropy method made sample-efficient (arXiv 2008.06389)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lewm_gym.controller import Deadline
from lewm_gym.planning.budget import Budgeted
from lewm_gym.planning.cem import best
from lewm_gym.planning.noise import coloured
from lewm_gym.types import Cost, PlanResult


@dataclass(frozen=True)
class ICEMConfig(Budgeted):
    """Settings of `ICEM`; defaults from the paper where it has one for all tasks."""

    constant_cost: ClassVar[bool] = False

    n_samples: int = 128  # candidates in the first iteration
    n_elites: int = 16  # best candidates, to which the next proposal is fitted
    n_iterations: int = 5
    noise_exponent: float = 2.0  # of 1 / frequency along environment steps; 0 is white
    decay: float = 1.25  # the number of candidates falls by this factor per iteration
    keep_fraction: float = 0.3  # of the elites, among the next iteration's candidates
    momentum: float = 0.1  # weight of the old mean and standard deviation
    steps_per_block: int = 5  # actions in a block, along which the noise is coloured

    def __post_init__(self) -> None:
        self.check_elites("iCEM")
        if not (0 <= self.keep_fraction <= 1 and 0 <= self.momentum < 1 and self.decay >= 1):
            raise ValueError(
                "iCEM needs keep_fraction within [0, 1], momentum within [0, 1) and decay >= 1, "
                f"got {self.keep_fraction}, {self.momentum} and {self.decay}"
            )


class ICEM:
    """CEM with coloured noise, kept elites and ever fewer samples; the result is the best candidate ever seen."""

    def __init__(self, config: ICEMConfig | None = None) -> None:
        self.config = config or ICEMConfig()

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
        kept = mean.unsqueeze(1)  # the mean of the proposal is a candidate at first
        costs, spreads = [], []
        clock = Deadline(deadline)
        for i in range(config.n_iterations):
            count = max(int(config.n_samples * config.decay**-i), 2 * config.n_elites)
            noise = coloured(generators, count, mean, config.noise_exponent, config.steps_per_block)
            samples = torch.cat([kept, mean.unsqueeze(1) + std.unsqueeze(1) * noise], dim=1)
            elites, values = best(samples, cost(samples), config.n_elites)
            kept = elites[:, : max(1, round(config.keep_fraction * config.n_elites))]
            mean = torch.lerp(elites.mean(dim=1), mean, config.momentum)
            std = torch.lerp(elites.std(dim=1), std, config.momentum)
            costs.append(values.mean(dim=1))
            spreads.append(std.flatten(1).mean(dim=1))
            if clock.ends():
                break
        # Kept elites are candidates of every later iteration, so the first of the last elites is the best ever.
        return PlanResult(elites[:, 0], torch.stack(costs, dim=1), torch.stack(spreads, dim=1))
