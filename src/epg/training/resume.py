"""Continuing a run: from which checkpoint, whether it is still the same experiment, and what to say about it."""

import difflib
import importlib.metadata
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from epg.checkpoint import checkpoint, export
from epg.checkpoint.checkpoint import Checkpoint
from epg.config.settings import RunConfig, parse
from epg.distributed import world_size
from epg.errors import ArtefactError, UserError, refuse_missing
from epg.storage.artefact import pickle_hint

# Settings that change neither the weights nor the order of anything: a resumed run may have others.
HARMLESS = {
    "data.workers",
    "data.timeout",
    "data.max_damaged",
    "training.device",
    "training.log_every",
    "training.trackers",
    "training.preview_every",
    "training.checkpoint_every",
    "training.keep",
    "training.keep_every",
    "training.parallel",
    "training.activation_checkpointing",
    "training.keep_products",
    "training.timeout",
    "training.max_nonfinite",
    "sampling",
    "evaluation",
}
# Only where no image is compared with the others of its pass, as their negatives, and BatchNorm's, are those of a pass.
HARMLESS_ALONE = {"training.micro_batch"}
FIXED = ("objective.kind",)  # another stage is another run


@dataclass(frozen=True)
class Start:
    """Where a run continues: a verified checkpoint, and everything out of the ordinary in its past."""

    checkpoint: Checkpoint
    history: list[dict[str, Any]]

    @property
    def config(self) -> RunConfig:
        return config_of(self.checkpoint)


def config_of(found: Checkpoint) -> RunConfig:
    """The configuration that a checkpoint was trained with."""
    return parse(found.state["config"], str(found.path))


def run_folder_of(path: Path) -> Path:
    """The run folder that `--resume PATH` means when there is no `--out`."""
    if checkpoint.step_of(path) < 0 and not (path / checkpoint.MANIFEST).is_file():
        return path
    if path.absolute().parent.name == "checkpoints":
        return path.parent.parent
    raise UserError(f"--resume {path}: not inside a run folder. Name the folder to train into with --out.")


def starting_point(folder: Path, resume: Path | None = None) -> Checkpoint | None:
    """The checkpoint that the run in `folder` continues from; None where there is none and none was asked for.

    Without `resume` that is the newest one of the folder. With it, exactly the one that is named (of a run folder, its
    newest); or, when the command that began so runs again, the newest that has come of it.

    Raises ArtefactError where `resume` is no checkpoint, UserError where the folder holds something that is newer or
    another run.
    """
    own = checkpoint.newest(folder / "checkpoints")
    if resume is None:
        return own
    named = named_checkpoint(resume)
    if own is None or own.manifest.digest == named.manifest.digest:
        return named
    if any(event["resumed_from"] == named.manifest.digest for event in own.state["history"]):
        return own
    if named.path.absolute().parent == (folder / "checkpoints").absolute():
        raise UserError(
            f"--resume {resume}: {folder} has gone on to step {own.step}. Leave --resume out (or name the run folder) "
            "to continue from there; to go back to this one, name a new folder with --out."
        )
    raise UserError(
        f"--out {folder}: holds another run, at step {own.step}, that did not begin at --resume {resume} "
        f"(step {named.step}). Choose another --out."
    )


def named_checkpoint(path: Path) -> Checkpoint:
    """What `--resume` names. Raises ArtefactError, whatever else is there: nobody asked for a start from scratch."""
    refuse_no_checkpoint(path)
    try:
        return checkpoint.find(path)
    except ArtefactError as error:
        raise ArtefactError(f"--resume {error}") from error


def refuse_no_checkpoint(path: Path) -> None:
    """Raises ArtefactError where `--resume` names something else, without reading it: before anything is written."""
    refuse_missing(path, "--resume ")
    if export.is_export(path) or path.is_file():
        raise ArtefactError(
            f"--resume {path}: holds weights only, and a run needs its optimizer and averages to continue. Pass a run "
            "folder, or RUN/checkpoints/step-... in one."
        )
    one = (path / checkpoint.MANIFEST).exists() or checkpoint.step_of(path) >= 0
    if not one and not checkpoint.listing(path / "checkpoints"):
        raise ArtefactError(
            f"--resume {path}: no checkpoint here. Pass a run folder, or RUN/checkpoints/step-... in one."
            + pickle_hint(path)
        )


# The same experiment? -------------------------------------------------------------------------------------------------


def continued(found: Checkpoint, folder: Path, config: RunConfig, data: str, overrides: Collection[str] = ()) -> Start:
    """The start of a run with `config` and images of fingerprint `data` from this checkpoint.

    Raises UserError listing every setting, old -> new, that would make it another experiment and is neither harmless
    nor named in `overrides`; or an override that names no setting.
    """
    old = settings(config_of(found), found.state["data"], found.manifest.versions["epg"], found.state["processes"])
    new = settings(config, data, importlib.metadata.version("epg"), world_size())
    allowed = {override.replace("-", "_") for override in overrides}
    for key in sorted(allowed):
        refuse_unknown(key, old.keys() | new.keys())
    changed = {
        name: [old.get(name), new.get(name)]
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not belongs(name, harmless(config))
    }
    refused = [name for name in changed if name in FIXED or not belongs(name, allowed)]
    if refused:
        raise UserError(
            f"--out {folder}: holds a run with other settings, which cannot be continued with these:\n"
            + "\n".join(f"  {name}: {changed[name][0]} -> {changed[name][1]}" for name in refused)
            + "\nChoose another --out, or the settings it began with; or let a setting change on the way with "
            f"--override {next((name for name in refused if name not in FIXED), 'KEY')}"
        )
    elsewhere = found.path.absolute().parent != (folder / "checkpoints").absolute()
    history = list(found.state["history"])
    if changed or elsewhere:
        origin = found.manifest.digest if elsewhere else None
        history.append({"step": found.step, "resumed_from": origin, "changed": changed})
    return Start(found, history)


def settings(config: RunConfig, data: str, version: str, processes: int) -> dict[str, Any]:
    """What a run depends on as `section.field: value`: images count by their content, epg by its major version, and
    micro-batches by the passes of a step where the images of a pass are compared with each other."""
    found = {**config.flat(), "data.source": f"images {data[:12]}", "epg": f"version {version.partition('.')[0]}"}
    if config.objective.contrastive:
        share = config.training.batch_size // processes
        passes = max(1, share // (config.training.micro_batch or share))
        found["training.micro_batch"] = f"a step in {passes} passes"
    return found


def harmless(config: RunConfig) -> set[str]:
    """The settings that may change without a word when this run is continued."""
    return HARMLESS if config.objective.contrastive else HARMLESS | HARMLESS_ALONE


def belongs(name: str, keys: Collection[str]) -> bool:
    """Whether a setting is one of these, or inside a section that is."""
    return any(f"{name}.".startswith(f"{key}.") for key in keys)


def refuse_unknown(key: str, names: Collection[str]) -> None:
    if not any(belongs(name, {key}) for name in names):
        close = difflib.get_close_matches(key, names, n=1)
        raise UserError(f"--override {key}: is no setting" + (f"; did you mean {close[0]}?" if close else "."))


def warn_of_threads(found: Checkpoint) -> None:
    """Says where a run goes on with another number of CPU threads than it had."""
    if found.manifest.threads != torch.get_num_threads():
        warnings.warn(
            f"{found.path}: written with {found.manifest.threads} CPU threads, continued with "
            f"{torch.get_num_threads()}: equal up to rounding, not to the last bit (OMP_NUM_THREADS sets it)",
            stacklevel=3,
        )


def describe(start: Start, config: RunConfig, images: int) -> str:
    """What is restored, and where the run stands, for the user to read."""
    found, total = start.checkpoint, config.training.steps
    seen = found.step * config.training.batch_size
    lines = [
        f"resumed from {found.path}: step {found.step:,} of {total:,} ({seen:,} images, {seen / images:.1f} epochs); "
        f"restored {', '.join(sorted(found.groups))}, step, position in the data, counters"
    ]
    if len(start.history) > len(found.state["history"]):
        changed = start.history[-1]["changed"].items()
        lines += [f"  changed from here on: {name}: {old} -> {new}" for name, (old, new) in changed]
    if found.step >= total:
        lines.append("  nothing is left to do: this run is at its end (--training.steps)")
    return "\n".join(lines)
