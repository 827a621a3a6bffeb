"""Recipes: YAML files with common sections and one section per stage, by name or path."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from epg.complaints import Locate
from epg.config import STAGES, RunConfig, Stage, parse
from epg.errors import UserError
from epg.yaml_file import Keys, key_lines, read_yaml

UNIONS = ("objective", "views")  # their settings are other ones for each kind
RECIPE_FOLDER = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml") if not path.stem.startswith("_"))


def read_recipe(name: str, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's mapping, by name or path, laid over its `base` recipe if it names one."""
    path = recipe_path(name)
    if not path.is_file():
        raise UserError(
            f"recipe {name!r}: not found. Recipes: {', '.join(recipe_names())}; or the path of a .yaml file."
        )
    recipe = read_yaml(path)
    base = recipe.pop("base", None)
    if base is None:
        return recipe
    if not isinstance(base, str):
        raise UserError(f"{path}: base: the name of a recipe or the path of a .yaml file is expected")
    if base in below:
        raise UserError(f"{path}: its base {base!r} leads back to itself")
    return merge(read_recipe(base, (*below, base)), recipe)


def recipe_path(name: str) -> Path:
    """The file of a recipe, by name or path."""
    given = name.endswith((".yaml", ".yml")) and "\0" not in name
    return Path(name) if given else RECIPE_FOLDER / f"{Path(name.replace(chr(0), '')).name}.yaml"


def locator(recipe: str, stage: Stage | None) -> Locate:
    """Where a setting of a stage stands in the recipe's own file."""

    @functools.cache
    def lines() -> dict[Keys, int]:
        return key_lines(recipe_path(recipe))

    def locate(keys: Keys) -> str:
        for size in range(len(keys), 0, -1):
            for place in ((str(stage), *keys[:size]), keys[:size]):
                if place in lines():
                    return f" ({recipe_path(recipe).name} line {lines()[place]})"
        return ""

    return locate


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mapping by mapping. An objective or views of another `kind` replace those below."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not replaces(key, old, value):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def replaces(key: str, old: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    """Whether a mapping's settings are other ones than those of the mapping below it."""
    return key in UNIONS and value.get("kind") not in (None, old.get("kind"))


def stages_of(recipe: str) -> list[Stage]:
    """The stages that a recipe describes."""
    content = read_recipe(recipe)
    return [run_config(recipe).stage] if "objective" in content else [s for s in STAGES if s in content]


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
        if not isinstance(stages[stage], dict):
            raise UserError(f"{recipe}: {stage}: a mapping of sections is expected{locator(recipe, None)((stage,))}")
        content = merge(content, merge({"objective": {"kind": stage}}, stages[stage]))
        content.setdefault("recipe", Path(recipe).stem)
    config = parse(content, recipe, locator(recipe, stage))
    if stage is not None and config.stage != stage:
        raise UserError(f"{recipe}: a configuration for {config.stage}, not for {stage}")
    return config
