"""`python -m agents export RUN --onnx FOLDER`: a run's networks as ONNX, each checked against torch.

    encoder.onnx   pixels (n, h, w, 3) uint8                        -> latents (n, Z)
    rollout.onnx   latent (1, Z), actions (S, H, A) z-scored        -> predicted (S, H, Z)
    rollout_short.onnx, with the planner guided                     the same, half as many blocks
    actor.onnx     latents (n, Z), goals (n, Z), steps_left (n,)    -> mean (n, A), std (n, A), estimate (n,)

Each file's metadata hold, as JSON under `lewm_gym`, what acting needs besides: action bounds and statistics, frame
size, frame skip, how to plan. `lewm_gym.onnx.OnnxAgent` acts from them.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import lewm_gym
from agents.lewm import LeWMAgent
from agents.pretrained import locate
from lewm_gym import checkpoint
from lewm_gym.commands import Command, Settings, argument, option
from lewm_gym.files import atomic_folder, sha256
from lewm_gym.nn.images import IMAGENET_MEAN, IMAGENET_STD
from lewm_gym.nn.unrolled import Unrolled
from lewm_gym.onnx import ACTOR, ENCODER, METADATA, PLANNERS, ROLLOUT, SCHEMA, SHORT_ROLLOUT, open_network

_OPSET = 18
_TOLERANCE = 1e-3  # of the largest number of an output
_CANDIDATES = 37  # that the rollout is checked with; it was traced with others


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Writes a run's networks as ONNX, for `lewm_gym.onnx.OnnxAgent`, which needs numpy and onnxruntime alone."""

    run: str = argument("run folder of LeWM, or the name of an agent that ships (two_room, ...)")
    onnx: Path | None = option(None, "folder to write; there must be none of that name", metavar="FOLDER")
    planning: Settings = option(
        {}, f"plan in another way than the run says, e.g. --planning planner=guided; planners: {', '.join(PLANNERS)}"
    )

    def __call__(self) -> int:
        """Exports and says what was written."""
        folder = self.export()
        size = sum(file.stat().st_size for file in folder.iterdir())
        names = ", ".join(sorted(file.name for file in folder.iterdir()))
        print(f"{folder}: {names}, {size / 1e6:.1f} MB; in Python: lewm_gym.onnx.OnnxAgent.load({str(folder)!r})")
        return 0

    def export(self) -> Path:
        """Returns the folder with the files, which is there when all of them compute what torch computes.

        Raises:
            FileNotFoundError: If there is no finished run.
            ImportError: Without onnx and onnxruntime.
            ValueError: If the run is not LeWM's, plans in a way that is not exported, the folder exists, or a file does
                not compute what torch does.
        """
        if self.onnx is None:
            raise ValueError(f"where to? python -m agents export {self.run} --onnx FOLDER")
        run = locate(self.run)
        agent = LeWMAgent.load(run, device="cpu", planning=self.planning)
        export_agent(agent, self.onnx, sha256(run / checkpoint.WEIGHTS))
        return self.onnx


def export_agent(agent: LeWMAgent, folder: Path, weights: str = "") -> None:
    """Writes the networks of an agent, and checks them.

    Args:
        agent: On the CPU.
        folder: There must be none of that name.
        weights: What names the weights that it has.

    Raises:
        ImportError: Without onnx and onnxruntime.
        ValueError: As `Export.export`.
    """
    check_planning(agent)
    description = _described(agent, weights)
    with atomic_folder(folder) as temporary:
        for name, network in _networks(agent).items():
            _write(network, temporary / name, description)
            _check(network, temporary / name)


class _Network(NamedTuple):
    """A network to export.

    Attributes:
        module: In evaluation mode.
        inputs: Name -> makes an input of so many rows.
        outputs: Their names.
        rows: Inputs whose rows may be any number.
    """

    module: nn.Module
    inputs: dict[str, Callable[[int], Tensor]]
    outputs: tuple[str, ...]
    rows: tuple[str, ...]


def _networks(agent: LeWMAgent) -> dict[str, _Network]:
    model, size = agent.model, agent.frame_size
    latent, block = model.config.latent_size, model.config.action_block_size

    def frames(n: int) -> Tensor:
        return torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8)

    def latents(n: int) -> Tensor:
        return torch.randn(n, latent)

    def rollout(horizon: int) -> _Network:
        inputs = {"latent": lambda n: latents(1), "actions": lambda n: torch.randn(n, horizon, block)}
        module = Unrolled(model._prepared(torch.float32)) if model.prefix is None else _PrefixRollout(model.prefix)
        return _Network(module, inputs, ("predicted",), ("actions",))

    horizon = agent.planning.horizon_blocks
    networks = {
        ENCODER: _Network(_Encoder(model, size), {"pixels": frames}, ("latents",), ("pixels",)),
        ROLLOUT: rollout(horizon),
    }
    if agent.planning.planner_name == "guided":  # whose plans get shorter as the goal comes near
        networks[SHORT_ROLLOUT] = rollout((horizon + 1) // 2)
    if agent.planning.needs_actor:
        inputs = {"latents": latents, "goals": latents, "steps_left": lambda n: torch.rand(n) * 50}
        networks[ACTOR] = _Network(_Actor(model.actor), inputs, ("mean", "std", "estimate"), tuple(inputs))
    return networks


class _Encoder(nn.Module):
    """`LeWM.encode` of frames of one size, in operations that ONNX has: float32 holds these integers exactly."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, frame_size: int) -> None:
        super().__init__()
        self.encoder, self.projector = model.encoder, model.projector
        self.size, self.factor = model.config.image_size, frame_size // model.config.image_size
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.float()
        if self.factor > 1:
            blocks = images.reshape(-1, self.size, self.factor, self.size, self.factor, 3)
            area = self.factor**2
            images = torch.floor((blocks.sum(dim=(2, 4)) + area // 2) / area)
        images = (images - self.mean) / self.std
        return self.projector(self.encoder(images.permute(0, 3, 1, 2)))  # type: ignore[no-any-return]


class _PrefixRollout(nn.Module):
    """`LeWM.rollout` of many candidates from one latent, with a predictor of several blocks at once."""

    def __init__(self, prefix: nn.Module) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, latent: Tensor, actions: Tensor) -> Tensor:
        return self.prefix(latent.expand(actions.shape[0], -1), actions)  # type: ignore[no-any-return]


class _Actor(nn.Module):
    def __init__(self, actor: Any) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, latents: Tensor, goals: Tensor, steps_left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return *self.actor(latents, goals, steps_left), self.actor.steps_left(latents, goals).float()


def check_planning(agent: LeWMAgent) -> None:
    """Raises ValueError, saying what to change, for a way to plan that `OnnxAgent` has not."""
    planning = agent.planning
    if planning.planner_name not in PLANNERS:
        raise ValueError(
            f"the planner {planning.planner_name} is not exported: choose with --planning planner=NAME, "
            f"one of: {', '.join(PLANNERS)}"
        )
    for name in ("context_frames", "warm_start", "consistency_weight", "precision"):
        default = type(planning).__dataclass_fields__[name].default
        if getattr(planning, name) != default:
            raise ValueError(
                f"{name}={getattr(planning, name)} is not exported: plan with --planning {name}={json.dumps(default)}"
            )


def _described(agent: LeWMAgent, weights: str) -> dict[str, Any]:
    """Returns what every file says."""
    config = agent.model.config
    return {
        "schema": SCHEMA,
        "agent": agent.name,
        "task": agent.description["task"],
        "weights": weights,
        "version": lewm_gym.__version__,
        "frame_size": agent.frame_size,
        "frame_skip": config.frame_skip,
        "action_low": agent.action_low.tolist(),
        "action_high": agent.action_high.tolist(),
        "action_mean": agent.model.action_mean.tolist(),
        "action_std": agent.model.action_std.tolist(),
        "planning": {**agent.planning.to_json(), "search": dataclasses.asdict(agent.planning.search)},
    }


def _write(network: _Network, path: Path, description: dict[str, Any]) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401  # what is written is checked with it
    except ImportError:
        raise ImportError("exporting needs onnx and onnxruntime: pip install 'lewm-gym[onnx]'") from None
    inputs = tuple(make(2) for make in network.inputs.values())
    names = [*network.rows, *network.outputs]
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # of what tracing holds fixed, and that this exporter is the older one
        torch.onnx.export(
            network.module.eval(),
            inputs,
            str(path),
            dynamo=False,
            opset_version=_OPSET,
            input_names=list(network.inputs),
            output_names=list(network.outputs),
            dynamic_axes={name: {0: "rows"} for name in names},
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {METADATA: json.dumps(description)})
    onnx.save(model, str(path))


def _check(network: _Network, path: Path) -> None:
    """Raises ValueError unless a file computes what torch does, for other numbers of rows than it was traced with."""
    session = open_network(path)
    for rows in (1, _CANDIDATES if "latent" in network.inputs else 5):
        inputs = {name: make(rows) for name, make in network.inputs.items()}
        with torch.inference_mode():
            expected = network.module(*inputs.values())
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for one, other in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
            wanted = other.numpy()
            error, largest = np.abs(one - wanted).max(), max(1.0, np.abs(wanted).max())
            if one.shape != wanted.shape or not error <= _TOLERANCE * largest:
                raise ValueError(f"{path.name} differs from torch by {error:.2g} in numbers of at most {largest:.2g}")
