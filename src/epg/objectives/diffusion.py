"""Stage 2 as a diffusion model: weighted prediction of the clean image."""

from collections.abc import Mapping

from torch import Tensor

from epg import schedule
from epg.config.objectives import DiffusionConfig
from epg.config.settings import RunConfig
from epg.data.loading.loader import Batch
from epg.losses import x_prediction
from epg.networks import EPG
from epg.objectives.base import Drawn, GeneratorObjective, Terms, at_levels
from epg.objectives.diagnostics import quarter


class Diffusion(GeneratorObjective):
    """`lambda (D(x_t, t) - x)^2`, put together from three parts: the density of `levels`, the `weight` lambda, and the
    denoiser's parameterisation of D."""

    grid: Tensor
    weights: Tensor

    def __init__(self, network: EPG, config: RunConfig) -> None:
        super().__init__(network, config)
        assert isinstance(config.objective, DiffusionConfig)
        self.config = config.objective
        count, options = self.config.levels, (self.noise.sigma_min, self.noise.sigma_max, self.noise.rho)
        grid = schedule.karras_grid(count, *options)
        after_last = schedule.karras(count, count, *options)
        self.register_buffer("grid", grid.float(), persistent=False)
        self.register_buffer("weights", schedule.denoising_weight(grid, after_last).float(), persistent=False)

    def draw(self, batch: Batch, step: int) -> Drawn:
        draws = self.draws(batch, step)
        images = self.plain_images(batch, draws, self.config.flip)
        drawn = {"images": images, "unit": draws.normal("level"), "noise": draws.normal("noise", images.shape[1:])}
        if self.network.num_classes:
            null, probability = self.network.null_class, self.config.label_dropout
            drawn["labels"] = self.dropped_labels(batch.labels, draws, null, probability)
        return drawn

    def terms(self, drawn: Mapping[str, Tensor]) -> Terms:
        unit, sigma = drawn["unit"], self.levels(drawn["unit"])
        denoising = self.losses(drawn["images"], drawn.get("labels"), sigma=sigma, noise=drawn["noise"])
        return Terms({"denoising": denoising}, "denoising", quarter(unit))

    def levels(self, unit: Tensor) -> Tensor:
        """Unshifted levels t (N,) from standard normal numbers (N,), rising with them: `ln t ~ N(mean, std^2)`."""
        return schedule.lognormal(unit, self.config.mean, self.config.std)

    def losses(self, images: Tensor, labels: Tensor | None, *, sigma: Tensor, noise: Tensor) -> Tensor:
        """Per-sample loss (N,) at the grid levels nearest to `sigma` (N,), unshifted."""
        index = schedule.nearest_level(sigma, self.grid)
        t = (self.shift * self.grid[index]).to(images.dtype)
        denoised = self.denoiser(at_levels(images, t, noise), t, labels)
        return x_prediction(denoised, images, self.weight(index, t, labels).to(images.dtype))

    def weight(self, index: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """lambda (N,): of a level of the grid, or `1 / c_out^2`, which leaves the network an error of one."""
        if self.network.spectrum is None:
            return self.weights[index]
        return self.network.spectrum.spread(t, labels) ** -2
