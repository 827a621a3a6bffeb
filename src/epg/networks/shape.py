"""The sizes of a network, in one place: of the configuration, of the network itself, and of a saved pipeline."""

from dataclasses import dataclass


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
