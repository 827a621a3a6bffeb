"""`export/` beside the checkpoints: the weights that one uses, in `model.safetensors`, and `config.json` that says how.

A generator's averaged weights, or an encoder with its projector; a later version reads it without the training state.
"""

import contextlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from epg.config import RunConfig, parse
from epg.errors import ArtefactError, UserError
from epg.training import fsops
from epg.training.artefact import fingerprint, read_json, read_tensors, size_of, write_json, write_tensors
from epg.training.checkpoint import make_folder, publish, write_error

FOLDER, WEIGHTS, CONFIG = "export", "model.safetensors", "config.json"
FORMAT = 1
PREFIX = "network."  # of the network within the objective's state


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

    def tensors(self) -> dict[str, Tensor]:
        """On the CPU. Raises ArtefactError."""
        return read_tensors(self.path / WEIGHTS)


def write(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Replaces the export by the weights of this step: the first average, or the trained ones where there is none.

    Raises OutputError; the export before is then as it was.
    """
    averages = [name for name in tensors if name not in ("model", "optimizer")]
    kind = averages[0] if averages else "model"
    weights = tensors[kind]
    if not averages:
        weights = {k.removeprefix(PREFIX): t for k, t in weights.items() if k.startswith(PREFIX)}
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        make_folder(folder.parent)
        clear(folder)
        fsops.mkdir(temporary)
        content = {
            "format": FORMAT,
            "epg": importlib.metadata.version("epg"),
            "step": step,
            "kind": kind,
            "class_names": state["class_names"],
            "class_counts": state["class_counts"],
            "config": state["config"],
            "weights": write_tensors(temporary / WEIGHTS, weights),
        }
        write_json(temporary / CONFIG, content)
        fsops.sync_folder(temporary)
        publish(temporary, folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            clear(folder)
        raise write_error(folder, error, size_of({kind: weights})) from error


def clear(folder: Path) -> None:
    """Removes what a killed process left unfinished. Raises OSError."""
    for rest in folder.parent.glob(f".{folder.name}.*"):
        fsops.remove(rest)


def is_export(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> Export:
    """An export folder, after comparing the weights with their checksum. Raises ArtefactError."""
    content, _ = read_json(path / CONFIG)
    if content.get("format") != FORMAT:
        raise ArtefactError(
            f"{path / CONFIG}: format {content.get('format')!r}; this version reads {FORMAT}. "
            f"It was written by epg {content.get('epg')}."
        )
    types = {"step": int, "kind": str, "class_names": list, "class_counts": list, "config": dict, "weights": dict}
    wrong = [name for name, kind in types.items() if not isinstance(content.get(name), kind)]
    if wrong:
        raise ArtefactError(f"{path / CONFIG}: missing or of a wrong type: {', '.join(wrong)}")
    if fingerprint(path / WEIGHTS) != content["weights"]:
        raise ArtefactError(f"{path / WEIGHTS}: does not match {CONFIG}; the file is damaged")
    try:
        config = parse(content["config"], str(path / CONFIG))
    except UserError as error:
        raise ArtefactError(f"{error}\nIt was written by epg {content.get('epg')}.") from None
    names, counts = tuple(map(str, content["class_names"])), content["class_counts"]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ArtefactError(f"{path / CONFIG}: class_counts must be whole numbers, not {counts}")
    return Export(path, content["step"], content["kind"], config, names, tuple(counts))
