"""Atomic and checksummed files, and folders with one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

LOCK_NAME = ".lock"
#: The key under which a JSON file holds the SHA-256 of all else in it.
SEAL = "sha256"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path whose file becomes `path` when the block succeeds, and is removed otherwise.

    The data are flushed to disk before the file is renamed, so after a power failure it is complete or absent. The
    temporary
    name is unique: threads, and machines that share a folder, may write the same file, and the last one wins. It has
    the suffix of `path`, by which ffmpeg and matplotlib choose the format.

    Raises:
        OSError: Naming `path`, if it cannot be written.
    """
    with _temporary_of(path) as temporary:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for atomic writing, as `atomic_path`."""
    with _temporary_of(path) as temporary, _open_held(temporary, "wb", fcntl.LOCK_EX) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(temporary, path)  # still held: what is not held is a leftover (`remove_stale`)


@contextlib.contextmanager
def _temporary_of(path: Path) -> Iterator[Path]:
    """Yields the name of a temporary file, which is removed if the block fails."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        yield temporary
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # a failed write() does not say of what; the temporary name would not help
        raise


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of killed writers; call it while holding the folder (`exclusive`)."""
    for path in folder.glob(".*.tmp*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def remove_stale(path: Path) -> None:
    """Removes leftovers of killed writers of `path`, whose files and folders are no longer locked."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp*"):
        lock = temporary / LOCK_NAME if temporary.is_dir() else temporary
        with contextlib.suppress(OSError), open(lock, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where a living writer holds it
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path` when the block succeeds, and is removed otherwise.

    Raises:
        ValueError: If `path` exists, or another process is writing it.
        OSError: If it cannot be written.
    """
    if path.exists():
        raise ValueError(f"{path} exists already: choose another --out, or delete it")
    make_folder(path.parent)
    with exclusive(path):
        remove_stale(path)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            temporary.mkdir()
            yield temporary
            temporary.rename(path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                shutil.rmtree(temporary)
            if isinstance(error, OSError) and error.errno is not None:
                error.filename = str(path)
            raise


def is_whole(path: Path) -> bool:
    """Returns whether a PNG or an mp4 is there and was not cut off."""
    content = path.read_bytes() if path.is_file() else b""
    if path.suffix == ".png":
        return content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")
    place = 0  # of a box, which begins with its size; the film's index stands before its frames
    while content[4:8] == b"ftyp" and place < len(content):
        place += max(8, int.from_bytes(content[place : place + 4], "big"))
    return place == len(content) > 0


def cache_folder() -> Path:
    """Returns the folder for what can be made again; it need not exist.

    `$LEWM_GYM_CACHE`, else `$XDG_CACHE_HOME/lewm_gym`, else `~/.cache/lewm_gym`.
    """
    if os.environ.get("LEWM_GYM_CACHE"):
        return Path(os.environ["LEWM_GYM_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lewm_gym"


def inside(folder: Path, name: str) -> Path:
    """Returns the path of a file that a file in a folder names; it must be in that folder.

    Raises:
        ValueError: If it is outside the folder.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith(("/", "\\")) or ".." in parts or "\0" in name:
        raise ValueError(f"{folder} names {name!r}, which is not a file in that folder")
    return folder / name


def make_folder(folder: Path, remedy: str = "choose another --out") -> None:
    """Creates a folder, with its parents, unless it exists.

    Args:
        folder: The folder.
        remedy: Solution to name in the message if it cannot be created.

    Raises:
        OSError: With the solution, if a file has that name or the disk is read-only.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file of that name is in the way" if isinstance(error, FileExistsError) else error.strerror
        raise type(error)(f"cannot write to {folder} ({reason}): {remedy}") from None


class Locked(ValueError):
    """Another process holds the lock."""


@contextlib.contextmanager
def exclusive(path: Path, wait: bool = False) -> Iterator[None]:
    """Locks a folder, or a file, against a second writer for the duration of the block.

    The kernel releases the lock when the process ends, so there are no stale locks. The lock of a folder is a file in
    it; that of a file is `.NAME.lock` beside it, which is removed at the end.

    Args:
        path: A folder, or a file that need not exist.
        wait: Whether to wait until no other process holds it.

    Raises:
        Locked: If another process holds it.
        OSError: If the lock cannot be written.
    """
    of_folder = path.is_dir()
    lock = path / LOCK_NAME if of_folder else path.with_name(f".{path.name}{LOCK_NAME}")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_open_held(lock, "ab", fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            kind, owner = "folder" if of_folder else "name", "unknown"
            with contextlib.suppress(OSError):
                owner = lock.read_text("ascii", errors="replace").strip() or owner
            raise Locked(
                f"{path} is being written by another process (pid {owner}): wait for it, or use another {kind}"
            ) from None
        if not of_folder:
            stack.callback(lock.unlink, missing_ok=True)  # while it is held
        with contextlib.suppress(OSError):  # on a full disk: whatever is written next says so
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), str(os.getpid()).encode())
        yield


@contextlib.contextmanager
def _open_held(path: Path, mode: str, how: int) -> Iterator[IO[bytes]]:
    """Opens a file and locks it; one that another process removed in the meantime is opened again."""
    while True:
        with open(path, mode) as file:
            fcntl.flock(file, how)
            if _is_same_file(file, path):
                yield file
                return


def _is_same_file(file: IO[bytes], path: Path) -> bool:
    """Returns whether `path` names the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(record: Mapping[str, Any]) -> str:
    """Returns the SHA-256, in hexadecimal, of a record's content, independent of its JSON formatting."""
    plain = json.loads(json.dumps(record))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record with its own hash, which `check_seal` checks when it is read."""
    return {**record, SEAL: sha256_of(record)}


def check_seal(record: Mapping[str, Any], path: Path, remedy: str) -> None:
    """Raises ValueError, naming the file and the remedy, if the record was modified after `sealed`."""
    if record.get(SEAL) != sha256_of({name: value for name, value in record.items() if name != SEAL}):
        raise ValueError(f"{path} is damaged, or was modified (its SHA-256 does not match): {remedy}")


def parse_json(path: Path, remedy: str) -> Any:
    """Returns the content of a JSON file.

    Args:
        path: The file.
        remedy: Solution to name in the message for an unusable file.

    Raises:
        ValueError: If it is not JSON (RFC 8259: no NaN, no infinity), or nested too deeply.
        OSError: If it cannot be read.
    """
    return _parsed(path.read_bytes(), path, remedy)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Returns the object that a JSON file holds; arguments and errors as for `parse_json`.

    Raises:
        ValueError: Also if it holds something else.
    """
    return parse_object(path.read_bytes(), path, remedy)


def parse_object(content: bytes, path: Path, remedy: str) -> dict[str, Any]:
    """Returns the object that JSON from `path` holds; errors as for `read_json`."""
    found = _parsed(content, path, remedy)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a JSON object: {remedy}")
    return found


def _parsed(content: bytes, path: Path, remedy: str) -> Any:
    import msgspec  # 35 ms, which `--help` need not wait for

    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path} is not valid JSON ({reason}): {remedy}") from None
