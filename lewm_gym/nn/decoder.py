"""Images from latents, for visualisation, as the paper's ablation of the loss, or as Dreamer's loss.

`PatchDecoder`: learned queries, one for each patch of the image, attend to the latent through blocks of
cross-attention; each then becomes a patch (arXiv 2603.19312: 196 queries, patches of 16x16x3). LeWM itself has no
decoder. One is trained on frozen latents for visualisation, or jointly with the model (`decoder_weight` in
agents/lewm.py), which harms control according to the paper. `ConvDecoder`: the convolutional encoder backwards.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from lewm_gym.nn.distributed import BatchNorm2d


class PatchDecoder(nn.Module):
    """Decodes latents (n, Z) as normalised images (n, 3, size, size); `images.to_frames` makes them pixels again.

    With a single latent, every query attends to it fully, so its projected value enters each block. Attention is shared
    among several latents, (n, tokens, Z), such as the patches of a frozen encoder.

    Args:
        latent_size: Width of a latent, Z.
        image_size: Height and width of the images, px; a multiple of `grid`.
        grid: Patches along each side: 14 for the paper's 196 queries.
        width: Width of a query.
        depth: Number of blocks.
        heads: Attention heads; they divide the width.
    """

    def __init__(
        self, latent_size: int, image_size: int = 224, grid: int = 14, width: int = 192, depth: int = 3, heads: int = 3
    ) -> None:
        super().__init__()
        if image_size % grid or width % heads:
            raise ValueError(
                f"grid {grid} must divide image_size {image_size}, and heads {heads} the decoder's width {width}"
            )
        self.grid, self.patch_size = grid, image_size // grid
        self.latent_in = nn.Linear(latent_size, width)
        self.queries = nn.Parameter(0.02 * torch.randn(1, grid * grid, width))
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 3 * self.patch_size**2)

    def forward(self, latents: Tensor) -> Tensor:
        """Returns images (n, 3, size, size) of latents (n, Z) or (n, tokens, Z)."""
        seen = self.latent_in(latents if latents.ndim == 3 else latents.unsqueeze(1))
        x = self.queries.expand(len(seen), -1, -1)
        for block in self.blocks:
            x = block(x, seen)
        patches = self.out(self.norm(x)).unflatten(-1, (3, self.patch_size, self.patch_size))
        rows = patches.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 4, 2, 5)  # n, 3, row, y, column, x
        return rows.flatten(4, 5).flatten(2, 3)


class DecoderBlock(nn.Module):
    """Cross-attention to the latent and an MLP, each with pre-LayerNorm and a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Returns queries (n, queries, width) after attention to (n, tokens, width)."""
        x = x + self.attention(self.norm1(x), seen, seen, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ConvDecoder(nn.Module):
    """Decodes (n, width) as normalised images (n, 3, size, size): the maps of `ConvEncoder` in reverse order.

    Args:
        width: Width of the input.
        image_size: Height and width of the images, px; a multiple of patch_size.
        channels: Channels of the encoder's stages.
        patch_size: Height and width of the last stage's patches, px.
    """

    def __init__(self, width: int, image_size: int, channels: tuple[int, ...], patch_size: int = 4) -> None:
        super().__init__()
        if image_size % patch_size or not channels:
            raise ValueError(
                f"image_size must be a multiple of the convolutions' patches of {patch_size} px and channels "
                f"not empty, got {image_size} and {channels}"
            )
        sides = [image_size // patch_size]
        for _ in channels[1:]:
            sides.append((sides[-1] + 1) // 2)
        self.first = nn.Linear(width, channels[-1] * sides[-1] ** 2)
        self.map_shape = (channels[-1], sides[-1], sides[-1])
        stages: list[nn.Module] = []
        for (before, after), (small, large) in zip(pairwise(channels[::-1]), pairwise(sides[::-1]), strict=True):
            even = 1 - (2 * small - large)  # the encoder's map had an even side
            up = nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=even, bias=False)
            stages += [BatchNorm2d(before), nn.ReLU(inplace=True), up]
        patches = nn.ConvTranspose2d(channels[0], 3, patch_size, stride=patch_size)
        self.stages = nn.Sequential(*stages, BatchNorm2d(channels[0]), nn.ReLU(inplace=True), patches)

    def forward(self, latents: Tensor) -> Tensor:
        """Returns (n, 3, size, size)."""
        return self.stages(self.first(latents).unflatten(1, self.map_shape))  # type: ignore[no-any-return]
