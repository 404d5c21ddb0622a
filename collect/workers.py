"""Worker processes that collect episodes; one that dies is replaced and its episodes are collected again."""

from __future__ import annotations

import contextlib
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from lewm_gym import processes

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
    pool: list[_Worker] = []
    try:
        while waiting or any(worker.queue for worker in pool):
            while len(pool) < workers and waiting:
                with processes.interrupts_held():
                    pool.append(_Worker(make_source, folder))
            for worker in pool:
                worker.fill(waiting, share=len(waiting) // (2 * workers))
            ready = wait([worker.connection for worker in pool])
            for worker in [w for w in pool if w.connection in ready]:
                answer = worker.receive()
                if answer is not None:
                    yield answer
                    continue
                pool.remove(worker)
                worker.stop()
                if worker.queue:
                    _note_death(deaths, worker)
                    waiting.extendleft(reversed(worker.queue))
    finally:
        for worker in pool:
            worker.stop()


def _note_death(deaths: dict[int, int], worker: _Worker) -> None:
    number = worker.queue[0]
    deaths[number] = deaths.get(number, 0) + 1
    if deaths[number] >= _MAX_DEATHS:
        raise ChildProcessError(
            f"{_MAX_DEATHS} worker processes died on episode {number} (last exit code {worker.exit_code}): "
            "is memory short? Try fewer --workers; finished episodes are kept"
        )


class _Worker:
    """A process and its pending episodes."""

    def __init__(self, make_source: Callable[[], EpisodeSource], folder: Path) -> None:
        self.queue: deque[int] = deque()
        self._process, self.connection = processes.start(_serve, make_source, folder)

    @property
    def exit_code(self) -> int | None:
        return self._process.exitcode

    def fill(self, waiting: deque[int], share: int) -> None:
        """Distributes episodes; towards the end one by one, so that all workers finish together."""
        while waiting and len(self.queue) < max(1, min(_MAX_QUEUED, share)):
            with contextlib.suppress(BrokenPipeError):  # it died: receive() will say so
                self.connection.send(waiting[0])
            self.queue.append(waiting.popleft())

    def receive(self) -> tuple[int, int] | None:
        """Returns (number, frames), or None if the process died; raises what the episode raised."""
        try:
            number, frames, error = self.connection.recv()
        except (EOFError, ConnectionError):
            return None
        if error is not None:
            raise error
        self.queue.remove(number)
        return number, frames

    def stop(self) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, make_source: Callable[[], EpisodeSource], folder: Path) -> None:
    """Collects requested episodes until the other end closes: a worker whose parent was killed ends by itself."""
    processes.ignore_interrupts()
    source = None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            number = connection.recv()
            try:
                source = source or make_source()
                connection.send((number, source.save(folder, number), None))
            except (EOFError, ConnectionError):
                raise
            except Exception as error:
                error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                connection.send((number, 0, processes.picklable(error)))
