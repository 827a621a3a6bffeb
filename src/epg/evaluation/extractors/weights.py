"""Where the weights of published extractors come from: a path, the cache, or the web; never unchecked."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from epg.distributed import failing_together
from epg.errors import ArtefactError, cause
from epg.storage.artefact import fingerprint, read_tensors
from epg.storage.download import UNREACHABLE, OtherFileError, cache_folder, fetch

MOST_BYTES = 2**30


@dataclass(frozen=True)
class Published:
    """A file of weights on the web."""

    name: str
    url: str
    sha256: str
    flag: str
    """Option of the command line that takes a path instead."""


def find_published(published: Published) -> Path:
    """The published file in our cache or torch-fidelity's, downloaded if it is in neither; all processes must call it.

    Raises ArtefactError where it cannot be downloaded, or is not the published one.
    """
    file = cache_folder() / published.name
    fidelitys = Path(torch.hub.get_dir()) / "checkpoints" / published.name
    if not file.is_file() and fidelitys.is_file():
        file = fidelitys
    with failing_together():  # where the others wait for the first process of their machine
        if not file.is_file() and int(os.environ.get("LOCAL_RANK", "0")) == 0:
            download(published, file)
    if (found := fingerprint(file)["sha256"]) != published.sha256:
        raise ArtefactError(
            f"{file}: damaged: its sha256 is {found}, not {published.sha256}. Delete it, and it is downloaded again."
        )
    return file


def download(published: Published, file: Path) -> None:
    """Fetches into the cache; the file gets its name only after its checksum was right."""
    cure = (
        f"On a machine with access, fetch\n  {published.url}\n  (sha256 {published.sha256})\n"
        f"and put it at {file}, or pass it as {published.flag} PATH."
    )
    try:
        fetch(published.url, file, published.sha256, MOST_BYTES)
    except OtherFileError as error:
        told = f"{published.name}: what was downloaded is not the published file ({error})"
        raise ArtefactError(f"{told}. {cure}") from error
    except UNREACHABLE as error:
        reason = getattr(error, "reason", error)
        told = f"{published.name} is not in the cache and cannot be downloaded ({reason})"
        raise ArtefactError(f"{told}. {cure}") from error
    except OSError as error:
        told = f"{file}: cannot be written ({cause(error)}). EPG_CACHE names another folder"
        raise ArtefactError(f"{told}. {cure}") from error


def read_weights(file: Path, flag: str) -> dict[str, Tensor]:
    """A flat state dict from a safetensors or a PyTorch file. Programs in it (pickles, TorchScript) are never run.

    Raises ArtefactError.
    """
    if not file.is_file():
        raise ArtefactError(f"{flag} {file}: no such file")
    if file.suffix == ".safetensors":
        return read_tensors(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{flag} {file}: cannot be read ({error})") from error
    except Exception as error:  # the unpickler raises nearly every class on bytes that are not weights
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtefactError(
            f"{flag} {file}: not a plain state dict ({reason}). Files with code in them (whole modules, TorchScript) "
            "are refused; save the state dict instead."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ArtefactError(f"{flag} {file}: not a plain state dict of tensors")
    return content
