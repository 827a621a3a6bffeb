"""Seals: how a folder's settings and files are known to be those that were written.

A sealed JSON file holds, under `_seal`, the sha256 of the files that belong to it and a short hash of every setting in
it, so that a change is not only noticed but named. A file that parses, with a whole seal and another setting, was
changed by hand; one that does not parse, or weights with another sha256, are damaged. It is no shield against intent.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from epg.errors import ArtefactError
from epg.storage.plain_file import open_plain

SEAL = "_seal"
LARGEST_GROUP = 64  # settings in a group that are hashed one by one: the names of a thousand classes are one setting


def sealed(content: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The content with a seal of its settings and of these files: name -> sha256 and size."""
    body = {"files": dict(entries), "settings": dict(settings_in(unsealed(content)))}
    return {**unsealed(content), SEAL: {**body, "digest": hash_of(body)}}


def unsealed(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != SEAL}


def settings_in(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and short hash of every setting; names that begin with an underscore are other programs' notes."""
    for name, value in content.items():
        if name.startswith("_") or name == "quantization_config":  # which diffusers puts in while it loads
            continue
        if isinstance(value, Mapping) and 0 < len(value) <= LARGEST_GROUP:
            yield from settings_in(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hash_of(value)[:16]


def hash_of(value: Any) -> str:
    """Sha256 (hex) of a JSON value, whatever its layout: 1 and 1.0 are one number."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def plain(value: Any) -> Any:
    """The value with whole numbers as integers."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def files_in(content: Mapping[str, Any], file: Path) -> dict[str, dict[str, Any]]:
    """The files that a sealed content names. Raises ArtefactError where the seal is missing or damaged."""
    seal = content.get(SEAL)
    body = {name: value for name, value in seal.items() if name != "digest"} if isinstance(seal, dict) else {}
    if not body or content[SEAL].get("digest") != hash_of(body):
        raise ArtefactError(f"{file}: its seal is {'damaged' if SEAL in content else 'missing'}. {cure(file)}")
    return dict(body["files"])


def check_settings(content: Mapping[str, Any], file: Path) -> None:
    """Raises ArtefactError naming every setting that is not as it was sealed."""
    files_in(content, file)
    was, found = content[SEAL]["settings"], dict(settings_in(unsealed(content)))
    changed = [f"  {name}: taken out" for name in was.keys() - found.keys()]
    changed += [f"  {name}: added, {shown(content, name)}" for name in found.keys() - was.keys()]
    changed += [
        f"  {name}: now {shown(content, name)}" for name in was.keys() & found.keys() if was[name] != found[name]
    ]
    if changed:
        lines = "\n".join(sorted(changed))
        raise ArtefactError(f"{file}: changed by hand since it was written:\n{lines}\n{cure(file)}")


def shown(content: Mapping[str, Any], name: str) -> str:
    """The value of a dotted setting, for a message."""
    value: Any = content
    while name not in value:
        first = next(key for key in value if name.startswith(f"{key}."))
        value, name = value[first], name.removeprefix(f"{first}.")
    text = json.dumps(value[name])
    return text if len(text) <= 60 else f"{text[:60]}..."


def cure(file: Path) -> str:
    return "Undo the change or make the folder again; if the change is meant: epg verify FOLDER --reseal"


def entry_of(file: Path) -> dict[str, Any]:
    """What a seal says of a file. Raises OSError."""
    with open_plain(file) as stream:
        return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest(), "size": file.stat().st_size}


def check_file(file: Path, entry: Mapping[str, Any] | None) -> None:
    """Compares a file with what a seal says of it. Raises ArtefactError."""
    if entry is None:
        raise ArtefactError(f"{file}: is not in the seal of its folder; it does not belong here")
    try:
        size = file.stat().st_size
        same = size == entry.get("size") and entry_of(file) == entry
    except FileNotFoundError:
        raise ArtefactError(f"{file}: missing") from None
    except OSError as error:
        raise ArtefactError(f"{file}: cannot be read ({error.strerror})") from error
    if not same:
        what = (
            f"{size} bytes instead of {entry.get('size')}"
            if size != entry.get("size")
            else "other content than its seal"
        )
        raise ArtefactError(f"{file}: {what}: damaged, or replaced. {cure(file)}")


def seal_file(file: Path, entries: Mapping[str, Mapping[str, Any]] | None = None, **changes: Any) -> None:
    """Changes a JSON file and seals it, with these files or those in its seal; a path of this machine is left out."""
    content = json.loads(file.read_text(encoding="utf-8"))
    entries = files_in(content, file) if entries is None else entries
    content = {name: value for name, value in (content | changes).items() if name != "_name_or_path"}
    file.write_text(json.dumps(sealed(content, entries), indent=2, sort_keys=True) + "\n", encoding="utf-8")
