"""stable-worldmodel's own LeWM with random weights, to be timed beside ours; where it is installed.

Its files are read one by one: the package's own import wants simulators and more.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.lewm import LeWMConfig
from lewm_gym.nn.images import to_network
from lewm_gym.types import Batch


def reference_model(config: LeWMConfig, device: str) -> tuple[nn.Module, Callable[[Batch], Tensor]] | None:
    """Returns its model and training loss; None where it, einops or transformers is not installed."""
    folder = _folder("einops", "transformers")
    if folder is None or config.encoder != "vit":
        return None
    from transformers import ViTConfig, ViTModel

    vit = ViTConfig(
        hidden_size=config.encoder_width,
        num_hidden_layers=config.encoder_depth,
        num_attention_heads=config.encoder_heads,
        intermediate_size=4 * config.encoder_width,
        image_size=config.image_size,
        patch_size=config.patch_size,
    )
    model = _model(folder, config, ViTModel(vit, add_pooling_layer=False)).to(device).train()
    sigreg = _load_file(folder / "loss.py").SIGReg(config.sigreg_knots, config.sigreg_directions).to(device)

    def loss(batch: Batch) -> Tensor:
        images = to_network(batch.pixels.flatten(0, 1), config.image_size).unflatten(0, batch.pixels.shape[:2])
        seen: dict[str, Any] = model.encode({"pixels": images, "action": batch.actions})
        latents = seen["emb"]
        predicted = model.predict(latents[:, :-1], seen["act_emb"])
        error = (predicted - latents[:, 1:]).square().mean()
        return error + config.sigreg_weight * sigreg(latents.transpose(0, 1))

    return model, loss


def reference_rollout(config: LeWMConfig, device: str) -> Callable[[Any, Tensor, Tensor], Tensor] | None:
    """Returns its rollout of LeWM at our sizes; None where it or einops is not installed."""
    folder = _folder("einops")
    if folder is None:
        return None
    model = _model(folder, config, torch.nn.Identity()).to(device).eval()

    def rollout(_: Any, latents: Tensor, actions: Tensor) -> Tensor:
        known = latents.unsqueeze(1).expand(-1, actions.shape[1], -1, -1)
        predicted: Tensor = model.rollout({"pixels": known, "emb": known}, actions)["predicted_emb"]
        return predicted[:, :, latents.shape[1] :]

    return rollout


def _folder(*needed: str) -> Path | None:
    """Returns where its world models lie, or None if it or a package that they need is not installed."""
    package = importlib.util.find_spec("stable_worldmodel")
    if package is None or not package.submodule_search_locations:
        return None
    if any(importlib.util.find_spec(name) is None for name in needed):
        return None
    return Path(package.submodule_search_locations[0]) / "wm"


def _model(folder: Path, config: LeWMConfig, encoder: nn.Module) -> Any:
    """Returns its LeWM at our sizes around an encoder."""
    parts, whole = (_load_file(folder / "lewm" / name) for name in ("module.py", "lewm.py"))
    predictor = parts.Predictor(
        num_frames=config.context,
        depth=config.predictor_depth,
        heads=config.predictor_heads,
        mlp_dim=config.predictor_mlp_width,
        input_dim=config.latent_size,
        hidden_dim=config.latent_size,
        dim_head=config.predictor_head_width,
        dropout=config.dropout,
    )
    embedder = parts.Embedder(input_dim=config.action_block_size, emb_dim=config.latent_size)
    heads = [
        parts.MLP(config.latent_size, config.projection_width, config.latent_size, norm_fn=nn.BatchNorm1d)
        for _ in range(2)
    ]
    return whole.LeWM(encoder, predictor, embedder, *heads)


def _load_file(path: Path) -> Any:
    """Returns one file as a module: importing its package would want simulators and more."""
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot read {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
