"""Behaviour policies for Push-T; `experts.py` describes them."""

from collect.policies.pusht.experts import POLICIES, goal_expert

__all__ = ["POLICIES", "goal_expert"]
