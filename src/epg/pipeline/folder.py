"""A saved pipeline as plain files: read without diffusers, and without running any code that lies in the folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from epg.complaints import complaints
from epg.config import NoiseConfig, SamplingConfig, Section
from epg.data.normalize import Normalizer
from epg.denoiser import Denoiser
from epg.errors import ArtefactError
from epg.generator import Generator
from epg.networks import EPG, Encoder
from epg.training.artefact import match, read_json, read_tensors

INDEX, COMPONENT, CONFIG, WEIGHTS = "model_index.json", "transformer", "config.json", "diffusion_pytorch_model"
SHARD_CAP = 1000
T = TypeVar("T", bound=Section)
Size = Annotated[int, Field(ge=1, le=2**16)]


class ModelSettings(Section):
    """`transformer/config.json`: the arguments of `EPGModel`."""

    sample_size: Size
    patch_size: Size
    depth: Annotated[int, Field(ge=1, le=512)]
    encoder_width: Size
    encoder_heads: Size
    decoder_width: Size
    decoder_heads: Size
    in_channels: Annotated[int, Field(ge=1, le=64)] = 3
    num_classes: Annotated[int, Field(ge=0, le=10**7)] = 0
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    stem: Annotated[int, Field(ge=0, le=2**12)] = 0
    gaussians: Annotated[int, Field(ge=0, le=10**7)] = 0

    @model_validator(mode="after")
    def fits(self) -> "ModelSettings":
        if self.sample_size % self.patch_size:
            raise ValueError("sample_size must be a multiple of patch_size")
        if self.encoder_width % self.encoder_heads or self.decoder_width % self.decoder_heads:
            raise ValueError("a width must be a multiple of its number of heads")
        if self.gaussians not in (0, 1, self.num_classes + 1):
            raise ValueError("gaussians must be 0, 1, or num_classes + 1")
        return self

    def build(self) -> EPG:
        """The network, with parameters that have no values yet."""
        with torch.device("meta"):
            encoder = Encoder(
                image_size=self.sample_size,
                patch_size=self.patch_size,
                channels=self.in_channels,
                depth=self.depth,
                width=self.encoder_width,
                heads=self.encoder_heads,
                mlp_ratio=self.mlp_ratio,
                stem=self.stem,
            )
            return EPG(
                encoder,
                decoder_width=self.decoder_width,
                decoder_heads=self.decoder_heads,
                num_classes=self.num_classes,
                mlp_ratio=self.mlp_ratio,
                gaussians=self.gaussians,
            )


class NoiseSettings(NoiseConfig):
    shift: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def ordered(self) -> "NoiseSettings":
        if not 0 < self.sigma_min < self.sigma_max or self.rho <= 0 or self.sigma_data <= 0:
            raise ValueError("0 < sigma_min < sigma_max, and rho and sigma_data positive")
        return self


class Normalization(Section):
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


class Sampling(SamplingConfig):
    steps: Annotated[int, Field(ge=2, le=10_000)] = 32


class PipelineSettings(Section):
    """`model_index.json` besides the names of classes: the arguments of `EPGPipeline`."""

    parameterization: Literal["x", "edm", "spectral"]
    noise: NoiseSettings
    normalization: Normalization
    sampling: Sampling
    id2label: dict[int, str] | None = None


@dataclass(frozen=True)
class Saved:
    """A pipeline folder whose configuration was read and checked."""

    path: Path
    model: ModelSettings
    settings: PipelineSettings

    def tensors(self, variant: str | None = None) -> dict[str, Tensor]:
        """The network's state dict, on the CPU, every key accounted for. Raises ArtefactError."""
        folder = self.path / COMPONENT
        name = WEIGHTS if variant is None else f"{WEIGHTS}.{variant}"
        index = folder / f"{WEIGHTS}.safetensors.index{'' if variant is None else f'.{variant}'}.json"
        tensors: dict[str, Tensor] = {}
        for file in shards(index) if index.is_file() else [folder / f"{name}.safetensors"]:
            tensors |= read_tensors(file)
        match(tensors, self.model.build().state_dict(), str(folder), types=False)
        return tensors

    @property
    def class_names(self) -> tuple[str, ...]:
        """In order; empty where the folder does not name every class."""
        names = self.settings.id2label or {}
        complete = sorted(names) == list(range(self.model.num_classes))
        return tuple(names[i] for i in range(len(names))) if complete else ()

    def generator(self, device: torch.device | str = "cpu") -> Generator:
        """The generator with its weights, ready to sample; it needs no `torch.no_grad()`."""
        network = self.model.build()
        network.load_state_dict({name: t.float() for name, t in self.tensors().items()}, assign=True)
        settings, noise = self.settings, self.settings.noise
        denoiser = Denoiser(
            network.eval().requires_grad_(False).to(device),
            settings.parameterization,
            sigma_min=noise.shift * noise.sigma_min,
            sigma_data=noise.sigma_data,
        )
        normalizer = Normalizer(**settings.normalization.model_dump())
        size = self.model.sample_size
        return Generator(denoiser, normalizer, noise, noise.shift, size, settings.sampling, self.class_names)


def is_pipeline(path: Path) -> bool:
    return (path / INDEX).is_file()


def read(path: Path) -> Saved:
    """A pipeline folder of ours. Raises ArtefactError for anything else, and for settings that nothing here knows."""
    index, _ = read_json(path / INDEX)
    names = [index.get("_class_name"), index.get(COMPONENT)]
    if [name[-1] if isinstance(name, list) and name else name for name in names] != ["EPGPipeline", "EPGModel"]:
        raise ArtefactError(f"{path / INDEX}: a pipeline of another kind ({names[0]}); an EPGPipeline is expected")
    settings = {name: value for name, value in index.items() if not name.startswith("_") and name != COMPONENT}
    config, _ = read_json(path / COMPONENT / CONFIG)
    model = {name: value for name, value in config.items() if not name.startswith("_")}
    saved = Saved(
        path,
        validated(ModelSettings, model, path / COMPONENT / CONFIG),
        validated(PipelineSettings, settings, path / INDEX),
    )
    channels = saved.model.in_channels
    if not len(saved.settings.normalization.mean) == len(saved.settings.normalization.std) == channels:
        raise ArtefactError(f"{path / INDEX}: normalization: one mean and one std for each of {channels} channels")
    if (saved.settings.parameterization == "spectral") != bool(saved.model.gaussians):
        raise ArtefactError(f"{path}: parameterization spectral goes with gaussians of the model, and the reverse")
    return saved


def validated(kind: type[T], content: Mapping[str, Any], where: Path) -> T:
    """Settings of this kind; what is unknown, missing or wrong is listed in one ArtefactError."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = "\n".join(complaints(error, kind))
        raise ArtefactError(f"{where}: {error.error_count()} wrong settings:\n{lines}") from None


def shards(index: Path) -> list[Path]:
    """The files that an index of sharded weights names, all beside it."""
    table = read_json(index)[0].get("weight_map")
    files = sorted(set(map(str, table.values()))) if isinstance(table, dict) else []
    here = all(Path(f).name == f and f.endswith(".safetensors") for f in files)
    if not files or len(files) > SHARD_CAP or not here:
        raise ArtefactError(f"{index}: damaged; it must name the files beside it that hold the weights")
    return [index.parent / file for file in files]
