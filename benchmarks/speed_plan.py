"""How long a plan takes, from two pictures to actions: our agents beside plain implementations, in turn, in one run.

The agents have the sizes of a preset and random weights. Beside them the same agent plans with

- `plain`: a rollout that predicts its whole window anew at every step, with torch's default number of threads;
- `reference`: the rollout of stable-worldmodel, where that is installed (preset `paper` of LeWM), under our search.

What is too slow to measure whole is measured with fewer iterations or candidates, as asked or, on a CPU, as it takes;
it is then extrapolated linearly, but for what a plan has once: the encoding of two pictures and the rollout of the
plan that was found. A figure says what it was measured with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from agents import agent_class
from agents.planning import PlanningAgent
from benchmarks.speed_models import FORMAT, SCHEMA, in_turn
from benchmarks.speed_reference import reference_rollout
from lewm_gym import provenance
from lewm_gym.planning import PLANNERS
from lewm_gym.results import write_json

FRAME_SIZE = 224
MOST_FLOPS = 4e11  # of a plan that is timed on a CPU, unless it was asked for: a few seconds on two cores
FEWEST_CANDIDATES = 8  # with fewer, matrices are so small that the time is another one
LABELS = {"ours": "this repository", "plain": "plain", "reference": "stable-worldmodel"}


@dataclass(frozen=True)
class Figure:
    """The time of one plan.

    Attributes:
        what: "plan".
        agent: Name in AGENTS.
        preset: Of the agent.
        planner: Name in PLANNERS.
        candidates: Plans per iteration (of iCEM: in the first).
        iterations: Of the search.
        how: One of LABELS.
        precision: "float32" or "bf16".
        seconds: Median per plan: of all environments, divided by their number.
        fastest: Fastest repeat.
        repeats: How many there were.
        per: Environments planned for in one call.
        flops: Of matrix products and convolutions in one plan, as this implementation makes them.
        tokens_per_frame: Vectors that stand for a frame in the predictor.
        measured: (candidates, iterations) of what was timed; if fewer than the above, the rest is extrapolated.
        parts: Seconds of "encoding", of the environments in one call together.
    """

    what: str
    agent: str
    preset: str
    planner: str
    candidates: int
    iterations: int
    how: str
    precision: str
    seconds: float
    fastest: float
    repeats: int
    per: int
    flops: float
    tokens_per_frame: int
    measured: tuple[int, int]
    parts: dict[str, float]

    @property
    def extrapolated(self) -> bool:
        """Whether fewer candidates or iterations were timed."""
        return self.measured != (self.candidates, self.iterations)


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
    """

    agent: str
    preset: str
    planner: str = "cem"
    precision: str = "float32"
    n_envs: int = 1
    candidates: int | None = None
    iterations: int | None = None

    def __post_init__(self) -> None:
        if self.n_envs < 1 or any(n is not None and n < 1 for n in (self.candidates, self.iterations)):
            raise ValueError("environments, candidates and iterations must be at least 1")
        if self.planner == "icem" and (self.candidates or self.iterations):
            raise ValueError("icem has ever fewer candidates: it is measured whole, without --candidates, --iterations")

    def searches(self) -> tuple[Any, Any]:
        """Returns the planner's settings, and those to time."""
        whole = PLANNERS[self.planner][1]()
        name = _candidates_field(whole)
        timed = {"n_iterations": min(self.iterations or whole.n_iterations, whole.n_iterations)}
        timed[name] = min(self.candidates or getattr(whole, name), getattr(whole, name))
        if hasattr(whole, "n_elites"):
            timed[name] = max(timed[name], 2)
            timed["n_elites"] = min(whole.n_elites, timed[name])
        return whole, dataclasses.replace(whole, **timed)


def _candidates_field(search: Any) -> str:
    return "n_starts" if hasattr(search, "n_starts") else "n_samples"


def plain_rollout(model: Any, latents: Tensor, actions: Tensor) -> Tensor:
    """Returns predicted latents (B, S, H, Z) from (B, 1, Z) and (B, S, H, A), each window computed afresh."""
    n_envs, n_samples, horizon, _ = actions.shape
    blocks = actions.flatten(0, 1)
    frames = latents.repeat_interleave(n_samples, dim=0)
    for end in range(1, horizon + 1):
        window = slice(max(0, end - model.config.context), end)
        frames = torch.cat([frames, model.predict(frames[:, window], blocks[:, window])[:, -1:]], dim=1)
    return frames[:, 1:].unflatten(0, (n_envs, n_samples))


def check(job: Job) -> tuple[Any, Any]:
    """Returns the job's class of agents and its preset.

    Raises:
        ValueError: If it does not plan, or has no such preset.
    """
    kind = agent_class(job.agent)
    if not issubclass(kind, PlanningAgent):
        raise ValueError(f"agent {job.agent!r} does not plan; expected one that does, as lewm, pldm or dino_wm")
    if job.preset not in kind.presets:
        raise ValueError(f"{job.agent} has no preset {job.preset!r}; expected one of: {', '.join(kind.presets)}")
    return kind, kind.presets[job.preset]


def make_agent(job: Job, device: str, search: Any) -> Any:
    """Returns an agent of the job's sizes with random weights."""
    kind, preset = check(job)
    torch.manual_seed(0)
    size = preset.model.action_size
    description = {"action_low": [-1.0] * size, "action_high": [1.0] * size, "frame_size": FRAME_SIZE}
    planning = dataclasses.replace(preset.planning, search=search, precision=job.precision)
    return kind(kind.model_class(preset.model), planning, description, device)


def measure(job: Job, repeats: int, device: str) -> list[Figure]:
    """Returns the time of a plan: ours, plain and the reference's, in turn.

    Raises:
        ValueError: If the agent does not plan, or has no such preset.
    """
    whole, timed = affordable(job, device).searches()
    agents = {"ours": make_agent(job, device, timed), "plain": _with(make_agent(job, device, timed), plain_rollout)}
    if (job.agent, job.preset) == ("lewm", "paper"):
        theirs = reference_rollout(agents["ours"].model.config, device)
        if theirs is not None:
            agents["reference"] = _with(make_agent(job, device, timed), theirs)
    once = {name: partial(_make_once, agent, job.n_envs) for name, agent in agents.items()}
    plans = {name: partial(_make_plan, agent, job.n_envs) for name, agent in agents.items()}
    steps = {"encoding": partial(_encode, agents["ours"], job.n_envs), **plans}
    ratio = _work(whole) / _work(timed)
    if ratio > 1:
        steps |= {f"{name}, once": step for name, step in once.items()}
    times = in_turn(steps, repeats, device)
    figures = []
    for how, plan in plans.items():
        first = statistics.median(times[f"{how}, once"]) if ratio > 1 else 0.0
        scaled = [first + ratio * max(seconds - first, 0.0) for seconds in times[how]]
        first_flops = _flops(once[how])
        flops = first_flops + ratio * (_flops(plan) - first_flops)
        figures.append(
            Figure(
                "plan",
                job.agent,
                job.preset,
                job.planner,
                getattr(whole, _candidates_field(whole)),
                whole.n_iterations,
                how,
                job.precision,
                statistics.median(scaled) / job.n_envs,
                min(scaled) / job.n_envs,
                repeats,
                job.n_envs,
                flops / job.n_envs,
                getattr(agents["ours"].model.config, "n_patches", 1),
                (getattr(timed, _candidates_field(timed)), timed.n_iterations),
                {"encoding": round(statistics.median(times["encoding"]), 5)},
            )
        )
    return figures


def affordable(job: Job, device: str) -> Job:
    """Returns the job, on a CPU with fewer iterations or, if need be, candidates to time if the whole is too much.

    What was asked for stays; iCEM, whose iterations differ, stays whole.
    """
    asked = job.candidates is not None or job.iterations is not None
    if asked or device != "cpu" or job.planner == "icem":
        return job
    whole, _ = job.searches()
    _, probe = dataclasses.replace(job, candidates=2, iterations=1).searches()
    agent = make_agent(job, device, probe)
    plan, once = partial(_make_plan, agent, job.n_envs), partial(_make_once, agent, job.n_envs)
    once()  # prepares the weights, which a later plan finds done
    per_candidate = (_flops(plan) - _flops(once)) / _work(probe)
    candidates = getattr(whole, _candidates_field(whole))
    if per_candidate * candidates * whole.n_iterations <= MOST_FLOPS:
        return job
    iterations = int(MOST_FLOPS / (per_candidate * candidates))
    if iterations:
        return dataclasses.replace(job, iterations=iterations)
    fewer = max(FEWEST_CANDIDATES, int(MOST_FLOPS / per_candidate))
    return dataclasses.replace(job, candidates=min(fewer, candidates), iterations=1)


@functools.cache
def _frames(n_envs: int) -> NDArray[np.uint8]:
    """Returns what is seen and the goals, (2, n_envs, h, w, 3)."""
    return np.random.default_rng(0).integers(0, 256, (2, n_envs, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.uint8)


def _make_plan(agent: Any, n_envs: int) -> None:
    """Plans for all environments."""
    pixels, goals = _frames(n_envs)
    agent.reset(list(range(n_envs)))
    agent.act({"pixels": pixels, "goal": goals})


def _encode(agent: Any, n_envs: int) -> Tensor:
    """Returns the latents (n_envs, 2, Z) of what is seen and of the goal, encoded as a plan encodes them."""
    frames = _frames(n_envs).swapaxes(0, 1)
    with torch.inference_mode():
        return torch.cat([agent._encode(frames[env : env + 1]) for env in range(n_envs)])


def _make_once(agent: Any, n_envs: int) -> None:
    """Does what a plan does once, however long it searches: encodes, and predicts the plan that was found."""
    latents = _encode(agent, n_envs)
    config = agent.model.config
    actions = torch.zeros(1, 1, agent.planning.horizon_blocks, config.action_block_size, device=agent.device)
    with torch.inference_mode():
        for env in range(n_envs):
            agent._rollout(actions, latents[env : env + 1, :1])


def _with(agent: Any, rollout: Callable[[Any, Tensor, Tensor], Tensor]) -> Any:
    """Lets an agent plan with another rollout and torch's default number of threads."""
    model = agent.model
    model.rollout = lambda latents, actions: rollout(model, latents, actions)
    agent._threads = lambda numbers: contextlib.nullcontext()
    return agent


def _work(search: Any) -> int:
    return int(getattr(search, _candidates_field(search)) * search.n_iterations)


def _flops(step: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def table(figures: Iterable[Figure]) -> str:
    """Returns the figures as a Markdown table."""
    figures = list(figures)
    lines = [
        "| agent | preset | planner | environments | precision | | seconds per plan | GFLOP | GFLOP/s "
        "| tokens per frame | against plain |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    plain = {_key(f): f.seconds for f in figures if f.how == "plain"}
    for f in figures:
        ratio = f"{plain[_key(f)] / f.seconds:.2f}x" if f.how != "plain" and _key(f) in plain else ""
        lines.append(
            f"| {f.agent} | {f.preset} | {f.planner} {f.candidates} x {f.iterations} | {f.per} | {f.precision} "
            f"| {LABELS[f.how]} | {f.seconds:.3f}{'*' if f.extrapolated else ''} | {f.flops / 1e9:,.1f} "
            f"| {f.flops / f.seconds / 1e9:,.0f} | {f.tokens_per_frame} | {ratio} |"
        )
    for candidates, iterations in sorted({f.measured for f in figures if f.extrapolated}):
        lines += ["", f"\\* extrapolated linearly from {candidates} candidates x {iterations} iterations"]
    return "\n".join(lines)


def _key(figure: Figure) -> tuple[Any, ...]:
    return figure.agent, figure.preset, figure.planner, figure.precision, figure.per


def save(path: str | Path, figures: list[Figure], device: str) -> None:
    """Writes the figures, with the machine and the versions they were measured with."""
    head = {"format": FORMAT, "schema": SCHEMA, **provenance.describe()}
    rows = [dataclasses.asdict(figure) for figure in figures]
    write_json(Path(path), {**head, "device": device, "threads": torch.get_num_threads(), "figures": rows})
