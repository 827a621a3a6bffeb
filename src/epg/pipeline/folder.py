"""A saved pipeline as plain files: read without diffusers, and without running any code that lies in the folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from epg.config.complaints import complaints
from epg.config.objectives import Parameterization
from epg.config.sections import NoiseConfig, SamplingConfig, Section
from epg.data.views.normalize import Normalizer
from epg.denoiser import Denoiser
from epg.errors import ArtefactError
from epg.generator import Generator
from epg.networks import EPG, NetworkShape
from epg.storage.artefact import match, read_json, read_tensors
from epg.storage.seal import SEAL, check_file, check_settings, entry_of, files_in, seal_file

INDEX, COMPONENT, CONFIG, WEIGHTS = "model_index.json", "transformer", "config.json", "diffusion_pytorch_model"
SHARD_CAP = 1000
NOTES = (COMPONENT, "auto_map")  # entries that are for diffusers, not settings
EDITABLE = ("README.md", "samples.png", "recipe.yaml")  # the card: for people, who may rewrite it
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
    internal: bool = False

    @model_validator(mode="after")
    def fits(self) -> "ModelSettings":
        self.shape()
        return self

    def shape(self) -> NetworkShape:
        return NetworkShape(**self.model_dump())

    def build(self) -> EPG:
        """The network, with parameters that have no values yet."""
        with torch.device("meta"):
            return EPG(self.shape())


class NoiseSettings(NoiseConfig):
    shift: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def ordered(self) -> "NoiseSettings":
        if not self.sigma_min < self.sigma_max:
            raise ValueError("sigma_min must be less than sigma_max")
        return self


class Normalization(Section):
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


class PipelineSettings(Section):
    """`model_index.json` besides the names of classes: the arguments of `EPGPipeline`."""

    parameterization: Parameterization
    noise: NoiseSettings
    normalization: Normalization
    sampling: SamplingConfig
    id2label: dict[int, str] | None = None
    trained_in: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Saved:
    """A pipeline folder whose configuration was read and checked."""

    path: Path
    model: ModelSettings
    settings: PipelineSettings
    weights: dict[str, dict[str, Any]]
    """Sealed files of the model: name -> sha256 and size."""
    others: dict[str, dict[str, Any]]
    """Sealed files of the pipeline, by their path in the folder."""

    def tensors(self, variant: str | None = None) -> dict[str, Tensor]:
        """The network's state dict, on the CPU, every key accounted for. Raises ArtefactError."""
        folder = self.path / COMPONENT
        name = WEIGHTS if variant is None else f"{WEIGHTS}.{variant}"
        index = folder / f"{WEIGHTS}.safetensors.index{'' if variant is None else f'.{variant}'}.json"
        tensors: dict[str, Tensor] = {}
        sharded = index.is_file()
        files = shards(index) if sharded else [folder / f"{name}.safetensors"]
        for file in files:
            tensors |= read_tensors(file)
        match(tensors, self.model.build().state_dict(), str(folder), types=False)
        for file in [*files, *([index] if sharded else [])]:
            check_file(file, self.weights.get(file.name))
        return tensors

    def trained_in(self) -> tuple[str, ...]:
        """Sha256 of the encoders in whose features it was trained: these judge nothing."""
        return self.settings.trained_in or ()

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
    """A pipeline folder of ours, its settings as they were sealed; `tensors` compares the weights.

    Raises ArtefactError for anything else, for settings that nothing here knows, and for changed ones.
    """
    saved, index, config = parsed(path)
    check_settings(config, path / COMPONENT / CONFIG)
    check_settings(index, path / INDEX)
    return saved


def parsed(path: Path) -> tuple[Saved, dict[str, Any], dict[str, Any]]:
    """A pipeline folder as it is now, and its two configurations. Raises ArtefactError."""
    index, _ = read_json(path / INDEX)
    names = [index.get("_class_name"), index.get(COMPONENT)]
    if [name[-1] if isinstance(name, list) and name else name for name in names] != ["EPGPipeline", "EPGModel"]:
        raise ArtefactError(f"{path / INDEX}: a pipeline of another kind ({names[0]}); an EPGPipeline is expected")
    config, _ = read_json(path / COMPONENT / CONFIG)
    settings, model = (
        {name: value for name, value in content.items() if not name.startswith("_") and name not in NOTES}
        for content in (index, config)
    )
    saved = Saved(
        path,
        validated(ModelSettings, model, path / COMPONENT / CONFIG),
        validated(PipelineSettings, settings, path / INDEX),
        files_in(config, path / COMPONENT / CONFIG) if SEAL in config else {},
        files_in(index, path / INDEX) if SEAL in index else {},
    )
    channels = saved.model.in_channels
    if not len(saved.settings.normalization.mean) == len(saved.settings.normalization.std) == channels:
        raise ArtefactError(f"{path / INDEX}: normalization: one mean and one std for each of {channels} channels")
    if (saved.settings.parameterization == "spectral") != bool(saved.model.gaussians):
        raise ArtefactError(f"{path}: parameterization spectral goes with gaussians of the model, and the reverse")
    return saved, index, config


def check(path: Path) -> None:
    """Reads a pipeline folder to the last byte. Raises ArtefactError naming the file and what differs."""
    saved = read(path)
    for name, entry in saved.weights.items():
        if name.endswith(".safetensors"):
            read_tensors(path / COMPONENT / name)
        check_file(path / COMPONENT / name, entry)
    for name, entry in saved.others.items():
        if not name.endswith(EDITABLE):
            check_file(path / name, entry)


def reseal(path: Path) -> None:
    """Seals a folder as it is now. Raises ArtefactError where it cannot be used as it is, OSError."""
    parsed(path)
    folder = path / COMPONENT
    names = sorted(file.name for file in folder.glob(f"{WEIGHTS}*") if file.is_file())
    seal_file(folder / CONFIG, {name: entry_of(folder / name) for name in names})
    others = [file for file in path.rglob("*") if file.is_file() and file != path / INDEX]
    kept = {f"{COMPONENT}/{name}" for name in (CONFIG, *names)}
    entries = {file.relative_to(path).as_posix(): entry_of(file) for file in sorted(others)}
    seal_file(path / INDEX, {name: entry for name, entry in entries.items() if name not in kept})
    read(path).tensors()


def foreign(path: Path) -> str:
    """Why a folder is not, all of it, a pipeline as it was written; "" where it is (`outputs.replacing_folder`)."""
    try:
        saved = read(path)
        ours = {f"{COMPONENT}/{name}": entry for name, entry in saved.weights.items()} | saved.others
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if name not in {INDEX, COMPONENT, f"{COMPONENT}/{CONFIG}", *ours}:
                return f"holds {name}, which is not ours"
        for name, entry in ours.items():
            check_file(path / name, entry)
    except ArtefactError as error:
        return f"holds something else, or what was changed since it was written ({str(error).splitlines()[0]})"
    return ""


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
