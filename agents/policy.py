"""Goal-conditioned policies: pixels and a goal in, an action out, in one forward pass; for GCBC, GCIVL and GCIQL."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.actions import ActionModel
from agents.devices import choose_device
from agents.features_source import ENCODER_AGENTS, describe_dino, describe_run
from agents.lewm import LeWM, LeWMConfig
from agents.trainable import OnLoad, Trainable, of_description, split_samplers
from lewm_gym import checkpoint
from lewm_gym.agent import Agent
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.features import FeatureGoals, cached_features
from lewm_gym.data.goals import ACTOR_GOALS, VALUE_GOALS, GoalSampler
from lewm_gym.nn import dino
from lewm_gym.nn.conv import ConvEncoder
from lewm_gym.nn.frozen import freeze
from lewm_gym.nn.goal_conditioned import MLP, PatchReader, concat_goal
from lewm_gym.nn.images import to_network

ENCODERS = ("scratch", "lewm", "dino", "auto")


@dataclass(frozen=True)
class PolicyConfig:
    """Settings of all three methods; the sizes are OGBench's."""

    action_size: int = 2  # numbers in one action of the environment
    image_size: int = 56  # px that the encoder sees; with encoder "lewm", that model's
    encoder: str = "scratch"  # one of ENCODERS; auto: dino where there are weights, else scratch
    encoder_run: str = ""  # lewm: run folder of the LeWM or PLDM whose encoder to use
    encoder_config: dict[str, Any] | None = None  # lewm: its configuration, read from its run folder
    dino_weights: str = ""  # dino: file of the weights; empty: where lewm_gym.nn.dino looks
    cache_features: bool = True  # lewm, dino: compute features once, beside the dataset (lewm_gym/data/features.py)
    encoder_width: int = 256  # scratch, dino: width of what the networks get of a frame
    conv_channels: tuple[int, ...] = (64, 128, 128)  # scratch: channels after each stage
    hidden_widths: tuple[int, ...] = (512, 512, 512)  # of policy and value functions

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder must be one of {ENCODERS}, not {self.encoder!r}")
        if self.encoder == "lewm" and not self.encoder_run:
            raise ValueError("encoder lewm needs encoder_run, the run folder of a trained LeWM")
        if self.encoder != "lewm" and self.encoder_run:
            raise ValueError(f"encoder_run needs encoder lewm, not {self.encoder!r}")
        if min(self.action_size, self.image_size, self.encoder_width, *self.hidden_widths) < 1:
            raise ValueError("action_size, image_size, encoder_width and hidden_widths must be at least 1")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Returns the configuration that `dataclasses.asdict` wrote."""
        lists = ("conv_channels", "hidden_widths")
        return cls(**{**values, **{name: tuple(values[name]) for name in lists}})


class Observer(nn.Module):
    """The encoder of frames: a fixed part, `prepare`, and a trained part, `trained`.

    Attributes:
        trained: Maps the output of `prepare` to (n, output_width).
        frozen: Encoder of a trained model, or None.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        self.frozen: nn.Module | None = None
        self.trained: nn.Module
        self.output_width = config.encoder_width
        if config.encoder == "scratch":
            convolutions = ConvEncoder(config.image_size, config.conv_channels, config.encoder_width)
            self.trained = nn.Sequential(convolutions, nn.GELU())
        elif config.encoder == "dino":
            self.frozen = freeze(dino.make_vit(config.image_size))
            n_patches = (config.image_size // dino.PATCH_SIZE) ** 2
            self.trained = nn.Sequential(PatchReader(n_patches, dino.WIDTH, config.encoder_width), nn.GELU())
        else:
            assert config.encoder_config is not None, "filled in by PolicyAgent.complete"
            model = LeWM(LeWMConfig.from_json(config.encoder_config))
            self.frozen = freeze(nn.Sequential(model.encoder, model.projector))
            self.trained, self.output_width = nn.Identity(), model.config.latent_size

    def prepare(self, pixels: Tensor) -> Tensor:
        """Returns the input of `trained` for frames (n, h, w, 3) uint8; cached features are returned unchanged."""
        if pixels.is_floating_point():
            return pixels.float()
        images = to_network(pixels, self.image_size)
        if self.frozen is None:
            return images
        with torch.no_grad():
            if isinstance(self.frozen, dino.ViT):
                return self.frozen.tokens(images)[:, 1:]
            latents: Tensor = self.frozen(images)
            return latents


class GoalPolicy(ActionModel):
    """The policy network; subclasses implement the losses.

    Args:
        config: Sizes.
        observer: An observer in place of the configured one.
    """

    def __init__(self, config: PolicyConfig, observer: Any = None) -> None:
        super().__init__(config.action_size)
        self.config = config
        self.observer = Observer(config) if observer is None else observer
        self.actor: Any = MLP(3 * self.observer.output_width, config.hidden_widths, config.action_size)

    def act(self, pixels: Tensor, goals: Tensor) -> Tensor:
        """Returns raw actions (n, action_size), the policy's means, for frames and goals (n, h, w, 3) uint8."""
        obs, goal = self.observer.trained(self.observer.prepare(torch.cat([pixels, goals]))).chunk(2)
        return self.denormalize_actions(self.actor(concat_goal(obs, goal)))


def target_copy(*modules: nn.Module) -> nn.ModuleList:
    """Returns a copy of modules without gradients, for targets."""
    return copy.deepcopy(nn.ModuleList(modules)).requires_grad_(False)


class PolicyAgent(Trainable, Agent):
    """A trained policy as a Gymnasium policy: no planner, no memory, no randomness.

    Args:
        model: A `GoalPolicy`; used in evaluation mode.
        description: The environment in the run folder: `action_low`, `action_high`, `frame_size`, and more.
        device: Where to compute.
    """

    def __init__(self, model: Any, description: dict[str, Any], device: str | torch.device = "cpu") -> None:
        super().__init__(description["action_low"], description["action_high"], description["frame_size"])
        self.model, self.description, self.device = model.to(device).eval(), description, torch.device(device)

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None, seed: int = 0) -> Self:
        """Returns the agent that was trained into a run folder.

        Args:
            folder: A run folder.
            device: Device; by default the best one available.
            seed: No effect: the agent executes the policy's mean.

        Raises:
            FileNotFoundError: If there is no finished run.
            ValueError: If the folder is damaged, or holds another agent's run.
        """
        return cls(*cls.read(folder), choose_device(device))

    def save(self, folder: str | Path) -> None:
        """Writes the agent into a run folder that `load` reads."""
        self.write(folder, self.model, self.description)

    def _react(self, pixels: NDArray[np.uint8], goals: NDArray[np.uint8]) -> NDArray[np.float32]:
        frames = [torch.from_numpy(np.ascontiguousarray(part)).to(self.device) for part in (pixels, goals)]
        # One by one on the CPU: products round differently for other batch shapes (see PlanningAgent._search).
        chunks = [part.split(1 if self.device.type == "cpu" else len(part)) for part in frames]
        with torch.inference_mode():
            actions = torch.cat([self.model.act(*chunk) for chunk in zip(*chunks, strict=True)])
        return actions.float().cpu().numpy()

    # Training (see Trainable) --------------------------------------------------------------------------------

    @classmethod
    def resolve_config(cls, config: Any, dataset: Dataset) -> Any:
        """Returns the configuration with the action size and the available encoder.

        Raises:
            FileNotFoundError: If there is no run in `encoder_run`.
            ValueError: If that run is another agent's or another task's, or cannot be read.
        """
        config = super().resolve_config(config, dataset)
        if config.encoder == "auto":
            found = dino.available() or config.dino_weights
            if not found:
                warnings.warn("no DINOv2 weights found: the encoder is trained from scratch", stacklevel=2)
            config = dataclasses.replace(config, encoder="dino" if found else "scratch")
        if config.encoder != "lewm":
            return config
        run = checkpoint.load_description(config.encoder_run)
        if run.get("agent") not in ENCODER_AGENTS:
            known = " or ".join(ENCODER_AGENTS)
            raise ValueError(f"encoder_run must be a run of {known}; {config.encoder_run} is one of {run.get('agent')}")
        if run.get("task") != dataset.task:
            raise ValueError(
                f"encoder_run {config.encoder_run} was trained on {run.get('task')}; this dataset is of {dataset.task}"
            )
        model = of_description(Path(config.encoder_run), run, "model", _encoder_config)
        return dataclasses.replace(config, encoder_config=dataclasses.asdict(model), image_size=model.image_size)

    @classmethod
    def initialise(cls, model: Any) -> None:
        """Loads the weights of a frozen encoder."""
        config, frozen = model.config, model.observer.frozen
        if config.encoder == "dino":
            dino.load_weights(frozen, config.dino_weights)
        elif config.encoder == "lewm":
            folder = Path(config.encoder_run)
            path, run = folder / checkpoint.WEIGHTS, checkpoint.load_description(folder)
            tensors = checkpoint.load_weights_of(folder, run)
            wanted = {"encoder.": "0.", "projector.": "1."}
            parts = {
                ours + name.removeprefix(theirs): tensor
                for theirs, ours in wanted.items()
                for name, tensor in tensors.items()
                if name.startswith(theirs)
            }
            checkpoint.load_weights(frozen, parts, str(path))

    @classmethod
    def describe(cls, config: Any) -> dict[str, Any]:
        """Returns the encoder that the run uses."""
        if config.encoder == "lewm":
            return describe_run(config.encoder_run)
        if config.encoder == "dino":
            return describe_dino(config.dino_weights)
        return {"features": "trained with the policy"}

    @classmethod
    def samplers(cls, dataset: Dataset, model: Any, seed: int, on_load: OnLoad | None) -> tuple[Any, Any]:
        """Returns transitions with hindsight goals, of training and of held-out episodes."""
        value_goals = dataclasses.replace(VALUE_GOALS, discount=getattr(model.config, "discount", VALUE_GOALS.discount))

        options = (value_goals, ACTOR_GOALS, seed)
        frozen, prepare = model.observer.frozen, model.observer.prepare
        if frozen is not None and model.config.cache_features:
            features = cached_features(dataset, frozen, prepare, on_load)
            return split_samplers(dataset, lambda episodes: FeatureGoals(features, dataset, episodes, *options), None)

        def sampler(episodes: Any) -> GoalSampler:
            return GoalSampler(dataset, episodes, *options, model.config.image_size)

        return split_samplers(dataset, sampler, on_load)


def _encoder_config(values: dict[str, Any]) -> LeWMConfig:
    """Returns LeWM's part of the configuration in `run.json`; the rest of a PLDM's belongs to its loss."""
    names = {field.name for field in dataclasses.fields(LeWMConfig)}
    return LeWMConfig.from_json({name: value for name, value in values.items() if name in names})
