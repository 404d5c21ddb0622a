"""The receding-horizon controller: from a search over plans to actions, separately for each environment.

Does not import torch, for `lewm_gym.onnx`.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Request(NamedTuple):
    """The input of a search.

    Attributes:
        frames: (n, h, w, 3) uint8, past frames at the beginnings of the last n - 1 blocks and, last, the current one.
        blocks: (n - 1, A) raw actions taken between them.
        goal: (h, w, 3) uint8.
        generator: The environment's random stream.
        previous: (H, A) the previous plan of this environment towards the same goal, or None.
        steps_left: Environment steps within which to reach the goal: as given, or counted down from the estimate of the
            first plan towards this goal; None if there is neither.
    """

    frames: NDArray[np.uint8]
    blocks: NDArray[np.float32]
    goal: NDArray[np.uint8]
    generator: Any
    previous: Any
    steps_left: float | None = None


class Reply(NamedTuple):
    """A plan.

    Attributes:
        actions: (steps, action_size) raw actions to execute before the next plan.
        plan: (H, A), the whole plan, z-scored; a tensor or an array.
        steps_left: Environment steps within which it should reach the goal; None without an actor.
    """

    actions: NDArray[np.float32]
    plan: Any
    steps_left: float | None = None


#: Plans for several environments at once.
Search = Callable[[list[Request]], list[Reply]]


@dataclass
class Slot:
    """The controller's state for one environment.

    Attributes:
        generator: The environment's own random stream.
        queue: Planned actions that are not yet executed, each (action_size,).
        goal: Fingerprint of their goal.
        plan: Their plan, (H, A).
        frames: Frames at the start of each executed block, (h, w, 3).
        blocks: Those blocks, (A,).
        taken: Executed actions of the current block; its frame is the last of `frames`.
        steps: Actions executed since this goal was set.
        due: Number of actions within which to reach it: as told, else as the first plan estimated; None if unknown.
    """

    generator: Any
    queue: deque[NDArray[np.float32]] = field(default_factory=deque)
    goal: int | None = None
    plan: Any = None
    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    blocks: list[NDArray[np.float32]] = field(default_factory=list)
    taken: list[NDArray[np.float32]] = field(default_factory=list)
    steps: int = 0
    due: float | None = None

    def forget(self) -> None:
        """Resets the state; the random stream continues."""
        self.queue.clear()
        self.plan = None
        self.steps, self.due = 0, None
        self.frames, self.blocks, self.taken = [], [], []


class RecedingHorizon:
    """Plans for environments whose queue is empty or whose goal has changed, and returns queued actions.

    An environment's actions only depend on its own observations and its own random stream.

    Args:
        search: The search; called for the environments that need a plan.
        frame_skip: Actions in a block.
        context: Frames that a plan may use, including the current one; 1 as in the paper.
        seed: Seed of the environments' streams, unless `reset` gives seeds.
        stream: Creates a random stream from a seed of 64 bits; by default a torch generator.
    """

    def __init__(
        self,
        search: Search,
        frame_skip: int = 5,
        context: int = 1,
        seed: int = 0,
        stream: Callable[[int], Any] | None = None,
    ) -> None:
        self._search, self._frame_skip, self._context, self._seed = search, frame_skip, context, seed
        self._stream = stream or _generator
        self.slots: list[Slot] = []

    def reset(self, seeds: list[int] | None = None) -> None:
        """Forgets all plans; `seeds`, one per environment, start new streams (default: the controller's own seed)."""
        self.slots = [] if seeds is None else [self._slot(seed) for seed in seeds]

    def share_rng(self) -> None:
        """Makes all environments share the first one's stream, as in the reference: plans then affect each other."""
        for slot in self.slots[1:]:
            slot.generator = self.slots[0].generator

    def needs_frame(self) -> list[bool]:
        """Returns for each environment whether its next frame is needed, for a plan or as the past of a later one."""
        return [not slot.queue or (self._context > 1 and not slot.taken) for slot in self.slots]

    def act(
        self,
        pixels: NDArray[np.uint8],
        goals: NDArray[np.uint8],
        episode_start: NDArray[np.bool_] | None = None,
        slots: list[Slot] | None = None,
        steps_left: NDArray[np.float32] | None = None,
        goal_steps: float | None = None,
    ) -> NDArray[np.float32]:
        """Returns actions (B, action_size).

        Args:
            pixels: (B, h, w, 3) uint8.
            goals: (B, h, w, 3) uint8.
            episode_start: (B,), true where an episode has just begun: plan and past are dropped.
            slots: State to use and update in place of the controller's own.
            steps_left: (B,), environment steps from now within which to reach each goal; None if unknown.
            goal_steps: The same, counted from the first observation of a goal.

        Raises:
            ValueError: If B differs from the number of environments since the last reset.
        """
        if slots is None:
            if episode_start is not None and episode_start.all() and len(self.slots) != len(pixels):
                self.slots = []  # another vector of environments begins; whoever predicts cannot reset
            slots = self.slots_for(len(pixels))
        if len(slots) != len(pixels):
            raise ValueError(
                f"got observations of {len(pixels)} environments after those of {len(slots)}; call reset() in between"
            )
        for i, slot in enumerate(slots):
            fingerprint = zlib.crc32(goals[i].tobytes())
            if slot.goal != fingerprint or (episode_start is not None and episode_start[i]):
                slot.forget()
                slot.goal = fingerprint
            if steps_left is not None:
                slot.due = slot.steps + float(steps_left[i])
            elif goal_steps is not None:
                slot.due = goal_steps
        empty = [i for i, slot in enumerate(slots) if not slot.queue]
        if empty:
            requests = [self.request(slots[i], pixels[i], goals[i]) for i in empty]
            replies = self._search(requests)
            for i, reply in zip(empty, replies, strict=True):
                slots[i].queue.extend(reply.actions)
                slots[i].plan = reply.plan
                if slots[i].due is None and reply.steps_left is not None:
                    slots[i].due = slots[i].steps + reply.steps_left
        return np.stack([self._take(slot, frame) for slot, frame in zip(slots, pixels, strict=True)])

    def slots_for(self, n_envs: int) -> list[Slot]:
        """Returns the controller's own state, created for `n_envs` environments if it is empty."""
        if not self.slots:
            self.slots = [self._slot(self._seed, i) for i in range(n_envs)]
        return self.slots

    def request(
        self, slot: Slot, frame: NDArray[np.uint8], goal: NDArray[np.uint8], steps_left: float | None = None
    ) -> Request:
        """Returns the input of a search, for an environment at the start of a block."""
        past = self._context - 1
        frames, blocks = (slot.frames[-past:], slot.blocks[-past:]) if past else ([], [])
        stacked = np.stack(blocks) if blocks else np.zeros((0, 0), np.float32)
        if steps_left is None and slot.due is not None and slot.goal == zlib.crc32(goal.tobytes()):
            steps_left = slot.due - slot.steps
        return Request(np.stack([*frames, frame]), stacked, goal, slot.generator, slot.plan, steps_left)

    def _slot(self, *key: int) -> Slot:
        """Returns a new state whose stream is seeded by a hash of integers."""
        return Slot(self._stream(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])))

    def _take(self, slot: Slot, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        action = slot.queue.popleft()
        slot.steps += 1
        if self._context > 1:
            if not slot.taken:
                slot.frames = [*slot.frames[1 - self._context :], frame.copy()]
            slot.taken.append(action)
            if len(slot.taken) == self._frame_skip:
                slot.blocks = [*slot.blocks[1 - self._context :], np.concatenate(slot.taken)]
                slot.taken = []
        return action


def _generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


class Deadline:
    """Ends a search if another iteration, as long as the last one, would end too late.

    Args:
        at: `time.monotonic()` at which to be done, or None for never.
    """

    def __init__(self, at: float | None) -> None:
        self._at, self._last = at, time.monotonic()

    def ends(self) -> bool:
        """Returns whether to stop; call it once after each iteration."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        return self._at is not None and now + took > self._at
