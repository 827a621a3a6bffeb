"""What editors and shells know of recipes and commands."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from epg.cli import main
from epg.cli.completion import script
from epg.config.recipe import RECIPE_FOLDER, run_config
from epg.config.schema import FILE, HEADER, recipe_schema
from epg.config.yaml_file import read_yaml

SCHEMA = recipe_schema()


def unknown(value: Any, schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """Keys of a recipe that the schema does not let in."""
    while "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    choices = schema.get("anyOf", schema.get("oneOf", []))
    if isinstance(value, dict) and choices:
        found = [list(unknown(value, choice, where)) for choice in choices]
        yield from min(found, key=len)
    elif isinstance(value, dict) and schema.get("type") == "object":
        for key, inner in value.items():
            if key in schema["properties"]:
                yield from unknown(inner, schema["properties"][key], f"{where}.{key}")
            else:
                yield f"{where}.{key}"


@pytest.mark.parametrize("recipe", sorted(RECIPE_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_fits_the_schema(recipe):
    assert list(unknown(read_yaml(recipe), SCHEMA)) == []


def test_what_is_misspelled_does_not_fit():
    wrong = {"dat": {}, "data": {"sorce": "x"}, "diffusion": {"objective": {"d": 3}, "training": {"step": 1}}}
    assert list(unknown(wrong, SCHEMA)) == [".dat", ".data.sorce", ".diffusion.objective.d", ".diffusion.training.step"]
    described = SCHEMA["$defs"]["TrainingConfig"]["properties"]["batch_size"]
    assert described["description"].startswith("Images per step")


def test_a_recipe_gets_its_schema(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: digits\n")
    for _ in range(2):
        assert main(["schema", str(recipe)]) == 0
    assert recipe.read_text() == f"{HEADER}\nbase: digits\n"
    assert json.loads((tmp_path / FILE).read_text()) == SCHEMA
    assert run_config(str(recipe), "diffusion").data.image_size == 8
    capsys.readouterr()
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA
    assert main(["schema", str(tmp_path / "none.yaml")]) == 2
    assert main(["schema", str(tmp_path / FILE)]) == 2


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("epg pretr", "pretrain"),
        ("epg finetune digi", "digits"),
        ("epg finetune digits --fro", "--from --from-scratch"),
        ("epg pretrain digits --training.batch", "--training.batch-size"),
        ("epg sample run --interp", "--interpolate"),
    ],
)
def test_bash_completes(words, completed, tmp_path: Path):
    (tmp_path / "completion").write_text(script("bash"))
    ask = (
        f"source ./completion; COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}; _epg; echo ${{COMPREPLY[@]}}"
    )
    result = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split() == completed.split()


def test_other_shells(capsys):
    assert main(["completion", "zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out
    assert main(["completion", "fish"]) == 0
    assert "complete -c epg -n '__fish_seen_subcommand_from sample'" in capsys.readouterr().out
