"""The behaviour policy for Reacher: a Soft Actor-Critic (SAC) actor that chases moving targets.

The actor was trained by `python -m collect.policies.reacher_train` on the Control Suite's task reacher-hard (bring the
finger within 0.025 m of a target, stay there) and is shipped as `reacher_sac.safetensors`; it runs in plain numpy, so
that workers need no torch. Its observation is the suite's, expressed in the upper arm's frame because the
task is rotationally symmetric: see `observe`.

An expert with one target per episode stays there: 28 % of its windows of 25 steps end where they started. Here the
target moves soon after the finger has arrived, and noise is added: 0.2 % do (40 episodes). The stay is short but
random, so the data also show the arm braking and at rest. The suite's
targets never need a stretched arm, and the expert rarely flips its elbow: here targets are anywhere within
reach, and one in five is a period of constant random torque instead, which flips the elbow.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.goal_env import State
from envs.reacher import finger_position
from lewm_gym.types import BehaviourPolicy, Info, Obs

ACTOR_FILE = Path(__file__).with_name("reacher_sac.safetensors")
SUITE_RADII = (0.05, 0.20)  # m, between which the Control Suite places targets; for training
REACH_RADII = (0.045, 0.24)  # m, what the finger can reach; for collecting
ARRIVED = 0.025  # m, reacher-hard's reward: radius of target (0.015) + finger (0.010)
LONGEST_STAY = 8  # steps on a target; each stay is drawn from 0 to this
SPELL_SHARE = 0.2  # of targets that are replaced by a spell of constant torque
LONGEST_SPELL = 20  # steps
PATIENCE = 50  # steps after which a target that was not reached jumps all the same
NOISE = 0.3  # standard deviation of the noise added to each action of the expert


def sample_target(rng: np.random.Generator, radii: tuple[float, float] = SUITE_RADII) -> NDArray[np.float64]:
    """Returns a target's position (2,), m, distributed as in the Control Suite if the radii are."""
    angle, radius = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(*radii)
    return radius * np.array([np.sin(angle), np.cos(angle)])


def observe(state: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float32]:
    """Returns the actor's observation, (6,) float32, with entries of order one.

    Wrist's cosine and sine, the vector from finger to target in the upper arm's frame (dm), both velocities (5 rad/s).

    Args:
        state: Of the environment, (6,).
        target: Position, (2,) m.
    """
    shoulder, wrist = state[:2]
    x, y = (target - finger_position(state)) / 0.1
    cos, sin = np.cos(shoulder), np.sin(shoulder)
    velocities = state[2:4] / 5.0
    return np.array([np.cos(wrist), np.sin(wrist), cos * x + sin * y, cos * y - sin * x, *velocities], np.float32)


class Actor:
    """The deterministic SAC actor: a ReLU network whose tanh-squashed mean is the action.

    Args:
        weights: Arrays `0.weight`, `0.bias`, `1.weight`, ..., from input to output, weights (out, in).
    """

    def __init__(self, weights: dict[str, NDArray[np.float32]]) -> None:
        self._layers = [(weights[f"{i}.weight"], weights[f"{i}.bias"]) for i in range(len(weights) // 2)]

    @classmethod
    def load(cls, path: Path = ACTOR_FILE) -> Actor:
        """Returns the actor saved at `path`.

        Raises:
            FileNotFoundError: If there is none; the message says how to train one.
        """
        from safetensors.numpy import load_file  # here: to import the policy is cheap

        if not path.exists():
            raise FileNotFoundError(f"no actor at {path}; train one with: python -m collect.policies.reacher_train")
        return cls(load_file(path))

    def __call__(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the action (2,) in [-1, 1] for an observation (6,)."""
        hidden = observation
        for weight, bias in self._layers[:-1]:
            hidden = np.maximum(weight @ hidden + bias, 0.0)
        weight, bias = self._layers[-1]
        return np.tanh(weight @ hidden + bias)


class SACPolicy:
    """The SAC expert with Gaussian noise on its actions, chasing one target after another.

    Args:
        noise: Standard deviation of the noise; None for 0.3.
        actor: Instead of the shipped one.

    Raises:
        ValueError: If `noise` is outside [0, 1].
    """

    max_steps = 200

    def __init__(self, noise: float | None = None, actor: Actor | None = None) -> None:
        if noise is not None and not 0.0 <= noise <= 1.0:
            raise ValueError(f"noise must lie within [0, 1], got {noise}")
        self.noise = NOISE if noise is None else noise
        self._actor = actor or Actor.load()
        self._torque: NDArray[np.float64] | None

    def begin(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> tuple[Obs, dict[str, Any]]:
        """Resets `env` to a random pose and samples the first target."""
        self._rng = rng
        self._draw_target()
        return env.reset(seed=int(rng.integers(2**31)))

    def pursue(
        self, env: gymnasium.Env[Any, Any], rng: np.random.Generator, start: State, goal: State
    ) -> tuple[Obs, dict[str, Any]]:
        """Resets `env` to a start and a goal, (6,); `act` then moves the finger to its goal position and stays.

        The actor controls the position of the finger only: it can arrive with the elbow on the wrong side, and not in
        the goal's configuration.
        """
        self._rng, self._torque, self._age = rng, None, 0
        self._target = finger_position(goal)
        self._stay = self._patience = np.iinfo(np.int64).max
        return env.reset(options={"state": start, "goal_state": goal})

    def act(self, info: Info) -> NDArray[np.float32]:
        """Returns a noisy step towards the target, (2,); samples a new target first if the stay at this one is over."""
        state = info["state"]
        self._stay -= int(np.linalg.norm(self._target - finger_position(state)) < ARRIVED)
        if self._stay < 0 or self._age >= self._patience:
            self._draw_target()
        self._age += 1
        action = self._actor(observe(state, self._target)) if self._torque is None else self._torque
        return np.clip(action + self._rng.normal(0.0, self.noise, 2), -1.0, 1.0).astype(np.float32)

    def done(self, info: Info) -> bool:
        """Returns False: an episode lasts `max_steps`."""
        return False

    def _draw_target(self) -> None:
        rng = self._rng
        self._target, self._stay = sample_target(rng, REACH_RADII), int(rng.integers(LONGEST_STAY + 1))
        self._torque, self._patience, self._age = None, PATIENCE, 0
        if rng.random() < SPELL_SHARE:
            self._torque, self._patience = rng.uniform(-1.0, 1.0, 2), int(rng.integers(5, LONGEST_SPELL + 1))
            self._stay = LONGEST_SPELL  # where the finger passes does not end it


POLICIES: dict[str, Callable[..., BehaviourPolicy]] = {"sac": SACPolicy}
#: What pursues a goal as well as it can.
goal_expert = partial(SACPolicy, noise=0.0)
