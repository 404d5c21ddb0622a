"""Collecting episodes on a Ray cluster, into the same files as local workers write.

A task collects a few episodes in a folder of its own machine and returns the finished parts, so the machines need no
shared file system. A task whose machine dies is run again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
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
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
    try:
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(_play_some)
        waiting = [numbers[i : i + EPISODES_PER_TASK] for i in range(0, len(numbers), EPISODES_PER_TASK)][::-1]
        # a few more than can run, so that none waits for us, and results in memory stay few
        at_once = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1)
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(remote.remote(make_source, waiting.pop()))
            ready, running = ray.wait(running)
            yield from _write_parts(folder, _result(ray, ready[0]))
    finally:
        if started:
            ray.shutdown()


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


def _result(ray: Any, reference: Any) -> list[tuple[int, int, bytes]]:
    try:
        return ray.get(reference)  # type: ignore[no-any-return]
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    except ray.exceptions.RayError as error:
        why = str(error).splitlines()[0]
        raise ChildProcessError(
            f"a task died {_RETRIES + 1} times on the cluster ({why}); finished episodes are kept"
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
