"""One contract for every entry of AGENTS: trains, saves, loads, acts, and refuses what is wrong."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import tiny
import torch

from agents import AGENTS, agent_class, load_agent
from agents.oracle import OracleAgent
from agents.random import RandomAgent
from agents.run import train_run
from lewm_gym import checkpoint
from lewm_gym.nn import dino
from lewm_gym.types import BatchAgent

BASE = {"steps": 2, "batch_size": 4, "recalibration_batches": 1, "validate_every_steps": 2}
WORLD = {**tiny.SETTINGS, **BASE}
POLICY = {**BASE, "conv_channels": (8, 8, 8), "encoder_width": 16, "hidden_widths": (16, 16)}
PATCHES = {**BASE, "predictor_depth": 1, "predictor_heads": 2, "predictor_head_width": 8, "predictor_mlp_width": 16}
REWARDS = {**BASE, "conv_channels": (8, 8, 8), "latent_size": 16, "hidden_widths": (16, 16)}
IMAGINATION = {
    **BASE,
    "conv_channels": (8, 8, 8),
    "embedding_width": 16,
    "recurrent_width": 16,
    "groups": 4,
    "classes": 4,
    "hidden_widths": (16, 16),
    "imagine_blocks": 2,
}
SETTINGS = {
    "lewm": WORLD,
    "pldm": WORLD,
    "dino_wm": PATCHES,
    "random_vit": PATCHES,
    "gcbc": POLICY,
    "gcivl": POLICY,
    "gciql": POLICY,
    "tdmpc2": REWARDS,
    "dreamer": IMAGINATION,
}
UNTRAINED = ("oracle", "expert", "random")
REPLAYING = ("oracle", "expert")
SEEDS = [1, 2, 3]


def write_random_dino(path):
    """Writes random weights in the form of the released ones."""
    generator = torch.Generator().manual_seed(0)
    shapes = {**dino.released_shapes(), "mask_token": (1, dino.WIDTH)}
    torch.save({name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}, path)
    return path


def train(name, folder):
    """Trains an agent on the dataset `folder/data`, in the run folder `folder/name`; returns it."""
    settings = dict(SETTINGS[name])
    if name == "dino_wm":
        settings["dino_weights"] = str(write_random_dino(folder / "dino.pth"))
    return train_run(agent_class(name), folder / "data", folder / name, "laptop", settings, "cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns name -> run folder of a finished run, trained when first asked for."""
    folder = tmp_path_factory.mktemp("contract")
    tiny.collect_two_room(folder / "data", episodes=3)

    @cache
    def run(name):
        if name == "random":
            (folder / name).mkdir()
            checkpoint.save_description(folder / name, {"agent": "random", "task": "two_room"})
        elif name in REPLAYING:
            rng = np.random.default_rng(0)
            plans = {seed: rng.uniform(-1, 1, (30, 2)) for seed in SEEDS}
            agent_class(name)(plans).save(folder / name, "two_room")
        else:
            train(name, folder)
        return folder / name

    return run


@pytest.fixture(params=list(AGENTS))
def name(request):
    return request.param


@pytest.fixture
def make(name, runs):
    """Returns a function that loads a fresh agent, quick to plan."""

    def load():
        agent = load_agent(runs(name), **({} if name == "random" else {"device": "cpu"}))
        if hasattr(agent, "planning"):
            from agents.planning import PlanningConfig
            from lewm_gym.planning.cem import CEMConfig

            agent = type(agent).load(runs(name), "cpu", planning=PlanningConfig(CEMConfig(6, 2, 1)))
        return agent

    return load


def test_two_steps_of_training_leave_a_complete_run(name, runs):
    folder = runs(name)
    description = checkpoint.load_description(folder)
    assert description["agent"] == name and description["task"] == "two_room"
    if name not in UNTRAINED:
        assert description["finished"] and (folder / checkpoint.WEIGHTS).is_file()
        assert "loss" in json.loads((folder / checkpoint.LOG).read_text().splitlines()[-1])


def test_a_finished_run_is_loaded_not_trained_again(name, runs, monkeypatch):
    if name in UNTRAINED:
        pytest.skip("nothing to train")
    folder = runs(name)
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    monkeypatch.setattr("lewm_gym.training.train", None)  # whoever calls it now fails
    again = train(name, folder.parent).model.state_dict()
    weights = checkpoint.load_tensors(folder / checkpoint.WEIGHTS)
    assert weights.keys() == again.keys() and all(torch.equal(weights[key], again[key]) for key in weights)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written


def test_a_saved_agent_acts_equally_when_loaded(name, make, tmp_path):
    agent = make()
    if name == "random":
        pytest.skip("the random policy is its seed")
    agent.save(tmp_path, "two_room") if name in REPLAYING else agent.save(tmp_path)
    loaded = type(agent).load(tmp_path, device="cpu")
    for each in (agent, loaded):
        each.reset(SEEDS)
    observation = tiny.observation(3)
    np.testing.assert_array_equal(agent.act(observation), loaded.act(observation))


def test_act_takes_one_observation_or_a_stack(make):
    agent = make()
    agent.reset([1])
    action = agent.act(tiny.observation())
    assert action.shape == (2,) and action.dtype == np.float32
    agent.reset(SEEDS)
    actions = agent.act(tiny.observation(3))
    assert actions.shape == (3, 2) and (np.abs(actions) <= 1).all()


def test_actions_are_the_same_alone_and_among_others(make):
    many, alone = make(), make()
    many.reset(SEEDS)
    alone.reset(SEEDS[2:])
    for step in range(3):
        observation = tiny.observation(3, seed=step)
        expected = many.act(observation)[2]
        got = alone.act({key: value[2:] for key, value in observation.items()})[0]
        np.testing.assert_array_equal(got, expected)


def test_select_envs_goes_on_with_the_rows_named(make):
    agent, reference = make(), make()
    observation = tiny.observation(3)
    for each in (agent, reference):
        each.reset(SEEDS)
        each.act(observation)
    agent.select_envs([0, 2])
    got = agent.act({key: value[[0, 2]] for key, value in observation.items()})
    np.testing.assert_array_equal(got, reference.act(observation)[[0, 2]])


def test_reset_with_the_same_seeds_repeats_actions(make):
    agent = make()
    actions = []
    for _ in range(2):
        agent.reset(SEEDS)
        actions.append(agent.act(tiny.observation(3)))
    np.testing.assert_array_equal(*actions)


def test_predict_has_stable_baselines3s_form(make):
    agent, reference = make(), make()
    for each in (agent, reference):
        each.reset(SEEDS)
    observation = tiny.observation(3)
    action, _ = agent.predict(observation, None, np.ones(3, bool), deterministic=True)
    assert action.shape == (3, 2)
    np.testing.assert_array_equal(action, reference.act(observation))


def test_bad_observations_are_refused(name, make):
    if name in UNTRAINED:
        pytest.skip("does not look")
    agent, good = make(), tiny.observation()
    for bad in ({"pixels": good["pixels"]}, {k: v[::2, ::2] for k, v in good.items()}, good["pixels"]):
        with pytest.raises(ValueError):
            agent.act(bad)


def test_another_agents_run_is_refused(name, runs):
    if name == "random":
        pytest.skip("acts on any task that a run names")
    other = runs("gcbc" if name != "gcbc" else "lewm")
    with pytest.raises(ValueError, match=f"not of '{name}'"):
        agent_class(name).load(other)


def test_a_dataset_without_pictures_is_refused(name, tmp_path):
    if name in UNTRAINED:
        pytest.skip("nothing to train")
    from collect.collector import collect

    collect("two_room", tmp_path / "data", 2, workers=1, pictures=False, states_only=True)
    settings = dict(SETTINGS[name])
    if name == "dino_wm":
        settings["dino_weights"] = str(write_random_dino(tmp_path / "dino.pth"))
    with pytest.raises(ValueError, match="holds states only; first: python -m collect render"):
        train_run(agent_class(name), tmp_path / "data", tmp_path / "run", "laptop", settings, "cpu")
    assert not (tmp_path / "run").exists()


def test_every_agent_is_evaluated(name, make):
    """The protocol itself: `benchmarks.evaluation.evaluate`, for a few steps."""
    from benchmarks.evaluation.evaluate import evaluate
    from lewm_gym.pairs import load_shipped, stream_seed

    pairs = load_shipped("two_room", 25).pairs[:2]
    agent = make()
    assert isinstance(agent, BatchAgent)
    if name in REPLAYING:
        agent = agent_class(name)({stream_seed(0, i): pair.actions for i, pair in enumerate(pairs)})
    outcomes = evaluate(agent, "two_room", pairs, budget_steps=26 if name in REPLAYING else 3)
    assert len(outcomes) == 2
    if name in REPLAYING:
        assert all(outcome.success for outcome in outcomes)


def test_random_policy_and_oracle_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="action_size"):
        RandomAgent(0)
    with pytest.raises(ValueError, match="plans must be arrays"):
        OracleAgent({})
    with pytest.raises(ValueError, match="plans must be arrays"):
        OracleAgent({1: np.zeros((3, 2))}, action_size=5)
    with pytest.raises(ValueError, match="none for"):
        OracleAgent({1: np.zeros((3, 2))}).reset([2])
