"""What the command lines share: one-line errors with exit status 2, and a clean exit on Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

RawText = argparse.RawDescriptionHelpFormatter


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others.

    For an installed command, such as `lewm-agents`, messages name it instead of `python -m agents`.
    """

    def __init__(self, **options: Any) -> None:
        command = Path(sys.argv[0]).name
        if (options.get("prog") or "").startswith("python -m ") and command.startswith("lewm-"):
            options["prog"] = " ".join([command, *options["prog"].split()[3:]])  # and its subcommand
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Prints the error and the help command; exits with status 2."""
        print(f"error: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def limit_spinning() -> None:
    """Makes idle OpenMP threads sleep instead of spin; call before torch is first imported.

    With spinning threads, two torch threads next to another busy process are about 10x slower on two cores.
    An existing value in the environment is kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def run(main: Callable[[], int | None]) -> None:
    """Runs a command line's `main` and exits with its status.

    Errors that a user can fix (a wrong argument, a damaged file, a full disk, a missing extra) print one line on
    standard error and exit with status 2; `LEWM_DEBUG=1` shows the traceback instead. Ctrl-C exits with status 130,
    SIGTERM (as sent by clusters) with 143.
    """
    limit_spinning()
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        status = main()
    except KeyboardInterrupt:
        print("\nstopped; finished work is kept, and the same command resumes", file=sys.stderr)
        status = 128 + (_interrupted or signal.SIGINT)
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if os.environ.get("LEWM_DEBUG") or (isinstance(error, RuntimeError) and not is_out_of_memory(error)):
            raise
        print(f"error: {describe(error)}", file=sys.stderr)
        status = 2
    sys.stdout.flush()
    sys.exit(status or 0)


_interrupted = 0  # the signal's number


def _interrupt(number: int, _: object) -> NoReturn:
    global _interrupted
    _interrupted = number
    raise KeyboardInterrupt


def raise_if_interrupted() -> None:
    """Raises KeyboardInterrupt if a library swallowed a Ctrl-C, as some optional imports do."""
    if _interrupted:
        raise KeyboardInterrupt


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error is due to a lack of memory; torch raises a RuntimeError for it."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in ("out of memory", "can't allocate memory"))


def describe(error: BaseException) -> str:
    """Returns one line for an error: an OSError with its file, anything else as its message."""
    if is_out_of_memory(error):
        return f"not enough memory for these settings: choose smaller ones ({' '.join(str(error).split())[:200]})"
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        hint = {
            2: " (is the path right, and can it be written to?)",
            17: " (something else is there: choose another folder)",
            20: " (a file stands where a folder is needed: choose another)",
            28: " (the disk is full: free some space and run the same command again)",
            13: " (no permission: choose another folder or change its rights)",
            30: " (the file system is read-only: choose another folder)",
        }.get(error.errno or 0, "")
        return f"{error.strerror}{where}{hint}"
    return " ".join(str(error).split()) or type(error).__name__
