"""What survives what: commands killed, stopped, doubled and starved of disk, against one that was left alone.

Each command runs in a fork of this process, which has imported everything already: hundreds of starts cost seconds.
`FAULTS=10` makes every number ten times as large.
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
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

import agents.__main__
import benchmarks.__main__
import collect.__main__
from lewm_gym import checkpoint, cli
from lewm_gym.data import Dataset
from lewm_gym.data.verify import verify
from lewm_gym.results import Result

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")]
ROUNDS = 4 * int(os.environ.get("FAULTS", 1))
STEPS = 40
TRAIN = ["--steps", str(STEPS), "--device", "cpu", "--threads", "1", "--set", "checkpoint_every_s=0.05"]
TRAIN += [f"{name}={list(v) if isinstance(v, tuple) else v}" for name, v in tiny.SETTINGS.items()]


class Forked:
    """A command in a process of its own.

    Args:
        main: Of the program.
        words: Its arguments.
        log: Where what it prints goes.
    """

    def __init__(self, main: Callable[[list[str]], int | None], words: list[str], log: Path) -> None:
        self.log = log
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._run(main, words)

    def _run(self, main: Callable[[list[str]], int | None], words: list[str]) -> None:
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
            time.sleep(0.005)
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
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def until_done(start: Callable[[], Forked], number: int, folder: Path, rng: random.Random) -> int:
    """Ends a command by a signal at random moments, ROUNDS times, and starts it again; returns how often it was hit."""
    hit = 0
    for _ in range(ROUNDS):
        ended = start().signal_at_work(folder, rng.uniform(0.0, 0.15), number)
        assert ended in (0, -number, 128 + number), ended
        hit += ended != 0
    assert start().end() == 0
    return hit


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny.collect_two_room(tmp_path_factory.mktemp("data") / "two_room")


def training(dataset, out, seed=0):
    words = ["lewm", str(dataset), "--out", str(out), "--seed", str(seed), *TRAIN]
    return Forked(agents.__main__.main, words, out.with_name(f"{out.name}-{seed}.log"))


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert training(dataset, folder).end() == 0
    return (folder / checkpoint.WEIGHTS).read_bytes(), folder


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_training(dataset, undisturbed, tmp_path, number, record_property):
    weights, _ = undisturbed
    out = tmp_path / "run"
    hit = until_done(lambda: training(dataset, out), number, out, random.Random(number))
    assert hit and (out / checkpoint.WEIGHTS).read_bytes() == weights
    assert not list(out.glob(".*.tmp*"))
    record_property("hit", hit)


def test_two_trainings_in_one_folder(dataset, undisturbed, tmp_path):
    weights, _ = undisturbed
    for round_ in range(ROUNDS):
        out = tmp_path / f"run{round_}"
        both = {seed: training(dataset, out, seed) for seed in (0, 1)}
        ended = {seed: process.end() for seed, process in both.items()}
        assert sorted(ended.values()) == [0, 2], (ended, [p.said() for p in both.values()])
        (loser,) = (seed for seed, code in ended.items() if code)
        assert "another process" in both[loser].said() or "another run" in both[loser].said()
        if loser == 1:
            assert (out / checkpoint.WEIGHTS).read_bytes() == weights


def test_training_onto_a_full_disk(dataset, undisturbed, small_disk):
    weights, _ = undisturbed
    subprocess.run(["mount", "-o", "remount,size=60k", str(small_disk)], check=True)
    out = small_disk / "run"
    full = Forked(agents.__main__.main, ["lewm", str(dataset), "--out", str(out), *TRAIN], small_disk.with_name("log"))
    assert full.end() == 2 and "No space left on device" in full.said().splitlines()[-1]
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    again = Forked(agents.__main__.main, ["lewm", str(dataset), "--out", str(out), *TRAIN], small_disk.with_name("log"))
    assert again.end() == 0 and (out / checkpoint.WEIGHTS).read_bytes() == weights


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_collecting(tmp_path, number):
    def start():
        words = ["two_room", "--episodes", "60", "--workers", "1", "--out", str(out)]
        return Forked(collect.__main__.main, words, tmp_path / "log")

    out = tmp_path / "whole"
    assert start().end() == 0
    whole, out = out, tmp_path / "killed"
    assert until_done(start, number, out, random.Random(number))
    assert verify(out) == []
    for file in whole.iterdir():
        if file.name != ".lock":
            assert (out / file.name).read_bytes() == file.read_bytes(), file.name
    assert not list(out.glob("**/.*.tmp*"))


@pytest.mark.parametrize("format", ["hdf5", "minari", "lerobot"])
def test_exporting(dataset, tmp_path, format):
    pytest.importorskip("h5py", reason="h5py is not installed")
    if format == "minari":
        pytest.importorskip("minari", reason="minari is not installed")

    def start():
        words = ["export", str(dataset), "--format", format, "--out", str(tmp_path / "out")]
        return Forked(collect.__main__.main, words, tmp_path / "log")

    assert start().end() == 0
    rng = random.Random(3)
    for _ in range(ROUNDS):
        shutil.rmtree(tmp_path / "out") if format != "hdf5" else (tmp_path / "out").unlink()
        ended = start().signal_at_work(tmp_path, rng.uniform(0, 0.15), signal.SIGKILL)
        assert (tmp_path / "out").exists() == (ended == 0)
        if ended:
            assert start().end() == 0
        assert not list(tmp_path.glob(".out.*"))
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        words = ["import", str(tmp_path / "out"), "--format", format, "--out", str(tmp_path / "again")]
        words += ["--task", "two_room"] if format == "hdf5" else []
        assert Forked(collect.__main__.main, words, tmp_path / "log").end() == 0
        assert Dataset.open(tmp_path / "again").n_frames == Dataset.open(dataset).n_frames


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_planning(undisturbed, tmp_path, number):
    _, run = undisturbed

    def start():
        words = ["plan", str(run), "--n-pairs", "6", "--workers", "1", "--planning", "n_samples=16", "n_elites=4"]
        return Forked(benchmarks.__main__.main, [*words, "n_iterations=2", "--out", str(out)], tmp_path / "log")

    out = tmp_path / "whole.json"
    assert start().end() == 0
    whole, out = Result.load(out), tmp_path / "killed.json"
    assert until_done(start, number, tmp_path, random.Random(number))
    again = Result.load(out)
    for name in ("outcomes", "random", "replay", "success", "pairs", "seed"):
        assert getattr(again, name) == getattr(whole, name), name
    assert not list(tmp_path.glob(".*.tmp*"))
