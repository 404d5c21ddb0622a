"""The predictor: a causal transformer over latents, conditioned on actions through AdaLN-zero (arXiv 2212.09748).

Quirk of the reference, kept because parity and parameter counts depend on it: within each block a LayerNorm
without parameters is modulated by the action, and attention and MLP then begin with another, affine, LayerNorm.
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
        return self.run(latents, self.modulations(action_embeddings))

    def modulations(self, action_embeddings: Tensor) -> list[Tensor]:
        """Returns each block's shifts, scales and gates, (B, N, 6 width): they depend on the actions alone."""
        activated = F.silu(action_embeddings)
        return [block.modulation(activated) for block in self.blocks]  # type: ignore[operator]

    def run(
        self, latents: Tensor, modulations: list[Tensor], caches: list[Cache] | None = None, last_only: bool = False
    ) -> Tensor:
        """Returns next-latent features (B, N, width), or of the last frame only, (B, 1, width).

        Args:
            latents: (B, N, Z); with `caches`, the frames that follow those cached.
            modulations: For the same frames, one entry per block.
            caches: Keys and values of earlier frames of the window, one entry per block; these frames are added.
            last_only: Compute in the last block only what the last frame needs.
        """
        first = len(caches[0]) if caches else 0
        x = self.latent_in(latents) + self.positions[:, first : first + latents.shape[1]]
        for i, block in enumerate(self.blocks):
            last = last_only and i == len(self.blocks) - 1
            x = block(x, modulations[i], caches[i] if caches else None, last)
        return self.norm(x)


class Cache:
    """Keys and values of the frames that a block has seen, each (B, heads, N, head_width)."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds frames; returns the keys and values of all."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


class PredictorBlock(nn.Module):
    """Causal attention and MLP, each modulated, gated and beside a residual."""

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

    def forward(self, x: Tensor, modulation: Tensor, cache: Cache | None = None, last_only: bool = False) -> Tensor:
        """Returns (B, N, width), or (B, 1, width) of the last frame only."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        attended = self.attention(self.norm(x) * (1 + scale_a) + shift_a, cache, last_only)
        if last_only:
            x, gate_a, shift_m, scale_m, gate_m = (t[:, -1:] for t in (x, gate_a, shift_m, scale_m, gate_m))
        x = x + gate_a * attended
        return x + gate_m * self.mlp(self.norm(x) * (1 + scale_m) + shift_m)


class CausalAttention(nn.Module):
    """Multi-head attention of each frame to itself and those before it; begins with an affine LayerNorm."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Sequential(nn.Linear(heads * head_width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor, cache: Cache | None = None, last_only: bool = False) -> Tensor:
        """Returns (B, N, width), or (B, 1, width) of the last frame only."""
        query, key, value = self.query_key_value(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            key, value = cache.extend(key, value)
        if last_only:
            query = query[:, :, -1:]
        if query.shape[2] == 1 and not self.training:
            attended = _attend_once(query, key, value)
        else:
            dropout = self.dropout if self.training else 0.0
            causal = query.shape[2] > 1  # a single query is the last frame, which sees all
            assert not causal or query.shape[2] == key.shape[2]
            attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal)
        return self.out(attended.transpose(1, 2).flatten(2))


def _attend_once(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Returns the attention of one query, (B, heads, 1, head_width), to all keys.

    Products written out: for the few frames of a window torch's fused attention costs 1.5x to 4x as much on a CPU.
    """
    scores = (query * key).sum(dim=-1, keepdim=True) * query.shape[-1] ** -0.5
    return (scores.softmax(dim=2) * value).sum(dim=2, keepdim=True)
