"""How fast the tasks step and render on one core, beside stable-worldmodel's where that is installed.

Every figure comes from a process of its own: OpenGL contexts of different libraries never meet, and each has one core.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from benchmarks.speed import Speed, measure, use_one_core
from lewm_gym import provenance
from lewm_gym.results import write_json
from lewm_gym.tasks import Task, get_task

FORMAT = "lewm-gym speed"
SCHEMA = 1
#: Frames per second at 224 px that each task is to reach on one core (issue 3), "fast" pictures.
WANTED = {"two_room": 6_000, "pusht": 3_000, "reacher": 250, "cube": 50}
#: The beginnings of stable-worldmodel's ids; its versions differ by release.
REFERENCE = {
    "two_room": "swm/TwoRoom-v",
    "pusht": "swm/PushT-v",
    "cube": "swm/OGBCube-v",
    "reacher": "swm/ReacherDMControl-v",
}
BATCH = 4_096  # agents of a batched environment


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        task: Name of the task.
        what: "ours", "reference" (stable-worldmodel) or "batched" (states of many agents, without pictures).
        speed: Frames (or agent steps) per second, None if it could not be measured.
        why_not: Why not, if so.
        detail: Id of the environment and how pictures are drawn.
    """

    task: str
    what: str
    speed: Speed | None
    why_not: str | None
    detail: str


def measure_envs(
    tasks: Iterable[str],
    *,
    seconds: float = 5.0,
    render_quality: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Row]:
    """Returns the speed of each task, of its batched form and of its reference.

    Args:
        tasks: Their names.
        seconds: Time for each figure.
        render_quality: How carefully our pictures are drawn; None is each task's default.
        progress: Called with (what is measured, done, total).

    Raises:
        ValueError: For an unknown task, or no time.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    jobs = []
    for task in [get_task(name) for name in tasks]:
        jobs.append((task, "ours"))
        jobs += [(task, "batched")] if task.vector_entry_point else []
        jobs.append((task, "reference"))
    rows = []
    for done, (task, what) in enumerate(jobs):
        if progress is not None:
            progress(f"{task.title}, {what}", done, len(jobs))
        rows.append(_measure_apart(task, what, seconds, render_quality))
    if progress is not None:
        progress("done", len(jobs), len(jobs))
    return rows


def save(path: str | Path, rows: list[Row]) -> None:
    """Writes the figures, with the machine and the versions they were measured with."""
    head = {"format": FORMAT, "schema": SCHEMA, "wanted": WANTED}
    write_json(Path(path), {**head, **provenance.describe(), "rows": [asdict(row) for row in rows]})


def table(rows: list[Row]) -> str:
    """Returns the figures as a Markdown table, and a line for whatever is missing or was disturbed."""
    lines = ["| task | frames/s | range | to reach | stable-worldmodel | ratio |", "|---|---|---|---|---|---|"]
    notes = []
    found = {(row.task, row.what): row for row in rows}
    for row in rows:
        title = get_task(row.task).title
        label = {"ours": title, "batched": f"{title}, {BATCH:,} agents, states", "reference": ""}[row.what]
        if row.why_not:
            notes.append(f"{label or f'{title} of stable-worldmodel'}: not measured: {row.why_not}")
        if row.speed is not None and row.speed.disturbed:
            share = 100 * row.speed.core_share
            notes.append(f"{row.detail}: used {share:.0f} % of its core, shared with other work or waiting")
        if row.what == "reference":
            continue
        reference = found[row.task, "reference"].speed if row.what == "ours" else None
        cells = [label, "-", "-", f"{WANTED[row.task]:,}" if row.what == "ours" and row.task in WANTED else "", "", ""]
        if row.speed is not None:
            cells[1:3] = f"{row.speed.median:,.0f}", f"{row.speed.low:,.0f}-{row.speed.high:,.0f}"
        if row.what == "ours":
            cells[4] = f"{reference.median:,.0f}" if reference else "-"
            cells[5] = f"{row.speed.median / reference.median:.1f}x" if reference and row.speed else "-"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *([""] if notes else []), *dict.fromkeys(notes)])


def _measure_apart(task: Task, what: str, seconds: float, render_quality: str | None) -> Row:
    """Returns one figure, measured in a fresh process with one thread."""
    detail = "stable-worldmodel" if what == "reference" else task.env_id
    if what == "reference" and importlib.util.find_spec("stable_worldmodel") is None:
        return Row(task.name, what, None, "stable-worldmodel is not installed (pip install stable-worldmodel)", detail)
    job = json.dumps({"task": task.name, "what": what, "seconds": seconds, "render_quality": render_quality})
    one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {"SDL_VIDEODRIVER": "dummy", **os.environ, **one_thread, "PYTHONPATH": os.pathsep.join(sys.path)}
    if what == "reference" and sys.platform == "linux":
        environment.setdefault("MUJOCO_GL", "egl")  # ours chooses by itself
    command = [sys.executable, "-m", "benchmarks.speed_envs", job]
    limit = 10 * seconds + 300  # the first use of a task may make lighter meshes
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit)
    except subprocess.TimeoutExpired:
        return Row(task.name, what, None, f"it did not finish within {limit:.0f} s", detail)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Row(task.name, what, None, last, detail)
    answer = json.loads(done.stdout.splitlines()[-1])
    return Row(task.name, what, Speed(**answer["speed"]), None, answer["detail"])


def _measure_here(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer to one job, measured in this process."""
    use_one_core()
    task = get_task(job["task"])
    if job["what"] == "batched":
        return _measure_batched(task, job["seconds"])
    if job["what"] == "reference":
        env, detail = _reference(task.name)
    else:
        quality = {} if job["render_quality"] is None else {"render_quality": job["render_quality"]}
        env = gymnasium.make(f"lewm_gym:{task.env_id}", disable_env_checker=True, **quality)
        detail = f"{task.env_id}, {env.unwrapped.render_quality} pictures"  # type: ignore[attr-defined]
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    rng = np.random.default_rng(0)
    actions = rng.uniform(space.low, space.high, (1_000, *space.shape)).astype(space.dtype)
    count = 0
    render = job["what"] == "reference"  # our observation is the picture

    def step() -> None:
        nonlocal count
        _, _, terminated, truncated, _ = env.step(actions[count % len(actions)])
        count += 1
        if render:
            env.render()
        if terminated or truncated:
            env.reset()

    env.reset(seed=0)
    return {"speed": asdict(measure(step, job["seconds"])), "detail": detail}


def _measure_batched(task: Task, seconds: float) -> dict[str, Any]:
    env = gymnasium.make_vec(f"lewm_gym:{task.env_id}", num_envs=BATCH, observe="state")
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = env.action_space.sample()
    speed = measure(lambda: env.step(actions), seconds, weight=BATCH)
    return {"speed": asdict(speed), "detail": f"{task.env_id}, {BATCH} agents, states"}


def _reference(task: str) -> tuple[gymnasium.Env[Any, Any], str]:
    importlib.import_module("stable_worldmodel")
    ids = sorted(name for name in gymnasium.registry if name.startswith(REFERENCE[task]))
    if not ids:
        raise ValueError(f"this release of stable-worldmodel has no environment {REFERENCE[task]}*")
    env = gymnasium.make(ids[-1], render_mode="rgb_array", disable_env_checker=True)
    env.reset(seed=0)
    picture = np.asarray(env.render()).shape
    if picture != (224, 224, 3):
        raise ValueError(f"{ids[-1]} draws {picture}, not 224 px: not comparable")
    return env, ids[-1]


if __name__ == "__main__":
    print(json.dumps(_measure_here(json.loads(sys.argv[1]))))
