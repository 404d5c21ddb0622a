"""Weights & Biases, with a module in its place that keeps what it is told; the real one was run offline by hand."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import tiny

from agents import sinks
from agents.__main__ import main


@pytest.fixture
def wandb(monkeypatch):
    told = SimpleNamespace(begun=[], rows=[])

    def init(**options):
        told.begun.append(options)
        return SimpleNamespace(log=lambda values, step: told.rows.append((step, values)))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return told


def test_a_resumed_run_goes_on_in_the_same_wandb_run(wandb, tmp_path):
    run = tmp_path / "run"
    for step in (10, 20):
        sinks.weights_and_biases("worlds", run, {"task": "two_room"})(step, {"loss": 0.5})
    first, second = wandb.begun
    assert first == second
    assert (first["project"], first["name"], first["dir"], first["resume"]) == ("worlds", "run", run, "allow")
    assert first["config"] == {"task": "two_room"} and len(first["id"]) == 8
    assert wandb.rows == [(10, {"loss": 0.5}), (20, {"loss": 0.5})]
    sinks.weights_and_biases("worlds", tmp_path / "other", {})
    assert wandb.begun[-1]["id"] != first["id"]


def test_without_wandb_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    data, out = str(tiny.collect_two_room(tmp_path / "two_room")), tmp_path / "run"
    with pytest.raises(ImportError, match=r"pip install 'lewm-gym\[logging\]'"):
        main(["lewm", data, "--steps", "1", "--wandb", "worlds", "--out", str(out)])
