"""How fast training clips are drawn from a dataset, beside plain readers of the same frames, in one run.

All deliver the same: shuffled batches of clips, 4 frames 5 steps apart, uint8 at 224 px, prepared ahead by the same
number of threads, from files in the page cache. The plain readers hold the first episodes only, in what one would
write down first: a folder of PNG files, the reference's HDF5 layout (a chunk per frame, gzip), and raw frames in one
memory-mapped file.
"""

from __future__ import annotations

import importlib.util
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

from benchmarks.speed import Speed, measure
from lewm_gym import provenance
from lewm_gym.data import ClipSampler, Dataset
from lewm_gym.results import write_json
from lewm_gym.tasks import IMAGE_SIZE

FORMAT = "lewm-gym data speed"
SCHEMA = 1
#: Clips per second that each task is to reach on 2 cores (issue 4).
WANTED = {"pusht": 10_000, "two_room": 4_000, "reacher": 4_000, "cube": 4_000}
N_FRAMES, FRAME_SKIP = 4, 5
_AHEAD = 2  # batches drawn before the clock starts

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


def measure_data(
    folders: list[Path],
    *,
    seconds: float = 3.0,
    batch_size: int = 128,
    threads: int | None = None,
    plain_episodes: int = 6,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Row]:
    """Returns how fast each dataset delivers clips, and how fast plain readers of its first episodes do.

    Args:
        folders: Datasets with frames.
        seconds: Time for each figure.
        batch_size: Clips in a batch.
        threads: That draw batches ahead; None is one per core, at most 4.
        plain_episodes: Episodes that are written out for the plain readers; 0 leaves them out.
        progress: Called with (what is measured, done, total).

    Raises:
        ValueError: For no time, an empty batch, or a dataset without frames.
        FileNotFoundError: If there is no such dataset.
    """
    for name, value, least in (("batch size", batch_size, 1), ("plain episodes", plain_episodes, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    datasets = [Dataset.open(folder) for folder in folders]
    for dataset in datasets if plain_episodes else ():
        dataset.require_all_pictures("a plain reader")
    samplers = [ClipSampler(dataset, None, N_FRAMES, FRAME_SKIP, threads=threads) for dataset in datasets]
    names = ("raw", "hdf5", "png") if plain_episodes else ()
    rows, total = [], len(datasets) * (1 + len(names))
    for dataset, sampler in zip(datasets, samplers, strict=True):
        rows.append(_measure_ours(dataset, sampler, seconds, batch_size))
        with tempfile.TemporaryDirectory() as temporary:
            for name in names:
                if progress is not None:
                    progress(f"{dataset.folder}, {name}", len(rows), total)
                rows.append(
                    _measure_plain(dataset, name, Path(temporary), plain_episodes, seconds, batch_size, sampler.threads)
                )
    if progress is not None:
        progress("done", total, total)
    return rows


def save(path: str | Path, rows: list[Row], threads: int | None, batch_size: int) -> None:
    """Writes the figures, with the machine and the versions they were measured with."""
    head = {"format": FORMAT, "schema": SCHEMA, "wanted": WANTED, "threads": threads, "batch_size": batch_size}
    write_json(Path(path), {**head, **provenance.describe(), "rows": [asdict(row) for row in rows]})


def table(rows: list[Row]) -> str:
    """Returns the figures as a Markdown table, and a line for whatever is missing or was disturbed."""
    lines = ["| dataset | reader | clips/s | range | to reach | bytes per frame | |", "|---|---|---|---|---|---|---|"]
    notes = []
    for row in rows:
        if row.speed is None:
            notes.append(f"{row.dataset}, {row.reader}: not measured: {row.why_not}")
            continue
        ours = next(r.speed for r in rows if r.dataset == row.dataset and r.reader == "ours")
        assert ours is not None
        cells = [
            row.dataset,
            row.reader,
            f"{row.speed.median:,.0f}",
            f"{row.speed.low:,.0f}-{row.speed.high:,.0f}",
            f"{WANTED[row.task]:,}" if row.reader == "ours" and row.task in WANTED else "",
            f"{row.bytes_per_frame:,.0f}",
            "" if row.reader == "ours" else f"ours is {ours.median / row.speed.median:.1f}x",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *([""] if notes else []), *notes])


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
