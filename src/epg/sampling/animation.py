"""The way from noise to an image as an animation: x_t and, beside it, D(x_t, t)."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw
from torch import Tensor

from epg.config.sections import SamplingConfig
from epg.generator import Generator
from epg.samplers import Denoise
from epg.sampling.files import replace_file
from epg.sampling.pictures import grid

Kind = Literal["gif", "png", "webp"]
FRAME, LAST_FRAME = 120, 2000  # milliseconds
CAPTION = 14  # pixels


@dataclass(frozen=True)
class Moment:
    """One evaluation: x_t and D(x_t, t), each uint8 (N, C, H, W), at a shifted level."""

    sigma: float
    noisy: Tensor
    denoised: Tensor


class Recorder:
    """A denoiser that keeps what passes through it, the last evaluation at each level (Heun makes two)."""

    def __init__(self, denoise: Denoise, model: Generator) -> None:
        self.denoise, self.model = denoise, model
        self.moments: dict[float, Moment] = {}

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        denoised = self.denoise(x, sigma)
        decode, std = self.model.normalizer.decode, self.model.noise.sigma_data
        scaled = x * (std / math.hypot(sigma, std))  # as bright as an image at every level
        self.moments[sigma] = Moment(sigma, decode(scaled).cpu(), decode(denoised).cpu())
        return denoised


def trajectory(
    model: Generator,
    labels: Tensor | None,
    indices: Sequence[int],
    seed: int,
    sampling: SamplingConfig,
    guide: Generator | None = None,
) -> list[Moment]:
    """What the denoiser saw and said while these images were drawn, noisiest first."""
    recorder = Recorder(
        model.denoiser_for(model.classes.placed(labels, len(indices), model.device), sampling, guide), model
    )
    model.walk(recorder, indices, seed, sampling)
    return list(recorder.moments.values())


def save_animation(moments: Sequence[Moment], file: Path, columns: int | None = None) -> None:
    """GIF, animated PNG or WebP, by the name of the file. Raises OutputError."""
    frames = [_frame(moment, columns) for moment in moments]
    kind: str = file.suffix.removeprefix(".").lower()
    options: dict[str, Any] = {"webp": {"lossless": True}}.get(kind, {})
    stream = io.BytesIO()
    durations = [FRAME] * (len(frames) - 1) + [LAST_FRAME]
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)
    replace_file(file, stream.getvalue())


def _frame(moment: Moment, columns: int | None) -> Image.Image:
    left, right = grid(moment.noisy, columns), grid(moment.denoised, columns)
    frame = Image.new("RGB", (left.width + right.width, left.height + CAPTION), "white")
    frame.paste(left, (0, CAPTION))
    frame.paste(right, (left.width, CAPTION))
    draw = ImageDraw.Draw(frame)
    draw.text((4, 1), f"x, sigma {moment.sigma:.3g}", fill="black")
    draw.text((left.width + 4, 1), "D(x, sigma)", fill="black")
    return frame
