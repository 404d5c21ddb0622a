"""A lock that dies with its owner, and what else keeps a dataset's folder in order."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

LOCK_NAME = ".lock"


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of writers that were killed."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds the folder against a second writer for the duration of the block.

    The lock is the kernel's: it ends with the process however that dies, so a stale one cannot exist.

    Raises:
        ValueError: If another process holds it.
    """
    path = folder / LOCK_NAME
    with open(path, "a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise ValueError(
                f"{folder} is being written by another process (pid {owner}): wait for it, or use another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
