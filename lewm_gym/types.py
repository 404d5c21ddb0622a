"""The vocabulary: the legend of shapes, and the seams between the packages as protocols.

Legend of shapes, used in every docstring:

    B  batch, or environments       h, w  image height and width, 224 outside the models
    T  frames of a clip             A     one block of actions: frame_skip x action size
    N  context frames               Z     width of a latent
    S  candidate plans (samples)    H     horizon, in blocks

Pixels are uint8, height-width-channel, outside the networks; they become float, channel-first, in one
function on the device (`lewm_gym.nn.images`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import gymnasium
    import torch

#: "pixels" and "goal", each (h, w, 3) uint8, or stacked with a leading environment dimension; where environments are
#: made with proprioception, also "proprioception" and "goal_proprioception", each (k,) float32.
Obs = Mapping[str, NDArray[Any]]
Info = Mapping[str, Any]


class Batch(NamedTuple):
    """Training clips.

    Attributes:
        pixels: (B, T, h, w, 3) uint8 frames, `frame_skip` environment steps apart.
        actions: (B, T - 1, A) float32, the raw actions between consecutive frames; NaN where none was recorded.
    """

    pixels: torch.Tensor
    actions: torch.Tensor


class ProprioceptiveBatch(NamedTuple):
    """Training clips with what the actor sensed of itself.

    Attributes:
        pixels: As in `Batch`.
        actions: As in `Batch`.
        proprioception: (B, T, k) float32, raw.
    """

    pixels: torch.Tensor
    actions: torch.Tensor
    proprioception: torch.Tensor


class BehaviourPolicy(Protocol):
    """What collects a dataset: chooses where an episode begins, what to do in it and when it is over."""

    #: Environment steps after which the collector ends an episode.
    max_steps: int

    def begin(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> tuple[Obs, dict[str, Any]]:
        """Resets `env` to a fresh episode drawn from `rng`, which also serves `act`; returns obs and info."""

    def act(self, info: Info) -> NDArray[np.float32]:
        """Returns the next action, (action_size,), within the environment's bounds."""

    def done(self, info: Info) -> bool:
        """Returns whether the episode is over after the step that gave `info`."""


class Learner(Protocol):
    """What `lewm_gym.training` drives: an `nn.Module` with a loss."""

    def loss(self, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns the scalar to minimise and scalars to log."""

    def after_step(self) -> None:
        """Called after each optimiser step (target networks)."""


class WorldModel(Protocol):
    """What planning needs of a model."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns latents (..., Z) of frames (..., h, w, 3) uint8."""

    def rollout(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Returns predicted latents (B, S, H, Z) from context latents (B, N, Z) and actions (B, S, H, A)."""


#: (B, S, H, A) candidate plans -> (B, S) costs.
Cost = Callable[["torch.Tensor"], "torch.Tensor"]


class PlanResult(NamedTuple):
    """What a planner found.

    Attributes:
        actions: (B, H, A), the plan.
        cost: (B, iterations), mean cost of the elites (or the best) at each iteration.
        spread: (B, iterations), mean standard deviation of the proposal at each iteration.
    """

    actions: torch.Tensor
    cost: torch.Tensor
    spread: torch.Tensor


class Planner(Protocol):
    """Searches for actions of low cost; sees a cost of actions and nothing else."""

    def plan(
        self,
        cost: Cost,
        mean: torch.Tensor,
        std: torch.Tensor,
        generators: list[torch.Generator],
        deadline: float | None = None,
    ) -> PlanResult:
        """Returns the best plan found from the proposal N(mean, std), each (B, H, A).

        Args:
            cost: Cost of candidates; differentiable for gradient planners.
            mean: Initial mean of the proposal.
            std: Initial standard deviation of the proposal.
            generators: One random stream per environment.
            deadline: `time.monotonic()` by which to return the best plan so far, after at least one iteration, or None.
        """


class Agent(Protocol):
    """What benchmarks evaluate; one that is more than that is a `BatchAgent`."""

    def reset(self, seeds: list[int] | None = None) -> None:
        """Forgets plans and buffers; `seeds`, one per environment, start new random streams."""

    def act(self, obs: Obs) -> NDArray[np.float32]:
        """Returns an action (action_size,) for one observation, (B, action_size) for a stacked one."""

    def predict(
        self,
        observation: Obs,
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], Any]:
        """Returns (action, state) in stable-baselines3's form."""


@runtime_checkable
class BatchAgent(Agent, Protocol):
    """An agent that can be told which of its environments continue, and says which frames it needs.

    Any other is fed the last observations of finished environments until the batch is over, and every frame is drawn.
    """

    #: Whether it needs `proprioception` and `goal_proprioception` in observations, too.
    proprioception: bool
    #: Plans made since the start; 0 for one that does not plan.
    plans: int

    def select_envs(self, rows: list[int]) -> None:
        """Continues with these environments only: the observations that follow are theirs, in this order."""

    def needs_frame(self) -> list[bool] | None:
        """Returns for each environment since the last reset whether it will look at the next frame; None: at all."""

    def share_rng(self) -> None:
        """Makes all environments draw from one random stream until the next reset, as the reference's do."""
