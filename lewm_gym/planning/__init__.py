"""Search over actions with a world model: planners and the receding-horizon controller.

A planner only sees a cost function of action sequences. To add one: a class with a configuration, and a line in
`PLANNERS`.
"""

from __future__ import annotations

from typing import Any

from lewm_gym.controller import RecedingHorizon
from lewm_gym.planning.cem import CEM, CEMConfig
from lewm_gym.planning.gradient import GradientConfig, GradientPlanner
from lewm_gym.planning.guided import (
    ARCEM,
    ActorConfig,
    ActorPlanner,
    ARCEMConfig,
    Fused,
    FusedConfig,
    Guided,
    GuidedConfig,
)
from lewm_gym.planning.icem import ICEM, ICEMConfig
from lewm_gym.planning.mppi import MPPI, MPPIConfig

#: name -> (planner, its configuration)
PLANNERS: dict[str, tuple[Any, Any]] = {
    "cem": (CEM, CEMConfig),
    "icem": (ICEM, ICEMConfig),
    "mppi": (MPPI, MPPIConfig),
    "gradient": (GradientPlanner, GradientConfig),
    "actor": (ActorPlanner, ActorConfig),
    "guided": (Guided, GuidedConfig),
    "arcem": (ARCEM, ARCEMConfig),
    "fused": (Fused, FusedConfig),
}

__all__ = [
    "ARCEM",
    "CEM",
    "ICEM",
    "MPPI",
    "PLANNERS",
    "ARCEMConfig",
    "ActorConfig",
    "ActorPlanner",
    "CEMConfig",
    "Fused",
    "FusedConfig",
    "GradientConfig",
    "GradientPlanner",
    "Guided",
    "GuidedConfig",
    "ICEMConfig",
    "MPPIConfig",
    "RecedingHorizon",
]
