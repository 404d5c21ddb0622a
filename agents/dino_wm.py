"""DINO-WM (arXiv 2411.04983): a world model over the patches of a frozen DINOv2, planned in as LeWM's is.

    z_t      = DINOv2(o_t)                                       patches, frozen           encode
    z^_{t+1} = pred(z_{t-2..t}, a_{t-2..t})                      causal over frames        predict
    L        = mean((z^_{t+1} - z_{t+1})^2)                                                loss

An embedding of the action block is appended to every patch of its frame. The cost of a plan is the squared distance
over all patches. Where we depart:

- paper: 196 patches, of frames scaled to 196 px; here 256, of frames of 224 px, as LeWM sees them; preset `laptop` 16.
- paper: proprioception beside the patches; here pixels alone ("DINO-WM, pixels" in the LeWM paper's table), which is
  all that an agent gets in these environments.
- paper: one block of 5 actions embedded linearly to 10 numbers; here z-scored first, as everywhere.
- `random_vit` is the same with random weights in DINOv2's place: for tests, for timing, and as a control. Its runs and
  results bear that name, never DINO-WM's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.actions import ActionModel, candidate_blocks
from agents.planning import PlanningAgent, PlanningConfig
from agents.trainable import OnLoad, Preset, split_samplers
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.features import FeatureClips, cached_features
from lewm_gym.data.files import sha256
from lewm_gym.nn import dino
from lewm_gym.nn.frozen import freeze
from lewm_gym.nn.images import to_network
from lewm_gym.nn.patch_predictor import PatchPredictor
from lewm_gym.planning.cem import CEMConfig
from lewm_gym.training import TrainingConfig
from lewm_gym.types import Batch


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
    predictor_depth: int = 6
    predictor_heads: int = 16
    predictor_head_width: int = 64
    predictor_mlp_width: int = 2048
    dropout: float = 0.1  # in the predictor

    def __post_init__(self) -> None:
        for name in ("action_size", "frame_skip", "context", "action_width", "predictor_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.image_size % dino.PATCH_SIZE:
            raise ValueError(f"image_size must be a multiple of {dino.PATCH_SIZE} (56 or 224), got {self.image_size}")
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
    """The world model. A latent is a frame's patches flattened, Z = P x 384; DINOv2 has random weights at first."""

    encoder_is_frozen = True  # its latents cannot collapse while training

    def __init__(self, config: DinoWMConfig) -> None:
        super().__init__(config.action_size, config.frame_skip)
        self.config = config
        self.encoder = freeze(dino.make_vit(config.image_size))
        self.action_encoder = nn.Linear(config.action_block_size, config.action_width)
        self.predictor = PatchPredictor(
            dino.WIDTH + config.action_width,
            config.context,
            config.n_patches,
            config.predictor_depth,
            config.predictor_heads,
            config.predictor_head_width,
            config.predictor_mlp_width,
            config.dropout,
        )
        self.out = nn.Linear(dino.WIDTH + config.action_width, dino.WIDTH)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Returns latents (..., Z) of frames (..., h, w, 3) uint8, or of their features as the cache holds them."""
        if pixels.is_floating_point():
            return pixels.float()
        images = to_network(pixels.flatten(0, -4), self.config.image_size)
        return self.encoder.tokens(images)[:, 1:].flatten(1).view(*pixels.shape[:-3], -1)

    def predict(self, latents: Tensor, actions: Tensor, last_only: bool = False) -> Tensor:
        """Returns the latents that follow: (B, N, Z) and z-scored action blocks (B, N, A) -> (B, N, Z).

        Output t predicts the latent after latent t and block t, from inputs up to t. With `last_only` the last output
        alone is computed, (B, 1, Z).
        """
        patches = latents.unflatten(-1, (self.config.n_patches, dino.WIDTH))
        said = self.action_encoder(actions).unsqueeze(-2).expand(*patches.shape[:-1], -1)
        return self.out(self.predictor(torch.cat([patches, said], dim=-1), last_only)).flatten(-2)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the prediction error of a batch of clips, and beside it that of predicting no change."""
        latents = self.encode(batch.pixels)
        predicted = self.predict(latents[:, :-1], self.normalize_actions(batch.actions))
        prediction = (predicted - latents[:, 1:]).float().square().mean()
        return prediction, {"prediction": prediction, "no_change": latents.diff(dim=1).float().square().mean()}

    def rollout(self, latents: Tensor, actions: Tensor, past_actions: Tensor | None = None) -> Tensor:
        """Returns predicted latents (B, S, H, Z) of candidate plans, from the last N frames at each step.

        Args:
            latents: (B, n, Z), the past and, last, the present, n <= N.
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

    @classmethod
    def initialise(cls, model: DinoWM) -> None:
        """Loads DINOv2's weights.

        Raises:
            FileNotFoundError: If there are none; the message says what to fetch and where to put it.
        """
        dino.load_weights(model.encoder, model.config.dino_weights)

    @classmethod
    def samplers(cls, dataset: Dataset, model: DinoWM, seed: int, on_load: OnLoad | None) -> tuple[Any, Any]:
        """Returns clips of frames, or of features from the cache, which is filled first."""
        config = model.config
        if not config.cache_features:
            return super().samplers(dataset, model, seed, on_load)
        features = cached_features(dataset, model.encoder, model.encode, on_load)

        def sampler(episodes: Any) -> FeatureClips:
            return FeatureClips(features, dataset, episodes, config.context + 1, config.frame_skip, seed)

        return split_samplers(dataset, sampler, None)

    @classmethod
    def describe(cls, config: DinoWMConfig) -> dict[str, Any]:
        """Returns which features the run's results rest on."""
        file = dino.find_file(config.dino_weights)
        source = {"file": Path(file).name, "sha256": sha256(file)} if file else {"file": f"timm/{dino.TIMM_NAME}"}
        return {"features": "DINOv2", "features_source": source}


RANDOM_VIT_SEED = 0


class RandomViTAgent(DinoWMAgent):
    """The same on the features of a random ViT-S: a control, and what runs where there are no DINOv2 weights."""

    name = "random_vit"

    @classmethod
    def initialise(cls, model: DinoWM) -> None:
        """Sets the random weights: one network for every seed of training, so that all share its features.

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
        """Returns which features the run's results rest on."""
        return {"features": "random-ViT"}
