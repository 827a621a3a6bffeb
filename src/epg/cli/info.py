"""`epg info`: what a recipe, or a run, is and costs. Needs no torch."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from epg.config.recipe import read_recipe, recipe_names, run_config, stages_of
from epg.config.settings import RunConfig, parse
from epg.config.validation import check
from epg.cost.network import parts, total
from epg.cost.training import training_flops
from epg.errors import ArtefactError, UserError, cause
from epg.grids import evaluations

RECORDS = {"manifest.json": "state.json", "model.safetensors": "config.json"}
"""Of a checkpoint and of an export: what they are known by, and the file with the configuration."""


def list_recipes() -> None:
    """Every recipe that comes with the package, one line each."""
    table = Table("recipe", "description")
    for name in recipe_names():
        table.add_row(name, read_recipe(name).get("description", ""))
    Console().print(table)
    print("Details: epg info RECIPE")


def print_info(subject: str) -> None:
    """Parameters, multiply-adds (both countings), tokens, NFE and settings of each stage of a recipe, or of a run."""
    table = Table("", title=subject)
    columns = []
    for config in configurations(subject):
        columns.append(rows(with_classes(config)))
        table.add_column(config.stage)
    for name in dict.fromkeys(name for column in sorted(columns, key=len, reverse=True) for name in column):
        table.add_row(name, *(column.get(name, "") for column in columns))
    Console().print(table)


def configurations(subject: str) -> list[RunConfig]:
    """The stages of a recipe; that of a run folder, checkpoint or export. Raises UserError."""
    folder = Path(subject)
    if not folder.is_dir():
        return [check(with_classes(run_config(subject, stage))) for stage in stages_of(subject)]
    if (folder / "config.yaml").is_file():
        return [run_config(str(folder / "config.yaml"), None)]
    for sign, file in RECORDS.items():
        if (folder / sign).is_file() and (folder / file).is_file():
            return [recorded(folder / file)]
    raise ArtefactError(f"{subject}: no run folder (config.yaml), checkpoint or export")


def recorded(file: Path) -> RunConfig:
    """The configuration that is kept beside weights. Raises UserError."""
    try:
        content: Any = json.loads(file.read_bytes())["config"]
    except OSError as error:
        raise ArtefactError(f"{file}: {cause(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{file}: damaged, or of another program ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no configuration")
    return parse(content, str(file))


def with_classes(config: RunConfig) -> RunConfig:
    """Ten classes where the data will decide: ten rows of an embedding change little."""
    if config.model.num_classes is not None:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"num_classes": 10})})


def rows(config: RunConfig) -> dict[str, str]:
    """What is told of a stage."""
    model, data, training = config.model, config.data, config.training
    tokens, side = (data.image_size // model.patch_size) ** 2, model.patch_size
    found = parts(config)
    cost = total(found.values())
    told = {
        "images": f"{data.image_size}x{data.image_size}x{data.channels}",
        "tokens": f"{tokens + 2} ({tokens} patches of {side}x{side}, CLS, time)",
        "noise shift": f"{config.shift:g}",
        "batch": f"{training.batch_size}",
        "steps": f"{training.steps:,}",
        "parameters": count(cost.parameters),
        **{f"  {name}": count(part.parameters) for name, part in found.items()},
        "GFLOPs": f"{short(cost.macs / 1e9)} (paper's counting)",
        "GFLOPs + attention": short(cost.macs_with_attention / 1e9),
        "training FLOPs": f"{training_flops(config) * training.batch_size * training.steps:.3g}",
    }
    if config.objective.samples:
        told["sampler"] = f"{config.sampling.sampler}, guidance {config.sampling.guidance:g}"
        told["NFE"] = f"{sum(evaluations(config.sampling, config.noise, config.shift))}"
    return told


def short(number: float) -> str:
    """A number to be read: one decimal place, or three digits of a small one."""
    return f"{number:,.1f}" if number >= 10 else f"{number:.3g}"


def count(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f}M" if parameters >= 10**5 else f"{parameters:,}"
