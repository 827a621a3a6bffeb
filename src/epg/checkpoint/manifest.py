"""What a checkpoint must say of itself: every field of `state.json` and `manifest.json`, mandatory and typed."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from epg.config.settings import parse
from epg.errors import ArtefactError, UserError
from epg.storage.artefact import encode_json

FORMAT = 2  # 2: random numbers are Philox's, so runs of format 1 cannot go on exactly
# Settings that checkpoints of this format may lack, being older than the setting, and what they trained with.
ADDED_SETTINGS: dict[str, Any] = {
    "training.leave_out": [],
    "training.cuda_graphs": False,
    "training.keep_products": False,
    "optimizer.frozen_encoder": False,
    "optimizer.layer_decay": 1.0,
    "objective.contrastive_weight": 1.0,
    "objective.consistency_weight": 1.0,
    "objective.momentum_end": None,
    "objective.initial": "online",
    "objective.density": "lognormal",
    "objective.rounding": True,
    "objective.weighting": None,
    "objective.sigmoid_bias": 0.0,
    "objective.internal_weight": 0.0,
    "objective.alignment_weight": 0.0,
    "objective.alignment_block": None,
    "noise.scale": 1.0,
    "sampling.guide": "unconditional",
    "sampling.grid": "karras",
}


class IncompatibleError(ArtefactError):
    """Intact, but not what this version can continue from: never skipped in favour of an older checkpoint."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


T = TypeVar("T", bound=_Strict)


class Event(_Strict):
    """What makes a run more than one configuration trained once: continued from another run, or with other settings."""

    step: Annotated[int, Field(ge=0)]
    resumed_from: str | None
    """Digest of the manifest of another run's checkpoint, where it began with `--resume`."""
    changed: dict[str, list[Any]]
    """Settings changed with `--override`: [old, new]."""


class State(_Strict):
    """`state.json`: whatever is no tensor. A new field of the training loop is added here."""

    format: int
    step: Annotated[int, Field(ge=0)]
    config: dict[str, Any]
    """The run's configuration, complete."""
    class_names: list[str]
    class_counts: list[Annotated[int, Field(ge=0)]]
    """Training images of each class; empty without labels."""
    data: str
    """Fingerprint of the training images."""
    processes: Annotated[int, Field(ge=1)]
    """How many trained together."""
    skipped: Annotated[int, Field(ge=0)]
    """Steps left out so far because a gradient was not finite."""
    skipped_in_row: Annotated[int, Field(ge=0)]
    loss_scale: Annotated[float, Field(gt=0)]
    loss_scale_good_steps: Annotated[int, Field(ge=0)]
    history: list[Event]
    """Oldest first; empty for most runs."""


class FileEntry(_Strict):
    sha256: str
    size: int


class Manifest(_Strict):
    """`manifest.json`; `digest` is the sha256 of the manifest without it."""

    format: int
    files: dict[str, FileEntry]
    config: str
    """Sha256 of the configuration."""
    data: str
    """Fingerprint of the training images."""
    versions: dict[str, str]
    threads: int
    """CPU threads: another number is another rounding, so resuming is bit-exact only with the same."""
    digest: str


def make_manifest(files: Mapping[str, Mapping[str, Any]], state: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of files with these fingerprints."""
    versions = {name: importlib.metadata.version(name) for name in ("epg", "torch", "safetensors")}
    return signed(
        {
            "format": FORMAT,
            "files": files,
            "config": digest(state["config"]),
            "data": state["data"],
            "versions": {**versions, "python": platform.python_version()},
            "threads": torch.get_num_threads(),
        }
    )


def signed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the digest that finds accidental changes of it (it is no protection against intent)."""
    content = {k: v for k, v in manifest.items() if k != "digest"}
    return {**content, "digest": digest(content)}


def digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(encode_json(content)).hexdigest()


def check_manifest(content: dict[str, Any], data: bytes, where: str) -> Manifest:
    """The manifest that was read as these bytes.

    Raises ArtefactError where it is damaged, IncompatibleError where it is intact and of another format.
    """
    if "digest" not in content or signed(content) != content or encode_json(content) != data:
        raise ArtefactError(f"{where}: damaged")
    if content.get("format") != FORMAT:
        raise IncompatibleError(
            f"{where}: format {content.get('format')!r}; this version reads {FORMAT}. Install the version of epg that "
            f"wrote it ({content.get('versions')})."
        )
    return _validated(Manifest, content, where)


def check_state(content: dict[str, Any], where: str) -> State:
    """The state, complete: raises IncompatibleError naming every field that is missing, unknown or of a wrong type."""
    state = _validated(State, content, where)
    try:
        recorded = parse(state.config, where)
    except UserError as error:
        raise IncompatibleError(f"{error}\nThis version of epg cannot continue it.") from None
    problems = list(_differences(state.config, recorded.model_dump(mode="json"), "config"))
    if problems:
        raise IncompatibleError(f"{where}: not complete\n" + "\n".join(problems))
    return state


def _validated(kind: type[T], content: dict[str, Any], where: str) -> T:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise IncompatibleError(f"{where}: wrong fields\n" + "\n".join(lines)) from None


def _differences(recorded: Any, parsed: Any, name: str) -> Iterator[str]:
    """What parsing had to fill in or convert: a recorded configuration needs neither."""
    if isinstance(recorded, dict) and isinstance(parsed, dict):
        for key, value in parsed.items():
            inner = f"{name}.{key}"
            if key in recorded:
                yield from _differences(recorded[key], value, inner)
            elif ADDED_SETTINGS.get(inner.removeprefix("config."), ...) != value:
                yield f"  {inner}: missing"
    elif isinstance(recorded, list) and isinstance(parsed, list) and len(recorded) == len(parsed):
        for i, (a, b) in enumerate(zip(recorded, parsed, strict=True)):
            yield from _differences(a, b, f"{name}.{i}")
    elif type(recorded) is not type(parsed) or recorded != parsed:
        yield f"  {name}: {recorded!r} is of a wrong type"
