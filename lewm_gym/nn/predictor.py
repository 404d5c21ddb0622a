"""The predictor: a causal transformer over latents, conditioned on actions through AdaLN-zero (arXiv 2212.09748).

Quirk of the reference, kept because parity and parameter counts depend on it: within each block a LayerNorm
without parameters is modulated by the action, and attention and MLP then begin with another, affine, LayerNorm.
Planning computes the same at less cost: `lewm_gym/nn/rollout.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Predictor(nn.Module):
    """Maps latents (B, N, Z) and action embeddings (B, N, width) to next-latent features (B, N, width).

    Output t sees inputs up to t only, so one pass trains contexts of 1..N frames at once.

    Args:
        width: Width of a token; latents of another width are mapped to it linearly.
        context: Most frames seen at once, N.
        depth: Number of blocks.
        heads: Attention heads.
        head_width: Width of one head.
        mlp_width: Hidden width of the MLPs.
        dropout: Rate on attention weights, attention output and MLP.
        latent_size: Z; None where it is the width.
    """

    def __init__(
        self,
        width: int = 192,
        context: int = 3,
        depth: int = 6,
        heads: int = 16,
        head_width: int = 64,
        mlp_width: int = 2048,
        dropout: float = 0.1,
        latent_size: int | None = None,
    ) -> None:
        super().__init__()
        self.context = context
        self.latent_in = nn.Identity() if latent_size in (None, width) else nn.Linear(latent_size or 0, width)
        self.positions = nn.Parameter(torch.randn(1, context, width))
        self.blocks = nn.ModuleList(PredictorBlock(width, heads, head_width, mlp_width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, latents: Tensor, action_embeddings: Tensor) -> Tensor:
        """Returns (B, N, width)."""
        activated = F.silu(action_embeddings)
        x = self.latent_in(latents) + self.positions[:, : latents.shape[1]]
        for block in self.blocks:
            x = block(x, activated)
        return self.norm(x)


class PredictorBlock(nn.Module):
    """Causal attention and MLP, each modulated and gated, with a residual connection."""

    def __init__(self, width: int, heads: int, head_width: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = CausalAttention(width, heads, head_width, dropout)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, mlp_width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_width, width),
            nn.Dropout(dropout),
        )
        nn.init.zeros_(self.modulation.weight)  # every block starts as the identity
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """Returns (B, N, width) from frames and activated action embeddings (B, N, width)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(activated).chunk(6, dim=-1)
        x = x + gate_a * self.attention(self.norm(x) * (1 + scale_a) + shift_a)
        return x + gate_m * self.mlp(self.norm(x) * (1 + scale_m) + shift_m)


class CausalAttention(nn.Module):
    """Multi-head attention of each frame to itself and those before it; begins with an affine LayerNorm."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Sequential(nn.Linear(heads * head_width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, N, width)."""
        query, key, value = self.query_key_value(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.out(attended.transpose(1, 2).flatten(2))
