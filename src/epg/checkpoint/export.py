"""`export/` beside the checkpoints: the weights that one uses, in `model.safetensors`, and `config.json` that says how.

A generator's averaged weights, or an encoder with its projector; a later version reads it without the training state.
`config.json` is sealed, and its seal names every file that was written beside it (`epg.storage.seal`).
"""

import contextlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from epg.checkpoint import strangers
from epg.checkpoint.saving import write_error
from epg.config.settings import RunConfig, parse
from epg.errors import ArtefactError, UserError
from epg.storage import files, outputs, seal
from epg.storage.artefact import check_header, digest_of, read_json, read_tensors, size_of, write_json, write_tensors

FOLDER, WEIGHTS, CONFIG = "export", "model.safetensors", "config.json"
FORMAT = 1
PREFIX = "network."  # of the network within the objective's state
FROZEN = "frozen_encoder."  # of what a loss compares images in
FIELDS = {"step": int, "kind": str, "class_names": list, "class_counts": list, "config": dict}

Groups = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Export:
    """A verified export; the weights are the network's state dict."""

    path: Path
    step: int
    kind: str
    """Which weights these are: an average such as ema-0.9999, or the trained ones, `model`."""
    config: RunConfig
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    """Training images of each class; empty without labels, or where they are not known."""
    trained_in: tuple[str, ...] = ()
    """Sha256 of the encoders in whose features the loss was measured."""

    def tensors(self) -> dict[str, Tensor]:
        """On the CPU. Raises ArtefactError."""
        return read_tensors(self.path / WEIGHTS)


# Writing --------------------------------------------------------------------------------------------------------------


def write(folder: Path, step: int, tensors: Groups, state: Mapping[str, Any]) -> None:
    """Replaces a run's own export by the weights of this step; other files in the folder stay in it.

    Raises OutputError; the export before is then as it was.
    """
    try:
        files.make_folder(folder.parent)
        clear(folder)
        outputs.refuse_foreign(folder, strange)
        temporary = files.hidden(folder, "tmp")
        files.mkdir(temporary)
        fill(temporary, step, tensors, state)
        files.sync_folder(temporary)
        if folder.exists():
            old = files.hidden(folder, "old")
            files.rename(folder, old)
            files.rename(temporary, folder)
            files.sync_folder(folder.parent)
            empty(old, folder)
        else:
            files.rename(temporary, folder)
            files.sync_folder(folder.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            clear(folder)
        raise write_error(folder, error, size_of(tensors)) from error


def fill(folder: Path, step: int, tensors: Groups, state: Mapping[str, Any]) -> None:
    """Writes an export into an empty folder: the first average, or the trained weights where there is none."""
    averages = [name for name in tensors if name not in ("model", "optimizer")]
    kind = averages[0] if averages else "model"
    weights = tensors[kind]
    if not averages:
        weights = {k.removeprefix(PREFIX): t for k, t in weights.items() if k.startswith(PREFIX)}
    content = {
        "format": FORMAT,
        "epg": importlib.metadata.version("epg"),
        "step": step,
        "kind": kind,
        "class_names": list(state["class_names"]),
        "class_counts": list(state["class_counts"]),
        "config": state["config"],
        "trained_in": list(state.get("trained_in", frozen_encoders(tensors.get("model", {})))),
    }
    write_json(folder / CONFIG, seal.sealed(content, {WEIGHTS: write_tensors(folder / WEIGHTS, weights)}))


def frozen_encoders(state: Mapping[str, Tensor]) -> list[str]:
    """Sha256 of the encoder in whose features an objective measures its loss, from its state; empty without one."""
    found = {name.removeprefix(FROZEN): t.float() for name, t in state.items() if name.startswith(FROZEN)}
    return [digest_of(found)] if found else []


def reseal(folder: Path) -> None:
    """Seals an export as it is now, with every file in it. Raises ArtefactError where it is none, OSError."""
    content, _ = read_json(folder / CONFIG)
    parsed(folder, content)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != CONFIG)
    content = seal.sealed(content, {name: seal.entry_of(folder / name) for name in names})
    files.replace_text(folder / CONFIG, json.dumps(content, indent=1))


def clear(folder: Path) -> None:
    """Puts right what a killed process left unfinished. Raises OSError."""
    for rest in files.rests(folder.parent, folder.name):
        if rest.name.endswith(".old") and folder.exists():
            empty(rest, folder)
    files.clear_rests(folder.parent, folder.name)


def empty(old: Path, folder: Path) -> None:
    """Removes the export that `folder` has taken the place of; what else somebody kept in it moves over."""
    for name in (WEIGHTS, CONFIG):
        files.remove(old / name)
    for entry in sorted(old.iterdir()):
        if not os.path.lexists(folder / entry.name):
            files.rename(entry, folder / entry.name)
    with contextlib.suppress(OSError):  # what is in the way of its own name stays there
        files.remove_empty(old)


def strange(folder: Path) -> str:
    """Why a run's `export` may not be replaced: its configuration is not even a damaged one of ours."""
    if not (folder / CONFIG).is_file():
        return f"holds {WEIGHTS}, which no run wrote there" if (folder / WEIGHTS).exists() else ""
    try:
        content, _ = read_json(folder / CONFIG)
    except ArtefactError:
        return ""
    return "" if {"epg", *FIELDS} & content.keys() else f"holds a {CONFIG} that no run wrote there"


def foreign(folder: Path) -> str:
    """Why a folder is not, all of it, an export as it was written; "" where it is (`outputs.replacing_folder`)."""
    if not (folder / CONFIG).is_file():
        return f"holds {min(path.name for path in folder.iterdir())}, which is not ours"
    try:
        content, _ = read_json(folder / CONFIG)
        seal.check_settings(content, folder / CONFIG)
        ours = seal.files_in(content, folder / CONFIG)
        for path in sorted(folder.iterdir()):
            if path.name not in {CONFIG, *ours}:
                return f"holds {path.name}, which is not ours"
        for name, entry in ours.items():
            seal.check_file(folder / name, entry)
    except ArtefactError as error:
        return f"holds something else, or what was changed since it was written ({str(error).splitlines()[0]})"
    return ""


# Reading --------------------------------------------------------------------------------------------------------------


def is_export(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def is_ours(path: Path) -> bool:
    """Whether a folder has a configuration of ours, damaged or not."""
    try:
        return "format" in read_json(path / CONFIG)[0]
    except ArtefactError:
        return (path / CONFIG).is_file()


def read(path: Path) -> Export:
    """An export folder, after comparing settings and weights with the seal. Raises ArtefactError."""
    content, _ = read_json(path / CONFIG)
    export = parsed(path, content)
    seal.check_settings(content, path / CONFIG)
    entry = seal.files_in(content, path / CONFIG).get(WEIGHTS)
    if not isinstance(entry, dict):
        raise ArtefactError(f"{path / CONFIG}: its seal does not name {WEIGHTS}")
    check_header(path / WEIGHTS)
    seal.check_file(path / WEIGHTS, entry)
    return export


def parsed(path: Path, content: Mapping[str, Any]) -> Export:
    """What `config.json` says, every field accounted for. Raises ArtefactError."""
    if "format" not in content:
        strangers.refuse_folder(path)
    if content.get("format") != FORMAT:
        raise ArtefactError(
            f"{path / CONFIG}: format {content.get('format')!r}; this version reads {FORMAT}. "
            f"It was written by epg {content.get('epg')}."
        )
    wrong = [name for name, kind in FIELDS.items() if not isinstance(content.get(name), kind)]
    if wrong:
        raise ArtefactError(f"{path / CONFIG}: missing or of a wrong type: {', '.join(wrong)}")
    try:
        config = parse(content["config"], str(path / CONFIG))
    except UserError as error:
        raise ArtefactError(f"{error}\nIt was written by epg {content.get('epg')}.") from None
    names, counts = tuple(map(str, content["class_names"])), content["class_counts"]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ArtefactError(f"{path / CONFIG}: class_counts must be whole numbers, not {counts}")
    trained_in = content.get("trained_in", [])
    if not isinstance(trained_in, list):
        raise ArtefactError(f"{path / CONFIG}: trained_in must be a list of sha256, not {trained_in!r}")
    return Export(path, content["step"], content["kind"], config, names, tuple(counts), tuple(map(str, trained_in)))
