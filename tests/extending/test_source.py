"""A data source from outside of the package: one class, the function that opens it, and a line of the registry."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from epg.cli import main
from epg.data.sources.base import Images, Overview, Source, SourceOptions
from epg.data.sources.names import Names
from epg.data.sources.open import SOURCES

SCHEME = "stripes:"


class Stripes(Source):
    """So many images of vertical and horizontal stripes, 12 pixels wide, computed when they are read."""

    def __init__(self, count: int) -> None:
        names = Names.of([b"stripes %d" % index for index in range(count)])
        labels = np.arange(count) % 2
        overview = Overview("every image: its number decides the direction and the distance of its stripes")
        images = Images(names, np.full(count, -1, np.int64), labels, ("across", "down"), overview)
        super().__init__("stripes", f"{SCHEME}{count}", images)

    def read(self, index: int) -> bytes:
        line = np.uint8(255) * (np.arange(12) // (1 + index % 5) % 2 == 0).astype(np.uint8)
        pixels = np.broadcast_to(line, (12, 12))
        file = io.BytesIO()
        Image.fromarray(pixels.T if self.labels[index] else pixels.copy()).save(file, "PNG")
        return file.getvalue()


def open_stripes(address: str, options: SourceOptions) -> Source | None:
    """The source of `stripes:COUNT`; None for another address."""
    return Stripes(int(address.removeprefix(SCHEME))) if address.startswith(SCHEME) else None


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    SOURCES.insert(0, open_stripes)
    yield
    SOURCES.remove(open_stripes)


def test_it_is_prepared_inspected_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out = str(tmp_path / "prepared")
    assert main(["prepare", f"{SCHEME}40", out, "--image-size", "8", "--channels", "1", "--workers", "0"]) == 0
    assert main(["inspect", out]) == 0
    said = capsys.readouterr()
    assert "across" in said.out + said.err
    small = [
        "--training.steps",
        "2",
        "--training.batch-size",
        "8",
        "--training.preview-every",
        "0",
        "--data.workers",
        "0",
    ]
    for number, source in enumerate((f"{SCHEME}40", out)):
        run = tmp_path / f"run-{number}"
        arguments = ["finetune", "digits", "--from-scratch", "--data.source", source, "--out", str(run)]
        assert main([*arguments, *small]) == 0
        export = json.loads((run / "export" / "config.json").read_text())
        assert (export["class_names"], export["class_counts"]) == (["across", "down"], [20, 20])
