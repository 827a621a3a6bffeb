"""The Hugging Face Hub: folders by the name of a repository, and back. Only configurations and weights come down."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from epg.errors import ArtefactError, OutputError
from epg.storage import assets
from epg.storage.files import replacing

# user/repo, and optionally @revision
REPOSITORY = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(@(?P<revision>[\w./-]{1,200}))?")
FOLDERS = ("data", "runs")  # by which a folder is meant, although it may be missing: the usual places of sets and runs
FILES = ("*.json", "*.safetensors", "transformer/*.json", "transformer/*.safetensors")
LOGIN = "Log in with `hf auth login`, or set HF_TOKEN."


def is_repository(name: str | Path) -> bool:
    """Whether this can only be a repository's name: nothing here is called so, nor the folder it would be in."""
    above = str(name).split("/")[0]
    here = Path(name).exists() or Path(above).is_dir() or above in FOLDERS
    return bool(REPOSITORY.fullmatch(str(name))) and not here


def local(name: str | Path, files: Sequence[str] = FILES, **options: Any) -> Path:
    """The folder itself, or a downloaded copy of what it names: a repository, `user/repo` or `user/repo@revision`; an
    asset (`epg.storage.assets`).

    Args:
        files: patterns of the files that are wanted; code never is.
        options: of `huggingface_hub.snapshot_download`: token, cache_dir, local_files_only, force_download.

    Raises:
        ArtefactError: no such repository, no access, another file than was meant; no network and no earlier download.
    """
    if assets.is_asset(name):
        return assets.local(name)
    if not is_repository(name):
        return Path(name)
    from huggingface_hub import snapshot_download

    repo, revision = split(str(name))
    revision = options.pop("revision", None) or revision
    with explained(str(name)):
        return plain(Path(snapshot_download(repo, revision=revision, allow_patterns=list(files), **options)))


def plain(snapshot: Path) -> Path:
    """The files of a cached snapshot under names of their own: the cache holds symbolic links, which no reader of
    weights follows. Raises OSError."""
    folder = snapshot.parents[1] / "plain" / snapshot.name
    for file in snapshot.rglob("*"):
        target = folder / file.relative_to(snapshot)
        if not file.is_file() or target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            try:
                os.link(file.resolve(), temporary)
            except OSError:  # a cache on another disk, or one without hard links
                shutil.copyfile(file, temporary)
    return folder


def list_files(name: str) -> list[str]:
    """Names of the files of a repository. Raises ArtefactError."""
    from huggingface_hub import HfApi

    repo, revision = split(name)
    with explained(name):
        return list(HfApi().list_repo_files(repo, revision=revision))


def download(name: str, file: str) -> Path:
    """A downloaded copy of one file of a repository. Raises ArtefactError."""
    from huggingface_hub import hf_hub_download

    repo, revision = split(name)
    with explained(f"{name}:{file}"):
        return Path(hf_hub_download(repo, file, revision=revision))


def push(folder: Path, name: str, *, private: bool = False, message: str = "Upload weights") -> str:
    """Uploads a folder, making the repository if there is none; returns its address. Raises OutputError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if not REPOSITORY.fullmatch(name) or "@" in name:
        raise OutputError(f"--push {name}: the name of a repository is user/repo")
    api = HfApi()
    try:
        repo = api.create_repo(name, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).commit_url)
    except LocalTokenNotFoundError:
        raise OutputError(f"--push {name}: not logged in to the Hub. {LOGIN}") from None
    except OfflineModeIsEnabled:
        raise OutputError(f"--push {name}: HF_HUB_OFFLINE is set; unset it to upload {folder}.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise OutputError(f"--push {name}: the Hub does not let you write there. {LOGIN}") from None
        raise OutputError(f"--push {name}: the Hub refused ({first_line(error)}). {folder} is complete.") from None
    except (OSError, network_error()) as error:
        raise OutputError(
            f"--push {name}: no connection to the Hub ({first_line(error)}). {folder} is complete."
        ) from None


def split(name: str) -> tuple[str, str | None]:
    """Repository and revision of `user/repo[@revision]`. Raises ArtefactError."""
    match = REPOSITORY.fullmatch(name)
    if match is None:
        raise ArtefactError(f"{name}: the name of a repository is user/repo, optionally with @revision")
    return match["repo"], match["revision"]


@contextmanager
def explained(name: str) -> Iterator[None]:
    """What can go wrong with the Hub as one ArtefactError that says what to do."""
    from huggingface_hub import errors

    offline = "no such folder here, and the Hub cannot be asked ({why}). Check the path, or network and HF_HUB_OFFLINE."
    # The first that fits: some are kinds of others further down.
    told: list[tuple[type[Exception], str]] = [
        (errors.GatedRepoError, f"a gated repository; ask for access on its page. {LOGIN}"),
        (
            errors.RepositoryNotFoundError,
            f"neither a folder here nor a repository of the Hub that you can read. Check the name; for a private one: "
            f"{LOGIN}",
        ),
        (errors.RevisionNotFoundError, "the repository has no such revision"),
        (errors.OfflineModeIsEnabled, offline),
        (errors.LocalEntryNotFoundError, offline),
        (errors.EntryNotFoundError, "the repository has no such file"),
        (errors.HFValidationError, "no name of a repository ({why})"),
        (OSError, "the Hub does not answer ({why}). Try again."),
        (network_error(), "the Hub does not answer ({why}). Try again."),
    ]
    try:
        with quietly():
            yield
    except tuple(kind for kind, _ in told) as error:
        text = next(text for kind, text in told if isinstance(error, kind))
        raise ArtefactError(f"{name}: {text.format(why=first_line(error))}") from None


@contextmanager
def quietly() -> Iterator[None]:
    """Inside the `with` the Hub's library prints nothing of its tries: what comes of them is told."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def network_error() -> type[Exception]:
    """What the Hub's HTTP library, whichever it is, raises without a network."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    return base


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
