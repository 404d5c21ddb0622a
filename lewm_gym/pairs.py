"""Evaluation pairs: a start and a goal some steps apart in one held-out episode, with the actions between.

A pair set is one self-contained JSON file, so all agents and dataset sizes have the same pairs. Those of
`python -m collect pairs` come from a seed that no dataset may use, and ship with the package.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_gym.files import atomic_file, parse_object, read_json
from lewm_gym.tasks import get_task

SCHEMA = 1
_KIND = "lewm_gym evaluation pairs"


@dataclass(frozen=True, eq=False)
class Pair:
    """A start and a goal.

    Attributes:
        start_state: (state_size,) float64.
        goal_state: (state_size,) float64, the state of the recorded episode after the last action.
        actions: (D, action_size) float32, the recorded actions between; replaying them leads exactly to the goal.
        episode: Number of the episode that it was taken from.
        start_step: Step of that episode at which it starts.
        seed: Seed of the collection that the episode belongs to.
        phase: What lies between start and goal, one of `Task.phases`; None in files of older versions.
    """

    start_state: NDArray[np.float64]
    goal_state: NDArray[np.float64]
    actions: NDArray[np.float32]
    episode: int
    start_step: int
    seed: int
    phase: str | None = None


@dataclass(frozen=True, eq=False)
class FoundPair:
    """A start and a goal that are not from a pair set; see `Pair`.

    Attributes:
        start_state: (state_size,) float64.
        goal_state: (state_size,) float64.
        actions: (D, action_size) float32 from start to goal; none if unknown.
        goal_image: (h, w, 3) uint8, the recorded frame; None: render it.
        phase: What lies between start and goal, one of `Task.phases`; None where that is not known.
    """

    start_state: NDArray[np.float64]
    goal_state: NDArray[np.float64]
    actions: NDArray[np.float32]
    goal_image: NDArray[np.uint8] | None = None
    phase: str | None = None


@dataclass(frozen=True, eq=False)
class PairSet:
    """The pairs of one task at one distance.

    Attributes:
        task: Name of the task.
        offset_steps: D, environment steps from start to goal.
        pairs: The pairs.
        seed: Seed of the collection they were taken from.
        policy: Name of the behaviour policy that collected it.
        versions: Package name -> version, of that collection.

    Raises:
        ValueError: If the pairs do not fit the task or the distance.
    """

    task: str
    offset_steps: int
    pairs: tuple[Pair, ...]
    seed: int
    policy: str
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        task = get_task(self.task)
        without = sum(pair.phase is None for pair in self.pairs)
        if without not in (0, len(self.pairs)):
            raise ValueError(f"{without} of {len(self.pairs)} pairs have no phase: either all or none have one")
        if self.offset_steps < 1:
            raise ValueError(f"offset_steps must be at least 1, got {self.offset_steps}")
        if not self.pairs:
            raise ValueError("a pair set needs at least one pair")
        for index, pair in enumerate(self.pairs):
            for name, array, shape in (
                ("start_state", pair.start_state, (task.state_size,)),
                ("goal_state", pair.goal_state, (task.state_size,)),
                ("actions", pair.actions, (self.offset_steps, task.action_size)),
            ):
                if array.shape != shape or not np.isfinite(array).all():
                    raise ValueError(f"pair {index}: {name} must be finite and of shape {shape}, got {array.shape}")
            if pair.phase is not None and pair.phase not in task.phases:
                expected = ", ".join(map(repr, task.phases))
                raise ValueError(f"pair {index}: phase must be one of {expected}, got {pair.phase!r}")
            if not (np.abs(pair.actions) <= 1.0).all():
                raise ValueError(f"pair {index}: actions must lie within [-1, 1]")

    @property
    def content_hash(self) -> str:
        """128-bit hash, in hexadecimal, of task, distance, states and actions; phases follow from those."""
        digest = hashlib.blake2b(f"{self.task} {self.offset_steps} {self.seed}".encode(), digest_size=16)
        for pair in self.pairs:
            digest.update(f"{pair.episode} {pair.start_step}".encode())
            for array in (pair.start_state, pair.goal_state, pair.actions):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes the pair set as JSON, atomically; numbers are exact."""
        head = {
            "kind": _KIND,
            "schema": SCHEMA,
            "task": self.task,
            "offset_steps": self.offset_steps,
            "seed": self.seed,
            "policy": self.policy,
            "versions": self.versions,
            "content_hash": self.content_hash,
        }
        lines = ",\n  ".join(json.dumps(_pair_as_json(pair), separators=(",", ":")) for pair in self.pairs)
        text = json.dumps(head, indent=1)[:-2] + ',\n "pairs": [\n  ' + lines + "\n ]\n}\n"
        with atomic_file(Path(path)) as file:
            file.write(text.encode())

    @staticmethod
    def load(path: str | Path) -> PairSet:
        """Returns the pair set in a JSON file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a pair set, damaged, or changed since it was written.
        """
        path = Path(path)
        return _parse(read_json(path, "make the pairs again"), str(path))


def load_shipped(task_name: str, offset_steps: int, policy: str | None = None) -> PairSet:
    """Returns the pairs that ship with the package.

    Args:
        task_name: Name of the task.
        offset_steps: Distance, environment steps.
        policy: None for the task's own suite; the name of another policy for the suite made from its episodes.

    Raises:
        ValueError: If there are none; the message lists those that exist.
        FileNotFoundError: If the installation lacks them.
    """
    get_task(task_name)
    suite = task_name if policy is None else f"{task_name}-{policy}"
    folder = resources.files("lewm_gym") / "pair_sets"
    file = folder / f"{suite}-{offset_steps}.json"
    if not file.is_file():
        suites = shipped_suites(task_name)
        if not any(suites.values()):
            raise FileNotFoundError(
                f"this installation lacks the evaluation pairs of {task_name} in {folder}: pip install "
                f"--force-reinstall --no-deps lewm-gym"
            )
        distances = suites.get(policy)
        if distances is None:
            known = ", ".join(sorted(name for name in suites if name)) or "none"
            raise ValueError(
                f"no evaluation pairs of {task_name} from policy {policy!r} ship; there are suites of: {known}"
            )
        raise ValueError(
            f"no evaluation pairs of {suite} ship at {offset_steps} steps; there are some at: "
            f"{', '.join(map(str, distances))}. Others: python -m collect pairs {task_name} --offsets "
            f"{offset_steps}"
        )
    return _parse(parse_object(file.read_bytes(), Path(file.name), "install lewm-gym anew"), file.name)


def shipped_suites(task_name: str) -> dict[str | None, list[int]]:
    """Returns the distances of the suites that ship, by policy; None: the task's own."""
    folder = resources.files("lewm_gym") / "pair_sets"
    found: dict[str | None, list[int]] = {None: []}
    for file in folder.iterdir() if folder.is_dir() else ():
        match = re.fullmatch(rf"{re.escape(task_name)}-(?:(.+)-)?(\d+)\.json", file.name)
        if match:
            found.setdefault(match[1], []).append(int(match[2]))
    return {policy: sorted(distances) for policy, distances in found.items()}


def _parse(record: dict[str, Any], where: str) -> PairSet:
    try:
        if record.get("kind") != _KIND:
            raise ValueError("not a file of evaluation pairs")
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']!r}, but this version reads {SCHEMA}: update lewm-gym")
        seed = int(record["seed"])
        pairs = PairSet(
            task=record["task"],
            offset_steps=int(record["offset_steps"]),
            pairs=tuple(_pair_from_json(pair, seed) for pair in record["pairs"]),
            seed=seed,
            policy=record["policy"],
            versions=dict(record["versions"]),
        )
    except KeyError as error:
        raise ValueError(f"{where}: the entry {error} is missing: create the pairs again") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {error}") from None
    if pairs.content_hash != record.get("content_hash"):
        raise ValueError(f"{where} was modified after it was written (its hash does not match): create the pairs again")
    return pairs


def _pair_as_json(pair: Pair) -> dict[str, Any]:
    return {
        "episode": pair.episode,
        "start_step": pair.start_step,
        **({} if pair.phase is None else {"phase": pair.phase}),
        "start_state": pair.start_state.tolist(),
        "goal_state": pair.goal_state.tolist(),
        "actions": [[_shortest(x) for x in row] for row in pair.actions],
    }


def _shortest(x: np.float32) -> float:
    """Returns the shortest number that reads back as `x`."""
    short = float(str(x))
    return short if np.float32(short) == x else float(x)


def _pair_from_json(record: dict[str, Any], seed: int) -> Pair:
    return Pair(
        start_state=_vector(record["start_state"], np.float64),
        goal_state=_vector(record["goal_state"], np.float64),
        actions=_vector(record["actions"], np.float32),
        episode=int(record["episode"]),
        start_step=int(record["start_step"]),
        seed=seed,
        phase=record.get("phase"),
    )


def _vector(values: Iterable[Any], dtype: Any) -> NDArray[Any]:
    array = np.array(values, dtype)
    array.flags.writeable = False
    return array


def stream_seed(seed: int, index: int) -> int:
    """Returns the seed of the random stream of pair `index`, 63 bits: torch's generators take no more."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))
