"""The sizes of a network, in one place: of the configuration, of the network itself, and of a saved pipeline."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from epg.config.sections import DataConfig, ModelConfig


@dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """Everything that decides which tensors an `EPG` has; its encoder is that of an `RCM` too.

    Raises ValueError where sizes do not go together.
    """

    sample_size: int
    """Side of the square images."""
    patch_size: int
    depth: int
    """Blocks of the encoder, and of the decoder."""
    encoder_width: int
    encoder_heads: int
    decoder_width: int
    decoder_heads: int
    in_channels: int = 3
    """Image channels."""
    num_classes: int = 0
    """0 is unconditional; the null class of any other network is `num_classes`."""
    mlp_ratio: float = 4.0
    stem: int = 0
    """Channels of a convolutional stem before the patches and of a head after them; 0 for none."""
    gaussians: int = 0
    """Of the `Spectrum` that spectral preconditioning needs: 1, or `num_classes + 1`; 0 for none."""

    internal: bool = False
    """Whether there is a head on the encoder's tokens, for internal guidance."""

    @property
    def tokens(self) -> int:
        """CLS, time and the patches."""
        return (self.sample_size // self.patch_size) ** 2 + 2

    def __post_init__(self) -> None:
        if self.sample_size % self.patch_size:
            raise ValueError(f"image size {self.sample_size} is not a multiple of the patch size {self.patch_size}")
        for width, heads in ((self.encoder_width, self.encoder_heads), (self.decoder_width, self.decoder_heads)):
            if width % heads:
                raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        if self.gaussians not in (0, 1, self.num_classes + 1):
            raise ValueError(
                f"{self.gaussians} gaussians are neither 0, 1, nor one more than {self.num_classes} classes"
            )


def shape_of(model: "ModelConfig", data: "DataConfig", gaussians: int = 0, internal: bool = False) -> NetworkShape:
    """The shape that a configuration describes. `gaussians`: those of a generator's `spectrum`; `internal`: a head on
    its encoder."""
    return NetworkShape(
        sample_size=data.image_size,
        patch_size=model.patch_size,
        depth=model.encoder.depth,
        encoder_width=model.encoder.width,
        encoder_heads=model.encoder.heads,
        decoder_width=model.decoder.width,
        decoder_heads=model.decoder.heads,
        in_channels=data.channels,
        num_classes=model.num_classes or 0,
        mlp_ratio=model.mlp_ratio,
        stem=model.stem,
        gaussians=gaussians,
        internal=internal,
    )
