"""Files that are whole or absent, and a lock that dies with its owner."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LOCK_NAME = ".lock"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path whose file becomes `path` when the block ends well, and vanishes when it does not.

    The data reach the disk before the name does, so that after a power cut the file is whole or absent.

    Raises:
        OSError: Naming `path`, if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
