"""How fast training clips are drawn from a dataset, beside plain readers of the same frames, in one run.

All deliver the same: shuffled batches of clips, 4 frames 5 steps apart, uint8 at 224 px, prepared ahead by the same
number of threads, from files in the page cache. The plain readers hold the first episodes only, in what one would
write down first: a folder of PNG files, the reference's HDF5 layout (a chunk per frame, gzip), and raw frames in one
memory-mapped file.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report.records import Measurement
from benchmarks.report.tables import Cell, Section, Table, task_title
from benchmarks.speed.timing import Speed, measure, spread
from lewm_gym.commands import option
from lewm_gym.data import ClipSampler, Dataset
from lewm_gym.results import Json, Record
from lewm_gym.tasks import IMAGE_SIZE, TASKS

N_FRAMES, FRAME_SKIP = 4, 5
_AHEAD = 2  # batches drawn before the clock starts
READERS = {
    "ours": "this repository",
    "raw": "raw frames, memory-mapped",
    "hdf5": "HDF5, a gzip chunk per frame",
    "png": "PNG files",
}

#: Rows of frames, (n,) -> (n, 224, 224, 3) uint8.
Reader = Callable[[NDArray[np.int64]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        dataset: Its folder.
        task: Name of its task.
        reader: "ours", "raw", "hdf5" or "png".
        speed: Clips per second; None if it could not be measured.
        why_not: Why not, if so.
        episodes: How many the clips were drawn from.
        bytes_per_frame: On disk, pixels and whatever else the file holds.
    """

    dataset: str
    task: str
    reader: str
    speed: Speed | None
    why_not: str | None
    episodes: int
    bytes_per_frame: float


@dataclass(frozen=True, kw_only=True)
class Data(Measurement):
    """Times shuffled batches of training clips (4 frames 5 steps apart, uint8 at 224 px) and compares with plain
    readers of the same frames (raw, HDF5, PNG) in the same run.
    """  # noqa: D205

    kind = "speed data"

    datasets: tuple[Path, ...] = option(
        (), "dataset folders (default: those of the tasks in data/)", metavar="DATASET", positional=True
    )
    seconds: float = option(3.0, "seconds per measurement", least=1e-6)
    batch_size: int = option(128, "clips in a batch", least=1)
    threads: int | None = option(
        None, "threads that load batches in advance (default: one per core, at most 4)", least=1
    )
    plain_episodes: int = option(6, "episodes to write for the plain readers, 0 for none", least=0)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Nothing names the record but its kind."""
        return ()

    def measure(self, bars: Any) -> Json:
        """Returns how fast each dataset delivers clips, and how fast plain readers of its first episodes do."""
        folders = self.datasets or [folder for name in TASKS if (folder := Path("data") / name).is_dir()]
        if not folders:
            raise ValueError("there is no dataset in data/: name one, or make one with python -m collect")
        threads = self.threads or min(4, os.cpu_count() or 1)
        datasets = [Dataset.open(folder) for folder in folders]
        for dataset in datasets if self.plain_episodes else ():
            dataset.require_all_pictures("a plain reader")
        samplers = [ClipSampler(dataset, None, N_FRAMES, FRAME_SKIP, threads=threads) for dataset in datasets]
        names = tuple(WRITERS) if self.plain_episodes else ()
        rows, total = [], len(datasets) * (1 + len(names))
        for dataset, sampler in zip(datasets, samplers, strict=True):
            rows.append(_measure_ours(dataset, sampler, self.seconds, self.batch_size))
            with tempfile.TemporaryDirectory() as temporary:
                for name in names:
                    bars("speed", len(rows), total, "figure", f"{dataset.folder}, {name}")
                    how = (Path(temporary), self.plain_episodes, self.seconds, self.batch_size, sampler.threads)
                    rows.append(_measure_plain(dataset, name, *how))
        return {"threads": threads, "batch_size": self.batch_size, "rows": [asdict(row) for row in rows]}

    @staticmethod
    def show(record: Record) -> Section:
        """Returns clips per second of each reader, and a line for whatever is missing."""
        rows: list[list[Cell]] = []
        notes = []
        for row in record["rows"]:
            if row["speed"] is None:
                notes.append(f"{row['dataset']}, {row['reader']}: not measured: {row['why_not']}")
                continue
            ours = next(r["speed"] for r in record["rows"] if (r["dataset"], r["reader"]) == (row["dataset"], "ours"))
            ratio = "" if row["reader"] == "ours" else f"{ours['median'] / row['speed']['median']:.1f}x"
            size = f"{row['bytes_per_frame']:,.0f}"
            rows.append(
                [
                    task_title(row["task"]),
                    READERS[row["reader"]],
                    *spread(row["speed"]),
                    f"{row['episodes']:,}",
                    size,
                    ratio,
                ]
            )
        text = (
            f"Training clips loaded per second, 4 frames of 224 px each, in shuffled batches of {record['batch_size']} "
            f"by {record['threads']} threads, from files in the page cache: the median of repeats, and their range. "
            "The plain readers have the first episodes only."
        )
        header = ["task", "reader", "clips/s", "range", "episodes", "bytes per frame", "speedup of ours"]
        return Section("Loading training clips", [text, Table(header, rows, words=2), *notes])


def _measure_ours(dataset: Dataset, sampler: ClipSampler, seconds: float, batch_size: int) -> Row:
    batches = sampler.batches(0, 2**40, batch_size)
    speed = _measure_batches(batches, seconds, batch_size)
    size = sum(shard.bytes for shard in dataset.manifest.shards) / dataset.n_frames
    return Row(str(dataset.folder), dataset.task, "ours", speed, None, dataset.n_episodes, size)


def _measure_plain(
    dataset: Dataset, name: str, folder: Path, episodes: int, seconds: float, batch_size: int, threads: int
) -> Row:
    """Returns the speed of a plain reader of the first episodes that are long enough for a clip."""
    span = (N_FRAMES - 1) * FRAME_SKIP
    chosen = [int(i) for i in np.flatnonzero(dataset.lengths > span)[:episodes]]
    lengths = dataset.lengths[chosen]
    if name == "hdf5" and importlib.util.find_spec("h5py") is None:
        why = "h5py is not installed (pip install 'lewm-gym[hdf5]')"
        return Row(str(dataset.folder), dataset.task, name, None, why, len(chosen), float("nan"))
    frames = np.concatenate([dataset.frames(i, np.arange(dataset.lengths[i])) for i in chosen])
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    starts = np.concatenate([begin + np.arange(n - span) for begin, n in zip(first, lengths, strict=True)])
    steps = np.arange(N_FRAMES) * FRAME_SKIP

    def batch(step: int, read: Reader) -> NDArray[np.uint8]:
        drawn = np.random.default_rng(step).choice(starts, batch_size)
        return np.stack([read(start + steps) for start in drawn])

    with ExitStack() as stack:
        read, size = WRITERS[name](frames, folder, stack)
        speed = _measure_batches(_prepared_ahead(lambda step: batch(step, read), threads), seconds, batch_size)
    return Row(str(dataset.folder), dataset.task, name, speed, None, len(chosen), size / len(frames))


def _measure_batches(batches: Iterator[Any], seconds: float, batch_size: int) -> Speed:
    """Returns clips per second; the batches that were ready before do not count."""
    try:
        for _ in range(_AHEAD):
            next(batches)
        return measure(lambda: next(batches), seconds, repeats=3, weight=batch_size)
    finally:
        batches.close()  # type: ignore[attr-defined]  # both are generators: it ends their threads


def _prepared_ahead(make_batch: Callable[[int], Any], threads: int) -> Iterator[Any]:
    """Yields batch after batch, each drawn by one of `threads`, as `ClipSampler.batches` does."""
    with ThreadPoolExecutor(threads) as pool:
        ahead = deque(pool.submit(make_batch, step) for step in range(threads + 1))
        step = len(ahead)
        try:
            while True:
                yield ahead.popleft().result()
                ahead.append(pool.submit(make_batch, step))
                step += 1
        finally:
            pool.shutdown(cancel_futures=True)


def _write_raw(frames: NDArray[np.uint8], folder: Path, stack: ExitStack) -> tuple[Reader, int]:
    path = folder / "frames.npy"
    np.save(path, frames)
    mapped = np.load(path, mmap_mode="r")
    return lambda rows: mapped[rows], path.stat().st_size


def _write_png(frames: NDArray[np.uint8], folder: Path, stack: ExitStack) -> tuple[Reader, int]:
    from PIL import Image

    paths = [folder / f"{row}.png" for row in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path)
    size = sum(path.stat().st_size for path in paths)
    return lambda rows: np.stack([np.asarray(Image.open(paths[row])) for row in rows]), size


def _write_hdf5(frames: NDArray[np.uint8], folder: Path, stack: ExitStack) -> tuple[Reader, int]:
    import h5py

    path, chunk = folder / "frames.h5", (1, IMAGE_SIZE, IMAGE_SIZE, 3)
    with h5py.File(path, "w") as file:
        file.create_dataset("pixels", data=frames, chunks=chunk, compression="gzip", compression_opts=1)
    pixels = stack.enter_context(h5py.File(path))["pixels"]
    return lambda rows: np.stack([pixels[row] for row in rows]), path.stat().st_size  # a list of rows is far slower


#: Plain reader -> writes its file and returns (what reads rows of it, bytes written).
WRITERS: dict[str, Callable[[NDArray[np.uint8], Path, ExitStack], tuple[Reader, int]]] = {
    "raw": _write_raw,
    "hdf5": _write_hdf5,
    "png": _write_png,
}
