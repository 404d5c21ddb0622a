"""Training clips loaded per second, compared with plain readers of the same frames in one run.

All deliver the same: shuffled batches of clips, 4 frames 5 steps apart, uint8 at 224 px, prepared ahead by the same
number of threads, from files in the page cache. The plain readers hold the first episodes only, in the most
obvious formats: a folder of PNG files, the reference's HDF5 layout (a chunk per frame, gzip), and raw frames in one
memory-mapped file.
"""

from __future__ import annotations

import importlib.util
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report.records import Measurement
from benchmarks.report.tables import Cell, Section, Table, task_title
from benchmarks.speed.timing import measure, spread
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


@dataclass(frozen=True, kw_only=True)
class Data(Measurement):
    """Times shuffled batches of training clips (4 frames 5 steps apart, uint8 at 224 px) and compares with plain
    readers of the same frames (raw, HDF5, PNG) in the same run.
    """  # noqa: D205

    kind = "speed data"

    datasets: tuple[Path, ...] = option(
        (), "dataset folders (default: those of the tasks in data/)", metavar="DATASET", positional=True
    )
    seconds: float = option(3.0, "seconds per measurement", least=1e-6, most=86_400)
    batch_size: int = option(128, "clips in a batch", least=1)
    threads: int | None = option(
        None, "threads that load batches in advance (default: one per core, at most 4)", least=1, most=1024
    )
    plain_episodes: int = option(6, "episodes to write for the plain readers, 0 for none", least=0)

    def measure(self, bars: Any) -> Json:
        """Returns how fast each dataset delivers clips, and how fast plain readers of its first episodes do.

        A row has the dataset's folder and task, the reader, its `Speed` in clips per second (None where it could not be
        measured, and then `why_not`), the episodes drawn from, and bytes per frame on disk, all that the file holds.
        """
        folders = self.datasets or [folder for name in TASKS if (folder := Path("data") / name).is_dir()]
        if not folders:
            raise ValueError("there is no dataset in data/: name one, or make one with python -m collect")
        threads = self.threads or min(4, os.cpu_count() or 1)
        datasets = [Dataset.open(folder) for folder in folders]
        for dataset in datasets if self.plain_episodes else ():
            dataset.require_all_pictures("a plain reader")
        samplers = [ClipSampler(dataset, None, N_FRAMES, FRAME_SKIP, threads=threads) for dataset in datasets]
        readers = [name for name in READERS if name == "ours" or self.plain_episodes]
        rows: list[Json] = []
        for dataset, sampler in zip(datasets, samplers, strict=True):
            with tempfile.TemporaryDirectory() as temporary:
                for name in readers:
                    bars("speed", len(rows), len(datasets) * len(readers), "figure", f"{dataset.folder}, {name}")
                    found = self._ours(sampler) if name == "ours" else self._plain(dataset, name, temporary, threads)
                    row = {"dataset": str(dataset.folder), "task": dataset.task, "reader": name}
                    rows.append(row | {"speed": None, "why_not": None, "bytes_per_frame": math.nan} | found)
        return {"threads": threads, "batch_size": self.batch_size, "rows": rows}

    def _ours(self, sampler: ClipSampler) -> Json:
        dataset = sampler.dataset
        size = sum(shard.bytes for shard in dataset.manifest.shards) / dataset.n_frames
        return {"speed": self._speed(sampler), "episodes": dataset.n_episodes, "bytes_per_frame": size}

    def _plain(self, dataset: Dataset, name: str, folder: str, threads: int) -> Json:
        """Returns the speed of a plain reader of the first episodes that are long enough for a clip."""
        chosen = np.flatnonzero(dataset.lengths > (N_FRAMES - 1) * FRAME_SKIP)[: self.plain_episodes]
        if name == "hdf5" and importlib.util.find_spec("h5py") is None:
            return {"why_not": "h5py is not installed (pip install 'lewm-gym[hdf5]')", "episodes": len(chosen)}
        frames = np.concatenate([dataset.frames(int(i), np.arange(dataset.lengths[i])) for i in chosen])
        with ExitStack() as stack:
            clips = PlainClips(dataset, chosen, N_FRAMES, FRAME_SKIP, threads=threads)
            clips.read, size = WRITERS[name](frames, Path(folder), stack)
            found = {"episodes": len(chosen), "bytes_per_frame": size / len(frames)}
            return {"speed": self._speed(clips), **found}

    def _speed(self, sampler: ClipSampler) -> Json:
        """Returns clips per second; the batches that were ready before do not count."""
        batches = sampler.batches(0, 2**40, self.batch_size)
        try:
            for _ in range(_AHEAD):
                next(batches)
            return asdict(measure(lambda: next(batches), self.seconds, repeats=3, weight=self.batch_size))
        finally:
            batches.close()  # type: ignore[attr-defined]  # it is a generator: it ends its threads

    @staticmethod
    def show(record: Record) -> Section:
        """Returns clips per second of each reader, and a line for whatever is missing."""
        rows: list[list[Cell]] = []
        notes = []
        ours = {row["dataset"]: row["speed"]["median"] for row in record["rows"] if row["reader"] == "ours"}
        for row in record["rows"]:
            reader, speed = row["reader"], row["speed"]
            if speed is None:
                notes.append(f"{row['dataset']}, {reader}: not measured: {row['why_not']}")
                continue
            ratio = "" if reader == "ours" else f"{ours[row['dataset']] / speed['median']:.1f}x"
            extent = (f"{row['episodes']:,}", f"{row['bytes_per_frame']:,.0f}")
            rows.append([task_title(row["task"]), READERS[reader], *spread(speed), *extent, ratio])
        text = (
            f"Training clips loaded per second, 4 frames of 224 px each, in shuffled batches of {record['batch_size']} "
            f"by {record['threads']} threads, from files in the page cache: the median of repeats, and their range. "
            "The plain readers have the first episodes only."
        )
        header = ["task", "reader", "clips/s", "range", "episodes", "bytes per frame", "speedup of ours"]
        return Section("Loading training clips", [text, Table(header, rows, words=2), *notes])


class PlainClips(ClipSampler):
    """The loader's own clips and threads, with frames that `read` gives: (n,) rows of its file -> (n, 224, 224, 3)."""

    read: Reader

    def batch(self, step: int, batch_size: int) -> Any:
        """Returns the clips (B, T, 224, 224, 3) uint8 of a training step."""
        which, starts = self.clips(step, batch_size)
        steps = np.arange(self.n_frames) * self.frame_skip
        return np.stack([self.read(row + steps) for row in self._rows_before[which] + starts])


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
