"""Pretrained agents in the package, which `LeWMAgent.from_pretrained("two_room")` loads without a network.

Each is a run folder in `shipped/`, one per task, created by `python -m agents ship RUN --result FILE`: float16 weights
without the parts that only training needs, and a `run.json` that includes the result and its origin.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lewm_gym
from agents.lewm import LeWM, LeWMAgent
from agents.pretrained import SHIPPED
from lewm_gym import checkpoint, provenance
from lewm_gym.commands import Command, argument, option
from lewm_gym.files import SEAL, atomic_folder, sha256
from lewm_gym.results import Result

MOST_BYTES = 5_000_000  # of an agent's folder


@dataclass(frozen=True, kw_only=True)
class Ship(Command):
    """Adds the agent of a finished run to the package, for `from_pretrained`; it replaces that of its task.

    It uses the planner of the given result, is stored in float16, and must not exceed 5 MB.
    """

    run: Path = argument("run folder, e.g. runs/two_room-lewm-0")
    result: Path = option(None, "result of `python -m benchmarks plan RUN`, JSON")
    out: Path | None = option(None, "folder (default: that of the task in the package)", metavar="FOLDER")

    def __call__(self) -> int:
        """Adds the run to the package and prints its folder."""
        folder = self.ship()
        size = sum(file.stat().st_size for file in folder.iterdir())
        rate = Result.load(self.result).success
        print(f"{folder}: {size / 1e6:.2f} MB, {rate} of {rate.episodes} pairs")
        return 0

    def ship(self) -> Path:
        """Returns the folder of the pretrained agent.

        Raises:
            FileNotFoundError: If there is no finished run, or no result.
            ValueError: If the run is not LeWM's, the result is not this run's on shipped pairs, or the agent is too
                large; the previous agent is kept then.
        """
        if self.result is None:
            raise ValueError(
                f"a shipped agent needs its result: python -m benchmarks plan {self.run}, then --result FILE"
            )
        model, description = LeWMAgent.read(self.run)
        result = _result_of(self.run, self.result)
        config = model.config.acting
        names, everything = LeWM(config).state_dict().keys(), model.state_dict()
        tensors = {name: _narrowed(name, everything[name]) for name in names}
        left_out = sorted({name.split(".")[0] for name in everything.keys() - names})
        description = self._describe(description, dataclasses.asdict(config), result, left_out)
        out = SHIPPED / result.task if self.out is None else self.out
        with atomic_folder(out.with_name(f"{out.name}.new")) as temporary:
            checkpoint.save_tensors(temporary / checkpoint.WEIGHTS, tensors, str(description.get("identity", "")))
            weights = sha256(temporary / checkpoint.WEIGHTS)
            description["shipped"]["weights"] = weights
            checkpoint.save_description(temporary, description)
            size = sum(file.stat().st_size for file in temporary.iterdir())
            if size > MOST_BYTES:
                raise ValueError(
                    f"{self.run} takes {size / 1e6:.1f} MB in float16, and an agent that ships at most "
                    f"{MOST_BYTES / 1e6:g}: train a smaller model"
                )
        shutil.rmtree(out, ignore_errors=True)
        out.with_name(f"{out.name}.new").rename(out)
        return out

    def _describe(
        self, description: dict[str, Any], model: dict[str, Any], result: Result, left_out: list[str]
    ) -> dict[str, Any]:
        """Returns what the shipped run says of itself: what `description` does, how it was measured and shipped."""
        planning = result.run["description"]["planning"]
        return {
            **{name: value for name, value in description.items() if name not in ("schema", SEAL)},
            "model": model,
            "planning": planning,
            "command": _relative(description.get("command", "")),
            "dataset": _relative_folder(description["dataset"]),
            "result": {
                "file": self.result.name,
                "planner": planning["planner"],
                **{name: getattr(result, name) for name in ("protocol", "offset_steps", "budget_steps", "seed")},
                "pairs": {name: result.pairs[name] for name in ("hash", "source", "count", "seed")},
                "success": dataclasses.asdict(result.success),
                "failed": [outcome.pair for outcome in result.outcomes if not outcome.success],
            },
            "shipped": {
                "version": lewm_gym.__version__,
                "command": _relative(provenance.command()),
                "from": sha256(self.run / checkpoint.WEIGHTS),
                "left_out": left_out,
            },
        }


def _result_of(run: Path, path: Path) -> Result:
    """Returns a run's result.

    Raises:
        ValueError: If it is another run's, or not on shipped pairs.
    """
    result = Result.load(path)
    if result.run.get("weights") != sha256(run / checkpoint.WEIGHTS):
        raise ValueError(f"{path} is the result of other weights than those in {run}: python -m benchmarks plan {run}")
    if result.protocol != "heldout" or result.pairs.get("source") != "shipped":
        raise ValueError(f"{path} is not on the task's own held-out pairs: python -m benchmarks plan {run}")
    if "steps_left" in result.metrics:
        raise ValueError(f"{path} was told the steps left, a shipped agent estimates them: leave out --steps-left")
    return result


def _narrowed(name: str, tensor: Tensor) -> Tensor:
    """Returns a weight in float16; vectors (biases, norms and their statistics) are not changed."""
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return tensor
    narrow = tensor.to(torch.float16)
    if not narrow.isfinite().all():
        raise ValueError(f"{name} has values beyond float16, of at most 65,504: train the run again")
    return narrow


def _relative(text: str) -> str:
    """Returns a command without the machine's own folders: only the last two names of absolute paths are kept."""
    return re.sub(r"(?<![^\s=])/(?:[^\s/]+/)*([^\s/]+/[^\s/]+)(?!\S)", r"\1", text)


def _relative_folder(dataset: dict[str, Any]) -> dict[str, Any]:
    return {**dataset, "folder": _relative(dataset["folder"])}
