"""What only a GPU can show; where it shows something on a CPU, too, a test runs on both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agents.devices import choose_device
from agents.lewm import LeWM, LeWMAgent
from agents.planning import PlanningConfig
from lewm_gym import training
from lewm_gym.planning.cem import CEMConfig
from lewm_gym.training import TrainingConfig
from lewm_gym.types import Batch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.gpu
def test_the_gpu_is_chosen_and_an_agent_acts_there(tmp_path):
    assert choose_device() == "cuda" and choose_device("cpu") == "cpu"
    agent = tiny.agent()
    agent.save(tmp_path)
    found = LeWMAgent.load(tmp_path)
    assert found.device.type == "cuda" and next(found.model.parameters()).is_cuda
    actions = found.act(tiny.observation(2))
    assert actions.shape == (2, 2) and np.isfinite(actions).all()


def batch(device: str = "cpu", seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (16, 4, 56, 56, 3), dtype=torch.uint8, generator=generator)
    return Batch(pixels.to(device), (torch.rand(16, 3, 10, generator=generator) * 2 - 1).to(device))


def gradient(device: str, precision: str) -> tuple[float, torch.Tensor]:
    """Returns the loss of a step and the gradient of all weights."""
    model = tiny.model().to(device).train()
    directions = torch.nn.functional.normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(1)), dim=0)
    model.sigreg.draw_directions = lambda latents: directions.to(latents.device)  # devices draw different ones
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        loss, _ = model.loss(batch(device))
    loss.backward()
    return loss.item(), torch.cat([p.grad.float().flatten().cpu() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("device", DEVICES)
def test_a_training_step_in_bf16_equals_that_of_a_cpu_in_float32_to_rounding(device):
    expected_loss, expected = gradient("cpu", "float32")
    loss, found = gradient(device, "bf16")
    assert loss == pytest.approx(expected_loss, rel=0.02)
    assert torch.cosine_similarity(found, expected, dim=0) > 0.98
    assert found.norm().item() == pytest.approx(expected.norm().item(), rel=0.05)


@pytest.mark.parametrize("device", DEVICES)
def test_plans_from_a_cuda_graph_equal_those_without(device):
    search = CEMConfig(n_samples=32, n_elites=4, n_iterations=3)
    agents = []
    for graphed in (False, True):
        agent = tiny.agent()
        agents.append(LeWMAgent(agent.model, PlanningConfig(search, cuda_graph=graphed), agent.description, device))
    for seed in range(2):  # the second is replayed from what the first recorded
        plans = [agent.plan(tiny.observation(2, seed=seed)) for agent in agents]
        for eager, graphed in zip(*plans, strict=True):
            np.testing.assert_allclose(graphed.actions, eager.actions, atol=1e-5)
            np.testing.assert_allclose(graphed.cost, eager.cost, rtol=1e-4)


class Clips:
    """Random clips."""

    def batches(self, first: int, count: int, batch_size: int, **_: Any) -> Any:
        return (batch(seed=k) for k in range(first, first + count))

    def batch(self, k: int, batch_size: int) -> Batch:
        return batch(seed=k)


class NoQuestions(TorchDispatchMode):
    """Fails where a tensor's number is read, as by `item` and `if`: on a GPU, that waits for the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function is not torch.ops.aten._local_scalar_dense.default, "a training step waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("device", DEVICES)
def test_no_training_step_waits_for_the_device(tmp_path, monkeypatch, device, precision):
    step, steps = training._Trainer.step, []

    def strict(self: Any, given: Any) -> Any:
        steps.append(self.done)
        if device == "cpu":
            with NoQuestions():
                return step(self, given)
        torch.cuda.set_sync_debug_mode("error" if len(steps) > 2 else "default")  # at first libraries set themselves up
        try:
            return step(self, given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(training._Trainer, "step", strict)
    config = TrainingConfig(steps=6, batch_size=16, precision=precision, log_every_steps=3, recalibration_batches=1)
    model: LeWM = tiny.model()
    training.train(model, Clips(), None, config, tmp_path, device)
    assert steps == list(range(6))
    assert [row["step"] for row in training.read_log(tmp_path / "log.jsonl")] == [1, 3, 6]
