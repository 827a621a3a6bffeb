"""RCM: the ViT encoder of the paper with its pre-training projector (table 8)."""

import torch
from torch import Tensor, nn

from epg.cost.shape import NetworkShape
from epg.networks.layers import (
    BatchNorm,
    ConvPair,
    EncoderBlock,
    LayerNorm,
    PatchEmbedding,
    init_linear,
    sinusoidal_embedding,
)

CLS, TIME, PATCHES = 0, 1, slice(2, None)  # places in the token sequence


class Encoder(nn.Module):
    """ViT over the tokens `[CLS, time, patches]`; a stem is two 3x3 convolutions before the patches."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        image_size, patch_size, width = shape.sample_size, shape.patch_size, shape.encoder_width
        channels, stem = shape.in_channels, shape.stem
        self.image_size, self.patch_size, self.channels, self.width = image_size, patch_size, channels, width
        self.num_tokens = shape.tokens
        self.stem = ConvPair(channels, stem, stem) if stem else nn.Identity()
        self.pixel_features = stem or channels
        self.patch_embedding = PatchEmbedding(self.pixel_features, width, patch_size)
        assert self.patch_embedding.bias is not None
        nn.init.zeros_(self.patch_embedding.bias)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, self.num_tokens, width))
        self.blocks = nn.ModuleList(
            EncoderBlock(width, shape.encoder_heads, shape.mlp_ratio) for _ in range(shape.depth)
        )
        self.norm = LayerNorm(width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.apply(init_linear)
        nn.init.xavier_uniform_(self.patch_embedding.weight.view(self.width, -1))
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)

    def forward(
        self, x: Tensor, time_condition: Tensor, class_embedding: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens after the final norm (N, T, D) and the output of every block, first block first.

        x (N, C, H, W) is already scaled by c_in; time_condition (N,) is c(t); class_embedding (N, D) is added to CLS.
        """
        return self.encode(self.stem(x), time_condition, class_embedding)

    def encode(
        self, x: Tensor, time_condition: Tensor, class_embedding: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """`forward` from the stem's output, which is x where there is none."""
        n = len(x)
        patches = self.patch_embedding(x)  # (N, T-2, D)
        time = sinusoidal_embedding(time_condition, self.width)  # (N, D)
        cls = self.cls_token.expand(n, -1, -1)  # (N, 1, D)
        if class_embedding is not None:
            cls = cls + class_embedding[:, None]
        # Under autocast this is float32, and so is every residual sum after it.
        x = torch.cat([cls, time[:, None].to(cls), patches.to(cls)], dim=1) + self.position_embedding  # (N, T, D)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return self.norm(x), outputs


class Projector(nn.Sequential):
    """Three-layer MLP of the contrastive loss: BatchNorm and ReLU between, no biases, no normalisation at the end."""

    def __init__(self, width: int, hidden: int = 4096, out: int = 256) -> None:
        super().__init__(
            nn.Linear(width, hidden, bias=False),
            BatchNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden, bias=False),
            BatchNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, out, bias=False),
        )
        self.apply(init_linear)


class RCM(nn.Module):
    """Representation consistency model: encoder and projector."""

    def __init__(self, encoder: Encoder, projector: Projector) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def encode(self, x: Tensor, time_condition: Tensor) -> Tensor:
        """CLS features (N, D) of scaled inputs x (N, C, H, W) at c(t) (N,)."""
        return self.encoder(x, time_condition)[0][:, CLS]

    def project(self, features: Tensor) -> Tensor:
        """Projections (N, 256) of CLS features (N, D); uses batch statistics in training mode."""
        return self.projector(features)
