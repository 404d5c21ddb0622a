"""LeWorldModel (arXiv 2603.19312): a world model trained end to end from pixels, and an agent that plans with it.

The model, in the order of the paper:

    z_t      = enc(o_t)                                  encoder and projector           encode
    z^_{t+1} = pred(z_{t-N+1..t}, a_{t-N+1..t})          causal, conditioned on actions  predict
    L        = mean((z^_{t+1} - z_{t+1})^2) + lambda * SIGReg(z)                         loss

There is no stop-gradient, no moving average of weights and no reward; augmentation and reconstruction are optional
(`image_shift`, `decoder_weight`). Planning minimises the squared distance between the
last predicted latent and the goal's (agents/planning.py).

Beyond the paper, all off in the preset `paper`:

    predictor="prefix"  z^_{t+1..t+H} in one call                            (Fast-LeWM, lewm_gym/nn/prefix.py)
    residual            z^_{t+1} = z_t + pred(...)                           (AD-WM, arXiv 2609.30264)
    inverse_weight      || g(z_t, z^_{t+1}) - sg(e_a) ||^2                   AD-WM's inverse head, e_a embeds actions
    information_weight  1/2 || e - mu(z_t, z^_{t+1}) ||^2 + 0.005 || mu ||^2 AD-WM's other head, e = e_a standardised
    actor_steps         a goal-conditioned actor, trained by imitation       (lewm_gym/nn/actor.py)

The actor is an action prior for the planners `actor`, `guided`, `arcem` and `fused`. With `imitation_weight` it is
trained jointly with the world model, including the encoder; otherwise afterwards, on the frozen latents. Its estimate
of the steps left is always trained on the frozen latents (agents/imitation.py).
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from agents.actions import ActionModel, candidate_blocks
from agents.devices import choose_device
from agents.imitation import LatentAgent
from agents.planning import PlanningConfig
from agents.trainable import Preset
from lewm_gym import checkpoint
from lewm_gym.data.hindsight import HindsightBatch
from lewm_gym.nn.actor import GoalActor, frame_pairs
from lewm_gym.nn.conv import ConvEncoder
from lewm_gym.nn.decoder import PatchDecoder
from lewm_gym.nn.heads import ActionEncoder, ActionHeads, ProjectionHead
from lewm_gym.nn.images import shifted, to_network
from lewm_gym.nn.predictor import Predictor
from lewm_gym.nn.prefix import PrefixPredictor
from lewm_gym.nn.resnet import ResNet18
from lewm_gym.nn.rollout import Rollout
from lewm_gym.nn.sigreg import SIGReg
from lewm_gym.nn.vit import ViT
from lewm_gym.planning.cem import CEMConfig
from lewm_gym.tasks import IMAGE_SIZE, get_task
from lewm_gym.training import TrainingConfig
from lewm_gym.types import Batch

ENCODERS = ("vit", "resnet18", "conv")
PREDICTORS = ("causal", "prefix")


@dataclass(frozen=True)
class LeWMConfig:
    """Architecture and loss of LeWM; the defaults are the paper's (preset `paper`), the rest its ablations."""

    action_size: int = 2  # numbers in one action of the environment
    frame_skip: int = 5  # environment steps between two frames, and actions in a block
    context: int = 3  # most frames that the predictor sees, N
    image_size: int = 224  # px that the encoder sees; larger frames are averaged down to it
    encoder: str = "vit"  # one of ENCODERS
    encoder_width: int = 192  # vit, conv; that of resnet18 is 512
    encoder_depth: int = 12  # vit: blocks
    encoder_heads: int = 3  # vit
    patch_size: int = 14  # px, vit
    conv_channels: tuple[int, ...] = (64, 128, 128)  # conv: channels after each stage
    conv_patch_size: int = 4  # px, of the first stage
    latent_size: int = 192  # Z
    projection_width: int = 2048  # hidden width of both projection heads
    predictor_width: int = 0  # of a token; 0: latent_size
    predictor_depth: int = 6
    predictor_heads: int = 16
    predictor_head_width: int = 64
    predictor_mlp_width: int = 2048
    dropout: float = 0.1  # in the predictor
    sigreg_weight: float = 0.09  # lambda; the released configuration's, 0.1 in the paper's text
    sigreg_directions: int = 1024
    sigreg_knots: int = 17
    decoder_weight: float = 0.0  # of the squared error of frames decoded from their latents; 0: no decoder
    decoder_width: int = 192
    decoder_depth: int = 3
    predictor: str = "causal"  # one of PREDICTORS; prefix predicts all blocks of a plan at once, from one frame
    predict_blocks: int = 5  # prefix: most blocks predicted at once, and those of a training clip
    prefix_depth: int = 6  # prefix: residual MLPs that each block modulates
    residual: bool = False  # predict what is added to the latest latent
    inverse_weight: float = 0.0  # of the head that tells the action from two latents; AD-WM: 0.1
    information_weight: float = 0.0  # of the mutual-information head; AD-WM: 0.01
    head_width: int = 1024  # hidden width of both heads
    image_shift: int = 0  # px; in training each clip is shifted by up to so many, both ways, all its frames alike
    imitation_weight: float = 0.0  # of an actor's loss while the world model is trained; 0: latents know no actor
    frames_every: int = 1  # N: train on every N-th frame of an episode, which saves memory
    goal_frames: int = 2  # with imitation_weight: later frames drawn with each clip
    goal_steps: int = 50  # greatest distance of a hindsight goal, environment steps
    actor_steps: int = 0  # of the second stage, on frozen latents (steps left; actor, if not yet trained); 0: no actor
    actor_batch_size: int = 1024  # pairs of latents
    actor_learning_rate: float = 1e-3
    actor_width: int = 512
    actor_depth: int = 3

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder must be one of {ENCODERS}, not {self.encoder!r}")
        if self.predictor not in PREDICTORS:
            raise ValueError(f"predictor must be one of {PREDICTORS}, not {self.predictor!r}")
        if self.predictor == "prefix" and (self.context != 1 or self.residual or self.has_heads):
            raise ValueError(
                "the prefix predictor sees one frame, is residual by itself and has no heads: "
                "set context=1, and leave out residual, inverse_weight and information_weight"
            )
        for field in dataclasses.fields(self):
            least = 0 if field.name in ("predictor_width", "actor_steps", "image_shift") else 1
            if field.type == "int" and getattr(self, field.name) < least:
                raise ValueError(f"{field.name} must be at least {least}, got {getattr(self, field.name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        for name in ("sigreg_weight", "decoder_weight", "inverse_weight", "information_weight", "imitation_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, nor infinite, got {getattr(self, name)}")
        if self.imitation_weight and not self.actor_steps:
            raise ValueError("imitation_weight needs an actor: set actor_steps, such as 3000")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LeWMConfig:
        """Returns the configuration that `dataclasses.asdict` wrote."""
        return cls(**{**values, "conv_channels": tuple(values["conv_channels"])})

    @property
    def acting(self) -> LeWMConfig:
        """Returns the configuration without the parts that only training uses: the decoder and AD-WM's heads."""
        return dataclasses.replace(self, decoder_weight=0.0, inverse_weight=0.0, information_weight=0.0)

    @property
    def has_heads(self) -> bool:
        """Whether AD-WM's heads are trained."""
        return bool(self.inverse_weight or self.information_weight)

    @property
    def clip_frames(self) -> int:
        """Frames of a training clip, T."""
        return 1 + (self.predict_blocks if self.predictor == "prefix" else self.context)

    @property
    def action_block_size(self) -> int:
        """Numbers in one block of actions, A."""
        return self.frame_skip * self.action_size


class LeWM(ActionModel):
    """The world model."""

    def __init__(self, config: LeWMConfig) -> None:
        super().__init__(config.action_size, config.frame_skip)
        self.config = config
        self.encoder = _make_encoder(config)
        self.projector = ProjectionHead(self.encoder.output_width, config.projection_width, config.latent_size)
        width = config.predictor_width or config.latent_size
        sizes = config.predictor_depth, config.predictor_heads, config.predictor_head_width, config.predictor_mlp_width
        self.prefix: PrefixPredictor | None = None
        if config.predictor == "prefix":
            ends = config.latent_size, config.action_block_size, config.predict_blocks, width
            self.prefix = PrefixPredictor(*ends, *sizes, config.prefix_depth, config.dropout)
        else:
            self.action_encoder = ActionEncoder(config.action_block_size, width)
            self.predictor = Predictor(width, config.context, *sizes, config.dropout, config.latent_size)
            self.prediction_projector = ProjectionHead(width, config.projection_width, config.latent_size)
        self.sigreg = SIGReg(config.sigreg_directions, config.sigreg_knots)
        self.decoder: PatchDecoder | None = None
        if config.decoder_weight:
            self.decoder = PatchDecoder(
                config.latent_size, config.image_size, width=config.decoder_width, depth=config.decoder_depth
            )
        wanted = bool(config.inverse_weight), bool(config.information_weight)
        self.heads = ActionHeads(config.latent_size, width, config.head_width, *wanted)
        self.actor: GoalActor | None = None
        if config.actor_steps:
            sizes = config.latent_size, config.action_size, config.frame_skip, config.goal_steps
            self.actor = GoalActor(*sizes, config.actor_width, config.actor_depth)
        self._rollouts: dict[torch.dtype, Rollout] = {}

    def encode(self, pixels: Tensor) -> Tensor:
        """Returns latents (..., Z) of frames (..., h, w, 3) uint8."""
        images = to_network(pixels.flatten(0, -4), self.config.image_size)
        return self.projector(self.encoder(images)).view(*pixels.shape[:-3], -1)

    def predict(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Returns the next latents: (B, N, Z) and z-scored action blocks (B, N, A) -> (B, N, Z).

        Output t predicts the latent after latent t and block t, from inputs up to t.
        """
        if self.prefix is not None:  # each latent alone, one block ahead
            return self.prefix(latents.flatten(0, 1), actions.flatten(0, 1).unsqueeze(1)).view_as(latents)
        predicted = self.prediction_projector(self.predictor(latents, self.action_encoder(actions)))
        return latents + predicted if self.config.residual else predicted

    def loss(self, batch: Batch | HindsightBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the training loss of a batch of clips, and its parts."""
        config = self.config
        pixels = shifted(batch.pixels, config.image_shift) if self.training else batch.pixels
        seen = self.encode(pixels)  # of a clip, and of later frames where an actor is trained jointly
        latents, actions = seen[:, : batch.actions.shape[1] + 1], self.normalize_actions(batch.actions)
        if self.prefix is not None:
            predicted = self.prefix(latents[:, 0], actions)
        else:
            predicted = self.predict(latents[:, :-1], actions)
        parts = {
            "prediction": (predicted - latents[:, 1:]).float().square().mean(),
            "sigreg": self.sigreg(seen.transpose(0, 1)),
        }
        weights = {"prediction": 1.0, "sigreg": config.sigreg_weight}
        if self.decoder is not None:
            images = to_network(pixels.flatten(0, 1), config.image_size)
            parts["reconstruction"] = (self.decoder(seen.flatten(0, 1)) - images).float().square().mean()
            weights["reconstruction"] = config.decoder_weight
        if config.has_heads:
            embedded = self.action_encoder(actions).detach()
            parts |= self.heads(latents[:, :-1], predicted, embedded)
            weights |= {"inverse": config.inverse_weight, "information": config.information_weight}
        if isinstance(batch, HindsightBatch):
            assert self.actor is not None
            parts["imitation"] = self.imitation(seen, batch)
            weights["imitation"] = config.imitation_weight
        return sum((weights[name] * part for name, part in parts.items()), torch.zeros(())), parts

    def imitation(self, latents: Tensor, batch: HindsightBatch) -> Tensor:
        """Returns the actor's loss over all ordered pairs of the frames of each clip, (B, T + G, Z)."""
        assert self.actor is not None
        actions = self.normalize_actions(batch.next_actions, missing=math.nan)
        return self.actor.imitation_loss(*frame_pairs(latents, batch.steps, actions))

    def rollout(self, latents: Tensor, actions: Tensor, past_actions: Tensor | None = None) -> Tensor:
        """Returns predicted latents (B, S, H, Z) of candidate plans, float32.

        Each block's prediction joins the context of the next, which keeps the last N frames. Computed by
        `lewm_gym.nn.rollout` with weights rearranged once; under autocast, matrix products in its precision.

        Args:
            latents: (B, n, Z), the past and, last, the current one, n <= N.
            actions: (B, S, H, A), z-scored.
            past_actions: (B, n - 1, A), z-scored, taken between the given frames; None for n = 1.

        Raises:
            ValueError: In training mode, where BatchNorm would mix the candidates.
        """
        if self.training:
            raise ValueError("the model is in training mode: call model.eval() before planning with it")
        n_envs, n_samples = actions.shape[:2]
        if self.prefix is not None:
            start = latents[:, -1].repeat_interleave(n_samples, dim=0)
            return self.prefix(start, actions.flatten(0, 1)).float().unflatten(0, (n_envs, n_samples))
        blocks = candidate_blocks(actions, past_actions)
        kind = actions.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        with torch.autocast(kind, enabled=False):
            predicted = self._prepared(dtype)(latents.repeat_interleave(n_samples, dim=0), blocks)
        return predicted.unflatten(0, (n_envs, n_samples))

    def _prepared(self, dtype: torch.dtype) -> Rollout:
        """Returns the rollout with the current weights, created again only if they have changed."""
        rollout = self._rollouts.get(dtype)
        if rollout is None or not rollout.is_current:
            rollout = Rollout(
                self.action_encoder, self.predictor, self.prediction_projector, dtype, self.config.residual
            )
            self._rollouts[dtype] = rollout
        return rollout


def _make_encoder(config: LeWMConfig) -> ViT | ResNet18 | ConvEncoder:
    if config.encoder == "vit":
        width = config.encoder_width
        return ViT(config.image_size, config.patch_size, width, config.encoder_depth, config.encoder_heads, 4 * width)
    if config.encoder == "resnet18":
        return ResNet18()
    return ConvEncoder(config.image_size, config.conv_channels, config.encoder_width, config.conv_patch_size)


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        LeWMConfig(),
        PlanningConfig(),
        TrainingConfig(steps=100_000, precision="bf16", seed=3072),
    ),
    # Minutes on two CPU cores. Frames averaged down to 56 px and a convolutional encoder: a small ViT of the same
    # cost learns several times more slowly.
    "laptop": Preset(
        LeWMConfig(
            image_size=56,
            encoder="conv",
            encoder_width=256,
            latent_size=32,
            projection_width=256,
            predictor_depth=2,
            predictor_heads=4,
            predictor_head_width=32,
            predictor_mlp_width=256,
            dropout=0.0,
            sigreg_directions=256,
        ),
        PlanningConfig(CEMConfig(n_iterations=10)),
        TrainingConfig(steps=1000, learning_rate=1e-3, schedule="cosine", checkpoint_every_s=15.0),
    ),
}
# As `laptop`, with an actor that the search begins with.
PRESETS["guided"] = Preset(
    dataclasses.replace(
        PRESETS["laptop"].model, latent_size=128, sigreg_directions=512, imitation_weight=1.0, actor_steps=1500
    ),
    PlanningConfig().changed({"planner": "guided"}),
    dataclasses.replace(PRESETS["laptop"].training, steps=3000, checkpoint_every_s=60.0),
)


#: What the preset `guided` changes for a task: the recipe that reached most on it (docs/training.md).
RECIPES: dict[str, dict[str, Any]] = {
    # Goals 25 steps away need a third of the steps; those across rooms, twice as far, need all.
    "two_room": {"steps": 2000, "goal_steps": 100},
    "pusht": {"steps": 6000, "frames_every": 5},  # of 20,000 episodes; all their frames would not fit into memory
    # One frame shows no velocities, hence the earlier ones.
    "reacher": {"steps": 2000, "context_frames": 3},
    # Of 600 episodes. Search around the actor gains nothing (docs/results/cube.md).
    "cube": {"residual": True, "information_weight": 0.01, "image_shift": 2, "planner": "actor"},
}


class LeWMAgent(LatentAgent):
    """LeWM as a Gymnasium policy: `agent = LeWMAgent.load("runs/demo")`, then `agent.act(obs)` at every step."""

    name = "lewm"
    presets = PRESETS
    recipes = RECIPES
    model_class = LeWM
    config_class = LeWMConfig

    def push_to_hub(self, repository: str, private: bool = False) -> str:
        """Uploads the agent to the Hugging Face Hub, where `from_pretrained(repository)` finds it; returns the address.

        Raises:
            ImportError: If `huggingface_hub` is not installed.
        """
        from agents import pretrained

        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            return pretrained.push(Path(folder), repository, private)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        task: str | None = None,
        action_mean: Any = None,
        action_std: Any = None,
        dataset: str | Path | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> Self:
        """Returns a pretrained agent of the package, the agent of a run folder, local or on the Hub, or a released one.

        `from_pretrained("two_room")` needs no network (agents/shipping.py).

        Released weights come in stable-worldmodel's format. Such a checkpoint contains neither its task nor the
        normalisation of actions: give the task, and the mean and standard deviation of its training actions, or a
        dataset to take them from.

        Args:
            folder: The name of a pretrained agent (a task's), a folder with a run or with released weights and
                config.json, or an id on the Hugging Face Hub.
            task: Name of the task that released weights were trained for.
            action_mean: (action_size,).
            action_std: (action_size,).
            dataset: A dataset of `python -m collect` whose statistics to use instead.
            device: Device; by default the best one available.
            seed: Seed of the planner's random streams.

        Raises:
            FileNotFoundError: If there is no such checkpoint.
            ValueError: If it is not LeWM's, or the normalisation is missing.
        """
        from agents import pretrained

        path = pretrained.locate(folder)
        if (path / checkpoint.DESCRIPTION).is_file():
            return cls.load(path, device, seed)
        if task is None:
            raise ValueError("a released checkpoint does not say its task: give task=")
        return cls._from_released(path, task, action_mean, action_std, dataset, device, seed)

    @classmethod
    def _from_released(
        cls,
        path: Path,
        task: str,
        action_mean: Any,
        action_std: Any,
        dataset: str | Path | None,
        device: str | None,
        seed: int,
    ) -> Self:
        from agents import pretrained

        action_size = get_task(task).action_size
        tensors, settings = pretrained.read(path)
        tensors = pretrained.convert(tensors)
        model = LeWM(LeWMConfig(**pretrained.infer_config(tensors, settings, action_size)))
        if dataset is not None:
            from lewm_gym.data.dataset import Dataset

            opened = Dataset.open(dataset)
            action_mean, action_std = opened.action_mean, opened.action_std
        if action_mean is None or action_std is None:
            raise ValueError("a released checkpoint needs action_mean and action_std, or dataset= to take them from")
        tensors["action_mean"] = torch.as_tensor(action_mean, dtype=torch.float32)
        tensors["action_std"] = torch.as_tensor(action_std, dtype=torch.float32)
        checkpoint.load_weights(model, tensors, str(path))
        description = {
            "agent": cls.name,
            "task": task,
            "preset": "paper",
            "model": dataclasses.asdict(model.config),
            "pretrained": str(path),
            "frame_size": IMAGE_SIZE,
            "action_low": [-1.0] * action_size,
            "action_high": [1.0] * action_size,
            "finished": True,
        }
        return cls(model, PRESETS["paper"].planning, description, choose_device(device), seed)
