"""Command lines and files as nobody would write them: drawn from a seed, so that each can be made again.

A command line may end well, or in one line that a user can act on; a damaged file may be read where the damage changes
nothing that could be known, or be refused in one line that names it. Anything else is a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import benchmarks.registry
import collect.__main__
from lewm_gym import cli
from lewm_gym.files import SEAL, sealed

PROGRAMS = ("collect", "agents", "benchmarks")
#: Not called: they reach for the network or a cluster, or start programs of their own.
LEFT_OUT = {"push", "pull", "--ray", "--wandb", "--open", "--sb3", "demo"}
CPU_SECONDS = 0.7  # after which a call that has begun to work is stopped: that it began is its answer

NUMBERS = [
    "-1",
    "0",
    "1",
    "2",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "2147483648",
    "99999999999999999999",
    "x",
    "",
    "１",
]
WORDS = ["", "nonsense", "../../x", "a=b", "=", "'", "x" * 3000, "\udcff", "None", "[1,2", "two_room", "lewm", "random"]
SETTINGS = [
    "latent_size=99999999999999999",
    "latent_size=x",
    "=",
    "steps=-1",
    "steps=1e9",
    "n_samples=0",
    "cost=nonsense",
    "planner=3",
    "horizon_blocks=nan",
    "conv_channels=[",
    "conv_channels=[0]",
    "batch_size=2147483648",
    "learning_rate=NaN",
    "nonsense=1",
    "lewm.latent_size=-1",
]
VALUES = [None, True, -1, 0, 2**70, 1.5, "x", "", [], {}, [[]], [None], {"": {}}, "NaN", -1e300]


class Enough(BaseException):
    """A call has begun to work: nothing refused it."""


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Returns the parser of each program, as it makes it."""

    class Caught(Exception):
        pass

    def catch(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise Caught(parser)

    found = {}
    before = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = catch  # type: ignore[assignment,method-assign]
    try:
        for program in PROGRAMS:
            with contextlib.suppress(Caught):
                try:
                    importlib.import_module(f"{program}.__main__").main([])
                except Caught as caught:
                    found[program] = caught.args[0]
    finally:
        argparse.ArgumentParser.parse_args = before  # type: ignore[method-assign]
    for program, registry in (("benchmarks", benchmarks.registry), ("collect", collect.__main__)):
        commands = argparse.ArgumentParser().add_subparsers()  # their commands are parsed one by one
        made = {name: registry.load_command(name).parser(name) for name in registry.COMMANDS}  # type: ignore[attr-defined]
        commands._name_parser_map.update(made)
        found[program]._actions.append(commands)
        found[program]._actions = [a for a in found[program]._actions if a.dest != "command"]
    return found


def draw_call(rng: np.random.Generator, parser: argparse.ArgumentParser, paths: list[str]) -> list[str]:
    """Returns a command line of a program: a command of it, some of its options, and what they should not be given."""
    words: list[str] = []
    actions = [action for action in parser._actions if not LEFT_OUT & {*action.option_strings}]
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):
            name = str(rng.choice([name for name in action.choices if name not in LEFT_OUT]))
            return [*words, *name.split(), *draw_call(rng, action.choices[name], paths)]
        if not action.option_strings:
            words += _values(rng, action, paths)
    options = [a for a in actions if a.option_strings and "--help" not in a.option_strings]
    wanted = [a for a in options if a.required or a.dest in ("workers", "dry_run")]  # not the work of other programs
    others = [a for a in options if a not in wanted]
    for i in rng.permutation(len(others))[: rng.integers(1, 5)]:
        wanted.append(others[i])
    for action in wanted:
        words.append(action.option_strings[-1])
        if action.nargs != 0:
            words += ["1"] if action.dest == "workers" and rng.random() < 0.8 else _values(rng, action, paths)
    return words


def _values(rng: np.random.Generator, action: argparse.Action, paths: list[str]) -> list[str]:
    count = int(rng.integers(1, 3)) if action.nargs in ("+", "*") else 1
    return [_value(rng, action, paths) for _ in range(count)]


def _value(rng: np.random.Generator, action: argparse.Action, paths: list[str]) -> str:
    if action.choices is not None and rng.random() < 0.7:
        return str(rng.choice(list(map(str, action.choices))))
    if "VALUE" in str(action.metavar):
        pool = SETTINGS
    elif action.type in (int, float):
        pool = NUMBERS
    elif action.type is Path:
        pool = paths
    else:
        pool = [*WORDS, *paths] if rng.random() < 0.7 else NUMBERS
    return str(pool[int(rng.integers(len(pool)))])


def call(program: str, words: list[str]) -> str:
    """Calls a program in this process; returns how it ended, "fault: ..." if not as it should."""

    def stop(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return  # a module that is imported by half would fail the calls that follow; the next tick tries again
            frame = frame.f_back
        raise Enough

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS, 0.1)
    try:
        status = importlib.import_module(f"{program}.__main__").main(words)
        return f"status {status}"
    except SystemExit as ended:
        return "refused" if ended.code == 2 else f"status {ended.code}"
    except Enough:
        return "began"
    except (ValueError, OSError, ImportError, MemoryError) as error:
        return _judge(error)
    except RuntimeError as error:
        return _judge(error) if cli.is_out_of_memory(error) else f"fault: {type(error).__name__}: {error}"
    except BaseException as error:
        if isinstance(error.__context__, Enough) or isinstance(error.__cause__, Enough):
            return "began"
        return f"fault: {type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _judge(error: BaseException) -> str:
    said = cli.describe(error)
    telling = len(said) > 8 and "\n" not in said and "codec can't" not in said and "No closing quotation" not in said
    return "refused" if telling else f"fault: says only {said!r}"


# Files --------------------------------------------------------------------------------------------------------


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """Returns bytes with some of them flipped, missing, zero, doubled, or others in their place."""
    if not content:
        return b"\xff"
    kind, place = int(rng.integers(6)), int(rng.integers(len(content)))
    if kind <= 1:  # flips, most within what describes the file: at its ends
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            reach = min(len(content), 4096)
            spot = int(rng.choice([rng.integers(len(content)), rng.integers(reach), -1 - rng.integers(reach)]))
            changed[spot] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    if kind == 2:
        return content[:place]
    if kind == 3:
        return content[:place] + bytes(64) + content[place + 64 :]
    if kind == 4:
        return content[:place] + content[place:] + content[place : place + 40]
    return [b"", b"\xff\xfe\x00", b"[" * 50_000, b"null", b"{}", rng.bytes(200)][int(rng.integers(6))]


def other_kind(rng: np.random.Generator, content: bytes) -> bytes:
    """Returns JSON (or lines of it) with a value of another kind somewhere, and sealed again if it was."""
    lines = content.splitlines() if content[:1] != b"{" or b"\n{" in content else [content]
    i = int(rng.integers(len(lines)))
    record = json.loads(lines[i])
    is_sealed, place = isinstance(record, dict) and record.pop(SEAL, None) is not None, record
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[int(rng.integers(len(keys)))]
        inner = place[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
            place = inner
            continue
        if isinstance(place, dict) and rng.random() < 0.2:
            del place[key]
        else:
            place[key] = VALUES[int(rng.integers(len(VALUES)))]
        break
    lines[i] = json.dumps(sealed(record) if is_sealed else record).encode()
    return b"\n".join(lines)


def other_header(rng: np.random.Generator, content: bytes) -> bytes:
    """Returns a shard whose record has a value of another kind somewhere, and is sealed again."""
    reader = pa.ipc.open_file(pa.BufferReader(content))
    said = other_kind(rng, reader.schema.metadata[b"lewm_gym"])
    schema, sink = reader.schema.with_metadata({b"lewm_gym": said}), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        for i in range(reader.num_record_batches):
            writer.write_batch(reader.get_batch(i).replace_schema_metadata(schema.metadata))
    return sink.getvalue().to_pybytes()


def other_table(rng: np.random.Generator, content: bytes) -> bytes:
    """Returns a parquet file with a column of another kind, or without it."""
    table = pq.read_table(pa.BufferReader(content))
    i = int(rng.integers(table.num_columns))
    other = pa.array([VALUES[3]] * table.num_rows) if rng.random() < 0.5 else pa.array(["x"] * table.num_rows)
    changed = table.remove_column(i) if rng.random() < 0.3 else table.set_column(i, table.column_names[i], other)
    sink = pa.BufferOutputStream()
    pq.write_table(changed, sink)
    return sink.getvalue().to_pybytes()


def read_damaged(read: Callable[[], Any], names: tuple[str, ...]) -> str:
    """Reads a damaged file; returns how that ended, "fault: ..." if not as it should.

    Args:
        read: Reads it.
        names: One of them must be in the message.
    """
    try:
        read()
    except (ValueError, OSError) as error:
        said = cli.describe(error)
        return "refused" if "\n" not in said and any(name in said for name in names) else f"fault: says only {said!r}"
    except BaseException as error:
        return f"fault: {type(error).__name__}: {error}"
    return "read"


@contextlib.contextmanager
def workplace(pattern: Path, folder: Path) -> Iterator[Path]:
    """Yields a fresh copy of a folder, made the present one."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pattern, folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
