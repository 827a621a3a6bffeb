"""`epg report` from its files alone: what is shown, what is left out, what hostile files do to it."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from epg.checkpoint.lock import locked
from epg.cli import main
from epg.evaluation.receipt import Number, Receipt
from epg.report import page
from epg.report.charts import Line, Scale, chart, short
from epg.report.curves import ratios
from epg.report.pictures import picture, spread_out
from epg.report.run_files import read_runs
from epg.runs import train
from tests.training.test_loop import tiny

VOID = {"meta", "img", "input", "path", "circle"}
TRAINING = {"steps": 4, "preview_every": 2, "checkpoint_every": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, and a diffusion model from scratch with receipts along the way and analyses."""
    folder = tmp_path_factory.mktemp("report")
    train(tiny("pretraining", training=TRAINING), folder / "pretraining")
    train(tiny("diffusion", training=TRAINING), folder / "diffusion", encoder=folder / "pretraining")
    train(tiny("diffusion", training={**TRAINING, "steps": 6}, seed=1), folder / "scratch")
    for step, value in ((2, 9.0), (4, 3.0), (6, 2.5)):
        receipt_of(value, "a & b").write(folder / "scratch" / "evaluations" / f"step-{step:08d}.json")
    receipt_of(4.0, "a & b", count=99).write(folder / "diffusion" / "evaluation.json")
    analysis = folder / "scratch" / "analysis"
    analysis.mkdir()
    linear = {"linear/0.1": 1.5, "linear/1": 0.5, "linear/mean": 0.9}
    (analysis / "denoising.json").write_text(json.dumps({"linear": linear}))
    (analysis / "neighbours.json").write_text(json.dumps({"spaces": [{"space": "pixel", "verdict": "no <copies>"}]}))
    for name in ("neighbours-pixel", "denoising"):
        Image.new("RGB", (30, 20)).save(analysis / f"{name}.png")
    return folder


def receipt_of(value: float, warning: str, count: int = 100) -> Receipt:
    numbers = {
        "fd_classifier": Number(name="Frechet distance", value=value, error=0.2, better="lower"),
        "fd_classifier_floor": Number(name="Frechet distance of real images", value=1.0, error=0.1, better="lower"),
    }
    return Receipt(metrics=numbers, samples={"count": count}, reference={}, extractors={}, warnings=[warning])


def written(folder: Path, *arguments: str) -> str:
    """The page of these runs."""
    file = folder / "page.html"
    assert main(["report", *arguments, "--out", str(file)]) == 0
    return file.read_text()


class Tags(HTMLParser):
    """Every tag is closed, and nothing is fetched from anywhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.titles: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href"):
                assert value is not None
                assert value.startswith(("data:image/", "#")), value[:80]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def test_runs_side_by_side(made: Path, tmp_path: Path) -> None:
    """A folder of runs: everything that there is of them, and what to do for the rest."""
    text = written(tmp_path, str(made))
    tags = Tags(text)
    assert tags.open == []
    assert tags.titles == [
        *("Runs", "Samples over training", "Quality over training", "Judged", "Losses", "Loss by noise level"),
        *(
            "Against the best linear denoiser",
            "Spread of features",
            "What the encoder sees",
            "What stage 1 learns from",
        ),
        *("Nearest training images", "Analyses", "Speed and health", "Settings", "How they were made"),
        "Not on this page yet",
    ]
    assert len(text) < 5e6
    assert text.count("data-step=") == 2 + 3  # previews of 4 and of 6 steps
    assert "diffusion, from the encoder pretraining, step 4" in text
    assert "scratch: from 9 to 2.5, lowest 2.5; real held-out images: 1" in text
    assert "not comparable because of the number of samples" in text
    assert "a &amp; b" in text
    assert "no &lt;copies&gt;" in text
    assert f"epg neighbours {made / 'diffusion'}" in text
    assert f"epg neighbours {made / 'scratch'}" not in text
    assert re.search(r'<th scope="row">training.steps</th><td>4</td><td>4</td><td>6</td>', text)


def test_one_run_against_its_recipe_goes_into_its_folder(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(made / "pretraining")]) == 0
    said = capsys.readouterr().out
    assert said == f"Open {made / 'pretraining' / 'report.html'} in a browser.\n"
    text = (made / "pretraining" / "report.html").read_text()
    assert "<h1>pretraining of recipe digits</h1>" in text or "<h1>pretraining of recipe test</h1>" in text
    assert "finished: 4 steps" in text
    assert main(["report", str(made / "pretraining")]) == 0  # over its own page
    assert main(["verify", str(made / "pretraining")]) == 0


def test_a_run_that_ended_early_and_one_that_trains(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(made / "scratch", tmp_path / "run")
    lines = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join(lines[:5]) + '\n{"step": 6, "lo')
    (run / "previews" / "step-00000006.png").write_bytes(b"not a picture")
    for folder in ("checkpoints", "export"):
        shutil.rmtree(run / folder)
    text = written(tmp_path, str(run))
    assert "step 5 of 6" not in text  # a picture of step 6 is there, whatever it shows
    (run / "previews" / "step-00000006.png").unlink()
    text = written(tmp_path, str(run))
    assert "not running: step 5 of 6" in text
    assert "What the encoder sees" not in text
    assert "epg features" in text
    waited: list[float] = []
    with locked(run):
        assert read_runs([run])[0].running

        def wait(seconds: float) -> None:
            waited.append(seconds)
            watched = (tmp_path / "page.html").read_text()
            assert "running: step 5 of 6" in watched
            assert 'data-seconds="30"' in watched
            monkeypatch.setattr(page.RunFiles, "running", False)

        monkeypatch.setattr(page.time, "sleep", wait)
        assert main(["report", str(run), "--out", str(tmp_path / "page.html"), "--watch"]) == 0
    assert waited == [30.0]
    assert "data-seconds" not in (tmp_path / "page.html").read_text()
    assert capsys.readouterr().out.count("page.html") == 4


def test_hostile_files_are_words_or_nothing(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "scratch", tmp_path / "<img src=x onerror=alert(1)>")
    evil = "</script><script>alert(1)</script>"
    log = [{"step": step, "loss": value, evil: 1.0, "grad_norm": 1e308} for step, value in ((1, 1e308), (2, 5e-324))]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*log, {"step": 10**400}, [1], "x"]))
    (run / "starts.jsonl").write_text(json.dumps({"command": evil, "environment": evil, "step": evil}) + "\n")
    (run / "handover.json").write_text(json.dumps({"source": evil, "generator": 3}))
    (run / "analysis" / "features.json").write_text(json.dumps({"runs": [{"name": evil}, 3]}))
    (run / "analysis" / "neighbours.json").write_text(json.dumps({"spaces": [{"space": "../../x"}, 3]}))
    (run / "analysis" / "denoising.json").write_text(json.dumps({"linear": {"linear/x": 1, "linear/1": "y"}}))
    text = written(tmp_path, str(run), str(made / "diffusion"))
    assert Tags(text).open == []
    assert "onerror=alert(1)>" not in text
    assert evil not in text
    assert text.count("<script>") == 1


def test_what_is_no_run_is_refused(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.html").write_text("<p>mine")
    for arguments, told in (
        ([str(tmp_path)], "no run folder (it has no config.yaml)"),
        ([], "pass at least one run folder"),
        ([str(made / "scratch")] * 2, "named twice"),
        ([str(made / "scratch"), "--out", str(tmp_path / "page.png")], "a page ends in .html"),
        ([str(made / "scratch"), "--out", str(tmp_path / "mine.html")], "no page of epg report"),
    ):
        assert main(["report", *arguments]) in (2, 74, 77)
        assert told in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "mine.html").read_text() == "<p>mine"


def test_pictures_fit_their_budget(tmp_path: Path) -> None:
    Image.effect_noise((1500, 1500), 90).convert("RGB").save(tmp_path / "large.png")
    large = picture(tmp_path / "large.png", "", 100_000)
    assert large is not None
    assert large.uri.startswith("data:image/jpeg;base64,")
    assert len(large.uri) < 140_000
    assert 256 <= large.width < 1024
    assert spread_out(range(0, 1000, 10), 4) == [0, 330, 660, 990]
    assert picture(tmp_path / "none.png", "", 1) is None


def test_charts(made: Path) -> None:
    """Steep lines are drawn on a logarithmic scale, long ones in means, and each keeps its colour."""
    long = Line("long", [(float(i), 1000.0 - i) for i in range(1000)])
    text = chart("t", [Line("none", []), long, Line("short", [(0.0, 1.0), (999.0, 2.0)], [0.5, 0.5])])
    assert text is not None
    assert text.count('class="c1 d1"') == text.count('class="c2 d2"') == 2  # in the chart and in the legend
    assert "c0" not in text
    assert text.count("<circle") == 2
    assert text.count("L") < 200
    assert "long: from 1,000 to 1, lowest 1" in text
    assert chart("nothing", [Line("a", [])]) is None
    assert chart("one", [Line("a", [(1.0, 0.0)])]) is not None
    for low, high in ((0.0, 1.0), (-3.0, 1e6), (0.002, 0.0021)):
        assert 3 <= len(Scale(low, high, 0, 1).ticks()) <= 7
    assert Scale(1, 1000, 0, 1, log=True).ticks() == [1, 10, 100, 1000]
    assert Scale(2, 6, 0, 1, log=True)(12**0.5) == pytest.approx(0.5)
    assert [short(x) for x in (0.00012345, 12.345, 2535.0, 600000.0, 2e6)] == [
        "0.000123",
        "12.3",
        "2,535",
        "600k",
        "2M",
    ]
    assert list(ratios(read_runs([made / "scratch"])[0])) == [(0.1, 1.5), (1.0, 0.5)]
