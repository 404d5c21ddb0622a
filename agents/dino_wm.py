"""DINO-WM (arXiv 2411.04983): a world model over the patches of a frozen DINOv2, with LeWM's planning.

    z_t      = DINOv2(o_t)                                       patches, frozen           encode
    z^_{t+1} = pred(z_{t-2..t}, a_{t-2..t})                      causal over frames        predict
    L        = mean((z^_{t+1} - z_{t+1})^2)                                                loss

An embedding of the action block is appended to every patch of its frame. The cost of a plan is the squared distance
over all patches.

With `proprioception`, the proprioception p_t (z-scored) is embedded linearly into 10 numbers, e_t = E p_t, which are
also appended to every patch and predicted. Targets have no gradient:

    L    = (384 mean((z^_{t+1} - z_{t+1})^2) + 10 mean((e^_{t+1} - e_{t+1})^2)) / 394
    cost = mean((z^ - z_goal)^2) + alpha mean((e^ - e_goal)^2),   alpha = 1     (of a plan)

Differences:

- paper: 196 patches, of frames scaled to 196 px; here 256, of frames of 224 px, as LeWM sees them; preset `laptop` 16.
- paper: always with proprioception; here optional, off by default: pixels alone are "DINO-WM, pixels" in the LeWM
  paper's table, and the observation of every other agent.
- authors' code: each patch continues with its own prediction of e, and the cost uses the first patch's; here e^ is the
  mean over patches.
- authors' code: the predictor's last LayerNorm gives the prediction; here a linear layer `out` follows it, which also
  drops the action's numbers.
- paper: one block of 5 actions embedded linearly to 10 numbers; here z-scored first, as everywhere.
- `random_vit` is the same with random weights in place of DINOv2's: for tests, for timing, and as a control. Its runs
  and results always have that name.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.actions import ActionModel, candidate_blocks
from agents.features_source import describe_dino
from agents.planning import LatentCost, PlanningAgent, PlanningConfig
from agents.trainable import OnLoad, Preset, split_samplers
from lewm_gym.data.clips import ClipSampler
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.features import FeatureClips, cached_features
from lewm_gym.nn import dino
from lewm_gym.nn.frozen import freeze
from lewm_gym.nn.images import to_network
from lewm_gym.nn.patch_predictor import PatchPredictor
from lewm_gym.planning.cem import CEMConfig
from lewm_gym.training import TrainingConfig
from lewm_gym.types import Batch, ProprioceptiveBatch


@dataclass(frozen=True)
class DinoWMConfig:
    """Architecture; the defaults are the paper's (preset `paper`)."""

    action_size: int = 2  # numbers in one action of the environment
    frame_skip: int = 5  # environment steps between two frames, and actions in a block
    context: int = 3  # most frames that the predictor sees, N
    image_size: int = 224  # px that the encoder sees, a multiple of 14
    dino_weights: str = ""  # file of DINOv2's weights; empty: where lewm_gym.nn.dino looks
    cache_features: bool = False  # compute features once, beside the dataset: 0.75 KiB for each patch of a frame
    action_width: int = 10  # numbers that say the action block to each patch
    proprioception: bool = False  # use what the actor senses of itself, beside the patches
    proprioception_size: int = 0  # numbers sensed, k; filled in from the dataset
    proprioception_width: int = 10  # numbers that say them to each patch
    proprioception_weight: float = 1.0  # of their part of a plan's cost, alpha
    predictor_depth: int = 6
    predictor_heads: int = 16
    predictor_head_width: int = 64
    predictor_mlp_width: int = 2048
    dropout: float = 0.1  # in the predictor

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 0 if field.name == "proprioception_size" else 1
            if field.type == "int" and getattr(self, field.name) < least:
                raise ValueError(f"{field.name} must be at least {least}, got {getattr(self, field.name)}")
        if self.image_size % dino.PATCH_SIZE:
            raise ValueError(f"image_size must be a multiple of {dino.PATCH_SIZE} (56 or 224), got {self.image_size}")
        if not 0 <= self.proprioception_weight < float("inf"):
            raise ValueError(f"proprioception_weight must be at least 0, got {self.proprioception_weight}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be within [0, 1), got {self.dropout}")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DinoWMConfig:
        """Returns the configuration that `dataclasses.asdict` wrote."""
        return cls(**values)

    @property
    def n_patches(self) -> int:
        """Patches of a frame, P."""
        return (self.image_size // dino.PATCH_SIZE) ** 2

    @property
    def action_block_size(self) -> int:
        """Numbers in one block of actions, A."""
        return self.frame_skip * self.action_size


class DinoWM(ActionModel):
    """The world model. A latent is a frame's patches flattened, Z = P x 384; DINOv2 has random weights at first.

    With proprioception a latent ends in its embedding, Z = P x 384 + 10.
    """

    proprioception_mean: Tensor  # (k,), of the training set's
    proprioception_std: Tensor
    encoder_is_frozen = True  # its latents cannot collapse while training

    def __init__(self, config: DinoWMConfig) -> None:
        super().__init__(config.action_size, config.frame_skip)
        self.config = config
        self.encoder = freeze(dino.make_vit(config.image_size))
        self.action_encoder = nn.Linear(config.action_block_size, config.action_width)
        self.sensed_width = config.proprioception_width if config.proprioception else 0
        if config.proprioception:
            self.register_buffer("proprioception_mean", torch.zeros(config.proprioception_size))
            self.register_buffer("proprioception_std", torch.ones(config.proprioception_size))
            self.proprioception_encoder = nn.Linear(config.proprioception_size, config.proprioception_width)
        width = dino.WIDTH + self.sensed_width
        self.predictor = PatchPredictor(
            width + config.action_width,
            config.context,
            config.n_patches,
            config.predictor_depth,
            config.predictor_heads,
            config.predictor_head_width,
            config.predictor_mlp_width,
            config.dropout,
        )
        self.out = nn.Linear(width + config.action_width, width)

    def encode(self, pixels: Tensor, proprioception: Tensor | None = None) -> Tensor:
        """Returns latents (..., Z) of frames (..., h, w, 3) uint8, or of their cached features.

        Args:
            pixels: Frames or features.
            proprioception: (..., k), raw; for a model with proprioception only.

        Raises:
            ValueError: If proprioception is missing, or the model has none.
        """
        if (proprioception is not None) != self.config.proprioception:
            raise ValueError(f"this world model was made with proprioception={self.config.proprioception}")
        patches = self.features(pixels)
        if proprioception is None:
            return patches
        sensed = self.proprioception_encoder((proprioception - self.proprioception_mean) / self.proprioception_std)
        return torch.cat([patches, sensed.float()], dim=-1)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Returns the patches (..., P x 384) of frames (..., h, w, 3) uint8; cached features are returned unchanged."""
        if pixels.is_floating_point():
            return pixels.float()
        images = to_network(pixels.flatten(0, -4), self.config.image_size)
        return self.encoder.tokens(images)[:, 1:].flatten(1).view(*pixels.shape[:-3], -1)

    def predict(self, latents: Tensor, actions: Tensor, last_only: bool = False) -> Tensor:
        """Returns the latents that follow: (B, N, Z) and z-scored action blocks (B, N, A) -> (B, N, Z).

        Output t predicts the latent after latent t and block t, from inputs up to t. With `last_only` the last output
        alone is computed, (B, 1, Z).
        """
        seen, sensed = self.split(latents)
        patches = seen.unflatten(-1, (self.config.n_patches, dino.WIDTH))
        said = torch.cat([sensed, self.action_encoder(actions)], dim=-1).unsqueeze(-2).expand(*patches.shape[:-1], -1)
        tokens = self.out(self.predictor(torch.cat([patches, said], dim=-1), last_only))
        if not self.sensed_width:
            return tokens.flatten(-2)
        seen, sensed = tokens[..., : dino.WIDTH], tokens[..., dino.WIDTH :]
        return torch.cat([seen.flatten(-2), sensed.mean(dim=-2)], dim=-1)

    def split(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the patches (..., P x 384) of latents (..., Z), and the embedded proprioception, of width 0 or 10."""
        return latents.split([self.config.n_patches * dino.WIDTH, self.sensed_width], dim=-1)  # type: ignore[return-value]

    def loss(self, batch: Batch | ProprioceptiveBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the prediction error of a batch of clips, and that of predicting no change."""
        latents = self.encode(batch.pixels, *batch[2:])
        predicted = self.predict(latents[:, :-1], self.normalize_actions(batch.actions))
        errors = self.split((predicted - latents[:, 1:].detach()).float().square())
        changes = self.split(latents.detach().diff(dim=1).float().square())
        prediction = errors[0].mean()
        logs = {"prediction": prediction, "no_change": changes[0].mean()}
        if not self.sensed_width:
            return prediction, logs
        sensed = errors[1].mean()
        logs |= {"proprioception": sensed, "proprioception_no_change": changes[1].mean()}
        return (dino.WIDTH * prediction + self.sensed_width * sensed) / (dino.WIDTH + self.sensed_width), logs

    def weigh(self, cost: LatentCost) -> LatentCost:
        """Returns a cost in which the embedded proprioception has the weight `proprioception_weight`.

        Args:
            cost: A sum over numbers, each of equal weight.
        """
        if not self.sensed_width:
            return cost
        weight = self.config.proprioception_weight * self.config.n_patches * dino.WIDTH / self.sensed_width

        def weighed(predicted: Tensor, goal: Tensor) -> Tensor:
            seen, sensed = zip(self.split(predicted), self.split(goal), strict=True)
            return cost(*seen) + weight * cost(*sensed)

        return weighed

    def rollout(self, latents: Tensor, actions: Tensor, past_actions: Tensor | None = None) -> Tensor:
        """Returns predicted latents (B, S, H, Z) of candidate plans, from the last N frames at each step.

        Args:
            latents: (B, n, Z), the past and, last, the current one, n <= N.
            actions: (B, S, H, A), z-scored.
            past_actions: (B, n - 1, A), z-scored, taken between the given frames; None for n = 1.
        """
        n_envs, n_samples, horizon, _ = actions.shape
        blocks = candidate_blocks(actions, past_actions)
        frames = list(latents.repeat_interleave(n_samples, dim=0).split(1, dim=1))
        for end in range(len(frames), len(frames) + horizon):
            window = slice(max(0, end - self.config.context), end)
            frames.append(self.predict(torch.cat(frames[window], dim=1), blocks[:, window], last_only=True))
        return torch.cat(frames[-horizon:], dim=1).unflatten(0, (n_envs, n_samples))


PRESETS = {
    "paper": Preset(
        DinoWMConfig(),
        PlanningConfig(),
        TrainingConfig(steps=100_000, batch_size=32, learning_rate=5e-4, schedule="constant", precision="bf16"),
    ),
    # Frames of 56 px: 16 patches, a sixteenth of the tokens. DINOv2 itself is still the ViT-S.
    "laptop": Preset(
        DinoWMConfig(
            image_size=56,
            cache_features=True,
            predictor_depth=2,
            predictor_heads=4,
            predictor_head_width=32,
            predictor_mlp_width=512,
            dropout=0.0,
        ),
        PlanningConfig(CEMConfig(n_samples=64, n_elites=8, n_iterations=6)),
        TrainingConfig(steps=500, batch_size=32, learning_rate=5e-4, schedule="cosine", checkpoint_every_s=15.0),
    ),
}


class DinoWMAgent(PlanningAgent):
    """DINO-WM as a Gymnasium policy."""

    name = "dino_wm"
    presets = PRESETS
    model_class = DinoWM
    config_class = DinoWMConfig

    @property
    def proprioception(self) -> bool:  # type: ignore[override]
        """Whether its observations must include proprioception."""
        return bool(self.model.config.proprioception)

    def _named_cost(self) -> LatentCost:
        return self.model.weigh(super()._named_cost())  # type: ignore[no-any-return]

    def _checked(self, obs: Any) -> tuple[NDArray[Any], NDArray[Any], bool]:
        """Returns the current and the goal frames, each (B, h, w, 3); with proprioception, (B,) records."""
        pixels, goals, single = super()._checked(obs)
        if self.proprioception:
            pixels = _records(pixels, self._sensed(obs, "proprioception", len(pixels)))
            goals = _records(goals, self._sensed(obs, "goal_proprioception", len(goals)))
        return pixels, goals, single

    def _sensed(self, obs: Any, key: str, n_envs: int) -> NDArray[np.float32]:
        if not hasattr(obs, "keys") or key not in obs:
            raise ValueError(
                f"this agent was trained with proprioception: an observation needs {key!r}, too; make the environment "
                "with proprioception=True"
            )
        sensed = np.asarray(obs[key], np.float32)
        size = self.model.config.proprioception_size
        if sensed.size != n_envs * size or sensed.shape[-1] != size or not np.isfinite(sensed).all():
            raise ValueError(f"obs[{key!r}] must be ({size},) finite numbers per environment, got shape {sensed.shape}")
        return sensed.reshape(n_envs, size)

    def _encode(self, frames: NDArray[Any]) -> Tensor:
        if not self.proprioception:
            return super()._encode(frames)
        parts = (torch.from_numpy(np.ascontiguousarray(frames[name])).to(self.device) for name in _RECORD)
        return self.model.encode(*parts)  # type: ignore[no-any-return]

    @classmethod
    def initialise(cls, model: DinoWM) -> None:
        """Loads DINOv2's weights.

        Raises:
            FileNotFoundError: If there are none; the message names the file to download and its folder.
        """
        dino.load_weights(model.encoder, model.config.dino_weights)

    @classmethod
    def resolve_config(cls, config: DinoWMConfig, dataset: Dataset) -> DinoWMConfig:
        """Returns the configuration with the sizes of actions and of proprioception.

        Raises:
            ValueError: If proprioception is required and the dataset has none.
        """
        size = dataset.proprioception.shape[1] if config.proprioception else 0
        return dataclasses.replace(super().resolve_config(config, dataset), proprioception_size=size)

    @classmethod
    def set_normalization(cls, model: DinoWM, dataset: Dataset) -> None:
        """Gives a new model the statistics of actions and of proprioception; constant entries are not scaled."""
        super().set_normalization(model, dataset)
        if model.config.proprioception:
            sensed = dataset.proprioception.astype(np.float64)
            std = sensed.std(axis=0)
            model.proprioception_mean.copy_(torch.from_numpy(sensed.mean(axis=0)))
            model.proprioception_std.copy_(torch.from_numpy(np.where(std > 1e-6, std, 1.0)))

    @classmethod
    def samplers(cls, dataset: Dataset, model: DinoWM, seed: int, on_load: OnLoad | None) -> tuple[Any, Any]:
        """Returns clips of frames, or of features from the cache, which is filled first."""
        config = model.config
        clips = config.context + 1, config.frame_skip, seed
        sensed = dataset.proprioception if config.proprioception else None
        if config.cache_features:
            features = cached_features(dataset, model.encoder, model.features, on_load)
            return split_samplers(
                dataset,
                lambda episodes: FeatureClips(features, dataset, episodes, *clips, proprioception=sensed),
                None,
            )
        return split_samplers(
            dataset,
            lambda episodes: ClipSampler(dataset, episodes, *clips, config.image_size, proprioception=sensed),
            on_load,
        )

    @classmethod
    def describe(cls, config: DinoWMConfig) -> dict[str, Any]:
        """Returns the features that the run uses."""
        return describe_dino(config.dino_weights)


_RECORD = ("pixels", "proprioception")


def _records(pixels: NDArray[np.uint8], sensed: NDArray[np.float32]) -> NDArray[Any]:
    """Returns (B,) records of frames (B, h, w, 3) and their proprioception (B, k)."""
    kind = np.dtype([(_RECORD[0], pixels.dtype, pixels.shape[1:]), (_RECORD[1], sensed.dtype, sensed.shape[1:])])
    records = np.empty(len(pixels), kind)
    records[_RECORD[0]], records[_RECORD[1]] = pixels, sensed
    return records


RANDOM_VIT_SEED = 0


class RandomViTAgent(DinoWMAgent):
    """DINO-WM on the features of a random ViT-S: a control, and a substitute without DINOv2 weights."""

    name = "random_vit"

    @classmethod
    def initialise(cls, model: DinoWM) -> None:
        """Sets the random weights: one network for all training seeds, which share its features.

        Raises:
            ValueError: If weights are named.
        """
        if model.config.dino_weights:
            raise ValueError("random_vit uses no weights; to use dino_weights train dino_wm")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_VIT_SEED)
            model.encoder.load_state_dict(dino.make_vit(model.config.image_size).state_dict())

    @classmethod
    def describe(cls, config: DinoWMConfig) -> dict[str, Any]:
        """Returns the features that the run uses."""
        return {"features": "random-ViT"}
