"""Stage 2 as a diffusion model: weighted prediction of the clean image."""

from collections.abc import Mapping

import torch
from torch import Tensor

from epg import schedule
from epg.config.diffusion import Weighting as Name
from epg.config.objectives import DiffusionConfig
from epg.config.settings import RunConfig
from epg.data.loading.loader import Batch
from epg.losses import x_prediction
from epg.networks import EPG, Encoder
from epg.objectives.alignment import Alignment
from epg.objectives.base import Drawn, GeneratorObjective, Terms, at_levels
from epg.objectives.diagnostics import quarter
from epg.weighting import Weighting, drawn_levels


class Diffusion(GeneratorObjective):
    """`lambda (D(x_t, t) - x)^2`, put together from three parts: the density of `levels`, the `weighting` lambda, and
    the denoiser's parameterisation of D.

    With `internal_weight` that much of the same for a prediction by the encoder alone (internal guidance); with
    `alignment_weight` that much of the distance between a block's tokens and those of a frozen encoder (REPA).
    """

    grid: Tensor
    weights: Tensor

    def __init__(self, network: EPG, config: RunConfig, frozen_encoder: Encoder | None = None) -> None:
        super().__init__(network, config, frozen_encoder)
        assert isinstance(config.objective, DiffusionConfig)
        self.config = config.objective
        self.alignment = None if frozen_encoder is None else Alignment(network.encoder.width)
        self.block = (self.config.alignment_block or len(network.encoder.blocks)) - 1
        grid = schedule.karras_grid(self.config.levels, self.noise.sigma_min, self.noise.sigma_max, self.noise.rho)
        own: Name = "edm" if self.config.parameterization == "edm" else "paper"
        self.weighting = Weighting(self.config.weighting or own, self.config, self.noise, self.shift)
        self.weighed_by_spectrum = self.config.parameterization == "spectral" and self.config.weighting is None
        self.register_buffer("grid", grid.float(), persistent=False)
        self.register_buffer("weights", self.weighting(grid).float(), persistent=False)

    def draw(self, batch: Batch, step: int) -> Drawn:
        draws = self.draws(batch, step)
        images = self.plain_images(batch, draws, self.config.flip)
        drawn = {"images": images, "unit": draws.normal("level"), "noise": draws.normal("noise", images.shape[1:])}
        if self.network.num_classes:
            null, probability = self.network.null_class, self.config.label_dropout
            drawn["labels"] = self.dropped_labels(batch.labels, draws, null, probability)
        return drawn

    def terms(self, drawn: Mapping[str, Tensor]) -> Terms:
        unit, sigma, images = drawn["unit"], self.levels(drawn["unit"]), drawn["images"]
        losses, tokens = self._losses(images, drawn.get("labels"), sigma=sigma, noise=drawn["noise"])
        terms = {"denoising": losses}
        if self.config.internal:
            denoising, internal = losses.unbind()
            terms = {"denoising": denoising, "internal": self.config.internal_weight * internal}
        if self.alignment is not None and tokens is not None:
            with torch.no_grad():
                clean = self.frozen_tokens(images)
            terms["alignment"] = self.config.alignment_weight * self.alignment(tokens, clean)
        return Terms(terms, "denoising", quarter(unit))

    def levels(self, unit: Tensor) -> Tensor:
        """Unshifted levels t (N,) from standard normal numbers (N,), rising with them."""
        return drawn_levels(unit, self.config, self.noise, self.shift)

    def losses(self, images: Tensor, labels: Tensor | None, *, sigma: Tensor, noise: Tensor) -> Tensor:
        """Per-sample loss (N,) at levels `sigma` (N,), unshifted, or those of the grid nearest to them; (2, N) with an
        internal head, whose the second is."""
        return self._losses(images, labels, sigma=sigma, noise=noise)[0]

    def _losses(
        self, images: Tensor, labels: Tensor | None, *, sigma: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """`losses`, and the tokens that are aligned, if any are."""
        if self.config.rounding:
            index = schedule.nearest_level(sigma, self.grid)
            sigma, weight = self.grid[index], self.weights[index]
        else:
            weight = self.weighting(sigma)
        t = (self.shift * sigma).to(images.dtype)
        if self.weighed_by_spectrum:
            assert self.network.spectrum is not None
            weight = self.network.spectrum.spread(t, labels) ** -2
        noisy, internal, tokens = at_levels(images, t, noise), self.config.internal, None
        if self.alignment is None:
            denoised = self.denoiser(noisy, t, labels, internal=internal)
        else:
            denoised, tokens = self.denoiser.observed(noisy, t, labels, internal=internal, block=self.block)
        return x_prediction(denoised, images, weight.to(images.dtype)), tokens
