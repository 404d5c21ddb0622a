"""Work on a Ray cluster: collecting episodes, into the same files as local workers write, and any other calls.

A task collects a few episodes in a folder of its own machine and returns the finished parts, so the machines need no
shared file system. A task whose machine dies is run again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from collect.workers import EpisodeSource
from lewm_gym.data.writer import part_path
from lewm_gym.files import atomic_file

EPISODES_PER_TASK = 10  # 26 MB of Cube; what a machine that dies loses
_RETRIES = 5


def play_on_ray(
    make_source: Callable[[], EpisodeSource], folder: Path, numbers: list[int], address: str
) -> Iterator[tuple[int, int]]:
    """Yields (number, frames) of each episode as soon as it is written, in the order of finishing.

    Args:
        make_source: Picklable; called once in each task.
        folder: The dataset's folder, on this machine.
        numbers: Of the episodes to make.
        address: Of the cluster ("auto", "ray://head:10001"), or "local" for an instance on this machine.

    Raises:
        ValueError: What an episode raised, likewise OSError.
        ConnectionError: If there is no cluster.
        ImportError: Without Ray.
    """
    parts = [numbers[i : i + EPISODES_PER_TASK] for i in range(0, len(numbers), EPISODES_PER_TASK)]
    for _, get in run_on_ray(_play_some, [(make_source, part) for part in parts], address):
        yield from _write_parts(folder, get())


def run_on_ray(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], address: str, cpus: float = 1, gpus: float = 0
) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Yields the number of each call as it finishes, and what returns its value, or raises what it raised.

    Args:
        function: Importable on the cluster's machines.
        calls: Its arguments, for each call; picklable.
        address: Of the cluster ("auto", "ray://head:10001"), or "local" for an instance on this machine.
        cpus: Reserved for a call.
        gpus: Reserved for a call; several share one if it is a fraction.

    Raises:
        ValueError: If no machine of the cluster has as many CPUs or GPUs.
        ConnectionError: If there is no cluster.
        ImportError: Without Ray.
    """
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
    try:
        most = _check_room(ray, cpus, gpus)
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES)(function)
        waiting = list(enumerate(calls))[::-1]
        running: dict[Any, int] = {}
        while waiting or running:
            while waiting and len(running) < 2 * most:  # a few more than can run, so that none waits for us
                number, arguments = waiting.pop()
                running[remote.remote(*arguments)] = number
            ready = ray.wait(list(running))[0][0]
            yield running.pop(ready), partial(_result, ray, ready)
    finally:
        if started:
            ray.shutdown()


def _check_room(ray: Any, cpus: float, gpus: float) -> int:
    """Returns how many calls can run at once.

    Raises:
        ValueError: If none can: Ray would wait for a machine that may never come.
    """
    rooms = []
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        asked = [(has.get("CPU", 0), cpus), (has.get("GPU", 0), gpus)]
        rooms.append(min(int(there / wanted) for there, wanted in asked if wanted))
    if not any(rooms):
        raise ValueError(
            f"no machine of the Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs for one task: ask for fewer"
        )
    return sum(rooms)


def _play_some(make_source: Callable[[], EpisodeSource], numbers: list[int]) -> list[tuple[int, int, bytes]]:
    """Runs on the cluster; returns number, frames and the finished part of each episode."""
    source = make_source()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder, done = Path(name), []
            part_path(folder, 0).parent.mkdir()
            for number in numbers:
                frames = source.save(folder, number)
                done.append((number, frames, part_path(folder, number).read_bytes()))
            return done
    finally:
        source.close()


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    except ray.exceptions.RayError as error:
        why = str(error).splitlines()[0]
        raise ChildProcessError(
            f"a task died {_RETRIES + 1} times on the cluster ({why}); what is finished is kept"
        ) from None


def _write_parts(folder: Path, parts: Iterable[tuple[int, int, bytes]]) -> Iterator[tuple[int, int]]:
    for number, frames, content in parts:
        with atomic_file(part_path(folder, number)) as file:
            file.write(content)
        yield number, frames


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ImportError("--ray needs Ray: pip install 'lewm-gym[ray]'") from None
    return ray
