"""Surprise: trajectories break with expectation where they say, and a model that knows physics notices only that."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.analysis.rollout import open_loop_error
from benchmarks.analysis.rollout import summary as _summary
from benchmarks.analysis.surprise import VARIANTS, make_trajectories, summary, surprise_of
from collect.episodes import make_env
from lewm_gym.tasks import TASKS

BLOCKS, EVENT, SKIP = 6, 4, 5


class PerfectWorld(SimpleNamespace):
    """Two-Room as it is, but for walls: the latent is where the dot is, actions move it by 5 px each."""

    context = 3

    def encode(self, frames: np.ndarray) -> Tensor:
        shade = np.abs(frames[..., 1].astype(float) - self.empty)  # the green channel: a red and a blue dot look alike
        weights = shade / shade.sum(axis=(1, 2), keepdims=True)
        x, y = (weights.sum(axis=1) * np.arange(224)).sum(-1), (weights.sum(axis=2) * np.arange(224)).sum(-1)
        return torch.from_numpy(np.stack([x, y], -1))

    def rollout(self, latents: Tensor, actions: Tensor, past: Tensor | None = None) -> Tensor:
        assert (past is None) == (latents.shape[1] == 1)
        assert past is None or past.shape[1] == latents.shape[1] - 1
        steps = 5.0 * actions.unflatten(-1, (SKIP, 2)).sum(dim=-2)
        return latents[:, -1:] + steps.cumsum(dim=1)


@pytest.fixture(scope="module")
def world() -> PerfectWorld:
    env = make_env("two_room")
    shown = [env.render_state(np.array(place))[..., 1] for place in ((40.0, 40.0), (180.0, 180.0))]  # type: ignore[attr-defined]
    return PerfectWorld(empty=np.maximum(*shown).astype(float))


@pytest.fixture(scope="module")
def trajectories() -> list:
    return list(make_trajectories("two_room", 8, BLOCKS, EVENT, SKIP))


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.env_class().event and name != "cube"])
def test_variants_differ_from_the_event_on_and_only_there(task: str) -> None:
    (first, again) = (next(iter(make_trajectories(task, 1, BLOCKS, EVENT, SKIP))) for _ in range(2))
    for name in VARIANTS:
        assert first.frames[name].shape == (BLOCKS + 1, 224, 224, 3)
        assert (first.frames[name] == again.frames[name]).all()
    assert first.actions.shape == (BLOCKS, SKIP * 2)
    for name in ("colour", "teleport"):
        changed = (first.frames[name] != first.frames["unperturbed"]).any(axis=(1, 2, 3))
        assert changed.tolist() == [False] * EVENT + [True] * (BLOCKS + 1 - EVENT)


@pytest.mark.gl
def test_cube_changes_colour_and_place() -> None:
    pytest.importorskip("ogbench")
    made = next(iter(make_trajectories("cube", 1, 2, 1, SKIP)))
    for name in ("colour", "teleport"):
        assert (made.frames[name][0] == made.frames["unperturbed"][0]).all()
        assert (made.frames[name][1] != made.frames["unperturbed"][1]).any()


def test_a_planted_teleport_surprises_at_its_step_and_a_colour_does_not(world, trajectories) -> None:
    (found,) = surprise_of([world], trajectories, len(trajectories))
    jumps = np.stack([t.frames["teleport"][EVENT] for t in trajectories])
    before = np.stack([t.frames["teleport"][EVENT - 1] for t in trajectories])
    moved = (world.encode(jumps) - world.encode(before)).numpy()
    actions = np.stack([t.actions[EVENT - 1].reshape(SKIP, 2).sum(0) for t in trajectories])
    expected = ((moved - 5.0 * actions) ** 2).mean(axis=1)
    assert found["teleport"][:, EVENT - 1] == pytest.approx(expected, rel=1e-4)
    for name in VARIANTS:
        assert (found[name][:, : EVENT - 1] == found["unperturbed"][:, : EVENT - 1]).all()
    said = summary(found, EVENT)
    assert said["tests"]["teleport"]["p"] < 0.01 and said["tests"]["teleport"]["ratio"] > 10
    assert abs(said["tests"]["colour"]["difference"]) < 0.01 * said["tests"]["teleport"]["difference"]
    assert np.argmax(said["surprise"]["teleport"]["value"]) == EVENT - 1


def test_the_event_must_lie_within_the_trajectory() -> None:
    with pytest.raises(ValueError, match="within 1 and 6"):
        next(make_trajectories("two_room", 1, BLOCKS, 7, SKIP))
    with pytest.raises(ValueError, match="no events"):
        next(make_trajectories("reacher", 1, BLOCKS, EVENT, SKIP))


def test_open_loop_error_of_a_perfect_model_is_zero_and_copying_pays_for_the_way(world) -> None:
    rng = np.random.default_rng(0)
    actions = torch.from_numpy(rng.uniform(-1, 1, (7, SKIP * 2)))
    way = 5.0 * actions.unflatten(-1, (SKIP, 2)).sum(dim=-2)
    latents = torch.cat([torch.zeros(1, 2), way.cumsum(dim=0)])
    predicted, copied = open_loop_error(world, latents, actions, horizon=3)
    assert predicted.numpy() == pytest.approx(np.zeros(3), abs=1e-9)
    for ahead in range(1, 4):
        moves = torch.stack([latents[s + ahead] - latents[s] for s in range(5)])
        assert copied[ahead - 1] == pytest.approx(float(moves.square().mean()))


def test_errors_are_shares_of_the_distance_of_random_frames() -> None:
    latents = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 4)))
    pairs = [(torch.tensor([0.5]), torch.tensor([2.0])), (torch.tensor([1.5]), torch.tensor([2.0]))]
    said = _summary(pairs, latents)
    distances = (latents[:250] - latents[250:]).square().mean()
    assert said["spread"] == pytest.approx(float(distances), rel=0.1)
    assert said["prediction"]["value"][0] == pytest.approx(1.0 / said["spread"])
    assert said["copy"]["value"][0] == pytest.approx(2.0 / said["spread"])
