"""Labels go by class name wherever a judge meets images, and what cannot be judged is said, not computed."""

import contextlib
import errno
import io
from pathlib import Path

import numpy as np
import pytest

from epg.cli import main
from epg.evaluation import receipt
from epg.evaluation.metrics.accuracy import recognised
from epg.evaluation.metrics.frechet import Moments, frechet_between, frechet_distance
from epg.evaluation.metrics.kernels import gaussian_mmd, kernel_inception_distance
from epg.evaluation.metrics.manifolds import Manifold
from epg.evaluation.metrics.score import inception_score
from epg.evaluation.nearest import nearest
from tests.evaluation.helpers import random_images
from tests.evaluation.test_sources import nhwc, write_folder
from tests.generators import save_run
from tests.helpers import tiny_config

LEVELS = {"cat": 40, "dog": 120, "emu": 200}


def animals(folder: Path, names: tuple[str, ...] = tuple(LEVELS), count: int = 12) -> Path:
    """Folders of grey images; the brightness is the class."""
    for i, name in enumerate(names):
        images = random_images(count, channels=1, seed=len(str(folder)) + i) // 8
        write_folder(folder / name, images + LEVELS[name])
    return folder


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("labels")
    animals(home / "set" / "train", count=24)
    animals(home / "set" / "test", ("cat", "emu"))
    save_run(home / "run", tiny_config())
    return home


def evaluate(home: Path, *arguments: str | Path) -> int:
    command = ["evaluate", *map(str, arguments), "--reference", str(home / "set"), "--out", str(home / "o.json")]
    return main(command)


@pytest.mark.parametrize("names", [("cat", "emu"), ("emu", "dog")])
def test_class_folders_of_samples_are_known_by_name(home: Path, names: tuple[str, ...]) -> None:
    """Two of three classes, in any order: recognised, and nothing else is counted."""
    samples = animals(home / "-".join(names), names)
    assert evaluate(home, samples, "--features", "classifier") == 0
    found = receipt.read(home / "o.json")
    assert found.metrics["accuracy"].value == 1
    assert {c.name for c in found.classes} == set(names)


def test_a_test_split_without_a_class_keeps_the_numbers_of_the_others(home: Path) -> None:
    assert evaluate(home, animals(home / "all"), "--features", "classifier") == 0
    assert receipt.read(home / "o.json").extractors["classifier"]["held_out_accuracy"] == 1


def test_a_probe_counts_the_test_split_by_name(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(home / "run"), "--data", str(home / "set"), "--levels", "0.002"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "pixels" in line and "k-NN" in line)
    assert "100.0%" in row


def test_unknown_class_folders_are_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        write_folder(home / "batches" / f"batch{i}", random_images(8, channels=1))
    assert evaluate(home, home / "batches", "--features", "classifier") == 65
    assert "has no class batch0, batch1" in capsys.readouterr().err
    assert evaluate(home, home / "batches", "--features", "classifier", "--metrics", "fd") == 0


@pytest.mark.parametrize(("label", "told"), [(9, "a label 9"), (-1, "a label -1"), (3, "a label 3")])
def test_labels_of_an_archive_outside_the_classes(
    home: Path, label: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(home / "x.npz", arr_0=nhwc(random_images(8, channels=1)), arr_1=np.full(8, label))
    assert evaluate(home, home / "x.npz", "--features", "classifier") == 65
    said = capsys.readouterr().err
    assert told in said
    assert "classes 0 to 2 (cat, dog, emu)" in said


def test_a_judge_of_another_size_is_refused_before_it_looks(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(home / "large", random_images(8, size=16, channels=1))
    words = ["--features", f"encoder={home / 'run'}"]
    assert evaluate(home, home / "large", *words) == 2
    assert "encoder: takes 8x8 grey images, but those of set are 16x16 grey" in capsys.readouterr().err
    reference = ["reference", str(home / "set"), "--image-size", "16", *words, "--out", str(home / "r")]
    assert main(reference) == 2
    assert not (home / "r").exists()
    other = ["neighbours", str(home / "large"), "--train", str(home / "set"), *words]
    assert main(other) == 2
    assert "takes 8x8 grey images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--reference", "one", "--features", "encoder={run}"], 65, "at least 2 are needed"),
        (["--reference", "few", "--features", "classifier"], 2, "few has 4 images, too few to train on"),
        (["--reference", "set", "--features", "encoder={run}", "--batch-size", "0"], 2, "--batch-size 0"),
        (["--reference", "set", "--features", "encoder={run}", "--kept", "-1"], 2, "--kept -1"),
        (["--reference", "few", "--features", "encoder={run}", "--metrics", "fd"], 0, ""),
    ],
)
def test_too_few_real_images(
    home: Path, arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(home / "one", random_images(1, channels=1))
    animals(home / "few", ("cat", "dog"), count=2)
    write_folder(home / "samples", random_images(8, channels=1))
    filled = [str(home / a) if a in ("one", "few", "set") else a.format(run=home / "run") for a in arguments]
    assert main(["evaluate", str(home / "samples"), *filled, "--out", str(home / "o.json")]) == code
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said


@pytest.mark.parametrize("out", [".", "set"])
def test_a_receipt_goes_into_no_folder(
    home: Path, out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    assert main(["evaluate", "set", "--reference", "set", "--out", out]) == 2
    assert f"--out {out}: is a folder; name a JSON file" in capsys.readouterr().err


def test_an_archive_becomes_a_reference(home: Path) -> None:
    np.savez(home / "real.npz", arr_0=nhwc(random_images(20, channels=1)))
    words = ["--features", f"encoder={home / 'run'}"]
    assert main(["reference", str(home / "real.npz"), *words, "--out", str(home / "of-npz")]) == 0
    samples = str(write_folder(home / "samples", random_images(8, channels=1)))
    out = ["--out", str(home / "o.json"), "--metrics", "fd"]
    found = []
    for reference in ("real.npz", "of-npz"):
        assert main(["evaluate", samples, "--reference", str(home / reference), *words, *out]) == 0
        found.append(receipt.read(home / "o.json").metrics["fd_encoder"])
    assert found[0] == found[1]


@pytest.mark.parametrize("prepared", [False, True])
def test_enlarged_images_of_the_reference_are_told(
    home: Path, prepared: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Three of twelve are smaller than the samples; a cached reference says so again."""
    reference = write_folder(tmp_path / "mixed", random_images(9, size=12, channels=1))
    for i, image in enumerate(random_images(3, size=5, channels=1)):
        write_folder(tmp_path / "small", image[None])
        (tmp_path / "small" / "000000.png").rename(reference / f"small{i}.png")
    if prepared:
        options = ["--image-size", "8", "--channels", "1", "--workers", "0"]
        assert main(["prepare", str(reference), str(tmp_path / "set"), *options]) == 0
        reference = tmp_path / "set"
    samples = write_folder(tmp_path / "samples", random_images(8, channels=1))
    words = ["--features", f"encoder={home / 'run'}", "--metrics", "fd", "--out", str(tmp_path / "o.json")]
    for _ in range(2):
        capsys.readouterr()
        assert main(["evaluate", str(samples), "--reference", str(reference), *words]) == 0
        found = receipt.read(tmp_path / "o.json")
        assert any(note.endswith("blurred samples look right beside them") for note in found.warnings)
        assert found.reference["enlarged"] in (2, 3)  # a fifth is set aside
        assert "smaller than 8x8 and have been enlarged" in capsys.readouterr().err


def test_the_receipt_is_there_although_the_table_cannot_be_shown(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Standard output on a full disk, which may end the command with an error of its own."""
    out = tmp_path / "o.json"
    words = ["--features", f"encoder={home / 'run'}", "--metrics", "fd", "--out", str(out)]
    monkeypatch.setattr("sys.stdout", FullDisk())
    with contextlib.suppress(OSError):
        main(["evaluate", str(home / "set" / "test"), "--reference", str(home / "set"), *words])
    monkeypatch.undo()
    assert receipt.read(out).metrics["fd_encoder"].value >= 0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 39])
def test_features_that_are_not_finite_give_no_number(wrong: float, place: int) -> None:
    good = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    bad = good.copy()
    bad[place, 1] = wrong
    narrow, wide = good[:3], np.concatenate([bad[place : place + 1], good[:2]])
    nothing = Moments(40, np.zeros(4), np.full((4, 4), wrong))
    measures = [
        lambda: frechet_between(good, bad),
        lambda: frechet_between(narrow, wide),  # fewer images than dimensions take another way
        lambda: frechet_distance(nothing, nothing),
        lambda: Manifold(bad),
        lambda: kernel_inception_distance(good, bad, subsets=1, subset_size=10),
        lambda: gaussian_mmd(bad, good),
        lambda: inception_score(bad),
        lambda: recognised(bad, np.zeros(40, np.int64), tuple("abcd")),
        lambda: nearest(good, bad),
        lambda: nearest(bad, good),
    ]
    for measure in measures:
        with pytest.raises(ValueError, match="not finite"):
            measure()
