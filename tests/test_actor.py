"""The actor: hindsight goals, its losses, plans unrolled through the model, and the planners that begin with it."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from agents import lewm
from agents.gcbc import GCBCAgent, GCBCConfig
from agents.lewm import LeWMAgent
from agents.planning import PlanningConfig
from agents.pldm import PLDMAgent
from agents.proposals import unroll
from agents.run import train_run
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.hindsight import HindsightClips, HindsightLatents, next_actions
from lewm_gym.nn.actor import GoalActor
from lewm_gym.planning import ARCEMConfig, Fused, FusedConfig, Guided, GuidedConfig
from lewm_gym.tasks import TASKS

WITH_ACTOR = {"imitation_weight": 1.0, "actor_steps": 4, "actor_batch_size": 16, "actor_width": 16, "goal_steps": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.collect_two_room(tmp_path_factory.mktemp("data") / "two_room", 20)


@pytest.fixture(scope="module")
def dataset(folder):
    return Dataset.open(folder)


def recorded(dataset, episode, step, count=5):
    """Returns the actions that follow a step, NaN after the episode's last."""
    actions = np.full((count, dataset.action_size), np.nan, np.float32)
    left = min(count, dataset.lengths[episode] - 1 - step)
    first = dataset.starts[episode] + step
    actions[:left] = dataset.actions[first : first + left]
    return actions.ravel()


# Hindsight goals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames_every", [1, 5])
def test_hindsight_clips_hold_later_frames_and_the_actions_that_follow(dataset, frames_every):
    clips = HindsightClips(dataset, None, 2, 20, image_size=56, seed=3, frames_every=frames_every)
    batch = clips.batch(1, 32)
    which, starts = clips.clips(1, 32)
    assert batch.pixels.shape == (32, 6, 56, 56, 3) and batch.next_actions.shape == (32, 6, 10)
    frames = [frames for frames in clips.episode_frames()]
    for row in range(32):
        episode, steps = int(which[row]), batch.steps[row].tolist()
        assert steps[:4] == [starts[row] + 5 * t for t in range(4)]
        last = dataset.lengths[episode] - 1
        assert all(steps[3] - frames_every < step <= min(steps[3] + 20, last) for step in steps[4:])
        assert all(step % frames_every == 0 for step in steps) and steps == sorted(steps)
        for t, step in enumerate(steps):
            np.testing.assert_array_equal(batch.pixels[row, t], frames[episode][step // frames_every])
            np.testing.assert_array_equal(batch.next_actions[row, t], recorded(dataset, episode, step))
        np.testing.assert_array_equal(batch.actions[row], batch.next_actions[row, :3])
    assert torch.equal(clips.batch(1, 32).pixels, batch.pixels)


@pytest.mark.parametrize("every", [1, 5])
def test_hindsight_latents_pair_frames_of_one_episode(dataset, every):
    episodes = np.array([1, 4, 5])
    rows = [(e, t) for e in episodes for t in range(0, dataset.lengths[e], every)]
    latents = torch.tensor(rows, dtype=torch.float32)
    batch = HindsightLatents(latents, dataset, episodes, 20, 5, seed=0, every=every).batch(2, 200)
    assert torch.equal(batch.latents[:, 0], batch.goals[:, 0])
    assert torch.equal(batch.goals[:, 1] - batch.latents[:, 1], batch.steps.float())
    assert set(batch.steps.tolist()) == set(range(every, 21, every))
    for (episode, step), actions in zip(batch.latents.int().tolist(), batch.next_actions, strict=True):
        np.testing.assert_array_equal(actions, recorded(dataset, episode, step))


def test_no_action_follows_the_last_frame():
    actions = np.arange(6, dtype=np.float32)[:, None]
    block = next_actions(actions, np.array([1, 5]), np.array([2, 0]), 3)
    np.testing.assert_array_equal(block, [[1, 2, np.nan], [np.nan] * 3])


def test_hindsight_settings_out_of_range_are_refused(dataset):
    with pytest.raises(ValueError, match="n_goals and goal_steps"):
        HindsightClips(dataset, None, 0)
    with pytest.raises(ValueError, match="frames_every"):
        HindsightClips(dataset, None, 2, 20, image_size=56, frames_every=2)


# Losses --------------------------------------------------------------------------------------------------------


def test_imitation_loss_is_that_of_recorded_actions_before_the_goal():
    torch.manual_seed(0)
    actor = GoalActor(4, 2, 5, goal_steps=20, width=8)
    latents, goals, actions = torch.randn(4, 4), torch.randn(4, 4), torch.randn(4, 10)
    steps = torch.tensor([3, 20, 21, 7])
    actions[3, 6:] = torch.nan  # the episode ended
    loss = actor.imitation_loss(latents, goals, steps, actions)
    mean, std = actor(latents, goals, steps)
    terms = []
    for row, counted in ((0, 6), (1, 10), (3, 6)):  # 3 actions of 2 numbers; all; those recorded; none beyond 20 steps
        error, variance = actions[row] - mean[row], std[row] ** 2
        terms += [error[i] ** 2 + variance[i].detach() * variance[i].log() for i in range(counted)]
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    (gradient,) = torch.autograd.grad(loss, actor.policy[-1].bias)
    assert gradient.isfinite().all()


def test_the_actor_learns_actions_and_distances_of_a_point_that_moves_to_its_goal():
    """On a line, one unit of action per step: to be there in k steps, each action is the distance over k."""
    torch.manual_seed(0)
    actor = GoalActor(1, 1, 5, goal_steps=20, width=64, depth=2)
    optimizer = torch.optim.Adam(actor.parameters(), lr=3e-3)

    def draw(count):
        steps = torch.randint(1, 21, (count,))
        latents = torch.randn(count, 1)
        goals = latents + steps[:, None] * 0.1
        actions = torch.full((count, 5), 0.1) + 0.02 * torch.randn(count, 5)
        return latents, goals, steps, actions

    for _ in range(400):
        latents, goals, steps, actions = draw(256)
        loss = actor.imitation_loss(latents, goals, steps, actions) + actor.distance_loss(latents, goals, steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    latents, goals, steps, _ = draw(500)
    mean, std = actor(latents, goals, steps)
    assert (mean - 0.1).abs().mean() < 0.02
    assert 0.015 < std.mean() < 0.08
    assert (actor.steps_left(latents, goals) - steps).abs().mean() < 1.0


def test_heads_of_ad_wm_are_their_equations():
    torch.manual_seed(0)
    config = tiny.config(inverse_weight=0.1, information_weight=0.01, head_width=8)
    heads = lewm.LeWM(config).heads
    latents, predicted, embedded = torch.randn(6, 3, 8), torch.randn(6, 3, 8), torch.randn(6, 3, 8)
    losses = heads(latents, predicted, embedded)
    pair = torch.cat([latents, predicted], dim=-1)
    torch.testing.assert_close(losses["inverse"], ((heads.inverse(pair) - embedded) ** 2).mean())
    flat = embedded.view(18, 8)
    standardised = ((flat - flat.mean(0)) / flat.std(0)).view_as(embedded)
    mu = heads.information(pair)
    expected = (0.5 * (standardised - mu) ** 2 + 0.005 * mu**2).mean()
    torch.testing.assert_close(losses["information"], expected, rtol=1e-4, atol=1e-5)


def test_weights_of_the_parts_add_up_to_the_loss(dataset):
    changes = {
        **WITH_ACTOR,
        "inverse_weight": 0.3,
        "information_weight": 0.2,
        "residual": True,
        "imitation_weight": 0.5,
    }
    model = tiny.model(**changes)
    clips, _ = LeWMAgent.samplers(dataset, model, 0, None)
    total, parts = model.loss(clips.batch(0, 8))
    expected = {"prediction": 1.0, "sigreg": 0.09, "inverse": 0.3, "information": 0.2, "imitation": 0.5}
    assert set(parts) == set(expected)
    torch.testing.assert_close(total, sum(weight * parts[name] for name, weight in expected.items()))
    total.backward()
    assert model.encoder.stages[0].weight.grad.abs().sum() > 0
    parts_alone = model.loss(clips.batch(0, 8))[1]
    model.zero_grad()
    parts_alone["imitation"].backward()
    assert model.encoder.stages[0].weight.grad.abs().sum() > 0, "imitation must reach the encoder"


@pytest.mark.parametrize("n_given", [1, 3])
def test_residual_rollout_equals_stepwise_prediction(n_given):
    model = tiny.model(residual=True).eval()
    latents, actions, past = torch.randn(2, n_given, 8), torch.randn(2, 3, 4, 10), torch.randn(2, n_given - 1, 10)
    with torch.no_grad():
        got = model.rollout(latents, actions, past if n_given > 1 else None)
        for row in range(2):
            for s in range(3):
                frames, blocks = list(latents[row]), [*past[row], *actions[row, s]]
                for _ in range(4):
                    window = slice(max(0, len(frames) - 3), len(frames))
                    inputs = torch.stack(frames[window])[None], torch.stack(blocks[window])[None]
                    frames.append(model.predict(*inputs)[0, -1])
                torch.testing.assert_close(got[row, s], torch.stack(frames[n_given:]), rtol=1e-4, atol=1e-5)


# Plans ---------------------------------------------------------------------------------------------------------


def made_model(**changes):
    return tiny.model(**{**WITH_ACTOR, **changes}).eval()


@pytest.mark.parametrize("n_given", [1, 3])
def test_an_unrolled_plan_asks_the_actor_at_every_predicted_latent(n_given):
    model = made_model()
    context, goal, left = torch.randn(2, n_given, 8), torch.randn(2, 8), torch.tensor([12.0, 7.0])
    past = torch.randn(2, n_given - 1, 10) if n_given > 1 else None
    with torch.no_grad():
        plan = unroll(model, context, past, goal, left, 4, 5)
        whole = model.rollout(context, plan.actions, past)
        torch.testing.assert_close(plan.latents, whole, rtol=1e-4, atol=1e-5)
        latent = context[:, -1]
        for h, steps in enumerate(([12.0, 7.0], [7.0, 5.0], [5.0, 5.0], [5.0, 5.0])):
            expected = model.actor(latent, goal, torch.tensor(steps))
            torch.testing.assert_close(plan.actions[:, 0, h], expected.mean, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(plan.std[:, 0, h], expected.std, rtol=1e-4, atol=1e-4)
            latent = whole[:, 0, h]


def test_residuals_of_nothing_leave_the_plan_and_others_move_what_the_actor_answers():
    model = made_model()
    context, goal, left = torch.randn(1, 1, 8), torch.randn(1, 8), torch.tensor([20.0])
    residuals = torch.zeros(1, 2, 3, 10)
    residuals[0, 1, 0] = 10.0
    with torch.no_grad():
        plain = unroll(model, context, None, goal, left, 3, 5)
        moved = unroll(model, context, None, goal, left, 3, 5, residuals)
    torch.testing.assert_close(moved.actions[:, :1], plain.actions, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved.actions[:, 1, 0], plain.actions[:, 0, 0] + 10, rtol=1e-4, atol=1e-5)
    assert (moved.actions[:, 1, 1] - plain.actions[:, 0, 1]).abs().max() > 1e-4


def test_a_guided_plan_is_never_worse_than_the_actors_nor_than_any_that_was_scored():
    seen = []

    def cost(samples):
        values = (samples - 3.0).square().sum(dim=(-1, -2)) * (1 + torch.sin(17 * samples.sum(dim=(-1, -2))))
        seen.append(values.min(dim=1).values)
        return values

    mean = torch.full((1, 2, 4), 2.9)
    generator = torch.Generator().manual_seed(0)
    result = Guided(GuidedConfig(n_samples=20, n_elites=4)).plan(cost, mean, torch.ones_like(mean), [generator])
    found = cost(result.actions.unsqueeze(1))[:, 0]
    assert found <= cost(mean.unsqueeze(1))[:, 0]
    torch.testing.assert_close(found, torch.stack(seen).min(dim=0).values)


def test_a_fused_search_begins_at_the_product_of_two_gaussians():
    first = []

    def cost(samples):
        first.append(samples)
        return samples.square().sum(dim=(-1, -2))

    mean, std = torch.full((1, 2, 4), 3.0), torch.full((1, 2, 4), 0.5)
    generator = torch.Generator().manual_seed(0)
    Fused(FusedConfig(n_samples=4000, n_iterations=1, std=1.0)).plan(cost, mean, std, [generator])
    samples = first[0][0, 1:]
    assert samples.mean().item() == pytest.approx(3.0 * 4 / 5, abs=0.01)
    assert samples.std().item() == pytest.approx(0.2**0.5, abs=0.01)


@pytest.mark.parametrize("planner", ["actor", "guided", "arcem", "fused"])
def test_plans_with_an_actor_are_the_same_alone_or_among_others(planner):
    agent = LeWMAgent(made_model(), PlanningConfig().changed({"planner": planner}), tiny.ENVIRONMENT)
    obs = tiny.observation(3)
    agent.reset([5, 6, 7])
    together = [agent.act(obs, steps_left=[12, 25, 40]) for _ in range(2)]
    agent.reset([6])
    alone = [agent.act({k: v[1:2] for k, v in obs.items()}, steps_left=25) for _ in range(2)]
    np.testing.assert_array_equal(np.stack(together)[:, 1:2], np.stack(alone))


def test_a_plan_has_as_many_blocks_as_there_are_steps_left():
    agent = LeWMAgent(made_model(), PlanningConfig().changed({"planner": "guided"}), tiny.ENVIRONMENT)
    lengths = [len(agent.plan(tiny.observation(), steps_left=k)[0].latents) for k in (1, 5, 6, 25, 90)]
    assert lengths == [1, 1, 2, 5, 10]


def test_steps_left_are_counted_down_from_when_the_goal_was_set():
    model = made_model()
    agent = LeWMAgent(model, PlanningConfig().changed({"planner": "actor"}), tiny.ENVIRONMENT)
    obs = tiny.observation()
    told = [agent.act(obs, steps_left=max(1, 12 - step)) for step in range(20)]
    agent.reset()
    agent.set_goal(obs["goal"], steps_left=12)
    counted = [agent.act(obs["pixels"]) for _ in range(20)]
    np.testing.assert_array_equal(told, counted)
    agent.set_goal(obs["goal"])
    agent.reset()
    estimated = [agent.act(obs["pixels"]) for _ in range(20)]
    latent = model.encode(torch.from_numpy(np.stack([obs["pixels"], obs["goal"]])))
    estimate = model.actor.steps_left(latent[:1], latent[1:]).item()
    agent.reset()
    np.testing.assert_allclose(estimated[0], agent.act(obs, steps_left=max(5.0, estimate)), rtol=1e-5)


def test_steps_left_are_estimated_once_for_a_goal_and_counted_down():
    model, obs = made_model(), tiny.observation()
    agent = LeWMAgent(model, PlanningConfig().changed({"planner": "actor"}), tiny.ENVIRONMENT)
    moved = {**obs, "pixels": 255 - obs["pixels"]}

    def estimate(seen):
        latents = model.encode(torch.from_numpy(np.stack([seen["pixels"], seen["goal"]])))
        return max(5.0, model.actor.steps_left(latents[:1], latents[1:]).item())

    first = estimate(obs)
    assert agent.plan(obs)[0].steps_left == first
    counted = [agent.act(obs if step == 0 else moved) for step in range(10)]
    assert agent.plan(moved)[0].steps_left == max(5.0, first - 10)
    other = {"pixels": obs["pixels"], "goal": moved["pixels"]}
    assert agent.plan(other)[0].steps_left == estimate(other)
    agent.reset()
    told = [agent.act(obs if step == 0 else moved, steps_left=max(5.0, first - step)) for step in range(10)]
    np.testing.assert_allclose(counted, told, rtol=1e-5)
    agent.reset()
    agent.act(obs)
    agent.act(obs, steps_left=40)  # once, within a block: what replaces the estimate
    for _ in range(3):
        agent.act(obs)
    assert agent.plan(obs)[0].steps_left == 36


@pytest.mark.parametrize("steps", [0, -3, np.nan, [5, 5], [[5]]])
def test_steps_left_that_cannot_be_are_refused(steps):
    agent = LeWMAgent(made_model(), PlanningConfig().changed({"planner": "actor"}), tiny.ENVIRONMENT)
    with pytest.raises(ValueError, match="steps_left must be"):
        agent.act(tiny.observation(), steps_left=steps)


def test_an_agent_that_knows_no_steps_left_says_so():
    with pytest.raises(ValueError, match="does not use steps_left"):
        tiny.agent().act(tiny.observation(), steps_left=5)
    with pytest.raises(ValueError, match="does not use steps_left"):
        tiny.agent().set_goal(tiny.observation()["goal"], steps_left=5)


def test_a_planner_that_needs_an_actor_refuses_a_model_without_one():
    with pytest.raises(ValueError, match="the planner guided needs an actor, and the model has none"):
        LeWMAgent(tiny.model(), PlanningConfig().changed({"planner": "guided"}), tiny.ENVIRONMENT)


def test_a_planners_own_defaults_come_with_its_name_and_give_way_to_what_is_asked():
    config = PlanningConfig().changed({"planner": "arcem"})
    assert (config.execute_blocks, config.horizon_blocks, config.cost) == (1, 10, "closest")
    assert PlanningConfig().changed({"planner": "arcem", "execute_blocks": 2, "std": 0.5}).execute_blocks == 2
    assert config.changed({"planner": "arcem", "cost": "sum"}).cost == "sum"
    assert PlanningConfig.from_json(config.to_json()) == config


def test_impossible_settings_are_refused():
    for bad in (
        lambda: GuidedConfig(std=0.01),
        lambda: ARCEMConfig(scale=0.0),
        lambda: FusedConfig(search="gradient"),
        lambda: FusedConfig(std=0.0),
        lambda: PlanningConfig(least_steps_left=0),
        lambda: PlanningConfig(ARCEMConfig(), cuda_graph=True),
        lambda: tiny.config(imitation_weight=1.0),
        lambda: tiny.config(actor_steps=-1),
        lambda: tiny.config(information_weight=-0.1),
    ):
        with pytest.raises(ValueError):
            bad()


# Training ------------------------------------------------------------------------------------------------------


def trained(folder, run, **changes):
    overrides = {**tiny.SETTINGS, **WITH_ACTOR, "steps": 3, "log_every_steps": 1, **changes}
    return train_run(LeWMAgent, folder, run, "laptop", overrides, "cpu")


def test_a_training_has_two_stages_in_one_run_folder(folder, tmp_path):
    seen = []
    train_run(
        LeWMAgent, folder, tmp_path / "run", "laptop", {**tiny.SETTINGS, **WITH_ACTOR, "steps": 3}, "cpu",
        on_log=lambda done, total, latest: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(step, 7) for step in range(1, 8)]
    agent = LeWMAgent.load(tmp_path / "run", planning="guided")
    assert agent.act(tiny.observation()).shape == (2,)
    again = trained(folder, tmp_path / "again", log_every_steps=10)
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, agent.model.state_dict()[name]), name


def test_a_training_stopped_within_its_second_stage_ends_as_if_it_had_not_been(folder, tmp_path):
    whole = trained(folder, tmp_path / "whole", checkpoint_every_s=0.0001)
    overrides = {**tiny.SETTINGS, **WITH_ACTOR, "steps": 3, "log_every_steps": 1, "checkpoint_every_s": 0.0001}

    def stop(done, total, latest):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(LeWMAgent, folder, tmp_path / "run", "laptop", overrides, "cpu", on_log=stop)
    with pytest.raises((ValueError, FileNotFoundError)):
        LeWMAgent.load(tmp_path / "run")
    resumed = train_run(LeWMAgent, folder, tmp_path / "run", "laptop", overrides, "cpu")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_the_actor_alone_can_be_trained_on_latents_that_know_no_actor(folder, tmp_path):
    with_actor = trained(folder, tmp_path / "a", imitation_weight=0.0)
    without = trained(folder, tmp_path / "b", imitation_weight=0.0, actor_steps=0)
    for name, tensor in without.model.state_dict().items():
        assert torch.equal(tensor, with_actor.model.state_dict()[name]), name
    assert without.model.actor is None


def test_presets_of_the_paper_and_the_laptop_know_nothing_beyond_the_paper():
    for preset in ("paper", "laptop"):
        config = lewm.PRESETS[preset].model
        plain = replace(config, residual=False, inverse_weight=0.0, information_weight=0.0, actor_steps=0)
        assert replace(plain, imitation_weight=0.0) == config


@pytest.mark.parametrize("agent", [LeWMAgent, PLDMAgent])
def test_the_guided_preset_is_the_recipe_of_the_task(agent):
    if agent is LeWMAgent:
        cube, other = agent.preset("guided", "cube"), agent.preset("guided", "gym:Pendulum-v1")
        assert (cube.planning.planner_name, cube.model.residual, cube.model.image_shift) == ("actor", True, 2)
        assert other.planning.planner_name == "guided" and not other.model.residual
    for task in TASKS:
        preset = agent.preset("guided", task)
        assert preset.model.actor_steps and preset.model.imitation_weight
        assert agent.preset("laptop", task) == agent.presets["laptop"]
    with pytest.raises(ValueError, match="unknown preset 'other'"):
        agent.preset("other", "cube")


# Imitation without a world model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gcbc(folder, tmp_path_factory):
    overrides = {"conv_channels": (8, 8), "encoder_width": 16, "hidden_widths": (16, 16), "batch_size": 8, "steps": 3}
    run = tmp_path_factory.mktemp("gcbc") / "run"
    train_run(GCBCAgent, folder, run, "laptop", {**overrides, "steps_left": True, "goal_steps": 20}, "cpu")
    return run


def test_gcbc_told_the_steps_left_takes_a_block_of_actions_before_it_looks_again(gcbc):
    agent = GCBCAgent.load(gcbc)
    obs, others = tiny.observation(2), tiny.observation(2, seed=1)
    first = [agent.act(obs, steps_left=[20, 7]) for _ in range(5)]
    frames = [torch.from_numpy(obs[key][1]) for key in ("pixels", "goal")]
    with torch.no_grad():
        block = agent.model.act_block(*frames, 7.0)[0].numpy()
    np.testing.assert_allclose(np.stack(first)[:, 1], np.clip(block, -1, 1), rtol=1e-5, atol=1e-6)
    changed = {**obs, "pixels": others["pixels"]}
    assert not np.array_equal(agent.act(changed, steps_left=[15, 2]), first[0])
    agent.reset()
    alone = [agent.act({k: v[1] for k, v in obs.items()}, steps_left=7) for _ in range(5)]
    np.testing.assert_array_equal(np.stack(first)[:, 1], alone)


def test_gcbc_estimates_the_steps_left_where_nobody_says(gcbc):
    agent = GCBCAgent.load(gcbc)
    obs = tiny.observation()
    estimated = agent.act(obs)
    with torch.no_grad():
        now, goal = (agent.model.encodings(torch.from_numpy(obs[key])[None]) for key in ("pixels", "goal"))
        estimate = float(agent.model.actor.steps_left(now, goal))
    agent.reset()
    np.testing.assert_allclose(estimated, agent.act(obs, steps_left=estimate), rtol=1e-5, atol=1e-6)


def test_gcbc_told_the_steps_left_needs_an_encoder_of_its_own():
    with pytest.raises(ValueError, match="needs encoder scratch"):
        GCBCConfig(steps_left=True, encoder="dino")
    with pytest.raises(ValueError, match="goal_steps"):
        GCBCConfig(goal_steps=0)
