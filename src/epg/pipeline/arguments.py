"""What a call of the pipeline asks for in its own way: seeds, noise, and the type of the images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from epg.data.views.normalize import Normalizer
from epg.denoiser import Denoiser
from epg.drawing import jumping, problems, settled
from epg.errors import UserError
from epg.generator import Generator
from epg.labels import Labels, class_numbers

Randomness = int | torch.Generator | Sequence[torch.Generator] | None
Seeds = tuple[tuple[int, range], ...]
CALLBACK_INPUTS = ("latents", "denoised")
NOISE = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_data": 0.5, "scale": 1.0}
ARGUMENTS = {
    "sampler": "sampler",
    "steps": "num_inference_steps",
    "guide": "guide",
    "grid": "grid",
    "levels": "sigmas",
    "guidance": "guidance_scale",
    "interval": "guidance_interval",
}


class InterruptedDraw(Exception):  # noqa: N818
    """Ends the drawing of a call whose callback set `_interrupt`; carries the image as far as it is known."""


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


def settings_of(
    given: Mapping[str, Any], config: Mapping[str, Any], *, conditional: bool, internal: bool
) -> dict[str, Any]:
    """A pipeline's saved sampling settings with those of a call that are not None laid over them.

    Raises ValueError for what does not fit the model.
    """
    saved, noise = config["sampling"] or {}, NOISE | (config["noise"] or {})
    jumps = jumping(saved.get("sampler", ""))
    named = {name: value for name, value in given.items() if value is not None}
    settings = settled(saved, named, jumps)
    limits = (noise["sigma_min"], noise["sigma_max"])
    about = {"jumps": jumps, "conditional": conditional, "internal": internal}
    for problem in problems(settings, ARGUMENTS, noise=limits, **about):
        raise ValueError(problem)
    return settings


def requested_generator(
    transformer: Any,
    config: Mapping[str, Any],
    sampling: Mapping[str, Any],
    seeds: Seeds,
    latents: Tensor | None,
    place: torch.device,
) -> RequestedGenerator:
    """The generator of a pipeline's model and configuration. Raises ValueError for latents of another shape."""
    noise = NOISE | (config["noise"] or {})
    size = transformer.config.sample_size
    shift = noise.pop("shift", size / 64)
    expected = (sum(len(images) for _, images in seeds), transformer.config.in_channels, size, size)
    if latents is not None and latents.shape != expected:
        raise ValueError(f"latents: shape {tuple(latents.shape)}, but {expected} is expected")
    return RequestedGenerator(
        Denoiser(
            transformer,
            config["parameterization"],
            sigma_min=shift * noise["sigma_min"],
            sigma_data=noise["sigma_data"],
        ),
        Normalizer(**(config["normalization"] or {"mean": [0.5] * 3, "std": [0.25] * 3})),
        SimpleNamespace(**noise),  # type: ignore[arg-type]
        shift,
        size,
        SimpleNamespace(**sampling),  # type: ignore[arg-type]
        seeds=seeds,
        latents=latents,
        place=place,
    )


def requested_labels(
    labels: Labels | None, batch_size: int | None, named: Mapping[str, str], classes: int
) -> tuple[Tensor | None, int]:
    """Labels (N,) int64 on the CPU, checked there, as on a GPU a wrong one would end the process; and N.

    Raises ValueError where labels, number of images and model do not fit each other.
    """
    if labels is None and classes:
        raise ValueError(f"class_labels: this model has {classes} classes; which are to be drawn?")
    if labels is not None and not classes:
        raise ValueError("class_labels: this model is unconditional; pass batch_size instead")
    numbers = None if labels is None else torch.tensor(label_ids(labels, named, classes), dtype=torch.int64)
    count = (batch_size or 1) if numbers is None else len(numbers)
    if count < 1:
        raise ValueError("class_labels, batch_size: nothing is asked for")
    if batch_size not in (None, count):
        raise ValueError(f"batch_size {batch_size}: there are {count} class_labels")
    return numbers, count


def label_ids(labels: Labels, named: Mapping[str, str], classes: int) -> list[int]:
    """Class numbers by number or name. Raises ValueError for a class that the model does not have."""
    names = [named.get(str(number), "") for number in range(classes)] if named else []
    try:
        return class_numbers(labels, names, classes, "class_labels")
    except UserError as error:
        raise ValueError(str(error)) from None


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


def refuse_unknown(output_type: str, inputs: Sequence[str]) -> None:
    """Raises ValueError for a type of output, or tensors for a callback, that there are not."""
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f"output_type {output_type!r}: choose pil, np, pt or latent")
    if wrong := set(inputs) - set(CALLBACK_INPUTS):
        raise ValueError(f"callback_on_step_end_tensor_inputs {sorted(wrong)}: choose latents or denoised")


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
