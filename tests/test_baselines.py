"""The baselines' mathematics against direct computation, their goals, and what they refuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from test_agents_contract import POLICY, WORLD, write_random_dino

from agents import agent_class
from agents.dino_wm import DinoWM, DinoWMConfig, RandomViTAgent
from agents.gcbc import GCBCAgent
from agents.gcivl import GCIVLAgent, GCIVLConfig
from agents.lewm import LeWMAgent
from agents.pldm import PLDM, TERMS, PLDMAgent, PLDMConfig
from agents.policy import PolicyConfig
from agents.run import train_run
from lewm_gym import checkpoint
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.goals import ACTOR_GOALS, VALUE_GOALS, GoalBatch, GoalMixture, GoalSampler
from lewm_gym.nn import dino
from lewm_gym.nn.frozen import freeze
from lewm_gym.nn.goal_conditioned import expectile_loss, log_likelihood, polyak_update, regression_weights
from lewm_gym.nn.images import average_down
from lewm_gym.nn.vicreg import batch_moments, time_moments
from lewm_gym.types import Batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.collect_two_room(tmp_path_factory.mktemp("data") / "two_room")


@pytest.fixture(scope="module")
def dataset(folder):
    return Dataset.open(folder)


# PLDM --------------------------------------------------------------------------------------------------------


def pldm(**changes) -> PLDM:
    torch.manual_seed(0)
    base = dataclasses.asdict(tiny.config())
    return PLDM(PLDMConfig(**{**base, "conv_channels": (8, 8, 8), "sigreg_weight": 0.0, **changes})).eval()


def test_pldms_terms_equal_a_direct_computation():
    model = pldm()
    generator = torch.Generator().manual_seed(1)
    latents = 0.5 * torch.randn(7, 4, 8, generator=generator)
    actions = torch.randn(7, 3, 10, generator=generator)
    with torch.no_grad():
        got = {name: float(term) for name, term in model.regularisers(latents, actions).items()}
        guess = model.inverse(torch.cat([latents[:, :-1], latents[:, 1:]], -1)).numpy()
    z = latents.numpy().astype(np.float64)
    batch_std = [np.sqrt(z[:, t].var(axis=0, ddof=1) + 1e-4) for t in range(4)]
    time_std = [np.sqrt(clip.var(axis=0, ddof=1) + 1e-4) for clip in z]

    def beside(values):
        covariance = np.cov(values, rowvar=False)
        return (covariance[~np.eye(8, dtype=bool)] ** 2).mean()

    expected = {
        "variance": np.mean([np.maximum(0, 1 - std) for std in batch_std]),
        "covariance": np.mean([beside(z[:, t]) for t in range(4)]),
        "time_similarity": ((z[:, 1:] - z[:, :-1]) ** 2).mean(),
        "time_variance": np.mean([np.maximum(0, 1 - std) for std in time_std]),
        "time_covariance": np.mean([beside(clip) for clip in z]),
        "inverse_dynamics": ((guess - actions.numpy()) ** 2).mean(),
    }
    assert got == pytest.approx(expected, rel=1e-4) and tuple(got) == TERMS


def test_pldms_loss_is_the_weighted_sum_with_the_papers_coefficients():
    model = pldm()
    pixels = torch.randint(0, 256, (6, 4, 56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loss, parts = model.loss(Batch(pixels, torch.zeros(6, 3, 10)))
    weights = {"prediction": 1, "variance": 18, "covariance": 12, "time_similarity": 0.2, "time_variance": 0.7}
    assert float(loss) == pytest.approx(sum(w * float(parts[name]) for name, w in weights.items()), rel=1e-5)
    assert len(parts) == 7


def test_pldm_logs_every_term_and_differs_from_lewm_by_its_loss_alone(folder, tmp_path):
    train_run(PLDMAgent, folder, tmp_path, "laptop", WORLD, "cpu")
    row = (tmp_path / checkpoint.LOG).read_text().splitlines()[-1]
    assert all(f'"{name}"' in row for name in ("prediction", *TERMS))
    theirs, ours = tiny.model().state_dict(), pldm().state_dict()
    assert {k: v.shape for k, v in ours.items() if not k.startswith("inverse.")} == {
        k: v.shape for k, v in theirs.items()
    }
    with pytest.raises(ValueError, match="has no SIGReg"):
        PLDMConfig(sigreg_weight=0.1)
    with pytest.raises(ValueError, match="variance_weight"):
        PLDMConfig(variance_weight=-1.0)


# Goals -------------------------------------------------------------------------------------------------------


def draws(sampler, mixture, n=20_000):
    rng = np.random.default_rng(0)
    which = rng.integers(0, len(sampler.episodes), n)
    steps = np.floor(rng.random(n) * (sampler.dataset.lengths[sampler.episodes[which]] - 1)).astype(int)
    return which, steps, *sampler.draw(rng, which, steps, mixture)


def test_future_goals_lie_ahead_in_the_episode_up_to_its_last_frame(dataset):
    sampler = GoalSampler(dataset, image_size=56)
    for mixture in (ACTOR_GOALS, GoalMixture(0, 1, 0, discount=0.9), GoalMixture(0, 1, 0, discount=0.0)):
        which, steps, episode, step = draws(sampler, mixture)
        last = dataset.lengths[sampler.episodes[which]] - 1
        assert (episode == which).all() and (step > steps).all() and (step <= last).all()
    _, steps, _, step = draws(sampler, GoalMixture(0, 1, 0, discount=0.9))
    assert (step - steps == 1).mean() == pytest.approx(0.1, abs=0.02)  # geometric, cut off at the end
    which, steps, _, step = draws(sampler, ACTOR_GOALS)
    share = (step - steps - 1) / (dataset.lengths[sampler.episodes[which]] - 1 - steps)
    assert share.mean() == pytest.approx(0.5, abs=0.06)  # uniform over what remains


def test_value_goals_are_mixed_as_in_ogbench(dataset):
    sampler = GoalSampler(dataset, image_size=56)
    which, steps, episode, step = draws(sampler, VALUE_GOALS)
    current = (episode == which) & (step == steps)
    elsewhere = episode != which
    assert current.mean() == pytest.approx(0.2, abs=0.02)
    assert elsewhere.mean() == pytest.approx(0.3 * (1 - 1 / len(sampler.episodes)), abs=0.03)


def test_goal_batches_are_functions_of_seed_and_step_and_hold_the_right_frames(dataset):
    sampler, other = GoalSampler(dataset, image_size=56), GoalSampler(dataset, image_size=56, memory_budget=0)
    batch, again = sampler.batch(3, 16), other.batch(3, 16)
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    assert not torch.equal(batch.pixels, GoalSampler(dataset, image_size=56, seed=1).batch(3, 16).pixels)
    which, steps = sampler.clips(3, 16)
    episode = dataset.episode(int(sampler.episodes[which[0]]))
    np.testing.assert_array_equal(batch.actions[0], episode.action[steps[0]])
    small = torch.from_numpy(episode.pixels[steps[0] : steps[0] + 2])
    assert torch.equal(average_down(small, 56), torch.stack([batch.pixels[0], batch.next_pixels[0]]))
    same = (batch.pixels == batch.value_goals).flatten(1).all(1)
    assert same[batch.reached == 1].all() and 0 < batch.reached.sum() < 16


def test_bad_mixtures_are_refused():
    for bad in ((0.5, 0.5, 0.5), (-0.5, 1.0, 0.5)):
        with pytest.raises(ValueError, match="add up to 1"):
            GoalMixture(*bad)
    with pytest.raises(ValueError, match="discount"):
        GoalMixture(0, 1, 0, discount=1.0)


# Pieces ------------------------------------------------------------------------------------------------------


def test_expectile_loss_weights_and_slow_copies():
    error = torch.tensor([-2.0, 2.0])
    torch.testing.assert_close(expectile_loss(error, error, 0.9), torch.tensor([0.4, 3.6]))
    torch.testing.assert_close(expectile_loss(-error, error, 0.9), torch.tensor([3.6, 0.4]))
    weights = regression_weights(torch.tensor([0.0, 0.1, 9.0]), 10.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, np.e, 100.0], dtype=torch.float32))
    shifted = regression_weights(torch.tensor([0.0, 0.1]) - 7.0, 10.0, centred=True)
    torch.testing.assert_close(shifted, torch.tensor([np.e**-0.5, np.e**0.5], dtype=torch.float32))
    assert log_likelihood(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])).item() == -12.5
    slow, fast = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    before = slow.weight.item()
    polyak_update(slow, fast, 0.995)
    assert slow.weight.item() == pytest.approx(0.995 * before + 0.005 * fast.weight.item())


def test_slow_copies_get_no_gradient_and_move_after_a_step(folder, tmp_path):
    agent = train_run(GCIVLAgent, folder, tmp_path, "laptop", {**POLICY, "target_rate": 0.5}, "cpu")
    assert not any(p.requires_grad for p in agent.model.target.parameters())
    slow, fast = next(agent.model.target[1].parameters()), next(agent.model.values.parameters())
    assert not torch.equal(slow, fast) and (slow - fast).abs().max() < 0.1


def test_frozen_batch_norm_stays_what_it_was():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval()
    module[1].running_mean.uniform_()
    x = torch.randn(5, 3)
    expected = module(x).detach()
    frozen = freeze(module).train()
    torch.testing.assert_close(frozen(x), expected)
    assert not any(p.requires_grad for p in frozen.parameters())


# Losses of policies and values -------------------------------------------------------------------------------


class Shown(torch.nn.Module):
    """Takes frames for features already, (n, WIDTH) floats."""

    def __init__(self, trained: torch.nn.Module) -> None:
        super().__init__()
        self.trained, self.output_width = trained, WIDTH

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels


WIDTH, SIZE = 3, 256  # of features; of a batch


def policy(name: str, trained: torch.nn.Module):
    """Returns a model whose twins, and whose target networks, differ; values spread over some units around -40."""
    torch.manual_seed(0)
    kind = agent_class(name)
    model = kind.model_class(kind.config_class(hidden_widths=(16, 16)), Shown(trained))
    model.action_mean.copy_(torch.tensor([0.5, -0.5]))
    model.action_std.copy_(torch.tensor([0.5, 2.0]))
    if name == "gcbc":
        return model
    heads = (model.values,) if name == "gcivl" else (model.value, model.critic)
    for head in (*heads, model.target[1]):
        for member in head.members:
            torch.nn.init.normal_(member.layers[-1].weight, std=0.5)
            torch.nn.init.normal_(member.layers[-1].bias, mean=-40.0, std=0.5)
    for parameter in model.target[0].parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    return model


def transitions() -> GoalBatch:
    frames, actions = torch.randn(4, SIZE, WIDTH), torch.randn(SIZE, 2)
    return GoalBatch(*frames, actions, (torch.arange(SIZE) % 5 == 0).float())


def joined(frames: np.ndarray, goals: np.ndarray, *more: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([frames, goals, np.abs(frames - goals), *more], axis=-1))


def computed(head: torch.nn.Module, *inputs: np.ndarray) -> np.ndarray:
    """Returns what a head says of frames and goals (and actions), as float64."""
    with torch.no_grad():
        return head(joined(*inputs)).numpy().astype(np.float64)


def expected_of_policy(model, advantage, now, goal, actions, temperature) -> float:
    """Returns mean min(exp(temperature A), 100) |a - mu|^2 / 2, where advantages are of use as a test."""
    weights = np.minimum(np.exp(temperature * advantage), 100)
    assert (weights == 100).any() and (weights < 1).any()
    return (weights * 0.5 * ((actions - computed(model.actor, now, goal)) ** 2).sum(-1)).mean()


def expectile(advantage: np.ndarray, error: np.ndarray) -> np.ndarray:
    assert 0.2 < (advantage < 0).mean() < 0.8
    return np.where(advantage < 0, 0.1, 0.9) * error**2


def expected_of_gcivl(model, batch, fast, slow, actions) -> dict[str, float]:
    now, after, value_goal, actor_goal = map(fast, batch[:4])
    slow_now, slow_after, slow_goal = map(slow, batch[:3])
    reached = batch.reached.numpy()
    q = -(1 - reached) + 0.99 * (1 - reached) * computed(model.target[1], slow_after, slow_goal)
    delta = q.min(axis=0) - computed(model.target[1], slow_now, slow_goal).mean(axis=0)
    values = computed(model.values, now, value_goal)
    ahead = computed(model.values, after, actor_goal).mean(axis=0)
    advantage = ahead - computed(model.values, now, actor_goal).mean(axis=0)
    return {
        "value": sum(expectile(delta, error).mean() for error in q - values),
        "actor": expected_of_policy(model, advantage, now, actor_goal, actions, 3),
        "mean_value": values.mean(),
        "mean_advantage": advantage.mean(),
    }


def expected_of_gciql(model, batch, fast, slow, actions) -> dict[str, float]:
    now, after, value_goal, actor_goal = map(fast, batch[:4])
    reached = batch.reached.numpy()
    judged = computed(model.target[1], slow(batch.pixels), slow(batch.value_goals), actions).min(axis=0)
    values = computed(model.value, now, value_goal)[0]
    target = -(1 - reached) + 0.99 * (1 - reached) * computed(model.value, after, value_goal)[0]
    critics = computed(model.critic, now, value_goal, actions)
    best = computed(model.critic, now, actor_goal, actions).min(axis=0)
    advantage = best - computed(model.value, now, actor_goal)[0]
    return {
        "value": expectile(judged - values, judged - values).mean(),
        "critic": sum(((target - critic) ** 2).mean() for critic in critics),
        "actor": expected_of_policy(model, advantage, now, actor_goal, actions, 10),
        "mean_value": values.mean(),
        "mean_advantage": advantage.mean(),
    }


@pytest.mark.parametrize("name", ["gcivl", "gciql"])
def test_losses_of_values_and_policies_equal_a_direct_computation(name):
    model, batch = policy(name, torch.nn.Linear(WIDTH, WIDTH)), transitions()
    fast, slow = (lambda x, m=m: m(x).detach().numpy() for m in (model.observer.trained, model.target[0]))
    actions = (batch.actions.numpy() - np.float32([0.5, -0.5])) / np.float32([0.5, 2.0])
    expected = (expected_of_gcivl if name == "gcivl" else expected_of_gciql)(model, batch, fast, slow, actions)
    loss, parts = model.loss(batch)
    assert {key: part.item() for key, part in parts.items()} == pytest.approx(expected, rel=1e-4)
    losses = [key for key in expected if not key.startswith("mean")]
    assert loss.item() == pytest.approx(sum(expected[key] for key in losses), rel=1e-4)

    def reached(key: str) -> set[str]:
        """Returns which networks a part of the loss trains."""
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(parts[key], named.values(), retain_graph=True, allow_unused=True)
        return {n.split(".")[0] for n, gradient in zip(named, gradients, strict=True) if gradient is not None}

    heads = {"value": "values" if name == "gcivl" else "value", "critic": "critic", "actor": "actor"}
    assert all(reached(key) == {"observer", heads[key]} for key in losses)


@pytest.mark.parametrize("name", ["gcbc", "gcivl", "gciql"])
def test_values_and_policies_are_computed_in_float32_under_autocast(name):
    model, batch = policy(name, torch.nn.Identity()), transitions()
    _, expected = model.loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        _, parts = model.loss(batch)
    assert parts == expected


def test_moments_are_computed_in_float32_under_autocast():
    latents = 3 + torch.randn(32, 4, 8, generator=torch.Generator().manual_seed(0))
    for moments in (batch_moments, time_moments):
        expected = moments(latents)
        with torch.autocast("cpu", torch.bfloat16):
            got = moments(latents)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    half = latents.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        step = pldm().regularisers(half, torch.zeros(32, 3, 10))["time_similarity"]
    assert step.item() == pytest.approx(half.float().diff(dim=1).square().mean().item(), rel=1e-5)


# Encoders ----------------------------------------------------------------------------------------------------


def test_policy_on_a_lewm_keeps_its_encoder_as_it_was(folder, tmp_path):
    lewm = train_run(LeWMAgent, folder, tmp_path / "lewm", "laptop", WORLD, "cpu")
    settings = {**POLICY, "encoder": "lewm", "encoder_run": str(tmp_path / "lewm")}
    agent = train_run(GCBCAgent, folder, tmp_path / "gcbc", "laptop", settings, "cpu")
    frames = torch.from_numpy(tiny.observation(3)["pixels"])
    torch.testing.assert_close(agent.model.observer.prepare(frames), lewm.model.encode(frames))
    assert checkpoint.load_description(tmp_path / "gcbc")["features"] == "LeWM"
    assert GCBCAgent.load(tmp_path / "gcbc", "cpu").act(tiny.observation()).shape == (2,)
    with pytest.raises(ValueError, match="must be a run of lewm or pldm"):
        train_run(GCBCAgent, folder, tmp_path / "x", "laptop", {**settings, "encoder_run": str(tmp_path / "gcbc")})


def test_bad_encoder_settings_are_refused():
    for bad, message in (
        ({"encoder": "vit"}, "encoder must be one of"),
        ({"encoder": "lewm"}, "needs encoder_run"),
        ({"encoder_run": "runs/x"}, "needs encoder lewm"),
        ({"hidden_widths": (0,)}, "hidden_widths"),
    ):
        with pytest.raises(ValueError, match=message):
            PolicyConfig(**bad)
    for bad in ("discount", "expectile", "target_rate"):
        with pytest.raises(ValueError, match=bad):
            GCIVLConfig(**{bad: 1.0})
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="temperature"):
            GCIVLConfig(temperature=bad)
        with pytest.raises(ValueError, match="time_variance_weight"):
            PLDMConfig(sigreg_weight=0.0, time_variance_weight=bad)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (RandomViTAgent, "predictor_heads", 0),
        (RandomViTAgent, "predictor_head_width", 0),
        (RandomViTAgent, "predictor_mlp_width", 0),
        (RandomViTAgent, "image_size", 0),
        (GCBCAgent, "log_every_steps", 0),
        (GCBCAgent, "validate_every_steps", 0),
        (GCBCAgent, "recalibration_batches", 0),
        (GCBCAgent, "learning_rate", np.inf),
        (GCBCAgent, "encoder_config", 5),
        (GCIVLAgent, "temperature", np.nan),
        (PLDMAgent, "covariance_weight", np.inf),
        (PLDMAgent, "checkpoint_every_s", np.nan),
    ],
)
def test_a_setting_that_cannot_be_is_named_and_leaves_nothing_behind(kind, name, value, folder, tmp_path):
    with pytest.raises(ValueError, match=name):
        train_run(kind, folder, tmp_path / "run", "laptop", {"steps": 1, name: value}, "cpu")
    assert not (tmp_path / "run").exists()


def released_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors of transformers' Dinov2Model, 4.x or 5, under the names of the authors' file."""
    names = {
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.": "",
        "encoder.layer.": "blocks.",
        "attention.output.dense": "attn.proj",
        "attention.o_proj": "attn.proj",
        "attention.attention.": "attention.",
        ".query.": ".q_proj.",
        ".key.": ".k_proj.",
        ".value.": ".v_proj.",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "layernorm": "norm",
    }
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, released in names.items():
            name = name.replace(theirs, released)
        renamed[name] = tensor
    for name in [name for name in renamed if ".q_proj." in name]:
        parts = [renamed.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        renamed[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    return renamed


def test_dino_weights_give_what_transformers_computes(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    )
    torch.manual_seed(0)
    theirs = transformers.Dinov2Model(config).eval()
    for name, parameter in theirs.named_parameters():  # as after some training: every tensor matters
        if "lambda1" in name or "position" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=float("lambda1" in name), std=0.1)
    tensors = released_names(dict(theirs.named_parameters()))
    torch.save({name: tensor.detach().clone() for name, tensor in tensors.items()}, tmp_path / "dino.pth")
    ours = dino.make_vit(56).eval()
    dino.load_weights(ours, tmp_path / "dino.pth")
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = theirs(images, return_dict=True).last_hidden_state
        torch.testing.assert_close(ours.tokens(images), expected, rtol=1e-3, atol=1e-3)


def test_missing_and_wrong_dino_weights_are_refused(tmp_path, monkeypatch):
    vit = dino.make_vit(28)
    with pytest.raises(FileNotFoundError, match="dinov2_vits14_pretrain.pth.*put it at"):
        dino.load_weights(vit, tmp_path / "none.pth")
    monkeypatch.setattr(dino, "PLACES", (tmp_path / "a.pth",))
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(FileNotFoundError, match="fetch https.*put it at"):
        dino.load_weights(vit)
    tensors = torch.load(write_random_dino(tmp_path / "a.pth"), weights_only=True)
    dino.load_weights(vit)  # found in its place
    torch.save({**tensors, "pos_embed": torch.zeros(1, 1370, 768)}, tmp_path / "base.pth")
    with pytest.raises(ValueError, match="1 of another shape.*768"):
        dino.load_weights(vit, tmp_path / "base.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, content in (("html.pth", b"<!DOCTYPE html>\n"), ("empty.pth", b""), ("bad.safetensors", b"no weights")):
        (tmp_path / name).write_bytes(content)
    for name in ("html.pth", "empty.pth", "list.pth", "bad.safetensors"):
        with pytest.raises(
            ValueError, match=f"{name} is no file of weights.*expected a state dict.*fetch https"
        ) as error:
            dino.load_weights(vit, tmp_path / name)
        assert "weights_only" not in str(error.value)
    with pytest.raises(ValueError, match="14 px"):
        dino.make_vit(112 + 4)


# DINO-WM -----------------------------------------------------------------------------------------------------


def dino_wm() -> DinoWM:
    torch.manual_seed(0)
    sizes = {"predictor_depth": 2, "predictor_heads": 2, "predictor_head_width": 8, "predictor_mlp_width": 16}
    return DinoWM(DinoWMConfig(image_size=28, **sizes)).eval()


def test_dino_wm_sees_the_past_and_no_later_frame():
    model = dino_wm()
    latents = torch.randn(1, 3, 4 * 384, requires_grad=True)
    model.predict(latents, torch.randn(1, 3, 10))[0, 1].sum().backward()
    reach = latents.grad[0].unflatten(-1, (4, 384)).abs().sum(-1)
    assert (reach[:2] > 0).all() and (reach[2] == 0).all()


def test_dino_wms_rollout_slides_its_window():
    model = dino_wm()
    start, actions = torch.randn(2, 1, 4 * 384), torch.randn(2, 3, 5, 10)
    with torch.no_grad():
        got = model.rollout(start, actions)
        frames = [start[1, 0]]
        for t in range(5):
            window = slice(max(0, t - 2), t + 1)
            frames.append(model.predict(torch.stack(frames[window])[None], actions[1, 2, window][None])[0, -1])
    torch.testing.assert_close(got[1, 2], torch.stack(frames[1:]), rtol=1e-4, atol=1e-4)


def test_random_features_never_bear_dino_wms_name(tmp_path):
    assert RandomViTAgent.name == "random_vit"
    assert RandomViTAgent.describe(DinoWMConfig()) == {"features": "random-ViT"}
    model = DinoWM(DinoWMConfig(image_size=28, dino_weights="x.pth"))
    with pytest.raises(ValueError, match="train dino_wm"):
        RandomViTAgent.initialise(model)
    for bad in ({"image_size": 100}, {"context": 0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DinoWMConfig(**bad)
