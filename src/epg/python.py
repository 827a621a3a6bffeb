"""`epg.train`: what `epg pretrain` and `epg finetune` do, from a program or a notebook."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from epg import runs
from epg.config.beginning import refuse_beginning
from epg.config.objectives import KINDS, Stage
from epg.config.recipe import locator, merge, run_config
from epg.config.settings import RunConfig
from epg.config.validation import checked
from epg.data.configured import training_data_in_memory
from epg.data.sources.base import IN_MEMORY
from epg.data.sources.memory import Items
from epg.errors import UserError
from epg.storage import hub
from epg.training.callbacks import Callback


def train(
    recipe: str | Path,
    stage: str | None = None,
    *,
    data: str | Path | Items | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
    encoder: str | Path | None = None,
    base: str | Path | None = None,
    from_scratch: bool = False,
    resume: str | Path | None = None,
    override: Collection[str] = (),
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Trains one stage to its end, or continues where the run in `out` stopped; returns the run folder.

    Args:
        recipe: name of a recipe, or the path of a .yaml file.
        stage: what to train; None is `pretraining`, or `diffusion` where it is said what a generator begins with.
        data: an address, as `data.source` is; or images in memory: an array (N, H, W[, C]), a list of arrays or PIL
            images, either as a pair with labels, a map-style data set of (image, label), a `datasets.Dataset`. They are
            known by the hash of all images and labels: a run is continued with the same ones alone.
        out: run folder; runs/RECIPE/STAGE if not given.
        settings: of the recipe, by their names on the command line: {"training.steps": 200}.
        encoder: of a generator, the run of stage 1 that it begins with.
        base: the whole generator that it begins with, `--from` on the command line.
        from_scratch: it begins with neither.
        resume: continue exactly this run or checkpoint.
        override: settings that may differ from those of the run that is continued.
        callbacks: what hears of the log, pictures and checkpoints.

    Raises:
        UserError: for whatever is wrong, before time is spent.
        InterruptedRunError: Ctrl-C, or the notebook's stop; a checkpoint is on disk, and the same call continues.
    """
    begins = encoder is not None or base is not None or from_scratch
    chosen = known_stage(stage or ("diffusion" if begins else "pretraining"))
    if KINDS[chosen].samples:
        refuse_beginning(str(recipe), chosen, encoder, base, from_scratch, resume)
    elif begins:
        raise UserError(f"--encoder, --from, --from-scratch: are for generators; {chosen} trains the encoder itself")
    address = str(data) if isinstance(data, str | Path) else None if data is None else IN_MEMORY
    config = configured(str(recipe), chosen, {**(settings or {}), **({"data.source": address} if address else {})})
    images = None if data is None or isinstance(data, str | Path) else training_data_in_memory(data, config.data)
    run = runs.train(
        config,
        None if out is None else Path(out),
        encoder=None if encoder is None else hub.local(encoder),
        base=None if base is None else hub.local(base),
        resume=None if resume is None else Path(resume),
        overrides=override,
        dataset=images,
        callbacks=callbacks,
    )
    return run.folder


def known_stage(name: str) -> Stage:
    """Raises UserError for a stage that there is not."""
    if name not in KINDS:
        raise UserError(f"--stage {name}: choose one of {', '.join(KINDS)}")
    return name


def configured(recipe: str, stage: Stage, settings: Mapping[str, object]) -> RunConfig:
    """A recipe's configuration with settings, by their full names, laid over it. Raises UserError."""
    content: dict[str, Any] = run_config(recipe, stage).model_dump()
    for name, value in settings.items():
        *sections, last = name.replace("-", "_").split(".")
        laid: dict[str, Any] = {last: value}
        for section in reversed(sections):
            laid = {section: laid}
        content = merge(content, laid)
    return checked(content, f"recipe {recipe} with the settings", locator(recipe, stage))
