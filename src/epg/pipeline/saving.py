"""What lies beside the weights of a saved pipeline: its code, and the seals of both."""

import json
from collections.abc import Mapping
from pathlib import Path

from epg.errors import ArtefactError
from epg.storage.seal import entry_of, seal_file

# The classes of a saved folder, and the modules in it that hold them.
CLASSES = {"pipeline": "EPGPipeline", "transformer": "EPGModel"}
CODE = {"pipeline": "pipeline_epg", "transformer": "modeling_epg"}
PIPELINE_CONFIG = "model_index.json"
AUTO = {"AutoModel": f"{CODE['transformer']}.{CLASSES['transformer']}"}


def write_code(folder: Path, code: Mapping[str, str]) -> None:
    """Adds these modules (name -> text) to a folder that diffusers has saved, and seals it."""
    files = {CODE["pipeline"]: folder, CODE["transformer"]: folder / "transformer"}
    for name, place in files.items():
        (place / f"{name}.py").write_text(code[name], encoding="utf-8")
    seal_file(folder / "transformer/config.json", auto_map=AUTO)
    names = {part: [CODE[part], kind] for part, kind in CLASSES.items()}
    sealed = {f"{CODE['pipeline']}.py", f"transformer/{CODE['transformer']}.py"}
    entries = {name: entry_of(folder / name) for name in sorted(sealed)}
    changes = {"_class_name": names["pipeline"], "transformer": names["transformer"], "auto_map": AUTO}
    seal_file(folder / PIPELINE_CONFIG, entries, **changes)


def refuse_another_pipeline(folder: Path) -> None:
    """Raises ArtefactError where a folder holds a pipeline of another class."""
    file = folder / PIPELINE_CONFIG
    if file.exists():
        name = json.loads(file.read_text(encoding="utf-8")).get("_class_name")
        if name not in (CLASSES["pipeline"], [CODE["pipeline"], CLASSES["pipeline"]]):
            raise ArtefactError(f"{file}: belongs to another pipeline. Choose another folder.")
