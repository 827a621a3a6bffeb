"""Between pixels and network values: `(x - mean) / (2 std)`, so that the data has about zero mean and std 0.5."""

from dataclasses import dataclass

import torch
from torch import Tensor

from epg.errors import UserError


@dataclass(frozen=True)
class Normalizer:
    """Affine normalisation per channel; `mean` and `std` are those of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        # Read from YAML or JSON they arrive as lists, which are not hashable.
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise UserError(
                f"normalisation: mean {self.mean} and std {self.std} must have one value per channel, std > 0"
            )

    @classmethod
    def imagenet(cls) -> "Normalizer":
        """ImageNet's mean and std: data with zero mean and std 0.5 (three channels)."""
        return cls((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    @classmethod
    def symmetric(cls, channels: int = 3) -> "Normalizer":
        """Pixels mapped to [-1, 1]."""
        return cls((0.5,) * channels, (0.25,) * channels)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def encode(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 pixels (N, C, H, W) -> network values, computed in and of this type."""
        return self.encode_unit(images.to(dtype) / 255, dtype)

    def encode_unit(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Float pixels in [0, 1], (N, C, H, W) -> network values, computed in and of this type."""
        mean, double_std = self._statistics(images, dtype)
        return (images.to(dtype) - mean) / double_std

    def decode_unit(self, values: Tensor) -> Tensor:
        """Network values (N, C, H, W) -> float32 pixels, 0 to 1 where the values lie within `bounds`."""
        mean, double_std = self._statistics(values)
        return values.float() * double_std + mean

    def decode(self, values: Tensor) -> Tensor:
        """Network values (N, C, H, W) -> uint8 pixels, rounded and clamped."""
        return (self.decode_unit(values) * 255).round().clamp(0, 255).to(torch.uint8)

    def bounds(self, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """Float32 (C, 1, 1) network values of pixel 0 and of pixel 255."""
        black = torch.zeros(1, self.channels, 1, 1, dtype=torch.uint8, device=device)
        return self.encode(black)[0], self.encode(black + 255)[0]

    def _statistics(self, images: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Mean and twice the std, (C, 1, 1)."""
        if images.ndim < 3 or images.shape[-3] != self.channels:
            raise UserError(
                f"normalisation has {self.channels} channels, but the images have shape {tuple(images.shape)}"
            )
        # Filled on the device: copying a list there would make the host wait for everything queued before.
        mean, std = (
            torch.stack([torch.full((1, 1), value, dtype=dtype, device=images.device) for value in values])
            for values in (self.mean, self.std)
        )
        return mean, 2 * std
