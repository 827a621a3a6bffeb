"""Recipes: YAML files with common sections and one section per stage, by name or path."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from epg.config import STAGES, RunConfig, Stage, parse
from epg.errors import UserError

RECIPE_FOLDER = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml") if not path.stem.startswith("_"))


def read_recipe(name: str, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's mapping, by name or path, laid over its `base` recipe if it names one."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPE_FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"recipe {name!r}: not found. Recipes: {', '.join(recipe_names())}; or the path of a .yaml file."
        )
    try:
        recipe = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections")
    base = recipe.pop("base", None)
    if base is None:
        return recipe
    if base in below:
        raise UserError(f"{path}: its base {base!r} leads back to itself")
    return merge(read_recipe(base, (*below, base)), recipe)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mapping by mapping. A mapping with another `kind` replaces the one below."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("kind") in (None, old.get("kind")):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def stages_of(recipe: str) -> list[Stage]:
    """The stages that a recipe describes."""
    content = read_recipe(recipe)
    return [content["objective"]["kind"]] if "objective" in content else [s for s in STAGES if s in content]


def run_config(recipe: str, stage: Stage | None = None) -> RunConfig:
    """The configuration of one stage of a recipe (name or path); None: the only stage it has."""
    content = read_recipe(recipe)
    content.pop("description", None)
    if "objective" not in content:  # a recipe; otherwise the configuration that a run folder records
        stages = {s: content.pop(s) for s in STAGES if s in content}
        stage = stage or (next(iter(stages)) if len(stages) == 1 else None)
        if stage not in stages:
            wanted = "choose one" if stage is None else f"it has no {stage}"
            raise UserError(f"recipe {recipe!r} has the stages {', '.join(stages) or 'none'}; {wanted}")
        content = merge(content, merge({"objective": {"kind": stage}}, stages[stage]))
        content.setdefault("recipe", Path(recipe).stem)
    config = parse(content, recipe)
    if stage is not None and config.stage != stage:
        raise UserError(f"{recipe}: a configuration for {config.stage}, not for {stage}")
    return config
