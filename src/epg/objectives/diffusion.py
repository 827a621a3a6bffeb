"""Stage 2 as a diffusion model: weighted prediction of the clean image."""

from torch import Tensor

from epg import schedule
from epg.config.settings import DiffusionConfig, RunConfig
from epg.data.loader import Batch
from epg.denoiser import Denoiser
from epg.losses import x_prediction
from epg.networks import EPG
from epg.objectives.base import Losses, Objective, at_levels, mean_losses
from epg.objectives.diagnostics import by_quarter, quarter


class Diffusion(Objective):
    """`lambda (D(x_t, t) - x)^2` with t drawn lognormal and rounded to a Karras grid."""

    network: EPG
    grid: Tensor
    weights: Tensor

    def __init__(self, network: EPG, config: RunConfig) -> None:
        super().__init__(config)
        assert isinstance(config.objective, DiffusionConfig)
        self.config = config.objective
        self.network = network
        self.denoiser = Denoiser(
            network,
            self.config.parameterization,
            sigma_min=self.shift * self.noise.sigma_min,
            sigma_data=self.noise.sigma_data,
        )
        levels, options = self.config.levels, (self.noise.sigma_min, self.noise.sigma_max, self.noise.rho)
        grid = schedule.karras_grid(levels, *options)
        after_last = schedule.karras(levels, levels, *options)
        self.register_buffer("grid", grid.float(), persistent=False)
        self.register_buffer("weights", schedule.denoising_weight(grid, after_last).float(), persistent=False)

    def forward(self, batch: Batch, step: int) -> Losses:
        draws = self.draws(batch, step)
        images = self.plain_images(batch, draws, self.config.flip)
        labels = None
        if self.network.num_classes:
            labels = self.dropped_labels(batch.labels, draws, self.network.null_class, self.config.label_dropout)
        unit = draws.normal("level")
        sigma = schedule.lognormal(unit, self.config.mean, self.config.std)
        noise = draws.normal("noise", images.shape[1:])
        denoising = self.losses(images, labels, sigma=sigma, noise=noise)
        return mean_losses(denoising=denoising) | by_quarter("denoising", denoising, quarter(unit))

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
