"""Alignment of a generator's tokens with those of a frozen encoder (REPA, arXiv 2410.06940)."""

import torch.nn.functional as F
from torch import Tensor, nn

from epg.networks.encoder import PATCHES
from epg.networks.layers import full_precision, init_linear


class Alignment(nn.Module):
    """1 - the cosine between `h(z)` and y of every patch, z being the generator's tokens of the noisy image and y the
    frozen encoder's of the clean one; h, three layers, is trained and used for nothing else.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = (nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.head = nn.Sequential(*layers)
        self.head.apply(init_linear)

    def forward(self, tokens: Tensor, clean: Tensor) -> Tensor:
        """All tokens (N, T, D) of both -> (N,), the mean over patches."""
        predicted = full_precision(self.head(tokens[:, PATCHES]))
        return 1 - F.cosine_similarity(predicted, full_precision(clean[:, PATCHES]), dim=-1).mean(1)
