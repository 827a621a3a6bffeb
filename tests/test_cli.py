"""Every verb through the real entry point, as a user starts it."""

import contextlib
import dataclasses
import io
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from epg.cli import VERBS, configure, main, wait_politely
from epg.config.recipe import recipe_names, stages_of
from epg.config.yaml_file import read_yaml
from epg.extras import install
from epg.messages import folded
from tests import started

SMALL = [
    *("--training.steps", "4", "--training.batch-size", "16", "--training.log-every", "2"),
    *("--model.encoder.depth", "1", "--model.encoder.width", "16", "--model.encoder.heads", "2"),
    *("--model.decoder.width", "16", "--model.decoder.heads", "2"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three stages trained by the commands that the help names, in a folder of their own."""
    folder = tmp_path_factory.mktemp("cli")
    done = started.epg("pretrain", "digits", *SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    for stage in ("diffusion", "consistency"):
        done = started.epg(
            *("finetune", "digits", "--stage", stage, "--encoder", "runs/digits/pretraining"), *SMALL, cwd=folder
        )
        assert done.returncode == 0, done.stderr
    return folder / "runs" / "digits"


def test_stages_leave_their_files(runs: Path) -> None:
    for stage in ("pretraining", "diffusion", "consistency"):
        run = runs / stage
        assert (run / "config.yaml").is_file()
        assert [line["step"] for line in map(json.loads, (run / "log.jsonl").read_text().splitlines())] == [2, 4]
        assert list((run / "tensorboard").glob("events*"))
        assert (run / "checkpoints" / "step-00000004" / "manifest.json").is_file()
        assert Image.open(run / "previews" / "step-00000004.png").size[0] > 100


def test_help_is_fast_and_lists_every_verb() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-m", "epg.cli", "--help"], capture_output=True, text=True)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert done.returncode == 0
    assert all(f"  {verb}" in done.stdout for verb in VERBS)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert seconds < 0.6  # of CPU time; about 0.15, and more where other processes crowd the caches


def test_help_is_one_screen_and_help_all_has_every_option() -> None:
    narrow = {"environment": {"COLUMNS": "80"}}
    short, whole = (started.epg("sample", asked, **narrow).stdout for asked in ("--help", "--help-all"))
    assert "The other 10 options: --help-all" in short
    options = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(VERBS["sample"])} - {"--checkpoint"}
    assert len({option for option in options if option not in short}) == 10
    assert all(option in whole for option in options)
    assert "--data.workers" in started.epg("pretrain", "digits", "--help-all").stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    """On one screen of 80 columns; only what the verb does is for the terminal to break."""
    done = started.epg(verb, "--help", environment={"COLUMNS": "80"})
    assert done.returncode == 0
    assert f"epg {verb}" in done.stdout
    assert len(done.stdout.splitlines()) <= 50


@pytest.mark.parametrize("width", [0, 7, 20, 80])
def test_messages_are_broken_between_words_and_copied_as_one_line(width: int) -> None:
    text = "error: try `epg sample runs/mine/diffusion --count 64`\n  second line"
    lines = folded(text, width).split("\n")
    assert [line.split() for line in lines] == [line.split() for line in text.split("\n")] or width == 7
    assert "".join(folded(text, width).split()) == "".join(text.split())
    shown = [line[i : i + width] for line in lines for i in range(0, len(line), width)] if width else []
    assert all(word in " ".join(text.split()) for part in shown for word in part.split())
    if width == 20:
        assert shown[:3] == ["error: try `epg     ", "sample              ", "runs/mine/diffusion "]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--training.compile"], True),
        (["--training.compile", "--training.tf32", "false"], True),
        (["--training.compile", "true", "--seed", "1"], True),
        (["--training.compile", "FALSE"], False),
        ([], False),
    ],
)
def test_switches_may_stand_alone(words, expected):
    config = configure("digits", "diffusion", words)
    assert config.training.compile is expected
    assert config.training.tf32 is ("tf32" not in " ".join(words))


def test_help_of_a_recipe_lists_its_fields() -> None:
    done = started.epg("finetune", "digits", "--stage", "consistency", "--help")
    assert done.returncode == 0
    assert "--objective.auxiliary-weight" in done.stdout
    assert "--training.batch-size" in done.stdout


def test_sample_writes_pictures(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "samples"
    arguments = ["--count", "5", "--classes", "3", "7", "--batch-size", "2", "--npz", "--device", "cpu"]
    assert main(["sample", str(runs / "diffusion"), "--out", str(out), *arguments]) == 0
    assert sorted(path.name for path in out.glob("0*.png")) == [f"{i:06d}.png" for i in range(5)]
    assert (out / "grid.png").is_file()
    with np.load(out / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (5, 8, 8, 1)
        assert arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].tolist() == [3, 7, 3, 7, 3]
        np.testing.assert_array_equal(np.asarray(Image.open(out / "000004.png")), arrays["arr_0"][4, :, :, 0])


def test_evaluate_writes_numbers(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    assert main(["evaluate", str(runs / "consistency"), "--count", "50", "--out", str(out), "--device", "cpu"]) == 0
    receipt = json.loads(out.read_text())
    numbers = {name: number["value"] for name, number in receipt["metrics"].items()}
    assert 0 <= numbers["accuracy"] < 0.5  # four steps teach nothing
    assert numbers["fd_classifier"] > 10 * numbers["fd_classifier_floor"]


@pytest.mark.parametrize("recipe", recipe_names())
def test_info_of_every_recipe(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", recipe]) == 0
    printed = capsys.readouterr().out
    assert all(stage in printed for stage in stages_of(recipe))
    assert "GFLOPs" in printed


def test_info_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in recipe_names())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["pretrian"], 2, ["did you mean pretrain?"]),
        (["pretrain", "nothing"], 2, ["recipe 'nothing'", "digits"]),
        (["finetune", "digits"], 2, ["--encoder", "runs/digits/pretraining", "--from-scratch"]),
        (["finetune", "digits", "--from-scratch", "--encoder", "x"], 2, ["choose one"]),
        (["finetune", "digits", "--encoder", "nowhere"], 77, ["nowhere: does not exist"]),
        (["pretrain", "digits", "--data.source", "nowhere"], 65, ["--data.source nowhere", "does not exist"]),
        (["pretrain", "digits", "--data.image-size", "9"], 2, ["--data.image-size 9", "--model.patch-size 4"]),
        (["pretrain", "digits", "--training.steps", "0", "--training.batch-size", "0"], 2, ["steps 0", "batch-size 0"]),
        (["sample", "nowhere"], 77, ["nowhere: does not exist"]),
        (["prepare", "digits", "--out", "set"], 2, ["--out: is told by its place", "epg prepare SOURCE OUT"]),
    ],
)
def test_mistakes_get_one_clear_message(
    arguments: list[str],
    code: int,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    for word in words:
        assert word in message
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("step-*"))


def test_an_unknown_flag_is_refused() -> None:
    done = started.epg("pretrain", "digits", "--training.stpes", "5")
    assert done.returncode == 2
    assert "--training.stpes" in done.stderr + done.stdout


def test_pretrained_encoder_cannot_sample(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(runs / "pretraining")]) == 77
    assert "Fine-tune it first" in capsys.readouterr().err


def test_unknown_class_suggests(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(runs / "diffusion"), "--classes", "seven", "--device", "cpu"]) == 2
    assert "--classes seven" in capsys.readouterr().err
    assert main(["sample", str(runs / "diffusion"), "--classes", "10", "--device", "cpu"]) == 2
    assert "0 to 9" in capsys.readouterr().err


# What is said can be done ---------------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for i in range(12):
        (folder := tmp_path / "my set" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), 50).save(folder / f"{i}.png")
    return tmp_path / "my set"


LITTLE = [
    *("--training.steps", "1", "--training.batch-size", "4", "--training.trackers", "--data.workers", "0"),
    *("--model.encoder.depth", "1", "--model.encoder.width", "16", "--model.encoder.heads", "2"),
    *("--model.decoder.width", "16", "--model.decoder.heads", "2", "--model.projector-hidden", "16"),
    *("--training.preview-every", "0", "--seed", "3"),
]


def test_every_next_line_can_be_copied(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From photographs in a folder with a blank to samples, by what the commands themselves say."""
    command = ["pretrain", "small", "--data.source", "my set", *LITTLE, "--optimizer.lr", "0.5", "--out", "my run"]
    for verb in ("finetune", "sample"):
        assert main(command) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: ")]
        program, *command = shlex.split(line.removeprefix("Next: "))
        assert (program, command[0]) == ("epg", verb)
        assert "--optimizer.lr" not in command  # of the other stage
    assert main([*command, "--count", "4", "--steps", "2"]) == 0
    assert (photographs.parent / "diffusion" / "samples" / "grid.png").is_file()
    assert "Next: epg report diffusion" in capsys.readouterr().out
    assert main(["prepare", "my set", "a prepared set", "--image-size", "8", "--workers", "0"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: ")]
    assert main(shlex.split(line)[2:]) == 0


def test_a_folder_of_runs_is_answered_with_the_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("sample", "evaluate", "verify", "denoising"):
        assert main([verb, str(runs)]) in (2, 77)
        said = capsys.readouterr().err
        assert all(str(runs / stage) in said for stage in ("pretraining", "diffusion", "consistency")), said


def test_samples_with_an_animation_are_samples(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("gif", "png", "webp"):
        arguments = ["--count", "24", "--steps", "2", "--animation", kind, "--out", kind]
        assert main(["sample", str(runs / "diffusion"), *arguments]) == 0
        judged = ["--reference", kind, "--image-size", "8", "--features", f"encoder={runs / 'diffusion'}"]
        assert main(["evaluate", kind, *judged, "--out", f"{kind}.json"]) == 0, capsys.readouterr().err
        assert json.loads(Path(f"{kind}.json").read_text())["samples"]["count"] == 24


def test_what_is_missing_is_installed_by_its_own_name() -> None:
    """Extras of epg can only be asked for where epg itself is on the index, or beside its sources."""
    command = install("wandb")
    assert command.startswith("pip install ")
    assert "wandb" in command
    assert "epg" not in command
    assert "pip install" not in install("nothing-of-that-name")  # it may be anybody's package


def test_receipts_do_not_say_whose_home_it_is(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(runs.parent))
    arguments = [
        "evaluate",
        str(runs / "diffusion"),
        "--count",
        "20",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "r.json"),
    ]
    monkeypatch.setattr("sys.argv", ["/somewhere/epg", *arguments])
    assert main() == 0
    receipt = (tmp_path / "r.json").read_text()
    assert str(runs.parent) not in receipt
    assert json.loads(receipt)["command"].startswith("epg evaluate ~/digits/diffusion --count 20")


def test_warnings_are_one_line_without_source(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "diffusion", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000009").mkdir()  # its copying was interrupted
    done = started.epg("sample", str(tmp_path / "run"), "--count", "1", "--steps", "2", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "damaged" in line]
    assert line.startswith("warning: skipping a damaged checkpoint: ")
    assert ".py" not in done.stderr


@pytest.mark.parametrize(
    ("redirection", "codes"),
    [("| head -c 20", {0, 141}), (">&-", {0}), ("2>&-", {0}), ("<&-", {0}), (">/dev/full", {74})],
)
def test_output_may_go_anywhere(redirection: str, codes: set[int]) -> None:
    command = f"{shlex.quote(sys.executable)} -m epg.cli sample --help {redirection}"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_a_file_cannot_be_opened_is_said_with_the_cure(runs: Path, tmp_path: Path) -> None:
    command = (
        f"ulimit -n 12; exec {shlex.quote(sys.executable)} -m epg.cli sample {runs / 'diffusion'} --out {tmp_path}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode in (0, 74), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert "ulimit -n" in done.stderr


def test_from_python_a_wrong_option_is_a_wrong_option() -> None:
    """Where output goes into memory, as in a notebook, there is no pipe that could be gone."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        with pytest.raises(SystemExit) as ended:
            main(["probe", "run", "--nonsense", "3"])
    assert ended.value.code == 2
    assert "--nonsense" in said.getvalue()


# Surroundings of a process ------------------------------------------------------------------------------------------


def modules_after(*arguments: str) -> set[str]:
    """What a command has imported."""
    code = "import sys; from epg.cli import main; main(sys.argv[1:]); print(*sys.modules, sep='\\n', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


HELP_READS_WITH = {"tyro", "docstring_parser", "typing_extensions"}
HELP_IMPORTS = re.compile(r"epg(\.(cli(\..+)?|command_line|errors|messages|signals|samplers|evaluation(\.measures)?))?")
SLOW_PARTS_OF_PYTHON = {"asyncio", "unittest", "logging", "email", "ssl", "socket", "subprocess", "importlib.metadata"}


def test_help_of_every_verb_imports_little() -> None:
    code = (
        "import sys, contextlib\nthere = {*sys.modules}\nfrom epg.cli import VERBS, main\nmain(['--help'])\n"
        "for verb in VERBS:\n with contextlib.suppress(SystemExit):\n  main([verb, '--help'])\n"
        " print(verb, *sys.modules.keys() - there, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("usage: epg") == len(VERBS) + 1
    for verb, *modules in map(str.split, done.stderr.splitlines()):
        others = {name for name in modules if not HELP_IMPORTS.fullmatch(name)}
        roots = {name.partition(".")[0] for name in others} - sys.stdlib_module_names
        assert (verb, roots - HELP_READS_WITH) == (verb, set())
        assert (verb, SLOW_PARTS_OF_PYTHON & others) == (verb, set())


@pytest.mark.parametrize("place", [".", "export", "checkpoints/step-00000004"])
def test_info_of_weights_needs_no_torch(place: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "diffusion" / place
    assert main(["info", str(folder)]) == 0
    told = capsys.readouterr().out
    steps = read_yaml(runs / "diffusion" / "config.yaml")["training"]["steps"]
    assert re.search(rf"steps +│ {steps} ", told)
    assert "decoder" in told
    assert not {"torch", "numpy"} & modules_after("info", str(folder))


def test_info_of_a_folder_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path)]) == 77
    assert "no run folder" in capsys.readouterr().err
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text("[1]")
    assert main(["info", str(tmp_path)]) == 77
    assert "config.json: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("imagenet256-xl",), ("small",)])
def test_what_a_recipe_costs_is_arithmetic(arguments: tuple[str, ...]) -> None:
    """Torch alone takes longer to import than all else together."""
    assert not {"torch", "numpy", "matplotlib", "datasets"} & modules_after("info", *arguments)


def test_sets_are_prepared_and_inspected_without_torch(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for i in range(3):
        Image.effect_noise((8, 8), 90).save(tmp_path / "set" / f"{i}.png")
    prepared = ("prepare", str(tmp_path / "set"), str(tmp_path / "out"), "--image-size", "8", "--workers", "0")
    inspected = ("inspect", str(tmp_path / "out"), "--sheet", str(tmp_path / "sheet.png"))
    for command in (prepared, inspected):
        assert not {"torch", "sklearn", "matplotlib", "datasets"} & modules_after(*command)
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_wait_as_the_user_says_or_briefly(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    wait_politely()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_a_name_that_is_not_there_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    wrong = tmp_path / "fotos"
    for command in (
        ["sample", str(wrong), "--out", str(tmp_path / "out")],
        ["report", str(wrong / "run")],
        ["inspect", str(wrong)],
    ):
        assert main(command) != 0
        assert f"Did you mean {tmp_path / 'photos'}?" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["report", "elsewhere"]) == 77
    assert f"elsewhere: does not exist. It was looked for in {tmp_path}/." in capsys.readouterr().err
    assert main(["quickstart", "photos", "--minutes", "2"]) == 2
    assert "Perhaps epg quickstart --data photos --minutes 2" in capsys.readouterr().err
    assert main(["pretrain", "smal", "--data.source", str(wrong)]) == 2
    assert "Did you mean small?" in capsys.readouterr().err
