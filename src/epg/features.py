"""What a trained encoder makes of images at any noise level: its tokens, of stage 1 or of a generator."""

from collections.abc import Sequence
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
        t = max(sigma, self.shift * self.noise.sigma_min)
        parts = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            parts.append(self._tokens(batch, t, range(first + start, first + start + len(batch)), seed))
        return torch.cat(parts)

    def _tokens(self, images: Tensor, t: float, indices: Sequence[int], seed: int) -> Tensor:
        like = self.network.position_embedding
        dtype = torch.promote_types(torch.float32, like.dtype)
        x = images.to(like.device)
        if images.dtype == torch.uint8:
            noise = normal(indices, tuple(images.shape[1:]), seed, "features", device=like.device)
            x = self.normalizer.encode(x, dtype) + t * noise.to(dtype)
        sigma = torch.full((len(x),), t, dtype=dtype, device=like.device)
        classes = None if self.condition is None else self.condition.expand(len(x), -1)
        half = self.network.patch_embedding.weight.dtype
        with torch.autocast(like.device.type, half, enabled=half in (torch.bfloat16, torch.float16)):
            scaled = input_scale(sigma, self.noise.sigma_data).view(-1, 1, 1, 1) * x.to(dtype)
            tokens, _ = self.network(scaled, time_condition(sigma), classes)
        return tokens.float().cpu()
