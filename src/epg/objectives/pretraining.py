"""Stage 1: representation consistency, eq. 8."""

import copy
from typing import Self

import torch
from torch import Tensor

from epg import schedule
from epg.config.objectives import PretrainingConfig
from epg.config.settings import RunConfig
from epg.data.loading.loader import Batch
from epg.data.views.augment import AffineViews, MocoViews
from epg.losses import nt_xent
from epg.networks import RCM
from epg.networks.build import build_rcm
from epg.networks.cost import forward_macs
from epg.objectives.base import Losses, Objective, Terms, at_levels, macs_of_image
from epg.objectives.diagnostics import feature_std
from epg.randomness import Draws

GAUGE_LEVELS = (0.002, 0.5, 5.0)  # unshifted: clean, as noisy as the data varies, mostly noise


class Pretraining(Objective):
    """Contrastive loss between two views of a clean image plus representation consistency along the ODE trajectory."""

    network: RCM

    def __init__(self, network: RCM, config: RunConfig) -> None:
        super().__init__(config)
        assert isinstance(config.objective, PretrainingConfig)
        self.config = config.objective
        self.network = network
        self.momentum_network = copy.deepcopy(network).requires_grad_(False)
        options = self.config.views.model_dump(exclude={"kind"})
        self.views = (MocoViews if self.config.views.kind == "moco_v3" else AffineViews)(**options)

    @classmethod
    def build(cls, config: RunConfig) -> Self:
        return cls(build_rcm(config.model, config.data), config)

    @classmethod
    def macs(cls, config: RunConfig) -> float:
        """Three passes of the trained encoder (two views, noisy image), one as target, two of the momentum encoder;
        two trained and two momentum projections."""
        rcm = build_rcm(config.model, config.data).eval()  # in training the BatchNorm would talk to other processes
        encoder = macs_of_image(rcm.encoder, config)
        projector = forward_macs(rcm.projector, torch.zeros(1, rcm.encoder.width))[1]
        return (3 * 3 + 1 + 2) * encoder + (2 * 3 + 2) * projector

    def terms(self, batch: Batch, step: int) -> Terms:
        draws = self.draws(batch, step)
        images = self.plain_images(batch, draws, self.config.flip)
        view1, view2 = (self.normalizer.encode_unit(self.view(batch, draws, v), self.dtype) for v in (0, 1))
        levels = schedule.num_levels(step, self.total_steps, self.config.s0, self.config.s1)
        index = draws.shared_integer("level", levels - 1)
        contrastive, consistency = self.losses(
            view1,
            view2,
            images,
            noise=draws.normal("noise", images.shape[1:]),
            num_levels=levels,
            index=index,
            tau2=schedule.tau2(step, self.total_steps, self.config.tau1, self.config.tau2),
        )
        quarters = torch.full_like(batch.labels, 3 - 4 * index // (levels - 1))  # index 0 is the noisiest
        return Terms({"contrastive": contrastive, "consistency": consistency}, "consistency", quarters)

    def view(self, batch: Batch, draws: Draws, number: int) -> Tensor:
        """View 0 or 1 of a batch, float32 in [0, 1]."""
        return self.views(batch.images, draws.uniform(f"view {number}", (self.views.numbers,)), number)

    def examples(self, batch: Batch) -> list[Tensor]:
        """The images, their two views, and noise at rising levels."""
        images, *noisy = super().examples(batch)
        draws = self.draws(batch, step=0)
        views = [(self.view(batch, draws, number) * 255).round().to(torch.uint8) for number in (0, 1)]
        return [images, *views, *noisy]

    def schedule_numbers(self, step: int) -> dict[str, float]:
        return {
            "tau2": schedule.tau2(step, self.total_steps, self.config.tau1, self.config.tau2),
            "num_levels": schedule.num_levels(step, self.total_steps, self.config.s0, self.config.s1),
        }

    @torch.no_grad()
    def diagnostics(self, batch: Batch, step: int) -> Losses:
        """The collapse gauge of the trained encoder at the unshifted levels `GAUGE_LEVELS`: `feature_std/<level>`."""
        draws = self.draws(batch, step)
        images = self.plain_images(batch, draws, flip=False)
        noise = draws.normal("gauge", images.shape[1:])
        numbers = {}
        for level in GAUGE_LEVELS:
            sigma = self.shift * max(level, self.noise.sigma_min)
            (features,) = self._encode(self.network, [at_levels(images, sigma, noise)], [sigma])
            numbers[f"feature_std/{level:g}"] = feature_std(features)
        return numbers

    def losses(
        self,
        view1: Tensor,
        view2: Tensor,
        images: Tensor,
        *,
        noise: Tensor,
        num_levels: int,
        index: int,
        tau2: float,
    ) -> tuple[Tensor, Tensor]:
        """Per-sample contrastive and representation-consistency terms, (N,) each.

        Views, images and noise are (N, C, H, W), in network range. The noisier level is `index` of the Karras grid
        with `num_levels` levels, the cleaner one follows it; one index for all samples. The same noise serves the
        trajectory and, at sigma_min, the views.
        """
        t_n, t_next = schedule.karras_grid(num_levels, *self._range())[index : index + 2].tolist()
        x_n, x_next = (at_levels(images, self.shift * t, noise) for t in (t_n, t_next))
        t_0 = self.shift * self.noise.sigma_min
        y1, y2 = at_levels(view1, t_0, noise), at_levels(view2, t_0, noise)

        # The encoder treats every sample alone, so clean views and noisy images share one call.
        sigmas = [t_0, t_0, self.shift * t_n]
        feature1, feature2, noisy = self._encode(self.network, [y1, y2, x_n], sigmas)
        with torch.no_grad():
            (target,) = self._encode(self.network, [x_next], [self.shift * t_next])
            momentum1, momentum2 = (
                self.momentum_network.project(f) for f in self._encode(self.momentum_network, [y1, y2], [t_0, t_0])
            )
        temperature = self.config.contrastive_temperature
        contrastive = nt_xent(self.network.project(feature1), momentum2, temperature)
        contrastive = contrastive + nt_xent(self.network.project(feature2), momentum1, temperature)
        tau = schedule.temperature(
            torch.tensor(t_n), tau2, self.config.tau1, self.noise.sigma_min, self.noise.sigma_max
        )
        return contrastive, nt_xent(noisy, target, float(tau))

    def _range(self) -> tuple[float, float, float]:
        return self.noise.sigma_min, self.noise.sigma_max, self.noise.rho

    def _encode(self, network: RCM, inputs: list[Tensor], sigmas: list[float]) -> tuple[Tensor, ...]:
        """CLS features of several batches, each at one shifted level, in one call."""
        sigma = torch.cat([x.new_full((len(x),), s) for x, s in zip(inputs, sigmas, strict=True)])
        scale = schedule.input_scale(sigma, self.noise.sigma_data).view(-1, 1, 1, 1)
        return network.encode(scale * torch.cat(inputs), schedule.time_condition(sigma)).chunk(len(inputs))

    @torch.no_grad()
    def after_step(self) -> None:
        """The momentum network follows: m <- 0.99 m + 0.01 n. Its batch statistics are its own."""
        targets: list[Tensor] = list(self.momentum_network.parameters())
        sources: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(targets, sources, 1 - self.config.momentum)
