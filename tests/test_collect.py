"""Collecting: the same episodes whoever plays them, and what a faulty policy or argument gives."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

import collect.episodes
from collect.__main__ import main
from collect.collector import RESERVED_SEED
from collect.collector import collect as run_collect
from collect.episodes import EpisodeRunner, make_env, make_header
from collect.policies import make_policy, policies_of
from collect.render import render
from lewm_gym.data import Dataset
from lewm_gym.data.format.manifest import MANIFEST_NAME
from lewm_gym.data.format.shard import Shard
from lewm_gym.data.verify import verify
from lewm_gym.tasks import get_task


def quick(folder, episodes=6, **options):
    return run_collect("two_room", folder, episodes, **{"workers": 1, "pictures": False, **options})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return quick(tmp_path_factory.mktemp("collected"))


def test_workers_do_not_change_a_single_byte(dataset, tmp_path):
    quick(tmp_path, workers=2)
    for name in (MANIFEST_NAME, *(info.file for info in dataset.manifest.shards)):
        assert (tmp_path / name).read_bytes() == (dataset.folder / name).read_bytes()


def test_describe_prints_the_statistics_of_the_columns(dataset, capsys):
    assert main(["describe", str(dataset.folder)]) == 0
    printed = capsys.readouterr().out
    actions = dataset.actions[~np.isnan(dataset.actions).any(axis=1), 1].astype(np.float64)
    shown = " | ".join(f"{x:.4g}" for x in (actions.mean(), actions.std(), actions.min(), actions.max()))
    assert f"| action 1 |  | {shown} |" in printed
    frames = sum(len(f) for i in range(6) for f in Shard(next(dataset.folder.glob("*.arrow"))).frames(i))
    assert f"pixels {frames / dataset.n_frames:,.0f}\n" in printed
    reached = sum(dataset.episode(i, pixels=False).success[-1] for i in range(6))
    assert f"at their last frame {100 * reached / 6:.1f} %" in printed


def test_an_episode_depends_on_its_number_and_the_seed_only(dataset, tmp_path):
    tail = quick(tmp_path / "tail", 2, first=4)
    np.testing.assert_array_equal(tail.episode(1).state, dataset.episode(5).state)
    np.testing.assert_array_equal(tail.episode(1).pixels, dataset.episode(5).pixels)
    other = quick(tmp_path / "other", 1, seed=1)
    assert not np.array_equal(other.episode(0).state[0], dataset.episode(0).state[0])


def test_a_larger_number_extends_and_a_smaller_one_keeps(dataset, tmp_path):
    quick(tmp_path, 3)
    calls = []
    longer = quick(tmp_path, 6, progress=lambda *call: calls.append(call))
    assert longer.content_hash == dataset.content_hash
    assert [call[0] for call in calls] == [1, 2, 3] and calls[-1][2] == 3
    assert quick(tmp_path, 2).n_episodes == 6


def test_recorded_actions_replay_the_recorded_states_and_frames(dataset):
    env, episode = make_env("two_room"), dataset.episode(3)
    obs, info = env.reset(options={"state": episode.state[0], "goal_state": episode.state[-1]})
    for step, action in enumerate(episode.action[:-1]):
        np.testing.assert_array_equal(obs["pixels"], episode.pixels[step])
        obs, _, _, _, info = env.step(action)
        np.testing.assert_array_equal(info["state"], episode.state[step + 1])


def test_an_episode_ends_where_the_policy_succeeds(dataset):
    for index in range(dataset.n_episodes):
        success = dataset.episode(index, pixels=False).success
        assert not success[:-1].any()
        assert success[-1] or len(success) == 101


def test_frames_of_states_only_are_rendered_the_same(dataset, tmp_path):
    states = quick(tmp_path / "states", states_only=True)
    assert states.manifest.shards[0].bytes < dataset.manifest.shards[0].bytes / 20
    rendered = render(tmp_path / "states", tmp_path / "full", workers=1)
    assert rendered.content_hash == dataset.content_hash
    with pytest.raises(ValueError, match="choose another one"):
        render(tmp_path / "states", tmp_path / "states", workers=1)


def test_pictures_lie_beside_the_dataset(tmp_path):
    from PIL import Image

    run_collect("two_room", tmp_path, 2, workers=1)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.size == (8 * 112, 2 * 112)
    assert (tmp_path / "film.mp4").stat().st_size > 1000
    assert verify(tmp_path) == []


def test_two_room_episodes_have_the_papers_mean_length():
    runner = EpisodeRunner(make_header("two_room", states_only=True))
    lengths = [len(runner.play(number).encoded.states) for number in range(400)]
    assert abs(np.mean(lengths) - 92) < 0.03 * 92


def test_two_room_targets_lie_in_the_other_room():
    policy, env = make_policy("two_room"), make_env("two_room")
    for number in range(20):
        _, info = policy.begin(env, np.random.default_rng(number))
        assert (info["state"][0] < 112) != (info["goal_state"][0] < 112) and not info["is_success"]


def test_every_task_has_a_random_policy():
    assert list(policies_of("two_room")) == ["heuristic", "random"]
    played = EpisodeRunner(make_header("two_room", policy="random", states_only=True)).play(0).encoded.states
    assert len(played) == get_task("two_room").max_episode_steps + 1
    assert 0.5 < played.action[:-1].std() < 0.65  # of a uniform distribution: 0.577


class Stubborn:
    noise = None
    max_steps = 5

    def __init__(self, action):
        self.action = action

    def begin(self, env, rng):
        return env.reset(seed=0)

    def act(self, info):
        return self.action

    def done(self, info):
        return False


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.array([np.nan, 0]), "policy 'heuristic', episode 0, step 0: expected an action .* got .nan"),
        (np.zeros(3), r"of shape \(2,\) within \[-1, 1\], got shape \(3,\)"),
        (np.array([0, 1.5]), "got .0.0, 1.5"),
    ],
)
def test_a_faulty_policy_is_named(tmp_path, monkeypatch, action, message):
    monkeypatch.setattr(collect.episodes, "make_policy", lambda *args: Stubborn(action))
    with pytest.raises(ValueError, match=message):
        quick(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 1, got -1"),
        ({"first": -1}, "first must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": RESERVED_SEED}, "reserved for evaluation pairs"),
        ({"policy": "nobody"}, "no policy 'nobody'; expected one of: heuristic, random"),
        ({"noise": -1.0}, "noise must be at least 0"),
        ({"policy": "random", "noise": 1.0}, "takes no noise"),
        ({"render_quality": "best"}, "render quality must be one of"),
    ],
)
def test_bad_arguments_are_named_and_leave_nothing(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        quick(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_an_unknown_task_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown task 'chess'; expected one of: two_room"):
        run_collect("chess", tmp_path, 1)


def test_importing_collect_imports_neither_torch_nor_a_simulator():
    code = (
        "import sys, collect, collect.collector, collect.__main__\n"
        "bad = {'torch', 'pymunk', 'pygame', 'mujoco', 'dm_control', 'ogbench', 'envs'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "collect", *map(str, arguments)], capture_output=True, text=True, timeout=120, **options
    )


def test_command_line_collects_and_verifies(dataset, tmp_path):
    done = command("two_room", "--episodes", 6, "--workers", 1, "--out", tmp_path, "--no-pictures")
    assert done.returncode == 0, done.stderr
    assert dataset.content_hash in done.stdout and "6 episodes" in done.stdout
    path = tmp_path / Dataset.open(tmp_path).manifest.shards[0].file
    assert command("verify", tmp_path).stdout.startswith("valid: ")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    faulty = command("verify", tmp_path)
    assert faulty.returncode == 2 and path.name in faulty.stderr


@pytest.mark.parametrize(
    "arguments",
    [("chess",), ("two_room", "--episodes", "many"), ("verify", "/nonexistent"), ("two_room", "--out", "/dev/null/x")],
)
def test_command_line_errors_are_one_line_with_status_2(arguments):
    done = command(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")


@pytest.mark.parametrize("command", ["two_room", "gym", "pairs", "render"])
def test_help_tells_each_default_once(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "default: None" not in text and "default: False" not in text
    options = re.split(r" (?=--[a-z])", text.partition("options:")[2])
    assert len(options) > 2 and all(option.count("(default: ") <= 1 for option in options)
    if command == "two_room":
        assert "(default: 10000)" in text and "(default: one per core)" in text
