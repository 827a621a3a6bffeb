"""State dicts in files that others wrote; nothing in them is ever run."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epg.checkpoint import strangers
from epg.errors import ArtefactError
from epg.storage.artefact import TENSOR_CAP, not_finite, pickle_hint, read_tensors
from epg.storage.plain_file import open_plain

PICKLE_CAP = 16 * 2**20  # bytes of the table of tensors in a .pth
# What DDP, torch.compile, FSDP and activation checkpointing put into names.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a `.pth` that holds nothing but tensors; nothing in it is ever run.

    Raises ArtefactError for anything else, before memory is spent on what a file only claims to hold.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtefactError(f"{path}: no such file")
    weights = read_tensors(path) if path.suffix == ".safetensors" else read_pth(path)
    names = {key: unwrapped(key) for key in weights if key.rpartition(".")[2] != COUNTER}
    if len(set(names.values())) < len(names):
        raise ArtefactError(f"{path}: holds two tensors of one name once {', '.join(sorted(WRAPPERS))} are taken out")
    found = {name: weights[key] for key, name in names.items()}
    if what := strangers.weights(found):
        raise ArtefactError(f"{path}: {what}, not weights of this method. {strangers.TAKEN}.")
    return found


def unwrapped(name: str) -> str:
    """A tensor's name without what wraps its modules, however deep."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def read_pth(path: Path, old: bool = False) -> dict[str, Tensor]:
    """The state dict in a file of `torch.save`, mapped into memory. Raises ArtefactError.

    Args:
        old: whether it may be of torch before 1.6, no archive: that is read whole, and says less of what it holds.
    """
    archive = not old or zipfile.is_zipfile(path)
    if archive:
        check_archive(path)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # of a dozen kinds; their texts advise to trust the file
        raise ArtefactError(
            f"{path}: cannot be read as a state dict of tensors: damaged, or it holds other objects. Nothing in it was "
            "run. If you trust it, load it elsewhere and save the tensors alone with safetensors."
        ) from error
    weights = state_dict_in(weights, path)
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ArtefactError(f"{path}: {name} claims more numbers than the file holds")
    if broken := not_finite(weights):
        raise ArtefactError(f"{path}: {broken} holds values that are not finite; refused")
    return {str(name): tensor for name, tensor in weights.items()}


def state_dict_in(content: object, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors in what a file holds: all of it, or what is called `state_dict` or the like."""

    def is_one(value: object) -> bool:
        return isinstance(value, dict) and bool(value) and all(isinstance(v, Tensor) for v in value.values())

    inside = content.items() if isinstance(content, dict) else ()
    found: dict[str, Any] = {"": content} if is_one(content) else {str(k): v for k, v in inside if is_one(v)}
    if len(found) > 1:
        what = "a DINO checkpoint; it " if {"teacher", "student"} <= found.keys() else ""
        raise ArtefactError(
            f"{path}: {what}holds several state dicts ({', '.join(found)}). Save the one that you mean by itself."
        )
    if not found:
        raise ArtefactError(f"{path}: not a state dict (a mapping of names to tensors)")
    (one,) = found.values()
    return dict(one)


def check_archive(path: Path) -> None:
    """Refuses what `torch.save` does not write: old pickles, and archives that grow when they are read."""
    try:
        with open_plain(path) as raw, zipfile.ZipFile(raw) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        raise ArtefactError(
            f"{path}: cannot be read as a state dict: no archive of torch.save (since torch 1.6), or damaged."
            + pickle_hint(path)
        ) from None
    table = max((m.file_size for m in members if m.filename.endswith(".pkl")), default=0)
    if (
        len(members) > TENSOR_CAP
        or table > PICKLE_CAP
        or sum(m.file_size for m in members) > path.stat().st_size  # torch.save does not compress
    ):
        raise ArtefactError(f"{path}: refused: the archive claims more than it holds")
