"""Recipes: YAML files with common sections and one section per stage, by name or path."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from epg.config.complaints import Locate, complaints, models_in
from epg.config.objectives import KINDS, Stage
from epg.config.ranges import Number
from epg.config.sections import Section
from epg.config.settings import RunConfig, complaints_of
from epg.config.yaml_file import Keys, key_lines, read_yaml
from epg.errors import UserError, meant

UNIONS = ("objective", "views")  # their settings are other ones for each kind
ABOUT = ("description", "expected")  # of a recipe, and of no run
RECIPE_FOLDER = Path(__file__).parent / "recipes"


class Expected(Section):
    """What a publication states of a stage; None where it does not."""

    parameters: Number | None = None
    """Millions; of an encoder with its projector."""
    gflops: Number | None = None
    """Multiply-adds of a pass, without the products of attention, in thousands of millions."""
    hours: Number | None = None
    """Of training, on `gpus` H200."""
    gpus: Number = 8
    fid: Number | None = None
    """Of 50,000 samples, by the recipe's sampler."""
    labels: Literal["balanced", "random"] = "random"
    """Those that the FID was measured with, see `epg evaluate --labels`."""


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml") if not path.stem.startswith("_"))


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe's mapping, by name or path, laid over its `base` recipe if it names one."""
    recipe: dict[str, Any] = {}
    for content in recipe_files(name).values():
        recipe = merge(content, recipe)
    recipe.pop("base", None)
    return recipe


def recipe_files(name: str) -> dict[Path, dict[str, Any]]:
    """The file of a recipe, and those of the recipes it builds on, with their contents.

    Raises UserError where one is missing or wrong.
    """
    files: dict[Path, dict[str, Any]] = {}
    path = recipe_path(name)
    if not path.is_file():
        raise UserError(
            f"recipe {name!r}: not found.{meant(name, recipe_names())} Recipes: {', '.join(recipe_names())}; or the "
            "path of a .yaml file."
        )
    while True:
        files[path] = read_yaml(path)
        refuse_no_sections(files[path], path)
        base = files[path].get("base")
        if base is None:
            return files
        if not isinstance(base, str):
            raise UserError(f"{path}: base: the name of a recipe or the path of a .yaml file is expected")
        below = recipe_path(base, path.parent)
        if not below.is_file():
            where = f"no {below}" if is_path(base) else f"recipes: {', '.join(recipe_names())}; or a .yaml file"
            raise UserError(f"{path}: base {base!r}: not found; {where}")
        if any(below.samefile(file) for file in files):
            raise UserError(f"{path}: its base {base!r} leads back to itself")
        path = below


def refuse_no_sections(content: Mapping[str, Any], path: Path) -> None:
    """Raises UserError listing what should be a section with settings and is something else."""
    names = {name for name, field in RunConfig.model_fields.items() if any(models_in(field))}
    found: dict[Keys, Any] = {(key,): value for key, value in content.items() if key in names or key in KINDS}
    for stage in KINDS:
        if isinstance(content.get(stage), dict):
            found |= {(stage, key): value for key, value in content[stage].items() if key in names}
    wrong = [keys for keys, value in found.items() if not isinstance(value, dict)]
    if wrong:
        lines = key_lines(path)
        listed = "\n".join(f"  {'.'.join(k)}: a section with settings is expected (line {lines[k]})" for k in wrong)
        raise UserError(f"{path}: not a recipe:\n{listed}")


def expected(recipe: str) -> dict[Stage, Expected]:
    """The published figures of a recipe's stages (`expected`), where it states some. Raises UserError."""
    return _expected(recipe, read_recipe(recipe))


def _expected(recipe: str, mapping: Mapping[str, Any]) -> dict[Stage, Expected]:
    content = mapping.get("expected", {})
    wrong = [] if isinstance(content, dict) else ["  expected: a mapping of stages is expected"]
    found: dict[Stage, Expected] = {}
    for stage, figures in content.items() if not wrong else ():
        try:
            found[stage] = Expected.model_validate(figures)
        except ValidationError as error:
            wrong += [f"  expected.{stage}: {line.strip()}" for line in complaints(error, Expected)]
        if stage not in KINDS:
            wrong.append(f"  expected.{stage}: no such stage; there are {', '.join(KINDS)}")
    if wrong:
        raise UserError(f"{recipe}: {len(wrong)} wrong settings:\n" + "\n".join(wrong))
    return found


def is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and "\0" not in name


def recipe_path(name: str, folder: Path = Path()) -> Path:
    """The file of a recipe, by name, or by its path from a folder."""
    return folder / name if is_path(name) else RECIPE_FOLDER / f"{Path(name.replace(chr(0), '')).name}.yaml"


def locator(recipe: str, stage: Stage | None) -> Locate:
    """Where a setting of a stage stands: in the recipe's own file, or in the nearest one below it."""

    @functools.cache
    def lines() -> dict[Path, dict[Keys, int]]:
        return {path: key_lines(path) for path in recipe_files(recipe)}

    def locate(keys: Keys) -> str:
        while keys and keys[-1].isdigit():  # a place in a list
            keys = keys[:-1]
        for path, found in lines().items():
            for place in ((str(stage), *keys), keys):
                if place in found:
                    return f" ({path.name} line {found[place]})"
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
    return [run_config(recipe).stage] if "objective" in content else [s for s in KINDS if s in content]


def defaults(stage: Stage) -> dict[str, Any]:
    """What a recipe need not say of a stage."""
    return {"objective": {"kind": stage}, "sampling": {"sampler": KINDS[stage].sampler}}


def run_config(recipe: str, stage: Stage | None = None) -> RunConfig:
    """The configuration of one stage of a recipe (name or path); None: the only stage it has.

    Raises UserError for whatever is wrong in it, in the sections of other stages too.
    """
    content = read_recipe(recipe)
    _expected(recipe, content)
    content = {name: value for name, value in content.items() if name not in ABOUT}
    wrong: list[str] = []
    if "objective" not in content:  # a recipe; otherwise the configuration that a run folder records
        stages = {s: content.pop(s) for s in KINDS if s in content}
        stage = stage or (next(iter(stages)) if len(stages) == 1 else None)
        if stage not in stages:
            cure = f"add a section `{stage}:`, or write a recipe with `base: {recipe}` that has one"
            wanted = "choose one" if stage is None else f"it has no {stage}: {cure} (docs/training.md)"
            raise UserError(f"recipe {recipe!r} has the stages {', '.join(stages) or 'none'}; {wanted}")
        content.setdefault("recipe", Path(recipe).stem)
        laid = {s: merge(merge(defaults(s), content), stages[s]) for s in stages}
        content = laid.pop(stage)
        for other, settings in laid.items():  # it may be incomplete, but not wrong
            wrong += complaints_of(settings, locator(recipe, other), complete=False)
    wrong = list(dict.fromkeys(complaints_of(content, locator(recipe, stage)) + wrong))
    if wrong:
        raise UserError(f"{recipe}: {len(wrong)} wrong settings:\n" + "\n".join(wrong))
    config = RunConfig.model_validate(content)
    if stage is not None and config.stage != stage:
        raise UserError(f"{recipe}: a configuration for {config.stage}, not for {stage}")
    return config
