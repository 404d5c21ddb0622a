"""Trains the Reacher expert: Soft Actor-Critic (arXiv 1801.01290) by stable-baselines3, on states.

    python -m collect.policies.reacher_train                   train (or resume), evaluate, export the actor
    python -m collect.policies.reacher_train --evaluate-only   evaluate the exported actor

The shipped `reacher_sac.safetensors` was made by the first of these. Evaluation is on dm_control's own reacher-hard:
action repeat 2, 50 seeded episodes of 1,000 physics steps, deterministic actions without noise, rewards summed over
physics steps (at most 1,000).

Differences from SAC on the suite's reward, which is 1 within 0.025 m of the target and 0 elsewhere: a smooth term is
added to it, and the observation is in the upper arm's frame. The trained actor returns 980 after 12,000
steps (981.2 in the end, lowest episode 966); plain SAC returned 573 after 60,000.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from collect.policies.reacher import ACTOR_FILE, ARRIVED, Actor, observe, sample_target
from envs.mujoco_rendering import load_mujoco
from envs.reacher import ACTION_REPEAT, WRIST_LIMIT, Simulation, finger_position
from lewm_gym import cli

STEPS = 40_000
EPISODE_STEPS = 100  # control steps; the value of staying on the target is bootstrapped
ENVIRONMENTS = 4
SHAPING = 0.3  # weight of the smooth term
EVALUATION_EPISODES = 50
PHYSICS_STEPS = 1_000


class ReachTarget(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """The training task: `observe` as observation, the suite's reward plus a smooth term, a target per episode."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (6,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self) -> None:
        self._simulation = Simulation()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Samples a pose, at rest, and a target."""
        super().reset(seed=seed)
        angles = self.np_random.uniform((-np.pi, -WRIST_LIMIT), (np.pi, WRIST_LIMIT))
        self._state = np.concatenate([angles, np.zeros(4)])
        self._target = sample_target(self.np_random)
        self._steps = 0
        return observe(self._state, self._target), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Applies one action for two physics steps."""
        reward = 0.0
        for _ in range(ACTION_REPEAT):
            self._state = self._simulation.step(self._state, action)
            distance = float(np.linalg.norm(self._target - finger_position(self._state)))
            reward += (1.0 - SHAPING) * (distance <= ARRIVED) + SHAPING * (1.0 - np.tanh(distance / 0.1))
        self._steps += 1
        observation = observe(self._state, self._target)
        return observation, reward / ACTION_REPEAT, False, self._steps >= EPISODE_STEPS, {}


def train(folder: Path, steps: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """Trains until `steps` environment steps, resuming from `folder`; returns the actor's weights."""
    import torch
    from stable_baselines3 import SAC
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.set_num_threads(1)  # a network this small is slower on several
    folder.mkdir(parents=True, exist_ok=True)
    environments = DummyVecEnv([ReachTarget] * ENVIRONMENTS)
    checkpoint = folder / "model.zip"
    if checkpoint.exists():
        model = SAC.load(checkpoint, env=environments, device="cpu")
        model.load_replay_buffer(folder / "replay.pkl")  # ours, written below
        print(f"resuming at step {model.num_timesteps}")
    else:
        model = SAC(
            "MlpPolicy",
            environments,
            learning_rate=_learning_rate,
            gamma=0.99,
            batch_size=256,
            train_freq=1,
            gradient_steps=2,
            learning_starts=2_000,
            policy_kwargs={"net_arch": [256, 256]},
            seed=seed,
            device="cpu",
        )
    if model.num_timesteps < steps:
        model.learn(steps - model.num_timesteps, callback=_progress(folder, steps), reset_num_timesteps=False)
    return actor_weights(model)


def _learning_rate(remaining: float) -> float:
    """Returns the learning rate when `remaining` (1 to 0) of the training is left."""
    return 1e-4 + 6e-4 * remaining


def _progress(folder: Path, total: int) -> Any:
    from stable_baselines3 import SAC
    from stable_baselines3.common.callbacks import BaseCallback
    from tqdm import tqdm

    class Progress(BaseCallback):
        """Shows progress; every 5,000 steps runs a short evaluation and writes a checkpoint."""

        model: SAC

        def _on_training_start(self) -> None:
            self._bar = tqdm(total=total, initial=self.num_timesteps, unit="step", mininterval=5.0)

        def _on_step(self) -> bool:
            self._bar.update(self.num_timesteps - self._bar.n)
            if self.num_timesteps % 5_000 == 0:
                returns = quick_returns(Actor(actor_weights(self.model)), episodes=10)
                self._bar.set_postfix(return_per_1000=f"{returns.mean():.0f}")
                # The buffer first: a kill between the two leaves an older model with newer experience: harmless.
                _save(self.model.save_replay_buffer, folder / "replay.pkl")
                _save(self.model.save, folder / "model.zip")
            return True

        def _on_training_end(self) -> None:
            self._bar.close()
            _save(self.model.save_replay_buffer, folder / "replay.pkl")
            _save(self.model.save, folder / "model.zip")

    return Progress()


def _save(write: Any, path: Path) -> None:
    """Writes a file under another name and then renames it, so that an interruption leaves the previous one intact."""
    temporary = path.with_name(f"new-{path.name}")
    write(temporary)
    temporary.replace(path)


def actor_weights(model: Any) -> dict[str, NDArray[np.float32]]:
    """Returns the deterministic actor's weights in `Actor`'s form, from a stable-baselines3 SAC model."""
    from torch import nn

    layers = [*(m for m in model.actor.latent_pi if isinstance(m, nn.Linear)), model.actor.mu]
    return {
        f"{i}.{name}": tensor.detach().numpy().copy()
        for i, layer in enumerate(layers)
        for name, tensor in (("weight", layer.weight), ("bias", layer.bias))
    }


def quick_returns(actor: Actor, episodes: int) -> NDArray[np.float64]:
    """Returns the returns of `episodes` seeded episodes of 1,000 physics steps on our simulation, (episodes,)."""
    environment = ReachTarget()
    returns = np.zeros(episodes)
    for episode in range(episodes):
        observation, _ = environment.reset(seed=episode)
        for _ in range(PHYSICS_STEPS // ACTION_REPEAT):
            observation, *_ = environment.step(actor(observation))
            distance = np.linalg.norm(environment._target - finger_position(environment._state))
            returns[episode] += ACTION_REPEAT * (distance <= ARRIVED)
    return returns


def suite_returns(actor: Actor, episodes: int = EVALUATION_EPISODES) -> NDArray[np.float64]:
    """Returns the returns of `episodes` episodes (seeds 0, 1, ...) of dm_control's own reacher-hard, (episodes,)."""
    load_mujoco()  # chooses an off-screen OpenGL before dm_control would choose GLFW
    from dm_control import suite

    returns = np.zeros(episodes)
    for seed in range(episodes):
        environment = suite.load("reacher", "hard", task_kwargs={"random": seed})
        physics = environment.physics
        timestep = environment.reset()
        while not timestep.last():
            state = np.concatenate([physics.data.qpos, physics.data.qvel, np.zeros(2)])
            action = actor(observe(state, physics.named.model.geom_pos["target", :2]))
            for _ in range(ACTION_REPEAT):
                timestep = environment.step(action)
                returns[seed] += timestep.reward
    return returns


def main() -> int:
    """Runs the command line."""
    summary = str(__doc__).split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m collect.policies.reacher_train", description=summary)
    parser.add_argument("--steps", type=int, default=STEPS, help="environment steps of training (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/reacher-sac"), help="checkpoints; resumed if present")
    parser.add_argument("--output", type=Path, default=ACTOR_FILE, help="where the actor is exported")
    parser.add_argument("--evaluate-only", action="store_true")
    arguments = parser.parse_args()
    if arguments.steps <= 0:
        raise ValueError(f"--steps must be positive, got {arguments.steps}")
    if not arguments.evaluate_only:
        from safetensors.numpy import save_file

        save_file(train(arguments.folder, arguments.steps, arguments.seed), arguments.output)
        print(f"actor written to {arguments.output}")
    returns = suite_returns(Actor.load(arguments.output))
    print(
        f"reacher-hard, {len(returns)} episodes of {PHYSICS_STEPS} physics steps:"
        f" mean return {returns.mean():.1f}, lowest {returns.min():.0f}"
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
