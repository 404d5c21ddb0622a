"""What a training step is measured beside: the machine's peak, the loader, and stable-worldmodel's own step."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.lewm import LeWMConfig
from benchmarks.speed import time_once
from collect.collector import collect
from lewm_gym.data.clips import ClipSampler
from lewm_gym.data.dataset import Dataset
from lewm_gym.nn.images import to_network
from lewm_gym.types import Batch

TOY_EPISODES = 4  # of Two-Room, where no dataset is named


def peak_flops(precision: str, device: str, repeats: int = 3) -> float:
    """Returns the FLOP/s of this machine's fastest product of two large square matrices: what a step could reach."""
    size = 8192 if torch.device(device).type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(time_once(lambda: left @ right, device) for _ in range(repeats + 1))


def loading_seconds(config: LeWMConfig, batch_size: int, dataset: Path | None, n_batches: int = 8) -> float:
    """Returns the seconds per batch of the loader by itself; in training it works ahead, beside the step.

    Args:
        config: Whose clips.
        batch_size: Clips in a batch.
        dataset: Where from; None for a few episodes of Two-Room that are collected now.
        n_batches: How many to average over, after a first.
    """
    with tempfile.TemporaryDirectory() as folder:
        if dataset is None:
            dataset = Path(folder) / "two_room"
            collect("two_room", dataset, TOY_EPISODES, workers=1, pictures=False)
        clips = ClipSampler(
            Dataset.open(dataset),
            n_frames=config.context + 1,
            frame_skip=config.frame_skip,
            image_size=config.image_size,
        )
        clips.preload()
        batches = iter(clips.batches(0, n_batches + 1, batch_size))
        next(batches)
        begun = time.perf_counter()
        for _ in batches:
            pass
        return (time.perf_counter() - begun) / n_batches


def reference_model(config: LeWMConfig, device: str) -> tuple[nn.Module, Callable[[Batch], Tensor]] | None:
    """Returns stable-worldmodel's LeWM with random weights, and its training loss; None where it is not installed.

    It needs transformers and einops too. Its files are read one by one: the package's own import wants simulators.
    """
    package = importlib.util.find_spec("stable_worldmodel")
    if package is None or not package.submodule_search_locations or config.encoder != "vit":
        return None
    if any(importlib.util.find_spec(name) is None for name in ("einops", "transformers")):
        return None
    from transformers import ViTConfig, ViTModel

    folder = Path(package.submodule_search_locations[0]) / "wm"
    parts, whole, losses = (load_file(folder / name) for name in ("lewm/module.py", "lewm/lewm.py", "loss.py"))
    vit = ViTConfig(
        hidden_size=config.encoder_width,
        num_hidden_layers=config.encoder_depth,
        num_attention_heads=config.encoder_heads,
        intermediate_size=4 * config.encoder_width,
        image_size=config.image_size,
        patch_size=config.patch_size,
    )
    model: Any = whole.LeWM(
        ViTModel(vit, add_pooling_layer=False),
        parts.Predictor(
            num_frames=config.context,
            depth=config.predictor_depth,
            heads=config.predictor_heads,
            mlp_dim=config.predictor_mlp_width,
            input_dim=config.latent_size,
            hidden_dim=config.latent_size,
            dim_head=config.predictor_head_width,
            dropout=config.dropout,
        ),
        parts.Embedder(input_dim=config.action_block_size, emb_dim=config.latent_size),
        *(parts.MLP(config.latent_size, config.projection_width, config.latent_size, norm_fn=nn.BatchNorm1d)
          for _ in range(2)),
    ).to(device).train()  # fmt: skip
    sigreg = losses.SIGReg(config.sigreg_knots, config.sigreg_directions).to(device)

    def loss(batch: Batch) -> Tensor:
        images = to_network(batch.pixels.flatten(0, 1), config.image_size).unflatten(0, batch.pixels.shape[:2])
        seen: dict[str, Any] = model.encode({"pixels": images, "action": batch.actions})
        latents = seen["emb"]
        predicted = model.predict(latents[:, :-1], seen["act_emb"])
        error = (predicted - latents[:, 1:]).square().mean()
        return error + config.sigreg_weight * sigreg(latents.transpose(0, 1))

    return model, loss


def load_file(path: Path) -> Any:
    """Returns one file as a module, without importing its package."""
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot read {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
