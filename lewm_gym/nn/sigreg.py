"""SIGReg: how far latents are from an isotropic Gaussian, in random directions (arXiv 2511.08544; 2603.19312, eq. 3).

For each direction the Epps-Pulley statistic compares the empirical characteristic function of the projected
latents h_1..h_B with that of N(0, 1), weighted by exp(-t^2 / 2), over t in [0, 3]:

    T = B * sum_k w_k [ (mean_b cos(t_k h_b) - exp(-t_k^2 / 2))^2 + (mean_b sin(t_k h_b))^2 ]

If a batch is shared by processes, the means are over the whole batch, with gradient, along the same directions: the
statistic is not additive over parts.

Both parts are even in t, so the knots cover half the axis and the trapezoid weights are doubled. T averages 1.0525 over
standard Gaussian samples, whatever B, and about 0.402 B over a collapsed batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lewm_gym.nn.distributed import all_mean, from_first, world_size


class SIGReg(nn.Module):
    """Mean statistic over random unit directions and over time steps: (T, B, Z) -> scalar.

    Args:
        n_directions: Random directions, sampled from torch's global generator at every call.
        n_knots: Points of the integration over [0, t_max].
        t_max: Upper end of the integration.
    """

    knots: Tensor  # (n_knots,)
    gaussian: Tensor  # (n_knots,), characteristic function of N(0, 1)
    weights: Tensor  # (n_knots,), of the integration

    def __init__(self, n_directions: int = 1024, n_knots: int = 17, t_max: float = 3.0) -> None:
        super().__init__()
        if n_directions < 1 or n_knots < 2:
            raise ValueError(f"SIGReg needs a direction and two knots, got {n_directions} and {n_knots}")
        self.n_directions = n_directions
        knots = torch.linspace(0, t_max, n_knots, dtype=torch.float64)
        weights = torch.full((n_knots,), 2 * t_max / (n_knots - 1), dtype=torch.float64)
        weights[[0, -1]] /= 2
        gaussian = torch.exp(-knots.square() / 2)
        self.register_buffer("knots", knots.float(), persistent=False)
        self.register_buffer("gaussian", gaussian.float(), persistent=False)
        self.register_buffer("weights", (weights * gaussian).float(), persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Returns the statistic of latents (T, B, Z), in float32."""
        return self.statistic(latents, self.draw_directions(latents))

    def draw_directions(self, latents: Tensor) -> Tensor:
        """Returns random unit columns, (Z, n_directions) float32."""
        directions = from_first(torch.randn(latents.shape[-1], self.n_directions, device=latents.device))
        return directions / directions.norm(dim=0, keepdim=True)

    def statistic(self, latents: Tensor, directions: Tensor) -> Tensor:
        """Returns the statistic of latents (T, B, Z) along given unit directions (Z, P); float32, autocast or not."""
        with torch.autocast(latents.device.type, enabled=False):
            projected = latents.float() @ directions
            return _EppsPulley.apply(projected, self.knots, self.gaussian, self.weights).mean()


class _EppsPulley(torch.autograd.Function):
    """T of projections (T, B, P) for each time step and direction, (T, P).

    Implemented by hand because autograd would store cosines and sines of shape (T, B, P, knots). A direction's T only
    depends on its own projections, so its gradient can be accumulated knot by knot, together with T:

        d T / d h_b = sum_k 2 w_k t_k (imaginary_k cos(t_k h_b) - real_k sin(t_k h_b))    (B cancels the mean's 1 / B)

    The knots are equally spaced, so the angles t_k h follow from repeated rotation by t_1 h, with one sine and one
    cosine in all. At t_0 = 0 both characteristic functions are 1.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, knots: Tensor, gaussian: Tensor, weights: Tensor) -> Tensor:
        """Returns T, and stores its gradient if it is required."""
        cos_step, sin_step = (projected * knots[1]).cos(), (projected * knots[1]).sin()
        cos, sin = cos_step, sin_step
        distance = torch.zeros_like(projected[..., 0, :])
        gradient = torch.zeros_like(projected) if ctx.needs_input_grad[0] else None
        for k in range(1, len(knots)):
            if k > 1:
                turned = torch.addcmul(cos * cos_step, sin, sin_step, value=-1)
                sin = torch.addcmul(sin * cos_step, cos, sin_step)
                cos = turned
            real, imaginary = all_mean(torch.stack([cos.mean(dim=-2), sin.mean(dim=-2)]))
            real = real - gaussian[k]
            distance += weights[k] * (real.square() + imaginary.square())
            if gradient is not None:
                factor = 2 * weights[k] * knots[k]
                gradient.addcmul_(cos, (factor * imaginary).unsqueeze(-2))
                gradient.addcmul_(sin, (factor * real).unsqueeze(-2), value=-1)
        # Every process's loss holds all of T: gradients are those of the sum over processes (nn/distributed.py).
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(world_size()))
        return world_size() * projected.shape[-2] * distance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].unsqueeze(-2), None, None, None
