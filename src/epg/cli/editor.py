"""`epg schema` and `epg completion`: for editors and shells."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from epg.errors import UserError


@dataclass(frozen=True)
class Schema:
    """Give editors the JSON schema of recipes: completion and checks.

    Printed, or put beside recipes of yours, with a line in each that names it.
    """

    recipes: tyro.conf.Positional[tuple[Path, ...]] = ()
    """YAML files. Each gets the schema beside it, which works without a network, and its first line says so."""

    def __call__(self) -> None:
        from epg.config.recipe import read_recipe
        from epg.config.schema import FILE, HEADER, as_text
        from epg.storage.files import replace_text
        from epg.storage.outputs import writing

        if not self.recipes:
            print(as_text(), end="")
        for recipe in self.recipes:
            if recipe.suffix not in (".yaml", ".yml"):
                raise UserError(f"{recipe}: a .yaml file is expected")
            read_recipe(str(recipe))
        for recipe in self.recipes:
            text = recipe.read_text()
            with writing(recipe):
                replace_text(recipe.parent / FILE, as_text())
                if not text.startswith(HEADER):
                    replace_text(recipe, f"{HEADER}\n{text}")
            print(f"{recipe}: is checked by editors with {recipe.parent / FILE}")


@dataclass(frozen=True)
class Completion:
    """Make your shell complete commands, options and settings.

    Try it: eval "$(epg completion bash)".
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]

    def __call__(self) -> None:
        from epg.cli.completion import script

        print(script(self.shell), end="")
