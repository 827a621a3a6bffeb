"""Every verb, and every option of it that is a path, against every kind of bad path: one line, a documented exit code.

The verbs and their options are walked, so that a new one is covered without a word here.
"""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from PIL import Image

from epg.cli import VERBS, main
from epg.cli.named import refuse_no_guide, refuse_no_images, refuse_no_samples, refuse_no_weights
from epg.cli.paths import PathOption, path_options
from epg.errors import UserError
from tests.generators import save_run
from tests.helpers import tiny_config
from tests.test_study import written

CODES = {2, 65, 70, 73, 74, 77}
SECONDS = 90  # for one command, on a busy machine
RESULTS = ("out", "sheet", "report", "parquet")  # where a path that is not there, or holds something else, is right

# What a verb needs besides the path under test: {run} is a run, {set} a folder of images, {out} a place for results.
NEEDS: dict[str, dict[str, str]] = {
    "quickstart": {"data": "{empty}", "out": "{out}", "minutes": "0.001"},
    "prepare": {"source": "{set}", "out": "{out}", "image_size": "8", "workers": "0"},
    "inspect": {"dataset": "{set}", "image_size": "8", "workers": "0", "sheet": "{out}.png"},
    "pretrain": {"recipe": "digits", "out": "{out}"},
    "finetune": {"recipe": "digits", "out": "{out}", "encoder": "{run}"},
    "sample": {"checkpoint": "{run}", "out": "{out}", "count": "1", "steps": "2"},
    "demo": {"model": "{run}"},
    "schema": {},
    "completion": {},
    "evaluate": {"samples": "{run}", "out": "{out}", "count": "20", "reference": "{set}", "features": "encoder={run}"},
    "reference": {"dataset": "{set}", "out": "{out}", "features": "encoder={run}", "image_size": "8"},
    "compare": {"receipts": "{run}"},
    "report": {"runs": "{run}", "out": "{out}.html"},
    "sweep": {"run": "{run}", "out": "{out}", "guidance": "1", "count": "2", "features": "encoder={run}"},
    "neighbours": {"samples": "{run}", "out": "{out}", "count": "2"},
    "denoising": {"model": "{run}", "out": "{out}", "levels": "2", "count": "2"},
    "probe": {"encoder": "{run}", "out": "{out}", "levels": "1", "train_count": "20", "test_count": "20"},
    "features": {"runs": "{run}", "out": "{out}", "levels": "1", "count": "20"},
    "convert": {"source": "{run}", "out": "{out}", "to": "weights"},
    "verify": {"run": "{run}"},
    "ema": {"run": "{run}", "out": "{out}", "sigma_rel": "0.1"},
    "info": {},
    "study": {"file": "{study}", "out": "{out}"},
    "bench": {"recipe": "digits", "stages": "diffusion", "seconds": "0", "json": "{out}.json"},
}
TINY = [
    *("--training.steps", "1", "--training.batch-size", "2", "--training.device", "cpu", "--training.trackers"),
    *("--training.preview-every", "0", "--data.workers", "0", "--model.encoder.depth", "1"),
]


def options() -> Iterator[tuple[str, PathOption]]:
    for verb, kind in VERBS.items():
        for option in path_options(kind):
            yield verb, option


class Place:
    """A scratch folder with one bad path of every kind."""

    def __init__(self, root: Path) -> None:
        self.root, self.server = root, socket.socket(socket.AF_UNIX)
        (root / "empty").mkdir(parents=True)
        (root / "file").write_text("this is a line of text\n")
        Image.new("RGB", (8, 8)).save(root / "picture.png")
        os.symlink(root / "loop", root / "loop")
        os.mkfifo(root / "pipe")
        os.mkfifo(root / "pipe.yaml")
        self.server.bind(str(root / "socket"))
        (root / "foreign").mkdir()
        (root / "foreign" / "thesis.txt").write_text("years of work\n")
        (root / "gone.txt").symlink_to(root / "nowhere")
        for name in ("manifest.json", "config.json", "a.png", "model.safetensors", "samples.npz", "a.parquet"):
            (pipes := root / f"pipes-{name}").mkdir()
            os.mkfifo(pipes / name)

    def impossible(self) -> dict[str, str]:
        """Paths from which nothing can be read, and to which nothing can be written."""
        root = self.root
        return {
            "below a file": str(root / "file" / "below"),
            "loop of links": str(root / "loop"),
            "below a loop": str(root / "loop" / "below"),
            "over-long name": str(root / ("n" * 300)),
            "over-long path": str(root / "/".join(["folder"] * 900)),
            "NUL byte": f"{root}/a\0b",
            "pipe": str(root / "pipe"),
            "pipe as recipe": str(root / "pipe.yaml"),
            "socket": str(root / "socket"),
            "endless device": "/dev/zero",
            "full device": "/dev/full",
            "below a device": "/dev/null/x",
            "nothing": "",
            "root": "/",
            "no text": os.fsdecode(os.fsencode(root) + b"/caf\xe9"),
            "control characters": f"{root}/a\x1b[31m\nb",
            "looks like a flag": "-x",
            "nobody's home": "~nobody-of-this-name/x",
            "folder of others": str(root / "foreign"),
        }

    def unreadable(self) -> dict[str, str]:
        """Paths from which nothing can be read; some can be written to."""
        root = self.root
        return {
            "missing": str(root / "missing" / "deeper"),
            "empty folder": str(root / "empty"),
            "file": str(root / "file"),
            "picture": str(root / "picture.png"),
            "broken link": str(root / "gone.txt"),
            "here": ".",
            "of a process": "/proc/self/environ",
            **{f"folder with a pipe as {p.name.removeprefix('pipes-')}": str(p) for p in root.glob("pipes-*")},
        }


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "bad")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("good")
    for i in range(4):
        (root / "set" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(root / "set" / "ab"[i % 2] / f"{i}.png")
    (root / "empty").mkdir()
    return {
        "run": save_run(root / "run", tiny_config(model={"num_classes": 10})),
        "set": root / "set",
        "empty": root / "empty",
        "study": written(root, seeds=[0], arms={"scratch": {"settings": {"training": {"steps": 1}}}}),
    }


def command(verb: str, option: PathOption, path: str, good: dict[str, Path], out: Path) -> list[str]:
    """The command line that gives `path` to this option and what is needed to the others."""
    words = {name: value.format(**good, out=out) for name, value in NEEDS[verb].items()} | {option.name: path}
    positional = [o.name for o in path_options(VERBS[verb]) if o.positional and o.name in words]
    flags = [
        w for name, value in words.items() if name not in positional for w in (f"--{name.replace('_', '-')}", value)
    ]
    recipe = TINY if verb in ("pretrain", "finetune", "bench") else []
    return [verb, *(words[name] for name in positional), *flags, *recipe]


def outcome(arguments: list[str]) -> int:
    """The exit code; a command that takes too long is a failure, as one that waits for a pipe does."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"more than {SECONDS} s: epg {' '.join(arguments)}")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        return main(arguments)
    except SystemExit as end:  # of the parser
        return int(end.code or 0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_the_walk_knows_what_every_verb_needs() -> None:
    assert NEEDS.keys() == VERBS.keys()
    walked = {(verb, option.name) for verb, option in options()}
    texts = {
        (verb, field.name)
        for verb, kind in VERBS.items()
        for field in dataclasses.fields(kind)
        if "Path" in str(field.type)
    }
    assert texts <= walked
    assert len(walked) >= 45


@pytest.mark.parametrize(("verb", "option"), [(v, o) for v, o in options()], ids=lambda x: getattr(x, "name", x))
def test_bad_paths_end_in_one_line(
    verb: str,
    option: PathOption,
    place: Place,
    good: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (cwd := tmp_path / "cwd").mkdir()
    monkeypatch.chdir(cwd)
    problems = []
    kinds = place.impossible() | ({} if option.name in RESULTS else place.unreadable())
    for number, (kind, path) in enumerate(kinds.items()):
        arguments = command(verb, option, path, good, tmp_path / f"out{number}")
        try:
            code = outcome(arguments)
        except BaseException as error:
            problems.append(f"{kind}: {type(error).__name__}: {str(error)[:300]}")
            capfd.readouterr()
            continue
        said = capfd.readouterr().err
        last = said.strip().splitlines()[-1:] or [""]
        if code not in (0, *CODES):
            problems.append(f"{kind}: exit code {code}: {last}")
        elif code and (not last[0].startswith("error: ") and not said.startswith("╭")):
            problems.append(f"{kind}: {said[-300:]}")
        elif len(last[0]) > 600:
            problems.append(f"{kind}: {len(last[0])} characters: {last[0][:200]}")
    assert (place.root / "foreign" / "thesis.txt").read_text() == "years of work\n"
    assert not problems, "\n".join(problems)


LATE = {  # looked at by readers alone
    *(("convert", "recipe"), ("probe", "recipe")),  # of weight files that no recipe of ours fits
    *(("compare", "out"), ("prepare", "out")),  # no torch, and images are listed first
}
MISSPELT = ["pretrain digitz", "finetune digitz --from-scratch", "bench digitz", "info digitz"]
RUNNER = """
import json, sys
from epg.cli import main
results = []
for command in json.load(open(sys.argv[1])):
    try:
        code = main(command)
    except SystemExit as end:
        code = end.code
    results.append([code, "torch" in sys.modules])
json.dump(results, open(sys.argv[2], "w"))
"""


def test_what_is_not_there_is_told_before_torch_is_imported(good: dict[str, Path], tmp_path: Path) -> None:
    """Torch takes seconds. All commands share a process; the first of them that imports it is named."""
    (tmp_path / "file").touch()
    nowhere, below = str(tmp_path / "nowhere"), str(tmp_path / "file" / "below")
    commands = [
        command(verb, option, below if option.name in (*RESULTS, "json") else nowhere, good, tmp_path / "out")
        for verb, option in options()
        if (verb, option.name) not in LATE
    ]
    commands += [line.split() for line in MISSPELT]
    commands += [["pretrain", "digits", "--data.source", nowhere], ["pretrain", "digits", "--data.sauce", nowhere]]
    commands += [["finetune", "digits", "--from", nowhere], *([verb, "--no-such-option", "3"] for verb in VERBS)]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    places = [str(tmp_path / "commands.json"), str(tmp_path / "results.json")]
    done = subprocess.run([sys.executable, "-c", RUNNER, *places], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    taken = [(" ".join(c), code) for c, (code, torch) in zip(commands, results, strict=True) if torch or not code]
    assert taken[:1] == []


@pytest.mark.parametrize(
    ("refuse", "names"),
    [
        (refuse_no_weights, ["user/repo", "user/repo@main", "user/repo:nnet.pth", "https://x.org/a.zip#sha256=0"]),
        (refuse_no_images, ["digits", "user/name", "s3://place/set", "hf://datasets/user/name", "(in memory)"]),
        (refuse_no_samples, ["digits", "user/name", "s3://place/set", "https://x.org/a.zip", "samples.npz"]),
        (refuse_no_guide, ["internal", "user/repo"]),
    ],
)
def test_what_is_no_path_is_left_to_its_reader(refuse: Callable[[str, str], None], names: list[str]) -> None:
    for name in names:
        refuse(name, "--data ")
    with pytest.raises(UserError):
        refuse("nowhere", "--data ")


@pytest.mark.parametrize("refuse", [refuse_no_images, refuse_no_weights, refuse_no_samples])
@pytest.mark.parametrize("name", ["data/cifar10", "runs/digits"])
def test_usual_places_of_sets_and_runs_are_not_looked_for_on_the_hub(
    refuse: Callable[[str, str], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=name):
        refuse(name, "")


def test_a_path_is_refused_by_the_flag_that_it_was_given_with(capsys: pytest.CaptureFixture[str]) -> None:
    """Not by the name that its field has in the code."""
    assert main(["finetune", "digits", "--from", "/dev/null"]) == 2
    assert "--from /dev/null: is a device" in capsys.readouterr().err
