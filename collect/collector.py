"""Collecting a dataset: which episodes are missing, which worker collects them, and the files of the dataset."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

from collect.workers import EpisodeSource, play_in_processes
from lewm_gym.data import Dataset
from lewm_gym.data.format.header import Header
from lewm_gym.data.format.shard import MOST_EPISODES
from lewm_gym.data.writer import DatasetWriter, open_writer
from lewm_gym.provenance import usable_cores
from lewm_gym.tasks import get_task

#: Seed of the evaluation pairs; no dataset may be collected with it, so that no agent has trained on them.
RESERVED_SEED = 4_000_000_007
TUNING_SEED = 4_000_000_019  # of pairs that settings are chosen on, so that they are not chosen on those that count

MOST_AT_ONCE = 1_000_000  # episodes of a command; more are collected in ranges, with --first
MOST_WORKERS = 1024

#: Called with (episodes finished, frames finished) since the start, and the number of episodes to come in all.
Progress = Callable[[int, int, int], None]


class How(TypedDict, total=False):
    """How a collection is carried out, which changes nothing of its episodes; see `collect_from`."""

    first: int
    workers: int | None
    ray: str | None
    pictures: bool
    progress: Progress | None


def collect(
    task: str,
    folder: str | Path,
    episodes: int | None = None,
    *,
    seed: int = 0,
    policy: str | None = None,
    noise: float | None = None,
    render_quality: str | None = None,
    states_only: bool = False,
    variations: str | None = None,
    picture_every: int = 1,
    **how: Unpack[How],
) -> Dataset:
    """Collects episodes into a folder and returns the dataset.

    Existing episodes are kept: an interrupted collection resumes, a larger number extends it. Episode i is a function
    of (task, policy, noise, seed, i) only.

    Args:
        task: Name of the task.
        folder: Output folder; made if needed.
        episodes: How many; None: the paper's number.
        seed: Seed of the whole collection.
        policy: Name of the behaviour policy; None: the task's default.
        noise: The policy's noise level, in its own unit; None: its default.
        render_quality: Of the environment; None: its default.
        states_only: Store no frames; `python -m collect render` renders them later.
        variations: Variations to sample for every episode: "all", or names separated by commas.
        picture_every: N: render and store frames 0, N, 2N, ... of each episode only; states and actions of all steps
            are stored.
        how: First episode, workers and the like, see `collect_from`.

    Raises:
        ValueError: For arguments out of range, a folder with another dataset, or an invalid action of the policy.
        OSError: If the folder cannot be written or the disk is full; finished episodes are kept.
        ChildProcessError: If workers keep dying on the same episode.
    """
    episodes = get_task(task).collect_episodes if episodes is None else episodes
    from collect.episodes import EpisodeRunner, make_header

    header = make_header(
        task,
        seed=seed,
        policy=policy,
        noise=noise,
        render_quality=render_quality,
        states_only=states_only,
        variations=variations,
        picture_every=picture_every,
    )
    return collect_from(partial(EpisodeRunner, header), header, folder, episodes, **how)


def collect_from(
    make_source: Callable[[], EpisodeSource],
    header: Header,
    folder: str | Path,
    episodes: int,
    *,
    first: int = 0,
    workers: int | None = None,
    ray: str | None = None,
    pictures: bool = True,
    progress: Progress | None = None,
) -> Dataset:
    """Returns the dataset of episodes from any kind of source; see `collect`.

    Args:
        make_source: Creates the source of episodes; picklable, called once in each worker.
        header: Of the dataset.
        folder: Output folder.
        episodes: How many.
        first: Number of the first episode, for collecting a range on each of several machines.
        workers: Worker processes; None: one per CPU core; 1: this process. With more than one, a script needs
            `if __name__ == "__main__":`, because workers are spawned.
        ray: Address of a Ray cluster to use instead ("auto", "ray://head:10001"), or "local"; its machines need what
            makes the episodes.
        pictures: Whether to write a contact sheet and a film.
        progress: Called after every episode with (episodes finished, frames finished, episodes to collect).

    Raises:
        ValueError: For arguments out of range, or a folder with another dataset.
    """
    workers = usable_cores() if workers is None else workers
    _check_numbers(header, episodes, first, workers)
    folder = Path(folder)
    with open_writer(folder, header, range(first, first + episodes)) as writer:
        changed = bool(writer.missing)
        fill(writer, make_source, workers, progress, ray)
        writer.close()
    dataset = Dataset.open(folder)
    if pictures and dataset.has_pixels:
        from collect.pictures import draw_pictures

        draw_pictures(dataset, redraw=changed)
    return dataset


def _check_numbers(header: Header, episodes: int, first: int, workers: int) -> None:
    """Raises ValueError for what is out of range."""
    for name, value, least, most in (
        ("episodes", episodes, 1, MOST_AT_ONCE),
        ("workers", workers, 1, MOST_WORKERS),
        ("first", first, 0, math.inf),
        ("first + episodes", first + episodes, 1, MOST_EPISODES),
        ("seed", header.seed, 0, 2**63),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
        if value > most:
            raise ValueError(f"{name} must be at most {most:,}, got {value:,}")
    if header.noise is not None and not 0 <= header.noise < math.inf:
        raise ValueError(f"noise must be a number of at least 0, got {header.noise}")
    if header.seed in (RESERVED_SEED, TUNING_SEED):
        raise ValueError(f"seed {header.seed} is reserved for evaluation pairs: choose another one")


def fill(
    writer: DatasetWriter,
    make_source: Callable[[], EpisodeSource],
    workers: int,
    progress: Progress | None,
    ray: str | None = None,
) -> None:
    """Collects the episodes that the writer misses; after an interruption, finished episodes are in usable shards."""
    done = frames = 0
    numbers = list(writer.missing)
    try:
        with contextlib.closing(_play(make_source, writer.folder, numbers, workers, ray)) as played:
            for number, length in played:
                writer.add(number)
                done, frames = done + 1, frames + length
                if progress is not None:
                    progress(done, frames, len(numbers))
    except KeyboardInterrupt:
        with contextlib.suppress(ValueError):  # nothing is finished
            writer.close()
        raise


def _play(
    make_source: Callable[[], EpisodeSource], folder: Path, numbers: list[int], workers: int, ray: str | None
) -> Generator[tuple[int, int], None, None]:
    if ray is not None and numbers:
        from collect.cluster import play_on_ray

        yield from play_on_ray(make_source, folder, numbers, ray)
    elif workers > 1 and len(numbers) > 1:
        yield from play_in_processes(make_source, folder, numbers, min(workers, len(numbers)))
    elif numbers:
        source = make_source()
        try:
            for number in numbers:
                yield number, source.save(folder, number)
        finally:
            source.close()
