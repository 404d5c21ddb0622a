"""Proprioception as an option: what environments show of it, what datasets hold, and what DINO-WM makes of it."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import tiny
import torch
from test_agents_contract import PATCHES

from agents import load_agent
from agents.dino_wm import DinoWM, DinoWMAgent, DinoWMConfig, RandomViTAgent
from agents.planning import PlanningConfig, terminal_cost
from agents.run import train_run
from benchmarks.evaluation.evaluate import evaluate
from lewm_gym import checkpoint
from lewm_gym.data.clips import ClipSampler
from lewm_gym.data.dataset import Dataset
from lewm_gym.pairs import load_shipped
from lewm_gym.planning.cem import CEMConfig
from lewm_gym.tasks import TASKS
from lewm_gym.types import ProprioceptiveBatch

KEYS = ("proprioception", "goal_proprioception")
every_task = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.gl) if t.extra else n for n, t in TASKS.items()]
)


def make(name, **options):
    env = gymnasium.make(f"lewm_gym:{TASKS[name].env_id}", disable_env_checker=True, **options)
    env.unwrapped.draw_observations = False
    return env


@every_task
def test_environments_show_what_the_actor_senses_of_itself_now_and_at_the_goal(name):
    env, plain = make(name, proprioception=True), make(name)
    names = TASKS[name].proprioception
    begun, same = env.reset(seed=0), plain.reset(seed=0)
    action = env.action_space.sample()
    for (obs, info), (bare, _) in ((begun, same), (env.step(action)[::4], plain.step(action)[::4])):
        assert obs in env.observation_space and set(bare) == {"pixels", "goal"}
        for key, state in zip(KEYS, (info["state"], info["goal_state"]), strict=True):
            quantities = env.unwrapped.quantities(state)
            assert {n: len(quantities[n]) for n in names} == names
            np.testing.assert_array_equal(obs[key], np.concatenate([quantities[n] for n in names]))
    env.close()
    plain.close()


@every_task
def test_no_object_is_sensed(name):
    assert not any(word in quantity for quantity in TASKS[name].proprioception for word in ("block", "cube", "goal"))


def test_vectors_of_two_rooms_sense_as_single_ones_do():
    single = make("two_room", proprioception=True)
    vector = gymnasium.make_vec("lewm_gym:lewm/TwoRoom-v0", num_envs=2, proprioception=True)
    assert vector.single_observation_space == single.observation_space
    stacked, _ = vector.reset(seed=3)
    assert stacked in vector.observation_space
    for key in KEYS:
        np.testing.assert_array_equal(stacked[key][1], single.reset(seed=4)[0][key])
    with pytest.raises(ValueError, match="observe='pixels'"):
        gymnasium.make_vec("lewm_gym:lewm/TwoRoom-v0", num_envs=2, proprioception=True, observe="state")


def test_a_picture_alone_is_no_goal_for_who_senses():
    env = make("two_room", proprioception=True)
    with pytest.raises(ValueError, match="give goal_state"):
        env.reset(options={"goal_image": np.zeros((224, 224, 3), np.uint8)})


# Datasets and training ---------------------------------------------------------------------------------------

SETTINGS = {**PATCHES, "image_size": 28, "proprioception": True}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset.open(tiny.collect_two_room(tmp_path_factory.mktemp("sensed") / "data", episodes=3))


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train_run(RandomViTAgent, dataset.folder, folder, "laptop", SETTINGS, "cpu")
    return folder


def quick(run, **planning):
    return RandomViTAgent.load(run, "cpu", planning=PlanningConfig(CEMConfig(6, 2, 1), **planning))


def observation(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return {**tiny.observation(*shape), **{key: rng.uniform(30, 200, (*shape, 2)).astype(np.float32) for key in KEYS}}


def test_datasets_hold_what_environments_show(dataset):
    env = make("two_room", proprioception=True)
    for row in (0, 7, dataset.n_frames - 1):
        obs, _ = env.reset(options={"state": dataset.states[row]})
        np.testing.assert_array_equal(dataset.proprioception[row], obs["proprioception"])


def test_clips_hold_what_was_sensed_at_their_frames(dataset):
    sampler = ClipSampler(dataset, n_frames=3, image_size=28, proprioception=dataset.proprioception)
    batch, plain = sampler.batch(2, 4), ClipSampler(dataset, n_frames=3, image_size=28).batch(2, 4)
    assert isinstance(batch, ProprioceptiveBatch) and torch.equal(batch.pixels, plain.pixels)
    which, starts = sampler.clips(2, 4)
    rows = dataset.starts[sampler.episodes[which]] + starts
    np.testing.assert_array_equal(batch.proprioception[:, 2], dataset.quantities["agent_position"][rows + 10])


def test_a_dataset_without_it_is_refused_before_anything_begins(dataset, tmp_path, monkeypatch):
    def refused(match):
        with pytest.raises(ValueError, match=match):
            train_run(RandomViTAgent, dataset.folder, tmp_path / "run", "laptop", SETTINGS, "cpu")
        assert not (tmp_path / "run").exists()

    missing = replace(TASKS["two_room"], proprioception={"agent_position": 2, "whiskers": 6})
    monkeypatch.setitem(TASKS, "two_room", missing)
    refused(r"lacks proprioception.*whiskers \(6\); it has: .*agent_position \(2\)")
    others = {name: task for name, task in TASKS.items() if name != "two_room"}
    monkeypatch.setattr("lewm_gym.data.dataset.TASKS", others)  # not deleted from TASKS: its order would change
    refused("'two_room' has no defined proprioception")


def test_a_run_keeps_the_statistics_of_what_was_sensed_and_a_loaded_agent_acts_alike(dataset, run, tmp_path):
    agent = quick(run)
    sensed = dataset.proprioception.astype(np.float64)
    np.testing.assert_allclose(agent.model.proprioception_mean, sensed.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(agent.model.proprioception_std, sensed.std(axis=0), rtol=1e-5)
    assert checkpoint.load_description(run)["model"]["proprioception_size"] == 2
    assert agent.proprioception and load_agent(run, device="cpu").proprioception
    agent.save(tmp_path)
    again = RandomViTAgent.load(tmp_path, "cpu")
    for each in (agent, again):
        each.reset([1, 2])
    np.testing.assert_array_equal(agent.act(observation(2)), again.act(observation(2)))


# Acting ------------------------------------------------------------------------------------------------------


def test_plans_depend_on_what_is_sensed_now_and_at_the_goal(run):
    agent, plain = quick(run), observation(1)

    def costs(obs):
        agent.reset([1])
        return agent.plan(obs)[0].cost

    for key in KEYS:
        assert not np.array_equal(costs(plain), costs({**plain, key: plain[key] + 50})), key


def test_a_changed_goal_that_only_is_sensed_begins_a_new_plan(run):
    agent, obs = quick(run), observation()
    agent.act(obs)
    agent.act(obs)
    assert agent.plans == 1
    agent.act({**obs, "goal_proprioception": obs["goal_proprioception"] + 1})
    assert agent.plans == 2


def test_the_past_is_passed_on_with_what_was_sensed_in_it(run, monkeypatch):
    agent, seen = quick(run, context_frames=3, execute_blocks=1), []
    encode = agent.model.encode
    monkeypatch.setattr(agent.model, "encode", lambda pixels, sensed: seen.append(sensed) or encode(pixels, sensed))
    steps = [observation(seed=step) for step in range(11)]
    goal = steps[0]["goal_proprioception"]
    for obs in steps:
        agent.act({**obs, "goal_proprioception": goal})
    expected = [steps[0]["proprioception"], steps[5]["proprioception"], steps[10]["proprioception"], goal]
    np.testing.assert_array_equal(seen[-1][0], expected)


def test_evaluation_makes_environments_that_sense_and_batches_change_nothing(run):
    def watched():
        agent = quick(run)
        act = agent.act
        agent.act = lambda obs: shown.append(obs) or act(obs)
        return agent

    pairs, outcomes, shown = load_shipped("two_room", 25).pairs[:2], [], []
    for n_envs in (1, 2):
        outcomes.append(evaluate(watched(), "two_room", pairs, budget_steps=6, strict=False, n_envs=n_envs))
    assert outcomes[0] == outcomes[1]
    np.testing.assert_array_equal(shown[-6]["proprioception"], np.float32([pair.start_state for pair in pairs]))
    np.testing.assert_array_equal(shown[-1]["goal_proprioception"], np.float32([pair.goal_state for pair in pairs]))
    assert not np.array_equal(shown[-6]["proprioception"], shown[-1]["proprioception"])


def test_observations_that_do_not_sense_are_refused(run):
    agent, obs = quick(run), observation(2)
    with pytest.raises(ValueError, match="make the environment with proprioception=True"):
        agent.act(tiny.observation(2))
    agent.set_goal(tiny.observation()["goal"])
    with pytest.raises(ValueError, match="needs 'proprioception', too"):
        agent.act(tiny.observation()["pixels"])
    agent.set_goal(None)
    for wrong in (np.zeros((2, 3)), np.full((2, 2), np.nan), np.zeros(2)):
        with pytest.raises(ValueError, match=r"must be \(2,\) finite numbers per environment"):
            agent.act({**obs, "goal_proprioception": wrong})
    with pytest.raises(ValueError, match="proprioception=True"):
        agent.model.encode(torch.zeros(1, 224, 224, 3, dtype=torch.uint8))


# The model ---------------------------------------------------------------------------------------------------


def one_patch(**changes):
    torch.manual_seed(0)
    sizes = {"predictor_depth": 1, "predictor_heads": 2, "predictor_head_width": 32, "predictor_mlp_width": 128}
    sensed = {"proprioception": True, "proprioception_size": 2}
    return DinoWM(DinoWMConfig(image_size=14, frame_skip=1, dropout=0.0, **{**sizes, **sensed, **changes}))


def test_loss_and_cost_weigh_as_the_equations_say():
    model = one_patch(proprioception_weight=0.5)
    features, sensed, actions = torch.randn(4, 4, 384), torch.randn(4, 4, 2), torch.rand(4, 3, 2)
    loss, logs = model.loss(ProprioceptiveBatch(features, actions, sensed))
    latents = model.encode(features, sensed)
    errors = (model.predict(latents[:, :-1], actions) - latents[:, 1:]).square()
    assert loss.item() == pytest.approx(errors.mean().item(), rel=1e-4)  # one patch: 394 numbers, each of equal weight
    assert logs["proprioception"].item() == pytest.approx(errors[..., 384:].mean().item(), rel=1e-4)
    loss.backward()
    assert model.proprioception_encoder.weight.grad.abs().sum() > 0
    predicted, goal = torch.randn(1, 5, 2, 394), torch.randn(1, 394)
    far = (predicted[:, :, -1] - goal).square()
    expected = 384 * (far[..., :384].mean(-1) + 0.5 * far[..., 384:].mean(-1))
    torch.testing.assert_close(model.weigh(terminal_cost)(predicted, goal), expected)


def test_a_target_that_is_sensed_passes_no_gradient_on():
    model = one_patch(context=1)
    features, sensed = torch.zeros(4, 2, 384), torch.zeros(4, 2, 2)
    sensed[:, 1] = torch.randn(4, 2)  # sensed at the target only
    model.loss(ProprioceptiveBatch(features, torch.zeros(4, 1, 2), sensed))[0].backward()
    assert not model.proprioception_encoder.weight.grad.any()


def test_without_it_the_model_is_what_it_was():
    names = one_patch(proprioception=False, proprioception_size=0).state_dict()
    assert not any("proprioception" in name for name in names)
    assert names["out.weight"].shape == (384, 394)
    with pytest.raises(ValueError, match="proprioception=False"):
        one_patch(proprioception=False).encode(torch.zeros(1, 384), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="proprioception_weight"):
        DinoWMConfig(proprioception_weight=-1.0)


def test_it_plans_to_a_goal_that_can_only_be_sensed():
    """A point that moves half of each action, before a camera that sees nothing."""
    model, black = one_patch(), torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    features = model.features(black).expand(64, 4, -1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(400):
        actions = 2 * torch.rand(64, 3, 2) - 1
        moves = torch.cat([torch.zeros(64, 1, 2), 0.5 * actions], dim=1).cumsum(dim=1)
        sensed = 2 * torch.rand(64, 1, 2) - 1 + moves
        optimizer.zero_grad()
        model.loss(ProprioceptiveBatch(features, actions, sensed))[0].backward()
        optimizer.step()
    planning = PlanningConfig(CEMConfig(64, 8, 6), horizon_blocks=2, execute_blocks=2, clip_actions=True)
    agent = DinoWMAgent(model, planning, tiny.ENVIRONMENT)
    start, goal = np.float32([0.2, 0.3]), np.float32([-0.3, 0.9])
    obs = {"pixels": black[0].numpy(), "goal": black[0].numpy(), "proprioception": start, "goal_proprioception": goal}
    reached = start + 0.5 * agent.plan(obs)[0].actions.sum(axis=0)
    assert np.abs(reached - goal).max() < 0.25, reached
