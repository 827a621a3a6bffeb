"""What an encoder makes of images at any noise level: of stage 1, of a trained generator, or with random weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epg.checkpoint.handover import hand_over, read_encoder
from epg.checkpoint.loading import Trained, read_trained
from epg.checkpoint.official import recognise
from epg.checkpoint.state_dict import read_state_dict
from epg.config.settings import RunConfig
from epg.data.views.normalize import Normalizer
from epg.features import TrainedEncoder
from epg.networks.build import build_encoder
from epg.networks.encoder import CLS, PATCHES, Encoder
from epg.objectives.base import normalizer_for
from epg.randomness import normal, weights_seed

Features = NDArray[np.float32]
Pool = Literal["cls", "patches"]
BLOCK = 64  # images that the network sees at once, always, so that no setting changes a number


@dataclass(frozen=True)
class NoisyEncoder:
    """What is asked of a trained encoder here; `level` is always an unshifted one."""

    name: str
    trained: TrainedEncoder
    config: RunConfig

    @property
    def normalizer(self) -> Normalizer:
        return self.trained.normalizer

    @torch.no_grad()
    def features(self, images: Tensor, noise: Tensor, level: float, pool: Pool = "cls") -> Features:
        """Features (N, D) of uint8 images (N, C, H, W) with noise (N, C, H, W) of a level on them.

        `pool` is the CLS token or the mean of the patch tokens, after the final norm.
        """
        blocks = self._blocks(images, noise, level)
        parts = [tokens[:, CLS] if pool == "cls" else tokens[:, PATCHES].mean(1) for tokens in blocks]
        return torch.cat(parts).float().cpu().numpy()

    @torch.no_grad()
    def patches(self, images: Tensor, noise: Tensor, level: float) -> Features:
        """The patch tokens themselves, after the final norm, (N, S, S, D): S of them along a side of the image."""
        tokens = torch.cat([tokens[:, PATCHES] for tokens in self._blocks(images, noise, level)])
        side = self.trained.network.image_size // self.trained.network.patch_size
        return tokens.unflatten(1, (side, side)).float().cpu().numpy()

    def _blocks(self, images: Tensor, noise: Tensor, level: float) -> Iterator[Tensor]:
        """All tokens (BLOCK, T, D), some images at a time."""
        t = self._shifted(level)
        for block, eps in zip(images.split(BLOCK), noise.split(BLOCK), strict=True):
            yield self.trained.tokens(self.trained.noisy(block, eps, t), t)

    def seen(self, images: Tensor, noise: Tensor, level: float) -> Tensor:
        """The noisy images as pictures, uint8 (N, C, H, W): what of them lies outside of the pixels' range is cut."""
        return self.normalizer.decode(self.trained.noisy(images, noise, self._shifted(level)))

    def pixels(self, images: Tensor, noise: Tensor, level: float) -> Features:
        """What the network is given: the same noisy images, scaled, as plain vectors (N, C H W)."""
        t = self._shifted(level)
        return self.trained.scaled(self.trained.noisy(images, noise, t), t)[0].flatten(1).cpu().numpy()

    def _shifted(self, level: float) -> float:
        return self.trained.level(self.config.shift * level)

    def untrained(self, seed: int = 0) -> "NoisyEncoder":
        """The same architecture as it starts."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(weights_seed(seed, "untrained encoder"))
            encoder = build_encoder(self.config.model, self.config.data)
        return noisy_encoder("random weights", encoder.eval().to(self.trained.device), self.config)


def noisy_encoder(name: str, network: Encoder, config: RunConfig, condition: Tensor | None = None) -> NoisyEncoder:
    """An encoder with the scale of images and noise of the configuration that it was trained with.

    `condition` (D,) is what a class-conditional generator adds to the CLS token for "no class".
    """
    trained = TrainedEncoder(network, normalizer_for(config), config.noise, config.shift, condition)
    return NoisyEncoder(name, trained, config)


def noise_of(indices: Sequence[int], shape: tuple[int, int, int], purpose: str, seed: int = 0) -> Tensor:
    """Standard normal numbers (N, C, H, W): those of image i depend on (seed, purpose, i) alone, not on the level."""
    return normal(indices, shape, seed, purpose, device="cpu")


def open_encoder(
    path: Path, *, recipe: str | None = None, ema: float | None = None, device: torch.device | str = "cpu"
) -> NoisyEncoder:
    """The encoder of a run of any stage, of its checkpoint or export, or of a weight file of the authors' release.

    Args:
        recipe: of a weight file, where no recipe of ours has its architecture.
        ema: of a generator, which average; None is the run's first.

    Raises ArtefactError where there is no encoder, or one of unknown architecture.
    """
    if not path.is_file():
        return encoder_of(read_trained(path, ema), device)
    weights = read_state_dict(path)
    config = recognise(weights, path, None, recipe)
    classes = weights.get("class_embed.weight")
    encoder = build_encoder(config.model, config.data)
    hand_over(encoder, read_encoder(path, config))
    condition = None if classes is None else classes[-1].float().to(device)
    return noisy_encoder(str(path), encoder.eval().to(device), config, condition)


def encoder_of(trained: Trained, device: torch.device | str = "cpu") -> NoisyEncoder:
    """The encoder in the weights of a run of any stage. Raises ArtefactError."""
    return NoisyEncoder(str(trained.path), trained.encoder(device), trained.config)
