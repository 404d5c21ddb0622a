"""The budget of a search: candidates per iteration, and iterations; the same for all planners."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

CANDIDATES_PER_ELITE = 10  # as in the paper: 300 candidates, 30 elites
FEWEST_ELITES = 4


class Budgeted:
    """What the configurations of planners share.

    A planner that does not search returns itself from `with_budget`. `constant_cost` is False if iterations
    differ in cost: its cost cannot be extrapolated from fewer iterations.
    """

    candidates_name: ClassVar[str] = "n_samples"
    constant_cost: ClassVar[bool] = True

    @property
    def budget(self) -> tuple[int, int]:
        """Candidates per iteration, and iterations."""
        values: Any = self
        return getattr(values, self.candidates_name), values.n_iterations

    def with_budget(self, candidates: int, iterations: int) -> Self:
        """Returns these settings with another budget; elites are a tenth of the candidates, at least 4 if possible."""
        changes = {self.candidates_name: candidates, "n_iterations": iterations}
        if hasattr(self, "n_elites"):
            changes["n_elites"] = min(candidates, max(FEWEST_ELITES, candidates // CANDIDATES_PER_ELITE))
        changed: Self = dataclasses.replace(self, **changes)  # type: ignore[type-var]  # subclasses are dataclasses
        return changed

    def check_elites(self, title: str) -> None:
        """Raises ValueError if there are too few elites to fit a Gaussian, or no iteration."""
        values: Any = self
        if not 2 <= values.n_elites <= values.n_samples or values.n_iterations < 1:
            raise ValueError(
                f"{title} needs 2 <= n_elites <= n_samples and n_iterations >= 1, "
                f"got {values.n_elites}, {values.n_samples} and {values.n_iterations}"
            )
