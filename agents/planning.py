"""Agents that plan with a world model: encode, search for actions, act; shared by LeWM, PLDM, DINO-WM and TD-MPC2."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.devices import choose_device
from agents.proposals import Unrolled, unroll
from agents.trainable import Trainable, of_description
from lewm_gym.agent import Agent
from lewm_gym.controller import Reply, Request
from lewm_gym.planning import PLANNERS, CEMConfig, RecedingHorizon
from lewm_gym.planning.graphs import Graphs
from lewm_gym.planning.noise import candidates
from lewm_gym.planning.threads import suited_threads
from lewm_gym.types import Cost, Obs, PlanResult


def terminal_cost(predicted: Tensor, goal: Tensor) -> Tensor:
    """Returns the squared distance of the last predicted latent to the goal's (paper), (B, S)."""
    return (predicted[:, :, -1] - goal.unsqueeze(1)).square().sum(dim=-1)


def sum_cost(predicted: Tensor, goal: Tensor) -> Tensor:
    """Returns the squared distance to the goal summed over all predicted latents, (B, S): prefers early arrival."""
    return (predicted - goal[:, None, None]).square().sum(dim=(-2, -1))


def closest_cost(predicted: Tensor, goal: Tensor) -> Tensor:
    """Returns the minimum over predicted latents of the squared distance to the goal's, (B, S)."""
    return (predicted - goal[:, None, None]).square().sum(dim=-1).amin(dim=-1)


#: (predicted latents (B, S, H, Z), goal latent (B, Z)) -> (B, S)
LatentCost = Callable[[Tensor, Tensor], Tensor]
COSTS: dict[str, LatentCost] = {"terminal": terminal_cost, "sum": sum_cost, "closest": closest_cost}
#: The cost of a model with rewards: minus the return that it predicts, the value of a plan's end included.
RETURN = "return"
PRECISIONS = ("float32", "bf16")


#: Called with the z-scored candidates (B, S, H, A) of each iteration of a search, and their costs (B, S).
OnCandidates = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class PlanningConfig:
    """How an agent plans; the defaults are the paper's."""

    search: Any = field(default_factory=CEMConfig)  # settings of the planner, one of the PLANNERS' configurations
    horizon_blocks: int = 5  # H; planners with an actor plan as many blocks as there are steps left, at most these
    execute_blocks: int = 5  # blocks taken before the next plan
    cost: str = "terminal"  # one of COSTS, or `return`, minus the return predicted by a model with rewards (tdmpc2)
    # added to the cost: squared distance of the last predicted latent to what the last but two blocks predict from
    # the latent after the first two (Fast-LeWM), which tells apart plans whose prediction holds together
    consistency_weight: float = 0.0
    clip_actions: bool = False  # paper: False, candidates may leave the bounds, which hold at the environment's edge
    warm_start: bool = False  # paper: False; begin the search at what is left of the previous plan
    context_frames: int = 1  # paper: 1; up to the model's context, with the actions taken between them
    precision: str = "float32"  # of the rollout's matrix products, one of PRECISIONS; latents and costs are float32
    cuda_graph: bool = False  # on a GPU: replay a search's costs as one CUDA graph; not for planners by gradient
    least_steps_left: int = 5  # planners with an actor: it is never told that fewer steps are left

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, not {self.precision!r}")
        if self.cost not in (*COSTS, RETURN):
            raise ValueError(f"cost must be one of {(*COSTS, RETURN)}, not {self.cost!r}")
        if not 1 <= self.execute_blocks <= self.horizon_blocks:
            raise ValueError(
                f"execute_blocks must be within 1..horizon_blocks ({self.horizon_blocks}), got {self.execute_blocks}"
            )
        if not 0 <= self.consistency_weight < math.inf:
            raise ValueError(f"consistency_weight must not be negative, nor infinite, got {self.consistency_weight}")
        for name in ("context_frames", "least_steps_left"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        planner = PLANNERS[self.planner_name][0]  # raises for settings of no planner
        if self.cuda_graph and getattr(planner, "needs_gradient", False):
            raise ValueError(f"cuda_graph cannot be used with the planner {self.planner_name}: it needs gradients")
        if self.cuda_graph and getattr(planner, "searches_residuals", False):
            raise ValueError(
                f"cuda_graph cannot be used with the planner {self.planner_name}: its rollouts query the actor"
            )

    @property
    def needs_actor(self) -> bool:
        """Whether the planner starts from an actor's proposal."""
        return bool(getattr(PLANNERS[self.planner_name][0], "needs_actor", False))

    @property
    def planner_name(self) -> str:
        """Name in PLANNERS of the planner that `search` configures."""
        for name, (_, config) in PLANNERS.items():
            if type(self.search) is config:
                return name
        raise ValueError(f"search must be the configuration of a planner ({', '.join(PLANNERS)}), got {self.search!r}")

    def changed(self, settings: Mapping[str, Any]) -> PlanningConfig:
        """Returns a copy with changed settings.

        Args:
            settings: Fields of this or of the planner's configuration (`n_samples`, ...); `planner` selects another
                planner, whose defaults apply, some of them for fields of this class (`Guided.planning_defaults`).

        Raises:
            ValueError: If a name is unknown or a value has the wrong type.
        """
        own = {f.name for f in dataclasses.fields(self)} - {"search"}
        search = self.search
        if "planner" in settings:
            if settings["planner"] not in PLANNERS:
                raise ValueError(f"unknown planner {settings['planner']!r}; expected one of: {', '.join(PLANNERS)}")
            planner, config = PLANNERS[settings["planner"]]
            if settings["planner"] != self.planner_name:
                search = config()
                settings = {**getattr(planner, "planning_defaults", {}), **settings}
        of_search = {f.name for f in dataclasses.fields(search)}
        unknown = sorted(set(settings) - own - of_search - {"planner"})
        if unknown:
            known = ", ".join(sorted({"planner"} | own | of_search))
            raise ValueError(f"unknown planning settings {', '.join(unknown)}; expected some of: {known}")
        try:
            search = dataclasses.replace(search, **{k: v for k, v in settings.items() if k in of_search})
            return dataclasses.replace(self, search=search, **{k: v for k, v in settings.items() if k in own})
        except TypeError as error:
            raise ValueError(f"a planning setting has the wrong type: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads."""
        return {**dataclasses.asdict(self), "planner": self.planner_name}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PlanningConfig:
        """Returns the configuration that `to_json` wrote."""
        values = dict(values)
        name = values.pop("planner")
        if name not in PLANNERS:
            raise ValueError(f"unknown planner {name!r}; expected one of: {', '.join(PLANNERS)}")
        return cls(**{**values, "search": PLANNERS[name][1](**values["search"])})


class Plan(NamedTuple):
    """A plan and its search.

    Attributes:
        actions: (H * frame_skip, action_size) raw actions, within the environment's bounds.
        latents: (H, Z), predicted after each block.
        start: (Z,), latent of the current frame.
        goal: (Z,), latent of the goal.
        cost: (iterations,), mean cost of the elites, or the best cost, after each iteration.
        spread: (iterations,), mean standard deviation of the proposal, z-scored.
        steps_left: Environment steps that the actor was told are left; None for planners without an actor.
    """

    actions: NDArray[np.float32]
    latents: NDArray[np.float32]
    start: NDArray[np.float32]
    goal: NDArray[np.float32]
    cost: NDArray[np.float32]
    spread: NDArray[np.float32]
    steps_left: float | None = None


class PlanningAgent(Trainable, Agent):
    """Receding-horizon planning in the latent space of a world model.

    Set `on_candidates` to inspect searches.

    Subclasses name their parts: `name`, `presets`, `config_class` and `model_class`. A model offers `encode`,
    `rollout`, `normalize_actions`, `denormalize_actions` and a `config` with `frame_skip` and `action_block_size`.
    One with rewards offers `returns` besides, for the cost `return`; one with a policy `propose`, whose plans are
    candidates of a planner with `n_proposals`.

    Args:
        model: The world model; used in evaluation mode.
        planning: How to plan.
        description: The environment in the run folder: `action_low`, `action_high`, `frame_size`, and more.
        device: Where to compute.
        seed: Seed of the planner's random streams, unless `reset` gives seeds.
        time_limit_s: Seconds that one call of `act` may spend on planning, whatever the number of environments; the
            best plan so far is taken, after at least one iteration for each.
        cost: A custom cost function, (predicted latents (B, S, H, Z), goal latent (B, Z)) -> (B, S).
    """

    _controller: RecedingHorizon

    def __init__(
        self,
        model: Any,
        planning: PlanningConfig,
        description: dict[str, Any],
        device: str | torch.device = "cpu",
        seed: int = 0,
        time_limit_s: float | None = None,
        cost: LatentCost | None = None,
    ) -> None:
        super().__init__(description["action_low"], description["action_high"], description["frame_size"])
        if not isinstance(planning, PlanningConfig):
            raise ValueError(f"planning must be a PlanningConfig, got {planning!r}; `load` takes a planner's name, too")
        context = getattr(model.config, "context", 1)
        if planning.context_frames > context:
            raise ValueError(f"context_frames {planning.context_frames} exceeds the model's context, {context}")
        if time_limit_s is not None and not 0 < time_limit_s < math.inf:
            raise ValueError(f"time_limit_s must be a positive number of seconds, or None, got {time_limit_s}")
        if planning.needs_actor and getattr(model, "actor", None) is None:
            raise ValueError(
                f"the planner {planning.planner_name} needs an actor, and the model has none: "
                "train one with `--preset guided`, or with `--set actor_steps=3000`"
            )
        if cost is None and planning.cost == RETURN and not hasattr(model, "returns"):
            raise ValueError(
                f"the cost {RETURN} needs a model with rewards; expected one of {tuple(COSTS)} for this one"
            )
        self.uses_steps_left = planning.needs_actor
        self.model = model.to(device).eval()
        self.planning, self.description, self.device = planning, description, torch.device(device)
        self.time_limit_s = time_limit_s
        self.plans = 0  # made since the start
        self.on_candidates: OnCandidates | None = None
        self._cost = cost or (None if planning.cost == RETURN else self._named_cost())
        graphed = planning.cuda_graph and self.device.type == "cuda"
        self._graphed: Callable[..., Tensor] = Graphs(self._judge) if graphed else self._judge
        self._planner = PLANNERS[planning.planner_name][0](planning.search)
        self._controller = RecedingHorizon(self._search, model.config.frame_skip, planning.context_frames, seed)
        low, high = (
            torch.as_tensor(bound, device=self.device).repeat(model.config.frame_skip)
            for bound in (self.action_low, self.action_high)
        )
        self._block_low, self._block_high = model.normalize_actions(low), model.normalize_actions(high)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | None = None,
        seed: int = 0,
        planning: PlanningConfig | Mapping[str, Any] | str | None = None,
        time_limit_s: float | None = None,
        cost: LatentCost | None = None,
    ) -> Self:
        """Returns the agent that was trained into a run folder.

        Args:
            folder: A run folder.
            device: Device; by default the best one available.
            seed: Seed of the planner's random streams.
            planning: How to plan; by default as stored in the run. A dictionary changes some settings, as in
                `{"planner": "icem", "n_samples": 100}`; a string is a planner's name.
            time_limit_s: See the class.
            cost: See the class.

        Raises:
            FileNotFoundError: If there is no finished run.
            ValueError: If the folder is damaged, or holds another agent's run.
        """
        model, description = cls.read(folder)
        if isinstance(planning, PlanningConfig):
            config = planning
        else:
            said = of_description(Path(folder), description, "planning", PlanningConfig.from_json)
            config = said.changed({"planner": planning} if isinstance(planning, str) else planning or {})
        return cls(model, config, description, choose_device(device), seed, time_limit_s, cost)

    def with_planning(self, planning: PlanningConfig | Mapping[str, Any]) -> Self:
        """Returns an agent with the same model and other planning settings.

        Args:
            planning: All settings, or some that replace this agent's (`PlanningConfig.changed`).
        """
        changed = planning if isinstance(planning, PlanningConfig) else self.planning.changed(planning)
        return type(self)(self.model, changed, self.description, self.device)

    def save(self, folder: str | Path) -> None:
        """Writes the agent into a run folder that `load` reads."""
        self.write(folder, self.model, {**self.description, "planning": self.planning.to_json()})

    def plan(self, obs: Obs, steps_left: float | NDArray[Any] | None = None) -> list[Plan]:
        """Returns a new plan for each environment without executing it; uses the environments' random streams.

        Args:
            obs: As for `act`.
            steps_left: As for `act`.
        """
        pixels, goals, _ = self._checked(obs)
        left = [None] * len(pixels) if steps_left is None else self._checked_steps(steps_left, len(pixels)).tolist()
        slots = self._controller.slots_for(len(pixels))
        return [
            self._plan([self._controller.request(slot, frame, goal, k)], None)[0]
            for slot, frame, goal, k in zip(slots, pixels, goals, left, strict=True)
        ]

    def _search(self, requests: list[Request]) -> list[Reply]:
        """Returns a plan for each request.

        On the CPU, one environment at a time: rounding depends on the batch shape, and an environment's plan must not
        depend on the number of others. On a GPU, those with equally long pasts form a batch.
        """
        self.plans += len(requests)
        began = time.monotonic()
        chunks = _chunks(requests, one_by_one=self.device.type == "cpu")
        replies: dict[int, Reply] = {}
        for chunk in chunks:
            share = (len(replies) + len(chunk)) / len(requests)
            deadline = None if self.time_limit_s is None else began + share * self.time_limit_s
            for i, plan in zip(chunk, self._plan([requests[i] for i in chunk], deadline), strict=True):
                steps = self.planning.execute_blocks * self.model.config.frame_skip
                replies[i] = Reply(plan.actions[:steps], self._blocks(plan.actions), plan.steps_left)
        return [replies[i] for i in range(len(requests))]

    def _plan(self, requests: list[Request], deadline: float | None) -> list[Plan]:
        """Returns a plan for each request; with an actor, those with the same number of blocks are planned together."""
        gradient = getattr(self._planner, "needs_gradient", False)
        with torch.no_grad() if gradient else torch.inference_mode():
            latents = self._encode(np.stack([np.stack([*request.frames, request.goal]) for request in requests]))
            context, goal = latents[:, :-1], latents[:, -1]
            past = self._past(requests)
            generators = [request.generator for request in requests]
            if not self.planning.needs_actor:
                mean, std = self._proposal(requests)
                proposals = self._policy_plans(mean, context[:, -1], goal, generators)
                with torch.no_grad() if gradient else contextlib.nullcontext():
                    found = self._search_plans(
                        self._cost_of(context, goal, past), mean, std, generators, deadline, **proposals
                    )
                return self._finished(found, found.actions, context, goal, past)
            left = self._steps_left(requests, context[:, -1], goal)
            blocks = (left / self.model.config.frame_skip).ceil().clamp(1, self.planning.horizon_blocks).int().tolist()
            plans: dict[int, Plan] = {}
            for n_blocks in sorted(set(blocks)):
                rows = [i for i, n in enumerate(blocks) if n == n_blocks]
                plans |= zip(
                    rows,
                    self._plan_around_actor(
                        context[rows], goal[rows], [t[rows] for t in past], left[rows], n_blocks,
                        [generators[i] for i in rows], deadline,
                    ),
                    strict=True,
                )  # fmt: skip
            return [plans[i]._replace(steps_left=steps) for i, steps in enumerate(left.tolist())]

    def _plan_around_actor(
        self,
        context: Tensor,
        goal: Tensor,
        past: list[Tensor],
        left: Tensor,
        n_blocks: int,
        generators: list[torch.Generator],
        deadline: float | None,
    ) -> list[Plan]:
        def propose(residuals: Tensor | None = None) -> Unrolled:
            with self._threads(len(left) * (1 if residuals is None else residuals.shape[1]) * goal.shape[-1]):
                return unroll(
                    self.model, context, past[0] if past else None, goal, left, n_blocks,
                    self.planning.least_steps_left, residuals,
                )  # fmt: skip

        if getattr(self._planner, "searches_residuals", False):
            scale = self._planner.config.scale

            def cost(residuals: Tensor) -> Tensor:
                unrolled = propose(residuals * scale)
                return self._costs(unrolled.latents, unrolled.actions, context[:, -1], goal)

            shape = (len(left), n_blocks, self.model.config.action_block_size)
            none = torch.zeros(shape, device=self.device)
            found = self._search_plans(cost, none, none, generators, deadline)
            actions = propose(found.actions.unsqueeze(1) * scale).actions[:, 0]
        else:
            proposal = propose()
            mean, std = proposal.actions[:, 0], proposal.std[:, 0]
            found = self._search_plans(self._cost_of(context, goal, past), mean, std, generators, deadline)
            actions = found.actions
        return self._finished(found, actions, context, goal, past)

    def _search_plans(
        self,
        cost: Cost,
        mean: Tensor,
        std: Tensor,
        generators: list[torch.Generator],
        deadline: float | None,
        **proposals: Tensor,
    ) -> PlanResult:
        """Returns the planner's result, and validates the costs.

        Raises:
            ValueError: For costs of another shape, or if no candidate has a finite cost.
        """
        judged: list[Tensor] = []  # (B,) of each iteration: whether any candidate's cost is a number

        def checked(actions: Tensor) -> Tensor:
            costs = cost(actions)
            if costs.shape != actions.shape[:2]:
                raise ValueError(f"cost must return a tensor {tuple(actions.shape[:2])}, got {tuple(costs.shape)}")
            judged.append(costs.detach().isfinite().any(dim=1))
            if self.on_candidates is not None:
                self.on_candidates(actions.detach(), costs.detach())
            return costs

        found = self._planner.plan(checked, mean, std, generators, deadline, **proposals)
        if judged and not torch.stack(judged).any(dim=0).all():
            raise ValueError("no candidate plan has a finite cost: check the model's weights, or the cost function")
        return found

    def _cost_of(self, context: Tensor, goal: Tensor, past: list[Tensor]) -> Cost:
        def cost(actions: Tensor) -> Tensor:
            # A step predicts one latent for each candidate of each environment.
            with self._threads(actions.shape[0] * actions.shape[1] * goal.shape[-1]):
                return self._graphed(actions, context, goal, *past)

        return cost

    def _finished(
        self, found: PlanResult, actions: Tensor, context: Tensor, goal: Tensor, past: list[Tensor]
    ) -> list[Plan]:
        """Returns plans of z-scored actions (B, H, A)."""
        blocks = self._within_bounds(actions)
        predicted = self._rollout(blocks.unsqueeze(1), context, *past)[:, 0]
        return self._unpack(found, blocks, predicted, context[:, -1], goal)

    def _steps_left(self, requests: list[Request], latents: Tensor, goals: Tensor) -> Tensor:
        """Returns (B,) steps left: as given, else as estimated by the actor; at least `least_steps_left`."""
        told = [request.steps_left for request in requests]
        left = self.model.actor.steps_left(latents, goals) if None in told else torch.zeros(len(told))
        for i, steps in enumerate(told):
            if steps is not None:
                left[i] = steps
        return left.to(self.device).clamp_min(self.planning.least_steps_left)

    def _encode(self, frames: NDArray[Any]) -> Tensor:
        """Returns latents (B, n + 1, Z) of past frames, the current frame and the goal, (B, n + 1, h, w, 3)."""
        return self.model.encode(torch.from_numpy(frames).to(self.device))  # type: ignore[no-any-return]

    def _named_cost(self) -> LatentCost:
        """Returns the cost function named in the planning settings."""
        return COSTS[self.planning.cost]

    def _rollout(self, actions: Tensor, context: Tensor, *past: Tensor) -> Tensor:
        """Returns predicted latents (B, S, H, Z) of candidates (B, S, H, A)."""
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.planning.precision == "bf16", cache_enabled=False
        ):
            options = {"past_actions": past[0]} if past else {}
            return self.model.rollout(context, self._within_bounds(actions), **options).float()  # type: ignore[no-any-return]

    def _judge(self, actions: Tensor, context: Tensor, goal: Tensor, *past: Tensor) -> Tensor:
        """Returns the costs (B, S) of candidates (B, S, H, A)."""
        predicted = self._rollout(actions, context, *past)
        costs = self._costs(predicted, actions, context[:, -1], goal)
        if self.planning.consistency_weight and actions.shape[2] > 2:
            direct, middle = predicted[:, :, -1], predicted[:, :, 1].flatten(0, 1).unsqueeze(1)
            via = self._rollout(actions[:, :, 2:].flatten(0, 1).unsqueeze(1), middle)[:, 0, -1].view_as(direct)
            costs = costs + self.planning.consistency_weight * (direct - via).square().sum(dim=-1)
        return costs

    def _costs(self, predicted: Tensor, actions: Tensor, start: Tensor, goal: Tensor) -> Tensor:
        """Returns the costs (B, S) of what is predicted, (B, S, H, Z), after `start` (B, Z) for candidates."""
        if self._cost is not None:
            return self._cost(predicted, goal)
        return -self.model.returns(predicted, self._within_bounds(actions), start, goal)  # type: ignore[no-any-return]

    def _threads(self, numbers: int) -> contextlib.AbstractContextManager[None]:
        return suited_threads(numbers) if self.device.type == "cpu" else contextlib.nullcontext()

    def _proposal(self, requests: list[Request]) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of the first proposal, each (B, H, A)."""
        shape = (len(requests), self.planning.horizon_blocks, self.model.config.action_block_size)
        mean, std = torch.zeros(shape, device=self.device), torch.ones(shape, device=self.device)
        if self.planning.warm_start:
            taken = self.planning.execute_blocks
            for row, request in zip(mean, requests, strict=True):
                if request.previous is not None and taken < len(row):
                    row[:-taken] = request.previous[taken:]
        return mean, std

    def _policy_plans(
        self, mean: Tensor, start: Tensor, goal: Tensor, generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        """Returns plans of the model's policy, (B, P, H, A) like `mean`, if there is one and the planner takes some.

        The first is the policy's mean; the others are drawn from the environments' streams.
        """
        wanted = getattr(self._planner.config, "n_proposals", 0)
        if not wanted or not hasattr(self.model, "propose"):
            return {}
        noise = candidates(generators, wanted, torch.zeros_like(mean), torch.ones_like(mean))
        return {"proposals": self.model.propose(start, goal, noise)}

    def _past(self, requests: list[Request]) -> list[Tensor]:
        """Returns the z-scored actions between past frames, [(B, n - 1, A)]; [] for the current frame alone."""
        if len(requests[0].frames) == 1:
            return []
        return [self.model.normalize_actions(torch.from_numpy(np.stack([r.blocks for r in requests])).to(self.device))]

    def _unpack(self, found: PlanResult, blocks: Tensor, predicted: Tensor, start: Tensor, goal: Tensor) -> list[Plan]:
        actions = self.model.denormalize_actions(blocks).flatten(1).unflatten(1, (-1, len(self.action_low)))
        actions = np.clip(actions.cpu().numpy(), self.action_low, self.action_high)
        rest = [t.float().cpu().numpy() for t in (predicted, start, goal, found.cost, found.spread)]
        return [Plan(*row) for row in zip(actions, *rest, strict=True)]

    def _blocks(self, actions: NDArray[np.float32]) -> Tensor:
        """Returns raw actions (H * frame_skip, action_size) as z-scored blocks (H, A)."""
        return self.model.normalize_actions(
            torch.from_numpy(actions).to(self.device).unflatten(0, (-1, self.model.config.frame_skip)).flatten(1)
        )

    def _within_bounds(self, actions: Tensor) -> Tensor:
        return actions.clamp(self._block_low, self._block_high) if self.planning.clip_actions else actions


def _chunks(requests: list[Request], one_by_one: bool) -> list[list[int]]:
    """Returns the positions of requests that are planned together."""
    if one_by_one:
        return [[i] for i in range(len(requests))]
    groups: dict[int, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(len(request.frames), []).append(i)
    return list(groups.values())
