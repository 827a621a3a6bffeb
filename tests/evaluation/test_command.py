"""`epg evaluate` and `epg reference` as one calls them, in one process and in two."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from epg.checkpoint import export
from epg.cli import main
from epg.data.dataset import open_dataset
from epg.data.pixels.rules import RULES
from epg.evaluation import jury, real, receipt
from epg.evaluation.extractors import indomain
from epg.evaluation.extractors.indomain import images_and_labels
from epg.evaluation.subjects import open_subject
from epg.sampling import Request
from tests import started
from tests.evaluation.test_sources import write_folder
from tests.helpers import run_state, tiny_config, tiny_epg

CHANGES = {"model": {"num_classes": 10}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classifiers and references of the whole module are made once."""
    folder = tmp_path_factory.mktemp("evaluation")
    indomain.FEWEST_STEPS, steps = 150, indomain.FEWEST_STEPS
    cache, os.environ["EPG_CACHE"] = os.environ["EPG_CACHE"], str(folder / "cache")
    config = tiny_config(**CHANGES)
    state = run_state(config, [str(i) for i in range(10)])
    export.write(folder / "run" / "export", 7, {"model": {}, "ema-0.9": tiny_epg(config).state_dict()}, state)
    yield folder
    indomain.FEWEST_STEPS = steps
    os.environ["EPG_CACHE"] = cache


@pytest.fixture(scope="module")
def held_out_digits(home: Path) -> Path:
    """Real held-out digits as an archive of ADM's layout."""
    images, labels = images_and_labels(open_dataset("digits", image_size=8, channels=1, split="test"))
    file = home / "samples.npz"
    np.savez(file, arr_0=images.permute(0, 2, 3, 1).numpy(), arr_1=labels.numpy())
    return file


def evaluate(*arguments: str | Path, out: Path) -> receipt.Receipt:
    assert main(["evaluate", *map(str, arguments), "--out", str(out)]) == 0
    return receipt.read(out)


def test_a_run_against_its_own_data(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(home / "run"), "--count", "40", "--steps", "3", "--guidance", "1"]) == 0
    result = receipt.read(home / "run" / "evaluation.json")
    assert list(result.metrics) == [
        *("fd_classifier", "precision_classifier", "recall_classifier", "accuracy", "fd_classifier_floor")
    ]
    assert result.metrics["fd_classifier"].value > 5 * result.metrics["fd_classifier_floor"].value
    assert result.samples["sampling"]["steps"] == 3
    assert result.samples["nfe"] == 5
    assert result.samples["labels"] == "all 10 classes in turn"
    assert len(result.samples["weights"]) == 64
    assert len(result.classes) == 10
    shown = capsys.readouterr()
    assert "Frechet distance (classifier)" in shown.out
    assert "FID" not in shown.out
    assert "biased upwards" in shown.err


def test_real_images_are_judged_real(home: Path, held_out_digits: Path) -> None:
    """An archive, and the same images as a folder and as a data set: the same numbers, near the floor."""
    archive = evaluate(held_out_digits, "--reference", "digits", out=home / "a.json")
    floor = archive.metrics["fd_classifier_floor"].value
    assert archive.metrics["fd_classifier"].value == pytest.approx(floor, rel=1e-9)
    assert archive.metrics["accuracy"].value > 0.9
    assert archive.metrics["precision_classifier"].value > 0.8
    images, _ = images_and_labels(open_dataset("digits", image_size=8, channels=1, split="test"))
    folder = write_folder(home / "folder", images)
    others = [
        evaluate(folder, "--reference", "digits", "--metrics", "fd", out=home / "b.json"),
        evaluate("digits", "--reference", "digits", out=home / "c.json"),
    ]
    for other in others:
        assert other.samples["pixels"] == archive.samples["pixels"]
        assert other.metrics["fd_classifier"] == archive.metrics["fd_classifier"]


def test_two_processes_give_the_same_numbers(home: Path) -> None:
    """Sampling, features, the reference and the floor are shared out, and nothing differs."""
    arguments = [home / "run", "--count", "100", "--steps", "3", "--batch-size", "8"]
    one, out = evaluate(*arguments, out=home / "one.json"), home / "two.json"
    done = started.epg("evaluate", *arguments, "--out", out, "--no-cache", processes=2)
    assert done.returncode == 0, done.stderr
    two = receipt.read(out)
    assert two.environment["processes"] == 2
    assert two.samples["pixels"] == one.samples["pixels"]
    assert list(two.metrics) == list(one.metrics)
    for key, number in one.metrics.items():
        assert two.metrics[key].value == pytest.approx(number.value, rel=1e-9), key


def test_fdr_of_real_images_is_one_and_the_same_everywhere(home: Path, held_out_digits: Path) -> None:
    """Held-out images are as far as held-out images; others have one number, whatever the batch and the processes."""
    words = ["--reference", "digits", "--features", "classifier", f"encoder={home / 'run'}", "--metrics", "fdr"]
    real = evaluate(held_out_digits, *words, out=home / "real.json").metrics
    assert [real[key].value for key in ("fd_ratio_classifier", "fd_ratio_encoder", "fdr")] == [1, 1, 1]
    images, labels = images_and_labels(open_dataset("digits", image_size=8, channels=1, split="train"), np.arange(90))
    np.savez(home / "others.npz", arr_0=images.permute(0, 2, 3, 1).numpy() // 2, arr_1=labels.numpy())
    one = evaluate(home / "others.npz", *words, "--batch-size", "70", out=home / "one.json").metrics
    assert one["fdr"].value > 2
    assert one["fdr"].name == "FDr (classifier, encoder)"
    out = home / "two.json"
    done = started.epg("evaluate", home / "others.npz", *words, "--out", out, "--batch-size", "7", processes=2)
    assert done.returncode == 0, done.stderr
    assert receipt.read(out).metrics == one


def test_reference_of_an_encoder(home: Path, held_out_digits: Path) -> None:
    words = ["--features", f"encoder={home / 'run'}"]
    assert main(["reference", "digits", "--out", str(home / "ref"), *words, "--kept", "200"]) == 0
    saved = evaluate(held_out_digits, "--reference", home / "ref", *words, out=home / "d.json")
    direct = evaluate(held_out_digits, "--reference", "digits", *words, out=home / "e.json")
    assert "fd_encoder_floor" in direct.metrics
    assert saved.metrics["fd_encoder"] == direct.metrics["fd_encoder"]
    assert saved.reference["kept"] == 200
    assert len(saved.reference["sha256"]) == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: nothing here"),
        ([__file__], "test_command.py: no samples"),
        (["{run}", "--count", "1"], "--count 1: must be at least 2"),
        (["{samples}"], "--reference: what shall .* be compared with"),
        (["{samples}", "--reference", "digits", "--metrics", "fid"], "--metrics fid: .* use --features inception"),
        (["{samples}", "--reference", "nowhere"], "nowhere: does not exist"),
        (
            ["{samples}", "--reference", "{samples}", "--metrics", "fdr"],
            "--metrics fdr: needs real images that the ref",
        ),
        (["{run}", "--features", "encoder=nowhere"], "nowhere"),
        (["{run}", "--guidance", "-1"], "--guidance -1.0"),
        (
            ["{run}", "--reference", "digits", "--features", "inception", "--inception", "x.pth"],
            "--inception x.pth: does not exist",
        ),
    ],
)
def test_mistakes(
    home: Path, held_out_digits: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [a.format(run=home / "run", samples=held_out_digits) for a in arguments]
    assert main(["evaluate", *filled, "--out", str(home / "x.json")]) != 0
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "Traceback" not in said


def test_a_fifth_is_set_aside_only_for_features_of_the_data(home: Path, held_out_digits: Path) -> None:
    """A folder without splits: a classifier needs unseen images, statistics of other features need all of them."""
    images, labels = images_and_labels(open_dataset("digits", image_size=8, channels=1), np.arange(200))
    for label in range(10):
        write_folder(home / "flat" / str(label), images[labels == label])
    judged = evaluate(held_out_digits, "--reference", home / "flat", out=home / "f.json")
    assert judged.reference["count"] == 160
    assert judged.reference["source"]["split"] == "four fifths of train"
    run = home / "of-flat"
    flags = ["--from-scratch", "--training.steps", "1", "--training.preview-every", "0", "--training.trackers"]
    assert main(["finetune", "digits", "--data.source", str(home / "flat"), "--out", str(run), *flags]) == 0
    assert evaluate(run, "--features", "random", "--count", "20", out=home / "g.json").warnings[0] == jury.SEEN
    subject = open_subject(str(held_out_digits), None, Request(), image_size=None, split="test")
    flat = real.open_real(str(home / "flat"), subject, None, RULES)
    assert real.with_fifth(flat, ["inception"]) is flat
    assert flat is not None
    assert len(flat.train) == 200
