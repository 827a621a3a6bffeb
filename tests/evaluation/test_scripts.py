"""The scripts behind the figures of docs/evaluation.md: they run, and each fault moves the metric that it should."""

import json
from pathlib import Path

import pytest

from epg.evaluation.extractors import indomain
from tests.helpers import script


def test_time_and_memory_of_metrics(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["metrics.py", "--samples", "300", "--reference", "200", "--width", "64"]
    monkeypatch.setattr("sys.argv", arguments)
    script("metrics").main()
    figures = json.loads(capsys.readouterr().out)
    assert set(figures["results"]) == {"fid", "pr", "kid", "is"}
    assert all(part["peak_gib"] > 0 for part in figures["results"].values())


def test_each_fault_moves_its_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPG_CACHE", str(tmp_path))
    monkeypatch.setattr(indomain, "FEWEST_STEPS", 150)
    sensitivity = script("sensitivity")
    noisy = sensitivity.noisy
    monkeypatch.setattr(sensitivity, "noisy", lambda images, std: noisy(images, 6 * std))  # digits have 17 levels
    sensitivity.main(["digits", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    value = {name: {key: number[0] for key, number in numbers.items()} for name, numbers in rows.items()}
    floor = value["held-out images (floor)"]
    assert value["blurred, sigma 1 pixel"]["fd_classifier"] > 5 * floor["fd_classifier"]
    assert value["blurred, sigma 1 pixel"]["precision_classifier"] < floor["precision_classifier"] - 0.3
    assert value["noise, std 10 of 255"]["fd_classifier"] > 1.3 * floor["fd_classifier"]
    assert value["noise, std 10 of 255"]["density_classifier"] < floor["density_classifier"] - 0.2
    missing = value["class 3 missing"]
    assert missing["recall_classifier"] < floor["recall_classifier"] - 0.05
    assert missing["precision_classifier"] > floor["precision_classifier"] - 0.05
    repeated = value["each twentieth image 20 times"]
    assert repeated["recall_classifier"] < 0.1
    assert repeated["coverage_classifier"] < 0.5 * floor["coverage_classifier"]
    copied = value["training images (memorised)"]
    assert copied["precision_classifier"] == 1
    assert copied["memorisation"] == pytest.approx(1)
    assert abs(floor["memorisation"]) < 0.5
    shuffled = value["labels shuffled"]
    assert shuffled["accuracy"] < 0.3 < floor["accuracy"]
    assert shuffled["fd_classifier"] == floor["fd_classifier"]
