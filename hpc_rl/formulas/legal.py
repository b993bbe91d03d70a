"""Distributions over the moves that a game's rules allow."""

from __future__ import annotations

import torch
from torch import Tensor


def legal_log_probs(logits: Tensor, legal: Tensor) -> Tensor:
    """log p [.., A] of logits [.., A] over the legal [.., A] bool moves, −∞ for the others; over all where none is."""
    allowed = legal | ~legal.any(-1, keepdim=True)
    return logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
