"""Where the weights of published extractors come from: a path, the cache, or the web; never unchecked."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from epg.checkpoint.state_dict import read_pth
from epg.distributed import failing_together
from epg.errors import ArtefactError, cause
from epg.messages import say
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

    def is_in(self, file: Path) -> bool:
        """Whether this is the file, to the last byte. Raises OSError."""
        return file.is_file() and fingerprint(file)["sha256"] == self.sha256


def find_published(published: Published) -> Path:
    """The published file in our cache or torch-fidelity's, downloaded if it is in neither, or damaged in both; all
    processes must call it.

    Raises ArtefactError where it cannot be downloaded, or what was downloaded is not the published one.
    """
    file = cache_folder() / published.name
    places = (file, Path(torch.hub.get_dir()) / "checkpoints" / published.name)
    with failing_together():  # where the others wait for the first process of their machine
        if int(os.environ.get("LOCAL_RANK", "0")) == 0 and not any(map(published.is_in, places)):
            for damaged in filter(Path.is_file, places):
                say(f"{damaged}: damaged: its sha256 is not {published.sha256}; it is not used")
            download(published, file)
    return next(filter(published.is_in, places), file)


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
    """A flat state dict from a safetensors or a PyTorch file, of any age. Programs in it are never run.

    Raises ArtefactError.
    """
    if not file.is_file():
        raise ArtefactError(f"{flag} {file}: no such file")
    try:
        return read_tensors(file) if file.suffix == ".safetensors" else read_pth(file, old=True)
    except ArtefactError as error:
        raise ArtefactError(f"{flag} {error}") from error
