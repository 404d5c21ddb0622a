"""Run folders: weights as safetensors, everything else as JSON; no pickles.

A run folder is complete:

    run.json                  what ran: agent, task, configuration, normalisation, dataset and its hash, versions
    weights.safetensors       what acts
    log.jsonl                 one line per logged step
    checkpoint.safetensors    what training resumes from: parameters, optimiser, step
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lewm_gym.files import atomic_file

SCHEMA = 1
DESCRIPTION = "run.json"
WEIGHTS = "weights.safetensors"
CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"


def save_description(folder: Path, description: dict[str, Any]) -> None:
    """Writes `run.json` atomically."""
    text = json.dumps({"schema": SCHEMA, **description}, indent=2, allow_nan=False) + "\n"
    write_atomically(folder / DESCRIPTION, text.encode())


def load_description(folder: str | Path) -> dict[str, Any]:
    """Returns what `run.json` says.

    Raises:
        FileNotFoundError: If there is no run in the folder.
        ValueError: If the file is damaged or of another schema.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"no run in {folder}: {DESCRIPTION} is missing; train one with `python -m agents`")
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); train the run again") from None
    if not isinstance(description, dict) or description.get("schema") != SCHEMA:
        found = description.get("schema") if isinstance(description, dict) else None
        raise ValueError(f"{path} has schema {found}, this version reads {SCHEMA}; train the run again")
    return description


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors atomically: a file of that name is always whole."""
    content = save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, metadata)
    write_atomically(path, content)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the training has not finished; run the same command again")
    try:
        return load_file(path)
    except SafetensorError as error:
        hint = "copy it again, or delete it and run the training's command again, which goes on from what is there"
        raise ValueError(f"{path} is damaged ({error}); {hint}") from None


def load_weights(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Loads weights strictly: every tensor in its place and of its shape.

    Raises:
        ValueError: If a tensor is missing, left over or of another shape.
    """
    expected = module.state_dict()
    missing = sorted(set(expected) - set(tensors))
    unexpected = sorted(set(tensors) - set(expected))
    shapes = [n for n in expected if n in tensors and expected[n].shape != tensors[n].shape]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{source} does not fit the model of its configuration: "
            f"{len(missing)} tensors missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}, "
            f"{len(shapes)} of another shape {shapes[:3]}"
        )
    module.load_state_dict(tensors)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that its name only ever shows whole contents."""
    with atomic_file(path) as file:
        file.write(content)
