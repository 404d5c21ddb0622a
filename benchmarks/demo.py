"""`demo`: the whole line on Two-Room, from nothing to a film of a planning agent.

Collects episodes, trains LeWM from their pixels, evaluates it on held-out pairs beside the random baseline, and leaves
film, curves, page and results in one folder. Each stage resumes where it was stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents import agent_class, load_agent
from agents.devices import choose_device
from agents.run import train_run
from benchmarks.evaluation.run import Plan
from benchmarks.options import OnDevice
from benchmarks.report.build import write_report
from collect.collector import collect
from lewm_gym import checkpoint
from lewm_gym.commands import option
from lewm_gym.pairs import load_shipped
from lewm_gym.progress import Bars
from lewm_gym.results import Result

TASK = "two_room"
OFFSET_STEPS = 25
GOAL_STEPS = 50  # greatest distance of a goal in training, environment steps
ACTOR_STEPS = 500  # of the estimate of the steps left


@dataclass(frozen=True, kw_only=True)
class Demo(OnDevice):
    """Collects Two-Room episodes, trains LeWM with an actor on their pixels, evaluates it and records a film. Ctrl-C
    keeps finished work; run the same command again to resume.
    """  # noqa: D205

    out: Path = option(Path("runs/demo"), "folder for all files", metavar="FOLDER")
    episodes: int = option(300, "episodes to collect, one of them for validation", least=2)
    steps: int = option(300, "optimiser steps of the world model", least=1)
    pairs: int = option(100, "held-out pairs to evaluate, at most 200", least=1)
    seed: int = option(0, "seed of collection, training and planning", least=0)
    workers: int | None = option(None, "worker processes for collection (default: one per core)", least=1)

    def __call__(self) -> int:
        """Runs the demo, after refusing what cannot be before minutes are spent."""
        available = len(load_shipped(TASK, OFFSET_STEPS).pairs)
        if self.pairs > available:
            raise ValueError(f"--pairs must be within 1 and {available}, got {self.pairs}")
        choose_device(self.device)
        self._check_folder()
        begin, folder = time.monotonic(), self.out
        print(f"LeWM on Two-Room, from nothing to a planning agent, in {folder}/", flush=True)
        print(f"\n1/4  collect {self.episodes} episodes of a noisy heuristic: pixels and actions", flush=True)
        with Bars() as bars:
            collect(
                TASK, folder / "data", self.episodes, seed=self.seed, workers=self.workers, progress=bars.on_collect
            )
        print("\n2/4  train a world model and an actor from pixels: prediction loss + SIGReg + imitation", flush=True)
        overrides: dict[str, Any] = {"seed": self.seed, "steps": self.steps}
        overrides |= {"goal_steps": GOAL_STEPS, "actor_steps": ACTOR_STEPS}
        with Bars() as bars:
            data, kind = folder / "data", agent_class("lewm")
            train_run(kind, data, folder, "guided", overrides, self.device, bars.on_log, bars.on_load)
        goals = f"{self.pairs} held-out goals, {OFFSET_STEPS} steps away, none solved at the start"
        print(f"\n3/4  plan towards {goals}", flush=True)
        result = self._evaluate(folder)
        print("\n4/4  write the page", flush=True)
        page = write_report([folder / "result.json"], folder / "index.html", title="LeWM-Gym demo: Two-Room")
        print(
            f"\nLeWM reaches its goal in {result.success} of pairs (Wilson 95 % interval, "
            f"{result.success.successes} of {result.success.episodes});\n"
            f"the random baseline, on the same pairs, in {result.rates()['random']['success']}.\n"
            f"\n  page     {page}\n  film     {folder / 'result.mp4'}\n  curves   {folder / 'curves.png'}\n"
            f"  numbers  {folder / 'result.json'}\n"
            f"\nThis call took {(time.monotonic() - begin) / 60:.1f} min. In Python: LeWMAgent.load({str(folder)!r})"
        )
        return 0

    def _evaluate(self, folder: Path) -> Result:
        """Returns the result, from disk if the same question was asked before; its film is made again if it is lost."""
        agent = load_agent(folder, device=self.device)
        path = folder / "result.json"
        plan = Plan(run=folder, out=path, n_pairs=self.pairs, seed=self.seed, workers=1, film=True)
        with Bars() as bars:
            return plan.measure(bars.on_episodes, agent)

    def _check_folder(self) -> None:
        """Refuses the folder of another demo before anything in it is changed."""
        if not (self.out / checkpoint.DESCRIPTION).exists():
            return
        found = checkpoint.load_description(self.out)
        there = {"episodes": found["dataset"]["episodes"], **{k: found["training"][k] for k in ("seed", "steps")}}
        asked = {"episodes": self.episodes, "seed": self.seed, "steps": self.steps}
        if there != asked:
            raise ValueError(f"{self.out} holds a demo with {there}, not {asked}; choose another --out, or delete it")
