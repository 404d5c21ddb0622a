"""A predictor of several blocks at once (Fast-LeWM, arXiv 2606.26217): every prefix of a plan has its own prediction.

    tokens    [MLP(z_t), e(a_1), ..., e(a_H)]  through a causal transformer
    z^_{t+k}  = z_t through residual MLPs that token k modulates (AdaLN-zero)       k = 1..H, all in one call

Errors do not compound within H blocks, since no prediction is an input of another. Longer plans begin again from the
last prediction. It sees one frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm_gym.nn.heads import ActionEncoder
from lewm_gym.nn.predictor import CausalAttention


class PrefixPredictor(nn.Module):
    """Maps latents (R, Z) and z-scored action blocks (R, H, A) to the latents after each of them, (R, H, Z).

    Args:
        latent_size: Z.
        action_block_size: A.
        n_blocks: Most blocks predicted at once.
        width: Of a token.
        depth: Blocks of the transformer.
        heads: Attention heads.
        head_width: Width of one head.
        mlp_width: Hidden width of every MLP.
        mlp_depth: Residual MLPs that a token modulates.
        dropout: Rate in attention and MLPs.
    """

    def __init__(
        self,
        latent_size: int,
        action_block_size: int,
        n_blocks: int = 5,
        width: int = 192,
        depth: int = 3,
        heads: int = 6,
        head_width: int = 32,
        mlp_width: int = 2048,
        mlp_depth: int = 6,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.n_blocks = n_blocks
        self.latent_in = nn.Sequential(nn.Linear(latent_size, width), nn.GELU(), nn.Linear(width, width))
        self.action_encoder = ActionEncoder(action_block_size, width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, n_blocks + 1, width))
        self.attentions = nn.ModuleList(CausalAttention(width, heads, head_width, dropout) for _ in range(depth))
        self.mlps = nn.ModuleList(_mlp(width, mlp_width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.steps = nn.ModuleList(_mlp(latent_size, mlp_width, dropout, affine=False) for _ in range(mlp_depth))
        self.modulations = nn.ModuleList(nn.Linear(width, 3 * latent_size) for _ in range(mlp_depth))
        for modulation in self.modulations:  # every step starts as the identity: nothing moves
            nn.init.zeros_(modulation.weight)  # type: ignore[arg-type]
            nn.init.zeros_(modulation.bias)  # type: ignore[arg-type]

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Returns (R, H, Z) for any H: beyond `n_blocks`, from the last prediction."""
        parts = []
        for chunk in actions.split(self.n_blocks, dim=1):
            parts.append(self._ahead(latents, chunk))
            latents = parts[-1][:, -1]
        return torch.cat(parts, dim=1)

    def _ahead(self, latents: Tensor, actions: Tensor) -> Tensor:
        tokens = torch.cat([self.latent_in(latents).unsqueeze(1), self.action_encoder(actions)], dim=1)
        tokens = tokens + self.positions[:, : tokens.shape[1]]
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            tokens = tokens + attention(tokens)
            tokens = tokens + mlp(tokens)
        activated = F.silu(self.norm(tokens[:, 1:]))
        predicted = latents.unsqueeze(1).expand(-1, actions.shape[1], -1)
        for step, modulation in zip(self.steps, self.modulations, strict=True):
            shift, scale, gate = modulation(activated).chunk(3, dim=-1)
            norm, rest = step[0], step[1:]  # type: ignore[index]
            predicted = predicted + gate * rest(norm(predicted) * (1 + scale) + shift)
        return predicted


def _mlp(width: int, hidden: int, dropout: float, affine: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width, elementwise_affine=affine),
        nn.Linear(width, hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, width),
        nn.Dropout(dropout),
    )
