"""Time of a plan, from two images to actions: our agents and plain implementations, in turn, in one run.

The agents have the sizes of a preset and random weights. Beside them the same agent plans with

- `plain`: a rollout that predicts its whole window anew at every step, with torch's default number of threads;
- `graphs`, on a GPU: its costs replayed as one CUDA graph;
- `compiled`, if asked for: its costs by torch.compile;
- `onnx`: its export, without torch, with as many threads (what is exported: agents/export.py; where onnx is installed);
- `reference`: the rollout of stable-worldmodel, where that is installed (preset `paper` of LeWM), under our search.

What is too slow to measure whole is measured with fewer iterations or candidates, as asked or, on a CPU, as it takes;
it is then extrapolated linearly, but for what a plan has once: the encoding of two pictures and the rollout of the
plan that was found. A figure says what it was measured with.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents import agent_class
from agents.devices import choose_device
from agents.export import check_planning, export_agent
from agents.lewm import LeWMAgent
from agents.planning import PRECISIONS, PlanningAgent
from benchmarks.options import Timing
from benchmarks.report.records import Measurement
from benchmarks.report.tables import Cell, Section, Table
from benchmarks.speed.reference import reference_rollout
from benchmarks.speed.timing import HOW, against_plain, flops_of, in_turn, milliseconds, where
from lewm_gym.commands import option
from lewm_gym.onnx import OnnxAgent
from lewm_gym.planning import PLANNERS
from lewm_gym.results import Clock, Json, Record

FRAME_SIZE = 224
MOST_FLOPS = 4e11  # of a plan that is timed on a CPU, unless it was asked for: a few seconds on two cores
FEWEST_CANDIDATES = 8  # with fewer, matrices are so small that the time is another one


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        agent: Name in AGENTS.
        preset: Of the agent.
        planner: Name in PLANNERS; its default settings are used.
        precision: Of the rollout.
        n_envs: Environments planned for in one call.
        candidates: To time, None for all of the planner's, or as many as are affordable.
        iterations: To time, likewise.
        compiled: Whether to time torch.compile, too.
    """

    agent: str
    preset: str
    planner: str = "cem"
    precision: str = "float32"
    n_envs: int = 1
    candidates: int | None = None
    iterations: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.n_envs < 1 or any(n is not None and n < 1 for n in (self.candidates, self.iterations)):
            raise ValueError("environments, candidates and iterations must be at least 1")
        if not self.whole.constant_cost and (self.candidates or self.iterations):
            raise ValueError(
                f"{self.planner} has ever fewer candidates: it is measured whole, without --candidates, --iterations"
            )

    @property
    def whole(self) -> Any:
        """The planner's settings."""
        if self.planner not in PLANNERS:
            raise ValueError(f"unknown planner {self.planner!r}; expected some of: {', '.join(PLANNERS)}")
        return PLANNERS[self.planner][1]()

    @property
    def timed(self) -> Any:
        """The settings that are timed."""
        candidates, iterations = self.whole.budget
        asked = min(self.candidates or candidates, candidates), min(self.iterations or iterations, iterations)
        return self.whole if asked == self.whole.budget else self.whole.with_budget(*asked)

    @property
    def kind(self) -> Any:
        """The class of agents.

        Raises:
            ValueError: If it does not plan, or has no such preset.
        """
        kind = agent_class(self.agent)
        if not issubclass(kind, PlanningAgent):
            raise ValueError(f"agent {self.agent!r} does not plan; expected one that does, as lewm, pldm or dino_wm")
        if self.preset not in kind.presets:
            raise ValueError(f"{self.agent} has no preset {self.preset!r}; expected one of: {', '.join(kind.presets)}")
        return kind

    def make_agent(self, device: str, search: Any, rollout: Rollout | None = None, **planning: Any) -> Any:
        """Returns an agent of these sizes with random weights, planning with another rollout or otherwise if asked."""
        preset = self.kind.presets[self.preset]
        torch.manual_seed(0)
        size = preset.model.action_size
        description = {"action_low": [-1.0] * size, "action_high": [1.0] * size, "frame_size": FRAME_SIZE, "task": ""}
        config = replace(preset.planning, search=search, precision=self.precision, **planning)
        model = self.kind.model_class(preset.model)
        return (self.kind if rollout is None else plainly(self.kind, rollout))(model, config, description, device)


#: (model, latents (B, 1, Z), actions (B, S, H, A)) -> predicted latents (B, S, H, Z)
Rollout = Callable[[Any, Tensor, Tensor], Tensor]


def plainly(kind: Any, rollout: Rollout) -> Any:
    """Returns a class of agents that plan with another rollout and torch's default number of threads."""

    class Plain(kind):  # type: ignore[misc]
        def __init__(self, model: Any, *arguments: Any) -> None:
            super().__init__(model, *arguments)
            self.plain = partial(rollout, model)

        def _rollout(self, actions: Tensor, context: Tensor, *past: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.planning.precision == "bf16"):
                return self.plain(context, self._within_bounds(actions)).float()

        def _threads(self, numbers: int) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

    return Plain


@dataclass(frozen=True, kw_only=True)
class PlanSpeed(Timing, Measurement):
    """Times a plan, from two images to actions, with random weights, and compares with plain implementations, in turn
    in one run: medians.
    """  # noqa: D205

    kind = "speed plan"

    agents: tuple[str, ...] = option(("lewm",), "agents that plan: lewm, pldm, dino_wm")
    planners: tuple[str, ...] = option(("cem",), f"planners with their default settings, of: {', '.join(PLANNERS)}")
    precisions: tuple[str, ...] = option(PRECISIONS, "precisions of the rollout", choices=PRECISIONS)
    n_envs: tuple[int, ...] = option((1,), "number of environments planned for in one call", least=1)
    candidates: int | None = option(
        None, "candidates to time, extrapolated linearly (default: all; on a CPU a number that takes seconds)", least=1
    )
    iterations: int | None = option(None, "iterations to time, likewise", least=1)

    def measure(self, bars: Any) -> Json:
        """Returns the time of a plan: ours, plain and the reference's; the record is written after each job."""
        device, clock = choose_device(self.device), Clock()
        choices = itertools.product(self.agents, self.presets, self.planners, self.precisions, self.n_envs)
        jobs = [Job(*choice, self.candidates, self.iterations, self.compiled) for choice in choices]
        for job in jobs:
            _ = job.kind  # raises for what does not plan
        body: Json = {"device": device, "threads": torch.get_num_threads(), "figures": []}
        for done, job in enumerate(jobs):
            name = f"{job.agent} {job.preset} {job.planner} {job.precision}, environments: {job.n_envs}"
            bars("plans", done, len(jobs), "figure", name)
            body["figures"] += measure(job, self.repeats, device)
            self.save(body, clock)
        return body

    @staticmethod
    def show(record: Record) -> Section:
        """Returns the time of a plan, ours beside others."""
        figures = record["figures"]
        ratios = against_plain(figures, "agent", "preset", "planner", "precision", "per")
        rows: list[list[Cell]] = []
        for f, ratio in zip(figures, ratios, strict=True):
            size = f"{f['candidates']} x {f['iterations']}"
            of = "" if f["measured"] == [f["candidates"], f["iterations"]] else ", * of {} x {}".format(*f["measured"])
            words = (f"{f['agent']} {f['preset']}", f"{f['planner']} {size}{of}", HOW[f["how"]])
            work = (f"{f['flops'] / 1e9:,.1f}", f"{f['flops'] / f['seconds'] / 1e9:,.0f}", str(f["tokens_per_frame"]))
            rows.append([*words, str(f["per"]), f["precision"], *milliseconds(f), *work, ratio])
        text = (
            "One plan, from an observation and a goal to actions; for several environments in one "
            "call, the time per environment. Different tables were measured in different runs. *: extrapolated "
            f"linearly from fewer candidates or iterations. {where(record)}"
        )
        header = ["preset", "search", "of", "environments", "precision", "median ms", "fastest ms", "repeats", "GFLOP"]
        table = Table([*header, "GFLOP/s", "tokens per frame", "against plain"], rows, words=3)
        names = ", ".join(sorted({f"{f['agent']} {f['preset']}" for f in figures}))
        return Section(f"Planning: {names}", [text, table])


def plain_rollout(model: Any, latents: Tensor, actions: Tensor) -> Tensor:
    """Returns predicted latents (B, S, H, Z) from (B, 1, Z) and (B, S, H, A), each window computed afresh."""
    n_envs, n_samples, horizon, _ = actions.shape
    blocks = actions.flatten(0, 1)
    frames = latents.repeat_interleave(n_samples, dim=0)
    for end in range(1, horizon + 1):
        window = slice(max(0, end - model.config.context), end)
        frames = torch.cat([frames, model.predict(frames[:, window], blocks[:, window])[:, -1:]], dim=1)
    return frames[:, 1:].unflatten(0, (n_envs, n_samples))


def measure(job: Job, repeats: int, device: str) -> list[Json]:
    """Returns the time of a plan: ours, plain and the reference's, in turn."""
    job = affordable(job, device)
    whole, timed = job.whole, job.timed
    agents = {"ours": job.make_agent(device, timed), "plain": job.make_agent(device, timed, plain_rollout)}
    if torch.device(device).type == "cuda" and not getattr(PLANNERS[job.planner][0], "needs_gradient", False):
        agents["graphs"] = job.make_agent(device, timed, cuda_graph=True)
    if job.compiled:
        agents["compiled"] = job.make_agent(device, timed)
        agents["compiled"]._graphed = torch.compile(agents["compiled"]._judge)
    exported = without_torch(agents["ours"]) if device == "cpu" else None
    if exported is not None:
        agents["onnx"] = exported
    if (job.agent, job.preset) == ("lewm", "paper"):
        theirs = reference_rollout(agents["ours"].model.config, device)
        if theirs is not None:
            agents["reference"] = job.make_agent(device, timed, theirs)
    once = {name: partial(_make_once, agent, job.n_envs) for name, agent in agents.items()}
    plans = {name: partial(_make_plan, agent, job.n_envs) for name, agent in agents.items()}
    steps: dict[str, Callable[[], object]] = {"encoding": partial(_encode, agents["ours"], job.n_envs), **plans}
    ratio = np.prod(whole.budget) / np.prod(timed.budget)
    if ratio > 1:
        steps |= {f"{name}, once": step for name, step in once.items()}
    times = in_turn(steps, repeats, device)
    what = {name: getattr(job, name) for name in ("agent", "preset", "planner", "precision")}
    common = {"what": "plan", **what, "candidates": whole.budget[0], "iterations": whole.budget[1], "repeats": repeats}
    common |= {"per": job.n_envs, "measured": list(timed.budget)}
    common["tokens_per_frame"] = getattr(agents["ours"].model.config, "n_patches", 1)
    common["parts"] = {"encoding": round(statistics.median(times["encoding"]), 5)}
    figures = []
    for how in plans:
        first = statistics.median(times[f"{how}, once"]) if ratio > 1 else 0.0
        scaled = [(first + ratio * max(seconds - first, 0.0)) / job.n_envs for seconds in times[how]]
        counted = how if how in ("plain", "reference") else "ours"  # the others compute the same, out of sight
        first_flops = flops_of(once[counted])
        flops = float(first_flops + ratio * (flops_of(plans[counted]) - first_flops)) / job.n_envs
        measured = {"seconds": float(statistics.median(scaled)), "fastest": float(min(scaled)), "flops": flops}
        figures.append({**common, "how": how, **measured})
    return figures


def without_torch(agent: Any) -> OnnxAgent | None:
    """Returns an agent that plans as this one, with as many threads; None without such an export, or onnx."""
    if not isinstance(agent, LeWMAgent) or any(
        importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")
    ):
        return None
    try:
        check_planning(agent)
    except ValueError:
        return None
    with tempfile.TemporaryDirectory() as name:
        export_agent(agent, Path(name, "onnx"))
        return OnnxAgent.load(Path(name, "onnx"), threads=torch.get_num_threads())


def affordable(job: Job, device: str) -> Job:
    """Returns the job, on a CPU with fewer iterations or, if need be, candidates to time if the whole is too much.

    What was asked for stays; a planner whose iterations differ stays whole.
    """
    asked = job.candidates is not None or job.iterations is not None
    if asked or device != "cpu" or not job.whole.constant_cost:
        return job
    probe = replace(job, candidates=2, iterations=1)
    agent = probe.make_agent(device, probe.timed)
    plan, once = partial(_make_plan, agent, job.n_envs), partial(_make_once, agent, job.n_envs)
    once()  # prepares the weights, which a later plan finds done
    per_candidate = (flops_of(plan) - flops_of(once)) / float(np.prod(probe.timed.budget))
    candidates, iterations = job.whole.budget
    affordable_iterations = int(MOST_FLOPS / (per_candidate * candidates))
    if affordable_iterations >= iterations:
        return job
    if affordable_iterations:
        return replace(job, iterations=affordable_iterations)
    fewer = max(FEWEST_CANDIDATES, int(MOST_FLOPS / per_candidate))
    return replace(job, candidates=min(fewer, candidates), iterations=1)


@functools.cache
def _frames(n_envs: int) -> NDArray[np.uint8]:
    """Returns what is seen and the goals, (2, n_envs, h, w, 3)."""
    return np.random.default_rng(0).integers(0, 256, (2, n_envs, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.uint8)


def _make_plan(agent: Any, n_envs: int) -> None:
    """Plans for all environments."""
    pixels, goals = _frames(n_envs)
    agent.reset(list(range(n_envs)))
    agent.act({"pixels": pixels, "goal": goals})


@torch.inference_mode()
def _encode(agent: Any, n_envs: int) -> Tensor:
    """Returns the latents (n_envs, 2, Z) of what is seen and of the goal, one environment at a time."""
    if isinstance(agent, OnnxAgent):
        return torch.from_numpy(np.stack([agent.encode(frames) for frames in _frames(n_envs).swapaxes(0, 1)]))
    frames = torch.from_numpy(_frames(n_envs).swapaxes(0, 1)).to(agent.device)
    return torch.cat([agent.model.encode(frames[env : env + 1]) for env in range(n_envs)])


@torch.inference_mode()
def _make_once(agent: Any, n_envs: int) -> None:
    """Does what a plan does once, however long it searches: encodes, and predicts the plan that was found."""
    latents = _encode(agent, n_envs)
    if isinstance(agent, OnnxAgent):
        return  # it does not predict the plan that was found
    config = agent.model.config
    actions = torch.zeros(1, 1, agent.planning.horizon_blocks, config.action_block_size, device=agent.device)
    with torch.autocast(agent.device.type, torch.bfloat16, enabled=agent.planning.precision == "bf16"):
        for env in range(n_envs):
            getattr(agent, "plain", agent.model.rollout)(latents[env : env + 1, :1], actions)
