"""Weights with their card, as a folder that others can use or as one file, an asset."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from epg.checkpoint import export
from epg.checkpoint.loading import Trained
from epg.pipeline import folder as pipeline
from epg.publish.model_card import Origin, receipts_beside, write_card
from epg.storage import assets, outputs

Kind = Literal["weights", "pipeline"]

USE = {
    "pipeline": """
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True)
image = pipe({labels}generator=0).images[0]
""",
    "weights": """
import epg

model = epg.load("{name}")
images = model.sample({sample})  # uint8 (N, C, H, W)
""",
}


@dataclass(frozen=True)
class Card:
    """What the user says of weights that are to be published."""

    license: str | None = None
    dataset: str | None = None
    samples: bool = True
    device: torch.device | str = "cpu"


def write_asset(out: Path, found: Trained, card: Card) -> None:
    """Weights in our format with their card as one archive; says how it is used. Raises OutputError."""
    with outputs.new_file(out) as file, tempfile.TemporaryDirectory(dir=file.parent) as inside:
        folder = Path(inside) / out.stem
        folder.mkdir()
        fill_folder("weights", folder, found, card, out.name)
        sha256 = assets.pack(folder, file)
        shutil.rmtree(folder)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {found.kind} of {found.config.recipe} ({found.config.stage})")
    print(f"sha256 {sha256}")
    print(f"Where it is published, ADDRESS, it is used as 'ADDRESS/{out.name}#sha256={sha256}'.")


def write_folder(target: Kind, out: Path, found: Trained, card: Card, push: str | None) -> None:
    """Weights in our format, or a pipeline, with their card. Raises OutputError; a folder that was there stays then."""
    with outputs.replacing_folder(out, foreign) as folder:
        fill_folder(target, folder, found, card, push or out.absolute().name)
    print(f"{out}: {found.kind} of {found.config.recipe} ({found.config.stage}) as {target}")


def fill_folder(target: Kind, folder: Path, found: Trained, card: Card, name: str) -> None:
    """Weights in our format, or a pipeline, with their card, into an empty folder. Raises OSError."""
    model = found.generator(card.device) if found.config.objective.samples else None
    if target == "pipeline":
        assert model is not None
        from epg.pipeline import EPGPipeline

        EPGPipeline.from_generator(model, found.trained_in()).save_pretrained(folder)
    else:
        write_weights(folder, found)
    opened_by: Literal["epg", "diffusers"] = "diffusers" if target == "pipeline" else "epg"
    origin = Origin(card.license, card.dataset, receipts_beside(found.path), opened_by)
    write_card(folder, found, origin, model if card.samples else None, name, how_to_use(target, found, name))
    pipeline.reseal(folder) if target == "pipeline" else export.reseal(folder)


def foreign(out: Path) -> str:
    """Why a folder is not, all of it, what an earlier conversion wrote; "" where it is."""
    return pipeline.foreign(out) if pipeline.is_pipeline(out) else export.foreign(out)


def write_weights(folder: Path, found: Trained) -> None:
    """Our export format, which `epg.load`, `epg sample` and `epg finetune --encoder` take."""
    tensors = found.tensors()
    if found.kind == "model":
        tensors = {f"{export.PREFIX}{name}": tensor for name, tensor in tensors.items()}
    state = {
        "class_names": list(found.class_names),
        "class_counts": list(found.class_counts),
        "config": found.config.model_dump(mode="json"),
        "trained_in": found.trained_in(),
    }
    export.fill(folder, found.step, {found.kind: tensors}, state)


def how_to_use(target: Kind, found: Trained, name: str) -> str:
    """Code for the card."""
    if not found.config.objective.samples:
        return f"epg finetune {found.config.recipe} --encoder {name}"
    conditional = bool(found.config.model.num_classes)
    if target == "pipeline":
        return USE["pipeline"].format(name=name, labels="class_labels=[0], " if conditional else "")
    return USE["weights"].format(name=name, sample="model.make_labels(8, balanced=True)" if conditional else "count=8")
