"""The environments that an evaluation steps: in this process, or shared out over worker processes.

Both kinds do the same to each environment, so that an outcome does not depend on their number. A frame is drawn only
where the agent is going to look at it, since drawing is most of the time of Cube and Reacher.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lewm_gym import processes
from lewm_gym.tasks import Task

Frame = NDArray[np.uint8]


class PairLike(Protocol):
    """A start and a goal; `lewm_gym.pairs.Pair` is one."""

    @property
    def start_state(self) -> NDArray[np.float64]:
        """(state_size,)."""

    @property
    def goal_state(self) -> NDArray[np.float64]:
        """(state_size,)."""

    @property
    def actions(self) -> NDArray[np.float32]:
        """(D, action_size), the recorded actions that lead from start to goal."""


class View(NamedTuple):
    """What an environment shows after a reset or a step.

    Attributes:
        pixels: (h, w, 3) uint8, None where nobody looks.
        goal: (h, w, 3) uint8, of a reset only.
        success: Whether the task's own test held, during the step or at its end.
        strict: Whether the stricter test holds now.
        sensed: What else the observation holds (proprioception).
    """

    pixels: Frame | None
    goal: Frame | None
    success: bool
    strict: bool
    sensed: Mapping[str, NDArray[np.float32]] = {}


@dataclass(frozen=True)
class Rules:
    """How the environments of an evaluation are made.

    Attributes:
        render_quality: How carefully to draw: as the frames that the agent was trained on; None for the default.
        reference_rules: Whether the reference implementation's rules hold, its inexact restore among them.
        variations: What is changed in the environment, see `GoalEnv.variation_ranges`.
        proprioception: Whether observations hold proprioception; `evaluate` sets it where the agent needs it.
    """

    render_quality: str | None = None
    reference_rules: bool = False
    variations: dict[str, Any] = field(default_factory=dict)
    proprioception: bool = False


class Cell:
    """One environment, put at the start of one pair after the other.

    Raises:
        ValueError: If the task's environment cannot be made so.
        ImportError: If its simulator is missing.
    """

    def __init__(self, task: Task, rules: Rules) -> None:
        # The evaluation ends an episode, not Gymnasium's time limit or success; the checker slows every first step.
        options: dict[str, Any] = {"max_episode_steps": -1, "disable_env_checker": True, "terminate_on_success": False}
        if rules.render_quality is not None:
            options["render_quality"] = rules.render_quality
        if rules.reference_rules:
            options["reference_rules"] = True
        if rules.proprioception:
            options["proprioception"] = True
        self._env = gymnasium.make(f"lewm_gym:{task.env_id}", **options)
        self._task_env: Any = self._env.unwrapped
        self._variations = {"variations": rules.variations} if rules.variations else {}

    def reset(self, pair: PairLike, seed: int, look: bool) -> View:
        """Puts the environment at the start of a pair, with its goal."""
        self._task_env.draw_observations = look
        options = {"state": pair.start_state, "goal_state": pair.goal_state, **self._variations}
        obs, info = self._env.reset(seed=seed, options=options)
        goal = getattr(pair, "goal_image", None)
        return self._view(obs, info, look, obs["goal"] if goal is None else goal)

    def step(self, action: NDArray[np.float32], look: bool) -> View:
        """Applies one action."""
        self._task_env.draw_observations = look
        obs, _, _, _, info = self._env.step(action)
        return self._view(obs, info, look, None)

    def _view(self, obs: Any, info: dict[str, Any], look: bool, goal: Frame | None) -> View:
        strict = self._task_env.is_strict_goal(info["state"], info["goal_state"])
        sensed = {name: value for name, value in obs.items() if name not in ("pixels", "goal")}
        pixels, goal = (obs["pixels"], goal) if look else (None, None)
        return View(pixels, goal, bool(info["is_success"]), bool(strict), sensed)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


class Environments(Protocol):
    """A row of environments of one task."""

    def reset(self, pairs: Sequence[PairLike], seeds: Sequence[int], look: Sequence[bool]) -> list[View]:
        """Puts environment i at the start of pair i; draws where `look` says so."""

    def step(self, rows: Sequence[int], actions: NDArray[np.float32], look: Sequence[bool]) -> list[View]:
        """Applies one action to each environment in `rows`."""


class LocalEnvironments:
    """Environments of one task in this process."""

    def __init__(self, task: Task, count: int, rules: Rules) -> None:
        self._cells = [Cell(task, rules) for _ in range(count)]

    def reset(self, pairs: Sequence[PairLike], seeds: Sequence[int], look: Sequence[bool]) -> list[View]:
        """Puts environment i at the start of pair i; draws where `look` says so."""
        todo = zip(self._cells, pairs, seeds, look, strict=False)
        return [cell.reset(pair, seed, shown) for cell, pair, seed, shown in todo]

    def step(self, rows: Sequence[int], actions: NDArray[np.float32], look: Sequence[bool]) -> list[View]:
        """Applies one action to each environment in `rows`."""
        todo = zip(rows, actions, look, strict=True)
        return [self._cells[row].step(action, shown) for row, action, shown in todo]

    def close(self) -> None:
        """Closes them."""
        for cell in self._cells:
            cell.close()


class WorkerEnvironments:
    """Environments of one task in worker processes: environment i lives in process i modulo `workers`.

    Raises:
        ChildProcessError: If a worker dies.
        ValueError: What an environment raised, likewise ImportError.
    """

    def __init__(self, task: Task, count: int, rules: Rules, workers: int) -> None:
        with processes.interrupts_held():
            self._workers = [processes.start(_serve, task, rules) for _ in range(min(workers, count))]

    def reset(self, pairs: Sequence[PairLike], seeds: Sequence[int], look: Sequence[bool]) -> list[View]:
        """Puts environment i at the start of pair i; draws where `look` says so."""
        calls = [("reset", arguments) for arguments in zip(pairs, seeds, look, strict=False)]
        return self._call(range(len(calls)), calls)

    def step(self, rows: Sequence[int], actions: NDArray[np.float32], look: Sequence[bool]) -> list[View]:
        """Applies one action to each environment in `rows`."""
        return self._call(rows, [("step", arguments) for arguments in zip(actions, look, strict=True)])

    def _call(self, rows: Sequence[int], calls: list[tuple[str, tuple[Any, ...]]]) -> list[View]:
        shares: dict[int, list[int]] = {}  # worker -> positions in `rows`
        for position, row in enumerate(rows):
            shares.setdefault(row % len(self._workers), []).append(position)
        for worker, positions in shares.items():
            with contextlib.suppress(BrokenPipeError):  # it died: _receive will say so
                self._workers[worker][1].send([(rows[i], *calls[i]) for i in positions])
        views: dict[int, View] = {}
        for worker, positions in shares.items():
            views.update(zip(positions, self._receive(worker), strict=True))
        return [views[position] for position in range(len(rows))]

    def _receive(self, worker: int) -> list[View]:
        process, connection = self._workers[worker]
        try:
            views, error = connection.recv()
        except (EOFError, ConnectionError):
            process.join()
            raise ChildProcessError(
                f"an environment's process died (exit code {process.exitcode}): is memory short? Try fewer --workers; "
                "finished outcomes are kept"
            ) from None
        if error is not None:
            raise error
        return list(views)

    def close(self) -> None:
        """Ends the processes."""
        for process, connection in self._workers:
            connection.close()
            process.terminate()
            process.join()


def _serve(connection: Connection, task: Task, rules: Rules) -> None:
    """Answers calls until the other end closes; environments are made as they are first asked for."""
    processes.ignore_interrupts()
    cells: dict[int, Cell] = {}
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            views: list[View] = []
            failure = None
            try:
                for row, method, arguments in connection.recv():
                    if row not in cells:
                        cells[row] = Cell(task, rules)
                    views.append(getattr(cells[row], method)(*arguments))
            except (EOFError, ConnectionError):
                raise
            except Exception as error:
                error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                failure = processes.picklable(error)
            connection.send((views, failure))


@contextlib.contextmanager
def open_environments(
    task: Task, count: int, rules: Rules | None = None, workers: int = 1
) -> Iterator[LocalEnvironments | WorkerEnvironments]:
    """Yields `count` environments, in `workers` processes, or in this one for a single worker; closes them after."""
    rules = rules or Rules()
    local = workers == 1 or count == 1
    envs = LocalEnvironments(task, count, rules) if local else WorkerEnvironments(task, count, rules, workers)
    try:
        yield envs
    finally:
        envs.close()
