"""Two-Room: a dot moves to a goal position in one of two rooms; `env.py` states its rules."""

from envs.two_room.env import TwoRoomEnv

__all__ = ["TwoRoomEnv"]
