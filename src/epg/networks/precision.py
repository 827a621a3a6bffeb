"""Networks in half precision, to sample with."""

import torch
from torch import nn

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
HALF = tuple(PRECISIONS.values())


def to_half_precision(network: nn.Module, dtype: torch.dtype) -> None:
    """Converts the weights that are multiplied, those of linear layers and convolutions, in place.

    Norms, embeddings and all residual sums stay float32, as in training.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
