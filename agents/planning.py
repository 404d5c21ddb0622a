"""Agents that plan with a world model: encode, search for actions, act; shared by LeWM, PLDM and DINO-WM."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.agent import Agent
from agents.devices import choose_device
from lewm_gym import checkpoint
from lewm_gym.planning.cem import CEM, CEMConfig
from lewm_gym.planning.controller import RecedingHorizon

COSTS = ("terminal", "sum")


@dataclass(frozen=True)
class PlanningConfig:
    """How an agent plans; the defaults are the paper's."""

    search: CEMConfig = CEMConfig()
    horizon_blocks: int = 5  # H
    execute_blocks: int = 5  # blocks taken before the next plan
    # terminal (paper): squared distance of the last predicted latent to the goal's; sum: mean over all predicted ones
    cost: str = "terminal"
    clip_actions: bool = False  # paper: False, candidates may leave the bounds, which hold at the environment's edge

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise ValueError(f"cost must be one of {COSTS}, not {self.cost!r}")
        if not 1 <= self.execute_blocks <= self.horizon_blocks:
            raise ValueError(
                f"execute_blocks must be within 1..horizon_blocks ({self.horizon_blocks}), got {self.execute_blocks}"
            )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PlanningConfig:
        """Returns the configuration that `dataclasses.asdict` wrote."""
        return cls(**{**values, "search": CEMConfig(**values["search"])})


class PlanningAgent(Agent):
    """Receding-horizon planning in the latent space of a world model.

    Subclasses name their parts: `name`, `presets`, `config_class` and `model_class`. A model offers `encode`,
    `rollout`, `normalize_actions`, `denormalize_actions` and a `config` with `frame_skip` and `action_block_size`.

    Args:
        model: The world model; used in evaluation mode.
        planning: How to plan.
        description: What the run folder says of the environment: `action_low`, `action_high`, `frame_size`, and more.
        device: Where to compute.
        seed: Seed of the planner's random streams where `reset` names none.
    """

    name: ClassVar[str]
    presets: ClassVar[dict[str, Any]]
    config_class: ClassVar[Any]
    model_class: ClassVar[Any]

    def __init__(
        self,
        model: Any,
        planning: PlanningConfig,
        description: dict[str, Any],
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__(description["action_low"], description["action_high"], description["frame_size"])
        self.model = model.to(device).eval()
        self.planning = planning
        self.description = description
        self.device = torch.device(device)
        self.plans = 0  # made since the start
        self._planner = CEM(planning.search)
        self._controller = RecedingHorizon(self._search, seed)
        low, high = (
            torch.as_tensor(bound, device=self.device).repeat(model.config.frame_skip)
            for bound in (self.action_low, self.action_high)
        )
        self._block_low, self._block_high = model.normalize_actions(low), model.normalize_actions(high)

    @classmethod
    def load(
        cls, folder: str | Path, device: str | None = None, seed: int = 0, planning: PlanningConfig | None = None
    ) -> Self:
        """Returns the agent that was trained into a run folder.

        Args:
            folder: A run folder.
            device: Where to compute; the best one present by default.
            seed: Seed of the planner's random streams.
            planning: How to plan; as the run says by default.

        Raises:
            FileNotFoundError: If there is no finished run.
            ValueError: If the folder is damaged, or holds another agent's run.
        """
        folder = Path(folder)
        description = checkpoint.load_description(folder)
        if description["agent"] != cls.name:
            raise ValueError(f"{folder} holds a run of agent {description['agent']!r}, not of {cls.name!r}")
        tensors = checkpoint.load_tensors(folder / checkpoint.WEIGHTS)
        model = cls.model_class(cls.config_class.from_json(description["model"]))
        checkpoint.load_weights(model, tensors, str(folder / checkpoint.WEIGHTS))
        planning = planning or PlanningConfig.from_json(description["planning"])
        return cls(model, planning, description, choose_device(device), seed)

    def save(self, folder: str | Path) -> None:
        """Writes the agent into a run folder that `load` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_tensors(folder / checkpoint.WEIGHTS, self.model.state_dict())
        checkpoint.save_description(folder, {**self.description, "planning": dataclasses.asdict(self.planning)})

    def keep(self, rows: list[int]) -> None:
        """Goes on with these environments only: the observations that follow are theirs, in this order."""
        self._controller.slots = [self._controller.slots[row] for row in rows]

    def reset(self, seeds: list[int] | None = None) -> None:
        """Forgets all plans; `seeds`, one per environment, begin fresh random streams."""
        self._controller.reset(seeds)

    def _act(
        self, pixels: NDArray[np.uint8], goals: NDArray[np.uint8], episode_start: NDArray[np.bool_] | None, state: Any
    ) -> tuple[NDArray[np.float32], Any]:
        actions = self._controller.act(pixels, goals, episode_start, state)
        return actions, state if state is not None else self._controller.slots

    @torch.inference_mode()
    def _search(
        self, pixels: NDArray[np.uint8], goals: NDArray[np.uint8], generators: list[torch.Generator]
    ) -> NDArray[np.float32]:
        """Returns the actions to take before the next plan, (B, execute_blocks * frame_skip, action_size).

        On the CPU one environment at a time: matrix products round differently for different batch shapes, and an
        environment's plan must not depend on how many others plan beside it.
        """
        self.plans += len(pixels)
        chunk = 1 if self.device.type == "cpu" else len(pixels)
        plans = [
            self._plan(pixels[i : i + chunk], goals[i : i + chunk], generators[i : i + chunk])
            for i in range(0, len(pixels), chunk)
        ]
        return torch.cat(plans).cpu().numpy()

    def _plan(self, pixels: NDArray[np.uint8], goals: NDArray[np.uint8], generators: list[torch.Generator]) -> Tensor:
        frames = torch.from_numpy(np.stack([pixels, goals], axis=1)).to(self.device)
        present, goal = self.model.encode(frames).split(1, dim=1)  # each (B, 1, Z)
        planning = self.planning

        def cost(actions: Tensor) -> Tensor:
            predicted = self.model.rollout(present, self._within_bounds(actions))
            distance = (predicted - goal.unsqueeze(1)).square().sum(dim=-1)  # (B, S, H)
            return distance[..., -1] if planning.cost == "terminal" else distance.mean(dim=-1)

        shape = (len(pixels), planning.horizon_blocks, self.model.config.action_block_size)
        mean, std = torch.zeros(shape, device=self.device), torch.ones(shape, device=self.device)
        plan = self._within_bounds(self._planner.plan(cost, mean, std, generators).actions)
        actions = self.model.denormalize_actions(plan[:, : planning.execute_blocks])
        return actions.reshape(len(pixels), -1, len(self.action_low))

    def _within_bounds(self, actions: Tensor) -> Tensor:
        return actions.clamp(self._block_low, self._block_high) if self.planning.clip_actions else actions
