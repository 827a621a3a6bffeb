"""The scripts of `epg completion`: words by verb, known when the script is made; nothing is started while one types."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

BASH = """_epg() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{verbs}" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
}}
complete -o filenames -F _epg epg
"""
FISH = "complete -c epg -n '__fish_use_subcommand' -f -a '{verbs}'\n{cases}"


def script(shell: Literal["bash", "zsh", "fish"]) -> str:
    """For `eval`, or a file that the shell reads when it starts."""
    words = words_by_verb()
    if shell == "fish":
        cases = "".join(
            f"complete -c epg -n '__fish_seen_subcommand_from {verb}' -a '{' '.join(found)}'\n"
            for verb, found in words.items()
        )
        return FISH.format(verbs=" ".join(words), cases=cases)
    cases = "\n".join(f'        {verb}) words="{" ".join(found)}" ;;' for verb, found in words.items())
    text = BASH.format(verbs=" ".join(words), cases=cases)
    return f"autoload -U +X bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text


def words_by_verb() -> Mapping[str, list[str]]:
    """Options of every verb, and recipes with their settings for those that take one."""
    from epg.cli.verbs import VERBS
    from epg.command_line import flag
    from epg.config.complaints import every_setting
    from epg.config.recipe import recipe_names
    from epg.config.settings import RunConfig

    settings = list(dict.fromkeys(flag(keys) for keys in every_setting(RunConfig)))
    found: dict[str, list[str]] = {}
    for name, verb in VERBS.items():
        fields = [field for field in dataclasses.fields(verb) if "Positional" not in str(field.type)]
        words = ["--" + ("from" if field.name == "base" else field.name.replace("_", "-")) for field in fields]
        takes_recipe = any(field.name == "recipe" for field in dataclasses.fields(verb))
        overrides = settings if getattr(verb, "TAKES_OVERRIDES", False) else []
        found[name] = [*words, "--help", *(recipe_names() if takes_recipe else []), *overrides]
    return found
