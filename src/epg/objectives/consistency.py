"""Stage 2 as a consistency model: easy consistency tuning plus an auxiliary loss from the frozen encoder, eq. 9."""

from collections.abc import Mapping

import torch
from torch import Tensor

from epg import losses, schedule
from epg.config.objectives import ConsistencyConfig
from epg.config.settings import RunConfig
from epg.data.loading.loader import Batch
from epg.networks import EPG, Encoder
from epg.networks.encoder import CLS
from epg.objectives.base import Drawn, GeneratorObjective, Terms, at_levels, keep_masks
from epg.objectives.diagnostics import quarter

# The relative distance of neighbouring numbers, of what is multiplied in training.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
PRECISION = {name: torch.finfo(dtype).eps for name, dtype in DTYPES.items()}


class Consistency(GeneratorObjective):
    """The online prediction at t follows the same network's prediction at r < t, with the same noise and dropout.

    `w d / sqrt(stopgrad(d) + c^2)` of `d = |D(x + t eps, t) - stopgrad(D(x + r eps, r))|^2` and `w = 1 / (t - r)`
    of shifted levels, plus NT-Xent between frozen features of `D(x + t eps, t)` and of x (eq. 9).

    Args:
        network: the generator.
        frozen_encoder: the pre-trained encoder of the auxiliary loss; None leaves that loss out.
    """

    def __init__(self, network: EPG, config: RunConfig, frozen_encoder: Encoder | None = None) -> None:
        super().__init__(network, config, frozen_encoder)
        assert isinstance(config.objective, ConsistencyConfig)
        self.config = config.objective
        self.d = self.config.d or max(1, self.total_steps // 7)
        self.last_stage = schedule.last_stage(PRECISION[config.training.precision], self.config.q)

    def draw(self, batch: Batch, step: int) -> Drawn:
        draws = self.draws(batch, step)
        images = self.plain_images(batch, draws, self.config.flip)
        drawn = {"images": images, "unit": draws.normal("level"), "noise": draws.normal("noise", images.shape[1:])}
        drawn["stage"] = images.new_full((), self.stage(step))
        if self.network.num_classes:
            drawn["labels"] = batch.labels
        if self.config.dropout:
            decoder = self.network.decoder
            shape = (self.network.encoder.num_tokens, decoder.width)
            drawn["dropout"] = keep_masks(draws, len(decoder.blocks), shape, self.config.dropout)
        return drawn

    def terms(self, drawn: Mapping[str, Tensor]) -> Terms:
        unit = drawn["unit"]
        consistency, auxiliary = self.losses(
            drawn["images"],
            drawn.get("labels"),
            sigma=schedule.lognormal(unit, self.config.mean, self.config.std),
            noise=drawn["noise"],
            stage=drawn["stage"],
            dropout=drawn.get("dropout"),
        )
        terms = {"consistency": consistency}
        if auxiliary is not None:
            terms["auxiliary"] = self.config.auxiliary_weight * auxiliary
        return Terms(terms, "consistency", quarter(unit))

    def schedule_numbers(self, step: int) -> dict[str, float]:
        return {"stage": self.stage(step)}

    def stage(self, step: int) -> int:
        """How near the target is: t - r halves with every stage."""
        return schedule.consistency_stage(step, self.config.delta, self.d, self.last_stage)

    def losses(
        self,
        images: Tensor,
        labels: Tensor | None,
        *,
        sigma: Tensor,
        noise: Tensor,
        stage: Tensor | int,
        dropout: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Per-sample consistency and auxiliary terms, (N,) each, at unshifted levels `sigma` (N,)."""
        c = self.config
        t = sigma.clamp(min=self.noise.sigma_min)
        options = (stage, c.q, c.k, c.b, self.noise.sigma_min)
        gap = self.shift * schedule.consistency_gap(t, *options)
        t, r = self.shift * t, self.shift * schedule.consistency_target_level(t, *options)
        online = self.denoiser(at_levels(images, t, noise), t, labels, dropout)
        with torch.no_grad():
            target = self.denoiser(at_levels(images, r, noise), r, labels, dropout)
        weight = torch.where(gap > 0, 1 / gap, 0.0)
        consistency = losses.consistency(online, target, weight, c.c)
        return consistency, self.auxiliary(online, images)

    def auxiliary(self, denoised: Tensor, images: Tensor) -> Tensor | None:
        """NT-Xent between frozen CLS features of denoised and of clean images, both fed at sigma_min. (N,)."""
        if self.frozen_encoder is None:
            return None
        with torch.no_grad():
            clean = self.frozen_tokens(images)[:, CLS]
        features = self.frozen_tokens(denoised)[:, CLS]
        return losses.nt_xent(features, clean, self.config.auxiliary_temperature)
