"""Exports: what the files compute, that an agent acts from them as torch does, without torch, and what is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from agents import export
from agents.__main__ import main
from agents.export import Export
from agents.lewm import LeWMAgent
from lewm_gym.onnx import PLANNERS, OnnxAgent, Stream

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

#: How each planner is exported here: small, with more blocks in a plan than the model's context.
PLANNING: dict[str, dict[str, Any]] = {
    "cem": {"planner": "cem", "n_samples": 40, "n_elites": 8, "n_iterations": 3, "execute_blocks": 1},
    "actor": {"planner": "actor", "horizon_blocks": 4, "clip_actions": True},
    "guided": {"planner": "guided", "n_samples": 20, "n_elites": 4, "horizon_blocks": 4, "cost": "sum"},
}


def write_run(folder: Path, **changes: Any) -> Path:
    """Writes the run of an untrained model with an actor; returns its folder."""
    made = tiny.model(imitation_weight=1.0, actor_steps=1, actor_width=32, **changes)
    made.action_mean.copy_(torch.tensor([0.1, -0.2]))
    made.action_std.copy_(torch.tensor([0.5, 0.8]))
    described = {**tiny.ENVIRONMENT, "model": dataclasses.asdict(made.config), "preset": "laptop", "finished": True}
    LeWMAgent(made, tiny.agent().planning, described).save(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the export of the run for a planner, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("exports")

    def of(planner: str) -> Path:
        if not (folder / planner).exists():
            Export(run=str(run), onnx=folder / planner, planning=PLANNING[planner]).export()
        return folder / planner

    return of


@pytest.mark.parametrize("planner", PLANNERS)
def test_an_export_acts_as_torch_does_from_the_same_seed(
    run: Path, exported: Callable[[str], Path], planner: str
) -> None:
    here = LeWMAgent.load(run, device="cpu", planning=PLANNING[planner], seed=5)
    there = OnnxAgent.load(exported(planner), seed=5, task="two_room")
    assert there.uses_steps_left == here.uses_steps_left == (planner != "cem")
    left = {} if planner == "cem" else {"steps_left": np.array([17.0, 3.0])}
    for step in range(7):  # a block and the beginning of the next: two plans for each environment
        obs = tiny.observation(2, seed=step)
        obs["goal"] = tiny.observation(2)["goal"]
        np.testing.assert_allclose(there.act(obs, **left), here.act(obs, **left), atol=1e-4)
    for mine, his in zip(there._controller.slots, here._controller.slots, strict=True):
        np.testing.assert_allclose(mine.plan, his.plan.numpy(), atol=1e-4)
    assert there.plans == here.plans == 4
    for agent in (here, there):  # and, of one environment, towards a goal that was set
        agent.reset([11])
        agent.set_goal(tiny.observation(seed=3)["goal"], *([12] if planner != "cem" else []))
    frame = tiny.observation(seed=4)["pixels"]
    np.testing.assert_allclose(there.act(frame), here.act(frame), atol=1e-4)
    for agent in (here, there):  # the actor estimates the steps left
        agent.set_goal(tiny.observation(seed=5)["goal"])
    np.testing.assert_allclose(there.act(frame), here.act(frame), atol=1e-4)


def test_acting_imports_no_torch(exported: Callable[[str], Path]) -> None:
    code = f"""
import sys
import numpy as np
from lewm_gym.onnx import OnnxAgent
agent = OnnxAgent.load({str(exported("guided"))!r})
frame = np.zeros((224, 224, 3), np.uint8)
print(agent.act({{"pixels": frame, "goal": frame + 1}}).shape, "torch" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "(2,) False", done.stderr


def test_the_metadata_say_what_acting_needs(run: Path, exported: Callable[[str], Path]) -> None:
    said = OnnxAgent.load(exported("guided")).description
    assert (said["task"], said["frame_size"], said["frame_skip"]) == ("two_room", 224, 5)
    assert said["action_low"] == [-1.0, -1.0] and said["planning"]["search"]["n_samples"] == 20
    np.testing.assert_allclose([said["action_mean"], said["action_std"]], [[0.1, -0.2], [0.5, 0.8]], rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"encoder": "vit", "encoder_width": 24, "encoder_depth": 1, "residual": True}, id="vit"),
        pytest.param({"encoder": "resnet18", "image_size": 224, "context": 1}, marks=pytest.mark.slow, id="resnet18"),
    ],
)
def test_other_encoders_are_exported_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = write_run(tmp_path / "run", **changes)
    Export(run=str(run), onnx=tmp_path / "onnx", planning=PLANNING["cem"]).export()
    obs = tiny.observation()
    expected = LeWMAgent.load(run, device="cpu", planning=PLANNING["cem"]).act(obs)
    np.testing.assert_allclose(OnnxAgent.load(tmp_path / "onnx").act(obs), expected, atol=1e-3)


def test_the_streams_are_torchs() -> None:
    for seed in (0, 7, 2**63 + 12345):
        generator, stream = torch.Generator().manual_seed(seed), Stream(seed)
        for shape in ((300, 5, 10), (2, 1, 9), (7, 3, 5)):  # also no multiple of sixteen
            drawn = torch.randn(shape, generator=generator).numpy()
            np.testing.assert_allclose(stream.normal(*shape), drawn, atol=2e-6)


def test_a_limit_in_time_ends_the_search_early(exported: Callable[[str], Path]) -> None:
    folder = exported("cem")
    calls = []
    agent = OnnxAgent.load(folder, time_limit_s=1e-6)
    rollout = agent.rollout
    agent.rollout = lambda *args: calls.append(0) or rollout(*args)  # type: ignore[method-assign]
    agent.act(tiny.observation())
    assert len(calls) == 1
    with pytest.raises(ValueError, match="time_limit_s must be"):
        OnnxAgent.load(folder, time_limit_s=0)


# What is refused -------------------------------------------------------------------------------------------------


def test_what_is_not_exported_is_named_with_what_to_do(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for planning, message in (
        ({"planner": "icem"}, "planner icem is not exported: choose with --planning planner=NAME, one of: cem"),
        ({"context_frames": 2}, "context_frames=2 is not exported: plan with --planning context_frames=1"),
        ({"precision": "bf16"}, 'precision=bf16 is not exported: plan with --planning precision="float32"'),
    ):
        with pytest.raises(ValueError, match=message):
            Export(run=str(run), onnx=out, planning=planning).export()
    with pytest.raises(ValueError, match="where to"):
        Export(run=str(run)).export()
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        Export(run=str(run), onnx=tmp_path / "mine", planning=PLANNING["actor"]).export()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_export_that_differs_from_torch_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export._write

    def write_another(network: Any, path: Path, description: dict[str, Any]) -> None:
        write(network, path, description)
        with torch.no_grad():
            next(network.module.parameters()).add_(1.0)

    monkeypatch.setattr(export, "_write", write_another)
    with pytest.raises(ValueError, match="encoder.onnx differs from torch by"):
        Export(run=str(run), onnx=tmp_path / "out", planning=PLANNING["actor"]).export()
    assert not list(tmp_path.iterdir())


def test_files_that_are_missing_damaged_or_of_another_export_are_named(
    exported: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, other = exported("guided"), exported("actor")
    with pytest.raises(FileNotFoundError, match="encoder.onnx is missing: python -m agents export"):
        OnnxAgent.load(tmp_path)
    with pytest.raises(ValueError, match="is of an agent for 'two_room', not 'cube': export another"):
        OnnxAgent.load(folder, task="cube")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "actor.onnx").write_bytes((other / "actor.onnx").read_bytes())
    with pytest.raises(ValueError, match="actor.onnx is of another export than encoder.onnx"):
        OnnxAgent.load(tmp_path)
    (tmp_path / "rollout.onnx").write_bytes((folder / "rollout.onnx").read_bytes()[:500])
    with pytest.raises(ValueError, match="rollout.onnx is damaged"):
        OnnxAgent.load(tmp_path)
    model = onnx.load(str(tmp_path / "encoder.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "encoder.onnx"))
    with pytest.raises(ValueError, match="it has no metadata"):
        OnnxAgent.load(tmp_path)


def test_the_command_says_what_it_wrote(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(run), "--onnx", str(tmp_path / "out"), "--planning", "planner=cem", "n_iterations=2"]
    assert main(words) == 0
    assert "encoder.onnx, rollout.onnx" in capsys.readouterr().out
    assert OnnxAgent.load(tmp_path / "out").description["planning"]["search"]["n_iterations"] == 2
