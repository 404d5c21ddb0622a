"""Factors of variation: drawn per episode, recorded, and drawn again from states only."""

from __future__ import annotations

import numpy as np
import pytest

from collect.collector import collect as run_collect
from collect.episodes import EpisodeRunner, make_env, make_header
from collect.policies import policies_of
from collect.render import render
from lewm_gym.data import Dataset
from lewm_gym.data.verify import verify
from lewm_gym.tasks import TASKS


def quick(folder, variations, episodes=4, **options):
    settings = {"workers": 1, "pictures": False, "variations": variations, **options}
    return run_collect("two_room", folder, episodes, **settings)


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    return quick(tmp_path_factory.mktemp("varied"), "all", 6)


def test_every_episode_has_variations_of_its_own(varied):
    ranges = make_env("two_room").variation_ranges
    drawn = [varied.episode(i, pixels=False).reset_options["variations"] for i in range(6)]
    assert all(set(values) == set(ranges) for values in drawn)
    assert len({str(values["background_color"]) for values in drawn}) == 6
    assert {values["wall_axis"] for values in drawn} == {"vertical", "horizontal"}
    assert varied.header.variations == tuple(sorted(ranges)) and verify(varied.folder) == []


def test_varied_episodes_replay_and_are_rendered_again_from_states(varied, tmp_path):
    env = make_env("two_room")
    for index in range(6):
        episode = varied.episode(index)
        obs, _ = env.reset(options={"state": episode.state[0], **episode.reset_options})
        for step, action in enumerate(episode.action[:-1]):
            np.testing.assert_array_equal(obs["pixels"], episode.pixels[step])
            obs, _, _, _, info = env.step(action)
            np.testing.assert_array_equal(info["state"], episode.state[step + 1])
    quick(tmp_path / "states", "all", 6, states_only=True)
    assert render(tmp_path / "states", tmp_path / "full", workers=1).content_hash == varied.content_hash


def test_colours_leave_states_and_other_variations_as_they_are(tmp_path):
    plain, coloured = quick(tmp_path / "plain", None), quick(tmp_path / "coloured", "wall_color, agent_color")
    np.testing.assert_array_equal(plain.states, coloured.states)
    assert plain.header.variations == () and coloured.header.variations == ("agent_color", "wall_color")
    one = quick(tmp_path / "one", "agent_color")
    for index in range(4):
        options = [data.episode(index, False).reset_options["variations"]["agent_color"] for data in (one, coloured)]
        assert options[0] == options[1]
    assert (coloured.frames(0, 0) != plain.frames(0, 0)).any()


def test_other_variations_are_another_dataset(varied):
    with pytest.raises(ValueError, match="holds another dataset .variations"):
        quick(varied.folder, None)
    assert Dataset.open(varied.folder).content_hash == varied.content_hash


def test_unknown_variations_are_named_and_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"unknown variations \['colour'\]; expected 'all' or some of \['agent_color'"):
        quick(tmp_path / "new", "colour")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("task", TASKS)
def test_every_policy_copes_with_all_variations_of_its_task(task):
    for policy in policies_of(task):
        runner = EpisodeRunner(make_header(task, policy=policy, states_only=True, variations="all"))
        runner._policy.max_steps = min(runner._policy.max_steps, 30)
        for number in range(3):
            assert runner.play(number).encoded.states.reset_options["variations"]
        runner.close()
