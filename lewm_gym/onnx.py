"""An agent that plans from ONNX files with numpy and onnxruntime, without torch.

`python -m agents export RUN --onnx FOLDER` writes the files (agents/export.py). `OnnxAgent` computes the same as
`LeWMAgent`, with the same random numbers for the same seed, so its plans are equal up to rounding.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lewm_gym.agent import Agent
from lewm_gym.controller import Deadline, RecedingHorizon, Reply, Request
from lewm_gym.provenance import usable_cores

ENCODER, ROLLOUT, SHORT_ROLLOUT, ACTOR = "encoder.onnx", "rollout.onnx", "rollout_short.onnx", "actor.onnx"
METADATA = "lewm_gym"  # the entry of a file's metadata that holds, as JSON, what acting needs besides the networks
SCHEMA = 1
PLANNERS = ("cem", "actor", "guided")
_FEWEST_CANDIDATES = 32  # of a thread: with fewer, starting each operation takes most of the time

Array = NDArray[np.float32]
#: Costs (S,) of z-scored candidates (S, H, A).
Judge = Callable[[Array], Array]


class Stream:
    """Standard normal samples, equal to those of `torch.randn` on a CPU for the same seed, up to rounding.

    A Mersenne twister gives 24 bits per number, and the Box-Muller transform makes them normal, in groups of sixteen.

    Args:
        seed: Of 64 bits; torch's generator takes the lower 32.
    """

    def __init__(self, seed: int) -> None:
        self._twister: Any = np.random.RandomState(seed & 0xFFFFFFFF)._bit_generator  # type: ignore[attr-defined]

    def normal(self, *shape: int) -> Array:
        """Returns an array of this shape; of fewer than sixteen numbers torch would draw others."""
        count = math.prod(shape)
        numbers = self._uniform(max(16, count))
        whole = len(numbers) // 16 * 16
        numbers[:whole] = _box_muller(numbers[:whole])
        if whole < len(numbers):  # the last sixteen are drawn again
            numbers[-16:] = _box_muller(self._uniform(16))
        return numbers[:count].reshape(shape)

    def _uniform(self, count: int) -> Array:
        drawn = self._twister.random_raw(count) & np.uint64(0xFFFFFF)
        return drawn.astype(np.float32) * np.float32(2.0**-24)


def _box_muller(uniform: Array) -> Array:
    """Returns normal numbers of uniform ones, of each sixteen eight pairs."""
    pairs = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(-2.0 * np.log(1.0 - pairs[:, 0]))
    angle = np.float32(2.0 * np.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1).astype(np.float32)


class OnnxAgent(Agent):
    """LeWM as a Gymnasium policy, as `LeWMAgent`: `agent = OnnxAgent.load("exported")`, then `agent.act(obs)`.

    Args:
        networks: File name -> onnxruntime session.
        description: Metadata of the files: task, action bounds and statistics, frame size, frame skip, planning.
        seed: Seed of the planner's random streams, unless `reset` gives seeds.
        time_limit_s: Seconds that one call of `act` may spend on planning; the best plan so far is taken, after at
            least one iteration for each environment.
        stream: Creates an environment's random stream from a seed; it has `normal(*shape)`.
        threads: Among which candidates are divided.
    """

    def __init__(
        self,
        networks: dict[str, Any],
        description: dict[str, Any],
        seed: int = 0,
        time_limit_s: float | None = None,
        stream: Callable[[int], Any] = Stream,
        threads: int = 1,
    ) -> None:
        super().__init__(description["action_low"], description["action_high"], description["frame_size"])
        if time_limit_s is not None and not 0 < time_limit_s < math.inf:
            raise ValueError(f"time_limit_s must be a positive number of seconds, or None, got {time_limit_s}")
        self._networks, self.description, self.time_limit_s = networks, description, time_limit_s
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "lewm_gym.onnx") if threads > 1 else None
        planning = description["planning"]
        self._planner: str = planning["planner"]
        self._search: dict[str, Any] = planning["search"]
        self._horizon, self._execute = planning["horizon_blocks"], planning["execute_blocks"]
        self._least_steps, self._cost_name = planning["least_steps_left"], planning["cost"]
        self._frame_skip: int = description["frame_skip"]
        self._mean, self._std = (
            np.tile(np.asarray(description[name], np.float32), self._frame_skip)
            for name in ("action_mean", "action_std")
        )
        self._bounds = None
        if planning["clip_actions"]:
            self._bounds = tuple(
                (np.tile(bound, self._frame_skip) - self._mean) / self._std
                for bound in (self.action_low, self.action_high)
            )
        self.uses_steps_left = self._planner != "cem"
        self.plans = 0
        rollouts = [networks[name] for name in (SHORT_ROLLOUT, ROLLOUT) if name in networks]
        self._rollouts = [(network.get_inputs()[1].shape[1], network) for network in rollouts]  # the shortest first
        self._controller = RecedingHorizon(self._plan_all, self._frame_skip, 1, seed, stream)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        seed: int = 0,
        time_limit_s: float | None = None,
        task: str | None = None,
        threads: int | None = None,
    ) -> Self:
        """Returns the agent that was exported into a folder.

        Args:
            folder: Folder of `python -m agents export RUN --onnx FOLDER`.
            seed: See the class.
            time_limit_s: See the class.
            task: The task that it must have been trained for; None for any.
            threads: CPU threads; None: one per core.

        Raises:
            FileNotFoundError: If there is no export.
            ImportError: Without onnxruntime.
            ValueError: If a file is damaged, of another version, or of another export or task.
        """
        folder, threads = Path(folder), threads or usable_cores()
        networks = {ENCODER: open_network(folder / ENCODER, threads)}
        description = described(networks[ENCODER], folder / ENCODER)
        if task is not None and description["task"] != task:
            raise ValueError(f"{folder} is of an agent for {description['task']!r}, not {task!r}: export another run")
        more = {"cem": (), "actor": (ACTOR,), "guided": (ACTOR, SHORT_ROLLOUT)}[description["planning"]["planner"]]
        for name in (ROLLOUT, *more):
            networks[name] = open_network(folder / name)
            if described(networks[name], folder / name) != description:
                raise ValueError(f"{folder / name} is of another export than {ENCODER}: export the run again")
        return cls(networks, description, seed, time_limit_s, threads=threads)

    def encode(self, pixels: NDArray[np.uint8]) -> Array:
        """Returns latents (n, Z) of frames (n, h, w, 3)."""
        return self._run(ENCODER, pixels=pixels)[0]

    def rollout(self, latent: Array, actions: Array) -> Array:
        """Returns predicted latents (S, n, Z) from a latent (Z,) and z-scored candidates (S, n, A), n <= H."""
        candidates, blocks, size = actions.shape
        horizon, network = next((horizon, network) for horizon, network in self._rollouts if horizon >= blocks)
        whole = np.zeros((candidates, horizon, size), np.float32)  # what comes later changes nothing before it
        whole[:, :blocks] = actions
        parts = np.array_split(whole, max(1, min(self._threads, candidates // _FEWEST_CANDIDATES)))

        def predict(part: Array) -> Array:
            found: Array = network.run(None, {"latent": latent[None], "actions": part})[0]
            return found[:, :blocks]

        if self._pool is None or len(parts) == 1:
            return predict(whole)
        others = [self._pool.submit(predict, part) for part in parts[1:]]
        return np.concatenate([predict(parts[0]), *(other.result() for other in others)])

    def _run(self, name: str, **inputs: Any) -> list[Array]:
        found: list[Array] = self._networks[name].run(None, inputs)
        return found

    def _plan_all(self, requests: list[Request]) -> list[Reply]:
        """Returns a plan for each request, found one after the other."""
        self.plans += len(requests)
        began = time.monotonic()
        replies: list[Reply] = []
        for request in requests:
            share = (len(replies) + 1) / len(requests)
            deadline = None if self.time_limit_s is None else began + share * self.time_limit_s
            found, left = self._plan(request, Deadline(deadline))
            blocks = self._within_bounds(found)
            actions = (blocks * self._std + self._mean).reshape(-1, len(self.action_low))
            actions = np.clip(actions, self.action_low, self.action_high)
            plan = (actions.reshape(blocks.shape) - self._mean) / self._std
            replies.append(Reply(actions[: self._execute * self._frame_skip], plan, left))
        return replies

    def _plan(self, request: Request, clock: Deadline) -> tuple[Array, float | None]:
        """Returns the plan, (n, A), z-scored, and the steps left that the actor was given."""
        latent, goal = self.encode(np.stack([request.frames[-1], request.goal]))

        def cost(actions: Array) -> Array:
            costs = self._cost(self.rollout(latent, self._within_bounds(actions)), goal)
            if not np.isfinite(costs).any():
                raise ValueError("no candidate plan has a finite cost: check the files, or export them again")
            return costs

        if self._planner == "cem":
            return self._cem(cost, request.generator, clock), None
        proposal, left = self._propose(latent, goal, request.steps_left)
        if self._planner == "actor":
            return proposal, left
        return self._guided(cost, proposal, request.generator, clock), left

    def _propose(self, latent: Array, goal: Array, told: float | None) -> tuple[Array, float]:
        """Returns the actor's plan, (n, A), of as many blocks as steps are left, at most H, and the steps left."""

        def actor(z: Array, steps: float) -> list[Array]:
            return self._run(ACTOR, latents=z[None], goals=goal[None], steps_left=np.asarray([steps], np.float32))

        left = float(actor(latent, 1.0)[2][0]) if told is None else told
        left = max(left, self._least_steps)
        n_blocks = min(max(math.ceil(np.float32(left) / self._frame_skip), 1), self._horizon)
        plan = np.zeros((0, len(self._mean)), np.float32)
        now = latent
        for block in range(n_blocks):
            if block:
                now = self.rollout(latent, plan[None])[0, -1]
            mean = actor(now, max(left - block * self._frame_skip, self._least_steps))[0]
            plan = np.concatenate([plan, mean])
        return plan, left

    def _cem(self, cost: Judge, stream: Any, clock: Deadline) -> Array:
        """Returns the plan of the cross-entropy method (lewm_gym/planning/cem.py)."""
        search = self._search
        mean = np.zeros((self._horizon, len(self._mean)), np.float32)
        std = np.ones_like(mean)
        for _ in range(search["n_iterations"]):
            samples = _candidates(stream, search["n_samples"], mean, std)
            elites = _best(samples, cost(samples), search["n_elites"])
            mean, std = elites.mean(axis=0), elites.std(axis=0, ddof=1)
            if clock.ends():
                break
        return mean

    def _guided(self, cost: Judge, mean: Array, stream: Any, clock: Deadline) -> Array:
        """Returns the plan of a search around the actor's (lewm_gym/planning/guided.py)."""
        search = self._search
        kept, spread = mean[None], np.full_like(mean, search["std"])
        for _ in range(search["n_iterations"]):
            samples = np.concatenate([kept, _candidates(stream, search["n_samples"], mean, spread)])
            elites = _best(samples, cost(samples), search["n_elites"])
            kept = np.concatenate([kept[:1], elites[:1]])
            mean = elites.mean(axis=0)
            spread = elites.std(axis=0, ddof=1).clip(search["min_std"], search["max_std"])
            if clock.ends():
                break
        last = np.stack([kept[1], mean])
        return _best(last, cost(last), 1)[0]

    def _cost(self, predicted: Array, goal: Array) -> Array:
        """Returns the costs (S,) of predicted latents (S, H, Z) (agents/planning.py)."""
        if self._cost_name == "terminal":
            return np.asarray(np.square(predicted[:, -1] - goal).sum(axis=-1))
        distances = np.square(predicted - goal).sum(axis=-1)
        return np.asarray(distances.sum(axis=-1) if self._cost_name == "sum" else distances.min(axis=-1))

    def _within_bounds(self, actions: Array) -> Array:
        return actions if self._bounds is None else np.clip(actions, *self._bounds)


def _candidates(stream: Any, n_samples: int, mean: Array, std: Array) -> Array:
    """Returns samples (n_samples, H, A) of N(mean, std), the mean itself first."""
    noise = stream.normal(n_samples, *mean.shape)
    noise[0] = 0.0
    return np.asarray(mean + std * noise, np.float32)


def _best(samples: Array, costs: Array, count: int) -> Array:
    """Returns the `count` samples of lowest cost, ascending; a cost that is not a number ranks last."""
    return samples[np.argsort(np.nan_to_num(costs, nan=np.inf), kind="stable")[:count]]


def open_network(path: Path, threads: int = 1) -> Any:
    """Returns the onnxruntime session of a file, on the CPU.

    Raises:
        FileNotFoundError: If there is no file.
        ImportError: Without onnxruntime.
        ValueError: If it is damaged.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("acting from ONNX files needs onnxruntime: pip install 'lewm-gym[onnx]'") from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: python -m agents export RUN --onnx {path.parent}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; they are raised, too
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others need the cores meanwhile
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many classes, none of them public
        raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}): export the run again") from None


def described(network: Any, path: Path) -> dict[str, Any]:
    """Returns the metadata of a file.

    Raises:
        ValueError: If it is not one of ours, or of another version.
    """
    text = network.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise ValueError(f"{path} is not a file of `python -m agents export`: it has no metadata")
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged (its metadata: {error}): export the run again") from None
    if found.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {found.get('schema')}, this version reads {SCHEMA}: export the run again")
    return found
