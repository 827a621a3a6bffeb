"""`epg info`: what a recipe is and costs."""

from rich.console import Console
from rich.table import Table

from epg.config.recipe import read_recipe, recipe_names, run_config, stages_of
from epg.config.validation import check
from epg.grids import evaluations
from epg.networks.cost import epg_cost, rcm_parameters


def list_recipes() -> None:
    """Every recipe that comes with the package, one line each."""
    table = Table("recipe", "description")
    for name in recipe_names():
        table.add_row(name, read_recipe(name).get("description", ""))
    Console().print(table)
    print("Details: epg info RECIPE")


def print_info(recipe: str) -> None:
    """Parameters, multiply-adds (both countings), tokens, NFE and settings of each stage."""
    table = Table(title=recipe)
    table.add_column("")
    columns: list[dict[str, str]] = []
    for stage in stages_of(recipe):
        config = run_config(recipe, stage)
        if config.model.num_classes is None:  # decided by the data; ten rows of an embedding change little
            config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": 10})})
        check(config)
        model, data, training = config.model, config.data, config.training
        tokens = (data.image_size // model.patch_size) ** 2 + 2
        rows = {
            "images": f"{data.image_size}x{data.image_size}x{data.channels}",
            "tokens": f"{tokens} ({tokens - 2} patches of {model.patch_size}x{model.patch_size}, CLS, time)",
            "noise shift": f"{config.shift:g}",
            "batch": f"{training.batch_size}",
            "steps": f"{training.steps:,}",
        }
        if not config.objective.samples:
            rows["parameters"] = f"{rcm_parameters(model, data) / 1e6:,.1f}M (with projector)"
        else:
            cost = epg_cost(model, data)
            rows["parameters"] = f"{cost.parameters / 1e6:,.1f}M"
            rows["GFLOPs"] = f"{cost.macs / 1e9:,.1f} (paper's counting)"
            rows["GFLOPs + attention"] = f"{cost.macs_with_attention / 1e9:,.1f}"
            rows["sampler"] = f"{config.sampling.sampler}, guidance {config.sampling.guidance:g}"
            rows["NFE"] = f"{sum(evaluations(config.sampling, config.noise, config.shift))}"
        columns.append(rows)
        table.add_column(stage)
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "") for column in columns))
    Console().print(table)
