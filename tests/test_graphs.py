"""Replaying a cost from fixed memory: with a recorder that needs no GPU, and with the real one where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from agents.planning import PlanningConfig
from lewm_gym.planning import GradientConfig
from lewm_gym.planning.graphs import Graphs


class Recorder:
    """Replays by computing again into the memory of the first output, as a graph does."""

    def __init__(self):
        self.recorded = 0

    def __call__(self, compute):
        self.recorded += 1
        output = torch.full_like(compute(), torch.nan)  # a recording alone computes nothing
        return lambda: output.copy_(compute()), output


def test_replays_compute_on_the_inputs_of_each_call_and_own_their_results():
    recorder = Recorder()
    graphs = Graphs(lambda x, y: x * 2 + y, recorder)
    x, y = torch.arange(3.0), torch.ones(3)
    first = graphs(x, y)
    second = graphs(x + 5, y)
    assert first.tolist() == [1, 3, 5] and second.tolist() == [11, 13, 15]
    assert recorder.recorded == 1


def test_another_shape_is_recorded_beside_the_first():
    recorder = Recorder()
    graphs = Graphs(lambda x: x.sum(0), recorder)
    assert graphs(torch.ones(2, 3)).tolist() == [2, 2, 2]
    assert graphs(torch.ones(4, 3)).tolist() == [4, 4, 4]
    assert graphs(torch.full((2, 3), 3.0)).tolist() == [6, 6, 6]
    assert recorder.recorded == 2


def test_plans_are_the_same_with_and_without():
    plain, graphed = tiny.agent(), tiny.agent()
    recorder = Recorder()
    graphed._graphed = Graphs(graphed._judge, recorder)
    for seed in range(2):  # another picture and goal, replayed from what the first recorded
        obs = tiny.observation(2, seed=seed)
        for a, b in zip(plain.plan(obs), graphed.plan(obs), strict=True):
            np.testing.assert_array_equal(a.actions, b.actions)
            np.testing.assert_array_equal(a.cost, b.cost)
    assert recorder.recorded == 1


def test_a_planner_that_needs_gradients_cannot_be_recorded():
    with pytest.raises(ValueError, match="cuda_graph cannot be used with the planner gradient"):
        PlanningConfig(GradientConfig(), cuda_graph=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_replays_what_it_computes():
    weight = torch.randn(8, 8, device="cuda")
    graphs = Graphs(lambda x: (x @ weight).square().sum(-1))
    for _ in range(3):
        x = torch.randn(4, 8, device="cuda")
        torch.testing.assert_close(graphs(x), (x @ weight).square().sum(-1))
