"""Conversion between pixels and the inputs of networks."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def average_down(pixels: Tensor, size: int) -> Tensor:
    """Returns frames averaged over square blocks to `size` x `size`, as uint8, rounded half up.

    Integer arithmetic gives the same result on every device, whether frames are averaged when they are loaded or here.
    Frames that already have the size are returned unchanged.

    Args:
        pixels: (..., h, w, 3) uint8, h equal to w and a multiple of `size`.
        size: Requested height and width, px.

    Raises:
        ValueError: For frames of another dtype or shape.
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels must be uint8, got {pixels.dtype}")
    if pixels.ndim < 3 or pixels.shape[-1] != 3 or pixels.shape[-2] != pixels.shape[-3]:
        raise ValueError(f"pixels must have shape (..., h, h, 3), got {tuple(pixels.shape)}")
    height = pixels.shape[-3]
    if height == size:
        return pixels
    if height % size:
        raise ValueError(f"frames of {height} px cannot be averaged down to {size} px: not a multiple")
    factor = height // size
    blocks = pixels.reshape(*pixels.shape[:-3], size, factor, size, factor, 3)
    # Rows first, as int16 (at most factor x 255): the widest intermediate stays small.
    sums = blocks.sum(dim=-4, dtype=torch.int16).sum(dim=-2, dtype=torch.int32)
    return ((sums + factor * factor // 2) // (factor * factor)).to(torch.uint8)


def shifted(pixels: Tensor, most: int) -> Tensor:
    """Returns clips, each shifted at random by up to `most` px along both axes, all frames of a clip alike.

    Edges are repeated. As in DrQ (arXiv 2004.13649), but with one shift per clip, which preserves the motion.

    Args:
        pixels: (B, T, h, w, 3).
        most: Greatest shift, px; 0 returns the clips as they are.
    """
    if not most:
        return pixels
    height, width = pixels.shape[2:4]
    padded = torch.cat([pixels[:, :, :1]] * most + [pixels] + [pixels[:, :, -1:]] * most, dim=2)
    padded = torch.cat([padded[:, :, :, :1]] * most + [padded] + [padded[:, :, :, -1:]] * most, dim=3)
    tops, lefts = torch.randint(0, 2 * most + 1, (2, len(pixels))).tolist()
    clips = zip(padded, tops, lefts, strict=True)
    return torch.stack([clip[:, top : top + height, left : left + width] for clip, top, left in clips])


def to_network(pixels: Tensor, size: int) -> Tensor:
    """Returns normalised float32 images (n, 3, size, size) of uint8 frames (n, h, w, 3).

    [0, 1], then ImageNet's mean and std. In memory they stay height-width-channel (torch's `channels_last`).
    """
    rows = average_down(pixels, size).flatten(-2).float()
    # A row's statistics at once: a CPU takes three times as long where a tensor of three numbers is broadcast.
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device).repeat(size)
    std = torch.tensor(IMAGENET_STD, device=pixels.device).repeat(size)
    return rows.sub_(255 * mean).div_(255 * std).unflatten(-1, (size, 3)).permute(0, 3, 1, 2)


def to_frames(images: Tensor) -> Tensor:
    """Returns uint8 frames (n, h, w, 3) of normalised images (n, 3, h, w): the inverse of `to_network`, clipped."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1)
    levels = 255 * (images.detach().float() * std + mean)
    return levels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
