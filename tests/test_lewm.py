"""LeWM's equations, and LeWMAgent as a policy."""

import math
import time

import gymnasium as gym
import numpy as np
import pytest
import tiny
import torch

import lewm_gym
from agents.lewm import LeWMAgent
from agents.planning import PlanningConfig
from lewm_gym.nn.distributed import BatchNorm1d, BatchNorm2d
from lewm_gym.nn.images import to_network
from lewm_gym.planning import PLANNERS, CEMConfig
from lewm_gym.types import Batch


def clips(n=6, frames=4):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, frames, 56, 56, 3), dtype=torch.uint8, generator=generator)
    return Batch(pixels, torch.rand(n, frames - 1, 10, generator=generator) * 2 - 1)


# The model ---------------------------------------------------------------------------------------------------


def test_loss_is_prediction_error_plus_weighted_sigreg_and_nothing_else():
    model = tiny.model(sigreg_weight=0.5).eval()
    batch = clips()
    torch.manual_seed(1)
    loss, parts = model.loss(batch)
    latents = model.encode(batch.pixels)
    predicted = model.predict(latents[:, :3], model.normalize_actions(batch.actions))
    error = ((predicted - latents[:, 1:]) ** 2).mean()
    torch.manual_seed(1)
    sigreg = model.sigreg(latents.transpose(0, 1))
    torch.testing.assert_close(loss, error + 0.5 * sigreg)
    torch.testing.assert_close(parts["prediction"], error)


OPTIONS = {
    "vit": {"encoder": "vit", "encoder_width": 24, "encoder_depth": 1},
    "resnet18": {"encoder": "resnet18"},
    "a predictor of another width": {"predictor_width": 12},
    "a decoder": {"decoder_weight": 0.5, "decoder_width": 12, "decoder_depth": 1},
    "fewer directions and knots": {"sigreg_directions": 3, "sigreg_knots": 5},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_the_ablations_trains_all_its_weights_and_plans(option):
    model = tiny.model(**OPTIONS[option])
    loss, parts = model.loss(clips())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    dead = {n for n, p in model.named_parameters() if not p.grad.any()}
    assert not {n for n in dead if not n.startswith("decoder")}  # one key gets all attention: no gradient by design
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(m, BatchNorm1d | BatchNorm2d) for m in norms)  # those that processes share
    assert set(parts) == {"prediction", "sigreg"} | ({"reconstruction"} if option == "a decoder" else set())
    model.eval()
    with torch.inference_mode():
        assert model.rollout(model.encode(clips().pixels[:2, :1]), torch.randn(2, 3, 4, 10)).shape == (2, 3, 4, 8)


def test_decoder_adds_its_weighted_error_to_the_loss():
    model = tiny.model(**OPTIONS["a decoder"])
    torch.manual_seed(1)
    loss, parts = model.loss(clips())
    torch.testing.assert_close(loss, parts["prediction"] + 0.09 * parts["sigreg"] + 0.5 * parts["reconstruction"])
    with torch.no_grad():
        model.decoder.out.weight.zero_()
        model.decoder.out.bias.zero_()
    expected = to_network(clips().pixels.flatten(0, 1), 56).square().mean()  # all grey
    torch.testing.assert_close(model.loss(clips())[1]["reconstruction"], expected)


def test_gradient_reaches_the_encoder_through_targets_and_contexts(monkeypatch):
    model = tiny.model(sigreg_weight=0.0)
    latents = torch.randn(6, 4, 8, requires_grad=True)
    monkeypatch.setattr(model, "encode", lambda pixels: latents)
    model.loss(clips())[0].backward()
    assert (latents.grad.abs().sum(dim=(0, 2)) > 0).all()  # the last frame is only ever a target: no stop-gradient
    assert latents.grad[:, 3].abs().max() > 1e-4


@pytest.mark.parametrize("predictor_width", [0, 12])
def test_rollout_equals_prediction_with_a_sliding_window(predictor_width):
    model = tiny.model(predictor_width=predictor_width).eval()
    start, actions = torch.randn(2, 1, 8), torch.randn(2, 3, 5, 10)
    got = model.rollout(start, actions)
    assert got.shape == (2, 3, 5, 8)
    for b in range(2):
        for s in range(3):
            frames = [start[b, 0]]
            for t in range(5):
                window = slice(max(0, t - 2), t + 1)
                context = torch.stack(frames[window]).unsqueeze(0)
                frames.append(model.predict(context, actions[b, s, window].unsqueeze(0))[0, -1])
            torch.testing.assert_close(got[b, s], torch.stack(frames[1:]), rtol=1e-4, atol=1e-5)


def test_rollout_pairs_first_candidate_with_current_frame():
    model = tiny.model().eval()
    start, actions = torch.randn(1, 1, 8), torch.randn(1, 4, 1, 10)
    got = model.rollout(start, actions)[0, :, 0]
    expected = torch.cat([model.predict(start, actions[:, s])[:, 0] for s in range(4)])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [2, 3])
def test_rollout_from_several_frames_equals_the_plain_one(n):
    model = tiny.model().eval()
    context, past, actions = torch.randn(1, n, 8), torch.randn(1, n - 1, 10), torch.randn(1, 2, 4, 10)
    got = model.rollout(context, actions, past)
    for s in range(2):
        frames, blocks = list(context[0]), torch.cat([past[0], actions[0, s]])
        for end in range(n, n + 4):
            window = slice(max(0, end - 3), end)
            frames.append(model.predict(torch.stack(frames[window])[None], blocks[window][None])[0, -1])
        torch.testing.assert_close(got[0, s], torch.stack(frames[n:]), rtol=1e-4, atol=1e-5)


def test_actions_are_normalised_per_dimension_and_missing_ones_become_the_mean():
    model = tiny.model()
    model.action_mean.copy_(torch.tensor([1.0, -2.0]))
    model.action_std.copy_(torch.tensor([2.0, 4.0]))
    raw = torch.tensor([3.0, 2.0] * 5)
    assert model.normalize_actions(raw).tolist() == [1.0, 1.0] * 5
    torch.testing.assert_close(model.denormalize_actions(model.normalize_actions(raw)), raw)
    assert model.normalize_actions(torch.full((10,), torch.nan)).tolist() == [0.0] * 10


# The agent ---------------------------------------------------------------------------------------------------


def test_act_takes_one_observation_or_a_stack():
    agent = tiny.agent()
    assert agent.act(tiny.observation()).shape == (2,)
    agent.reset()
    actions = agent.act(tiny.observation(3))
    assert actions.shape == (3, 2) and actions.dtype == np.float32
    assert (np.abs(actions) <= 1).all()


def test_an_environments_actions_are_the_same_alone_and_among_others():
    many, alone = tiny.agent(), tiny.agent()
    observations = tiny.observation(4)
    many.reset(seeds=[1, 2, 3, 4])
    alone.reset(seeds=[3])
    for _ in range(30):  # past a second plan
        expected = many.act(observations)[2]
        got = alone.act({k: v[2:3] for k, v in observations.items()})[0]
        np.testing.assert_array_equal(got, expected)


def test_keep_goes_on_with_the_rows_that_are_named():
    agent, reference = tiny.agent(), tiny.agent()
    observations = tiny.observation(3)
    agent.reset(seeds=[1, 2, 3])
    reference.reset(seeds=[1, 2, 3])
    agent.act(observations)
    reference.act(observations)
    agent.select_envs([0, 2])
    got = agent.act({k: v[[0, 2]] for k, v in observations.items()})
    np.testing.assert_array_equal(got, reference.act(observations)[[0, 2]])


def test_seed_repeats_the_plan_and_another_seed_does_not():
    observation = tiny.observation()
    first, again, other = (tiny.agent(seed).act(observation) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_save_and_load_keep_every_action(tmp_path):
    agent = tiny.agent()
    agent.description["model"] = {k: v for k, v in vars(agent.model.config).items()}
    agent.save(tmp_path / "run")
    loaded = LeWMAgent.load(tmp_path / "run", device="cpu")
    np.testing.assert_array_equal(agent.act(tiny.observation()), loaded.act(tiny.observation()))
    assert lewm_gym.LeWMAgent is LeWMAgent


def test_plain_gymnasium_loop_over_ten_episodes_needs_no_reset_of_the_agent():
    env = gym.make("lewm_gym:lewm/TwoRoom-v0", max_episode_steps=3)
    agent = tiny.agent()
    plans = []
    search = agent._controller._search
    agent._controller._search = lambda requests: plans.append(1) or search(requests)
    for episode in range(10):
        obs, _ = env.reset(seed=episode)
        over = False
        while not over:
            obs, _, terminated, truncated, _ = env.step(agent.act(obs))
            over = terminated or truncated
    assert len(plans) == 10  # each episode has another goal, and with it a plan of its own


def test_episode_start_begins_a_new_plan_for_the_same_goal():
    agent = tiny.agent()
    obs = tiny.observation(1)
    first, state = agent.predict(obs, episode_start=np.array([True]))
    second, state = agent.predict(obs, state, np.array([False]))
    third, _ = agent.predict(obs, state, np.array([True]))
    assert not np.array_equal(second, third)
    assert len(state[0].queue) == 24


def test_another_vector_of_environments_needs_no_reset_if_all_episodes_begin():
    agent = tiny.agent()
    assert agent.predict(tiny.observation(1), None, np.array([True]))[0].shape == (1, 2)
    assert agent.predict(tiny.observation(2), None, np.array([True, True]))[0].shape == (2, 2)
    with pytest.raises(ValueError, match="reset"):
        agent.predict(tiny.observation(1), None, np.array([False]))


def test_stable_baselines3_evaluates_it():
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    envs = vec_env.DummyVecEnv([lambda: gym.make("lewm_gym:lewm/TwoRoom-v0", max_episode_steps=4)] * 2)
    envs.seed(0)
    rewards, lengths = evaluation.evaluate_policy(tiny.agent(), envs, n_eval_episodes=4, return_episode_rewards=True)
    assert len(rewards) == 4
    assert max(lengths) <= 4


def test_plan_shows_what_it_found():
    agent = tiny.agent()
    (plan,) = agent.plan(tiny.observation())
    assert plan.actions.shape == (25, 2) and (np.abs(plan.actions) <= 1).all()
    assert plan.latents.shape == (5, 8) and plan.start.shape == plan.goal.shape == (8,)
    assert plan.cost.shape == plan.spread.shape == (2,)
    agent.reset()
    np.testing.assert_array_equal(agent.act(tiny.observation()), plan.actions[0])


def with_planning(**options):
    made = tiny.model(actor_steps=1)
    return LeWMAgent(made, PlanningConfig(**options), tiny.ENVIRONMENT)


@pytest.mark.parametrize("name", PLANNERS)
def test_every_planner_drives_the_agent(name):
    search = PLANNERS[name][1](**({} if name == "actor" else {"n_iterations": 2}))
    options = {"search": search, "execute_blocks": 1, "warm_start": True, "context_frames": 3, "clip_actions": True}
    agent = with_planning(**options, cost="sum")
    for step in range(12):
        action = agent.act(tiny.observation(2, seed=0) | {"pixels": tiny.observation(2, seed=step)["pixels"]})
        assert action.shape == (2, 2) and np.isfinite(action).all()
    assert agent.plans == 6
    assert PlanningConfig.from_json(agent.planning.to_json()) == agent.planning


def test_bf16_plans_nearly_what_float32_plans_and_leaves_the_threads_as_they_were():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        plans = [with_planning(precision=precision).plan(tiny.observation())[0] for precision in ("float32", "bf16")]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    exact, rounded = plans
    assert 0 < np.abs(rounded.latents - exact.latents).max() < 0.2 * np.abs(exact.latents).max()
    assert rounded.cost[-1] == pytest.approx(exact.cost[-1], rel=0.1)


def test_cost_of_ones_own_is_what_is_minimised():
    made = tiny.model()
    seen = []

    def cost(predicted, goal):
        seen.append((predicted.shape, goal.shape))
        return predicted[..., -1, 0]

    search = CEMConfig(n_samples=16, n_elites=4, n_iterations=2)
    agent = LeWMAgent(made, PlanningConfig(search), tiny.ENVIRONMENT, cost=cost)
    agent.act(tiny.observation())
    assert seen == [((1, 16, 5, 8), (1, 8))] * 2


def test_time_limit_ends_the_search_early():
    agent = with_planning(search=CEMConfig(n_samples=50, n_elites=5, n_iterations=10_000))
    agent.time_limit_s = 0.2
    began = time.monotonic()
    agent.act(tiny.observation(2))
    assert time.monotonic() - began < 5
    for limit in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="time_limit_s"):
            LeWMAgent(tiny.model(), PlanningConfig(), tiny.ENVIRONMENT, time_limit_s=limit)


@pytest.mark.parametrize("planner", [name for name in PLANNERS if name != "actor"])
def test_costs_that_are_not_numbers_are_refused(planner):
    config = PlanningConfig(CEMConfig()).changed({"planner": planner, "n_iterations": 2})
    with pytest.raises(ValueError, match="no candidate plan has a finite cost"):
        cost = lambda predicted, goal: predicted[..., -1, 0] * math.nan  # noqa: E731
        LeWMAgent(tiny.model(actor_steps=1), config, tiny.ENVIRONMENT, cost=cost).act(tiny.observation())
    with pytest.raises(ValueError, match=r"cost must return a tensor \(1, \d+\), got \(1, \d+, \d+\)"):
        cost = lambda predicted, goal: predicted[..., 0]  # noqa: E731
        LeWMAgent(tiny.model(actor_steps=1), config, tiny.ENVIRONMENT, cost=cost).act(tiny.observation())


def test_planner_can_be_chosen_by_name(tmp_path):
    tiny.agent().save(tmp_path)
    assert LeWMAgent.load(tmp_path, planning="icem").planning.planner_name == "icem"
    assert LeWMAgent.load(tmp_path, planning={"n_samples": 20}).planning.search.n_samples == 20
    with pytest.raises(ValueError, match="unknown planner 'nonsense'; expected one of: cem"):
        LeWMAgent.load(tmp_path, planning="nonsense")
    with pytest.raises(ValueError, match="planning must be a PlanningConfig, got 'cem'"):
        LeWMAgent(tiny.model(), "cem", tiny.ENVIRONMENT)


def test_goal_can_be_set_where_observations_have_none():
    agent, reference = tiny.agent(), tiny.agent()
    obs = tiny.observation()
    expected = reference.act(obs)
    agent.set_goal(obs["goal"])
    np.testing.assert_array_equal(agent.act(obs["pixels"]), expected)
    agent.reset()
    np.testing.assert_array_equal(agent.act({"pixels": obs["pixels"]}), expected)
    with pytest.raises(ValueError, match="goal image"):
        agent.set_goal(obs["goal"][:10])
    agent.set_goal(None)
    with pytest.raises(ValueError, match="set_goal"):
        agent.act({"pixels": obs["pixels"]})


def test_bad_planning_settings_are_refused():
    for bad in ({"cost": "mean"}, {"precision": "fp8"}, {"execute_blocks": 6}, {"context_frames": 0}, {"search": 3}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            PlanningConfig(**bad)
    with pytest.raises(ValueError, match="exceeds the model's context"):
        with_planning(context_frames=4)


BAD_OBSERVATIONS = {
    "no goal": (lambda o: {"pixels": o["pixels"]}, "goal"),
    "an array": (lambda o: o["pixels"], "'pixels' and 'goal'"),
    "floats": (lambda o: {k: v / np.float32(255) for k, v in o.items()}, "uint8"),
    "channel first": (lambda o: {k: v.transpose(2, 0, 1) for k, v in o.items()}, "224, 224, 3"),
    "another size": (lambda o: {k: v[::2, ::2] for k, v in o.items()}, "224, 224, 3"),
    "an empty stack": (lambda o: {k: v[None][:0] for k, v in o.items()}, "empty"),
    "unequal stacks": (lambda o: {"pixels": o["pixels"][None], "goal": o["goal"]}, "same shape"),
}


@pytest.mark.parametrize("name", BAD_OBSERVATIONS)
def test_bad_observations_are_refused(name):
    spoil, message = BAD_OBSERVATIONS[name]
    with pytest.raises(ValueError, match=message):
        tiny.agent().act(spoil(tiny.observation()))
