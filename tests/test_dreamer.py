"""Dreamer's mathematics against direct computation, and how it acts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from agents.dreamer import Dreamer, DreamerAgent, DreamerConfig, lambda_returns
from lewm_gym.data.goals import GoalClipBatch
from lewm_gym.nn.conv import ConvEncoder
from lewm_gym.nn.decoder import ConvDecoder
from lewm_gym.nn.frozen import held
from lewm_gym.nn.images import IMAGENET_STD, to_network
from lewm_gym.nn.rssm import RSSM, LatentState, balanced_kl

SMALL = {
    "conv_channels": (8, 8),
    "embedding_width": 12,
    "recurrent_width": 10,
    "groups": 3,
    "classes": 4,
    "hidden_widths": (16, 16),
    "clip_frames": 4,
    "imagine_blocks": 3,
}


def make(**changes) -> Dreamer:
    """Returns a model in evaluation mode whose reward and critics differ, and are not zero."""
    torch.manual_seed(0)
    model = Dreamer(DreamerConfig(**{**SMALL, "image_size": 28, **changes}))
    for head in (model.reward, model.critic, model.slow_critic, model.actor.layers):
        torch.nn.init.normal_(head[-1].weight, std=0.3)
        torch.nn.init.normal_(head[-1].bias, std=0.3)
    model.action_mean.copy_(torch.tensor([0.25, -0.5]))
    model.action_std.copy_(torch.tensor([0.5, 2.0]))
    model.return_scale.fill_(1.7)
    return model.eval()


def clips(size: int = 5) -> GoalClipBatch:
    """Returns clips of which the first has its second frame as the goal, and stands still in its last two."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (size, 5, 28, 28, 3), dtype=torch.uint8, generator=generator)
    pixels[0, 4], pixels[0, 3] = pixels[0, 1], pixels[0, 2]
    ahead = (torch.rand(size, 3, generator=generator) < 0.5).float()
    assert 0 < ahead.sum() < ahead.numel()
    return GoalClipBatch(pixels, torch.randn(size, 3, 10, generator=generator), torch.zeros(size, 3), ahead)


def rssm() -> RSSM:
    torch.manual_seed(0)
    return RSSM(embedding_width=5, action_width=2, recurrent_width=6, groups=3, classes=4, hidden_width=7)


# Pieces ------------------------------------------------------------------------------------------------------


def test_lambda_returns_are_weighted_means_of_all_n_step_returns():
    rng = np.random.default_rng(0)
    rewards, discounts, values = rng.normal(size=5), rng.uniform(0.2, 1, 5), rng.normal(size=5)
    trace = 0.8

    def n_steps(t: int, n: int) -> float:
        """Returns n rewards from t and the value after them."""
        total, weight = 0.0, 1.0
        for k in range(t, t + n):
            total += weight * rewards[k]
            weight *= discounts[k]
        return total + weight * values[t + n - 1]

    got = lambda_returns(*(torch.from_numpy(x)[:, None] for x in (rewards, discounts, values)), trace)[:, 0]
    for t in range(5):
        left = 5 - t
        expected = sum((1 - trace) * trace ** (n - 1) * n_steps(t, n) for n in range(1, left))
        expected += trace ** (left - 1) * n_steps(t, left)
        assert got[t].item() == pytest.approx(expected)


def test_balanced_divergences_are_torchs_trained_from_one_side_each_and_not_below_the_free_nats():
    model, logits = rssm(), torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0))
    logits[0, 0] = logits[1, 0]  # no divergence there: below the free nats
    logits.mul_(3).requires_grad_()
    posteriors, priors = (model.log_probabilities(row) for row in logits)
    exact = Independent(Categorical(posteriors.exp()), 1), Independent(Categorical(priors.exp()), 1)
    divergence = kl_divergence(*exact)
    assert divergence[0] < 0.5 < divergence[1:].min()
    for side, loss in enumerate(balanced_kl(posteriors, priors, free_nats=0.5)):
        torch.testing.assert_close(loss, divergence.clamp_min(0.5))
        (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
        trained = gradient[1 - side]  # the dynamics' loss trains the prior, the representation's the posterior
        assert gradient[side].abs().max() == 0 and trained[1:].abs().amin(dim=0).max() > 0
        assert trained[0].abs().max() == 0
        (alone,) = torch.autograd.grad(divergence[1:].sum(), logits, retain_graph=True)
        torch.testing.assert_close(trained[1:], alone[1 - side, 1:])


def test_a_hundredth_of_each_distribution_is_uniform():
    got = rssm().log_probabilities(torch.tensor([[100.0, 0, 0, 0] * 3])).exp()
    torch.testing.assert_close(got[0, 0], torch.tensor([0.99 + 0.0025, 0.0025, 0.0025, 0.0025]))


def test_codes_are_samples_in_training_the_mode_in_evaluation_and_carry_the_gradient():
    model, shares = rssm(), torch.tensor([0.1, 0.2, 0.3, 0.4])
    drawn = model.train().draw(shares.log().expand(8000, 3, 4)).unflatten(-1, (3, 4))
    assert set(drawn.detach().round(decimals=4).unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.sum(dim=-1), torch.ones(8000, 3))
    torch.testing.assert_close(drawn.mean(dim=(0, 1)), shares, atol=0.02, rtol=0)
    logits = torch.zeros(1, 12, requires_grad=True)
    probabilities = model.log_probabilities(logits + torch.tensor([0.0, 1, 0, 0] * 3))
    code = model.eval().draw(probabilities)
    torch.testing.assert_close(code.detach(), torch.tensor([[0.0, 1, 0, 0] * 3]))
    weights = torch.arange(12.0)
    (straight,) = torch.autograd.grad((code * weights).sum(), logits, retain_graph=True)
    (soft,) = torch.autograd.grad((probabilities.exp().flatten(-2) * weights).sum(), logits)
    torch.testing.assert_close(straight, soft)


def test_the_recurrent_state_is_that_of_a_gru_with_normalised_gates():
    model = rssm()
    state, action = LatentState(torch.randn(3, 6), torch.rand(3, 12)), torch.randn(3, 2)
    with torch.no_grad():
        got = model.advance(state, action).numpy()
        mixed = model.mixed(torch.cat([state.code, action], dim=-1))
        raw = torch.cat([mixed, state.recurrent], dim=-1).double() @ model.gates[0].weight.double().T
    raw, h = raw.numpy(), state.recurrent.numpy()
    raw = (raw - raw.mean(axis=1, keepdims=True)) / np.sqrt(raw.var(axis=1, keepdims=True) + 1e-5)
    reset, candidate, update = np.split(raw, 3, axis=1)
    update = 1 / (1 + np.exp(1 - update))
    candidate = np.tanh(candidate / (1 + np.exp(-reset)))
    np.testing.assert_allclose(got, update * candidate + (1 - update) * h, rtol=1e-4, atol=1e-5)


def test_states_follow_from_what_was_seen_and_done_before_and_from_nothing_later():
    model = rssm().eval()
    embeddings, actions = torch.randn(2, 4, 5), torch.randn(2, 3, 2)
    with torch.no_grad():
        states, posteriors, priors = model.observe(embeddings, actions)
        state = LatentState(torch.zeros(2, 6), torch.zeros(2, 12))
        for t in range(4):
            recurrent = torch.zeros(2, 6) if t == 0 else model.advance(state, actions[:, t - 1])
            posterior = model.log_probabilities(model.posterior(torch.cat([recurrent, embeddings[:, t]], dim=-1)))
            state = LatentState(recurrent, model.draw(posterior))
            for got, expected in ((states.recurrent, recurrent), (states.code, state.code), (posteriors, posterior)):
                torch.testing.assert_close(got[:, t], expected)
            torch.testing.assert_close(priors[:, t], model.log_probabilities(model.prior(recurrent)))
        later, act_later = embeddings.clone(), actions.clone()
        later[:, 3], act_later[:, 2] = 0, 0
        same, _, _ = model.observe(later, act_later)
        torch.testing.assert_close(same.features[:, :3], states.features[:, :3])
        assert not torch.allclose(same.recurrent[:, 3], states.recurrent[:, 3])
        imagined = model.imagine(LatentState(*(part[:, 0] for part in states)), actions[:, 0])
    torch.testing.assert_close(imagined.recurrent, states.recurrent[:, 1])
    modes = priors[:, 1].argmax(dim=-1)
    assert torch.equal(imagined.code.unflatten(-1, (3, 4)).argmax(dim=-1), modes)


@pytest.mark.parametrize(("size", "channels"), [(56, (8, 6, 4)), (28, (8, 4)), (112, (4, 4, 4, 4)), (20, (3,))])
def test_the_decoders_maps_are_the_encoders_in_reverse(size, channels):
    encoder, decoder = ConvEncoder(size, channels, 9).eval(), ConvDecoder(9, size, channels).eval()
    shapes: list[list[torch.Size]] = [[], []]
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    for network, kind, seen in zip((encoder, decoder), kinds, shapes, strict=True):
        for layer in network.stages:
            if isinstance(layer, kind):
                layer.register_forward_hook(
                    lambda _, inputs, output, seen=seen: seen.extend([inputs[0].shape, output.shape])
                )
    with torch.no_grad():
        decoder(encoder(torch.randn(2, 3, size, size)))
    assert shapes[1] == shapes[0][::-1]
    with pytest.raises(ValueError, match="multiple of the convolutions' patches"):
        ConvDecoder(9, 30, channels)


def test_held_networks_pass_the_gradient_on_and_get_none():
    layer, x = torch.nn.Linear(3, 1), torch.ones(3, requires_grad=True)
    with held(layer):
        out = layer(x).sum()
    (out + layer(torch.ones(3)).sum()).backward()
    torch.testing.assert_close(x.grad, layer.weight[0].detach())
    torch.testing.assert_close(layer.weight.grad, torch.ones(1, 3))  # of the second pass alone


def test_the_actor_stays_within_the_bounds_and_its_gradient_does_not_see_them():
    actor = make().actor
    actor.low.copy_(torch.linspace(-4, -1, 10))
    actor.high.copy_(torch.linspace(0.5, 3, 10))
    with torch.no_grad():
        proposal = actor(100 * torch.randn(7, 22 + 24))
    assert ((actor.low <= proposal.mean) & (proposal.mean <= actor.high)).all()
    assert ((proposal.std >= 0.1) & (proposal.std <= 1)).all()
    mean = proposal.mean.clone().requires_grad_()
    drawn = actor.sample(proposal._replace(mean=mean), torch.full((7, 10), 30.0))
    torch.testing.assert_close(drawn, actor.high.expand(7, 10))
    drawn.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(7, 10))


# The loss ----------------------------------------------------------------------------------------------------


def said(network, inputs: torch.Tensor) -> np.ndarray:
    """Returns the shares that a network says, in float64."""
    logits = network(inputs).numpy().astype(np.float64)
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


CENTRES = np.linspace(-20, 20, 255)


def number(shares: np.ndarray) -> float:
    mean = float((shares * CENTRES).sum())
    return math.copysign(math.expm1(abs(mean)), mean)


def cross_entropy(shares: np.ndarray, x: float) -> float:
    target = np.interp(math.copysign(math.log1p(abs(x)), x), CENTRES, np.arange(255))
    below, share = int(target), target - int(target)
    return -(1 - share) * math.log(shares[below]) - share * math.log(shares[min(below + 1, 254)])


def test_the_loss_is_that_of_its_definition():
    model, batch = make(), clips()
    config = model.config
    with torch.no_grad():
        torch.manual_seed(3)
        loss, parts = model.loss(batch)
        torch.manual_seed(3)
        noise = torch.randn(3, 5 * 4, 10).unflatten(1, (5, 4))
        embeddings, actions = model.encode(batch.pixels), model.normalize_actions(batch.actions)
        sums = dict.fromkeys(
            ("reconstruction", "embedding", "reward", "dynamics", "representation", "critic", "actor", "behaviour"), 0.0
        )

        def seen(state: LatentState, goal: torch.Tensor) -> torch.Tensor:
            return torch.cat([state.features, goal, (model.embedding(state.features) - goal).abs()])

        states, posteriors, priors = model.dynamics.observe(embeddings[:, :-1], actions)
        mean_image = to_network(batch.pixels.flatten(0, 1), 28).mean(dim=0)
        for b in range(5):
            goal = embeddings[b, -1]
            for t in range(4):
                state = LatentState(states.recurrent[b, t], states.code[b, t])
                wanted = to_network(batch.pixels[b, t][None], 28) - mean_image
                scale = torch.tensor(IMAGENET_STD).view(3, 1, 1)
                error = model.decoder(state.features[None]) * scale - wanted * scale
                sums["reconstruction"] += error.square().sum().item() / 20
                predicted = model.embedding(state.features)
                sums["embedding"] += (predicted - embeddings[b, t]).square().mean().item() / 20
                q, p = posteriors[b, t].double(), priors[b, t].double()
                divergence = max(1.0, (q.exp() * (q - p)).sum().item())
                sums["dynamics"] += divergence / 20
                sums["representation"] += divergence / 20
                for k in range(5):
                    reached = torch.equal(batch.pixels[b, t], batch.pixels[b, k])
                    shares = said(model.reward, seen(state, embeddings[b, k]))
                    sums["reward"] += cross_entropy(shares, 0.0 if reached else -1.0) / 100
                # Imagination: three blocks, then back from their end.
                inputs, entropies = [seen(state, goal)], []
                for h in range(3):
                    mean, std = model.actor(inputs[-1])
                    if h == 0 and t < 3 and batch.ahead[b, t]:
                        error = (mean - actions[b, t]).square().mean().item()
                        sums["behaviour"] += error / batch.ahead.sum().item()
                    entropies.append(Normal(mean, std).entropy().sum().item())
                    action = (mean + std * noise[h, b, t]).clamp(model.actor.low, model.actor.high)
                    state = model.dynamics.imagine(state, action)
                    inputs.append(seen(state, goal))
                values = [number(said(model.critic, x)) for x in inputs]
                rewards = [min(0.0, max(-1.0, number(said(model.reward, x)))) for x in inputs]
                gain, weights = values[3], [1.0]
                for h in range(2):
                    weights.append(weights[-1] * 0.95 * -rewards[h])
                for h in (2, 1, 0):
                    gain = rewards[h] + 0.95 * -rewards[h] * (0.05 * values[h + 1] + 0.95 * gain)
                    shares = said(model.critic, inputs[h])
                    slow = number(said(model.slow_critic, inputs[h]))
                    errors = cross_entropy(shares, gain) + cross_entropy(shares, slow)
                    sums["critic"] += weights[h] / 60 * errors
                    sums["actor"] -= weights[h] / 60 * (gain / 1.7 + 3e-4 * entropies[h])
    assert {key: parts[key].item() for key in sums} == pytest.approx(sums, rel=1e-3)
    weights = {"representation": 0.1, "behaviour": config.behaviour_weight}
    assert loss.item() == pytest.approx(sum(weights.get(k, 1.0) * v for k, v in sums.items()), rel=1e-3)


def test_each_part_of_the_loss_trains_its_networks_and_no_other():
    model = make(free_nats=0.0).train()
    _, parts = model.loss(clips())

    def trained(part: torch.Tensor) -> set[str]:
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(part, named.values(), retain_graph=True, allow_unused=True)
        return {n.split(".")[0] for n, g in zip(named, gradients, strict=True) if g is not None and g.abs().max() > 0}

    assert trained(parts["reconstruction"]) == {"encoder", "dynamics", "decoder"}
    assert trained(parts["reward"]) == {"encoder", "dynamics", "embedding", "reward"}
    assert trained(parts["embedding"]) == {"encoder", "dynamics", "embedding"}
    assert trained(parts["dynamics"]) == trained(parts["representation"]) == {"encoder", "dynamics"}
    assert trained(parts["critic"]) == {"critic"}
    assert trained(parts["actor"]) == trained(parts["behaviour"]) == {"actor"}
    assert all(p.requires_grad for n, p in model.named_parameters() if not n.startswith("slow_critic."))


def test_the_scale_follows_returns_in_training_alone_and_the_slow_critic_its_source():
    model = make(slow_rate=0.75)
    scale = model.return_scale.clone()
    model.loss(clips())
    assert torch.equal(model.return_scale, scale)
    model.train().loss(clips())
    assert not torch.equal(model.return_scale, scale)
    slow, fast = (next(part.parameters()).detach().clone() for part in (model.slow_critic, model.critic))
    next(model.critic.parameters()).data.copy_(fast + 1)
    model.after_step()
    torch.testing.assert_close(next(model.slow_critic.parameters()), 0.75 * slow + 0.25 * (fast + 1))


def test_actions_that_were_not_recorded_are_not_imitated():
    model, batch = make(), clips()
    batch.actions[:, :, 3] = math.nan
    _, parts = model.loss(batch)
    assert all(value.isfinite() for value in parts.values())
    batch.actions[:] = math.nan
    assert model.loss(batch)[1]["behaviour"].item() == 0


@pytest.mark.parametrize(
    "bad",
    [{"clip_frames": 1}, {"classes": 1}, {"discount": 1.0}, {"trace": 1.5}, {"behaviour_weight": -1.0}, {"groups": 0}],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DreamerConfig(**bad)


# Acting ------------------------------------------------------------------------------------------------------


def agent() -> DreamerAgent:
    return DreamerAgent(make(image_size=56, clip_frames=3), tiny.ENVIRONMENT)


def watch(acting: DreamerAgent, steps: int, seed: int = 0, **options) -> np.ndarray:
    """Returns the actions (steps, 2) of an agent that sees a new frame at each step, and one goal."""
    goal = tiny.observation(seed=99)["goal"]
    frames = [tiny.observation(seed=seed + step)["pixels"] for step in range(steps)]
    return np.stack([acting.act({"pixels": frame, "goal": goal}, **options) for frame in frames])


def test_a_block_follows_from_the_last_frames_at_its_beginning_and_the_blocks_between_them():
    acting = agent()
    actions = watch(acting, 20)
    goal = torch.from_numpy(tiny.observation(seed=99)["goal"])
    for block in range(4):
        first = max(0, block - 2)
        frames = np.stack([tiny.observation(seed=5 * k)["pixels"] for k in range(first, block + 1)])
        done = torch.from_numpy(actions[5 * first : 5 * block].reshape(-1, 10))
        with torch.inference_mode():
            expected = acting.model.act(torch.from_numpy(frames), done, goal).view(5, 2).clamp(-1, 1)
        np.testing.assert_allclose(actions[5 * block : 5 * block + 5], expected, rtol=1e-5, atol=1e-6)


def test_the_past_matters_until_the_episode_or_the_goal_changes():
    acting = agent()
    alone = watch(acting, 5, seed=5)
    acting.reset()
    assert not np.allclose(watch(acting, 10)[5:], alone)
    watch(acting, 1, seed=5, episode_start=np.array([True]))
    np.testing.assert_array_equal(watch(acting, 4, seed=6), alone[1:])
    assert acting.needs_frame() == [True]


def test_state_of_the_caller_is_used_in_place_of_the_agents_own():
    acting, reference = agent(), agent()
    observations = [tiny.observation(2, seed=step) for step in range(7)]
    for obs in observations:
        obs["goal"] = observations[0]["goal"]
    state = None
    for step, obs in enumerate(observations):
        got, state = acting.predict(obs, state, np.full(2, step == 0))
        np.testing.assert_array_equal(got, reference.act(obs))
