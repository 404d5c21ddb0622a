"""HDF5 files: written without a crash on a full disk, and read without following links to other files."""

from __future__ import annotations

import contextlib
import fcntl
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


class Sink(io.FileIO):
    """A file for h5py that records the first failed write and ignores all later ones.

    libhdf5 continues to write when it closes a file and at the end of the process, which causes a segmentation fault
    if the disk is full. Call `check` to raise the recorded error.
    """

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        fcntl.flock(self, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a leftover (`remove_stale`) is held by nobody
        self._failure: OSError | None = None

    def check(self) -> None:
        """Raises the OSError of a write that failed."""
        if self._failure is not None:
            raise self._failure

    def write(self, data: Any) -> int:
        """Writes, unless a write has failed."""
        if self._failure is None:
            try:
                view = memoryview(data).cast("B")
                while len(view):  # a disk that is nearly full takes a part
                    view = view[super().write(view) :]
            except OSError as error:
                self._failure = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Sets the file's size, unless a write has failed."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._failure = self._failure or error
            return size or 0


@contextlib.contextmanager
def reading(path: Path, h5py: Any) -> Iterator[Any]:
    """Yields an HDF5 file; errors of libhdf5 for a damaged file become a ValueError with its name.

    Raises:
        ValueError: If the file is damaged, or has data outside itself.
    """
    try:
        with h5py.File(path, "r") as file:
            _refuse_outside(file, h5py)
            yield file
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, UnicodeDecodeError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise  # of our own disk
        raise ValueError(f"{path} cannot be read as HDF5, or is damaged: {first_line(error)}") from error


def _refuse_outside(group: Any, h5py: Any) -> None:
    """Raises ValueError if a group has data in other files, or links to itself."""
    waiting, seen = [group], set()
    while waiting:
        group = waiting.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{group.file.filename}: {group.name.rstrip('/')}/{name} is a link")
            item = group[name]
            if isinstance(item, h5py.Group):
                where = h5py.h5o.get_info(item.id).addr
                if where not in seen:
                    seen.add(where)
                    waiting.append(item)
            elif isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                raise ValueError(f"{group.file.filename}: the data of {item.name} lie in other files")


def check_column(file: Any, name: str, path: Path, kinds: str = "", rows: int | None = None, ndim: int = 0) -> Any:
    """Returns a dataset of an HDF5 file; raises ValueError if it has another type or is incomplete.

    Args:
        file: The file, or a group.
        name: Name of the dataset.
        path: Of the file, for messages.
        kinds: numpy's letters of the allowed kinds of numbers; empty for any.
        rows: Number of rows; None for any.
        ndim: Number of axes; 0 for any but none.
    """
    column = file[name]
    if not hasattr(column, "shape") or column.shape is None:
        raise ValueError(f"{path}: {name!r} must be a dataset, got a {type(column).__name__.lower()}")
    shape, dtype = column.shape, column.dtype
    if (kinds and dtype.kind not in kinds) or not shape or (ndim and len(shape) != ndim):
        wanted = {"iu": "whole numbers", "fiu": "numbers", "u": "bytes", "fiub": "numbers"}.get(kinds, "values")
        raise ValueError(f"{path}: {name!r} must hold {wanted} in {ndim or 'one or more'} axes, got {shape} {dtype}")
    if rows is not None and shape[0] != rows:
        raise ValueError(f"{path}: {name!r} has {shape[0]:,} rows, where there are {rows:,} frames")
    if np.prod(shape, dtype=float) * dtype.itemsize > 2**62:
        raise ValueError(f"{path}: {name!r} declares {shape} values, more than a file can hold")
    whole = int(np.prod([-(-n // c) for n, c in zip(shape, column.chunks, strict=True)])) if column.chunks else None
    stored = column.id.get_num_chunks() if column.chunks else column.id.get_storage_size()
    if stored < (column.nbytes if whole is None else whole):
        raise ValueError(f"{path}: {name!r} declares {shape[0]:,} rows, but not all are in the file: copy it again")
    return column


def first_line(error: BaseException) -> str:
    """Returns the message of an error as one short line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
