"""Planners on a cost whose optimum is known, and the controller."""

import numpy as np
import pytest
import torch

from lewm_gym.controller import Reply
from lewm_gym.planning import CEM, PLANNERS, CEMConfig, ICEMConfig, RecedingHorizon
from lewm_gym.planning.noise import coloured

SHAPE = (3, 5, 4)  # B, H, A


def streams(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def quadratic(target):
    return lambda samples: (samples - target.unsqueeze(1)).square().sum(dim=(-1, -2))


def prior(batch=SHAPE[0]):
    return torch.zeros(batch, *SHAPE[1:]), torch.ones(batch, *SHAPE[1:])


#: Enough search for a quadratic in 20 dimensions; (settings, largest error allowed in any action)
SEARCH = {
    "cem": ({}, 0.05),
    "icem": ({"n_samples": 300, "n_elites": 30, "n_iterations": 30, "noise_exponent": 0.0, "steps_per_block": 2}, 0.1),
    "mppi": ({"n_samples": 500, "n_iterations": 60, "spread_decay": 0.93}, 0.2),
    "gradient": ({"n_iterations": 150}, 0.05),
    "guided": ({"n_samples": 300, "n_elites": 30, "n_iterations": 30, "std": 1.0, "min_std": 0.0}, 0.05),
    "arcem": ({"n_samples": 300, "n_elites": 30, "n_iterations": 30, "min_std": 0.0}, 0.05),
    "fused": ({"search": "cem", "n_samples": 300, "n_iterations": 30}, 0.1),
}
SEARCHES = [name for name in PLANNERS if name != "actor"]  # which does not search


def planner(name):
    kind, config = PLANNERS[name]
    return kind(config(**SEARCH[name][0]))


@pytest.mark.parametrize("name", SEARCHES)
def test_planner_finds_the_optimum_of_a_quadratic(name):
    torch.manual_seed(0)
    target = torch.randn(SHAPE)
    result = planner(name).plan(quadratic(target), *prior(), streams(0, 1, 2))
    assert result.actions.shape == SHAPE
    assert (result.actions - target).abs().max() < SEARCH[name][1]
    assert result.cost.shape == result.spread.shape
    assert (result.cost[:, -1] < 0.05 * result.cost[:, 0]).all()


@pytest.mark.parametrize("name", SEARCHES)
def test_plan_of_an_environment_is_the_same_alone_or_among_others(name):
    target = torch.linspace(-1, 1, 60).view(SHAPE)
    together = planner(name).plan(quadratic(target), *prior(), streams(5, 6, 7))
    alone = planner(name).plan(quadratic(target[1:2]), *prior(1), streams(6))
    torch.testing.assert_close(together.actions[1:2], alone.actions, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SEARCHES)
def test_nan_costs_are_never_chosen(name):
    def cost(samples):
        values = (samples - 0.5).square().sum(dim=(-1, -2))
        return torch.where(samples[..., 0, 0] > 0.6, torch.nan, values)

    result = planner(name).plan(cost, *prior(), streams(0, 1, 2))
    assert torch.isfinite(result.actions).all()
    assert torch.isfinite(cost(result.actions.unsqueeze(1))).all()


@pytest.mark.parametrize("name", SEARCHES)
def test_deadline_ends_the_search_after_the_iteration_under_way(name):
    result = planner(name).plan(quadratic(torch.zeros(SHAPE)), *prior(), streams(0, 1, 2), deadline=0.0)
    assert result.cost.shape == (3, 1)
    assert torch.isfinite(result.actions).all()


@pytest.mark.parametrize("name", SEARCHES)
def test_no_iteration_is_begun_that_would_end_too_late(name, monkeypatch):
    now = 100.0
    monkeypatch.setattr("lewm_gym.controller.time.monotonic", lambda: now)

    def slow(samples):
        nonlocal now
        now += 1.0
        return quadratic(torch.zeros(SHAPE))(samples)

    result = planner(name).plan(slow, *prior(), streams(0, 1, 2), deadline=104.5)
    assert result.cost.shape[1] == 4


@pytest.mark.parametrize("name", SEARCHES)
def test_impossible_settings_of_a_planner_are_refused(name):
    with pytest.raises(ValueError, match="needs"):
        PLANNERS[name][1](n_iterations=0)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_coloured_noise_has_unit_variance_and_its_colour(exponent):
    noise = coloured(streams(0), 20_000, torch.zeros(1, 5, 10), exponent, 5)[0].view(20_000, 25, 2)
    assert noise.var(dim=0).sub(1).abs().max() < 0.06
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean()
    assert neighbours == pytest.approx({0.0: 0.0, 1.0: 0.54, 2.0: 0.86}[exponent], abs=0.03)


def test_icem_returns_the_best_candidate_ever_seen():
    seen = []

    def cost(samples):
        values = samples.square().sum(dim=(-1, -2))
        seen.append(values.min(dim=1).values)
        return values

    config = ICEMConfig(n_samples=40, n_elites=8, steps_per_block=2)
    mean, std = prior()
    result = PLANNERS["icem"][0](config).plan(cost, mean + 1, std, streams(0, 1, 2))
    torch.testing.assert_close(result.actions.square().sum(dim=(-1, -2)), torch.stack(seen).min(dim=0).values)


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


class Recorder:
    """A search that plans to count up, and remembers what it was asked."""

    def __init__(self, steps=3):
        self.calls = []
        self.steps = steps

    def __call__(self, requests):
        self.calls.append(len(requests))
        self.requests = requests
        draws = [torch.randint(1000, (1,), generator=r.generator).item() for r in requests]
        counts = [np.array([[draw + t] for t in range(self.steps)], np.float32) for draw in draws]
        return [Reply(count, torch.zeros(1, 1)) for count in counts]


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


def test_past_frames_and_blocks_reach_the_search_aligned():
    search = Recorder(steps=2)
    controller = RecedingHorizon(search, frame_skip=2, context=3)
    taken = [controller.act(frames(step), frames(9))[0, 0] for step in range(7)]
    request = search.requests[0]  # made at step 6
    assert request.frames[:, 0, 0, 0].tolist() == [2, 4, 6]
    assert request.blocks.tolist() == [[taken[2], taken[3]], [taken[4], taken[5]]]
    controller.act(frames(7), frames(8))  # another goal: the past is forgotten
    assert len(search.requests[0].frames) == 1 and search.requests[0].previous is None


@pytest.mark.parametrize("config", [CEMConfig, ICEMConfig])
@pytest.mark.parametrize("n_elites", [1, 1000])
def test_elites_must_be_several_of_the_samples(config, n_elites):
    with pytest.raises(ValueError, match="n_elites"):  # the standard deviation of one is not a number
        config(n_elites=n_elites)
