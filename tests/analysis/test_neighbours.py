"""`epg neighbours`: copies are flagged and named, new images are not; which images count as held out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from epg.analysis.neighbours import find_neighbours, pixels, run_neighbours, sheet
from epg.cli import main
from epg.config.sections import DataConfig
from epg.data.dataset import open_dataset
from epg.errors import UserError
from epg.evaluation.held_out import training_and_held_out
from epg.evaluation.sources import DatasetSource, TensorSource
from epg.runs import train
from tests.test_runs import folder_of_images
from tests.training.test_loop import tiny

DIGITS = DataConfig(source="digits", image_size=8, channels=1, normalization="symmetric")


def saved(folder: Path, source: DatasetSource, places: range) -> str:
    folder.mkdir()
    for i in places:
        Image.fromarray(source.read(i, i + 1)[0, 0].numpy()).save(folder / f"{i:04d}.png")
    return str(folder)


@pytest.fixture(scope="module")
def digits() -> tuple[DatasetSource, DatasetSource]:
    return DatasetSource(open_dataset("digits", image_size=8, channels=1), "train"), DatasetSource(
        open_dataset("digits", image_size=8, channels=1, split="test"), "test"
    )


def test_training_images_as_samples_are_flagged_and_named(
    digits: tuple[DatasetSource, DatasetSource], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = saved(tmp_path / "copies", digits[0], range(100, 200))
    assert main(["neighbours", copies, "--train", "digits", "--out", str(tmp_path / "out")]) == 0
    assert "copies training images: 100% of samples outright" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "neighbours.json").read_text())
    (pixel,) = written["spaces"]
    assert (pixel["score"], pixel["copies"]) == (1, 1)
    assert (pixel["samples"], pixel["train"], pixel["held_out"]) == (100, 1438, 359)
    first = pixel["most_suspicious"][0]
    assert first["distance"] == 0
    assert first["training_image"] == digits[0].dataset.describe(100 + first["sample"])
    assert Image.open(tmp_path / "out" / "neighbours.png").size[0] > 300


def test_held_out_images_as_samples_are_not(digits: tuple[DatasetSource, DatasetSource], tmp_path: Path) -> None:
    new = saved(tmp_path / "new", digits[1], range(180))
    other = saved(tmp_path / "other", digits[1], range(180, 359))
    (result,) = run_neighbours(new, train="digits", held_out=other, out=tmp_path / "out") or []
    assert result.held_out == 179
    assert not result.significant
    assert result.fair


def test_a_generator_with_its_own_images(tmp_path: Path) -> None:
    """Half of the training images were left out: these are held out too."""
    run = tmp_path / "run"
    train(tiny("diffusion", data={"fraction": 0.5}, training={"steps": 2, "checkpoint_every": 2}), run)
    results = run_neighbours(str(run), count=20, features=[f"encoder={run}"])
    assert results is not None
    assert [r.space for r in results] == ["pixel", "encoder"]
    assert [(r.samples, r.train, r.held_out) for r in results] == [(20, 721, 1438 - 721 + 359)] * 2
    assert (run / "analysis" / "neighbours-encoder.png").is_file()


def test_held_out_images_never_include_a_training_image() -> None:
    used, unseen = training_and_held_out(DIGITS.model_copy(update={"per_class": 20}))
    assert (len(used), len(unseen)) == (200, 1597)
    names = [{dataset.describe(i) for i in range(len(dataset))} for dataset in (used, unseen)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 1797
    pixels_of = [unseen[i][0] for i in (0, 358, 359, 1596)]
    assert len({p.tobytes() for p in pixels_of}) == 4
    assert len(unseen.fingerprint()) == 64


def test_without_held_out_images_one_is_asked_for(tmp_path: Path) -> None:
    images = str(folder_of_images(tmp_path / "images"))
    data = DataConfig(source=images, image_size=8)
    with pytest.raises(UserError, match=r"--held-out.*no test split"):
        training_and_held_out(data)
    _, unseen = training_and_held_out(data, held_out=str(folder_of_images(tmp_path / "others", each=3)))
    assert len(unseen) == 6


def test_samples_without_a_run_need_the_training_images(
    digits: tuple[DatasetSource, DatasetSource], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--train"):
        run_neighbours(saved(tmp_path / "new", digits[1], range(3)))


def test_pixels_are_grey_levels_whatever_the_size() -> None:
    images = torch.zeros(2, 3, 64, 48, dtype=torch.uint8)
    images[1] = 40
    a, b = pixels((3, 64, 48)).compute(images)["features"]
    assert a.shape == (3 * 32 * 32,)
    assert float((a - b).norm()) == pytest.approx(40, rel=1e-5)


def test_the_sheet_begins_with_the_most_suspicious(digits: tuple[DatasetSource, DatasetSource]) -> None:
    train_set, held_out = digits
    images = torch.cat([held_out.read(0, 9), train_set.read(5, 6)])
    samples = TensorSource(images)
    (found,) = find_neighbours(samples, train_set, held_out, [pixels((1, 8, 8))]) or []
    assert found.order[0] == 9
    assert found.found.train_index[9, 0] == 5
    picture = np.asarray(sheet(found, samples, train_set, held_out, rows=4))
    tile = picture[16 + 4 : 16 + 4 + 48, 4:52]
    expected = np.kron(images[9, 0].numpy(), np.ones((6, 6)))
    np.testing.assert_array_equal(tile[..., 0], expected)
    np.testing.assert_array_equal(tile, picture[20:68, 4 + 52 : 4 + 52 + 48])  # and beside it the image it copies
