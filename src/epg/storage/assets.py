"""Weights as one file: a zip archive of a folder of ours, here or at an address that says which file is meant.

    https://.../digits.zip#sha256=<64 hexadecimal digits>

Whatever the address gives is compared with that hash. Of the archive only files that a folder of weights may have are
taken, by name and one by one; they lie there as they are, so it cannot grow when it is opened.
"""

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from io import BufferedReader
from pathlib import Path

from epg.errors import ArtefactError, cause
from epg.messages import say
from epg.storage import files
from epg.storage.download import UNREACHABLE, OtherFileError, cache_folder, fetch
from epg.storage.plain_file import open_plain, read_plain
from epg.storage.seal import entry_of

ADDRESS = re.compile(r"(?P<scheme>https?):/{1,2}(?P<place>[^#\s]+)(#(?P<note>.*))?")
HASH = re.compile(r"sha256=([0-9a-f]{64})", re.IGNORECASE)
FILES = ("config.json", "model.safetensors", "model_index.json", "transformer/*.json", "transformer/*.safetensors")
MOST_BYTES = 16 * 2**30
MOST_MEMBERS = 2000
SUFFIX = ".zip"
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every member, so that the same folder gives the same archive


def is_asset(name: str | Path) -> bool:
    """Whether this is the address of an asset, or the file of one."""
    return is_address(name) or (str(name).endswith(SUFFIX) and Path(name).is_file())


def is_address(name: str | Path) -> bool:
    return ADDRESS.fullmatch(str(name)) is not None


def local(name: str | Path) -> Path:
    """The folder that an asset holds, in the cache; downloaded where that has to be. Raises ArtefactError."""
    if not is_address(name):
        with opened(Path(name)) as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return unpacked(Path(name), sha256)
    address, sha256 = meant(str(name))
    if intact(folder := folder_of(sha256)):
        return folder
    if folder.is_dir():
        say(f"{folder}: damaged since it was fetched; it is fetched anew")
    file = folder.with_name(f"{sha256}{SUFFIX}")
    try:
        fetch(address, file, sha256, MOST_BYTES)
        return unpacked(file, sha256)
    except OtherFileError as error:
        raise ArtefactError(f"{address}: not the file that is meant: {error}. Nothing of it was kept.") from None
    except UNREACHABLE as error:
        raise ArtefactError(
            f"{address}: cannot be fetched ({getattr(error, 'reason', error)}). Try again, or fetch it on another "
            f"machine and pass the {SUFFIX} file."
        ) from None
    except OSError as error:
        raise ArtefactError(
            f"{error.filename or folder}: cannot be written ({cause(error)}). EPG_CACHE names another folder."
        ) from None
    finally:
        file.unlink(missing_ok=True)


def meant(name: str) -> tuple[str, str]:
    """Address and sha256. Raises ArtefactError where it is not said which file is meant."""
    found = ADDRESS.fullmatch(name)
    assert found is not None
    address = f"{found['scheme']}://{found['place']}"
    told = HASH.fullmatch(found["note"] or "")
    if told is None:
        raise ArtefactError(
            f"{address}: say which file you mean, by the hash that its publisher states: {address}#sha256=... (64 "
            "hexadecimal digits). It is compared with what is downloaded."
        )
    return address, told[1].lower()


def folder_of(sha256: str) -> Path:
    return cache_folder() / "assets" / sha256


def entries_of(folder: Path) -> Path:
    """Where it is written what an unpacked asset holds."""
    return folder.with_name(f"{folder.name}.json")


def intact(folder: Path) -> bool:
    """Whether an unpacked asset is there as it was unpacked, to the last byte."""
    try:
        entries = json.loads(read_plain(entries_of(folder)))
        return folder.is_dir() and all(entry_of(folder / name) == entry for name, entry in entries.items())
    except (OSError, ValueError, AttributeError):
        return False


def unpacked(file: Path, sha256: str) -> Path:
    """The files of an archive that a folder of weights may have, in the cache. Raises ArtefactError, OSError."""
    folder = folder_of(sha256)
    if intact(folder):
        return folder
    files.make_folder(folder.parent)
    temporary, old = files.hidden(folder, "tmp"), files.hidden(folder, "old")
    try:
        with opened(file) as stream, zipfile.ZipFile(stream) as archive:
            for member in members(archive, file):
                target = temporary / member.filename  # one of FILES, so below it
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out, 2**20)
        inside = sorted(path for path in temporary.rglob("*") if path.is_file())
        entries = {path.relative_to(temporary).as_posix(): entry_of(path) for path in inside}
        files.replace_text(entries_of(folder), json.dumps(entries))
        try:
            if folder.is_dir():  # damaged
                files.rename(folder, old)
            files.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # of another process, which was faster
                raise
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise ArtefactError(f"{file.name}: a damaged zip archive, or none ({error})") from None
    finally:
        files.remove(temporary)
        files.remove(old)
    return folder


def opened(file: Path) -> BufferedReader:
    """Raises ArtefactError."""
    try:
        return open_plain(file)
    except OSError as error:
        raise ArtefactError(f"{file}: {cause(error)}") from None


def members(archive: zipfile.ZipFile, file: Path) -> Iterator[zipfile.ZipInfo]:
    """Those that are taken. Raises ArtefactError for an archive that no `epg convert --to asset` wrote."""
    inside = archive.infolist()
    taken = [one for one in inside if any(fnmatchcase(one.filename, kind) for kind in FILES)]
    why = ""
    if len(inside) > MOST_MEMBERS or len({one.filename for one in taken}) < len(taken):
        why = "holds too many files, or one twice"
    elif any(".." in one.filename or one.filename.count("/") > 1 for one in taken):
        why = "holds a name that leads out of it"
    elif any(one.compress_type != zipfile.ZIP_STORED or one.flag_bits & 1 for one in taken):
        why = "is compressed or encrypted"
    elif sum(one.file_size for one in taken) > file.stat().st_size:
        why = "says that it holds more than it has bytes"
    elif not {"config.json", "model_index.json"} & {one.filename for one in taken}:
        why = "holds no weights of ours"
    if why:
        raise ArtefactError(f"{file.name}: {why}; no asset, which `epg convert RUN --to asset --out FILE.zip` writes")
    return iter(taken)


def pack(folder: Path, file: Path) -> str:
    """Writes a folder of weights, with its card, as an asset; returns the sha256. Raises OSError."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            member = zipfile.ZipInfo(path.relative_to(folder).as_posix(), EPOCH)
            with path.open("rb") as source, archive.open(member, "w", force_zip64=True) as out:
                shutil.copyfileobj(source, out, 2**20)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
