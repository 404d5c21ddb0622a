"""Behaviour policies for your own environments: random, an import path, or a stable-baselines3 checkpoint.

An import path "package.module:factory" names a function `factory(env, rng)` that is called for every episode and
returns `act(observation) -> action`, or an object with `predict(observation)` as in stable-baselines3. All randomness
must come from `rng`, so that an episode is a function of its seed and number.
"""

from __future__ import annotations

import importlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lewm_gym.files import sha256
from lewm_gym.types import Info, Obs

RANDOM = "random"
Act = Callable[[Any], Any]


def name_of_policy(name: str, checkpoint: Path | None, trust: bool) -> str:
    """Returns the name to record; for a checkpoint, its file name with a hash.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If unpickling is not allowed.
    """
    if checkpoint is None:
        return name
    if not checkpoint.is_file():
        raise FileNotFoundError(f"no checkpoint {checkpoint}")
    if not trust:
        raise ValueError(
            f"{checkpoint} is unpickled to be read, which can execute arbitrary code: add --trust if you trust its "
            "source"
        )
    return f"sb3:{checkpoint.name}@{sha256(checkpoint)[:12]}"


class ForeignPolicy:
    """A policy for your own environment.

    Args:
        name: "random" or "package.module:factory".
        checkpoint: A stable-baselines3 checkpoint instead, or None; it acts deterministically.
        noise: Standard deviation of added noise, as a fraction of half the range; the sum is clipped.
        env: A `collect.gym_env.CollectedEnv`.
        max_steps: Environment steps per episode at most.

    Raises:
        ValueError: If the policy cannot be found or does not fit the environment.
    """

    def __init__(self, name: str, checkpoint: Path | None, noise: float, env: Any, max_steps: int) -> None:
        self.noise, self.max_steps = noise or None, max_steps
        self._low, self._high = env.action_space.low, env.action_space.high
        self._make: Callable[[Any, np.random.Generator], Any]
        if checkpoint is not None:
            model = load_sb3(checkpoint, env.inner)
            self._make = lambda env, rng: model
        elif name == RANDOM:
            if noise:
                raise ValueError("the random policy takes no noise level")
            self._make = lambda env, rng: lambda observation: rng.uniform(self._low, self._high)
        else:
            self._make = import_factory(name)

    def begin(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> tuple[Obs, dict[str, Any]]:
        """Resets the environment with a seed from `rng` and creates the episode's policy."""
        self._rng = rng
        obs, info = env.reset(seed=int(rng.integers(2**31)))
        self._act = _as_function(self._make(env.inner, rng))  # type: ignore[attr-defined]
        return obs, info

    def act(self, info: Info) -> NDArray[np.float32]:
        """Returns the policy's action, with noise if asked."""
        action = np.asarray(self._act(info["observation"]), np.float32)
        if self.noise is None or action.shape != self._low.shape or not np.isfinite(action).all():
            return action  # the runner says what is wrong with it
        noisy = action + self._rng.normal(0.0, self.noise, action.shape) * 0.5 * (self._high - self._low)
        return np.clip(noisy, self._low, self._high).astype(np.float32)

    def done(self, info: Info) -> bool:
        """Returns whether the environment has ended the episode."""
        return bool(info["done"])


def import_factory(path: str) -> Callable[[Any, np.random.Generator], Any]:
    """Returns the function that an import path "package.module:factory" names.

    Raises:
        ValueError: If there is none.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f"a policy must be 'random' or package.module:factory, not {path!r}")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import the policy {path!r}: {error}") from None
    if not callable(found):
        raise ValueError(f"the policy {path!r} must be a function factory(env, rng), not {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _as_function(policy: Any) -> Act:
    if hasattr(policy, "predict"):
        return lambda observation: policy.predict(observation, deterministic=True)[0]
    if not callable(policy):
        raise ValueError(f"the policy's factory must return a function or an object with predict, not {policy!r}")
    return policy  # type: ignore[no-any-return]


def load_sb3(path: Path, env: gymnasium.Env[Any, Any]) -> Any:
    """Returns the agent in a stable-baselines3 checkpoint; unpickles it.

    Raises:
        ImportError: Without stable-baselines3.
        ValueError: If it is no such checkpoint, or of another environment.
    """
    try:
        import stable_baselines3
    except ImportError:
        raise ImportError("--sb3 needs stable-baselines3: pip install 'lewm-gym[sac]'") from None
    algorithm = getattr(stable_baselines3, _algorithm(path))
    # from memory: stable-baselines3 adds .zip to a path that does not end so
    model = algorithm.load(io.BytesIO(path.read_bytes()), device="cpu")
    if model.action_space != env.action_space or model.observation_space != env.observation_space:
        raise ValueError(
            f"{path} was trained with observations {model.observation_space} and actions {model.action_space}; this "
            f"environment has {env.observation_space} and {env.action_space}"
        )
    return model


def _algorithm(path: Path) -> str:
    """Returns the name of a checkpoint's class, without unpickling."""
    try:
        with zipfile.ZipFile(path) as file:
            record = json.loads(file.read("data"))
        module = str(record["policy_class"]["__module__"])
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a stable-baselines3 checkpoint ({error})") from None
    for name in ("SAC", "TD3"):  # DDPG is a special case of TD3
        if module == f"stable_baselines3.{name.lower()}.policies":
            return name
    if module == "stable_baselines3.common.policies":
        return "PPO" if "clip_range" in record else "A2C"
    raise ValueError(f"{path} is of {module}, which is not supported: load it in a --policy module:factory")
