"""From images to a published pipeline, every verb on what the one before it left, for each kind of source."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from epg.cli import main
from epg.evaluation import receipt
from tests.walk.files import class_folders, parquet_file, split_folders

TINY = (
    "--model.encoder.depth 1 --model.encoder.width 24 --model.encoder.heads 2 --model.decoder.width 24 "
    "--model.decoder.heads 2 --model.projector-hidden 16 --model.projector-out 8 --model.patch-size 4 "
    "--training.batch-size 8 --training.steps 4 --optimizer.warmup-steps 1 --training.checkpoint-every 2 "
    "--data.image-size 8 --data.workers 0 --training.log-every 1"
)
"""Laid over the recipe `small`: networks of a few thousand weights, four steps."""


def epg(command: str) -> None:
    assert main(command.split()) == 0, command


def a_folder(folder: Path) -> str:
    return str(class_folders(folder / "photos"))


def a_prepared_set(folder: Path) -> str:
    class_folders(folder / "photos")
    epg("prepare photos set --image-size 8 --workers 0")
    return "set"


def a_parquet_file(folder: Path) -> str:
    return str(parquet_file(folder / "photos.parquet", class_folders(folder / "photos")))


def a_pair_of_splits(folder: Path) -> str:
    return str(split_folders(folder / "photos"))


@pytest.mark.parametrize("source", [a_folder, a_prepared_set, a_parquet_file, a_pair_of_splits])
def test_all_stages(
    source: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = source(tmp_path)
    class_folders(tmp_path / "unseen", each=4, first=70, side=8)
    held_out = "" if source is a_pair_of_splits else "--held-out unseen"

    if source is not a_prepared_set:
        epg(f"prepare {data} set --image-size 8 --workers 0")
    epg(f"inspect {data} --image-size 8 --workers 0 --report report.json")
    epg("inspect set --verify --workers 0")
    assert (tmp_path / "contact-sheet.png").is_file()

    epg(f"pretrain small --data.source {data} {TINY} --out encoder")
    averages = "--training.power-ema 0.05 0.1"
    epg(f"finetune small --data.source {data} --encoder encoder {TINY} {averages} --out diffusion")
    epg(f"finetune small --stage consistency --data.source {data} --encoder encoder {TINY} --out consistency")
    epg("verify diffusion")

    epg("sample diffusion --count 9 --steps 3 --guidance 1.5 --npz --out samples")
    epg("sample consistency --count 9 --out one-step")
    epg("evaluate samples/samples.npz --reference set --out a.json")
    epg("evaluate one-step --reference set --features encoder=diffusion --out b.json")
    epg("evaluate diffusion --count 9 --steps 3")
    epg("evaluate consistency --count 9 --reference set")
    epg("evaluate set --reference set --out c.json")
    epg("compare diffusion consistency a.json b.json c.json --out table.md")
    assert "accuracy" in receipt.read(tmp_path / "consistency" / "evaluation.json").metrics

    epg("sweep diffusion --guidance 1 2 --width 0.1 --steps 3 --count 9")
    epg("probe encoder --levels 0.1 1")
    epg("probe diffusion --levels 0.1")
    epg(f"neighbours diffusion --count 9 --steps 3 {held_out}")
    epg(f"denoising diffusion --levels 3 --count 9 {held_out}")
    epg("ema diffusion --sigma-rel 0.08 --out averaged")
    epg("sample averaged --count 3 --steps 3 --out averaged-samples")

    epg("convert diffusion --out pipeline")
    epg("convert consistency --out one-step-pipeline")
    epg("convert encoder --out encoder-weights")
    epg("convert diffusion --to weights --out weights")
    if source is a_folder:  # slow, and they know nothing of the data
        papers = "--from-scratch --model.stem 0 --objective.parameterization x --optimizer.kind adamw"
        epg(f"finetune small --data.source {data} {TINY} {papers} --out paper")  # what the authors' code has
        epg("convert paper --to release --out release.pth")
    same_images_in_diffusers(tmp_path)
    following = [line.removeprefix("Next: ") for line in capsys.readouterr().out.splitlines() if "Next: " in line]
    if source is a_prepared_set:
        made = "epg pretrain small --data.source set --data.image-size 8 --out runs/set/pretraining"
        assert following[:2] == ["epg inspect set", made]
    assert any(line.startswith("epg finetune small --encoder encoder --out diffusion") for line in following)
    assert "epg sample diffusion --out diffusion/samples" in following
    assert "epg report diffusion" in following


def same_images_in_diffusers(folder: Path) -> None:
    """A pipeline folder opened by diffusers alone draws what the run draws."""
    from diffusers import DiffusionPipeline

    import epg as package

    for run, pipeline in (("diffusion", "pipeline"), ("consistency", "one-step-pipeline")):
        pipe = DiffusionPipeline.from_pretrained(folder / pipeline, trust_remote_code=True)
        pipe.set_progress_bar_config(disable=True)
        drawn = pipe(class_labels=["dog"], generator=0, output_type="pt", num_inference_steps=3).images
        assert drawn.shape == (1, 3, 8, 8)
        model = package.load(folder / run)
        assert model.class_names == ("cat", "dog", "emu")
        ours = pipe(class_labels=[1], generator=0, output_type="pt", num_inference_steps=3).images
        assert torch.equal(drawn, ours)
        assert json.loads((folder / pipeline / "model_index.json").read_text())
