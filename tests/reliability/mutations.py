"""R4: what can befall the newest checkpoint."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from epg.checkpoint.manifest import signed

FILES = ("model.safetensors", "optimizer.safetensors", "ema-0.9.safetensors", "state.json", "manifest.json")
Mutation = Callable[[Path, random.Random], str]
"""Damages a checkpoint folder (another one lies beside it); says what it did."""


def flip(path: Path, chooser: random.Random) -> str:
    file = path / chooser.choice(FILES)
    content = bytearray(file.read_bytes())
    place = chooser.randrange(len(content))
    content[place] ^= 1 << chooser.randrange(8)
    file.write_bytes(content)
    return f"flip {file.name} {place}"


def truncate(path: Path, chooser: random.Random) -> str:
    file = path / chooser.choice(FILES)
    length = chooser.randrange(file.stat().st_size)
    file.write_bytes(file.read_bytes()[:length])
    return f"truncate {file.name} to {length}"


def zero(path: Path, chooser: random.Random) -> str:
    file = path / chooser.choice(FILES)
    content = bytearray(file.read_bytes())
    start = chooser.randrange(len(content))
    part = content[start : start + 4096]
    content[start : start + 4096] = bytes(len(part)) if any(part) else b"\1" * len(part)
    file.write_bytes(content)
    return f"zero {file.name} from {start}"


def missing(path: Path, chooser: random.Random) -> str:
    file = path / chooser.choice(FILES)
    file.unlink()
    return f"remove {file.name}"


def extra(path: Path, chooser: random.Random) -> str:
    name = chooser.choice(["ema-0.5.safetensors", "notes.txt", ".hidden", "folder"])
    (path / name).mkdir() if name == "folder" else (path / name).write_bytes(b"x")
    return f"add {name}"


def swap(path: Path, chooser: random.Random) -> str:
    other = next(p for p in path.parent.glob("step-*") if p != path)
    file = chooser.choice(FILES)
    shutil.copy(other / file, path / file)
    return f"{file} of another step"


def edit(path: Path, chooser: random.Random) -> str:
    """An edited manifest: with the old digest, or signed anew but wrong about the files."""
    file = path / "manifest.json"
    content = json.loads(file.read_text())
    key = chooser.choice(["format", "files", "config", "data", "versions", "threads", "digest"])
    if key == "files":
        content["files"][chooser.choice(FILES[:-1])][chooser.choice(["sha256", "size"])] = 1
    else:
        content[key] = chooser.choice([None, 7, "x", {}])
    if key in ("files", "config", "data") and chooser.random() < 0.5:
        content = signed(content)
    file.write_text(json.dumps(content, indent=1))
    return f"edit {key} of the manifest"


def whole(path: Path, chooser: random.Random) -> str:
    """An empty folder, a foreign one, a file, the other step's folder under this name."""
    other = next(p for p in path.parent.glob("step-*") if p != path)
    shutil.rmtree(path)
    kind = chooser.choice(["empty", "foreign", "file", "other step"])
    if kind == "file":
        path.write_text("mine")
    elif kind == "other step":
        shutil.copytree(other, path)
    else:
        path.mkdir()
        if kind == "foreign":
            (path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
            (path / "manifest.json").write_text('{"name": "web app"}')
    return kind


def link(path: Path, chooser: random.Random) -> str:
    file = path / chooser.choice(FILES[:-1])
    target = path.parent / "elsewhere"
    target.mkdir(exist_ok=True)
    file.rename(target / file.name)
    file.symlink_to(target / file.name)
    return f"{file.name} is a link"


MUTATIONS: list[Mutation] = [flip, flip, flip, truncate, zero, missing, extra, swap, edit, whole, link]
