"""The paper's own figures, to stand beside ours; none was measured here."""

from __future__ import annotations

from typing import NamedTuple

SOURCE = "LeWorldModel, arXiv 2603.19312, at its own scale, on its own data"


class Probed(NamedTuple):
    """LeWM's probing figures in the paper: mean squared error on standardised targets and Pearson's r; None if unknown.

    Figures where the paper has a linear probe alone have None for the MLP's.
    """

    linear_mse: float
    linear_r: float
    mlp_mse: float | None = None
    mlp_r: float | None = None


#: Task -> quantity -> LeWM's figures. Block angle: of the angle in the paper, of its cosine and sine here.
PROBED: dict[str, dict[str, Probed]] = {
    "pusht": {
        "agent_position": Probed(0.052, 0.974, 0.004, 0.998),
        "block_position": Probed(0.029, 0.986, 0.001, 0.999),
        "block_angle": Probed(0.187, 0.902, 0.021, 0.990),
    },
    "two_room": {"agent_position": Probed(0.008, 0.996, 0.000, 1.000)},
    "cube": {
        "effector_position": Probed(0.025, 0.991, 0.004, 0.998),
        "cube_position": Probed(0.007, 0.997, 0.002, 0.999),
        "gripper_opening": Probed(0.121, 0.938, 0.048, 0.976),
        "joint_angles": Probed(0.352, 0.706),
        "joint_velocities": Probed(1.021, 0.095),
    },
}
SURPRISE = (
    "In the paper teleports surprise significantly in all three tasks (paired t-test, p < 0.01); a change of the "
    "cube's colour does not."
)
STRAIGHTNESS = "In the paper it rises during training without any term for it."
