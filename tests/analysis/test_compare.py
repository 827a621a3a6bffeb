"""`epg compare`: what is better by more than chance, and which differences forbid comparing."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from epg.analysis.compare import compare
from epg.analysis.compare_report import draw, label, markdown, run_compare, short_names
from epg.cli import main
from epg.errors import ArtefactError, UserError
from epg.evaluation.receipt import Number, Receipt

SAMPLES = {
    "kind": "generator",
    "count": 1000,
    "shape": [1, 8, 8],
    "labels": "balanced",
    "weights": "a" * 64,
    "ema": "ema-0.99",
    "seed": 0,
    "sampling": {"sampler": "heun", "steps": 10, "guidance": 1.5, "interval": [0.19, 1.61]},
}


def made(fid: float = 2.0, error: float | None = 0.1, precision: float = 0.7, **changes: Any) -> Receipt:
    """A receipt; `changes` are laid over samples, reference and extractors."""
    sections: dict[str, dict[str, Any]] = {
        "samples": SAMPLES,
        "reference": {"name": "digits", "pixels": "b" * 64, "kept": 500, "sha256": ""},
        "extractors": {"inception": {"sha256": "c" * 64, "preprocessing": "TF"}},
    }
    for name, section in sections.items():
        sections[name] = {**section, **changes.pop(name, {})}
    return Receipt(
        metrics={
            "fid": Number(name="FID", value=fid, error=error, better="lower"),
            "precision": Number(name="precision", value=precision, error=0.01, better="higher"),
        },
        **sections,
        **changes,
    )


def test_the_best_and_what_is_not_clearly_worse() -> None:
    c = compare({"a": made(2.0, precision=0.70), "b": made(2.2, precision=0.75), "c": made(2.5, precision=0.60)})
    assert [cell.best for cell in c.metrics["fid"]] == [True, True, False]  # 0.2 is less than 2 * 0.14
    assert [cell.best for cell in c.metrics["precision"]] == [False, True, False]
    assert label(c.metrics["fid"]) == "FID ↓"
    assert label(c.metrics["precision"]) == "precision ↑"


def test_equal_protocols_have_no_differences() -> None:
    assert compare({"a": made(2.0), "b": made(3.0)}).differences == []


@pytest.mark.parametrize(
    ("changes", "name", "values"),
    [
        ({"reference": {"pixels": "d" * 64}}, "reference", ["digits bbbbbbbbbbbb", "digits dddddddddddd"]),
        ({"reference": {"kept": 100}}, "reference images kept", ["500", "100"]),
        ({"samples": {"count": 5000}}, "number of samples", ["1000", "5000"]),
        ({"samples": {"labels": "random"}}, "choice of labels", ["balanced", "random"]),
        ({"samples": {"shape": [1, 16, 16]}}, "image shape", ["[1, 8, 8]", "[1, 16, 16]"]),
        (
            {"extractors": {"inception": {"sha256": "e" * 64, "preprocessing": "TF"}}},
            "inception features",
            ["cccccccccccc TF", "eeeeeeeeeeee TF"],
        ),
    ],
)
def test_what_forbids_comparing(changes: dict[str, Any], name: str, values: list[str]) -> None:
    (obstacle,) = compare({"a": made(), "b": made(**changes)}).obstacles
    assert (obstacle.name, obstacle.values) == (name, values)
    assert obstacle.why


def test_fdr_over_other_features_does_not_compare() -> None:
    a, b = (
        Receipt(
            metrics={"fdr": Number(name=f"FDr ({over})", value=2.0, better="lower")},
            samples=SAMPLES,
            reference={},
            extractors={},
        )
        for over in ("classifier", "classifier, inception")
    )
    assert compare({"a": a, "b": a}).obstacles == []
    (obstacle,) = compare({"a": a, "b": b}).obstacles
    assert obstacle.values == ["FDr (classifier)", "FDr (classifier, inception)"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"sampling": {**SAMPLES["sampling"], "guidance": 2.0}}, "guidance"),  # type: ignore[dict-item]
        ({"sampling": {**SAMPLES["sampling"], "steps": 20}}, "steps"),  # type: ignore[dict-item]
        ({"ema": "ema-0.9"}, "EMA"),
        ({"weights": "f" * 64}, "weights"),
        ({"seed": 1}, "seed"),
    ],
)
def test_other_models_and_settings_are_named_and_allowed(change: dict[str, Any], name: str) -> None:
    c = compare({"a": made(), "b": made(samples=change)})
    assert [d.name for d in c.differences] == [name]
    assert c.obstacles == []


def test_the_same_images_from_the_cache_or_a_file_are_the_same_reference() -> None:
    assert compare({"a": made(), "b": made(reference={"sha256": "9" * 64})}).differences == []


def test_an_extractor_that_one_receipt_lacks_is_no_obstacle() -> None:
    other = {"encoder": {"sha256": "1" * 64, "preprocessing": "x"}}
    c = compare({"a": made(), "b": made(extractors=other)})
    assert c.obstacles == []


def test_floors_are_no_contest() -> None:
    def with_floor(value: float) -> Receipt:
        receipt = made()
        floor = Number(name="floor", value=value, better="lower")
        return receipt.model_copy(update={"metrics": {**receipt.metrics, "fid_floor": floor}})

    c = compare({"a": with_floor(1.0), "b": with_floor(1.1)})
    assert not any(cell.best for cell in c.metrics["fid_floor"])
    assert len(draw(c).axes) == 2  # a line in FID's panel, no panel of its own


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "run").mkdir()
    made(2.0).write(tmp_path / "run" / "evaluation.json")
    made(2.5, samples={"count": 50}).write(tmp_path / "other.json")
    return [tmp_path / "run", tmp_path / "other.json"]


def test_command_writes_every_format(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = [str(tmp_path / "out" / f"table{ending}") for ending in (".md", ".json", ".png")]
    assert main(["compare", *map(str, files), "--out", *out]) == 0
    assert "not comparable because of the number of samples" in " ".join(capsys.readouterr().out.split())
    page = Path(out[0]).read_text().splitlines()
    assert page[0] == "|  | run/evaluation | other |"
    assert page[2] == "| FID ↓ | **2 ± 0.1** | 2.5 ± 0.1 |"
    assert page[-1].startswith("- not comparable because of the number of samples")
    content = json.loads(Path(out[1]).read_text())
    assert content["metrics"]["fid"]["run/evaluation"]["best"] is True
    assert content["differences"][0]["name"] == "number of samples"
    assert Image.open(out[2]).size[0] > 500


def test_markdown_keeps_its_columns_whatever_the_names() -> None:
    lines = markdown(compare({"a|b": made(), "c": made(samples={"labels": "x | y"})})).splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}) == 1


def test_what_cannot_be_compared_is_refused(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least two"):
        run_compare(files[:1])
    with pytest.raises(UserError, match="named twice"):
        run_compare([files[1], files[1]])
    with pytest.raises(UserError, match=r"table\.xls: ends in none of"):
        run_compare(files, [Path("table.xls")])
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ArtefactError, match="not a receipt"):
        run_compare([*files, tmp_path / "broken.json"])


def test_names_are_what_differs() -> None:
    paths = [Path(f"/x/runs/{name}/evaluation.json") for name in ("a", "b")]
    assert short_names(paths) == ["a", "b"]
    assert short_names([Path("/x/a/1.json"), Path("/x/a/b/1.json")]) == ["1", "b/1"]
