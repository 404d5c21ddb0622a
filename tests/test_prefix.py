"""The predictor of many steps at once: causal in the plan, chained beyond its reach, trained and planned with."""

import copy

import numpy as np
import pytest
import tiny
import torch

from agents.lewm import LeWM, LeWMAgent
from agents.planning import PlanningConfig, terminal_cost
from agents.run import train_run
from lewm_gym.nn.prefix import PrefixPredictor
from lewm_gym.planning import CEMConfig
from lewm_gym.types import Batch

PREFIX = {"predictor": "prefix", "context": 1, "predict_blocks": 3, "prefix_depth": 2}


def predictor():
    torch.manual_seed(0)
    made = PrefixPredictor(4, 6, n_blocks=3, width=8, depth=2, heads=2, head_width=4, mlp_width=16, mlp_depth=2)
    for modulation in made.modulations:  # as after some training
        torch.nn.init.normal_(modulation.weight)
    return made.eval()


def model():
    torch.manual_seed(0)
    made = LeWM(tiny.config(**PREFIX))
    for modulation in made.prefix.modulations:
        torch.nn.init.normal_(modulation.weight)
    return made.eval()


def test_a_prediction_depends_on_the_actions_up_to_it_and_on_all_of_them():
    made = predictor()
    latents, actions = torch.randn(2, 4), torch.randn(2, 3, 6, requires_grad=True)
    for k in range(3):
        (gradient,) = torch.autograd.grad(made(latents, actions)[:, k].sum(), actions)
        moved = gradient.abs().sum(dim=(0, 2)) > 1e-6
        assert moved.tolist() == [j <= k for j in range(3)]


def test_an_untrained_predictor_predicts_that_nothing_moves():
    made = PrefixPredictor(4, 6, n_blocks=3, width=8, heads=2, head_width=4, mlp_width=16)
    latents = torch.randn(2, 4)
    torch.testing.assert_close(made(latents, torch.randn(2, 3, 6)), latents[:, None].expand(-1, 3, -1))


def test_a_plan_longer_than_one_call_goes_on_from_the_last_prediction():
    made = predictor()
    latents, actions = torch.randn(2, 4), torch.randn(2, 5, 6)
    whole = made(latents, actions)
    torch.testing.assert_close(whole[:, :3], made(latents, actions[:, :3]))
    torch.testing.assert_close(whole[:, 3:], made(whole[:, 2], actions[:, 3:]))


def test_the_loss_is_the_mean_error_of_all_prefixes_of_a_clip():
    made = model()
    batch = Batch(torch.randint(0, 255, (5, 4, 224, 224, 3), dtype=torch.uint8), torch.randn(5, 3, 10))
    _, parts = made.loss(batch)
    latents = made.encode(batch.pixels)
    actions = made.normalize_actions(batch.actions)
    errors = [(made.prefix(latents[:, 0], actions[:, : k + 1])[:, -1] - latents[:, k + 1]).square() for k in range(3)]
    torch.testing.assert_close(parts["prediction"], torch.stack(errors).mean())


def test_rollout_gives_each_candidate_its_prediction_and_sees_the_present_frame_only():
    made = model()
    latents, actions = torch.randn(2, 1, 8), torch.randn(2, 3, 4, 10)
    with torch.no_grad():
        got = made.rollout(latents, actions)
        for row in range(2):
            for s in range(3):
                torch.testing.assert_close(got[row, s], made.prefix(latents[row], actions[row, s][None])[0])
        with torch.autocast("cpu", torch.bfloat16):
            rounded = made.rollout(latents, actions)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - got).abs().max() < 0.1 * got.abs().max()


def test_consistency_adds_what_the_direct_and_the_divided_prediction_differ_by():
    made = model()
    planning = PlanningConfig(CEMConfig(n_samples=8, n_elites=2, n_iterations=1), consistency_weight=0.5)
    agent = LeWMAgent(made, planning, tiny.ENVIRONMENT)
    seen = []
    agent.on_candidates = lambda actions, costs: seen.append((actions, costs))
    (plan,) = agent.plan(tiny.observation())
    actions, costs = seen[0]
    start, goal = torch.from_numpy(plan.start)[None, None], torch.from_numpy(plan.goal)[None]
    with torch.no_grad():
        direct = made.rollout(start, actions)
        for s in range(8):
            via = made.rollout(direct[:, s, 1][:, None], actions[:, s : s + 1, 2:])[0, 0, -1]
            gap = (direct[0, s, -1] - via).square().sum()
            torch.testing.assert_close(costs[0, s], terminal_cost(direct, goal)[0, s] + 0.5 * gap, rtol=1e-4, atol=1e-4)
    assert (costs - terminal_cost(direct, goal)).abs().max() > 1e-4


def test_it_trains_is_saved_and_plans(tmp_path):
    folder = tiny.collect_two_room(tmp_path / "data", 20)
    overrides = {**tiny.SETTINGS, **PREFIX, "steps": 3, "imitation_weight": 1.0, "actor_steps": 2, "actor_width": 8}
    agent = train_run(LeWMAgent, folder, tmp_path / "run", "laptop", overrides, "cpu")
    again = LeWMAgent.load(tmp_path / "run")
    obs = tiny.observation()
    np.testing.assert_array_equal(agent.act(obs), again.act(obs))
    for planner in ("actor", "guided", "arcem"):
        action = LeWMAgent.load(tmp_path / "run", planning=planner).act(obs, steps_left=20)
        assert action.shape == (2,) and np.isfinite(action).all()


def test_plans_by_gradient_reach_through_it():
    made = copy.deepcopy(model())
    agent = LeWMAgent(made, PlanningConfig().changed({"planner": "gradient", "n_iterations": 2}), tiny.ENVIRONMENT)
    assert np.isfinite(agent.act(tiny.observation())).all()


@pytest.mark.parametrize("bad", [{"context": 3}, {"residual": True}, {"inverse_weight": 0.1}, {"predictor": "other"}])
def test_what_does_not_go_with_it_is_refused(bad):
    with pytest.raises(ValueError, match="prefix"):
        tiny.config(**{**PREFIX, **bad})
