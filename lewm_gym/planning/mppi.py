"""MPPI: model predictive path integral control, as a search over plans (arXiv 1707.02342)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lewm_gym.controller import Deadline
from lewm_gym.planning.budget import Budgeted
from lewm_gym.planning.noise import candidates
from lewm_gym.types import Cost, PlanResult


@dataclass(frozen=True)
class MPPIConfig(Budgeted):
    """Settings of `MPPI`."""

    n_samples: int = 300  # candidates per iteration, the current mean among them
    n_iterations: int = 10
    temperature: float = 0.1  # of the weights, in standard deviations of an iteration's costs
    spread_decay: float = 0.9  # of the noise per iteration; 1 keeps it, as the original does
    n_proposals: int = 24  # besides them: plans of the model's policy, where it has one (tdmpc2; arXiv 2310.16828)

    def __post_init__(self) -> None:
        if self.n_samples < 2 or self.n_iterations < 1 or self.temperature <= 0 or not 0 < self.spread_decay <= 1:
            raise ValueError(
                "MPPI needs n_samples >= 2, n_iterations >= 1, temperature > 0 and spread_decay within (0, 1], got "
                f"{self.n_samples}, {self.n_iterations}, {self.temperature} and {self.spread_decay}"
            )
        if self.n_proposals < 0:
            raise ValueError(f"MPPI needs n_proposals >= 0, got {self.n_proposals}")


class MPPI:
    """Averages all candidates, weighted by exp(-cost / temperature), and draws new ones around the average.

    Costs are standardised in each iteration, so that one temperature serves every latent space.
    """

    def __init__(self, config: MPPIConfig | None = None) -> None:
        self.config = config or MPPIConfig()

    def plan(
        self,
        cost: Cost,
        mean: Tensor,
        std: Tensor,
        generators: list[torch.Generator],
        deadline: float | None = None,
        proposals: Tensor | None = None,
    ) -> PlanResult:
        """Returns the plan found from the proposal N(mean, std), each (B, H, A); see `lewm_gym.types.Planner`.

        Args:
            cost: As there.
            mean: As there.
            std: As there.
            generators: As there.
            deadline: As there.
            proposals: (B, P, H, A), plans that are candidates in every iteration, besides those drawn; None for none.
        """
        config = self.config
        costs, spreads = [], []
        clock = Deadline(deadline)
        for _ in range(config.n_iterations):
            samples = candidates(generators, config.n_samples, mean, std)
            if proposals is not None:
                samples = torch.cat([samples, proposals], dim=1)
            values = cost(samples)
            finite = torch.isfinite(values)
            usable = torch.where(finite, values, torch.zeros_like(values))
            n = finite.sum(dim=1, keepdim=True).clamp_min(1)
            centre = usable.sum(dim=1, keepdim=True) / n
            scale = (torch.where(finite, usable - centre, 0.0).square().sum(dim=1, keepdim=True) / n).sqrt()
            scores = -(usable - centre) / (config.temperature * scale.clamp_min(1e-12))
            # A cost that is not a number has no weight; if none is, the plan stays as it was.
            scores = torch.where(finite, scores, torch.full_like(scores, -torch.inf))
            scores[:, 0] = torch.where(finite.any(dim=1), scores[:, 0], 0.0)
            weights = scores.softmax(dim=1)
            mean = (weights[..., None, None] * samples).sum(dim=1)
            std = std * config.spread_decay
            costs.append((weights * usable).sum(dim=1))
            spreads.append(std.flatten(1).mean(dim=1))
            if clock.ends():
                break
        return PlanResult(mean, torch.stack(costs, dim=1), torch.stack(spreads, dim=1))
