"""The small networks around the predictor: projection heads and the action encoder."""

from __future__ import annotations

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
