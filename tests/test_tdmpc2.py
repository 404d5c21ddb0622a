"""TD-MPC2's mathematics against direct computation, its clips, and its part in planning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from agents.planning import PlanningConfig
from agents.tdmpc2 import PRESETS, TDMPC2, SimNorm, TDMPC2Agent, TDMPC2Config
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.goals import VALUE_GOALS, GoalClipBatch, GoalClips, GoalMixture
from lewm_gym.nn.goal_conditioned import follow_spread
from lewm_gym.nn.images import average_down
from lewm_gym.nn.two_hot import TwoHot, symexp, symlog
from lewm_gym.planning import MPPI, MPPIConfig

SMALL = {"conv_channels": (8, 8), "latent_size": 16, "hidden_widths": (16, 16), "dropout": 0.0, "image_shift": 0}


def make(**changes) -> TDMPC2:
    """Returns a model in evaluation mode whose rewards, values and target networks differ, and none is zero."""
    torch.manual_seed(0)
    model = TDMPC2(TDMPC2Config(**{**SMALL, "image_size": 28, **changes}))
    for head in (model.reward, *model.critic.members, *model.target.members):
        torch.nn.init.normal_(head[-1].weight, std=0.3)
        torch.nn.init.normal_(head[-1].bias, std=0.3)
    model.action_mean.copy_(torch.tensor([0.25, -0.5]))
    model.action_std.copy_(torch.tensor([0.5, 2.0]))
    return model.eval()


def clips(size: int = 6, blocks: int = 3, width: int = 10) -> GoalClipBatch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (size, blocks + 2, 28, 28, 3), dtype=torch.uint8, generator=generator)
    reached = (torch.rand(size, blocks, generator=generator) < 0.3).float()
    assert 0 < reached.sum() < reached.numel()
    ahead = 1 - reached
    return GoalClipBatch(pixels, torch.randn(size, blocks, width, generator=generator), reached, ahead)


# Pieces ------------------------------------------------------------------------------------------------------


def test_symlog_is_that_of_its_definition_and_symexp_undoes_it():
    x = torch.tensor([-100.0, -1.0, -0.01, 0.0, 0.5, math.e - 1, 2000.0], dtype=torch.float64)
    expected = [math.copysign(math.log(1 + abs(v)), v) for v in x.tolist()]
    assert symlog(x).tolist() == pytest.approx(expected)
    torch.testing.assert_close(symexp(symlog(x)), x)


def test_two_hot_targets_share_the_weight_of_the_two_bins_beside():
    bins = TwoHot(-2.0, 2.0, 5)
    got = bins.encode(torch.tensor([0.0, math.expm1(0.25), -math.expm1(1.5), 1e6, -1e6]))
    expected = [[0, 0, 1, 0, 0], [0, 0, 0.75, 0.25, 0], [0.5, 0.5, 0, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_two_hot_targets_decode_to_the_number_and_are_where_the_loss_is_least():
    bins, x = TwoHot(), torch.tensor([-87.3, -20.0, -1.0, -0.4, 0.0, 3.3])
    targets = bins.encode(x)
    torch.testing.assert_close(targets.sum(dim=-1), torch.ones(6))
    assert ((targets > 0).sum(dim=-1) <= 2).all()
    torch.testing.assert_close(bins.decode(targets.clamp_min(1e-30).log()), x, rtol=1e-4, atol=1e-4)
    logits = torch.zeros(6, 101, requires_grad=True)
    loss = bins.loss(logits, x)
    assert loss.tolist() == pytest.approx([math.log(101)] * 6)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, 1 / 101 - targets)  # of cross-entropy: what is said minus the target


def test_bad_bins_are_refused():
    with pytest.raises(ValueError, match="low < high"):
        TwoHot(1.0, 1.0)


def test_simnorm_is_a_softmax_of_each_group():
    x = torch.randn(2, 3, 12)
    expected = np.exp(x.numpy().astype(np.float64)).reshape(2, 3, 3, 4)
    expected = (expected / expected.sum(axis=-1, keepdims=True)).reshape(2, 3, 12)
    np.testing.assert_allclose(SimNorm(4)(x), expected, rtol=1e-5)


def test_latents_lie_on_simplices_wherever_they_come_from():
    model = make()
    with torch.no_grad():
        seen = model.encode(clips().pixels)
        predicted = model.rollout(seen[:, :1], torch.randn(6, 4, 3, 10))
    for latents in (seen, predicted):
        torch.testing.assert_close(latents.unflatten(-1, (2, 8)).sum(dim=-1), torch.ones(*latents.shape[:-1], 2))


def test_the_policys_log_probability_is_that_of_a_squashed_gaussian():
    actor = make().actor
    actor.low.copy_(torch.linspace(-4, -1, 10))
    actor.high.copy_(torch.linspace(0.5, 3, 10))
    latents, goals, noise = torch.rand(5, 16), torch.rand(5, 16), torch.randn(5, 10)
    with torch.no_grad():
        actions, log_prob = actor.sample(latents, goals, noise)
        mean, log_std = actor._gaussian(latents, goals)
        greedy = actor(latents, goals)
    within = (2 * actions - actor.high - actor.low) / (actor.high - actor.low)
    assert (within.abs() < 1).all() and ((-10 <= log_std) & (log_std <= 2)).all()
    torch.testing.assert_close(within.atanh(), mean + log_std.exp() * noise, rtol=1e-3, atol=1e-3)
    squashed = TransformedDistribution(Independent(Normal(mean.double(), log_std.double().exp()), 1), [TanhTransform()])
    torch.testing.assert_close(log_prob.double(), squashed.log_prob(within.double()), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(greedy.mean, actor.sample(latents, goals, torch.zeros(5, 10))[0].detach())
    nudge = 1e-3 * torch.ones(5, 10)  # the spread is how far a small step of the noise moves the action
    with torch.no_grad():
        moved = (actor.sample(latents, goals, nudge)[0] - actor.sample(latents, goals, -nudge)[0]) / 2e-3
    torch.testing.assert_close(greedy.std, moved, rtol=1e-2, atol=1e-2)


# The loss ----------------------------------------------------------------------------------------------------


def beside(latent: np.ndarray, goal: np.ndarray, *more: np.ndarray) -> torch.Tensor:
    parts = [latent, goal, np.abs(latent - goal), *more]
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))


def said(network: torch.nn.Module, inputs: torch.Tensor) -> np.ndarray:
    """Returns a network's probabilities over bins."""
    logits = network(inputs).numpy().astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum()


CENTRES = np.linspace(-10, 10, 101)


def number(probabilities: np.ndarray) -> float:
    mean = float((probabilities * CENTRES).sum())
    return math.copysign(math.expm1(abs(mean)), mean)


def cross_entropy(probabilities: np.ndarray, x: float) -> float:
    """Returns the cross-entropy to the two bins beside symlog(x), found by search."""
    y = math.copysign(math.log1p(abs(x)), x)
    k = int(np.searchsorted(CENTRES, y, side="right")) - 1
    share = (y - CENTRES[k]) / (CENTRES[k + 1] - CENTRES[k])
    return -((1 - share) * math.log(probabilities[k]) + share * math.log(probabilities[k + 1]))


def test_the_loss_over_the_horizon_equals_a_direct_computation(monkeypatch):
    model, batch = make(), clips()
    model.q_scale.fill_(1.7)
    pairs = iter([[1, 3], [4, 0]])  # of the target networks, then of the critics
    monkeypatch.setattr(model, "_pair", lambda: next(pairs))
    drawn = [torch.randn(6, 3, 10), torch.randn(6, 4, 10)]
    noises = iter(drawn)
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: next(noises))
    with torch.no_grad():
        loss, parts = model.loss(batch)
    z = model.encode(batch.pixels).detach().numpy()
    actions = (batch.actions.numpy() - np.tile([0.25, -0.5], 5)) / np.tile([0.5, 2.0], 5)
    sums = dict.fromkeys(("consistency", "reward", "value", "actor"), 0.0)
    with torch.no_grad():
        for b in range(6):
            goal, latent = z[b, -1], z[b, 0]
            for t in range(4):
                weight = 0.5**t / 6
                here = [torch.from_numpy(part) for part in (latent, goal)]
                action, log_prob = model.actor.sample(*here, drawn[1][b, t])
                values = [number(said(model.critic.members[i], beside(latent, goal, action))) for i in (4, 0)]
                sums["actor"] -= weight / 4 * (np.mean(values) / 1.7 - 1e-4 * float(log_prob))
                if t == 3:
                    break
                after = [torch.from_numpy(part) for part in (z[b, t + 1], goal)]
                next_action = model.actor.sample(*after, drawn[0][b, t])[0]
                slow = [number(said(model.target.members[i], beside(z[b, t + 1], goal, next_action))) for i in (1, 3)]
                reward = -1.0 if batch.reached[b, t] == 0 else 0.0
                target = -1 + 0.95 * min(slow) if reward else 0.0
                inputs = beside(latent, goal, actions[b, t])
                sums["reward"] += weight / 3 * cross_entropy(said(model.reward, inputs), reward)
                entropies = [cross_entropy(said(member, inputs), target) for member in model.critic.members]
                sums["value"] += weight / 3 * np.mean(entropies)
                step = torch.from_numpy(np.concatenate([latent, actions[b, t]]).astype(np.float32))
                latent = model.dynamics(step).numpy()
                sums["consistency"] += weight / 3 * ((latent - z[b, t + 1]) ** 2).mean()
    assert {key: parts[key].item() for key in sums} == pytest.approx(sums, rel=1e-3)
    weighted = 20 * sums["consistency"] + 0.1 * sums["reward"] + 0.1 * sums["value"] + sums["actor"]
    assert loss.item() == pytest.approx(weighted, rel=1e-3)


def test_each_part_of_the_loss_trains_its_networks_and_no_other():
    model = make().train()
    _, parts = model.loss(clips())

    def trained(part: torch.Tensor) -> set[str]:
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(part, named.values(), retain_graph=True, allow_unused=True)
        return {n.split(".")[0] for n, g in zip(named, gradients, strict=True) if g is not None and g.abs().max() > 0}

    assert trained(parts["consistency"]) == {"encoder", "dynamics"}
    assert trained(parts["reward"]) == {"encoder", "dynamics", "reward"}
    assert trained(parts["value"]) == {"encoder", "dynamics", "critic"}
    assert trained(parts["actor"]) == {"actor"}


def test_the_scale_follows_the_spread_of_values_in_training_alone():
    model = make()
    values = torch.linspace(-30, 10, 101)
    follow_spread(model.q_scale, values)
    assert model.q_scale.item() == pytest.approx(0.99 * 1 + 0.01 * 36)
    before = model.q_scale.clone()
    model.loss(clips())
    assert torch.equal(model.q_scale, before)
    model.train().loss(clips())
    assert not torch.equal(model.q_scale, before)


def test_target_networks_follow_get_no_gradient_and_drop_nothing():
    model = make(dropout=0.5, target_rate=0.75).train()
    assert not any(p.requires_grad for p in model.target.parameters())
    inputs = torch.rand(4, 3 * 16 + 10)
    assert torch.equal(model.target(inputs), model.target(inputs))
    assert not torch.equal(model.critic(inputs), model.critic(inputs))
    slow, fast = (next(part.parameters()).clone() for part in (model.target, model.critic))
    fast = fast + 1
    next(model.critic.parameters()).data.copy_(fast)
    model.after_step()
    torch.testing.assert_close(next(model.target.parameters()), 0.75 * slow + 0.25 * fast)


def test_an_untrained_model_says_zero():
    model = TDMPC2(TDMPC2Config(**SMALL, image_size=28)).eval()
    latents, plans = torch.rand(2, 16), torch.randn(2, 3, 4, 10)
    with torch.no_grad():
        found = model.returns(model.rollout(latents[:, None], plans), plans, latents, torch.rand(2, 16))
    torch.testing.assert_close(found, torch.zeros(2, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "bad",
    [{"latent_size": 12}, {"critics": 1}, {"discount": 1.0}, {"rho": 0.0}, {"value_weight": -1.0}, {"n_bins": 1}],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TDMPC2Config(**bad)


# Clips -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset.open(tiny.collect_two_room(tmp_path_factory.mktemp("data") / "two_room", episodes=4))


def test_clips_hold_their_frames_actions_and_goal_and_say_where_it_is_reached(dataset):
    options = {"n_frames": 4, "frame_skip": 5, "image_size": 56}
    sampler = GoalClips(dataset, None, GoalMixture(0.4, 0.6, 0.0, discount=0.5), **options)
    batch, again = sampler.batch(2, 32), GoalClips(dataset, None, sampler.value_goals, **options).batch(2, 32)
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    which, starts = sampler.clips(2, 32)
    for j in range(3):
        episode = dataset.episode(int(sampler.episodes[which[j]]))
        frames = torch.from_numpy(episode.pixels[starts[j] : starts[j] + 16 : 5])
        assert torch.equal(batch.pixels[j, :4], average_down(frames, 56))
        np.testing.assert_array_equal(batch.actions[j], episode.action[starts[j] : starts[j] + 15].reshape(3, -1))
    same = (batch.pixels[:, :3] == batch.pixels[:, 3 + 1 :]).flatten(2).all(dim=2)
    assert same[batch.reached == 1].all()
    assert 0.2 < batch.reached[:, 0].mean() < 0.6 and batch.reached[:, 1:].any()
    assert torch.equal(batch.ahead, (batch.reached.cumsum(dim=1) == 0).float())
    random = GoalClips(dataset, [0], GoalMixture(0.0, 0.0, 1.0), **options)
    which, starts = random.clips(0, 200)
    _, goals = random.draw(np.random.default_rng([0, 0, 1]), which, starts, random.value_goals)
    later = goals[:, None] > starts[:, None] + [0, 5, 10]
    np.testing.assert_array_equal(random.batch(0, 200).ahead, later)  # of one episode: some goals lie behind
    assert 0.2 < later.mean() < 0.8


def test_later_goals_lie_whole_blocks_ahead_within_the_episode(dataset):
    sampler = GoalClips(dataset, None, n_frames=4, frame_skip=5, image_size=56)
    for mixture in (GoalMixture(0, 1, 0), GoalMixture(0, 1, 0, discount=0.8), GoalMixture(0, 1, 0, discount=0.0)):
        which, starts = sampler.clips(0, 500)
        episode, step = sampler.draw(np.random.default_rng(0), which, starts, mixture)
        ahead = step - starts
        assert (episode == which).all() and (ahead % 5 == 0).all() and (ahead >= 5).all()
        assert (step < dataset.lengths[sampler.episodes[which]]).all()
    assert (ahead == 5).all()
    anywhere = sampler.draw(np.random.default_rng(0), which, starts, GoalMixture(0, 0, 1))
    assert (anywhere[1] < dataset.lengths[sampler.episodes[anywhere[0]]]).all() and (anywhere[1] % 5).any()


def test_training_draws_goals_at_the_discount_of_blocks_and_learns_the_bounds_of_actions(dataset):
    model = make(image_size=56)
    TDMPC2Agent.set_normalization(model, dataset)
    bounds = model.denormalize_actions(torch.stack([model.actor.low, model.actor.high]))
    torch.testing.assert_close(bounds, torch.tensor([-1.0, 1.0])[:, None].expand(2, 10))
    training, validation = TDMPC2Agent.samplers(dataset, model, 0, None)
    assert training.value_goals.discount == 0.95 and training.value_goals.random == VALUE_GOALS.random
    assert training.batch(0, 2).pixels.shape[1] == 5 and not set(training.episodes) & set(validation.episodes)


# Planning ----------------------------------------------------------------------------------------------------


def test_returns_are_discounted_rewards_and_the_mean_value_of_the_end():
    model = make(discount=0.9)
    start, goal, plans = torch.rand(2, 16), torch.rand(2, 16), torch.randn(2, 3, 4, 10)
    with torch.no_grad():
        predicted = model.rollout(start[:, None], plans)
        got = model.returns(predicted, plans, start, goal)
        latent, expected = start[1].numpy(), 0.0
        for t in range(4):
            action = plans[1, 2, t].numpy()
            expected += 0.9**t * number(said(model.reward, beside(latent, goal[1].numpy(), action)))
            latent = model.dynamics(torch.from_numpy(np.concatenate([latent, action]))).numpy()
        np.testing.assert_allclose(predicted[1, 2, -1], latent, rtol=1e-4, atol=1e-5)
        final = model.actor(torch.from_numpy(latent)[None], goal[1:]).mean[0].numpy()
        inputs = beside(latent, goal[1].numpy(), final)
        expected += 0.9**4 * np.mean([number(said(member, inputs)) for member in model.critic.members])
    assert got.shape == (2, 3) and got[1, 2].item() == pytest.approx(expected, rel=1e-3)


def test_the_policys_plans_answer_to_what_the_model_predicts():
    model = make()
    start, goal, noise = torch.rand(2, 16), torch.rand(2, 16), torch.randn(2, 3, 4, 10)
    with torch.no_grad():
        plans = model.propose(start, goal, noise)
        before = model.rollout(start[:, None], plans)[1, 2, 1]
        expected, _ = model.actor.sample(before, goal[1], noise[1, 2, 2])
    torch.testing.assert_close(plans[1, 2, 2], expected)


def test_proposals_are_candidates_of_every_iteration_of_mppi():
    target = torch.full((2, 3, 4), 5.0)  # far beyond what is drawn
    seen = []

    def cost(samples):
        seen.append(samples)
        return (samples - target.unsqueeze(1)).square().sum(dim=(-1, -2))

    def plan(**proposals):
        streams = [torch.Generator().manual_seed(i) for i in (0, 1)]
        return MPPI(MPPIConfig(32, 3)).plan(
            cost, torch.zeros_like(target), torch.ones_like(target), streams, **proposals
        )

    alone = plan().actions
    helped = plan(proposals=target.unsqueeze(1)).actions
    assert (alone - target).abs().mean() > 2 and (helped - target).abs().mean() < 0.1
    assert [samples.shape[1] for samples in seen] == [32] * 3 + [33] * 3
    assert all(torch.equal(samples[:, -1], target) for samples in seen[3:])
    with pytest.raises(ValueError, match="n_proposals"):
        MPPIConfig(n_proposals=-1)


def agent(seed: int = 0, **settings) -> TDMPC2Agent:
    planning = PRESETS["laptop"].planning.changed({"n_samples": 8, "n_iterations": 2, "n_proposals": 4, **settings})
    return TDMPC2Agent(make(image_size=56), planning, tiny.ENVIRONMENT, seed=seed)


def test_a_plan_minimises_minus_the_return_over_its_own_candidates_and_the_policys():
    planner, found = agent(), []
    planner.on_candidates = lambda actions, costs: found.append((actions, costs))
    planner.reset([3])
    observation = tiny.observation(1)
    planner.act(observation)
    actions, costs = found[0]
    assert actions.shape == (1, 8 + 4, 3, 10)
    model = planner.model
    with torch.no_grad():
        start, goal = (model.encode(torch.from_numpy(observation[key])) for key in ("pixels", "goal"))
        greedy = model.propose(start, goal, torch.zeros(1, 1, 3, 10))
        within = planner._within_bounds(actions)
        returns = model.returns(model.rollout(start[:, None], within), within, start, goal)
    torch.testing.assert_close(costs, -returns, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actions[:, 8], greedy[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"planner": "actor"}, {"planner": "guided"}, {"planner": "arcem"}])
def test_actions_do_not_depend_on_the_other_environments(settings):
    budget = {} if settings else {"n_samples": 8}
    many, alone = agent(**budget), agent(**budget)
    if settings:
        sizes = {} if settings["planner"] == "actor" else {"n_samples": 8, "n_elites": 2, "n_iterations": 1}
        many, alone = (each.with_planning({**settings, **sizes, "cost": "return"}) for each in (many, alone))
    many.reset([1, 2])
    alone.reset([2])
    for step in range(6):
        observation = tiny.observation(2, seed=step)
        expected = many.act(observation)[1]
        got = alone.act({key: value[1:] for key, value in observation.items()})[0]
        np.testing.assert_array_equal(got, expected)
    assert not many.uses_steps_left


def test_a_model_without_rewards_has_no_return_to_plan_for():
    with pytest.raises(ValueError, match="the cost return needs a model with rewards"):
        tiny.agent().with_planning({"cost": "return"})
    assert PlanningConfig().cost == "terminal"
