"""Checkpoint = a directory: safetensors, `state.json` and, written last, `manifest.json` with sha256 and size of each.

Written and synced under a temporary name, read back, renamed, parent synced, and only then are older ones removed:
whenever the process or the machine dies, the newest complete checkpoint is intact. Loading verifies the manifest; a
damaged checkpoint is named and the one before it used. Nothing is pickled.
"""

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from epg.checkpoint import strangers
from epg.checkpoint.manifest import (
    IncompatibleError,
    Manifest,
    check_manifest,
    check_state,
    digest,
)
from epg.errors import ArtefactError, refuse_missing
from epg.storage.artefact import (
    fingerprint,
    pickle_hint,
    read_json,
    read_tensors,
)

MANIFEST, STATE = "manifest.json", "state.json"
REPLACED = ".replaced"  # ending of the checkpoint that another one of the same step takes the place of
SHOWN = 8  # runs of a folder


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk. `state` holds the step, the configuration and what else the run recorded."""

    path: Path
    state: dict[str, Any]
    manifest: Manifest

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def groups(self) -> set[str]:
        """Names that `tensors` takes."""
        return {name.removesuffix(".safetensors") for name in self.manifest.files if name.endswith(".safetensors")}

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors saved as `name` (model, optimizer, ema-0.9999...), on the CPU. Raises ArtefactError."""
        return read_tensors(self.path / f"{name}.safetensors")


def listing(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first, verified or not."""
    found = [path for path in folder.glob("step-*") if step_of(path) >= 0]
    return sorted(found, key=lambda path: (step_of(path), not path.name.endswith(REPLACED), path.name))


def step_of(path: Path) -> int:
    """The step in a checkpoint's name, as `save` writes it; -1 where there is none."""
    found = re.fullmatch(rf"step-(\d{{8,}})(?:{re.escape(REPLACED)})?", path.name)
    return int(found[1]) if found else -1


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies, with a warning for each damaged one; None where there are none at all.

    Raises ArtefactError where none verifies, or the newest intact one cannot be continued by this version.
    """
    candidates = listing(folder)
    for path in reversed(candidates):
        try:
            found = read(path)
        except IncompatibleError:
            raise
        except ArtefactError as error:
            warnings.warn(f"skipping a damaged checkpoint: {error}", stacklevel=2)
        else:
            remember(path)
            return found
    if candidates:
        raise ArtefactError(f"{folder}: no checkpoint verifies. Restore one, or choose another --out to start afresh.")
    return None


def read(path: Path) -> Checkpoint:
    """A checkpoint directory, after comparing every file with its manifest.

    Raises ArtefactError naming the damaged file; IncompatibleError where an intact one lacks a field.
    """
    manifest = check_manifest(*read_json(path / MANIFEST), str(path / MANIFEST))
    try:
        present = {entry.name for entry in os.scandir(path)} - {MANIFEST}
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror})") from error
    for name in sorted(present - manifest.files.keys()):
        raise ArtefactError(f"{path / name}: not in the manifest; does not belong here")
    if STATE not in manifest.files:
        raise IncompatibleError(f"{path / MANIFEST}: files.{STATE}: missing")
    for name, expected in manifest.files.items():
        file = path / name
        if name not in present:
            raise ArtefactError(f"{file}: missing")
        if (size := file.lstat().st_size) != expected.size:
            raise ArtefactError(f"{file}: {size} bytes instead of {expected.size}; does not match the manifest")
        if fingerprint(file) != expected.model_dump():
            raise ArtefactError(f"{file}: does not match the manifest; the file is damaged")
    content, _ = read_json(path / STATE)
    check_state(content, str(path / STATE))
    for name, recorded, found in [
        ("config", manifest.config, digest(content["config"])),
        ("data", manifest.data, content["data"]),
        ("step", step_of(path) if step_of(path) >= 0 else content["step"], content["step"]),
    ]:
        if recorded != found:
            raise ArtefactError(f"{path}: {name} is not that of {STATE}; files of different checkpoints are mixed")
    return Checkpoint(path, content, manifest)


_intact: dict[Path, tuple[Any, ...]] = {}
"""Checkpoints that this process has verified, as their files were then."""


def remember(path: Path) -> None:
    """A checkpoint has just been verified."""
    _intact[path] = _signature(path)


def is_intact(path: Path) -> bool:
    """Whether a checkpoint verifies; read again only if its files have changed."""
    try:
        if path not in _intact or _intact[path] != _signature(path):
            read(path)
            remember(path)
    except (ArtefactError, OSError):
        return False
    return True


def _signature(path: Path) -> tuple[Any, ...]:
    found = [(entry.name, entry.stat()) for entry in sorted(os.scandir(path), key=lambda e: e.name)]
    return tuple((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in found)


def offer(path: Path) -> str:
    """What to add where a folder holds no checkpoint but runs that do; "" where it does not."""
    runs = sorted(found.parent.relative_to(path) for d in ("*", "*/*") for found in path.glob(f"{d}/checkpoints"))
    names = [str(path / run) for run in runs[:SHOWN]] + ([f"and {len(runs) - SHOWN} more"] if len(runs) > SHOWN else [])
    return f" There are {', '.join(names)}." if runs else ""


def find(path: str | Path) -> Checkpoint:
    """The checkpoint that a user means: a checkpoint directory, or a run folder (its newest one)."""
    path = Path(path)
    if (path / MANIFEST).is_file() or (path.is_dir() and step_of(path) >= 0):
        return read(path)
    found = newest(path / "checkpoints") if (path / "checkpoints").is_dir() else None
    if found is None:
        refuse_missing(path)
        strangers.refuse_folder(path)
        raise ArtefactError(
            f"{path}: no checkpoint here. Pass a run folder or a folder checkpoints/step-... in one."
            + offer(path)
            + pickle_hint(path)
        )
    return found
