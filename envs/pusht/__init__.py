"""Push-T: a disc pushes a T-shaped block to its pose in a goal image; `env.py` states its rules."""

from envs.pusht.env import PushTEnv

__all__ = ["PushTEnv"]
