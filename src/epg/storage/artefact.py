"""Files of tensors and JSON, written in one pass that also hashes them, and read with limits on what they may claim.

The tensor files are safetensors: eight bytes of header length, a JSON header padded to eight bytes, the data.
"""

import hashlib
import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from epg.errors import ArtefactError
from epg.storage import files
from epg.storage.plain_file import open_plain

HEADER_CAP = JSON_CAP = 16 * 2**20  # bytes
TENSOR_CAP = 20_000
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".npy", ".npz", ".distcp", ".metadata")
WRITE_SIZE = 2**20  # bytes: smaller tensors are written together
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Fingerprint = dict[str, Any]
"""`sha256` (hex) and `size` (bytes) of a file."""


class _HashedFile(files.NewFile):
    """A new file that hashes what it is given: what was meant to be written, whatever the disk makes of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.digest, self.size, self.waiting = hashlib.sha256(), 0, bytearray()

    def add(self, data: memoryview) -> None:
        self.digest.update(data)
        self.size += len(data)
        if len(data) < WRITE_SIZE:
            self.waiting += data
        if len(data) >= WRITE_SIZE or len(self.waiting) >= WRITE_SIZE:
            self._flush()
            if len(data) >= WRITE_SIZE:
                self.write(data)

    def finish(self) -> Fingerprint:
        self._flush()
        self.sync()
        return {"sha256": self.digest.hexdigest(), "size": self.size}

    def _flush(self) -> None:
        waiting, self.waiting = self.waiting, bytearray()
        self.write(memoryview(waiting))


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> Fingerprint:
    """Writes and syncs a safetensors file. The bytes depend on names and values alone.

    Raises OSError; ValueError for a type of number that is not in DTYPES.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, offset = {}, 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name}: {tensor.dtype} cannot be saved")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _HashedFile(file) as stream:
        stream.add(memoryview(len(text).to_bytes(8, "little") + text))
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            stream.add(flat.numpy().data)
        return stream.finish()


def write_json(file: Path, content: Mapping[str, Any]) -> Fingerprint:
    """Writes and syncs a JSON file. Raises OSError."""
    with _HashedFile(file) as stream:
        stream.add(memoryview(encode_json(content)))
        return stream.finish()


def encode_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def fingerprint(file: Path) -> Fingerprint:
    """What a file on disk really is. Raises ArtefactError where it cannot be read or is no plain file."""
    try:
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise ArtefactError(f"{file}: not a plain file")
        with open_plain(file) as stream:
            return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest(), "size": found.st_size}
    except FileNotFoundError:
        raise ArtefactError(f"{file}: missing") from None
    except OSError as error:
        raise ArtefactError(f"{file}: cannot be read ({error.strerror})") from error


def digest_of(tensors: Mapping[str, Tensor], *parts: str) -> str:
    """Sha256 (hex) of tensors, their names, types and shapes, and of further words."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    digest.update("\n".join(parts).encode())
    return digest.hexdigest()


def read_json(file: Path) -> tuple[dict[str, Any], bytes]:
    """The mapping in a JSON file, and its bytes. Raises ArtefactError."""
    try:
        with open_plain(file) as stream:
            data = stream.read(JSON_CAP + 1)
        if len(data) > JSON_CAP:
            raise ArtefactError(f"{file}: damaged; larger than {JSON_CAP} bytes")
        content = json.loads(data)
    except OSError as error:
        raise ArtefactError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{file}: damaged ({error})") from error
    if not isinstance(content, dict):
        raise ArtefactError(f"{file}: damaged; a mapping is expected")
    return content, data


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises ArtefactError where it cannot be read, claims more than it holds, or a value is not finite.
    """
    check_header(file)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ArtefactError(f"{file}: cannot be read ({error})") from error
    if name := not_finite(tensors):
        raise ArtefactError(f"{file}: {name} holds values that are not finite; refused")
    return tensors


def check_header(file: Path) -> None:
    """Refuses a safetensors file before much of it is read: size of the header, number and types of tensors."""
    try:
        with open_plain(file) as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(HEADER_CAP, file.stat().st_size):
                raise ArtefactError(f"{file}: damaged; its header claims {length} bytes, the limit is {HEADER_CAP}")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise ArtefactError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{file}: damaged ({error})") from error
    entries = {k: v for k, v in header.items() if k != "__metadata__"} if isinstance(header, dict) else None
    if entries is None or len(entries) > TENSOR_CAP:
        raise ArtefactError(f"{file}: damaged; no table of at most {TENSOR_CAP} tensors")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.get("dtype") not in DTYPES.values():
            raise ArtefactError(f"{file}: {name} is of an unknown type")


def pickle_hint(path: Path) -> str:
    """What to add to a refusal of a file (or a folder with files) that could run code when read; "" for any other."""
    found = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    name = next((f.name for f in found if f.suffix in PICKLES or f.name in PICKLES), "")
    if not name:
        return ""
    return (
        f" {name} may be a pickle, which can run code when it is read; nothing of it was. If you trust it: `epg "
        "convert` takes over the authors' state dicts; anything else, load where it was made and save as safetensors."
    )


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with an infinite or undefined value."""
    return next((n for n, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())), None)


def match(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str, types: bool = True) -> None:
    """Raises ArtefactError naming every tensor that is missing, unexpected, or of another shape (or type)."""
    problems = [f"  missing: {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"  unexpected: {name}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(found.keys() & expected.keys()):
        have, want = found[name], expected[name]
        if have.shape != want.shape or (types and have.dtype != want.dtype):
            problems.append(f"  {name}: {tuple(have.shape)} {have.dtype}, not {tuple(want.shape)} {want.dtype}")
    if problems:
        shown = "\n".join(problems[:20] + ([f"  and {len(problems) - 20} more"] if len(problems) > 20 else []))
        raise ArtefactError(f"{where}: not a checkpoint of this configuration\n{shown}")


def size_of(groups: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Bytes of all tensors."""
    return sum(math.prod(t.shape) * t.element_size() for group in groups.values() for t in group.values())
