"""Checkpoint = a directory: safetensors, `state.json` and, written last, `manifest.json` with sha256 and size of each.

Written and synced under a temporary name, read back, renamed, parent synced, and only then are older ones removed:
whenever the process or the machine dies, the newest complete checkpoint is intact. Loading verifies the manifest; a
damaged checkpoint is named and the one before it used. Nothing is pickled.
"""

import contextlib
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from epg.checkpoint import strangers
from epg.checkpoint.best import best_of
from epg.checkpoint.manifest import (
    FORMAT,
    IncompatibleError,
    Manifest,
    check_manifest,
    check_state,
    digest,
    make_manifest,
)
from epg.errors import ArtefactError, OutputError
from epg.storage import files
from epg.storage.artefact import (
    fingerprint,
    pickle_hint,
    read_json,
    read_tensors,
    size_of,
    write_json,
    write_tensors,
)

MANIFEST, STATE = "manifest.json", "state.json"
REPLACED = ".replaced"  # ending of the checkpoint that another one of the same step takes the place of
KEEP_AT_LEAST = 2
SHOWN = 8  # runs of a folder
OURS = re.compile(r"(model|optimizer|ema-[\d.e-]+|power-[\d.e-]+)\.safetensors|state\.json|manifest\.json")


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


# Writing --------------------------------------------------------------------------------------------------------------


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
    keep_every: int = 0,
) -> Path:
    """Writes `folder/step-...` with one safetensors file per name in `tensors`, then removes old ones (see `prune`).

    Raises OutputError naming path, cause, bytes needed and free; earlier checkpoints are then as they were.
    """
    if keep < KEEP_AT_LEAST:
        raise ValueError(f"keep {keep}: must be at least {KEEP_AT_LEAST}")
    final = folder / f"step-{step:08d}"
    content = {"format": FORMAT, "step": step, **state}
    check_state(content, str(final))
    try:
        files.make_folder(folder)
        files.clear_rests(folder)
        temporary = files.hidden(final, "tmp")
        files.mkdir(temporary)
        written = {
            f"{name}.safetensors": write_tensors(temporary / f"{name}.safetensors", tensors[name]) for name in tensors
        }
        written[STATE] = write_json(temporary / STATE, content)
        write_json(temporary / MANIFEST, make_manifest(written, content))
        files.sync_folder(temporary)
        read(temporary)
        publish(temporary, final)
    except (OSError, ArtefactError) as error:
        with contextlib.suppress(OSError):
            files.clear_rests(folder)
        raise write_error(final, error, size_of(tensors)) from error
    _intact[final] = _signature(final)
    prune(folder, final, keep, keep_every)
    return final


def publish(temporary: Path, final: Path) -> None:
    """Gives a complete, synced checkpoint its name, for good; one that has the name already stays until that is done.

    A folder of that name that is not ours gets another name, with a warning. Raises OSError.
    """
    replaced = final.with_name(final.name + REPLACED)
    for path in (final, replaced):
        if os.path.lexists(path) and not is_ours(path):
            aside = path.with_name(f"{path.name}.not-ours-{secrets.token_hex(4)}")
            files.rename(path, aside)
            warnings.warn(f"{path}: is not as this program writes checkpoints; renamed to {aside.name}", stacklevel=2)
    if final.exists() and replaced.exists():  # a crash left both, the disk damaged one: do not lose the other
        files.remove(replaced if _is_intact(final) else final)
    if final.exists():
        files.rename(final, replaced)
    files.rename(temporary, final)
    files.sync_folder(final.parent)
    if replaced.exists():
        files.discard(replaced)


def prune(folder: Path, newest: Path, keep: int, keep_every: int = 0) -> None:
    """Removes checkpoints older than the last `keep` that verify, except every `keep_every`-th step (0: none) and the
    one that the run's `best.json` names.

    Those later than `newest` stay and do not count: they did not verify when this run resumed. What is not ours stays.
    """
    kept: set[int] = set()
    best = best_of(folder.parent)
    for path in reversed(listing(folder)):
        step = step_of(path)
        if step > step_of(newest):
            continue
        if len(kept) < keep and step not in kept:
            kept |= {step} if _is_intact(path) else set()
        elif best is not None and step == best["step"] and step not in kept:
            kept.add(step)
        elif step in kept or not (keep_every and step > 0 and step % keep_every == 0):
            try:
                if is_ours(path):
                    files.discard(path)
            except OSError as error:
                warnings.warn(f"{path}: an old checkpoint could not be removed ({error.strerror})", stacklevel=2)


def is_ours(path: Path) -> bool:
    """Whether a folder is a checkpoint that this program wrote there, and holds nothing else: all that is ever removed.

    The manifest names every file in it, and the state has the step of its name. Of a damaged one the names of all
    files have to do.
    """
    if step_of(path) < 0 or path.is_symlink() or not path.is_dir():
        return False
    names = {entry.name if entry.is_file(follow_symlinks=False) else "" for entry in os.scandir(path)}
    try:
        manifest = check_manifest(*read_json(path / MANIFEST), str(path / MANIFEST))
        state, _ = read_json(path / STATE)
    except ArtefactError:
        return not names or (bool(names & {MANIFEST, STATE}) and all(OURS.fullmatch(name) for name in names))
    return names <= manifest.files.keys() | {MANIFEST} and state.get("step") == step_of(path)


def write_error(path: Path, error: Exception, needed: int) -> OutputError:
    """What to tell the user: path, cause, bytes needed and free."""
    cause = f"[errno {error.errno}] {os.strerror(error.errno)}" if isinstance(error, OSError) and error.errno else error
    folder = next(p for p in path.absolute().parents if p.is_dir())
    try:
        free = f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        free = "an unknown number"
    return OutputError(
        f"{path}: cannot be written: {cause}. It needs {needed:,} bytes; {free} are free. "
        "Earlier checkpoints are untouched."
    )


_intact: dict[Path, tuple[Any, ...]] = {}
"""Checkpoints that this process has verified, as their files were then."""


def _is_intact(path: Path) -> bool:
    """Whether a checkpoint verifies; read again only if its files have changed."""
    try:
        if path not in _intact or _intact[path] != _signature(path):
            read(path)
            _intact[path] = _signature(path)
    except (ArtefactError, OSError):
        return False
    return True


def _signature(path: Path) -> tuple[Any, ...]:
    found = [(entry.name, entry.stat()) for entry in sorted(os.scandir(path), key=lambda e: e.name)]
    return tuple((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in found)


# Reading --------------------------------------------------------------------------------------------------------------


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
            _intact[path] = _signature(path)
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
        strangers.refuse_folder(path)
        raise ArtefactError(
            f"{path}: no checkpoint here. Pass a run folder or a folder checkpoints/step-... in one."
            + offer(path)
            + pickle_hint(path)
        )
    return found
