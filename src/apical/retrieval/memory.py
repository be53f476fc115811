"""The codes of a whole training set, renewed batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apical.retrieval.database import check_labels
from apical.retrieval.losses import Bank


class Memory(nn.Module):
    """The last code u that each training example was given; losses on pairs compare with it.

    A module with buffers, so that it moves, is saved and is restored with the rest.

    Args: labels: (N,) class numbers or (N, classes) of 0 and 1. bits: K.
    Codes that no batch has renewed yet are zero, and pull nowhere.
    """

    codes: Tensor
    labels: Tensor

    def __init__(self, labels: Tensor, bits: int) -> None:
        super().__init__()
        check_labels(labels, len(labels))
        self.register_buffer("codes", torch.zeros(len(labels), bits))
        self.register_buffer("labels", labels.detach().clone())

    @torch.no_grad()
    def renew(self, rows: Tensor, u: Tensor) -> Bank:
        """Store the codes of these examples; returns everything, without gradients.

        Shapes: rows (B,) places in the training set, u (B, K).
        """
        self.codes[rows] = u.detach().to(self.codes.dtype)
        # a copy: the next batch changes the memory, while this one's graph may still need it
        return Bank(self.codes.clone(), self.labels)
