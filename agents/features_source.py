"""What `run.json` records about a frozen encoder: the name of its features, and the file of its weights.

The file's SHA-256 is part of the run's identity: a run is never resumed on another encoder's features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lewm_gym import checkpoint
from lewm_gym.files import sha256
from lewm_gym.nn import dino

#: Agents whose encoder others can use -> what its features are called.
ENCODER_AGENTS = {"lewm": "LeWM", "pldm": "PLDM"}
#: The key of `run.json` under which the file stands; runs of older versions lack it.
SOURCE = "features_source"


def describe_dino(weights: str) -> dict[str, Any]:
    """Returns the record of DINOv2's weights. Weights are not verified.

    Args:
        weights: The given file, or empty (`lewm_gym.nn.dino.find_file`).

    Raises:
        FileNotFoundError: If the file named does not exist.
    """
    file = dino.find_file(weights)
    source = {"file": f"timm/{dino.TIMM_NAME}"} if file is None else {"file": file.name, "sha256": sha256(file)}
    return {"features": "DINOv2", SOURCE: source}


def describe_run(folder: str | Path) -> dict[str, Any]:
    """Returns the record of the encoder of a run of one of ENCODER_AGENTS.

    Raises:
        FileNotFoundError: If there is no run in the folder, or an unfinished one.
    """
    file = Path(folder) / checkpoint.WEIGHTS
    agent = checkpoint.load_description(folder)["agent"]
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: finish that training first")
    source = {"file": f"{file.parent.name}/{file.name}", "sha256": sha256(file)}
    return {"features": ENCODER_AGENTS[agent], SOURCE: source}
