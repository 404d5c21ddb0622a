"""Writing a dataset as a LeRobot dataset, v3.0: lossless images (PNG) in the tables, no videos.

LeRobot has an action in every row; that of an episode's last frame repeats the one before. States are float32 there.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lewm_gym.data.dataset import Dataset
from lewm_gym.data.episode import FRAME_SHAPE, Episode
from lewm_gym.data.foreign.imports import Progress
from lewm_gym.data.foreign.lerobot import STATE
from lewm_gym.files import atomic_folder

VERSION = "v3.0"
CAMERA = "observation.image"
_PATH = "{folder}/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_FILE_BYTES = 100 * 10**6
_CHUNK_FILES = 1000
_FRAMES_FOR_STATISTICS = 200
_INDICES = {"frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}


def export_lerobot(dataset: Dataset, folder: str | Path, fps: int = 10, progress: Progress | None = None) -> None:
    """Writes a dataset as a folder in LeRobot's layout, atomically.

    Args:
        dataset: With frames.
        folder: Output folder; must not exist.
        fps: Frames per second to record; the tasks' environments have 10.
        progress: Called after every episode.

    Raises:
        ValueError: If the dataset has no frames, or not all, or the folder exists.
    """
    folder = Path(folder)
    dataset.codec  # noqa: B018  raises without frames
    dataset.require_all_pictures("LeRobot's layout")
    if fps < 1:
        raise ValueError(f"fps must be at least 1, got {fps}")
    with atomic_folder(folder) as partial:
        rows = _write_data(dataset, partial, fps, progress)
        _write_meta(dataset, partial, fps, rows)


def _write_data(dataset: Dataset, folder: Path, fps: int, progress: Progress | None) -> list[dict[str, Any]]:
    """Writes the tables; returns a row with the location of each episode."""
    rows: list[dict[str, Any]] = []
    writer: Any = None
    place, path = (0, 0), folder
    try:
        for index in range(dataset.n_episodes):
            if writer is not None and path.stat().st_size >= _FILE_BYTES:
                writer.close()
                writer, place = None, _next(place)
            table = _table(dataset, index, fps)
            if writer is None:
                path = folder / _PATH.format(folder="data", chunk_index=place[0], file_index=place[1])
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = pq.ParquetWriter(path, table.schema, compression="snappy")
            writer.write_table(table)
            rows.append(_episode_row(dataset, index, place))
            if progress is not None:
                progress(index + 1, dataset.n_episodes)
    finally:
        if writer is not None:
            writer.close()
    return rows


def _next(place: tuple[int, int]) -> tuple[int, int]:
    chunk, file = place
    return (chunk, file + 1) if file + 1 < _CHUNK_FILES else (chunk + 1, 0)


def _episode_row(dataset: Dataset, index: int, place: tuple[int, int]) -> dict[str, Any]:
    return {
        "episode_index": index,
        "tasks": [dataset.task],
        "length": int(dataset.lengths[index]),
        "dataset_from_index": int(dataset.starts[index]),
        "dataset_to_index": int(dataset.starts[index + 1]),
        "data/chunk_index": place[0],
        "data/file_index": place[1],
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }


def _columns(episode: Episode) -> dict[str, NDArray[Any]]:
    """Returns the numeric features of an episode, (T, k)."""
    action = episode.action.copy()
    action[-1] = action[-2]
    success = np.append(episode.success[1:], episode.success[-1])
    return {
        STATE: episode.state.astype(np.float32),
        **{f"observation.{name}": values for name, values in episode.quantities.items()},
        "action": action,
        "next.success": success[:, None],
    }


def _table(dataset: Dataset, index: int, fps: int) -> pa.Table:
    episode = dataset.episode(index)
    assert episode.pixels is not None
    steps = np.arange(len(episode))
    pictures = pa.array(
        [{"bytes": _png(frame), "path": f"frame-{step:06d}.png"} for step, frame in enumerate(episode.pixels)],
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    )
    arrays = {CAMERA: pictures, **{name: _arrow(values) for name, values in _columns(episode).items()}}
    arrays["timestamp"] = pa.array((steps / fps).astype(np.float32))
    for name, values in {
        "frame_index": steps,
        "episode_index": np.full_like(steps, index),
        "index": steps + dataset.starts[index],
        "task_index": np.zeros_like(steps),
    }.items():
        arrays[name] = pa.array(values.astype(np.int64))
    metadata = {b"huggingface": json.dumps({"info": {"features": _hugging_face(dataset)}}).encode()}
    return pa.table(arrays).replace_schema_metadata(metadata)


def _arrow(values: NDArray[Any]) -> pa.Array:
    size = values.shape[1]
    flat = pa.array(np.ascontiguousarray(values).ravel())
    return flat if size == 1 else pa.FixedSizeListArray.from_arrays(flat, size)  # LeRobot has no vectors of one


def _png(frame: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def features(dataset: Dataset) -> dict[str, Any]:
    """Returns LeRobot's description of the columns."""
    described: dict[str, Any] = {
        CAMERA: {"dtype": "image", "shape": list(FRAME_SHAPE), "names": ["height", "width", "channels"]}
    }
    for name, values in _columns(dataset.episode(0, pixels=False)).items():
        described[name] = {"dtype": str(values.dtype), "shape": [values.shape[1]], "names": None}
    described["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    described.update({name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in _INDICES.items()})
    return described


def _hugging_face(dataset: Dataset) -> dict[str, Any]:
    """Returns the columns as the `datasets` library describes them."""
    found: dict[str, Any] = {}
    for name, feature in features(dataset).items():
        value = {"dtype": feature["dtype"], "_type": "Value"}
        size = feature["shape"][0]
        if feature["dtype"] == "image":
            found[name] = {"_type": "Image"}
        else:
            found[name] = value if size == 1 else {"feature": value, "length": size, "_type": "Sequence"}
    return found


def _write_meta(dataset: Dataset, folder: Path, fps: int, rows: list[dict[str, Any]]) -> None:
    meta = folder / "meta"
    (meta / "episodes" / "chunk-000").mkdir(parents=True)
    info = {
        "codebase_version": VERSION,
        "robot_type": None,
        "total_episodes": dataset.n_episodes,
        "total_frames": dataset.n_frames,
        "total_tasks": 1,
        "chunks_size": _CHUNK_FILES,
        "data_files_size_in_mb": _FILE_BYTES // 10**6,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{dataset.n_episodes}"},
        "data_path": _PATH.replace("{folder}", "data"),
        "video_path": None,
        "features": features(dataset),
    }
    (meta / "info.json").write_text(json.dumps(info, indent=4))
    (meta / "stats.json").write_text(json.dumps(_statistics(dataset), indent=4))
    pq.write_table(pa.Table.from_pylist(rows), meta / "episodes" / "chunk-000" / "file-000.parquet")
    pq.write_table(_tasks(dataset.task), meta / "tasks.parquet")


def _tasks(task: str) -> pa.Table:
    """Returns the table of tasks as pandas writes it, the task's name being the index."""
    index = "__index_level_0__"
    kinds = (("task_index", "task_index", "int64", "int64"), (None, index, "unicode", "object"))
    columns = [
        {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy_type, "metadata": None}
        for name, field, kind, numpy_type in kinds
    ]
    pandas = {"index_columns": [index], "column_indexes": [], "columns": columns, "pandas_version": "2.2.0"}
    table = pa.table({"task_index": pa.array([0], pa.int64()), index: pa.array([task])})
    return table.replace_schema_metadata({b"pandas": json.dumps(pandas).encode()})


def _statistics(dataset: Dataset) -> dict[str, Any]:
    """Returns minimum, maximum, mean and standard deviation of every feature, as LeRobot normalises with them."""
    parts: dict[str, list[NDArray[Any]]] = {}
    for index in range(dataset.n_episodes):
        for name, values in _columns(dataset.episode(index, pixels=False)).items():
            parts.setdefault(name, []).append(values)
    found = {name: _moments(np.concatenate(values).astype(np.float64), (0,)) for name, values in parts.items()}
    rng = np.random.default_rng(0)
    chosen = rng.integers(dataset.n_episodes, size=min(_FRAMES_FOR_STATISTICS, dataset.n_frames))
    frames = [dataset.frames(i, rng.integers(dataset.lengths[i]))[0] for i in chosen.tolist()]
    channels = np.stack(frames).transpose(0, 3, 1, 2) / 255.0
    found[CAMERA] = _moments(channels, (0, 2, 3))
    return found


def _moments(values: NDArray[np.float64], axes: tuple[int, ...]) -> dict[str, Any]:
    """Returns the statistics over `axes`; those of images keep their shape (3, 1, 1), as LeRobot has them."""
    keep = len(axes) > 1
    reduced = {name: getattr(values, name)(axis=axes, keepdims=keep) for name in ("min", "max", "mean", "std")}
    return {**{k: (v[0] if keep else v).tolist() for k, v in reduced.items()}, "count": [len(values)]}
