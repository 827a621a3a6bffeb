"""What changes around a run while it trains: its images, its folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from epg.checkpoint import checkpoint
from epg.errors import UserError
from epg.runs import prepare_run, train
from tests.training.test_loop import tiny


def pictures(folder: Path, count: int = 20) -> Path:
    """Two classes of small grey images."""
    for i in range(count):
        file = folder / "ab"[i % 2] / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(256, size=(8, 8), dtype=np.uint8)).save(file)
    return folder


def replace(file: Path) -> None:
    Image.new("L", (8, 8)).save(file)


CHANGES: list[Callable[[Path], None]] = [
    lambda data: (data / "a" / "000.png").unlink(),
    lambda data: replace(data / "b" / "001.png"),
    lambda data: replace(data / "b" / "more.png"),
    shutil.rmtree,
]


@pytest.mark.parametrize("change", CHANGES, ids=["deleted", "replaced", "added", "all deleted"])
def test_images_that_change_meanwhile_are_noticed_at_the_next_start(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    data = pictures(tmp_path / "data")
    shutil.copytree(data, tmp_path / "copy")
    config = tiny("diffusion", data={"source": str(data), "channels": 1})
    run = prepare_run(config, tmp_path / "run")
    before = run.dataset.fingerprint()
    change(data)
    run.trainer.run()
    assert {checkpoint.read(p).state["data"] for p in checkpoint.listing(tmp_path / "run" / "checkpoints")} == {before}
    with pytest.raises(UserError, match=r"data\.source: images |data.source .*: does not exist"):
        train(config, tmp_path / "run")
    restored = config.model_copy(update={"data": config.data.model_copy(update={"source": str(tmp_path / "copy")})})
    train(restored, tmp_path / "run")  # the images as they were, wherever they lie
