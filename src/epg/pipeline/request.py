"""What a call of the pipeline asks for in its own way: seeds, noise, and the type of the images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from epg.data.views.normalize import Normalizer
from epg.generator import Generator

Randomness = int | torch.Generator | Sequence[torch.Generator] | None
Seeds = tuple[tuple[int, range], ...]


@dataclass(frozen=True)
class RequestedGenerator(Generator):
    """Draws what a call asked for: images with seeds and indices of their own, or from given noise."""

    seeds: Seeds = ()
    latents: Tensor | None = None
    place: torch.device | None = None
    """Where the network computes: while it is offloaded, its weights are elsewhere."""

    @property
    def device(self) -> torch.device:
        return super().device if self.place is None else self.place

    def unit_noise(self, indices: Sequence[int], seed: int = 0, step: int = -1) -> Tensor:
        if step == -1 and self.latents is not None:
            return self.latents.to(self.device, torch.float32)
        draw = super().unit_noise
        return torch.cat([draw(images, seed, step) for seed, images in self.seeds])


def seeds_of(generator: Randomness, count: int, first: int = 0) -> Seeds:
    """Seeds and the indices of the images that are drawn from each."""
    if isinstance(generator, Sequence) and not isinstance(generator, str):
        if len(generator) != count:
            raise ValueError(f"generator: {len(generator)} of them for {count} images")
        return tuple((seed_of(each), range(first, first + 1)) for each in generator)
    seed = generator if isinstance(generator, int) else seed_of(generator or torch.default_generator)
    return ((seed, range(first, first + count)),)


def seed_of(generator: torch.Generator) -> int:
    """The seed of a fresh generator; of one that was used, a number drawn from it. Either moves on by one number.

    Raises ValueError for anything else.
    """
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator {generator!r}: a torch.Generator or a list of them is expected, or a number for all"
        )
    seed = generator.initial_seed()
    untouched = torch.Generator(generator.device).manual_seed(seed).get_state()
    fresh = torch.equal(generator.get_state(), untouched)
    drawn = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return seed if fresh else drawn


def as_output(values: Tensor, normalizer: Normalizer, output_type: str) -> Any:
    """Network values (N, C, H, W) as the type of output that was asked for."""
    if output_type == "latent":
        return values
    if output_type == "pt":
        return normalizer.decode_unit(values).clamp(0, 1)
    if output_type == "np":
        return normalizer.decode_unit(values).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    pixels = normalizer.decode(values).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in pixels]
