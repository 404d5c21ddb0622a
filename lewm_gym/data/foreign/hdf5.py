"""The reference's HDF5 layout (stable-worldmodel): import and export.

One dataset per column over all steps, `pixels` (N, 224, 224, 3) or (N, 3, 224, 224) uint8 among them, and `ep_len`,
`ep_offset` over episodes. We also write `episode_idx` and `step_idx`, as the released LeWM data have them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_gym.data.codec import codec_for
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.episode import FRAME_SHAPE, Episode
from lewm_gym.data.foreign.hdf5_files import Sink, check_column, reading
from lewm_gym.data.foreign.imports import Progress, import_episodes
from lewm_gym.data.format.header import Header
from lewm_gym.files import atomic_path, exclusive, make_folder, remove_stale

_NOT_QUANTITIES = {"pixels", "action", "state", "ep_len", "ep_offset", "episode_idx", "step_idx", "goal"}
_SUCCESS = ("success", "is_success", "terminated")


def import_hdf5(
    path: str | Path,
    folder: str | Path,
    task: str,
    state: str = "state",
    units: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Returns the dataset made from an HDF5 file. Can be resumed, like a collection.

    Args:
        path: The file.
        folder: Output folder.
        task: Task name to record, such as "pusht".
        state: Column of the state.
        units: Units of the other numeric columns, which become quantities.
        progress: Called after every episode.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is not of this layout, or its images are not 224 x 224.
        ImportError: Without h5py.
    """
    path, folder, h5py = Path(path), Path(folder), _h5py()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with reading(path, h5py) as file:
        lengths, offsets, columns = _check_layout(file, path, state)
        header = Header(task, f"imported from {path.name}", None, 0, codec=codec_for(task).as_json())

        def read(number: int) -> Episode:
            return _read(file, slice(offsets[number], offsets[number] + lengths[number]), state, columns)

        return import_episodes(folder, header, len(lengths), read, path, units, progress)


def export_hdf5(dataset: Dataset, path: str | Path, progress: Progress | None = None) -> None:
    """Writes a dataset as one HDF5 file, atomically; frames are gzip-compressed one by one.

    Raises:
        ValueError: If the dataset has no frames, or not all, or another process is writing the file.
        ImportError: Without h5py.
    """
    path, h5py = Path(path), _h5py()
    dataset.codec  # noqa: B018  raises without frames
    dataset.require_all_pictures("the HDF5 layout")
    count = dataset.n_frames
    if path.is_dir():
        raise ValueError(f"{path} is a folder: choose another --out")
    make_folder(path.parent)
    with exclusive(path), atomic_path(path) as temporary, Sink(temporary, "w+") as sink:
        remove_stale(path)
        with h5py.File(sink, "w") as file:
            file["ep_len"] = dataset.lengths.astype(np.int32)
            file["ep_offset"] = dataset.starts[:-1]
            file["episode_idx"] = np.repeat(np.arange(dataset.n_episodes), dataset.lengths)
            file["step_idx"] = np.concatenate([np.arange(length) for length in dataset.lengths])
            for name in dataset.header.columns:
                file[name] = dataset.column(name)
            shape = (count, *FRAME_SHAPE)
            gzip = {"chunks": (1, *FRAME_SHAPE), "compression": "gzip", "compression_opts": 1}
            pixels = file.create_dataset("pixels", shape, np.uint8, **gzip)
            for index in range(dataset.n_episodes):
                frames = dataset.frames(index, np.arange(dataset.lengths[index]))
                pixels[dataset.starts[index] : dataset.starts[index + 1]] = frames
                sink.check()
                if progress is not None:
                    progress(index + 1, dataset.n_episodes)
        sink.check()


def _check_layout(file: Any, path: Path, state: str) -> tuple[list[int], list[int], list[str]]:
    """Returns lengths and first rows of episodes, and the names of the columns that become quantities.

    Raises:
        ValueError: If the file is not of this layout, contradicts itself, or is not whole.
    """
    there = ", ".join(sorted(file))
    for name in ("ep_len", "ep_offset", "pixels", "action"):
        if name not in file:
            raise ValueError(f"{path} has no dataset {name!r}, so it is not of the reference's layout; it has: {there}")
    if state not in file:
        raise ValueError(f"{path} has no column {state!r} to take as the state; choose another with --state: {there}")
    pixels = check_column(file, "pixels", path, "u", ndim=4)
    height, width, channels = FRAME_SHAPE
    if tuple(pixels.shape[1:]) not in (FRAME_SHAPE, (channels, height, width)) or pixels.dtype != np.uint8:
        raise ValueError(
            f"{path}: pixels must be {height} x {width} x {channels} uint8, got {pixels.shape[1:]} {pixels.dtype}"
        )
    rows = len(pixels)
    for name in ("action", state):
        check_column(file, name, path, "fiub", rows)
    flags = [name for name in _SUCCESS if name in file]
    for name in flags:
        check_column(file, name, path, "fiub", rows)
    quantities = [
        name
        for name in file
        if name not in {*_NOT_QUANTITIES, *_SUCCESS, state} and hasattr(file[name], "shape") and _is_numeric(file[name])
    ]
    for name in quantities:
        check_column(file, name, path, "fiu", rows)
    lengths = check_column(file, "ep_len", path, "iu", ndim=1)
    offsets = check_column(file, "ep_offset", path, "iu", len(lengths), ndim=1)
    starts, counts = [int(n) for n in offsets[:]], [int(n) for n in lengths[:]]
    end = 0
    for number in sorted(range(len(starts)), key=starts.__getitem__):
        if counts[number] < 2 or starts[number] < end or starts[number] + counts[number] > rows:
            raise ValueError(
                f"{path}: episode {number} has ep_len {counts[number]} and ep_offset {starts[number]}, which are no "
                f"rows of its own among the {rows:,} frames"
            )
        end = starts[number] + counts[number]
    return counts, starts, quantities


def _read(file: Any, rows: slice, state: str, quantities: list[str]) -> Episode:
    pixels = file["pixels"][rows]
    if pixels.shape[1:] != FRAME_SHAPE:
        pixels = pixels.transpose(0, 2, 3, 1)
    action = _matrix(file["action"][rows]).astype(np.float32)
    action[-1] = np.nan  # the action after the last frame leads to a frame that was not recorded
    flags = [file[name][rows].reshape(len(action), -1).any(1) for name in _SUCCESS if name in file]
    return Episode(
        pixels=np.ascontiguousarray(pixels),
        action=action,
        state=_matrix(file[state][rows]).astype(np.float64),
        success=flags[0].astype(np.bool_) if flags else np.zeros(len(action), np.bool_),
        quantities={name: _matrix(file[name][rows]).astype(np.float32) for name in quantities},
    )


def _is_numeric(column: Any) -> bool:
    return column.shape is not None and 1 <= len(column.shape) <= 2 and column.dtype.kind in "fiu"


def _matrix(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(len(values), -1)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ImportError("HDF5 files need h5py: pip install 'lewm-gym[hdf5]'") from None
    return h5py
