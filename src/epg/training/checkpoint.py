"""Checkpoint = a directory: safetensors, `state.json` and, written last, `manifest.json` with sha256 and size of each.

Written under a temporary name, synced, renamed, parent synced, and only then are older ones pruned: whenever the
process dies, the newest complete checkpoint is intact. Loading verifies the manifest; a damaged checkpoint is named
and the one before it used. Nothing is pickled.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from epg.errors import ArtefactError, OutputError

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk. `state` holds the step, the configuration and what else the run recorded."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors saved as `name` (model, optimizer, ema-0.9999...), on the CPU."""
        file = self.path / f"{name}.safetensors"
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise ArtefactError(f"{file}: cannot be read ({error})") from error


def save(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Writes `folder/step-...` with one safetensors file per name in `tensors`; keeps the newest `keep` of them."""
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    needed = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, group in tensors.items():
            contiguous = {k: t.detach().cpu().contiguous() for k, t in group.items()}
            save_file(contiguous, temporary / f"{name}.safetensors")
        _write_json(temporary / STATE, {"format": FORMAT, "step": step, **state})
        files = {file.name: _fingerprint(file) for file in sorted(temporary.iterdir())}
        _write_json(temporary / MANIFEST, {"format": FORMAT, "files": files})
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutputError(
            f"{final}: cannot write the checkpoint ({error}); it needs {needed / 2**20:.0f} MiB, "
            f"{_free(folder)} are free. Earlier checkpoints are untouched."
        ) from error
    # Anything newer than what was just written did not verify when this run resumed; it must not count.
    for old in [path for path in listing(folder) if path.name <= final.name][:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def listing(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first, verified or not."""
    return sorted(folder.glob("step-*"))


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies, with a warning for each damaged one; None where there are none at all."""
    candidates = listing(folder)
    for path in reversed(candidates):
        try:
            return read(path)
        except ArtefactError as error:
            warnings.warn(f"skipping a damaged checkpoint: {error}", stacklevel=2)
    if candidates:
        raise ArtefactError(f"{folder}: no checkpoint verifies. Restore one, or choose another --out to start afresh.")
    return None


def read(path: Path) -> Checkpoint:
    """A checkpoint directory, after comparing every file with its manifest."""
    manifest = _read_json(path / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ArtefactError(f"{path}: format {manifest.get('format')!r}; this version reads {FORMAT}")
    files = manifest.get("files")
    if not isinstance(files, dict) or STATE not in files:
        raise ArtefactError(f"{path / MANIFEST}: damaged")
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise ArtefactError(f"{file}: missing")
        try:
            found = _fingerprint(file)
        except OSError as error:
            raise ArtefactError(f"{file}: cannot be read ({error})") from error
        if found != expected:
            raise ArtefactError(f"{file}: does not match the manifest; the file is damaged")
    return Checkpoint(path, _read_json(path / STATE))


def find(path: str | Path) -> Checkpoint:
    """The checkpoint that a user means: a checkpoint directory, or a run folder (its newest one)."""
    path = Path(path)
    if (path / MANIFEST).is_file():
        return read(path)
    found = newest(path / "checkpoints") if (path / "checkpoints").is_dir() else None
    if found is None:
        raise ArtefactError(f"{path}: no checkpoint here. Pass a run folder or a folder checkpoints/step-... in one.")
    return found


def clone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that own their memory: safetensors refuses tensors that share it."""
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    return {"sha256": digest.hexdigest(), "size": file.stat().st_size}


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{file}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ArtefactError(f"{file}: damaged")
    return content


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB"
    except OSError:
        return "unknown"
