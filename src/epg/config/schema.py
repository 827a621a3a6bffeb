"""JSON schema of recipes, by which editors complete and check them (`epg schema`)."""

import json
from typing import Any

from pydantic.json_schema import models_json_schema

from epg.config.objectives import KINDS
from epg.config.recipe import ABOUT, Expected
from epg.config.sections import Section
from epg.config.settings import RunConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FILE = "epg.schema.json"
HEADER = f"# yaml-language-server: $schema={FILE}"


def recipe_schema() -> dict[str, Any]:
    """What may stand in a recipe: common sections, and a section for each stage, which is laid over them.

    Nothing is required of a part, as the rest may come from another part, or from the recipe that it builds on.
    """
    models: list[type[Section]] = [RunConfig, Expected, *KINDS.values()]
    _, found = models_json_schema([(model, "validation") for model in models], ref_template="#/$defs/{model}")
    definitions = {name: optional(definition) for name, definition in found["$defs"].items()}
    sections = definitions.pop("RunConfig")["properties"]
    sections.pop("objective")
    of_stage = {name: content for name, content in sections.items() if name not in ("recipe", "seed")}
    stages = {
        stage: closed({**of_stage, "seed": sections["seed"], "objective": {"$ref": f"#/$defs/{kind.__name__}"}}, stage)
        for stage, kind in KINDS.items()
    }
    about: dict[str, Any] = {
        "base": {"type": "string", "description": "Recipe, by name or path, that this one is laid over."},
        "description": {"type": "string"},
        "expected": closed({stage: {"$ref": "#/$defs/Expected"} for stage in KINDS}, "What a publication states."),
    }
    assert set(ABOUT) <= about.keys()
    objective = {"anyOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in KINDS.values()]}
    top = closed({**about, **sections, "objective": objective, **stages}, "A recipe of EPG")
    return {"$schema": DIALECT, "title": "EPG recipe", **top, "$defs": definitions}


def closed(properties: dict[str, Any], description: str) -> dict[str, Any]:
    return {"type": "object", "description": description, "properties": properties, "additionalProperties": False}


def optional(definition: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in definition.items() if name != "required"}


def as_text() -> str:
    return json.dumps(recipe_schema(), indent=1) + "\n"
