"""The recurrent state-space model of Dreamer v3 (arXiv 2301.04104): a recurrent state and a discrete code.

    h_t = f(h_{t-1}, z_{t-1}, a_{t-1})         a GRU whose gates are normalised; h_0 = 0
    z_t ~ q(z_t | h_t, e_t)                    posterior, with the embedding e_t of the frame
    z^_t ~ p(z^_t | h_t)                       prior: the same without the frame, in imagination

A code is G categoricals of K classes, one-hot, whose probabilities are 99 % the network's and 1 % uniform. Samples
carry the gradient of the probabilities (straight-through). In evaluation mode a code is the most probable one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm_gym.nn.mlp import normed_mlp

UNIFORM_SHARE = 0.01


class LatentState(NamedTuple):
    """A state of the model.

    Attributes:
        recurrent: (..., D), h.
        code: (..., G K), z, one-hot in each group.
    """

    recurrent: Tensor
    code: Tensor

    @property
    def features(self) -> Tensor:
        """Both, (..., D + G K)."""
        return torch.cat([self.recurrent, self.code], dim=-1)


class RSSM(nn.Module):
    """Filters frames and imagines without them.

    Args:
        embedding_width: Width of a frame's embedding, E.
        action_width: Numbers in an action, A.
        recurrent_width: D.
        groups: Categoricals of a code, G.
        classes: Of each, K.
        hidden_width: Of the layers between.
    """

    def __init__(
        self,
        embedding_width: int,
        action_width: int,
        recurrent_width: int,
        groups: int,
        classes: int,
        hidden_width: int,
    ) -> None:
        super().__init__()
        self.recurrent_width, self.groups, self.classes = recurrent_width, groups, classes
        code = groups * classes
        self.mixed = nn.Sequential(nn.Linear(code + action_width, hidden_width), nn.LayerNorm(hidden_width), nn.SiLU())
        self.gates = nn.Sequential(
            nn.Linear(hidden_width + recurrent_width, 3 * recurrent_width, bias=False),
            nn.LayerNorm(3 * recurrent_width),
        )
        self.prior = normed_mlp(recurrent_width, (hidden_width,), code, nn.SiLU)
        self.posterior = normed_mlp(recurrent_width + embedding_width, (hidden_width,), code, nn.SiLU)

    @property
    def feature_width(self) -> int:
        """Width of a state's features."""
        return self.recurrent_width + self.groups * self.classes

    def advance(self, state: LatentState, action: Tensor) -> Tensor:
        """Returns the recurrent state (..., D) after an action (..., A)."""
        mixed = self.mixed(torch.cat([state.code, action], dim=-1))
        gates = self.gates(torch.cat([mixed, state.recurrent], dim=-1)).float()
        reset, candidate, update = gates.chunk(3, dim=-1)
        candidate = (reset.sigmoid() * candidate).tanh()
        kept = 1 - (update - 1).sigmoid()  # most of it at first
        return kept * state.recurrent + (1 - kept) * candidate

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Returns (..., G, K) of logits (..., G K), the uniform share mixed in."""
        probabilities = logits.float().unflatten(-1, (self.groups, self.classes)).softmax(dim=-1)
        return ((1 - UNIFORM_SHARE) * probabilities + UNIFORM_SHARE / self.classes).log()

    def draw(self, log_probabilities: Tensor) -> Tensor:
        """Returns codes (..., G K) of (..., G, K)."""
        scores = log_probabilities.detach()
        if self.training:  # Gumbel's noise makes the largest score a sample
            scores = scores - torch.empty_like(scores).exponential_().log()
        chosen = F.one_hot(scores.argmax(dim=-1), self.classes)
        probabilities = log_probabilities.exp()
        return (chosen + probabilities - probabilities.detach()).flatten(-2)

    def observe(self, embeddings: Tensor, actions: Tensor) -> tuple[LatentState, Tensor, Tensor]:
        """Returns the states of clips, (B, T, ...), and log-probabilities (B, T, G, K) of posteriors and priors.

        Args:
            embeddings: (B, T, E).
            actions: (B, T - 1, A), z-scored, between the frames.
        """
        recurrent = embeddings.new_zeros(len(embeddings), self.recurrent_width)
        states, posteriors = [], []
        for t, embedding in enumerate(embeddings.unbind(1)):
            posteriors.append(self.log_probabilities(self.posterior(torch.cat([recurrent, embedding], dim=-1))))
            states.append(LatentState(recurrent, self.draw(posteriors[-1])))
            if t < actions.shape[1]:
                recurrent = self.advance(states[-1], actions[:, t])
        seen = LatentState(*(torch.stack(part, dim=1) for part in zip(*states, strict=True)))
        priors = self.log_probabilities(self.prior(seen.recurrent))
        return seen, torch.stack(posteriors, dim=1), priors

    def imagine(self, state: LatentState, action: Tensor) -> LatentState:
        """Returns the state after an action (..., A), its code from the prior."""
        recurrent = self.advance(state, action)
        return LatentState(recurrent, self.draw(self.log_probabilities(self.prior(recurrent))))


def balanced_kl(posteriors: Tensor, priors: Tensor, free_nats: float = 1.0) -> tuple[Tensor, Tensor]:
    """Returns the losses of prior and posterior, (...,) each, of log-probabilities (..., G, K).

        L_dyn = max(free, KL(sg(q) || p)),   L_rep = max(free, KL(q || sg(p)))

    A divergence is that of all groups together, in nats; below `free_nats` it has no gradient.
    """

    def divergence(of: Tensor, to: Tensor) -> Tensor:
        return (of.exp() * (of - to)).sum(dim=(-2, -1)).clamp_min(free_nats)

    return divergence(posteriors.detach(), priors), divergence(posteriors, priors.detach())
