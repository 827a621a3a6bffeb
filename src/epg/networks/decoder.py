"""EPG: pre-trained encoder and new decoder, joined by skips, as one pixel-space generator (table 7)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epg.cost.shape import NetworkShape
from epg.networks.encoder import PATCHES, Encoder
from epg.networks.layers import ConvPair, DecoderBlock, LayerNorm, init_linear, sinusoidal_embedding, zero_linear
from epg.networks.spectrum import Spectrum


class Decoder(nn.Module):
    """As many adaLN-Zero blocks as the encoder has, each fusing the encoder block opposite it (last one first).

    Where the encoder has a stem, the patches are put together as feature maps of its size, and a head of two
    convolutions makes the image of these and of the stem's output.
    """

    def __init__(self, encoder: Encoder, shape: NetworkShape) -> None:
        super().__init__()
        width = shape.decoder_width
        self.patch_size, self.width = encoder.patch_size, width
        has_stem = not isinstance(encoder.stem, nn.Identity)
        features = encoder.pixel_features
        self.head = ConvPair(2 * features, features, encoder.channels) if has_stem else None
        self.grid = encoder.image_size // encoder.patch_size
        same = encoder.width == width
        self.from_encoder = nn.Identity() if same else nn.Linear(encoder.width, width)
        self.blocks = nn.ModuleList(
            DecoderBlock(width, shape.decoder_heads, shape.mlp_ratio, encoder.width) for _ in range(len(encoder.blocks))
        )
        self.norm = LayerNorm(width)
        self.out = nn.Linear(width, encoder.patch_size**2 * encoder.pixel_features)
        self.apply(init_linear)
        zero_last = self.out if self.head is None else self.head[-1]
        assert isinstance(zero_last, nn.Linear | nn.Conv2d)
        zero_linear(zero_last)
        for block in self.blocks:
            assert isinstance(block, DecoderBlock)
            zero_linear(block.modulation)

    def forward(
        self,
        x: Tensor,
        skips: Sequence[Tensor],
        condition: Tensor,
        dropout: Tensor | None = None,
        pixels: Tensor | None = None,
    ) -> Tensor:
        """Encoder tokens (N, T, D_e), its blocks' outputs, condition (N, D_e) -> image-shaped output (N, C, H, W).

        `pixels` is the stem's output, for a head.
        `dropout` (blocks, N, T, D) holds a mask for every block, multiplied with the attention's output.
        """
        x = self.from_encoder(x)  # (N, T, D)
        for i, block in enumerate(self.blocks):
            x = block(x, skips[-1 - i], condition, None if dropout is None else dropout[i])
        image = self.unpatchify(self.out(self.norm(x)[:, PATCHES]))
        if self.head is not None:
            assert pixels is not None
            image = self.head(torch.cat([image, pixels.to(image.dtype)], dim=1))
        return image.contiguous()

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(N, grid * grid, p1 * p2 * C) -> (N, C, H, W), channels last in memory."""
        n, g, p = len(patches), self.grid, self.patch_size
        channels = patches.shape[-1] // p**2
        x = patches.view(n, g, g, p, p, channels).transpose(2, 3)  # (N, g, p1, g, p2, C)
        return x.reshape(n, g * p, g * p, channels).permute(0, 3, 1, 2)


class EPG(nn.Module):
    """The network F(x, c(t), labels).

    An unconditional model, of 0 classes, has no class embedding, and labels must be None. Otherwise the embedding has
    `num_classes + 1` rows, the last of which, `null_class`, means "no class".

    `spectrum`, of a shape with `gaussians`, is statistics of the training images for spectral preconditioning: they are
    not used here, but by the denoiser, and belong to what is saved.

    `internal_head`, of a shape with `internal`, predicts from the encoder's tokens alone what the decoder predicts.
    """

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.num_classes = num_classes = shape.num_classes
        self.encoder = encoder = Encoder(shape)
        self.decoder = Decoder(encoder, shape)
        self.class_embedding = nn.Embedding(num_classes + 1, encoder.width) if num_classes else None
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, std=0.02)
        self.spectrum = Spectrum(shape.gaussians, encoder.channels, encoder.image_size) if shape.gaussians else None
        outputs = encoder.patch_size**2 * encoder.channels
        self.internal_head = nn.Linear(encoder.width, outputs) if shape.internal else None
        if self.internal_head is not None:
            zero_linear(self.internal_head)

    @property
    def null_class(self) -> int:
        """The label that means "no class"."""
        return self.num_classes

    def forward(
        self,
        x: Tensor,
        time_condition: Tensor,
        labels: Tensor | None = None,
        dropout: Tensor | None = None,
        internal: bool = False,
        block: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """F (N, C, H, W) from scaled inputs x (N, C, H, W), c(t) (N,) and labels: (N,) int64, or weights of the table's
        rows (N, num_classes + 1), or None for no class. With `internal` (2, N, C, H, W): F, and the internal head's.
        With `block` beside it what that block of the encoder gives, (N, T, D_e)."""
        classes = self.embed_labels(labels, len(x))
        pixels = self.encoder.stem(x)  # (N, C or stem, H, W)
        tokens, skips = self.encoder.encode(pixels, time_condition, classes)
        condition = sinusoidal_embedding(time_condition, self.encoder.width).to(tokens.dtype)  # (N, D_e)
        if classes is not None:
            condition = condition + classes.to(tokens.dtype)
        image = self.decoder(tokens, skips, condition, dropout, pixels)
        if internal:
            assert self.internal_head is not None, "a network without an internal head"
            inner = self.decoder.unpatchify(self.internal_head(tokens[:, PATCHES]))
            image = torch.stack([image, inner.to(image.dtype)])
        return image if block is None else (image, skips[block])

    def embed_labels(self, labels: Tensor | None, n: int) -> Tensor | None:
        """Class embeddings (N, D_e), or None for an unconditional model."""
        if self.class_embedding is None:
            if labels is not None:
                raise ValueError("labels were given to an unconditional model (num_classes = 0)")
            return None
        if labels is None:
            labels = torch.full((n,), self.null_class, device=self.class_embedding.weight.device)
        if labels.is_floating_point():  # weights (N, num_classes + 1)
            rows = torch.arange(labels.shape[1], device=labels.device).expand(labels.shape)
            table = self.class_embedding.weight  # summed as it is, where autocast would round a product
            return F.embedding_bag(rows, table, per_sample_weights=labels.to(table.dtype), mode="sum")
        return self.class_embedding(labels)
