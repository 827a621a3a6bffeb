"""What a trained encoder makes of images at any noise level: its tokens, of stage 1 or of a generator."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from epg.data.views.normalize import Normalizer
from epg.errors import UserError
from epg.randomness import normal
from epg.schedule import input_scale, time_condition

if TYPE_CHECKING:
    from epg.config.sections import NoiseConfig
    from epg.networks import Encoder


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder with the scale of images and noise that it was trained with."""

    network: "Encoder"
    normalizer: Normalizer
    noise: "NoiseConfig"
    shift: float
    condition: Tensor | None = None
    """What a class-conditional generator adds to the CLS token for "no class", (D,)."""

    @torch.no_grad()
    def features(
        self, images: Tensor, sigma: float = 0.0, *, seed: int = 0, first: int = 0, batch_size: int = 64
    ) -> Tensor:
        """Tokens (N, T, D) after the final norm, float32, on the CPU: CLS, time, then the patches row by row.

        Args:
            images: (N, C, H, W); uint8 pixels get noise of level `sigma` here, a function of `seed` and their number,
                which begins at `first`; floats are network values that have it already.
            sigma: the level as it is added to network values, so times the shift; 0 is the smallest.

        Raises UserError for images of another shape, or a level that is negative.
        """
        expected = (self.normalizer.channels, self.network.image_size, self.network.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise UserError(
                f"images: shape {tuple(images.shape)}, but (N, {', '.join(map(str, expected))}) is expected"
            )
        if not 0 <= sigma < float("inf"):
            raise UserError(f"sigma {sigma}: a level of noise is 0 or more")
        t = self.level(sigma)
        parts = []
        for start in range(0, len(images), batch_size):
            x = images[start : start + batch_size]
            if images.dtype == torch.uint8:
                indices = range(first + start, first + start + len(x))
                x = self.noisy(x, normal(indices, expected, seed, "features", device=self.device), t)
            parts.append(self.tokens(x, t).float().cpu())
        return torch.cat(parts)

    @property
    def device(self) -> torch.device:
        return self.network.position_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic around the network: float32 at least."""
        return torch.promote_types(torch.float32, self.network.position_embedding.dtype)

    def level(self, sigma: float) -> float:
        """A shifted level of noise, or the smallest of training."""
        return max(sigma, self.shift * self.noise.sigma_min)

    def noisy(self, images: Tensor, noise: Tensor, t: float) -> Tensor:
        """`x + t eps` of uint8 images and noise (N, C, H, W), in network values."""
        return self.normalizer.encode(images.to(self.device), self.dtype) + t * noise.to(self.device, self.dtype)

    def scaled(self, noisy: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """What the network is given: `c_in(t)` times noisy images (N, C, H, W), and t (N,)."""
        sigma = torch.full((len(noisy),), t, dtype=self.dtype, device=self.device)
        x = noisy.to(self.device, self.dtype)
        return input_scale(sigma, self.noise.sigma_data).view(-1, 1, 1, 1) * x, sigma

    def tokens(self, noisy: Tensor, t: float) -> Tensor:
        """All tokens (N, T, D) of noisy images, in one pass."""
        scaled, sigma = self.scaled(noisy, t)
        classes = None if self.condition is None else self.condition.expand(len(scaled), -1)
        half = self.network.patch_embedding.weight.dtype
        with torch.autocast(self.device.type, half, enabled=half in (torch.bfloat16, torch.float16)):
            return self.network(scaled, time_condition(sigma), classes)[0]
