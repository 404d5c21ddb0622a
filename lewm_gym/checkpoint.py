"""Run folders: weights as safetensors, everything else as JSON; no pickles.

A run folder is complete:

    run.json                  description: agent, task, configuration, normalisation, dataset and its hash, versions
    weights.safetensors       the weights for acting
    log.jsonl                 one line per logged step
    checkpoint.safetensors    the training state: parameters, optimiser, step
    .lock                     held by the training process

Each file except the log contains the SHA-256 of its other content, which is checked when it is read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from lewm_gym.files import SEAL, atomic_file, check_seal, read_json, sealed

SCHEMA = 2
_UNSEALED = 1  # the schema of runs without checksums: they are read as they are
DESCRIPTION = "run.json"
WEIGHTS = "weights.safetensors"
CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"

_AGAIN = "copy it again, or delete it and run the training's command again, which goes on from what is there"
_NO_DIGEST = "0" * 64  # stands in the file while it is hashed


def save_description(folder: Path, description: dict[str, Any]) -> None:
    """Writes `run.json` atomically."""
    record = {name: value for name, value in description.items() if name not in ("schema", SEAL)}
    text = json.dumps(sealed({"schema": SCHEMA, **record}), indent=2, allow_nan=False) + "\n"
    write_atomically(folder / DESCRIPTION, text.encode())


def load_description(folder: str | Path) -> dict[str, Any]:
    """Returns the content of `run.json`.

    Raises:
        FileNotFoundError: If there is no run in the folder.
        ValueError: If the file is damaged or of another schema.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"no run in {folder}: {DESCRIPTION} is missing; train one with `python -m agents`")
    description = read_json(path, "train the run again")
    if description.get("schema") not in (SCHEMA, _UNSEALED):
        raise ValueError(
            f"{path} has schema {description.get('schema')}, this version reads {SCHEMA}; train the run again"
        )
    if description["schema"] != _UNSEALED:
        check_seal(description, path, "copy it again, or train the run again")
    if not isinstance(description.get("agent"), str):
        raise ValueError(f"{path} has no agent; train the run again")
    return description


def save_tensors(path: Path, tensors: dict[str, Tensor], run: str = "") -> None:
    """Writes tensors and their checksum atomically.

    Args:
        path: Output file.
        tensors: By name.
        run: Identity of their run, which `load_tensors` can check.
    """
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    content = save(plain, {SEAL: f"{_NO_DIGEST} {run}"})  # one entry: several come in any order
    digest = hashlib.sha256(content).hexdigest()
    write_atomically(path, _replace_digest(content, _NO_DIGEST, digest))


def load_tensors(path: Path, run: str | None = None, foreign: bool = False) -> dict[str, Tensor]:
    """Returns the tensors of a file.

    Args:
        path: The file.
        run: The run that they must belong to; None for any.
        foreign: Whether the file may come from another program, or from a version without checksums, and is then not
            verified.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is damaged, or belongs to another run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the training has not finished; run the same command again")
    content = path.read_bytes()
    try:
        tensors = load(content)
        metadata = _metadata(content)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); {_AGAIN}") from None
    if SEAL in metadata or not foreign:
        digest, _, found = metadata.get(SEAL, "").partition(" ")
        if hashlib.sha256(_replace_digest(content, digest, _NO_DIGEST)).hexdigest() != digest:
            raise ValueError(
                f"{path} is damaged, or of a version without checksums (its SHA-256 does not fit); {_AGAIN}"
            )
        if run is not None and found != run:
            raise ValueError(f"{path} belongs to another run than the {DESCRIPTION} beside it: delete one of them")
    return tensors


def load_weights_of(folder: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors of the run that `load_description` has read; errors as for `load_tensors`."""
    return load_tensors(folder / WEIGHTS, foreign=description["schema"] == _UNSEALED)


def _metadata(content: bytes) -> dict[str, str]:
    """Returns the metadata in the header of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    return dict(header.get("__metadata__") or {})


def _replace_digest(content: bytes, old: str, new: str) -> bytes:
    """Returns the content of a safetensors file with another SHA-256 in its header."""
    return content.replace(f'"{SEAL}":"{old} '.encode(), f'"{SEAL}":"{new} '.encode(), 1)


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
    """Writes a file atomically."""
    with atomic_file(path) as file:
        file.write(content)
