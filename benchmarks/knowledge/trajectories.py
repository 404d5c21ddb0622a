"""Trajectories made in the simulator that break with expectation half-way: an object changes colour, or is elsewhere.

Three of each, alike up to the event: unperturbed; colour, the same states drawn with another colour from the event on;
teleport, the object put at random elsewhere and the same actions carried out from there. They come from the reserved
seed of the evaluation pairs, on which nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from collect.collector import RESERVED_SEED
from collect.episodes import episode_rng, make_env
from collect.policies import make_policy

_ATTEMPTS = 1000  # draws of a place to teleport to
_FIRST = 1_000_000  # number of the first trajectory: the evaluation pairs' episodes have smaller ones

Frames = NDArray[np.uint8]
State = NDArray[np.float64]


@dataclass(frozen=True)
class Event:
    """What happens in a task.

    Attributes:
        object: What it happens to.
        policy: Whose behaviour is disturbed; None is the task's default.
        colour: Variation of the environment that is changed, and its value.
        place: Coordinates of the state that a teleport draws anew, from a random start state.
        position: Those among them that are its position, to measure the jump by.
        stopped: Coordinates that a teleport sets to 0, its velocities.
        min_jump: Least distance of a teleport, in the state's unit.
    """

    object: str
    policy: str | None
    colour: tuple[str, tuple[float, float, float]]
    place: slice
    position: slice
    stopped: slice
    min_jump: float


EVENTS: dict[str, Event] = {
    "two_room": Event("dot", None, ("agent_color", (0.0, 0.0, 255.0)), slice(0, 2), slice(0, 2), slice(2, 2), 60.0),
    "pusht": Event(
        "block", "weak", ("block_color", (205.0, 92.0, 72.0)), slice(2, 5), slice(2, 4), slice(7, 10), 100.0
    ),
    "cube": Event("cube", None, ("cube_color", (0.13, 0.55, 0.95)), slice(14, 21), slice(14, 16), slice(35, 41), 0.15),
}
VARIANTS = ("unperturbed", "colour", "teleport")


class Trajectory(NamedTuple):
    """One trajectory in its three variants.

    Attributes:
        frames: Variant -> (K + 1, h, w, 3), a frame after each block of actions, the start first.
        actions: (K, frame_skip * action_size), raw, the same for all.
    """

    frames: dict[str, Frames]
    actions: NDArray[np.float32]


def make_trajectories(
    task: str, count: int, blocks: int, event_block: int, frame_skip: int, render_quality: str | None = None
) -> Iterator[Trajectory]:
    """Yields `count` trajectories; number i is a function of (task, i, blocks, event_block, frame_skip).

    Args:
        task: One of EVENTS.
        count: How many.
        blocks: K, blocks of actions.
        event_block: Number of the first frame that differs.
        frame_skip: Actions in a block.
        render_quality: How carefully to draw.

    Raises:
        ValueError: For a task without events, or an event outside the trajectory.
    """
    if task not in EVENTS:
        raise ValueError(f"no events are defined for {task!r}; expected one of: {', '.join(EVENTS)}")
    if not 1 <= event_block <= blocks:
        raise ValueError(f"the event must be within 1 and {blocks} blocks, got {event_block}")
    event = EVENTS[task]
    env, looks = make_env(task, render_quality), make_env(task, render_quality)
    env.draw_observations = looks.draw_observations = False  # type: ignore[attr-defined]
    name, value = event.colour
    looks.reset(seed=0, options={"variations": {name: value}})
    try:
        for number in range(count):
            yield _make(env, looks, event, task, number, blocks, event_block, frame_skip)
    finally:
        env.close()
        looks.close()


def _make(
    env: Any, looks: Any, event: Event, task: str, number: int, blocks: int, event_block: int, frame_skip: int
) -> Trajectory:
    rng = episode_rng(task, RESERVED_SEED, _FIRST + number)
    states, actions = _play(env, make_policy(task, event.policy), rng, blocks * frame_skip)
    shown = states[::frame_skip]
    moved = _teleported(env, event, shown[event_block], rng)
    jumped = [moved]
    if event_block < blocks:
        env.reset(options={"state": moved})
        for action in actions[event_block * frame_skip :]:
            jumped.append(env.step(action)[4]["state"])
    plain = [env.render_state(state) for state in shown]
    after = plain[:event_block]
    frames = {
        "unperturbed": plain,
        "colour": after + [looks.render_state(state) for state in shown[event_block:]],
        "teleport": after + [env.render_state(state) for state in jumped[::frame_skip]],
    }
    return Trajectory({name: np.stack(f) for name, f in frames.items()}, actions.reshape(blocks, -1))


def _play(env: Any, policy: Any, rng: np.random.Generator, steps: int) -> tuple[list[State], NDArray[np.float32]]:
    """Returns the states (steps + 1) and actions (steps) of the policy, which goes on where its episode would end."""
    env.reset(seed=0)  # a policy may look at the geometry before it chooses a start
    _, info = policy.begin(env, rng)
    states, actions = [info["state"]], []
    for _ in range(steps):
        actions.append(policy.act(info))
        info = env.step(actions[-1])[4]
        states.append(info["state"])
    return states, np.stack(actions)


def _teleported(env: Any, event: Event, state: State, rng: np.random.Generator) -> State:
    """Returns the state with its object elsewhere, at rest."""
    for _ in range(_ATTEMPTS):
        other = env.reset(seed=int(rng.integers(2**31)))[1]["state"]
        moved = state.copy()
        moved[event.place] = other[event.place]
        moved[event.stopped] = 0.0
        if np.linalg.norm(moved[event.position] - state[event.position]) < event.min_jump:
            continue
        try:
            env.check_state(moved)
        except ValueError:  # inside a wall, or inside what does not move
            continue
        return moved
    raise RuntimeError(f"no place to teleport the {event.object} to in {_ATTEMPTS} draws")  # a fault of EVENTS
