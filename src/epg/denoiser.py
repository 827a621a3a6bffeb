"""Preconditioning: the network F becomes a denoiser D(x, sigma, labels). Levels here are shifted: they touch images."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from epg.config.objectives import Parameterization
from epg.samplers import Denoise
from epg.schedule import SIGMA_DATA, SIGMA_MIN, input_scale, time_condition

if TYPE_CHECKING:
    from epg.networks import EPG


class Denoiser(nn.Module):
    """D(x, sigma, labels), float32 (or float64), in one of three parameterisations.

    `x`: the network predicts the clean image, `D = F(c_in x, c(t))`.
    `edm`: `D = c_skip x + c_out F(c_in x, c(t))` with `c_skip = sd^2 / ((t - smin)^2 + sd^2)` and
    `c_out = (t - smin) sd / sqrt(t^2 + sd^2)`, so that D is the identity at sigma_min, as consistency
    training needs it.
    `spectral`: `D = W_t x + c_out F(c_in x, c(t))` with W_t the best linear denoiser of the training images (of the
    label's class), and c_out the root mean square of what that leaves unknown (`network.spectrum`).

    Args:
        network: F(x, c(t), labels).
        parameterization: "x", "edm" or "spectral".
        sigma_min: the smallest *shifted* level.
    """

    def __init__(
        self,
        network: "EPG",
        parameterization: Parameterization = "x",
        *,
        sigma_min: float = SIGMA_MIN,
        sigma_data: float = SIGMA_DATA,
    ) -> None:
        super().__init__()
        self.network = network
        self.parameterization = parameterization
        self.sigma_min, self.sigma_data = sigma_min, sigma_data

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        labels: Tensor | None = None,
        dropout: Tensor | None = None,
        internal: bool = False,
    ) -> Tensor:
        """Denoised images (N, C, H, W) from x (N, C, H, W) at levels sigma: (N,), or one number for all.

        With `internal` (2, N, C, H, W): they, and the same with the internal head in the place of F.
        """
        if not isinstance(sigma, Tensor):
            sigma = x.new_full((len(x),), sigma)  # made on the device: no copy, no synchronisation
        t = sigma.to(x.dtype).view(-1, 1, 1, 1)
        return self._denoised(x, t, labels, self.network(*self._inputs(x, t), labels, dropout, internal))

    def observed(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, *, internal: bool, block: int
    ) -> tuple[Tensor, Tensor]:
        """As a call, at levels (N,), and what a block of the encoder gives on the way, (N, T, D)."""
        t = sigma.to(x.dtype).view(-1, 1, 1, 1)
        output, tokens = self.network(*self._inputs(x, t), labels, None, internal, block)
        return self._denoised(x, t, labels, output), tokens

    def _inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return input_scale(t, self.sigma_data) * x, time_condition(t.flatten())

    def _denoised(self, x: Tensor, t: Tensor, labels: Tensor | None, output: Tensor) -> Tensor:
        output = output.to(x.dtype)
        if self.parameterization == "x":
            return output
        if self.parameterization == "spectral":
            spectrum = self.network.spectrum
            assert spectrum is not None
            linear, c_out = spectrum.posterior(x, t.flatten(), labels)
            return linear + c_out.view(-1, 1, 1, 1) * output
        distance = t - self.sigma_min
        c_skip = self.sigma_data**2 / (distance**2 + self.sigma_data**2)
        c_out = distance * self.sigma_data * (t**2 + self.sigma_data**2).rsqrt()
        return c_skip * x + c_out * output


def bind(denoiser: Denoiser, labels: Tensor | None) -> Denoise:
    """The denoiser for these labels (N,), or None: what a sampler calls when there is no guidance."""
    return lambda x, sigma: denoiser(x, sigma, labels)


def clamped(denoise: Denoise, bounds: tuple[Tensor, Tensor]) -> Denoise:
    """Keeps predictions inside the range of real pixels: `bounds` = (low, high), each (C, 1, 1)."""
    low, high = bounds
    return lambda x, sigma: denoise(x, sigma).clamp(low.to(x), high.to(x))
