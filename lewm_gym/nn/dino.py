"""DINOv2's ViT-S/14 (arXiv 2304.07193) as a frozen encoder of patches, with this library's ViT.

The released network scales what attention and MLP add by learned factors (LayerScale). A factor per output of a linear
layer is part of that layer: they are folded in when the weights are loaded. Its positions are those of an image
of 518 px; for another size they are interpolated, bicubically.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from lewm_gym.nn.vit import ViT

PATCH_SIZE = 14  # px
WIDTH = 384
DEPTH = 12
HEADS = 6
URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth"
#: Where weights are looked for when no file is named, in this order.
PLACES = tuple(
    Path("~/.cache/lewm-gym").expanduser() / f"dinov2_vits14_pretrain{suffix}" for suffix in (".safetensors", ".pth")
)
TIMM_NAME = "vit_small_patch14_dinov2"


def make_vit(image_size: int) -> ViT:
    """Returns the architecture with random weights.

    Raises:
        ValueError: For an image size that is not a multiple of 14 px.
    """
    if image_size % PATCH_SIZE:
        raise ValueError(
            f"frames of {image_size} px are not a multiple of DINOv2's patches of {PATCH_SIZE} px: use 56 or 224"
        )
    vit = ViT(image_size, PATCH_SIZE, WIDTH, DEPTH, HEADS, 4 * WIDTH)
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    return vit


def load_weights(vit: ViT, file: str | Path | None = None) -> str:
    """Loads DINOv2's weights into the network of `make_vit`; returns their source.

    Args:
        vit: Changed in place.
        file: The authors' .pth or timm's .safetensors; by default one of PLACES, else what timm fetches.

    Raises:
        FileNotFoundError: If there are none; the message names the file to download and its folder.
        ValueError: If the file is damaged or not DINOv2 ViT-S/14.
    """
    path = find_file(file)
    if path is not None:
        source, tensors = str(path), _read(path)
    else:
        source, tensors = f"timm/{TIMM_NAME}", _fetch()
    side = round((vit.positions.shape[1] - 1) ** 0.5)
    vit.load_state_dict(_convert(tensors, side, source))
    return source


def find_file(file: str | Path | None = None) -> Path | None:
    """Returns the file to load: `file`, or the one of PLACES that exists, or None.

    Raises:
        FileNotFoundError: If `file` is given and does not exist.
    """
    if file:
        if not Path(file).is_file():
            raise FileNotFoundError(f"there are no DINOv2 weights at {file}; {_advice()}")
        return Path(file)
    return next((place for place in PLACES if place.is_file()), None)


def available() -> bool:
    """Returns whether `load_weights` finds weights without a given file: in one of PLACES, or by timm.

    With timm, this downloads them unless they are cached.
    """
    if find_file() is not None:
        return True
    try:
        return bool(_fetch())
    except FileNotFoundError:
        return False


def _advice() -> str:
    return f"fetch {URL} (88 MB) and put it at {PLACES[-1]}, or name the file: --set dino_weights=FILE"


def _fetch() -> dict[str, Tensor]:
    try:
        import timm  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise FileNotFoundError(f"no DINOv2 weights: {_advice()}; or, with network access: pip install timm") from None
    try:
        tensors: dict[str, Tensor] = timm.create_model(TIMM_NAME, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(f"timm cannot fetch DINOv2's weights ({reason}); {_advice()}") from None
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    refusal = (
        f"{path} is no file of weights, or a damaged one: expected a state dict of DINOv2 ViT-S/14, as .safetensors "
        f"or as torch saves it; fetch {URL} again"
    )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # the unpickler raises whatever a damaged or hostile file provokes, and speaks of its own options
        raise ValueError(refusal) from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(refusal)
    return tensors


def _convert(tensors: dict[str, Tensor], side: int, source: str) -> dict[str, Tensor]:
    """Returns our ViT's tensors from the released ones, for an image of `side` x `side` patches."""
    taken = {name: t.float() for name, t in tensors.items() if name != "mask_token"}  # only its training masks
    _check(taken, source)
    grid = taken["pos_embed"][:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    if side != 37:
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    converted = {
        "cls_token": taken["cls_token"],
        "positions": torch.cat([taken["pos_embed"][:, :1], grid.flatten(2).transpose(1, 2)], dim=1),
        "patch_embedding.weight": taken["patch_embed.proj.weight"],
        "patch_embedding.bias": taken["patch_embed.proj.bias"],
        "norm.weight": taken["norm.weight"],
        "norm.bias": taken["norm.bias"],
    }
    for i in range(DEPTH):
        theirs = f"blocks.{i}."
        for name, ours in (
            ("norm1", "norm1"),
            ("norm2", "norm2"),
            ("attn.qkv", "query_key_value"),
            ("mlp.fc1", "mlp_in"),
        ):
            for part in ("weight", "bias"):
                converted[f"blocks.{i}.{ours}.{part}"] = taken[f"{theirs}{name}.{part}"]
        for name, ours, scale in (("attn.proj", "attention_out", "ls1"), ("mlp.fc2", "mlp_out", "ls2")):
            factor = taken[f"{theirs}{scale}.gamma"]
            converted[f"blocks.{i}.{ours}.weight"] = factor[:, None] * taken[f"{theirs}{name}.weight"]
            converted[f"blocks.{i}.{ours}.bias"] = factor * taken[f"{theirs}{name}.bias"]
    return converted


def _check(tensors: dict[str, Tensor], source: str) -> None:
    expected = released_shapes()
    missing = sorted(set(expected) - set(tensors))
    extra = sorted(set(tensors) - set(expected))
    wrong = [name for name in expected if name in tensors and tuple(tensors[name].shape) != expected[name]]
    if missing or extra or wrong:
        found = [f"{name} {tuple(tensors[name].shape)} instead of {expected[name]}" for name in wrong]
        raise ValueError(
            f"{source} does not hold DINOv2 ViT-S/14 without registers: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(extra)} unexpected {extra[:2]}, {len(wrong)} of another shape {found[:2]}; fetch {URL}"
        )


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the released tensors, except the training's `mask_token`."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + 37 * 37, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH_SIZE, PATCH_SIZE),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    linear = {
        "attn.qkv": (3 * WIDTH, WIDTH),
        "attn.proj": (WIDTH, WIDTH),
        "mlp.fc1": (4 * WIDTH, WIDTH),
        "mlp.fc2": (WIDTH, 4 * WIDTH),
    }
    for i in range(DEPTH):
        for name, shape in linear.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{i}.{name}"] = (WIDTH,)
    return shapes
