"""Checkpoints onto the disk, and old ones off it again: whenever the process or the machine dies, the newest complete
one is intact.
"""

import contextlib
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from epg.checkpoint.best import best_of
from epg.checkpoint.checkpoint import MANIFEST, REPLACED, STATE, is_intact, listing, read, remember, step_of
from epg.checkpoint.manifest import FORMAT, check_manifest, check_state, make_manifest
from epg.errors import ArtefactError, OutputError
from epg.storage import files
from epg.storage.artefact import read_json, size_of, write_json, write_tensors

KEEP_AT_LEAST = 2
OURS = re.compile(r"(model|optimizer|ema-[\d.e-]+|power-[\d.e-]+)\.safetensors|state\.json|manifest\.json")


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
    remember(final)
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
        files.remove(replaced if is_intact(final) else final)
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
            kept |= {step} if is_intact(path) else set()
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
