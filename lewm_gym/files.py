"""Files that are whole or absent, and folders to write them in."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path whose file becomes `path` when the block ends well, and vanishes when it does not.

    The data reach the disk before the name does, so that after a power cut the file is whole or absent. The temporary
    name is unique: threads, and machines that share a folder, may write the same file, and the last one wins.

    Raises:
        OSError: Naming `path`, if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # a failed write() does not say of what; the temporary name would not help
        raise


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for writing that is whole or absent in the end, as `atomic_path`."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        yield file


def make_folder(folder: Path) -> None:
    """Makes a folder to write to, with those above it, unless it is there.

    Raises:
        OSError: Of the system's own type, saying what to do: a file may stand in its place, or a disk be read-only.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file of that name is in the way" if isinstance(error, FileExistsError) else error.strerror
        raise type(error)(f"cannot write to {folder} ({reason}): choose another --out") from None


def parse_json(path: Path, remedy: str) -> Any:
    """Returns what a JSON file holds.

    Args:
        path: The file.
        remedy: What to do with a file that cannot be used, for the message.

    Raises:
        ValueError: If it is not JSON: cut off, say.
        OSError: If it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): {remedy}") from None


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Returns the object that a JSON file holds; arguments and errors as for `parse_json`.

    Raises:
        ValueError: Also if it holds something else.
    """
    content = parse_json(path, remedy)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object: {remedy}")
    return content
