"""Networks around the predictor: projection heads, the action encoder, and AD-WM's heads for training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lewm_gym.nn.distributed import BatchNorm1d


class ProjectionHead(nn.Module):
    """Linear, BatchNorm, GELU, Linear over all frames of a batch: (..., width) -> (..., out_width)."""

    def __init__(self, width: int, hidden_width: int, out_width: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(width, hidden_width)
        self.norm = BatchNorm1d(hidden_width)
        self.activation = nn.GELU()
        self.linear_out = nn.Linear(hidden_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., out_width); the statistics run over every leading dimension."""
        flat = x.reshape(-1, x.shape[-1])
        return self.linear_out(self.activation(self.norm(self.linear_in(flat)))).view(*x.shape[:-1], -1)


class ActionEncoder(nn.Module):
    """Embeds action blocks: (..., A) -> (..., width).

    A 1x1 convolution over time in the reference is a linear map per block: `smooth`.
    """

    def __init__(self, action_block_size: int, width: int, smooth_width: int = 10, expansion: int = 4) -> None:
        super().__init__()
        self.smooth = nn.Linear(action_block_size, smooth_width)
        self.linear_in = nn.Linear(smooth_width, expansion * width)
        self.activation = nn.SiLU()
        self.linear_out = nn.Linear(expansion * width, width)

    def forward(self, actions: Tensor) -> Tensor:
        """Returns (..., width)."""
        return self.linear_out(self.activation(self.linear_in(self.smooth(actions))))


class ActionHeads(nn.Module):
    """Heads of AD-WM (arXiv 2609.30264) that predict the action between two latents; used in training only.

    Args:
        latent_size: Z.
        embedding_width: Width of the embedded actions.
        width: Hidden width of both heads.
        inverse: Whether to have the inverse head.
        information: Whether to have the mutual-information head.
    """

    def __init__(self, latent_size: int, embedding_width: int, width: int, inverse: bool, information: bool) -> None:
        super().__init__()
        sizes = 2 * latent_size, width, embedding_width
        self.inverse = ProjectionHead(*sizes) if inverse else None
        self.information = ProjectionHead(*sizes) if information else None

    def forward(self, latents: Tensor, predicted: Tensor, embedded: Tensor) -> dict[str, Tensor]:
        """Returns the losses of the existing heads.

        Args:
            latents: (B, N, Z).
            predicted: (B, N, Z), what follows them.
            embedded: (B, N, embedding_width), the actions between, without gradient.
        """
        pair = torch.cat([latents, predicted], dim=-1)
        losses = {}
        if self.inverse is not None:
            losses["inverse"] = (self.inverse(pair) - embedded).float().square().mean()
        if self.information is not None:
            mean, std = embedded.float().mean(dim=(0, 1)), embedded.float().std(dim=(0, 1))
            guess = self.information(pair).float()
            error = ((embedded - mean) / (std + 1e-6) - guess).square()
            losses["information"] = 0.5 * (error + 0.01 * guess.square()).mean()
        return losses
