"""Whatever is killed, and whenever: nothing finished is lost, and what comes after equals an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import collect.episodes
from collect.collector import collect as run_collect
from collect.pictures import draw_pictures
from collect.workers import play_in_processes
from lewm_gym.cli import describe
from lewm_gym.data import Dataset
from lewm_gym.data.format.manifest import MANIFEST_NAME
from lewm_gym.data.verify import verify
from lewm_gym.processes import interrupts_held

EPISODES = 80


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run_collect("two_room", tmp_path_factory.mktemp("undisturbed"), EPISODES, workers=1, pictures=False)


def start(folder, workers=2):
    options = ["--episodes", str(EPISODES), "--workers", str(workers), "--out", str(folder), "--no-pictures"]
    command = [sys.executable, "-m", "collect", "two_room", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def finished(folder):
    parts = [int(path.stem.split("-")[1]) for path in folder.glob("parts/episode-*.arrow")]
    shards = [range(int(p.stem.split("-")[1]), int(p.stem.split("-")[2]) + 1) for p in folder.glob("episodes-*.arrow")]
    return {*parts, *(number for shard in shards for number in shard)}


def wait_for_progress(process, folder, known):
    for _ in range(1200):
        if process.poll() is not None or finished(folder) - known:
            return
        time.sleep(0.05)
    raise AssertionError("no episode within a minute")


def kill_at_random_moments(folder, kills, rng):
    """Kills the run, its whole group, or workers, at random moments; then lets it finish."""
    process, known = start(folder), set()
    for _ in range(kills):
        wait_for_progress(process, folder, known)
        known = finished(folder)
        time.sleep(rng.uniform(0, 0.15))
        victim = rng.choice(["run", "group", "worker"])
        if victim == "worker" and process.poll() is None:
            for worker in children(process.pid)[-1:]:
                os.kill(worker, signal.SIGKILL)
            continue
        try:
            (os.killpg if victim == "group" else os.kill)(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()
        assert known <= finished(folder)
        process = start(folder)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()[-2000:]


def assert_same(folder, undisturbed):
    for name in (MANIFEST_NAME, *(info.file for info in undisturbed.manifest.shards)):
        assert (folder / name).read_bytes() == (undisturbed.folder / name).read_bytes(), name
    assert not (folder / "parts").exists() or not list((folder / "parts").glob("*"))
    assert verify(folder) == []


linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes through /proc")


@linux
def test_kill_9_at_five_random_moments_loses_and_changes_nothing(undisturbed, tmp_path):
    kill_at_random_moments(tmp_path, 5, random.Random(1))
    assert_same(tmp_path, undisturbed)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_kill_9_at_fifty_random_moments_loses_and_changes_nothing(undisturbed, tmp_path, seed):
    kill_at_random_moments(tmp_path, 5, random.Random(100 + seed))
    assert_same(tmp_path, undisturbed)


@linux
def test_workers_end_when_the_run_is_killed(tmp_path):
    process = start(tmp_path)
    wait_for_progress(process, tmp_path, set())
    workers = children(process.pid)
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    for _ in range(200):
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            return
        time.sleep(0.05)
    raise AssertionError("orphaned workers live on")


def test_ctrl_c_leaves_a_dataset_that_can_be_used_and_extended(undisturbed, tmp_path):
    process = start(tmp_path)
    wait_for_progress(process, tmp_path, set())
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and b"stopped" in errors and b"Traceback" not in errors
    some = Dataset.open(tmp_path)
    assert 0 < some.n_episodes < EPISODES and verify(tmp_path) == []
    for index, number in enumerate(some.episode_numbers.tolist()):
        np.testing.assert_array_equal(some.episode(index, False).state, undisturbed.episode(number, False).state)
    run_collect("two_room", tmp_path, EPISODES, workers=1, pictures=False)
    assert_same(tmp_path, undisturbed)


@linux
def test_ctrl_c_while_workers_start_shows_no_traceback_of_theirs(tmp_path):
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        process = start(tmp_path)
        for _ in range(5000):
            starting = [child for child in children(process.pid) if b"spawn_main" in command_line(child)]
            if starting:
                break
            time.sleep(0.002)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and b"Traceback" not in errors, errors.decode()


@pytest.fixture
def default_interrupts():
    """Ctrl-C as usual, also where the tests were begun in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_while_a_worker_starts_is_not_lost(default_interrupts):
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        signal.raise_signal(signal.SIGINT)
        survived = True
    assert survived and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


@pytest.mark.parametrize("below", ["", "inside"])
def test_a_file_in_place_of_the_folder_is_told_with_advice(tmp_path, below):
    (tmp_path / "taken").write_text("")
    out = tmp_path / "taken" / below
    with pytest.raises(OSError, match=rf"cannot write to {out} \(.+\): choose another --out") as error:
        run_collect("two_room", out, 2, workers=1)
    assert describe(error.value) == str(error.value)  # the command line adds nothing, hides nothing


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can write: /proc")
def test_a_place_that_cannot_be_written_is_told_with_advice():
    with pytest.raises(OSError, match=r"cannot write to /proc/lewm \(No such file .*\): choose another --out"):
        run_collect("two_room", "/proc/lewm", 2, workers=1)


def test_a_full_disk_is_named_and_finished_episodes_stay(tmp_path, monkeypatch):
    save, calls = collect.episodes.save_episode, []

    def fill_up(*arguments):
        calls.append(arguments)
        if len(calls) > 3:
            raise OSError(28, "No space left on device", "somewhere")
        save(*arguments)

    monkeypatch.setattr(collect.episodes, "save_episode", fill_up)
    with pytest.raises(OSError, match="No space left"):
        run_collect("two_room", tmp_path, 6, workers=1, pictures=False)
    monkeypatch.undo()
    assert finished(tmp_path) == {0, 1, 2}
    again = []
    run_collect("two_room", tmp_path, 6, workers=1, pictures=False, progress=lambda *call: again.append(call))
    assert len(again) == 3 and verify(tmp_path) == []


def test_a_file_that_cannot_grow_gives_one_line_naming_it(tmp_path):
    command = f"ulimit -f 40; exec {sys.executable} -m collect two_room --episodes 4 --workers 2 --out {tmp_path}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: File too large: ")
    assert "episode-0" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("**/*.arrow"))
    assert not list(tmp_path.glob("**/*.tmp"))


def test_two_runs_on_one_folder_do_not_meet(tmp_path):
    process = start(tmp_path)
    wait_for_progress(process, tmp_path, set())
    with pytest.raises(ValueError, match=rf"written by another process \(pid {process.pid}\)"):
        run_collect("two_room", tmp_path, 3, workers=1, pictures=False)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


class Deadly:
    def save(self, folder, number):
        os.kill(os.getpid(), signal.SIGKILL)

    def close(self):
        pass


def test_an_episode_that_kills_its_workers_is_given_up(tmp_path):
    with pytest.raises(ChildProcessError, match="3 worker processes died on episode 7 .last exit code -9"):
        list(play_in_processes(Deadly, tmp_path, [7, 8], 1))


def test_a_really_full_disk_is_named_and_the_run_goes_on_when_there_is_room(small_disk, undisturbed):
    with pytest.raises(OSError, match="No space left on device") as error:
        run_collect("two_room", small_disk, EPISODES, workers=2, pictures=False)
    assert "episode-" in str(error.value.filename)
    there = finished(small_disk)
    assert there and not list(small_disk.glob("**/*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    again = []
    run_collect("two_room", small_disk, EPISODES, workers=1, pictures=False, progress=lambda *c: again.append(c))
    assert len(again) == EPISODES - len(there)
    assert_same(small_disk, undisturbed)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")  # root may write to read-only folders, but not below a file
    with pytest.raises(OSError, match="file"):
        run_collect("two_room", tmp_path / "file" / "data", 1, workers=1, pictures=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 1_000_000_000}, "episodes must be at most 1,000,000, got 1,000,000,000"),
        ({"episodes": 2, "first": 99_999_999_999}, "first . episodes must be at most 2,147,483,648"),
        ({"episodes": 2, "workers": 10**9}, "workers must be at most 1,024"),
        ({"episodes": 2, "seed": 2**70}, "seed must be at most"),
        ({"episodes": 2, "noise": float("inf")}, "noise must be a number"),
    ],
)
def test_numbers_beyond_the_memory_are_refused_before_work_begins(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run_collect("two_room", tmp_path / "data", **{"workers": 1, **options})
    assert not (tmp_path / "data").exists()


def test_pictures_that_a_kill_left_empty_or_cut_off_are_made_again(tmp_path):
    run_collect("two_room", tmp_path, 2, workers=1)
    sheet, film = (tmp_path / "contact_sheet.png").read_bytes(), (tmp_path / "film.mp4").read_bytes()
    for damage in (b"", sheet[:100]):
        (tmp_path / "contact_sheet.png").write_bytes(damage)
        (tmp_path / "film.mp4").write_bytes(damage)
        run_collect("two_room", tmp_path, 2, workers=1)
        assert (tmp_path / "contact_sheet.png").read_bytes() == sheet
        assert (tmp_path / "film.mp4").read_bytes() == film


def test_a_picture_that_cannot_be_finished_leaves_the_one_before(tmp_path, monkeypatch):
    run_collect("two_room", tmp_path, 1, workers=1)
    before = {name: (tmp_path / name).read_bytes() for name in ("contact_sheet.png", "film.mp4")}

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lewm_gym.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="contact_sheet.png"):
        draw_pictures(Dataset.open(tmp_path))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not list(tmp_path.glob(".*.tmp*"))


def test_sigterm_leaves_a_dataset_as_ctrl_c_does(undisturbed, tmp_path):
    process = start(tmp_path)
    wait_for_progress(process, tmp_path, set())
    os.kill(process.pid, signal.SIGTERM)  # as a cluster does, to the first process alone
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and b"stopped" in errors and b"Traceback" not in errors
    assert 0 < Dataset.open(tmp_path).n_episodes < EPISODES and verify(tmp_path) == []
    run_collect("two_room", tmp_path, EPISODES, workers=1, pictures=False)
    assert_same(tmp_path, undisturbed)
