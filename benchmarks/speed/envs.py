"""Steps and frames per second of the tasks on one core, compared with stable-worldmodel's where that is installed.

Every figure comes from a process of its own, with one core: OpenGL contexts of different libraries never meet.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from benchmarks.options import OnTasks
from benchmarks.report.records import Measurement
from benchmarks.report.tables import Cell, Section, Table, task_title
from benchmarks.speed.timing import Speed, measure, spread, use_one_core
from lewm_gym.commands import option
from lewm_gym.processes import Worker
from lewm_gym.results import Json, Record
from lewm_gym.tasks import Task, get_task

BATCH = 4_096  # agents of a batched environment
WHAT = {
    "ours": "step + picture",
    "batched": "steps of many at once, states only",
    "reference": "stable-worldmodel: step + picture",
}


@dataclass(frozen=True, kw_only=True)
class Envs(OnTasks, Measurement):
    """Times stepping and rendering of each task at 224 px on one core, in its own process: the median of five
    repetitions, compared with stable-worldmodel in the same run if it is installed.
    """  # noqa: D205

    kind = "speed envs"

    seconds: float = option(5.0, "seconds per measurement", least=1e-6, most=86_400)
    quality: str | None = option(None, "render quality: fast or reference (default: fast)")

    def measure(self, bars: Any) -> Json:
        """Returns the speed of each task, of its batched form and of its reference.

        A row has the task, `what` (one of WHAT), the `Speed` (None where it could not be measured, and then `why_not`),
        and in `detail` the environment's id and how pictures are drawn.
        """
        tasks = map(get_task, self.tasks)
        jobs = [(task, what) for task in tasks for what in WHAT if what != "batched" or task.vector_entry_point]
        rows = []
        for done, (task, what) in enumerate(jobs):
            bars("speed", done, len(jobs), "figure", f"{task.title}, {what}")
            rows.append(self._measure_apart(task, what))
        return {"rows": rows}

    def _measure_apart(self, task: Task, what: str) -> Json:
        """Returns one row, measured in a fresh process with one thread."""
        row: Json = {"task": task.name, "what": what, "speed": None, "why_not": None, "detail": task.env_id}
        if what == "reference":
            row["detail"] = "stable-worldmodel"
            if importlib.util.find_spec("stable_worldmodel") is None:
                return row | {"why_not": "stable-worldmodel is not installed (pip install stable-worldmodel)"}
        worker = Worker(partial(_measurer, task.name, what, self.seconds, self.quality))
        try:
            worker.send(None)
            limit_s = 10 * self.seconds + 300  # the first use of a task may make lighter meshes
            return row | dict(worker.receive(limit_s))
        except TimeoutError as error:
            return row | {"why_not": str(error)}
        except Exception as error:  # whatever keeps one from being measured, the others are
            return row | {"why_not": f"{type(error).__name__}: {error}"}
        finally:
            worker.stop()

    @staticmethod
    def show(record: Record) -> Section:
        """Returns how fast each task steps and draws, and a line for whatever is missing or was disturbed."""
        rows: list[list[Cell]] = []
        notes = []
        medians = {(row["task"], row["what"]): row["speed"]["median"] for row in record["rows"] if row["speed"]}
        for row in record["rows"]:
            title, speed = task_title(row["task"]), row["speed"]
            if speed is None:
                notes.append(f"{title}, {WHAT[row['what']]}: not measured: {row['why_not']}")
                continue
            if Speed(**speed).disturbed:
                share = 100 * speed["core_share"]
                notes.append(f"{row['detail']}: used {share:.0f} % of its core, shared with other work or waiting")
            theirs = medians.get((row["task"], "reference"))
            ratio = f"{speed['median'] / theirs:.1f}x" if theirs and row["what"] == "ours" else ""
            rows.append([title, WHAT[row["what"]], *spread(speed), ratio])
        text = "Environment steps per second on one core, each with a 224 px frame: median of repetitions, and range."
        header = ["task", "what", "steps per second", "range", "against stable-worldmodel"]
        return Section("Environments", [text, Table(header, rows, words=2), *dict.fromkeys(notes)])


def _measurer(name: str, what: str, seconds: float, quality: str | None) -> Callable[[None], Json]:
    """Prepares a fresh process; returns what measures there."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if what == "reference" and sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # ours chooses by itself
    use_one_core()
    return lambda _: _measure_here(name, what, seconds, quality)


def _measure_here(name: str, what: str, seconds: float, quality: str | None) -> Json:
    """Returns what a row has of one measurement, made in this process."""
    task = get_task(name)
    if what == "batched":
        return _measure_batched(task, seconds)
    if what == "reference":
        env, detail = _reference(task)
    else:
        options: Json = {} if quality is None else {"render_quality": quality}
        env = gymnasium.make(f"lewm_gym:{task.env_id}", disable_env_checker=True, **options)
        detail = f"{task.env_id}, {env.unwrapped.render_quality} pictures"  # type: ignore[attr-defined]
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    rng = np.random.default_rng(0)
    actions = itertools.cycle(rng.uniform(space.low, space.high, (1_000, *space.shape)).astype(space.dtype))

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(next(actions))
        if what == "reference":  # our observation is the picture
            env.render()
        if terminated or truncated:
            env.reset()

    env.reset(seed=0)
    return {"speed": asdict(measure(step, seconds)), "detail": detail}


def _measure_batched(task: Task, seconds: float) -> Json:
    env = gymnasium.make_vec(f"lewm_gym:{task.env_id}", num_envs=BATCH, observe="state")
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = env.action_space.sample()
    speed = measure(lambda: env.step(actions), seconds, weight=BATCH)
    return {"speed": asdict(speed), "detail": f"{task.env_id}, {BATCH} agents, states"}


def _reference(task: Task) -> tuple[gymnasium.Env[Any, Any], str]:
    import stable_worldmodel  # noqa: F401  # registers its environments

    known = [] if task.reference_env is None else [n for n in gymnasium.registry if n.startswith(task.reference_env)]
    if not known:
        raise ValueError(f"this release of stable-worldmodel has no environment {task.reference_env}*")
    ids = sorted(known)
    env = gymnasium.make(ids[-1], render_mode="rgb_array", disable_env_checker=True)
    env.reset(seed=0)
    picture = np.asarray(env.render()).shape
    if picture != (224, 224, 3):
        raise ValueError(f"{ids[-1]} draws {picture}, not 224 px: not comparable")
    return env, ids[-1]
