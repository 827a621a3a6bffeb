"""`epg info`: what a recipe, or a run, is and costs. Needs no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from epg.config.recipe import expected, read_recipe, recipe_names, run_config, stages_of
from epg.config.settings import RunConfig, parse
from epg.config.validation import check
from epg.cost.devices import named_peak
from epg.cost.memory import memory
from epg.cost.network import parts, total
from epg.cost.training import hours, training_flops
from epg.errors import ArtefactError, UserError, cause
from epg.grids import evaluations

RECORDS = {"manifest.json": "state.json", "model.safetensors": "config.json"}
"""Of a checkpoint and of an export: what they are known by, and the file with the configuration."""
NAMES = ("encoder", "projector", "class embedding", "decoder", "internal head")


def list_recipes() -> None:
    """Every recipe that comes with the package, one line each."""
    table = Table("recipe", "description")
    for name in recipe_names():
        table.add_row(name, read_recipe(name).get("description", ""))
    Console().print(table)
    print("Details: epg info RECIPE")


@dataclass(frozen=True)
class Machine:
    """GPUs to compute hours and memory for."""

    gpu: str = "H200"
    gpus: int = 8
    mfu: float = 0.235

    def __str__(self) -> str:
        return f"{self.gpus} x {self.gpu}"


def print_info(subject: str, machine: Machine) -> None:
    """Parameters, multiply-adds (both countings), tokens, NFE and settings of each stage of a recipe, or of a run; what
    training takes on a machine."""
    table = Table("", title=subject)
    columns = []
    for config in configurations(subject):
        filled = with_classes(config)
        columns.append(rows(filled) | training_rows(filled, machine))
        table.add_column(config.stage)
    for name in dict.fromkeys(name for column in sorted(columns, key=len, reverse=True) for name in column):
        cells = [column.get(name, "") for column in columns]
        if any(cells):
            table.add_row(name, *cells)
    Console().print(table)


def print_tables() -> None:
    """The paper's sizes, GFLOPs and hours (tables 1, 2, 4, 7 and 8, appendix B.4) beside those of the recipes; what is
    printed otherwise is marked, hours where they are apart by more than a fifth at one MFU of 23.5 %."""
    table = Table("recipe", "stage", "parameters", "paper", "GFLOPs", "paper", "NFE", "hours", "paper", "differs")
    for recipe in recipe_names():
        for stage, paper in expected(recipe).items():
            config = run_config(recipe, stage)
            cost, machine = total(parts(config).values()), Machine(gpus=int(paper.gpus))
            needed = hours(config, named_peak(machine.gpu), machine.mfu, machine.gpus)
            found = {
                "parameters": (cost.parameters / 1e6, paper.parameters),
                "GFLOPs": (cost.macs / 1e9, paper.gflops),
                "hours": (needed, paper.hours),
            }
            other = [name for name, pair in found.items() if differs(name, *pair)]
            nfe = f"{sum(evaluations(config.sampling, config.noise, config.shift))}" if config.objective.samples else ""
            cells = [(f"{own:,.1f}", "" if stated is None else f"{stated:g}") for own, stated in found.values()]
            table.add_row(recipe, stage, *cells[0], *cells[1], nfe, *cells[2], " ".join(other))
    Console(width=130).print(table)
    print("Parameters in millions, GFLOPs as the paper counts them, hours on 8 H200 (G: 16) at 23.5 % MFU.")


def differs(name: str, own: float, paper: float | None) -> bool:
    """Whether a number does not print as the paper's: rounded or, as the paper does in places, cut off."""
    if paper is None:
        return False
    return abs(own / paper - 1) > 0.2 if name == "hours" else paper not in (round(own), int(own))


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
        **{f"  {name}": count(found[name].parameters) if name in found else "" for name in NAMES},
        "GFLOPs": f"{short(cost.macs / 1e9)} (paper's counting)",
        "GFLOPs + attention": short(cost.macs_with_attention / 1e9),
        "training FLOPs": f"{training_flops(config) * training.batch_size * training.steps:.3g}",
    }
    if config.objective.samples:
        told["sampler"] = f"{config.sampling.sampler}, guidance {config.sampling.guidance:g}"
        told["NFE"] = f"{sum(evaluations(config.sampling, config.noise, config.shift))}"
    return told


def training_rows(config: RunConfig, machine: Machine) -> dict[str, str]:
    """What training takes, in time and in memory of each GPU."""
    training, gpus = config.training, machine.gpus
    images = training.micro_batch or max(1, training.batch_size // gpus)
    checkpointing, sharded = training.activation_checkpointing, training.parallel == "fsdp"
    own = memory(config, images, checkpointing=checkpointing, devices=gpus if sharded else 1)
    other = memory(config, images, checkpointing=not checkpointing)
    shards = memory(config, images, checkpointing=checkpointing, devices=gpus)
    needed = hours(config, named_peak(machine.gpu), machine.mfu, gpus)
    without = "without" if checkpointing else "with"
    return {
        f"hours on {machine}": f"{needed:,.3g} at {machine.mfu:.1%} MFU",
        "memory of a GPU": f"{gib(own.total)}" + ("" if sharded or gpus == 1 else f" ({gib(shards.total)} with fsdp)"),
        "  weights": gib(own.weights),
        "  gradients": gib(own.gradients),
        "  optimizer": gib(own.optimizer),
        "  averages": gib(own.averages),
        f"  activations, {images} images": f"{gib(own.activations)} ({gib(other.activations)} {without} checkpointing)",
    }


def gib(bytes_: float) -> str:
    return f"{bytes_ / 2**30:.3g} GiB"


def short(number: float) -> str:
    """A number to be read: one decimal place, or three digits of a small one."""
    return f"{number:,.1f}" if number >= 10 else f"{number:.3g}"


def count(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f}M" if parameters >= 10**5 else f"{parameters:,}"
