"""S4: a configuration chooses registered names and numbers in range; anything else is refused at once, by name."""

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from epg.cli import main
from epg.config.complaints import complaints
from epg.config.recipe import read_recipe, recipe_names, run_config
from epg.config.settings import RunConfig
from epg.config.yaml_file import key_lines, read_yaml
from epg.errors import UserError
from tests.security.configs import FLAGS, GOOD, hostile

HOSTILE = list(hostile())


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Imports and the like are not part of the seconds that a refusal may take."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "good.yaml").write_text(GOOD)
    assert main(["pretrain", str(folder / "good.yaml"), "--out", str(folder / "run")]) == 0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder inside a folder that must stay as it is."""
    (inside := tmp_path / "outer" / "inner").mkdir(parents=True)
    monkeypatch.chdir(inside)
    monkeypatch.setenv("HOME", str(tmp_path))
    (inside / "good.yaml").write_text(GOOD)
    (inside / "bad.yaml").write_text("base: bad.yaml\n")
    return inside


def outcome(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str, float]:
    """Exit code, everything printed, seconds."""
    start = time.process_time()
    try:
        code: Any = main(arguments)
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return code, printed.out + printed.err, time.process_time() - start


def outside(folder: Path) -> list[Path]:
    """Everything there is but the folder for runs."""
    return [p for p in sorted(folder.parents[1].rglob("*")) if folder / "runs" not in (p, *p.parents)]


def test_the_good_one_trains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Control: what is refused below is refused for what was changed."""
    code, printed, _ = outcome(["pretrain", "good.yaml"], capsys)
    assert code == 0, printed
    assert (folder / "runs" / "good" / "pretraining" / "checkpoints").is_dir()


def test_there_are_two_hundred() -> None:
    assert len(HOSTILE) >= 200
    assert len({name for name, *_ in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("part", range(10))
def test_hostile_files(part: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content, word in HOSTILE[part::10]:
        (folder / "evil.yaml").write_bytes(content.encode(errors="surrogateescape"))
        before = outside(folder)
        code, printed, seconds = outcome(["pretrain", "evil.yaml"], capsys)
        told = f"{name}: {code}\n{printed[:1000]}"
        assert code in (2, 65), told
        assert "Traceback" not in printed, told
        assert re.search(word, printed), told
        assert seconds <= 2, f"{seconds} s: {told}"
        assert len(printed) < 10_000, told
        assert outside(folder) == before, told
        assert not list(folder.rglob("step-*")), told


@pytest.mark.parametrize("number", range(len(FLAGS)))
def test_hostile_flags(number: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = outside(folder)
    code, printed, seconds = outcome(["pretrain", "good.yaml", *FLAGS[number]], capsys)
    assert code in (2, 65, 74), printed
    assert "Traceback" not in printed
    key = FLAGS[number][0].split(".")[-1].lstrip("-")
    assert key in printed or key.replace("-", "_") in printed, printed
    assert seconds <= 2
    assert outside(folder) == before


def test_a_refusal_names_key_and_line(folder: Path) -> None:
    text = GOOD.replace("steps: 1", "stpes: 1").replace("shift: 1.0", "shift: wide")
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        run_config("mine.yaml", "pretraining")
    message = str(error.value)
    assert "training.stpes: no such setting; did you mean steps? (mine.yaml line 12)" in message
    assert re.search(r"noise\.shift: .*valid number.* \(mine\.yaml line 8\)", message)
    assert "training.steps: Field required (mine.yaml line 12)" in message


def test_values_out_of_range_name_the_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.yaml").write_text(GOOD.replace("patch_size: 4", "patch_size: 3"))
    assert main(["pretrain", "mine.yaml"]) == 2
    assert "--data.image-size 8: not a multiple of --model.patch-size 3 (mine.yaml line 1)" in capsys.readouterr().err


def test_every_unknown_key_gets_a_suggestion() -> None:
    """In every section, for a slip in each of its keys."""
    base = run_config("digits", "pretraining").model_dump(mode="json")

    def sections(content: dict[str, Any]) -> list[dict[str, Any]]:
        inner = [s for value in content.values() if isinstance(value, dict) for s in sections(value)]
        return [content, *inner]

    checked = 0
    for section in sections(base):
        for key in [k for k in section if len(k) > 3]:
            section[f"{key}x"] = 1
            with pytest.raises(ValueError, match=f"{key}x") as error:
                RunConfig.model_validate(base)
            (line,) = complaints(error.value, RunConfig)
            assert re.search(rf"no such setting; did you mean {key}\?", line), line
            del section[f"{key}x"]
            checked += 1
    assert checked > 50


def test_lines_of_keys(folder: Path) -> None:
    lines = key_lines(folder / "good.yaml")
    assert lines["data",] == lines["data", "source"] == 1
    assert lines["model", "encoder", "width"] == 4
    assert lines["pretraining", "training", "steps"] == 12


def test_recipes_of_the_package_are_read_as_yaml_reads_them() -> None:
    for name in recipe_names():
        path = Path(read_recipe.__globals__["RECIPE_FOLDER"]) / f"{name}.yaml"
        assert read_yaml(path) == yaml.safe_load(path.read_text())


def test_control_plain_yaml_believes_it(folder: Path) -> None:
    """What a loader without these checks does with some of them."""
    (folder / "evil.yaml").write_text(f'a: !!python/object/apply:os.mkdir ["{folder / "made"}"]')
    yaml.unsafe_load((folder / "evil.yaml").read_text())
    assert (folder / "made").is_dir()
    laughs = next(content for name, content, _ in HOSTILE if name == "billion laughs")
    counted = yaml.safe_load(laughs)["a9"]
    assert len(counted) ** 10 > 10**9
    assert yaml.safe_load("a: 1\na: 2") == {"a": 2}
    with pytest.raises(ValueError, match="4300"):
        yaml.safe_load("a: " + "9" * 5000)
    assert os.path.join("runs", "../../evil").startswith("runs")
