"""Two processes with half of a batch each compute what one computes with the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from agents.lewm import LeWMAgent
from lewm_gym.nn.distributed import alone, world_size
from lewm_gym.training import WithLoss, read_log
from lewm_gym.types import Batch


def clips(n=8):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 4, 56, 56, 3), dtype=torch.uint8, generator=generator)
    return Batch(pixels, torch.rand(n, 3, 10, generator=generator) * 2 - 1)


def losses_and_gradients(model, batch):
    torch.manual_seed(5)  # SIGReg's directions
    loss, parts = model(batch)
    loss.backward()
    return loss.detach(), parts["sigreg"].detach()


def _work(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    learner = tiny.model().train()
    assert world_size() == 2
    with alone():
        assert world_size() == 1
    whole = clips()
    half = Batch(*(t.chunk(2)[rank] for t in whole))
    torch.manual_seed(100 + rank)  # directions must come from the first process
    loss, sigreg = losses_and_gradients(DistributedDataParallel(WithLoss(learner)), half)
    dist.all_reduce(loss)
    if rank == 0:
        result = {f"gradient/{n}": p.grad for n, p in learner.named_parameters()}
        result |= {f"buffer/{n}": b for n, b in learner.named_buffers()}
        torch.save({**result, "loss": loss / 2, "sigreg": sigreg}, f"{folder}/result.pt")
    dist.barrier()  # one that leaves while the other still talks to it can abort as it ends
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_gradient_of_one(tmp_path):
    mp.start_processes(_work, (str(tmp_path),), nprocs=2, start_method="spawn")
    got = torch.load(tmp_path / "result.pt", weights_only=True)
    learner = tiny.model().train()
    loss, sigreg = losses_and_gradients(WithLoss(learner), clips())
    torch.testing.assert_close(got["loss"], loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got["sigreg"], sigreg, rtol=1e-5, atol=1e-6)
    for name, parameter in learner.named_parameters():
        torch.testing.assert_close(got[f"gradient/{name}"], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
    for name, buffer in learner.named_buffers():
        torch.testing.assert_close(got[f"buffer/{name}"], buffer, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.timeout(1000)  # four interpreters that import torch: half a minute, and 20x that on a crowded machine
def test_torchrun_trains_as_one_process_does(tmp_path):
    dataset = tiny.collect_two_room(tmp_path / "data")
    settings = [f"{k}={json.dumps(v)}" for k, v in tiny.SETTINGS.items()]
    command = [
        "agents",
        "lewm",
        str(dataset),
        "--steps",
        "4",
        "--device",
        "cpu",
        "--set",
        *settings,
        "log_every_steps=1",
    ]
    programs = {
        "one": [sys.executable, "-m"],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"],
    }
    logs = {}
    for name, program in programs.items():
        folder = tmp_path / name
        done = subprocess.run(
            [*program, *command, "--out", str(folder)], cwd=tmp_path, capture_output=True, text=True, timeout=450
        )
        assert done.returncode == 0, done.stderr[-2000:]
        logs[name] = read_log(folder / "log.jsonl")
        assert (folder / "weights.safetensors").exists()
    for one, two in zip(logs["one"], logs["two"], strict=True):
        for column in ("loss", "prediction", "sigreg"):
            assert two[column] == pytest.approx(one[column], rel=1e-3), (one["step"], column)


@pytest.mark.parametrize("imitation_weight", [0.0, 1.0])
def test_several_processes_train_both_stages_of_a_model_with_an_actor(tmp_path, imitation_weight):
    dataset = tiny.collect_two_room(tmp_path / "data", 20)
    settings = {**tiny.SETTINGS, "imitation_weight": imitation_weight, "actor_steps": 3, "actor_batch_size": 8}
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = ["agents", "lewm", str(dataset), "--steps", "3", "--device", "cpu", "--out", str(tmp_path / "run")]
    given = ["--set", *(f"{k}={json.dumps(v)}" for k, v in settings.items()), "actor_width=8"]
    done = subprocess.run([*launched, *command, *given], cwd=tmp_path, capture_output=True, text=True, timeout=450)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["step"] for row in read_log(tmp_path / "run" / "actor" / "log.jsonl")][-1] == 3
    agent = LeWMAgent.load(tmp_path / "run", planning="guided")
    assert np.isfinite(agent.act(tiny.observation(), steps_left=10)).all()
