"""Violation of expectation: does an impossible event raise a world model's prediction error (paper, figure 10)?

Each trajectory is simulated in three variants that are equal up to the event: unperturbed; colour, the same states
rendered with another colour from the event on; teleport, the object moved to a random position and the same actions
executed from there. They use the reserved seed of the evaluation pairs, on which nothing is trained.

Surprise at a frame is the squared error, averaged over the latent's coordinates, of predicting it from the frames and
actions before it, of which the predictor sees as many as it was trained on. At the event it is compared with the
unperturbed trajectory's at the same frame by a paired t-test over trajectories.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.analysis.statistics import column_json, paired_t_test
from benchmarks.analysis.worlds import Progress, World, load_worlds
from benchmarks.options import OnDevice
from benchmarks.report.plots import band
from benchmarks.report.published import sentence
from benchmarks.report.records import Measurement
from benchmarks.report.tables import Cell, Section, Table, task_title
from collect.collector import RESERVED_SEED
from collect.episodes import episode_rng, make_env
from collect.policies import make_policy
from lewm_gym.commands import argument, option
from lewm_gym.plots import Panel, figure_of
from lewm_gym.results import Json, Record
from lewm_gym.tasks import TASKS

BLOCKS, EVENT_BLOCK = 10, 6  # frames after the start, and the first of them that differs
SIGNIFICANT = 0.01  # the p below which the paper calls a surprise significant
_ATTEMPTS = 1000  # draws of a place to teleport to
_FIRST = 1_000_000  # number of the first trajectory: the evaluation pairs' episodes have smaller ones

Frames = NDArray[np.uint8]
State = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Surprise(Measurement, OnDevice):
    """Violation of expectation: simulates trajectories, unperturbed, with a colour change and with a teleport, and
    compares the errors of the predicted latents by a paired t-test. For Two-Room, Push-T and Cube.
    """  # noqa: D205

    kind = "surprise"

    runs: tuple[Path, ...] = argument("run folders of world models of one task")
    trajectories: int = option(50, "trajectories, of three variants each", least=2)

    def measure(self, bars: Any) -> Json:
        """Returns how surprised each run's world model is."""
        worlds = load_worlds(self.runs, self.device)
        task, first = worlds[0].description["task"], worlds[0]
        if len({(world.frame_skip, world.render_quality) for world in worlds}) > 1:
            raise ValueError("the runs differ in frame skip or render quality: measure them one by one")
        made = make_trajectories(task, self.trajectories, BLOCKS, EVENT_BLOCK, first.frame_skip, first.render_quality)
        surprises = surprise_of(worlds, made, self.trajectories, bars)
        return {
            "task": task,
            "object": event_of(task).object,
            "trajectories": self.trajectories,
            "frame_skip": first.frame_skip,
            "blocks": BLOCKS,
            "event_block": EVENT_BLOCK,
            "models": [
                {**world.describe(), **summary(values, EVENT_BLOCK)}
                for world, values in zip(worlds, surprises, strict=True)
            ],
        }

    @staticmethod
    def show(record: Record) -> Section:
        """Returns a test per model and event, and surprise over time."""
        rows: list[list[Cell]] = [
            [model["title"], name, f"{test['difference']:.3g}", f"{test['ratio']:.3g}", f"{test['t']:.2f}",
             "" if test["p"] is None else f"{test['p']:.1e}" if test["p"] < 0.001 else f"{test['p']:.3f}"]
            for model in record["models"] for name, test in model["tests"].items()
        ]  # fmt: skip
        skip = record["frame_skip"]
        at = skip * record["event_block"]
        text = (
            f"{record['trajectories']} simulated trajectories in three variants: unperturbed; recoloured at step {at}; "
            f"teleported at step {at}. The {record['object']} is changed. Surprise is the squared error of the "
            "predicted latent, averaged over its coordinates (in the latent's own units, squared). The table compares "
            "it at the event with the unperturbed trajectory's by a paired t-test, two-sided: their difference, the "
            f"same units, and their ratio. {sentence('surprise')}{_colour_surprises(record)}"
        )
        panels = []
        for model in record["models"]:
            steps = [skip * (k + 1) for k in range(len(model["surprise"]["unperturbed"]["value"]))]
            lines = zip(model["surprise"].items(), (None, 2, 1), strict=True)
            series = [band(name, steps, line, colour) for (name, line), colour in lines]
            panels.append(Panel(model["title"], series, "environment step", "surprise", log_y=True, x_mark=at))
        header = ["model", "event", "difference", "ratio", "t", "p"]
        caption = "Surprise: mean over trajectories, with its 95 % interval."
        table = Table(header, rows, words=2)
        return Section(
            f"Violation of expectation: {task_title(record['task'])}", [text, table, figure_of(caption, panels)]
        )


def _colour_surprises(record: Record) -> str:
    """Returns a sentence where, unlike in the paper, every model is surprised by a new colour."""
    found = [model["tests"]["colour"] for model in record["models"] if "colour" in model["tests"]]
    surprised = [test["p"] is not None and test["p"] < SIGNIFICANT and test["difference"] > 0 for test in found]
    return " Here colour changes raise surprise, too." if surprised and all(surprised) else ""


def surprise_of(
    worlds: Sequence[World], trajectories: Iterable[Trajectory], total: int, progress: Progress | None = None
) -> list[dict[str, NDArray[np.float64]]]:
    """Returns for each world variant -> (n, K) surprise at each frame after the start."""
    found: list[list[Tensor]] = [[] for _ in worlds]
    for done, trajectory in enumerate(trajectories, 1):
        frames = np.concatenate([trajectory.frames[name] for name in VARIANTS])
        actions = torch.from_numpy(trajectory.actions).expand(len(VARIANTS), -1, -1)
        for world, series in zip(worlds, found, strict=True):
            latents = world.encode(frames).unflatten(0, (len(VARIANTS), -1))
            series.append(surprise_along(world, latents, actions))
        if progress:
            progress("surprise", done, total)
    stacked = [torch.stack(series).double().numpy() for series in found]
    return [{name: values[:, row] for row, name in enumerate(VARIANTS)} for values in stacked]


def surprise_along(world: World, latents: Tensor, actions: Tensor) -> Tensor:
    """Returns the surprise (B, K) at each frame after the first.

    Latents (B, K + 1, Z) are of consecutive frames; actions (B, K, A), raw, the blocks between them.
    """
    errors = []
    for k in range(1, latents.shape[1]):
        start = max(0, k - world.context)
        past = actions[:, start : k - 1] if k - start > 1 else None
        predicted = world.rollout(latents[:, start:k], actions[:, k - 1 : k], past)[:, 0]
        errors.append((predicted - latents[:, k]).square().mean(dim=-1))
    return torch.stack(errors, dim=1)


def summary(series: dict[str, NDArray[np.float64]], event_block: int) -> dict[str, Any]:
    """Returns what a record says of one world's surprises: curves with intervals, and the tests at the event."""
    at_event = {name: values[:, event_block - 1] for name, values in series.items()}
    usual, tests = at_event["unperturbed"], {}
    for name in VARIANTS[1:]:
        test = paired_t_test(at_event[name], usual)
        tests[name] = {**test._asdict(), "ratio": float(at_event[name].mean() / usual.mean())}
    return {
        "surprise": {name: column_json(values) for name, values in series.items()},
        "at_event": {name: values.tolist() for name, values in at_event.items()},
        "tests": tests,
    }


# Trajectories -------------------------------------------------------------------------------------------------

VARIANTS = ("unperturbed", "colour", "teleport")


class Trajectory(NamedTuple):
    """One trajectory in its three variants.

    Attributes:
        frames: Variant -> (K + 1, h, w, 3), a frame after each block of actions, the start first.
        actions: (K, frame_skip * action_size), raw, the same for all.
    """

    frames: dict[str, Frames]
    actions: NDArray[np.float32]


def event_of(task: str) -> Any:
    """Returns what violates expectation in a task (`envs.goal_env.Event`).

    Raises:
        ValueError: If nothing is defined for it.
    """
    event = TASKS[task].env_class().event if task in TASKS else None
    if event is None:
        known = [name for name, one in TASKS.items() if one.env_class().event is not None]
        raise ValueError(f"no events are defined for {task!r}; expected one of: {', '.join(known)}")
    return event


def make_trajectories(
    task: str, count: int, blocks: int, event_block: int, frame_skip: int, render_quality: str | None = None
) -> Iterator[Trajectory]:
    """Yields `count` trajectories; number i is a function of (task, i, blocks, event_block, frame_skip).

    Args:
        task: One whose environment has an `event`.
        count: How many.
        blocks: K, blocks of actions.
        event_block: Number of the first frame that differs.
        frame_skip: Actions in a block.
        render_quality: How carefully to draw.

    Raises:
        ValueError: For a task without events, or an event outside the trajectory.
    """
    event = event_of(task)
    if not 1 <= event_block <= blocks:
        raise ValueError(f"the event must be within 1 and {blocks} blocks, got {event_block}")
    env: Any = make_env(task, render_quality)
    looks: Any = make_env(task, render_quality)
    env.draw_observations = looks.draw_observations = False
    name, value = event.colour
    looks.reset(seed=0, options={"variations": {name: value}})
    with contextlib.closing(env), contextlib.closing(looks):
        for number in range(count):
            rng = episode_rng(task, RESERVED_SEED, _FIRST + number)
            states, actions = _play(env, make_policy(task, event.policy), rng, blocks * frame_skip)
            shown, jumped = states[::frame_skip], [_teleported(env, event, states[event_block * frame_skip], rng)]
            env.reset(options={"state": jumped[0]})
            jumped += [env.step(action)[4]["state"] for action in actions[event_block * frame_skip :]]
            plain = [env.render_state(state) for state in shown]
            frames = {
                "unperturbed": plain,
                "colour": plain[:event_block] + [looks.render_state(state) for state in shown[event_block:]],
                "teleport": plain[:event_block] + [env.render_state(state) for state in jumped[::frame_skip]],
            }
            yield Trajectory({name: np.stack(f) for name, f in frames.items()}, actions.reshape(blocks, -1))


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


def _teleported(env: Any, event: Any, state: State, rng: np.random.Generator) -> State:
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
    raise RuntimeError(f"no place to teleport the {event.object} to in {_ATTEMPTS} draws")  # a fault of the task
