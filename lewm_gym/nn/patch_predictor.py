"""DINO-WM's predictor (arXiv 2411.04983): a transformer over patches, causal from frame to frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchPredictor(nn.Module):
    """Maps tokens (B, N, P, width) of N frames with P patches each to tokens of the frames that follow.

    Every patch sees all patches of its own frame and of those before it. Positions are learned, one per patch and
    frame.

    Args:
        width: Width of a token, including the action's numbers.
        context: Most frames seen at once, N.
        n_patches: Patches of a frame, P.
        depth: Number of blocks.
        heads: Attention heads.
        head_width: Width of one head.
        mlp_width: Hidden width of the MLPs.
        dropout: Rate on attention weights, attention output and MLP.
    """

    mask: Tensor  # (N P, N P), true where a query may look

    def __init__(
        self,
        width: int,
        context: int,
        n_patches: int,
        depth: int,
        heads: int,
        head_width: int,
        mlp_width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, context, n_patches, width))
        self.blocks = nn.ModuleList(_Block(width, heads, head_width, mlp_width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        frame = torch.arange(context).repeat_interleave(n_patches)
        self.register_buffer("mask", frame[:, None] >= frame[None, :], persistent=False)

    def forward(self, tokens: Tensor, last_only: bool = False) -> Tensor:
        """Returns (B, N, P, width), N no more than the context; (B, 1, P, width) of the last frame if `last_only`.

        In the last block, the other frames are only needed for its attention: `last_only` skips the rest, for rollouts.
        """
        n_frames, n_patches = tokens.shape[1:3]
        x = (tokens + self.positions[:, :n_frames]).flatten(1, 2)
        mask = self.mask[: x.shape[1], : x.shape[1]] if n_frames > 1 else None
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, mask)
        x = last(x, None, n_patches) if last_only else last(x, mask)
        return self.norm(x).unflatten(1, (-1, n_patches))


class _Block(nn.Module):
    """Attention and MLP, each with pre-LayerNorm and a residual connection."""

    def __init__(self, width: int, heads: int, head_width: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Sequential(nn.Linear(heads * head_width, width), nn.Dropout(dropout))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, mlp_width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, mask: Tensor | None, n_last: int = 0) -> Tensor:
        """Returns (B, tokens, width), or the last `n_last` tokens if that is not 0; the mask covers all of them."""
        query, key, value = self.query_key_value(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, x = query[:, :, -n_last:], x[:, -n_last:]
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(x)
