"""What docs/architecture.md says of adding things: a task, an agent, a planner and a metric, each in its few places.

A task is two files and a row, an agent a file and a line, a planner a file and a line, a metric a row. The files are
written into folders that the packages look into, and every command that meets them is run.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import tiny

import agents
import collect.policies
import envs
import lewm_gym
import lewm_gym.planning
from agents import AGENTS, Known
from benchmarks.__main__ import main as benchmarks
from collect.__main__ import main as collecting
from lewm_gym.planning import PLANNERS
from lewm_gym.results import METRICS, Metric, Record, Result
from lewm_gym.tasks import TASKS, Task

ENV = '''
import numpy as np
from envs.goal_env import GoalEnv
from lewm_gym.tasks import IMAGE_SIZE

class ToyEnv(GoalEnv):
    """A dot on a line."""
    action_size, state_size, proprioceptive = 1, 1, {}
    shifts = {"background dark": {}}

    def _sample_state(self, rng):
        return rng.uniform(0.1, 0.9, 1)

    def check_state(self, state):
        if not 0 <= state[0] <= 1:
            raise ValueError("off the line")

    def _set_state(self, state):
        self._place = state.copy()

    def _get_state(self):
        return self._place.copy()

    def _advance(self, action):
        self._place = np.clip(self._place + 0.02 * action, 0, 1).astype(float)
        return self.is_goal(self._place, self.goal_state)

    def reached(self, achieved, desired):
        return np.abs(achieved - desired)[..., 0] < 0.03

    def phase(self, states):
        return "along the line"

    def render_state(self, state):
        picture = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        picture[100:124, int(200 * state[0]) : int(200 * state[0]) + 24] = 255
        return picture

    def quantities(self, state):
        return {"place": state.astype(np.float32)}
'''
POLICY = '''
import numpy as np

class Walk:
    """Walks to the goal, with noise."""
    max_steps = 60

    def __init__(self, noise=None):
        self.noise = 0.5 if noise is None else noise

    def begin(self, env, rng):
        return self.pursue(env, rng, rng.uniform(0.1, 0.3, 1), rng.uniform(0.7, 0.9, 1))

    def pursue(self, env, rng, start, goal):
        self._rng, self._goal = rng, goal
        return env.reset(options={"state": start, "goal_state": goal})

    def act(self, info):
        way = np.sign(self._goal - info["state"]) + self._rng.normal(0, self.noise, 1)
        return np.clip(way, -1, 1).astype(np.float32)

    def done(self, info):
        return bool(info["is_success"])

POLICIES = {"walk": Walk}
goal_expert = lambda: Walk(0.0)
'''
AGENT = '''
import dataclasses
from agents.lewm import LeWMAgent

class ToyAgent(LeWMAgent):
    """LeWM, by the toy planner."""
    name = "toy_agent"
    presets = LeWMAgent.presets
'''
PLANNER = '''
from dataclasses import dataclass
import torch
from lewm_gym.planning.budget import Budgeted
from lewm_gym.planning.cem import best
from lewm_gym.planning.noise import candidates
from lewm_gym.types import PlanResult

@dataclass(frozen=True)
class ShootingConfig(Budgeted):
    n_samples: int = 16
    n_iterations: int = 1

class Shooting:
    """Takes the best of random plans."""
    def __init__(self, config):
        self.config = config

    def plan(self, cost, mean, std, generators, deadline=None):
        samples = candidates(generators, self.config.n_samples, mean, std)
        found, values = best(samples, cost(samples), 1)
        return PlanResult(found[:, 0], values, torch.zeros_like(values))
'''


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def add(package: ModuleType, name: str, source: str) -> None:
        folder = tmp_path / package.__name__.replace(".", "-")
        folder.mkdir()
        (folder / f"{name}.py").write_text(source)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])

    # The two files of a task, and its row.
    add(envs, "toy", ENV)
    add(collect.policies, "toy", POLICY)
    task = Task(name="toy", title="Toy line", env_id="lewm/Toy-v0", entry_point="envs.toy:ToyEnv", action_size=1,
                state_size=1, max_episode_steps=60, collect_episodes=4, goal_offsets=(25,), proprioception={},
                **({"phases": ("along the line",)} if "phases" in Task.__dataclass_fields__ else {}))  # fmt: skip
    monkeypatch.setitem(TASKS, "toy", task)
    lewm_gym._register_tasks()
    # An agent: a file and a line; a planner: a file and a line; a metric: a row.
    add(agents, "toy", AGENT)
    monkeypatch.setitem(AGENTS, "toy_agent", Known("agents.toy:ToyAgent", "Toy agent"))
    add(lewm_gym.planning, "toy", PLANNER)
    from lewm_gym.planning.toy import Shooting, ShootingConfig  # type: ignore[import-not-found]

    monkeypatch.setitem(PLANNERS, "shooting", (Shooting, ShootingConfig))
    quick = Metric("quick", "within 10 steps", lambda outcome: outcome.success and outcome.steps <= 10)
    monkeypatch.setitem(METRICS, "quick", quick)
    # Its pairs are made by a command, and lie where those of the other tasks lie.
    collecting(["pairs", "toy", "--offsets", "25", "--count", "4", "--out", str(tmp_path / "pair_sets")])
    monkeypatch.setattr("lewm_gym.pairs.resources", SimpleNamespace(files=lambda _: tmp_path))
    return tmp_path


def test_what_is_added_in_its_few_places_is_met_by_every_command(
    toys: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (toys / "pair_sets" / "toy-25.json").is_file()
    collecting(["toy", "--episodes", "4", "--workers", "1", "--out", "data"])
    small = {**tiny.SETTINGS, "steps": 2}
    settings = [f"toy_agent.{name}={value}".replace("(", "[").replace(")", "]") for name, value in small.items()]
    asked = ["--agents", "toy_agent", "--seeds", "0", "--n-pairs", "2", "--steps", "2"]
    settings = [text for text in settings if ".steps" not in text]
    assert benchmarks(["compare", "data", *asked, "--set", *settings, "--out", "results"]) == 0
    rows = Record.load("results/compare.json", "compare")["rows"]
    assert [(row["task"], row["agent"]) for row in rows][-1] == ("toy", "toy_agent")
    run = next(Path("runs/compare").glob("toy-toy_agent-*"))
    searching = ["--planning", "planner=shooting", "--out", "results/plan.json"]
    assert benchmarks(["plan", str(run), "--n-pairs", "3", "--workers", "1", *searching]) == 0
    assert "quick" in capsys.readouterr().out
    result = Result.load("results/plan.json")
    assert result.run["description"]["planning"]["planner"] == "shooting" and "quick" in result.rates()["agent"]
    grid = ["--planners", "shooting", "cem", "--candidates", "8", "--iterations", "1", "--n-pairs", "2"]
    assert benchmarks(["tradeoff", str(run), *grid, "--workers", "1", "--out", "results/tradeoff.json"]) == 0
    points = Record.load("results/tradeoff.json")["points"]
    assert [point["settings"]["planner"] for point in points] == ["shooting", "cem"]
    assert benchmarks(["report", "results"]) == 0
    page = Path("results/report.md").read_text()
    for text in ("Toy line", "Toy agent", "quick %", "shooting 8 x 1"):
        assert text in page, text
