"""Planners on a cost whose optimum is known, and the controller."""

import numpy as np
import pytest
import torch

from lewm_gym.planning.cem import CEM, CEMConfig
from lewm_gym.planning.controller import RecedingHorizon

SHAPE = (3, 5, 4)  # B, H, A


def streams(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def quadratic(target):
    return lambda samples: (samples - target.unsqueeze(1)).square().sum(dim=(-1, -2))


def prior(batch=SHAPE[0]):
    return torch.zeros(batch, *SHAPE[1:]), torch.ones(batch, *SHAPE[1:])


def test_cem_finds_the_optimum_of_a_quadratic():
    torch.manual_seed(0)
    target = torch.randn(SHAPE)
    result = CEM().plan(quadratic(target), *prior(), streams(0, 1, 2))
    assert (result.actions - target).abs().max() < 0.05
    assert result.cost.shape == result.spread.shape == (3, 30)
    assert (result.cost[:, -1] < 0.05 * result.cost[:, 0]).all()
    assert (result.spread[:, -1] < 0.2 * result.spread[:, 0]).all()


def test_plan_of_an_environment_is_the_same_alone_or_among_others():
    target = torch.linspace(-1, 1, 60).view(SHAPE)
    together = CEM().plan(quadratic(target), *prior(), streams(5, 6, 7))
    alone = CEM().plan(quadratic(target[1:2]), *prior(1), streams(6))
    assert torch.equal(together.actions[1:2], alone.actions)


def test_current_mean_is_among_the_samples_and_the_result_is_the_mean_of_the_elites():
    seen = []

    def cost(samples):
        seen.append(samples)
        return samples.sum(dim=(-1, -2))

    mean, std = prior()
    result = CEM(CEMConfig(n_samples=20, n_elites=4, n_iterations=2)).plan(cost, mean + 0.5, std, streams(0, 1, 2))
    assert torch.equal(seen[0][:, 0], mean + 0.5)
    first_elites = torch.stack([s[s.sum(dim=(-1, -2)).argsort()[:4]] for s in seen[0]])
    torch.testing.assert_close(seen[1][:, 0], first_elites.mean(dim=1))
    last_elites = torch.stack([s[s.sum(dim=(-1, -2)).argsort()[:4]] for s in seen[1]])
    torch.testing.assert_close(result.actions, last_elites.mean(dim=1))


def test_nan_costs_rank_last():
    def cost(samples):
        values = samples.square().sum(dim=(-1, -2))
        return torch.where(samples[..., 0, 0] > 0, torch.nan, values)

    result = CEM(CEMConfig(n_samples=100, n_elites=10, n_iterations=3)).plan(cost, *prior(), streams(0, 1, 2))
    assert torch.isfinite(result.actions).all()
    assert (result.actions[:, 0, 0] <= 0).all()


def test_deadline_ends_the_search_after_the_iteration_under_way():
    result = CEM().plan(quadratic(torch.zeros(SHAPE)), *prior(), streams(0, 1, 2), deadline=0.0)
    assert result.cost.shape == (3, 1)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="n_elites"):
        CEMConfig(n_samples=10, n_elites=11)


class Recorder:
    """A search that plans to count up, and remembers what it was asked."""

    def __init__(self, steps=3):
        self.calls = []
        self.steps = steps

    def __call__(self, pixels, goals, generators):
        self.calls.append(len(pixels))
        draws = [torch.randint(1000, (1,), generator=g).item() for g in generators]
        return np.array([[[draw + t] for t in range(self.steps)] for draw in draws], np.float32)


def frames(*values):
    return np.stack([np.full((4, 4, 3), v, np.uint8) for v in values])


def test_queue_is_used_up_before_the_next_plan():
    search = Recorder()
    controller = RecedingHorizon(search)
    actions = [controller.act(frames(0), frames(9))[0, 0] for _ in range(4)]
    assert search.calls == [1, 1]
    assert actions[1] == actions[0] + 1 and actions[2] == actions[0] + 2


def test_changed_goal_or_episode_start_begins_a_new_plan_there_only():
    search = Recorder()
    controller = RecedingHorizon(search)
    controller.act(frames(0, 0), frames(8, 9))
    controller.act(frames(0, 0), frames(8, 7))
    assert search.calls == [2, 1]
    controller.act(frames(0, 0), frames(8, 7), episode_start=np.array([True, False]))
    assert search.calls == [2, 1, 1]


def test_actions_of_an_environment_do_not_depend_on_the_others():
    together, alone = RecedingHorizon(Recorder()), RecedingHorizon(Recorder())
    together.reset(seeds=[3, 4])
    alone.reset(seeds=[4])
    for step in range(7):
        # the first environment's goal keeps changing, so it re-plans all the time
        both = together.act(frames(0, 0), frames(step, 9))
        assert both[1] == alone.act(frames(0), frames(9))[0]


def test_another_number_of_environments_needs_a_reset():
    controller = RecedingHorizon(Recorder())
    controller.act(frames(0, 0), frames(1, 1))
    with pytest.raises(ValueError, match="reset"):
        controller.act(frames(0), frames(1))
    controller.reset()
    controller.act(frames(0), frames(1))
