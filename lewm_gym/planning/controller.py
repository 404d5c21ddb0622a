"""The receding-horizon controller: turns a search over plans into actions, one environment apart from the other."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

#: (pixels (B, h, w, 3), goals (B, h, w, 3), generators) -> actions (B, steps, action_size), raw
Search = Callable[[NDArray[np.uint8], NDArray[np.uint8], list[torch.Generator]], NDArray[np.float32]]


@dataclass
class Slot:
    """What the controller remembers of one environment.

    Attributes:
        generator: The environment's own random stream.
        queue: Actions planned and not yet taken, each (action_size,).
        goal: Fingerprint of the goal that they pursue.
    """

    generator: torch.Generator
    queue: deque[NDArray[np.float32]] = field(default_factory=deque)
    goal: int | None = None


class RecedingHorizon:
    """Plans for those environments whose queue is empty or whose goal has changed, and hands out queued actions.

    An environment's actions depend on its own observations and its own random stream alone: planning for one
    never draws from the stream of another.

    Args:
        search: What plans; called with only those environments that need a plan.
        seed: Seed of the streams of environments for which `reset` names none.
    """

    def __init__(self, search: Search, seed: int = 0) -> None:
        self._search = search
        self._seed = seed
        self.slots: list[Slot] = []

    def reset(self, seeds: list[int] | None = None) -> None:
        """Forgets all plans; `seeds`, one per environment, begin fresh streams (default: the controller's own seed)."""
        self.slots = [] if seeds is None else [Slot(_stream(seed)) for seed in seeds]

    def act(
        self,
        pixels: NDArray[np.uint8],
        goals: NDArray[np.uint8],
        episode_start: NDArray[np.bool_] | None = None,
        slots: list[Slot] | None = None,
    ) -> NDArray[np.float32]:
        """Returns actions (B, action_size).

        Args:
            pixels: (B, h, w, 3) uint8.
            goals: (B, h, w, 3) uint8.
            episode_start: (B,), true where an episode has just begun: the old plan is dropped.
            slots: What to use and update in place of the controller's own memory.

        Raises:
            ValueError: If B differs from the number of environments since the last reset.
        """
        slots = self._slots_for(len(pixels)) if slots is None else slots
        if len(slots) != len(pixels):
            raise ValueError(
                f"got observations of {len(pixels)} environments after those of {len(slots)}; call reset() in between"
            )
        for i, slot in enumerate(slots):
            fingerprint = zlib.crc32(goals[i].tobytes())
            if slot.goal != fingerprint or (episode_start is not None and episode_start[i]):
                slot.queue.clear()
                slot.goal = fingerprint
        empty = [i for i, slot in enumerate(slots) if not slot.queue]
        if empty:
            plans = self._search(pixels[empty], goals[empty], [slots[i].generator for i in empty])
            for i, plan in zip(empty, plans, strict=True):
                slots[i].queue.extend(plan)
        return np.stack([slot.queue.popleft() for slot in slots])

    def _slots_for(self, n_envs: int) -> list[Slot]:
        if not self.slots:
            self.slots = [Slot(_stream(self._seed, i)) for i in range(n_envs)]
        return self.slots


def _stream(*key: Any) -> torch.Generator:
    """Returns a generator seeded by whole numbers, well mixed."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed)
