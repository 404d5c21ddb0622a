"""Making evaluation pairs: held out, unsolved, balanced over episodes, verified by replay."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collect.collector import RESERVED_SEED
from collect.episodes import EpisodeRunner, make_env, make_header
from lewm_gym.data.episode import Episode
from lewm_gym.data.format.header import installed_versions
from lewm_gym.pairs import Pair, PairSet
from lewm_gym.tasks import get_task

COUNT = 200
_PATIENCE = 50  # episodes in a row without a suitable pair, after which there probably is none


def _in_opposite_rooms(start: NDArray[np.float64], goal: NDArray[np.float64]) -> bool:
    from envs.two_room.env import WALL_LEFT, WALL_RIGHT

    low, high = sorted((start[0], goal[0]))
    return bool(low <= WALL_LEFT and high >= WALL_RIGHT)


#: Task -> a kind of pair of which every `QUOTA`-th one must be, at least: pairs that a straight line does not solve.
HARD: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64]], bool]] = {"two_room": _in_opposite_rooms}
QUOTA = 4


def make_pairs(
    task_name: str,
    offset_steps: int,
    count: int = COUNT,
    seed: int = RESERVED_SEED,
    progress: Callable[[int, int], None] | None = None,
    policy: str | None = None,
) -> PairSet:
    """Returns `count` pairs, each from its own episode, unsolved at the start and verified by replay.

    Args:
        task_name: Name of the task.
        offset_steps: Environment steps from start to goal.
        count: How many.
        seed: Seed of the episodes; the default is reserved, so no dataset contains them.
        progress: Called with (pairs found, count).
        policy: Behaviour policy of the episodes; None: the task's default.

    Raises:
        ValueError: For arguments out of range, episodes that are too short, or an environment that does not replay.
    """
    task = get_task(task_name)
    for name, value in (("offset_steps", offset_steps), ("count", count)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    header = make_header(task.name, seed=seed, policy=policy, states_only=True)
    runner, env = EpisodeRunner(header), make_env(task.name)
    env.draw_observations = False  # type: ignore[attr-defined]  # a replay needs no pictures, and Cube's take long
    pairs: list[Pair] = []
    number = fruitless = 0
    try:
        while len(pairs) < count:
            episode = runner.play(number).encoded.states
            rng = np.random.default_rng([zlib.crc32(task.name.encode()), seed, number, offset_steps])
            hard = HARD.get(task.name) if len(pairs) % QUOTA == 0 else None
            start = _choose(env, episode, offset_steps, rng, hard)
            fruitless = 0 if start is not None else fruitless + 1
            if start is not None:
                pair = _cut(episode, start, offset_steps, number, seed)
                pairs.append(replace(pair, phase=env.phase(_replay(env, pair))))  # type: ignore[attr-defined]
                if progress is not None:
                    progress(len(pairs), count)
            elif fruitless >= _PATIENCE:
                raise ValueError(
                    f"{fruitless} episodes of {task.name} in a row have no unsolved pair {offset_steps} steps apart: "
                    "choose a shorter distance"
                )
            number += 1
    finally:
        runner.close()
        env.close()
    return PairSet(task.name, offset_steps, tuple(pairs), seed, header.policy, installed_versions())


def _choose(
    env: Any,
    episode: Episode,
    offset: int,
    rng: np.random.Generator,
    hard: Callable[[NDArray[np.float64], NDArray[np.float64]], bool] | None,
) -> int | None:
    """Returns a random step whose goal, `offset` steps later, is unsolved (and hard, if asked), or None."""
    state = episode.state
    for start in rng.permutation(max(len(state) - offset, 0)).tolist():
        here, there = state[start], state[start + offset]
        if not env.is_goal(here, there) and (hard is None or hard(here, there)):
            return int(start)
    return None


def _cut(episode: Episode, start: int, offset: int, number: int, seed: int) -> Pair:
    return Pair(
        start_state=episode.state[start].copy(),
        goal_state=episode.state[start + offset].copy(),
        actions=episode.action[start : start + offset].copy(),
        episode=number,
        start_step=start,
        seed=seed,
    )


def with_phases(pair_set: PairSet, progress: Callable[[int, int], None] | None = None) -> PairSet:
    """Returns the same pairs with their phases by the current environment; each is verified by replay.

    Args:
        pair_set: Any of the task's.
        progress: Called with (pairs done, pairs in all).

    Raises:
        ValueError: If a pair does not replay.
    """
    env = make_env(pair_set.task)
    env.draw_observations = False  # type: ignore[attr-defined]
    pairs = []
    try:
        for pair in pair_set.pairs:
            pairs.append(replace(pair, phase=env.phase(_replay(env, pair))))  # type: ignore[attr-defined]
            if progress is not None:
                progress(len(pairs), len(pair_set.pairs))
    finally:
        env.close()
    return replace(pair_set, pairs=tuple(pairs))


def _replay(env: Any, pair: Pair) -> NDArray[np.float64]:
    """Returns the states from start to goal, (D + 1, state_size), in a separate environment.

    Raises:
        ValueError: If the pair is solved at its start, or the actions do not lead to the goal bit for bit.
    """
    _, info = env.reset(options={"state": pair.start_state, "goal_state": pair.goal_state})
    if info["is_success"]:
        raise ValueError(f"episode {pair.episode}, step {pair.start_step}: already solved at the start")
    states = [info["state"], *(env.step(action)[4]["state"] for action in pair.actions)]
    if not np.array_equal(states[-1], pair.goal_state):
        raise ValueError(
            f"episode {pair.episode}, step {pair.start_step}: replaying the recorded actions does not repeat the "
            "recorded states; the environment does not restore its state exactly"
        )
    return np.stack(states)
