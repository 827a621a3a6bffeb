"""What a run says and writes before its first step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from epg.checkpoint import export, handover
from epg.checkpoint.base import Beginning
from epg.checkpoint.checkpoint import listing
from epg.checkpoint.handover import EncoderWeights, report
from epg.circumstances import circumstances
from epg.config.settings import RunConfig
from epg.config.yaml_file import read_yaml
from epg.data.loading.base import ImageDataset
from epg.distributed import rank, world_size
from epg.errors import OutputError, UserError
from epg.messages import say
from epg.objectives.base import Objective
from epg.storage import outputs
from epg.storage.files import replace_text
from epg.storage.plain_file import read_plain
from epg.training.resume import Start, describe

STARTS = "starts.jsonl"  # in a run folder: step, time, command and machine of every start


def announce(config: RunConfig, dataset: ImageDataset, start: Start | None = None) -> None:
    """What is about to happen, in the numbers that are most often misunderstood."""
    if rank() != 0:
        return
    batch, processes = config.training.batch_size, world_size()
    passes = batch // processes // (config.training.micro_batch or batch // processes)
    say(
        f"{config.stage} of {config.recipe}: {len(dataset):,} images, {config.model.num_classes} classes; "
        f"{config.training.steps:,} steps = {config.training.steps * batch / len(dataset):.1f} epochs"
    )
    if processes * passes > 1:
        say(f"batch {batch} = {processes} processes x {passes} passes x {batch // processes // passes} images")
    for line in dataset.report():
        say(line)
    classes, known = config.model.num_classes or 0, dataset.num_classes
    if classes > known:
        say(
            f"--model.num-classes {classes}: {classes - known} of them have no images here and are not learnt; pass "
            f"--model.num-classes {known} to leave them out"
        )
    if start is not None:
        say(describe(start, config, len(dataset)))


def record(
    folder: Path,
    config: RunConfig,
    weights: EncoderWeights | None,
    objective: Objective,
    begun: Beginning | None,
    past: Mapping[str, Any],
    step: int = 0,
) -> None:
    """Writes `config.yaml`, a line about this start at `step` and, with every key, what was handed over from stage 1
    and what of a generator is gone on with (`handover.json`); of a run that is continued what that says (`past`)."""
    if rank() != 0:
        return
    refuse_foreign(folder)
    with outputs.writing(folder):
        replace_text(folder / "config.yaml", config.to_yaml())
        lines = [*starts_of(folder), {"step": step, **circumstances()}]
        replace_text(folder / STARTS, "".join(json.dumps(line) + "\n" for line in lines))
        content = dict(past) if weights is None else weights.record()
        content |= {} if begun is None else {handover.GENERATOR: begun.record()}
        if content:
            replace_text(folder / handover.FILE, json.dumps(content, indent=1))
    if begun is not None:
        say(begun.report())
        if weights is not None:
            say(f"images are compared in the features of the encoder from {weights.source}")
    elif weights is not None:
        taken = any(encoder is part for encoder in objective.encoders for part in objective.network.children())
        parameters = objective.network.named_parameters()
        rest = sum(p.numel() for name, p in parameters if not (taken and name.startswith("encoder.")))
        say(report(weights, rest, "decoder" if taken else "generator, which begins without it"))


def starts_of(folder: Path) -> list[dict[str, Any]]:
    """Every start of a run: the step it began at, command, time and environment; oldest first, as far as known."""
    try:
        lines = [json.loads(line) for line in read_plain(folder / STARTS).splitlines()]
    except (OSError, ValueError):  # none, or damaged: it is about the past, and nothing depends on it
        return []
    return [line for line in lines if isinstance(line, dict)]


def refuse_foreign(folder: Path) -> None:
    """Raises OutputError where a folder holds files, named as a run's are, that no run of ours wrote."""
    if (folder / export.FOLDER).exists():
        outputs.refuse_foreign(folder / export.FOLDER, export.strange)
    names = [name for name in ("config.yaml", handover.FILE, "log.jsonl") if (folder / name).exists()]
    try:
        ours = not names or RunConfig.model_fields.keys() <= read_yaml(folder / "config.yaml").keys()
    except UserError:
        ours = False
    if not ours and not listing(folder / "checkpoints"):
        raise OutputError(f"--out {folder}: holds {names[0]}, and no run wrote it there. Choose a new folder.")
