"""Worker processes that collect episodes; one that dies is replaced and its episodes are collected again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Protocol

from lewm_gym.processes import ProcessDied, Worker

_MAX_QUEUED = 16  # episodes that a worker has before it, so that it continues while a shard is written (0.3 s)
_MAX_DEATHS = 3  # of workers on the same episode


class EpisodeSource(Protocol):
    """Creates episodes and writes them."""

    def save(self, folder: Path, number: int) -> int:
        """Writes the episode of that number as a part of the dataset; returns its number of frames."""

    def close(self) -> None:
        """Releases resources."""


def play_in_processes(
    make_source: Callable[[], EpisodeSource], folder: Path, numbers: Iterable[int], workers: int
) -> Iterator[tuple[int, int]]:
    """Yields (number, frames) of each episode as soon as it is written, in the order of finishing.

    Args:
        make_source: Picklable; called once in each worker.
        folder: The dataset's folder.
        numbers: Of the episodes to make.
        workers: How many processes.

    Raises:
        ValueError: What an episode raised, likewise OSError.
        ChildProcessError: If workers keep dying on the same episode.
    """
    waiting = deque(numbers)
    deaths: dict[int, int] = {}
    pool: list[_Collector] = []
    try:
        while waiting or any(worker.queue for worker in pool):
            while len(pool) < workers and waiting:
                pool.append(_Collector(make_source, folder))
            for worker in pool:
                worker.fill(waiting, share=len(waiting) // (2 * workers))
            ready = wait([worker.connection for worker in pool])
            for worker in [w for w in pool if w.connection in ready]:
                try:
                    number, frames = worker.receive()
                except ProcessDied:
                    pool.remove(worker)
                    worker.stop()
                    if worker.queue:
                        _note_death(deaths, worker)
                        waiting.extendleft(reversed(worker.queue))
                    continue
                worker.queue.remove(number)
                yield number, frames
    finally:
        for worker in pool:
            worker.stop()


def _note_death(deaths: dict[int, int], worker: _Collector) -> None:
    number = worker.queue[0]
    deaths[number] = deaths.get(number, 0) + 1
    if deaths[number] >= _MAX_DEATHS:
        raise ChildProcessError(
            f"{_MAX_DEATHS} worker processes died on episode {number} (last exit code {worker.process.exitcode}): "
            "is memory short? Try fewer --workers; finished episodes are kept"
        )


class _Collector(Worker):
    """A process and its pending episodes."""

    def __init__(self, make_source: Callable[[], EpisodeSource], folder: Path) -> None:
        super().__init__(partial(_saver, make_source, folder))
        self.queue: deque[int] = deque()

    def fill(self, waiting: deque[int], share: int) -> None:
        """Distributes episodes; towards the end one by one, so that all workers finish together."""
        while waiting and len(self.queue) < max(1, min(_MAX_QUEUED, share)):
            self.send(waiting[0])
            self.queue.append(waiting.popleft())


def _saver(make_source: Callable[[], EpisodeSource], folder: Path) -> Callable[[int], tuple[int, int]]:
    """Returns what writes the episode of a number and returns the number and the episode's frames."""
    source = make_source()
    return lambda number: (number, source.save(folder, number))
