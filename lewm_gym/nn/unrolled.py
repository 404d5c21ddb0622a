"""The rollout from one latent as a straight line of operations, for export as ONNX.

It computes the same as `lewm_gym/nn/rollout.py`, from the same rearranged weights, but each operation and shape is
known when the graph is written, so that onnxruntime hardly slices and copies:

- once a frame is known, all that later windows need of it is computed together: a window that slides gives a frame
  another position, and other frames to attend to;
- attention is relative to the first frame of a window, whose score is then 0;
- tensors are matrices (R, width), or (windows, R, width), so that what is common to windows is broadcast.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm_gym.nn.rollout import Affine, Rollout


class Unrolled(nn.Module):
    """Predicts the latents of candidate plans from one latent, with the weights that a rollout has.

    Args:
        rollout: In float32.
    """

    def __init__(self, rollout: Rollout) -> None:
        super().__init__()
        self.rollout = rollout

    def forward(self, latent: Tensor, actions: Tensor) -> Tensor:
        """Returns predicted latents (R, H, Z) from a latent (1, Z) and z-scored candidates (R, H, A)."""
        rollout, n_blocks = self.rollout, int(actions.shape[1])
        activated = self._activated(actions, n_blocks)
        blocks = [_Block(block) for block in rollout.blocks]
        last_start = max(0, n_blocks - rollout.context)
        frame, predicted = latent, []
        for j in range(n_blocks):
            starts = range(max(0, j + 1 - rollout.context), min(j, last_start) + 1)  # of the windows that have frame j
            entry = rollout.latent_in
            x = _linear(entry, frame) if isinstance(entry, Affine) else frame
            x = _stacked([x + rollout.positions[j - start] for start in starts])
            for block in blocks:
                # The first window ends here; of the last block, only its output is needed.
                wanted = starts[:1] if block is blocks[-1] else starts
                x = block.advance(j, starts, wanted, x, activated[j])
            features = F.layer_norm(x, (int(x.shape[-1]),), eps=rollout.eps)
            change = _linear(rollout.head_out, F.gelu(_linear(rollout.head_in, features)))
            frame = frame + change if rollout.residual else change
            predicted.append(frame)
        return torch.stack(predicted, dim=1)

    def _activated(self, actions: Tensor, n_blocks: int) -> list[Tensor]:
        """Returns what modulates the blocks at each step, (R, width)."""
        hidden = F.silu(_linear(self.rollout.action_in, actions.transpose(0, 1)))
        return _unstacked(F.silu(_linear(self.rollout.action_out, hidden)), n_blocks)


class _Block:
    """A block of the predictor, and what it keeps of the windows that have begun.

    Attributes:
        weights: One of `Rollout.blocks`.
        first: Start of a window -> input of attention for its first frame, (R, width).
        alone: Start -> output of attention for that frame.
        later: Start -> inputs of attention for the window's later frames, less `first`.
    """

    def __init__(self, weights: Any) -> None:
        self.weights = weights
        matrices, biases = weights.modulation.weight.chunk(6), weights.modulation.bias.chunk(6)
        self.modulation = [Affine(*part) for part in zip(matrices, biases, strict=True)]
        self.first: dict[int, Tensor] = {}
        self.alone: dict[int, Tensor] = {}
        self.later: dict[int, list[Tensor]] = {}

    def advance(self, j: int, starts: range, wanted: range, x: Tensor, activated: Tensor) -> Tensor:
        """Returns the output for a frame in each window wanted, (R, width) or (windows, R, width).

        Args:
            j: Number of the frame.
            starts: Of the windows.
            wanted: The first of them, those whose output is needed.
            x: Input for the frame in each window, (R, width) or (windows, R, width).
            activated: What modulates it, (R, width).
        """
        weights, n = self.weights, len(wanted)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (_linear(part, activated) for part in self.modulation)
        seen = _unstacked(_modulated(x, scale, shift, weights.eps, weights.attention_eps), len(starts))
        for start, row in zip(starts, seen, strict=True):
            if start == j:
                self.first[j], self.alone[j], self.later[j] = row, _linear(weights.attention.alone, row), []
            else:
                self.later[start].append(row - self.first[start])
        if n < len(starts):
            x = _stacked(_unstacked(x, len(starts))[:n])
        x = x + self._attention(j, wanted, seen) * gate
        hidden = _linear(weights.mlp_in, _modulated(x, mlp_scale, mlp_shift, weights.eps, weights.mlp_eps))
        return x + _as_stack(_linear(weights.mlp_out, F.gelu(hidden)), n) * mlp_gate

    def _attention(self, j: int, wanted: range, seen: list[Tensor]) -> Tensor:
        """Returns the output of attention for frame j in each window wanted, (R, width) or (windows, R, width)."""
        attention, older = self.weights.attention, [start for start in wanted if start < j]
        out = [self.alone[start] for start in wanted]
        if older:
            n = len(older)
            queries = _unstacked(_linear(attention.query, _stacked(seen[:n])), n)
            memories = [self.later[start] for start in older]
            found = [_weighted(*pair, attention.heads) for pair in zip(queries, memories, strict=True)]
            changes = _unstacked(F.linear(_as_rows(_stacked(found)), attention.out.weight), n)  # its bias is in `alone`
            out[:n] = [one + change for one, change in zip(out[:n], changes, strict=True)]
        return _stacked(out)


def _weighted(query: Tensor, frames: list[Tensor], heads: int) -> Tensor:
    """Returns frames (R, width) weighted by their softmax beside a score of 0, for each head: (R, heads x width).

    Args:
        query: (R, heads x width).
        frames: Those that have a score.
        heads: How many.
    """
    width = int(query.shape[-1]) // heads
    queries, keys = query.reshape(-1, heads, width), [frame.reshape(-1, 1, width) for frame in frames]
    scores = [(queries * key).sum(dim=-1, keepdim=True) for key in keys]
    gathered = None
    for i, key in enumerate(keys):
        others = scores[:i] + scores[i + 1 :]
        weighted = torch.sigmoid(scores[i] - _log_total(others) if others else scores[i]) * key
        gathered = weighted if gathered is None else gathered + weighted
    assert gathered is not None
    return gathered.reshape(-1, heads * width)


def _log_total(scores: list[Tensor]) -> Tensor:
    """Returns log(1 + sum of exp(score))."""
    total = F.softplus(scores[0])
    for score in scores[1:]:
        total = total + F.softplus(score - total)
    return total


def _modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float, outer_eps: float) -> Tensor:
    width = (int(x.shape[-1]),)
    return F.layer_norm(F.layer_norm(x, width, eps=eps) * scale + shift, width, eps=outer_eps)


def _linear(layer: Affine, x: Tensor) -> Tensor:
    """Returns (rows, out), as one product of matrices."""
    return F.linear(_as_rows(x), layer.weight, layer.bias)


def _as_rows(x: Tensor) -> Tensor:
    """Returns the rows (n, width) of a stack, or of its only window."""
    return x if x.dim() == 2 else x.reshape(-1, int(x.shape[-1]))


def _stacked(parts: list[Tensor]) -> Tensor:
    """Returns (windows, R, width), or (R, width) of one window."""
    return parts[0] if len(parts) == 1 else torch.stack(parts)


def _as_stack(rows: Tensor, n: int) -> Tensor:
    """Returns (windows, R, width) of the rows of all of them."""
    return rows if n == 1 else rows.reshape(n, -1, int(rows.shape[-1]))


def _unstacked(x: Tensor, n: int) -> list[Tensor]:
    """Returns the n parts (R, width) of a stack, or of its rows."""
    return [x] if n == 1 else list(_as_stack(x, n).unbind(0))
