"""The predictor's rollout, optimised for planning.

It computes the same as `ProjectionHead(Predictor(...))` step by step, up to rounding. What makes it cheaper:

- BatchNorm and the affine part of every LayerNorm are folded into the following linear layers, and consecutive
  matrix products are merged: queries with keys, values with outputs;
- action embeddings and modulations are computed once for all steps;
- while the window grows, the inputs of attention are cached; once it slides, every frame has a new position;
- the last block computes the last frame only, and the first frame of a window needs no attention scores;
- in bf16 the weights are stored as bf16. Residuals, norms, scores and latents stay float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lewm_gym.nn.heads import ActionEncoder, ProjectionHead
from lewm_gym.nn.predictor import CausalAttention, Predictor, PredictorBlock


class Affine(NamedTuple):
    """A linear layer's weight (out, in) and bias (out,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Returns (..., out), in the precision of the weight."""
        rows = x.to(self.weight.dtype).reshape(-1, x.shape[-1])  # as a matrix: torch broadcasts the weight otherwise
        return F.linear(rows, self.weight, self.bias).view(*x.shape[:-1], -1)

    def after(self, scale: Tensor, shift: Tensor) -> Affine:
        """Returns the layer whose output for x is this one's for x * scale + shift."""
        return Affine(self.weight * scale, self.bias + self.weight @ shift)

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> Affine:
        """Returns the layer in another precision, and on another device."""
        return Affine(self.weight.to(device, dtype), self.bias.to(device, dtype))


def _affine(linear: Any) -> Affine:
    return Affine(linear.weight.detach(), linear.bias.detach())


def _wide(tensor: Tensor) -> Tensor:
    """Returns it in float64, on the CPU if its device (an Apple GPU) has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


class _Attention:
    """Attention of the last frames of a window to all before them, of normalised frames (R, n, width).

    A head's scores are bilinear in the frames, q k = y (Wq^T Wk) y', and its output is linear in them: one matrix gives
    the queries, in the space of the frames, another one maps the weighted frames to the output, and the frames
    themselves are keys and values of all heads.
    """

    def __init__(self, attention: CausalAttention, dtype: torch.dtype) -> None:
        self.heads = attention.heads
        # In float64, so that folding adds no error of its own.
        norm, linear = attention.norm, _wide(attention.query_key_value.weight)
        last: Any = attention.out[0]
        query, key, value = linear.unflatten(0, (3, self.heads, -1))  # each (heads, head_width, width)
        out = _wide(last.weight).unflatten(1, (self.heads, -1))  # (width, heads, head_width)
        scale, shift = _wide(norm.weight), _wide(norm.bias)
        # The key's shift adds the same to all scores of a query, which softmax does not see.
        query_weight = torch.einsum("hde,hdf->hfe", query * scale, key * scale) * query.shape[1] ** -0.5
        query_bias = torch.einsum("hd,hdf->hf", query @ shift, key * scale) * query.shape[1] ** -0.5
        out_weight = torch.einsum("ehd,hdf->ehf", out, value * scale)
        out_bias = _wide(last.bias) + torch.einsum("ehd,hd->e", out, value @ shift)
        there = last.weight.device
        self.query = Affine(query_weight.flatten(0, 1), query_bias.flatten()).to(dtype, there)
        self.out = Affine(out_weight.flatten(1), out_bias).to(dtype, there)
        self.alone = Affine(out_weight.sum(dim=1), out_bias).to(dtype, there)  # for a frame that sees itself only

    def __call__(self, frames: Tensor, wanted: int) -> Tensor:
        """Returns the output (R, wanted, width) for the last frames of a window (R, n, width)."""
        n_frames, n_queries = frames.shape[1], min(wanted, frames.shape[1] - 1)
        if not n_queries:
            return self.alone(frames)
        queries = self.query(frames[:, -n_queries:]).float().view(-1, n_queries * self.heads, frames.shape[-1])
        scores = frames @ queries.transpose(1, 2)  # (R, n, queries x heads)
        if n_queries > 1:
            future = torch.ones(n_frames, n_queries, dtype=torch.bool, device=frames.device)
            future = future.tril(n_queries - n_frames - 1)
            scores = scores.masked_fill(future.repeat_interleave(self.heads, dim=1), -torch.inf)
        weights = scores.softmax(dim=1)
        if n_queries == 1:  # torch takes four times as long for so thin a batch of products
            gathered = (weights.unsqueeze(3) * frames.unsqueeze(2)).sum(dim=1)
        else:
            gathered = weights.transpose(1, 2) @ frames
        out = self.out(gathered.view(-1, n_queries, self.heads * frames.shape[-1]))
        return out if n_queries == wanted else torch.cat([self.alone(frames[:, :1]), out], dim=1)


class _Block:
    """One block of the predictor, for frames (R, n, width): n frames of R candidates."""

    def __init__(self, block: PredictorBlock, dtype: torch.dtype) -> None:
        mlp: Any = block.mlp
        self.eps, self.attention_eps, self.mlp_eps = block.norm.eps, block.attention.norm.eps, float(mlp[0].eps)
        self.modulation = _with_one_added_to_scales(_affine(block.modulation)).to(dtype)
        self.attention = _Attention(block.attention, dtype)
        self.mlp_in = _affine(mlp[1]).after(mlp[0].weight, mlp[0].bias).to(dtype)
        self.mlp_out = _affine(mlp[4]).to(dtype)

    def __call__(self, x: Tensor, modulation: Tensor, past: Tensor | None, last_only: bool) -> tuple[Tensor, Tensor]:
        """Returns the block's output for the frames, or the last one only, and the inputs of attention for all.

        Args:
            x: (R, n, width).
            modulation: (R, n, 6, width): shift, 1 + scale and gate for attention, then for the MLP.
            past: (R, m, width), inputs of attention for the m frames before them; None for none.
            last_only: Whether to compute only the last frame's output.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.unbind(2)
        seen = _modulated(x, scale, shift, self.eps, self.attention_eps)
        if past is not None:
            seen = torch.cat([past, seen], dim=1)
        if last_only:
            x, gate, mlp_shift, mlp_scale, mlp_gate = (t[:, -1:] for t in (x, gate, mlp_shift, mlp_scale, mlp_gate))
        x = torch.addcmul(x, gate, self.attention(seen, x.shape[1]))
        hidden = F.gelu(self.mlp_in(_modulated(x, mlp_scale, mlp_shift, self.eps, self.mlp_eps)))
        return torch.addcmul(x, mlp_gate, self.mlp_out(hidden)), seen


def _modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float, outer_eps: float) -> Tensor:
    """Returns x normalised, modulated and normalised again; the affine part is folded into the next layer."""
    width = (int(x.shape[-1]),)
    return F.layer_norm(torch.addcmul(shift, F.layer_norm(x, width, eps=eps), scale), width, eps=outer_eps)


class Rollout:
    """Predicts the latents of candidate plans; has rearranged copies of the weights.

    Args:
        action_encoder: The world model's.
        predictor: The world model's.
        head: Maps the predictor's features to latents.
        dtype: Of the matrix products: float32 or bfloat16.
        residual: Whether the head predicts the change of the latest latent.
    """

    def __init__(
        self,
        action_encoder: ActionEncoder,
        predictor: Predictor,
        head: ProjectionHead,
        dtype: torch.dtype,
        residual: bool = False,
    ) -> None:
        self._parts = (action_encoder, predictor, head)
        self.residual = residual
        self._stamps = _stamps(self._parts)
        with torch.inference_mode(False), torch.no_grad():  # copies that gradients of actions may pass through
            self.context = predictor.context
            entry = predictor.latent_in
            self.latent_in = _affine(entry) if isinstance(entry, torch.nn.Linear) else entry
            self.positions = predictor.positions[0].clone()
            smooth = _affine(action_encoder.smooth)
            inner = _affine(action_encoder.linear_in)
            self.action_in = Affine(inner.weight @ smooth.weight, inner.bias + inner.weight @ smooth.bias)
            self.action_out = _affine(action_encoder.linear_out).to(dtype)
            self.blocks = [_Block(block, dtype) for block in predictor.blocks]  # type: ignore[arg-type]
            self.eps = predictor.norm.eps
            norm: Any = head.norm
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            first = _affine(head.linear_in)
            first = Affine(first.weight * scale[:, None], (first.bias - norm.running_mean) * scale + norm.bias)
            self.head_in = first.after(predictor.norm.weight, predictor.norm.bias).to(dtype)
            self.head_out = _affine(head.linear_out).to(dtype)

    @property
    def is_current(self) -> bool:
        """Whether the copies match the current weights."""
        now = _stamps(self._parts)
        return len(now) == len(self._stamps) and all(
            new is old and rest == stamp for (new, *rest), (old, *stamp) in zip(now, self._stamps, strict=True)
        )

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Returns predicted latents (R, H, Z), float32.

        Args:
            latents: (R, n, Z), the past and, last, the current one; n no more than the context.
            actions: (R, n - 1 + H, A), z-scored, from the first of these frames on.
        """
        n_given, n_blocks = latents.shape[1], actions.shape[1]
        modulations = self._modulations(actions)
        frames = list(latents.float().split(1, dim=1))
        past: list[Tensor | None] = [None] * len(self.blocks)
        for end in range(n_given, n_blocks + 1):
            start = max(0, end - self.context)
            kept = 0 if start or past[0] is None else past[0].shape[1]  # frames of this window already seen
            new = slice(start + kept, end)
            x = self.latent_in(torch.cat(frames[new], dim=1)) + self.positions[kept : end - start]
            for i, block in enumerate(self.blocks):
                x, past[i] = block(x, modulations[i][:, new], past[i] if kept else None, i == len(self.blocks) - 1)
            features = F.layer_norm(x, (int(x.shape[-1]),), eps=self.eps)
            predicted = self.head_out(F.gelu(self.head_in(features))).float()
            frames.append(frames[-1] + predicted if self.residual else predicted)
        return torch.cat(frames[n_given:], dim=1)

    def _modulations(self, actions: Tensor) -> list[Tensor]:
        """Returns each block's (R, T, 6, width) of actions (R, T, A), float32."""
        activated = F.silu(self.action_out(F.silu(self.action_in(actions))))
        return [block.modulation(activated).float().unflatten(-1, (6, -1)) for block in self.blocks]


def _with_one_added_to_scales(modulation: Affine) -> Affine:
    """Returns a block's modulation with 1 added to the scales."""
    bias = modulation.bias.unflatten(0, (6, -1)).clone()
    bias[[1, 4]] += 1.0
    return Affine(modulation.weight, bias.flatten())


def _stamps(parts: Iterable[torch.nn.Module]) -> list[tuple[Tensor, int, int]]:
    """Returns the address and version counter of every weight."""
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    return [(t, t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
