"""What survives what: commands killed, stopped, doubled, starved of disk and given damaged files, against whole ones.

Each command runs in a fork of this process, which has imported everything already: hundreds of starts cost seconds.
`FAULTS=10` makes every number ten times as large; `COUNTS=FILE` appends how many faults were injected, as in
`results/survival.jsonl`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_compare import SETTINGS

import agents.__main__
import benchmarks.__main__
import collect.__main__
from lewm_gym import checkpoint, cli
from lewm_gym.data import Dataset
from lewm_gym.results import Record, Result
from lewm_gym.training import read_log

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")]
ROUNDS = 4 * int(os.environ.get("FAULTS", 1))
STEPS = 40
TRAIN = ["--steps", str(STEPS), "--device", "cpu", "--threads", "1", "--set", "checkpoint_every_s=0.05"]
TRAIN += [f"{name}={list(v) if isinstance(v, tuple) else v}" for name, v in tiny.SETTINGS.items()]
PLANNING = ["--planning", "n_samples=16", "n_elites=4", "n_iterations=2"]
Main = Callable[[list[str]], int | None]


class Forked:
    """A command in a process of its own.

    Args:
        main: Of the program.
        words: Its arguments.
        log: Where what it prints goes.
    """

    def __init__(self, main: Main, words: list[str], log: Path) -> None:
        self.log = log
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._run(main, words)

    def _run(self, main: Main, words: list[str]) -> None:
        status = 99
        try:
            os.setsid()
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            cli.run(lambda: main(words))
        except SystemExit as ended:
            status = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def end(self, within_s: float = 1200) -> int:
        """Waits; returns the exit status, or minus the signal that ended it."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                assert "Traceback" not in self.said(), self.said()
                return code
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"no end within {within_s} s: {self.said()}")

    def signal_at_work(self, folder: Path, seconds: float, number: int) -> int:
        """Sends a signal some time after it began to write below a folder; returns how it ended, maybe before."""
        before = _bytes(folder)
        while _bytes(folder) == before and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.01)
        time.sleep(seconds)
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass
        return self.end()

    def said(self) -> str:
        """Returns what it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _bytes(folder: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):
        for path in folder.rglob("*"):
            total += path.stat().st_size if path.is_file() else 0
    return total


# The commands ------------------------------------------------------------------------------------------------


class Command(ABC):
    """A command that writes below a folder `out`.

    Attributes:
        main: Of its program.
    """

    main: Main = staticmethod(benchmarks.__main__.main)

    def __init__(self, dataset: Path, run: Path) -> None:
        self.dataset, self.run = dataset, run

    @abstractmethod
    def words(self, out: Path) -> list[str]:
        """Returns its arguments."""

    @abstractmethod
    def left(self, out: Path) -> Any:
        """Returns what it leaves, times aside."""

    def start(self, out: Path, name: str = "log") -> Forked:
        """Starts it."""
        return Forked(self.main, self.words(out), out.with_name(name))

    def read(self, out: Path, damaged: Path) -> tuple[int, str]:
        """Returns how a command ends that reads what was left, of which a file is damaged, and what it says."""
        reader = self.start(out)
        return reader.end(), reader.said()

    def covers(self, path: Path) -> bool:
        """Returns whether reading notices any damage of a file."""
        return False


class Collecting(Command):
    main = staticmethod(collect.__main__.main)

    def words(self, out):
        return ["two_room", "--episodes", "30", "--workers", "1", "--out", str(out)]

    def left(self, out):
        return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}

    def read(self, out, damaged):
        reader = Forked(self.main, ["verify", str(out)], out.with_name("log"))
        return reader.end(), reader.said()

    def covers(self, path):
        return path.suffix in (".arrow", ".json")


class Training(Command):
    main = staticmethod(agents.__main__.main)
    seed = 0

    def words(self, out):
        return ["lewm", str(self.dataset), "--out", str(out), "--seed", str(self.seed), *TRAIN]

    def left(self, out):
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(out / checkpoint.LOG)]
        return (out / checkpoint.WEIGHTS).read_bytes(), rows

    def read(self, out, damaged):
        if damaged.name == checkpoint.CHECKPOINT:
            (out / checkpoint.WEIGHTS).unlink()  # which are made again from it
            return super().read(out, damaged)
        words = ["plan", str(out), "--n-pairs", "1", *PLANNING, "--out", str(out.with_name("read.json")), "--overwrite"]
        reader = Forked(benchmarks.__main__.main, words, out.with_name("log"))
        return reader.end(), reader.said()

    def covers(self, path):
        return path.suffix in (".json", ".safetensors")


class Planning(Command):
    def words(self, out):
        return ["plan", str(self.run), "--n-pairs", "6", "--workers", "1", *PLANNING, "--out", str(out / "result.json")]

    def left(self, out):
        result = Result.load(out / "result.json")
        return [getattr(result, name) for name in ("outcomes", "random", "replay", "pairs", "seed", "metrics")]

    def read(self, out, damaged):
        reader = Forked(self.main, ["report", str(out), "--out", str(out.with_name("page.html"))], out.with_name("log"))
        return reader.end(), reader.said()


class Comparing(Command):
    def words(self, out):
        settings = [s for s in SETTINGS if s.startswith("gcbc.")] + ["gcbc.checkpoint_every_s=0.05"]
        words = [
            "compare",
            str(self.dataset),
            "--agents",
            "gcbc",
            "--seeds",
            "0",
            "1",
            "--steps",
            "30",
            "--n-pairs",
            "2",
        ]
        return [*words, "--runs", str(out / "runs"), "--out", str(out / "out"), "--set", *settings]

    def left(self, out):
        record = Record.load(out / "out" / "compare.json", "compare")
        assert not record["missing"] and not record["diverged"]
        times = ("training_seconds", "act_seconds_per_pair")
        rows = {}
        for row in record["rows"]:
            seeds = [{name: v for name, v in seed.items() if name not in times} for seed in row["seeds"]]
            rows[row["agent"]] = (seeds, row["success_mean"], row["success_std"], row["steps"])
        return rows

    def covers(self, path):
        return "runs" in path.parts  # what is damaged is made again, or refused


class Exporting(Command):
    main = staticmethod(collect.__main__.main)
    format = "hdf5"

    def words(self, out):
        return ["export", str(self.dataset), "--format", self.format, "--out", str(out / "export")]

    def left(self, out):
        again = out.with_name("again")
        shutil.rmtree(again, ignore_errors=True)
        reader = self._import(out, again)
        assert reader.end() == 0, reader.said()
        return Dataset.open(again).content_hash

    def read(self, out, damaged):
        shutil.rmtree(out.with_name("again"), ignore_errors=True)
        reader = self._import(out, out.with_name("again"))
        return reader.end(), reader.said()

    def _import(self, out, again):
        words = ["import", str(out / "export"), "--format", self.format, "--out", str(again)]
        words += ["--task", "two_room"] if self.format == "hdf5" else []
        return Forked(self.main, words, out.with_name("log"))


class ExportingMinari(Exporting):
    format = "minari"


class ExportingLeRobot(Exporting):
    format = "lerobot"


COMMANDS = {
    "collect": Collecting,
    "agents": Training,
    "benchmarks plan": Planning,
    "benchmarks compare": Comparing,
    "collect export, HDF5": Exporting,
    "collect export, Minari": ExportingMinari,
    "collect export, LeRobot": ExportingLeRobot,
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A dataset, and a run that was trained on it."""
    folder = tmp_path_factory.mktemp("given")
    dataset = tiny.collect_two_room(folder / "two_room")
    assert Training(dataset, folder).start(folder / "run").end() == 0
    return dataset, folder / "run"


@pytest.fixture(scope="module", params=COMMANDS)
def command(request, given):
    if "export" in request.param:
        for module in ("h5py", "minari") if "Minari" in request.param else ("h5py",):
            pytest.importorskip(module)
    return COMMANDS[request.param](*given)


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """The folder that an undisturbed call leaves, and what is in it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    out.mkdir()
    assert command.start(out).end() == 0
    return out, command.left(out)


@pytest.fixture
def counted(request):
    """Writes down how many faults a command has survived."""

    def count(fault: str, times: int, name: str = "") -> None:
        name = name or request.node.callspec.params["command"]
        tiny.note_counts({"command": name, "fault": fault, "times": times})

    return count


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.tmp*"))


# The faults --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_stopped_at_random_moments(command, whole, tmp_path, number, counted):
    out, rng, hit = tmp_path / "out", random.Random(number), 0
    out.mkdir()
    for _ in range(ROUNDS):
        ended = command.start(out).signal_at_work(out, rng.uniform(0, 0.2), number)
        assert ended in (0, -number, 128 + number), ended
        hit += ended != 0
        if not ended or (out / "export").exists():  # it was faster: begin again
            assert command.left(out) == whole[1]
            shutil.rmtree(out)
            out.mkdir()
    assert command.start(out).end() == 0
    assert command.left(out) == whole[1] and not leftovers(out)
    assert hit
    counted(number.name, hit)


def test_onto_a_full_disk(command, whole, small_disk, counted):
    used = sum(path.stat().st_size for path in whole[0].rglob("*") if path.is_file())
    subprocess.run(["mount", "-o", f"remount,size={max(8, used // 2048)}k", str(small_disk)], check=True)
    out = small_disk / "out"
    out.mkdir()
    full = Forked(command.main, command.words(out), small_disk.with_name("log"))
    assert full.end() == 2 and "No space left on device" in full.said().splitlines()[-1], full.said()
    assert not leftovers(out)
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    again = Forked(command.main, command.words(out), small_disk.with_name("log"))
    assert again.end() == 0, again.said()
    assert command.left(out) == whole[1]
    counted("full disk", 1)


def test_damaged_files(command, whole, tmp_path, counted):
    rng = random.Random(5)
    files = sorted(p for p in whole[0].rglob("*") if p.is_file() and p.stat().st_size and ".lock" not in p.name)
    for _ in range(2 * ROUNDS):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole[0], out)
        path = out / rng.choice(files).relative_to(whole[0])
        content = bytearray(path.read_bytes())
        if rng.random() < 0.5:
            del content[rng.randrange(len(content)) :]
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        status, said = command.read(out, path)
        assert status in (0, 2), (path, said)
        if status:
            error = said.splitlines()[-1]
            assert path.name in error or str(path.parent) in error or str(out) in error, (path, said)
        elif command.covers(path):
            assert command.left(out) == whole[1], (path, said)
    counted("damaged file", 2 * ROUNDS)


def test_two_at_once(command, whole, tmp_path, counted):
    for round_ in range(ROUNDS):
        out = tmp_path / f"out{round_}"
        out.mkdir()
        both = [command.start(out, f"log{number}") for number in range(2)]
        ended = [process.end() for process in both]
        allowed = [[0, 0]] if isinstance(command, Comparing) else [[0, 0], [0, 2]]
        assert sorted(ended) in allowed, [process.said() for process in both]
        for status, process in zip(ended, both, strict=True):
            if status:
                assert "another process" in process.said() or "exists already" in process.said(), process.said()
        assert command.left(out) == whole[1] and not leftovers(out)
    counted("two at once", ROUNDS)


def test_two_trainings_of_different_seeds_in_one_folder(given, tmp_path, counted):
    weights = {}
    for seed in (0, 1):
        one = Training(*given)
        one.seed = seed
        assert one.start(tmp_path / f"alone{seed}").end() == 0
        weights[seed] = one.left(tmp_path / f"alone{seed}")
    for round_ in range(ROUNDS):
        out, both = tmp_path / f"run{round_}", {}
        for seed in (0, 1):
            one = Training(*given)
            one.seed = seed
            both[seed] = one.start(out, f"log{seed}")
        ended = {seed: process.end() for seed, process in both.items()}
        assert sorted(ended.values()) == [0, 2], (ended, [p.said() for p in both.values()])
        (winner,) = (seed for seed, code in ended.items() if not code)
        assert "another process" in both[1 - winner].said() or "another run" in both[1 - winner].said()
        assert Training(*given).left(out) == weights[winner]
    counted("two at once", ROUNDS, "agents")


def test_a_comparison_goes_on_when_one_of_two_processes_is_killed(given, tmp_path, counted):
    alone = Comparing(*given)
    assert alone.start(tmp_path / "alone").end() == 0
    hit = 0
    for round_ in range(ROUNDS):
        out = tmp_path / f"out{round_}"
        killed, other = alone.start(out, "log0"), alone.start(out, "log1")
        ended = killed.signal_at_work(out, random.Random(round_).uniform(0, 1), signal.SIGKILL)
        assert ended in (0, -signal.SIGKILL)
        hit += ended != 0
        assert other.end() == 0, other.said()
        assert alone.left(out) == alone.left(tmp_path / "alone")
    counted("SIGKILL", hit, "benchmarks compare")
