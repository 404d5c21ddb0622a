"""OGBench-Cube: a robot arm moves a cube to its position in a goal image; `env.py` states its rules."""

from envs.cube.env import CubeEnv

__all__ = ["CubeEnv"]
