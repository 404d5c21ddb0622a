"""Planners that start from an actor's proposal, an action prior, and evaluate plans with the world model.

The mean of their first Gaussian is the actor's plan (`agents/planning.py` queries the actor); `ARCEM` gets a cost
function of residuals on the actor's actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lewm_gym.controller import Deadline
from lewm_gym.planning.budget import Budgeted
from lewm_gym.planning.cem import CEM, CEMConfig, best
from lewm_gym.planning.icem import ICEM, ICEMConfig
from lewm_gym.planning.mppi import MPPI, MPPIConfig
from lewm_gym.planning.noise import candidates
from lewm_gym.types import Cost, PlanResult


@dataclass(frozen=True)
class ActorConfig(Budgeted):
    """Settings of `ActorPlanner`: none."""

    @property
    def budget(self) -> tuple[int, int]:
        """One plan, once."""
        return 1, 1

    def with_budget(self, candidates: int, iterations: int) -> Self:
        """Returns these settings: there is no search."""
        return self


class ActorPlanner:
    """No search: the plan is the actor's."""

    needs_actor = True
    #: How an agent plans with it unless told otherwise, in place of `PlanningConfig`'s defaults.
    planning_defaults: ClassVar[dict[str, Any]] = {"horizon_blocks": 1, "execute_blocks": 1}

    def __init__(self, config: ActorConfig | None = None) -> None:
        self.config = config or ActorConfig()

    def plan(
        self,
        cost: Cost,
        mean: Tensor,
        std: Tensor,
        generators: list[torch.Generator],
        deadline: float | None = None,
    ) -> PlanResult:
        """Returns the proposal's mean; see `lewm_gym.types.Planner`."""
        nothing = mean.new_zeros(len(mean), 0)
        return PlanResult(mean, nothing, nothing)


@dataclass(frozen=True)
class GuidedConfig(Budgeted):
    """Settings of `Guided`; INTACT's guarded search (arXiv 2607.26056) has 128 samples and std 0.25."""

    n_samples: int = 64  # candidates per iteration, besides the actor's plan and the best so far
    n_elites: int = 16  # best candidates, to which the next proposal is fitted
    n_iterations: int = 3
    std: float = 0.3  # of the first candidates around the actor's plan, in those of the training set's actions
    min_std: float = 0.05  # of later candidates
    max_std: float = 2.0

    def __post_init__(self) -> None:
        self.check_elites("a guided search")
        if not 0 <= self.min_std <= self.std <= self.max_std:
            raise ValueError(
                "a guided search needs 0 <= min_std <= std <= max_std, "
                f"got {self.min_std}, {self.std} and {self.max_std}"
            )


class Guided:
    """CEM around the actor's plan.

    The actor's plan and the best plan so far are candidates in every iteration, the last mean is evaluated as well, and
    the plan of lowest cost is the result: under the model's cost it is never worse than the actor's.
    """

    needs_actor = True
    planning_defaults: ClassVar[dict[str, Any]] = {"horizon_blocks": 10, "execute_blocks": 1}

    def __init__(self, config: GuidedConfig | None = None) -> None:
        self.config = config or GuidedConfig()

    def plan(
        self,
        cost: Cost,
        mean: Tensor,
        std: Tensor,
        generators: list[torch.Generator],
        deadline: float | None = None,
    ) -> PlanResult:
        """Returns the plan found around `mean`, (B, H, A); `std` is not used. See `lewm_gym.types.Planner`."""
        config = self.config
        kept, spread = mean.unsqueeze(1), torch.full_like(mean, config.std)  # the plans that stay candidates
        costs, spreads = [], []
        clock = Deadline(deadline)
        for _ in range(config.n_iterations):
            samples = torch.cat([kept, candidates(generators, config.n_samples, mean, spread)], dim=1)
            elites, values = best(samples, cost(samples), config.n_elites)
            kept = torch.cat([kept[:, :1], elites[:, :1]], dim=1)
            mean, spread = elites.mean(dim=1), elites.std(dim=1).clamp(config.min_std, config.max_std)
            costs.append(values.mean(dim=1))
            spreads.append(spread.flatten(1).mean(dim=1))
            if clock.ends():
                break
        last = torch.cat([kept[:, 1:], mean.unsqueeze(1)], dim=1)
        found = best(last, cost(last), 1)[0][:, 0]
        return PlanResult(found, torch.stack(costs, dim=1), torch.stack(spreads, dim=1))


@dataclass(frozen=True)
class ARCEMConfig(GuidedConfig):
    """Settings of `ARCEM`; FlexiWorld's, standard deviations in units of `scale`."""

    std: float = 1.0
    scale: float = 0.2  # of a residual, in standard deviations of the training set's actions

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale <= 0:
            raise ValueError(f"ARCEM needs scale > 0, got {self.scale}")


class ARCEM(Guided):
    """CEM over residuals: each block is the actor's for the current latent of the rollout, plus scale x residual.

    The actor reacts to the effects of earlier residuals, so perturbed candidates still move to the goal.
    """

    searches_residuals = True
    planning_defaults: ClassVar[dict[str, Any]] = {"horizon_blocks": 10, "execute_blocks": 1, "cost": "closest"}

    def __init__(self, config: ARCEMConfig | None = None) -> None:
        super().__init__(config or ARCEMConfig())


@dataclass(frozen=True)
class FusedConfig(Budgeted):
    """Settings of `Fused`; PRISM's."""

    search: str = "mppi"  # the search: cem, icem or mppi
    n_samples: int = 128
    n_iterations: int = 30
    std: float = 1.0  # of the search's own proposal, whose mean is no action

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise ValueError(f"search must be one of {', '.join(SEARCHES)}, got {self.search!r}")
        if self.std <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        SEARCHES[self.search](self.n_samples, self.n_iterations)  # raises for sizes that the search does not take


class Fused:
    """A search from the product of two Gaussians: its own proposal N(0, std^2) and the actor's N(m_a, s_a^2).

    The product is N(m, s^2) with 1 / s^2 = 1 / std^2 + 1 / s_a^2 and m = s^2 m_a / s_a^2.
    """

    needs_actor = True
    planning_defaults: ClassVar[dict[str, Any]] = {"horizon_blocks": 10, "execute_blocks": 1}

    def __init__(self, config: FusedConfig | None = None) -> None:
        self.config = config or FusedConfig()
        self._search = SEARCHES[self.config.search](self.config.n_samples, self.config.n_iterations)

    def plan(
        self,
        cost: Cost,
        mean: Tensor,
        std: Tensor,
        generators: list[torch.Generator],
        deadline: float | None = None,
    ) -> PlanResult:
        """Returns the plan found from the actor's N(mean, std), each (B, H, A); see `lewm_gym.types.Planner`."""
        own, actor = self.config.std**-2, std.clamp_min(1e-3) ** -2
        return self._search.plan(cost, mean * actor / (own + actor), (own + actor) ** -0.5, generators, deadline)


#: What `Fused` searches with: name -> (samples, iterations) -> planner. MPPI keeps its spread, as in PRISM.
SEARCHES: dict[str, Callable[[int, int], Any]] = {
    "cem": lambda samples, iterations: CEM(CEMConfig(samples, max(2, samples // 10), iterations)),
    "icem": lambda samples, iterations: ICEM(ICEMConfig(samples, max(2, samples // 10), iterations)),
    "mppi": lambda samples, iterations: MPPI(MPPIConfig(samples, iterations, spread_decay=1.0)),
}
