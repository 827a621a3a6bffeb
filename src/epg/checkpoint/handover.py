"""From stage 1 to stage 2: the pre-trained encoder, key by key. A wrong checkpoint is an error, never a silent start
from scratch."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from epg.checkpoint import export, strangers, vit
from epg.checkpoint.checkpoint import find
from epg.checkpoint.official import RCM_NAMES, rename
from epg.checkpoint.state_dict import read_state_dict
from epg.config.settings import RunConfig, parse
from epg.cost.shape import shape_of
from epg.errors import ArtefactError, UserError, refuse_missing
from epg.storage.artefact import match, read_json

FILE = "handover.json"  # in the folder of a run that began with an encoder, or with a generator
GENERATOR = "generator"  # the entry of the latter, see `epg.checkpoint.base`


@dataclass(frozen=True)
class EncoderWeights:
    """The encoder's tensors and where they come from."""

    source: Path
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...]
    """What the source holds besides the encoder: projector, momentum network."""
    notes: str = ""
    """How the weights of another kind of network were made to fit."""

    def record(self) -> dict[str, Any]:
        """What a run folder keeps of it; every key is in one of the lists."""
        notes = {"notes": self.notes} if self.notes else {}
        keys = {"loaded": list(self.tensors), "missing": [], "unexpected": [], "left_out": self.left_out}
        return {"source": str(self.source), **keys, **notes}


def beginning_of(run: Path) -> dict[str, Any]:
    """What the run in a folder says that it began with: an encoder, a generator; empty where it began from scratch.

    Raises ArtefactError for a damaged record.
    """
    file = run / FILE
    if not file.is_file():
        return {}
    content, _ = read_json(file)
    sources = [content, content[GENERATOR]] if GENERATOR in content else [content]
    named = isinstance(sources[-1], dict) and "source" in sources[-1]
    if not named or not all(isinstance(one.get("source", ""), str) for one in sources):
        raise ArtefactError(f"{file}: damaged; it must name the source of the encoder. Pass --encoder again.")
    return content


def handed_over(run: Path) -> Path | None:
    """Where the encoder came from that a run began with, or the generator that it went on from; None where neither is
    known. Raises ArtefactError for a damaged record."""
    content = beginning_of(run)
    source = content.get("source", content.get(GENERATOR, {}).get("encoder"))
    return None if source is None else Path(source)


def same_beginning(content: Mapping[str, Any], run: Path, encoder: Path | None, base: Path | None) -> None:
    """Whether a run that is continued began as the command says; told where it names another place.

    Args:
        content: `beginning_of` the run.
        encoder: `--encoder`, and `base`, `--from`; where there is neither it is `--from-scratch`.

    Raises UserError where the run began in another way.
    """
    kind = "generator" if GENERATOR in content else "encoder"
    source = content.get(GENERATOR, content).get("source")
    how = "from scratch" if source is None else f"with the {kind} {source}"
    asked, flag = base or encoder, "--from" if base else "--encoder" if encoder else "--from-scratch"
    if (asked is None) != (source is None) or (base is None) != (GENERATOR not in content):
        given = flag if asked is None else f"{flag} {asked}"
        raise UserError(
            f"{given}: the run in {run} began {how}. Go on with it by --resume {run}, or choose another --out."
        )
    if asked is not None and asked.resolve() not in (Path(source).resolve(), *Path(source).resolve().parents):
        warnings.warn(f"{flag} {asked} is not read: the run in {run} began {how}, and goes on.", stacklevel=2)


def read_encoder(path: Path, config: RunConfig) -> EncoderWeights:
    """The encoder of a pre-training run, of its checkpoint or export, or of a weight file of the authors' release, or
    of a plain ViT (`checkpoint.vit`). Of a run the momentum average, where the objective begins with that.

    Raises ArtefactError where there is none, or where the run had another architecture or image normalisation.
    """
    refuse_missing(path, "--encoder ")
    averaged = config.objective.begins == "momentum"
    if averaged and (path.is_file() or export.is_export(path)):
        raise ArtefactError(f"--encoder {path}: holds no momentum encoder; pass the run folder of `epg pretrain`")
    if path.is_file() and (backbone := vit.backbone(path)) is not None:
        fitted, dropped, notes = vit.fitted(backbone, shape_of(config.model, config.data), path)
        return EncoderWeights(path, fitted, dropped, notes)
    if path.is_file():
        renamed = {rename(name, RCM_NAMES): tensor for name, tensor in read_state_dict(path).items()}
        return split(path, renamed, "encoder.")
    if not (path / "checkpoints").is_dir() and not export.is_ours(path):
        strangers.refuse_folder(path, "--encoder takes runs of `epg pretrain`, their exports, and the authors' files")
    if export.is_export(path):
        exported = export.read(path)
        trained, source, tensors, prefix = exported.config, exported.path, exported.tensors, "encoder."
    else:
        found = find(path)
        trained, source = parse(found.state["config"], str(found.path)), found.path
        prefix = "momentum_network.encoder." if averaged else "network.encoder."
        tensors = partial(found.tensors, "model")
    if trained.objective.samples:
        raise ArtefactError(f"--encoder {path}: a {trained.stage} run; pass a pre-training run")
    differences = [
        f"  {name}: {old} in the encoder, {new} here"
        for name, old, new in [
            ("model.encoder", trained.model.encoder, config.model.encoder),
            ("model.patch_size", trained.model.patch_size, config.model.patch_size),
            ("model.stem", trained.model.stem, config.model.stem),
            ("model.mlp_ratio", trained.model.mlp_ratio, config.model.mlp_ratio),
            ("data.image_size", trained.data.image_size, config.data.image_size),
            ("data.channels", trained.data.channels, config.data.channels),
            ("data.normalization", trained.data.normalization, config.data.normalization),
            ("noise.shift", trained.shift, config.shift),
        ]
        if old != new
    ]
    if differences:
        raise ArtefactError(
            f"--encoder {path}: does not fit this recipe:\n" + "\n".join(differences) + "\nUse the recipe it was "
            f"trained with ({trained.recipe}), or pre-train with this one."
        )
    return split(source, tensors(), prefix)


def split(source: Path, tensors: dict[str, Tensor], prefix: str) -> EncoderWeights:
    """The tensors below `prefix`, and the names of the others."""
    encoder = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    if not encoder:
        raise ArtefactError(f"--encoder {source}: holds no encoder; its tensors are {', '.join(list(tensors)[:5])}...")
    return EncoderWeights(source, encoder, tuple(name for name in tensors if not name.startswith(prefix)))


def hand_over(encoder: nn.Module, weights: EncoderWeights) -> None:
    """Fills an encoder with exactly these weights; raises ArtefactError listing what does not match."""
    match(weights.tensors, encoder.state_dict(), f"--encoder {weights.source}", types=False)
    encoder.load_state_dict(weights.tensors)


def report(weights: EncoderWeights, at_random: int, part: str = "decoder") -> str:
    """What was handed over, for the user to read; how many numbers of which part of the network begin at random."""
    groups = sorted({name.split(".")[0] for name in weights.left_out})
    size = sum(t.numel() for t in weights.tensors.values())
    return (
        f"encoder from {weights.source}: {len(weights.tensors)} tensors ({size:,} numbers) loaded, 0 missing, "
        f"0 unexpected; left behind: {len(weights.left_out)} of {', '.join(groups) or 'nothing'}. "
        f"{weights.notes}"
        f"Starting at random: {at_random:,} numbers of the {part}."
    )
