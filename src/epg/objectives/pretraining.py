"""Stage 1: representation consistency, eq. 8."""

import copy
from collections.abc import Mapping, Sequence
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
from epg.objectives.base import Drawn, Losses, Objective, Terms, at_levels
from epg.objectives.diagnostics import feature_std
from epg.randomness import Draws

Noisy = tuple[Tensor, Tensor]
"""Images (N, C, H, W) with noise, and the shifted level they are at, one for all."""
GAUGE_LEVELS = (0.002, 0.5, 5.0)  # unshifted: clean, as noisy as the data varies, mostly noise


class Pretraining(Objective):
    """Contrastive loss between two views of a clean image plus representation consistency along the ODE trajectory."""

    network: RCM

    def __init__(self, network: RCM, config: RunConfig) -> None:
        super().__init__(config)
        assert isinstance(config.objective, PretrainingConfig)
        self.config = config.objective
        self.network = network
        if not self.config.contrastive_weight:
            network.projector.requires_grad_(False)  # only that loss has a use for it
        self.momentum_network = copy.deepcopy(network).requires_grad_(False)
        options = self.config.views.model_dump(exclude={"kind"})
        self.views = (MocoViews if self.config.views.kind == "moco_v3" else AffineViews)(**options)

    @classmethod
    def build(cls, config: RunConfig) -> Self:
        return cls(build_rcm(config.model, config.data), config)

    def draw(self, batch: Batch, step: int) -> Drawn:
        draws = self.draws(batch, step)
        images = self.plain_images(batch, draws, self.config.flip)
        views = (self.view(batch, draws, number, self.fused) for number in (0, 1))
        view1, view2 = (self.normalizer.encode_unit(view, self.dtype) for view in views)
        numbers = self.schedule_numbers(step)
        levels = int(numbers["num_levels"])
        index = draws.shared_integer("level", levels - 1)
        pair = self.neighbours(levels, index, numbers["tau2"])
        return {
            "view1": view1,
            "view2": view2,
            "images": images,
            "noise": draws.normal("noise", images.shape[1:]),
            **{name: images.new_full((), number) for name, number in pair.items()},
            "quarters": torch.full_like(batch.labels, 3 - 4 * index // (levels - 1)),  # index 0 is the noisiest
        }

    def neighbours(self, num_levels: int, index: int, tau2: float) -> dict[str, float]:
        """Level `index` of the Karras grid with `num_levels` levels and the cleaner one that follows it, both shifted,
        and the temperature there, which lies between tau1 and `tau2`."""
        low, high, rho = self.noise.sigma_min, self.noise.sigma_max, self.noise.rho
        t, cleaner = schedule.karras_grid(num_levels, low, high, rho)[index : index + 2].tolist()
        tau = schedule.temperature(torch.tensor(t), tau2, self.config.tau1, low, high)
        return {"t": self.shift * t, "cleaner": self.shift * cleaner, "tau": float(tau)}

    def terms(self, drawn: Mapping[str, Tensor]) -> Terms:
        inputs = {name: values for name, values in drawn.items() if name != "quarters"}
        contrastive, consistency = self.losses(**inputs)
        terms = {}
        if contrastive is not None:
            terms["contrastive"] = self.config.contrastive_weight * contrastive
        if consistency is not None:
            terms["consistency"] = self.config.consistency_weight * consistency
        return Terms(terms, None if consistency is None else "consistency", drawn["quarters"])

    def view(self, batch: Batch, draws: Draws, number: int, fused: bool = False) -> Tensor:
        """View 0 or 1 of a batch, float32 in [0, 1]."""
        return self.views(batch.images, draws.uniform(f"view {number}", (self.views.numbers,)), number, fused)

    def examples(self, batch: Batch) -> list[Tensor]:
        """The images, their two views, and noise at rising levels."""
        images, *noisy = super().examples(batch)
        draws = self.draws(batch, step=0)
        views = [(self.view(batch, draws, number) * 255).round().to(torch.uint8) for number in (0, 1)]
        return [images, *views, *noisy]

    def decay(self, step: int) -> float:
        """Of the momentum network at a step."""
        end = self.config.momentum if self.config.momentum_end is None else self.config.momentum_end
        return schedule.momentum(step, self.total_steps, self.config.momentum, end)

    def schedule_numbers(self, step: int) -> dict[str, float]:
        annealed = {} if self.config.momentum_end is None else {"momentum": self.decay(step)}
        return {
            **annealed,
            "tau2": schedule.tau2(step, self.total_steps, self.config.tau1, self.config.tau2),
            "num_levels": schedule.num_levels(step, self.total_steps, self.config.s0, self.config.s1),
        }

    @torch.no_grad()
    def diagnostics(self, batch: Batch, step: int) -> Losses:
        """The collapse gauge of the trained encoder at the unshifted levels `GAUGE_LEVELS`: `feature_std/<level>`."""
        draws = self.draws(batch, step)
        images = self.plain_images(batch, draws, flip=False)
        return self.gauge(images, draws.normal("gauge", images.shape[1:]))

    def gauge(self, images: Tensor, noise: Tensor) -> Losses:
        """`diagnostics` of images with this noise, (N, C, H, W) each."""
        numbers = {}
        for level in GAUGE_LEVELS:
            sigma = images.new_full((), self.shift * max(level, self.noise.sigma_min))
            (features,) = self._encode(self.network, [(at_levels(images, sigma, noise), sigma)])
            numbers[f"feature_std/{level:g}"] = feature_std(features)
        return numbers

    def losses(
        self,
        view1: Tensor,
        view2: Tensor,
        images: Tensor,
        *,
        noise: Tensor,
        t: Tensor,
        cleaner: Tensor,
        tau: Tensor,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Per-sample contrastive and representation-consistency terms, (N,) each, without their weights; None where
        the weight is 0.

        Views, images and noise are (N, C, H, W), in network range. All samples are at the shifted level `t` and, for
        the target, at `cleaner`, with the temperature `tau`, see `neighbours`. The same noise serves the trajectory
        and, at sigma_min, the views.
        """
        t_0 = t.new_full((), self.shift * self.noise.sigma_min)
        clean = [(at_levels(view, t_0, noise), t_0) for view in (view1, view2) if self.config.contrastive_weight]
        noisy = [(at_levels(images, t, noise), t)] if self.config.consistency_weight else []
        # The encoder treats every sample alone, so clean views and noisy images share one call.
        features = self._encode(self.network, [*clean, *noisy])
        contrastive = self._contrastive(features[:2], clean) if clean else None
        if not noisy:
            return contrastive, None
        with torch.no_grad():
            (target,) = self._encode(self.network, [(at_levels(images, cleaner, noise), cleaner)])
        return contrastive, nt_xent(features[-1], target, tau)

    def _contrastive(self, features: Sequence[Tensor], views: Sequence[Noisy]) -> Tensor:
        """Symmetric NT-Xent of both views' projections, each with the momentum network's of the other. (N,)."""
        with torch.no_grad():
            encoded = self._encode(self.momentum_network, views)
            momentum1, momentum2 = (self.momentum_network.project(f) for f in encoded)
        first, second = (self.network.project(f) for f in features)
        temperature = self.config.contrastive_temperature
        return nt_xent(first, momentum2, temperature) + nt_xent(second, momentum1, temperature)

    def _encode(self, network: RCM, inputs: Sequence[Noisy]) -> tuple[Tensor, ...]:
        """CLS features of several batches, each at one shifted level, in one call."""
        sigma = torch.cat([s.expand(len(x)) for x, s in inputs])
        scale = schedule.input_scale(sigma, self.noise.sigma_data).view(-1, 1, 1, 1)
        noisy = torch.cat([x for x, _ in inputs])
        return network.encode(scale * noisy, schedule.time_condition(sigma)).chunk(len(inputs))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """The momentum network follows: m <- 0.99 m + 0.01 n. Its batch statistics are its own."""
        targets: list[Tensor] = list(self.momentum_network.parameters())
        sources: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(targets, sources, 1 - self.decay(step))
