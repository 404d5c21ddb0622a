"""Lance tables as stable-worldmodel writes them by default, imported one episode at a time.

One row per step, the rows of an episode consecutive: `episode_idx` and `step_idx`, images as JPEG (`pixels`, or
`pixels_<view>`), everything else as lists of float32. Its recorder omits the reset frame: the action of a row
leads from its frame to the next row's, and the action of an episode's last row is dropped.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_gym.data.codec import codec_for
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.episode import Episode
from lewm_gym.data.foreign.imports import Progress, import_episodes, padded_actions, resized_frames
from lewm_gym.data.format.header import Header

_INDEX = ("episode_idx", "step_idx")
#: Columns of its recorder that are no quantities of the world.
_BOOKKEEPING = {"action", "goal", "id", "reward", "truncated", *_INDEX}
_SUCCESS = ("success", "is_success", "terminated")
#: What its environments call their state: Two-Room's and Push-T's one column, Cube's and Reacher's two of MuJoCo's.
STATES = (("state",), ("qpos", "qvel"))


def is_lance(path: Path) -> bool:
    """Returns whether there is a table at `path`, a `.lance` folder, or in it, as the only one."""
    return path.is_dir() and (path.suffix == ".lance" or len(list(path.glob("*.lance"))) == 1)


def import_lance(
    path: str | Path,
    folder: str | Path,
    task: str,
    state: str | None = None,
    pixels: str | None = None,
    units: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Returns the dataset made from a Lance table. Can be resumed, like a collection.

    Args:
        path: The `.lance` folder, or a folder with one in it.
        folder: Output folder.
        task: Task name to record, such as "pusht".
        state: Column of the state, or several separated by commas (default: the first existing one of `STATES`).
        pixels: Column of the images, if there are several.
        units: Units of the other numeric columns, which become quantities.
        progress: Called after every episode.

    Raises:
        FileNotFoundError: If there is no table.
        ValueError: If it is not of this layout, or damaged.
        ImportError: Without pylance.
    """
    path, folder = Path(path), Path(folder)
    table, source = _open(path)
    types = {field.name: field.type for field in table.schema}
    columns = _Columns(types, state, pixels, source)
    starts = _episode_starts(table, types, source)
    header = Header(task, f"imported from {source.name}", None, 0, codec=codec_for(task).as_json())

    def read(number: int) -> Episode:
        length = int(starts[number + 1] - starts[number])
        rows = _readable(
            lambda: table.to_table(columns=columns.wanted, offset=int(starts[number]), limit=length), source
        )
        return columns.episode(rows)

    return import_episodes(folder, header, len(starts) - 1, read, source, units, progress)


class _Columns:
    """The roles of a table's columns."""

    def __init__(self, types: dict[str, Any], state: str | None, pixels: str | None, source: Path) -> None:
        from pyarrow import types as kinds

        there = ", ".join(sorted(types))
        pictures = [
            name
            for name, kind in types.items()
            if name.split("_")[0] == "pixels" and (kinds.is_binary(kind) or kinds.is_large_binary(kind))
        ]
        for name in ("action", *_INDEX):
            if name not in types:
                raise ValueError(
                    f"{source} has no column {name!r}, so it is not of stable-worldmodel's layout; it has: {there}"
                )
        if pixels is None and len(pictures) != 1 and "pixels" not in pictures:
            raise ValueError(f"{source} should have one image column, it has {pictures}; choose one with --pixels")
        if pixels is not None and pixels not in pictures:
            raise ValueError(f"{source} has no image column {pixels!r}; choose among {pictures} with --pixels")
        self.pixels = pixels or ("pixels" if "pixels" in pictures else pictures[0])
        choices = STATES if state is None else (tuple(state.split(",")),)
        chosen = next((names for names in choices if set(names) <= set(types)), None)
        if chosen is None:
            asked = " nor ".join("+".join(names) for names in choices)
            raise ValueError(
                f"{source} has no column {asked} to take as the state; choose another with --state: {there}"
            )
        self.state = chosen
        self.success = [name for name in _SUCCESS if name in types]
        numeric = [
            name
            for name, kind in types.items()
            if kinds.is_floating(kind.value_type if kinds.is_fixed_size_list(kind) else kind) or kinds.is_integer(kind)
        ]
        if missing := {*self.state, "action"} - set(numeric):
            raise ValueError(f"{source}: column {', '.join(sorted(missing))} does not hold numbers")
        taken = {*_BOOKKEEPING, *_SUCCESS, "state", *(self.state if len(self.state) == 1 else ())}
        self.quantities = [name for name in numeric if name not in taken]
        self.wanted = [self.pixels, "action", *self.state, *self.success]
        self.wanted += [name for name in self.quantities if name not in self.wanted]

    def episode(self, rows: Any) -> Episode:
        """Returns the episode of a table of its rows."""
        values = {name: _matrix(rows.column(name)) for name in self.wanted if name != self.pixels}
        success = [
            values[name] for name in self.success if not np.isnan(values[name]).all()
        ]  # Reacher's is never known
        return Episode(
            pixels=resized_frames(np.stack([_decoded(blob) for blob in rows.column(self.pixels).to_pylist()])),
            action=padded_actions(values["action"], rows.num_rows),
            state=np.concatenate([values[name] for name in self.state], axis=1).astype(np.float64),
            success=np.any(success[0] > 0, axis=1, keepdims=False) if success else np.zeros(rows.num_rows, np.bool_),
            quantities={name: values[name].astype(np.float32) for name in self.quantities},
        )


def _open(path: Path) -> tuple[Any, Path]:
    """Returns the table and its folder."""
    try:
        import lance
    except ImportError:
        raise ImportError("Lance tables need pylance: pip install 'lewm-gym[lance]'") from None
    if not is_lance(path):
        raise FileNotFoundError(f"no Lance table at {path}: expected a folder NAME.lance, or a folder with just one")
    source = path if path.suffix == ".lance" else next(path.glob("*.lance"))
    return _readable(lambda: lance.dataset(str(source)), source), source


def _readable(read: Callable[[], Any], source: Path) -> Any:
    """Returns the result of `read`; errors of Lance for a damaged table become one line with its name."""
    try:
        return read()
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{source} cannot be read as a Lance table: {str(error).splitlines()[0]}") from None


def _episode_starts(table: Any, types: dict[str, Any], source: Path) -> NDArray[np.int64]:
    """Returns the row that each episode starts at, and the number of rows."""
    batches = _readable(lambda: list(table.to_batches(columns=["episode_idx"])), source)
    numbers = np.concatenate([np.zeros(0, np.int64), *(batch.column(0).to_numpy() for batch in batches)])
    steps = np.diff(numbers)
    if (steps < 0).any():
        raise ValueError(f"{source}: the rows of an episode are not consecutive (episode_idx decreases)")
    return np.concatenate([[0], np.flatnonzero(steps) + 1, [len(numbers)]]).astype(np.int64)


def _matrix(column: Any) -> NDArray[Any]:
    """Returns a column's rows as (T, k)."""
    array = column.combine_chunks()
    flat = array.flatten() if hasattr(array.type, "list_size") else array
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(array), -1)


def _decoded(blob: bytes | None) -> NDArray[np.uint8]:
    """Returns the image of an encoded one."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(blob or b"")) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError):
        raise ValueError("an image cannot be decoded; the table is damaged") from None
