"""`epg convert`: runs, weights of the authors' release, and pipeline folders into one another, and onto the Hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from epg.checkpoint.loading import Trained, open_weights
from epg.checkpoint.official import EPG_NAMES, RCM_NAMES, Names, from_release, recognise, to_release
from epg.checkpoint.state_dict import read_state_dict
from epg.config.objectives import Stage
from epg.config.recipe import recipe_names
from epg.config.validation import check
from epg.errors import ArtefactError, UserError
from epg.generator import Generator
from epg.messages import say
from epg.pipeline import folder as pipeline
from epg.publish import programs
from epg.publish.folders import Card, foreign, write_asset, write_folder
from epg.storage import assets, hub, outputs

Normalization = Literal["imagenet", "symmetric"]
Target = Literal["weights", "pipeline", "asset", "release", "program", "onnx"]
FILES = {"asset": (assets.SUFFIX,), "release": (".pth", ".safetensors"), "program": (".pt2",), "onnx": (".onnx",)}
PROGRAMS = ("release", "program", "onnx")  # of a generator, wherever it comes from
ENCODERS = ("weights", "asset", "release")
RELEASED = ("nnet_ema.pth", "nnet.pth")  # in a folder of the release: the first is what samples
RELEASED_EMA = 0.9999


def convert(
    source: str,
    out: Path,
    *,
    to: Target | None = None,
    recipe: str | None = None,
    stage: Stage | None = None,
    normalization: Normalization | None = None,
    ema: float | None = None,
    card: Card | None = None,
    push: str | None = None,
    private: bool = False,
) -> None:
    """Writes `source` as `to` to the file or folder `out`, and onto the Hub where `push` names a repository.

    Args:
        source: run folder, checkpoint, export or pipeline folder; a file of the release; `user/repo` for one of these
            on the Hub, or `user/repo:file` (or folder) for a file of the release there.
        to: None is `weights` for a file of the release, and `pipeline` for what can sample.
        recipe: of a file of the release, which does not record it, nor `stage` and `normalization`.

    Raises:
        ArtefactError: the source is missing, damaged or of another architecture.
        OutputError: `out` cannot be written, or the Hub does not take it.
        UserError: the source cannot become that.
    """
    found = read_source(source, recipe, stage, normalization, ema)
    encoder = isinstance(found, Trained) and not found.config.objective.samples
    released = isinstance(found, Trained) and found.path.is_file()
    target = to or ("weights" if released or encoder else "pipeline")
    check_target(target, out, found, push)
    if isinstance(found, pipeline.Saved):
        if target not in PROGRAMS:
            raise UserError(f"{source}: a pipeline folder already; --to takes {', '.join(PROGRAMS)}")
        write_file(target, out, found.tensors, EPG_NAMES, found.generator)
    elif target == "asset":
        write_asset(out, found, card or Card())
    elif target == "weights" or target == "pipeline":
        write_folder(target, out, found, card or Card(), push)
    else:
        write_file(target, out, found.tensors, RCM_NAMES if encoder else EPG_NAMES, found.generator)
    if push is not None:
        say(f"uploaded to {hub.push(out, push, private=private)}")


# Sources --------------------------------------------------------------------------------------------------------------


def read_source(
    source: str, recipe: str | None, stage: Stage | None, normalization: Normalization | None, ema: float | None
) -> Trained | pipeline.Saved:
    """What is to be converted. Raises ArtefactError."""
    file = release_file(source)
    if file is not None:
        return read_release(file, recipe, stage, normalization)
    if recipe is not None or stage is not None or normalization is not None:
        raise UserError(f"--recipe, --stage, --normalization: for a file of the release; {source} records its own")
    return open_weights(source, ema)


def release_file(source: str) -> Path | None:
    """The file of the release that is meant, downloaded where it is on the Hub; None for a folder of ours."""
    if assets.is_asset(source):
        return None
    if Path(source).is_file():
        return Path(source)
    repository, colon, inside = source.rpartition(":")
    if not colon or not hub.is_repository(repository):
        return None
    names = hub.list_files(repository)
    chosen = next((name for name in (inside, *(f"{inside.rstrip('/')}/{f}" for f in RELEASED)) if name in names), None)
    if chosen is None:
        weights = [name for name in names if name.endswith((".pth", ".safetensors"))]
        raise ArtefactError(f"{source}: no such file; there are {', '.join(weights) or 'no weights'}")
    return hub.download(repository, chosen)


def read_release(
    file: Path, recipe: str | None, stage: Stage | None, normalization: Normalization | None = None
) -> Trained:
    """Weights of the release with the configuration that they fit. Raises ArtefactError.

    The release's consistency models saw [-1, 1] (their configuration sets no std), unlike its others and our recipes.
    """
    weights = read_state_dict(file)
    config = recognise(weights, file, stage, recipe)
    own_recipe = recipe is not None and recipe not in recipe_names()
    if normalization is None and config.stage == "consistency" and not own_recipe:
        normalization = "symmetric"
    if normalization is not None:
        data = config.data.model_copy(update={"normalization": normalization})
        config = check(config.model_copy(update={"data": data}))
    tensors = from_release(weights, config, file)
    averaged = "ema" in file.stem.lower() and config.objective.samples
    kind = f"ema-{config.training.ema[0] if config.training.ema else RELEASED_EMA}" if averaged else "model"
    told = f"{config.stage} of {config.recipe}, all accounted for; normalisation {config.data.normalization}"
    say(f"{file}: {len(tensors)} tensors, {told}")
    return Trained(file, config, 0, kind, (), (), lambda: tensors)


# Targets --------------------------------------------------------------------------------------------------------------


def check_target(target: Target, out: Path, found: Trained | pipeline.Saved, push: str | None) -> None:
    """Everything that can be known to be impossible before work is done."""
    endings = FILES.get(target)
    if endings and out.suffix not in endings:
        raise UserError(f"--out {out}: --to {target} writes a file that ends in {' or '.join(endings)}")
    if endings and push:
        raise UserError(f"--push: goes with --to weights or pipeline, not with {target}")
    if endings:
        for name in (out, out.with_name(f"{out.name}.data")):  # where ONNX puts more than 2 GB
            outputs.refuse_existing(name)
    else:
        outputs.refuse_foreign(outputs.place_of(out), foreign)
    if isinstance(found, Trained) and not found.config.objective.samples and target not in ENCODERS:
        raise UserError(f"--to {target}: an encoder cannot sample; it can become {' or '.join(ENCODERS)}")


def write_file(
    target: Target,
    out: Path,
    tensors: Callable[[], dict[str, Tensor]],
    names: Names,
    generator: Callable[[], Generator],
) -> None:
    """One file: state dict under the release's names, or the program of a one-step generator. Raises OutputError."""
    with outputs.new_file(out) as file:
        if target == "release":
            renamed = to_release(tensors(), names)
            save_file(renamed, file) if out.suffix == ".safetensors" else torch.save(renamed, file)
            done = f"{len(renamed)} tensors under the release's names"
        else:
            export_to = programs.export_program if target == "program" else programs.export_onnx
            done = f"differs from PyTorch by at most {export_to(generator(), file):.1g} of 1"
    print(f"{out}: {done}")
