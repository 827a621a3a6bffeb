"""Every number that a configuration holds, with hostile values: refused by its name, or a run with it works."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from epg.cli import VERBS, main
from epg.cli.numbers import Between
from epg.cli.paths import pieces
from epg.config.objectives import Stage
from epg.config.recipe import merge
from epg.config.settings import RunConfig
from epg.config.validation import checked, put
from epg.data.configured import open_training_data
from epg.data.loading.base import ImageDataset
from epg.errors import UserError
from epg.runs import prepare_run
from tests.helpers import tiny_content

HOSTILE = (-1, -0.5, 0, 0.5, 3, 5, 1e308, -1e308, 1e-308, 10**30, math.nan, math.inf, -math.inf)
# What no machine has the memory for when it is large, or what only costs time.
NOT_RUN = ("image_size", "patch_size", "depth", "width", "heads", "mlp_ratio", "workers", "steps", "every", "log_every")
GIVEN = {
    "data": {"per_class": 9, "fraction": 1.0},
    "model": {"num_classes": 10, "projector_hidden": 8, "projector_out": 8},
    "optimizer": {"lr_batch_size": 32, "lr_steps": [[1, 1e-3]], "clip": 1.0, "kind": "adamw"},
    "training": {
        "batch_size": 16,
        "micro_batch": 16,
        "steps": 2,
        "leave_out": [1],
        "ema": [0.9],
        "power_ema": [0.1],
        "preview_every": 0,
        "trackers": [],
    },
}
KINDS: list[tuple[Stage, dict[str, Any], tuple[str, ...]]] = [  # and of which settings runs are made
    ("pretraining", {"objective": {"views": {"kind": "moco_v3"}}}, ("objective",)),
    ("pretraining", {"objective": {"views": {"kind": "affine"}}}, ("objective.views", "model")),
    ("diffusion", {"optimizer": {"kind": "muon"}, "model": {"stem": 4}}, ("objective", "optimizer", "seed")),
    ("consistency", {"objective": {"d": 1}, "sampling": {"levels": [80.0], "steps": 1}}, ("objective", "noise")),
    ("diffusion", {}, ("noise", "training")),
]


def full(stage: Stage, more: dict[str, Any]) -> dict[str, Any]:
    """A configuration in which every number is given."""
    return checked(merge(merge(tiny_content(stage), GIVEN), more), "full").model_dump(mode="json")


def numbers(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where the numbers are."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from numbers(value, (*path, str(key)))
    if isinstance(content, int | float) and not isinstance(content, bool):
        yield path


def names(path: tuple[str, ...]) -> tuple[str, str]:
    """A setting as a flag and as in a file."""
    keys = [key for key in path if not key.isdigit()]
    return "--" + ".".join(keys).replace("_", "-"), ".".join(keys)


def accepted(stage: Stage, more: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any, RunConfig]]:
    """(setting, value, configuration) of every hostile value that is not refused by the setting's name."""
    whole = full(stage, more)
    for path in numbers(whole):
        for value in HOSTILE:
            content = copy.deepcopy(whole)
            put(content, path, value)
            try:
                config = checked(content, "hostile")
            except UserError as error:
                said = str(error)
            else:
                yield path, value, config
                continue
            assert any(name in said for name in names(path)), f"{path} {value}: {said}"


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    return open_training_data(checked(merge(tiny_content(), GIVEN), "data").data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("stage", "more", "varied"), KINDS)
def test_a_hostile_number_is_refused_by_name_or_a_run_works(
    stage: Stage, more: dict[str, Any], varied: tuple[str, ...], dataset: ImageDataset, tmp_path: Path
) -> None:
    """Runs are made with the smallest and the largest that is accepted."""
    assert len(list(numbers(full(stage, more)))) > 40
    works: dict[tuple[str, ...], list[tuple[Any, RunConfig]]] = {}
    for path, value, config in accepted(stage, more):
        if path[-1] not in NOT_RUN and ".".join(path).startswith(varied):
            works.setdefault(path, []).append((value, config))
    assert len(works) >= 5
    for path, found in works.items():
        found.sort(key=lambda pair: pair[0])
        for value, config in {found[0][0]: found[0][1], found[-1][0]: found[-1][1]}.items():
            code = 0
            try:
                prepare_run(config, tmp_path / "-".join((*path, str(value))), dataset=dataset).trainer.run()
            except UserError as error:  # with a reason: it diverged, or the images do not go with it, and it says so
                code = error.exit_code
            assert code in (0, 2, 70), f"{path} {value}"


SAID = [
    (["--objective.views.crop-scale", "1", "0.08"], "--objective.views.crop-scale 1 0.08: the first must not exceed"),
    (["--objective.views.flip", "3"], "--objective.views.flip 3.0: must be at most 1"),
    (["--objective.views.gray", "-1"], "--objective.views.gray -1.0: must be at least 0"),
    (["--objective.views.jitter", "-1", "0.4", "0.2", "0.1"], "--objective.views.jitter -1.0: must be at least 0"),
    (["--objective.views.jitter", "0.4", "0.4", "0.2", "5"], "--objective.views.jitter 5.0: must be at most 0.5"),
    (["--stage", "consistency", "--objective.q", "0.5"], "--objective.q 0.5: must be more than 1"),
    (["--stage", "consistency", "--objective.k", "-5"], "--objective.k -5.0: must be at least 0"),
    (["--stage", "consistency", "--objective.delta", "0"], "--objective.delta 0: must be at least 1"),
    (["--stage", "consistency", "--objective.auxiliary-weight", "-1"], "--objective.auxiliary-weight -1.0: must be at"),
    (["--stage", "diffusion", "--sampling.guidance", "-5"], "--sampling.guidance -5.0: must be at least 0"),
    (["--optimizer.lr-steps", "5", "0.1", "3", "0.1"], "--optimizer.lr-steps: the steps 5, 3 must rise"),
    (["--optimizer.lr-steps", "5", "-0.1"], "--optimizer.lr-steps -0.1: must be at least 0"),
    (["--noise.shift", "1e308"], "--noise.shift 1e+308: must be at most 1,000"),
    (
        ["--training.steps", "0", "--training.keep", "1"],
        "--training.steps 0: must be at least 1\n  --training.keep 1: must",
    ),
    (["--training.steps", "0", "--data.image-size", "9"], "--data.image-size 9: not a multiple of --model.patch-size"),
    (["--training.lr", "1e-3"], "--training.lr: no such setting; did you mean --optimizer.lr?"),
    (["--optimizer.batch_size=8"], "--optimizer.batch_size: no such setting; did you mean --training.batch-size?"),
    (["--trainig.steps", "8"], "--trainig.steps: no such setting; did you mean --training.steps"),
    (["--form-scratch"], "--form-scratch: no such setting; did you mean --from-scratch?"),
    (["--out="], "--out: is followed by nothing"),
    (["--out", ""], "--out: is followed by nothing"),
]


@pytest.mark.parametrize(("arguments", "message"), SAID)
def test_flags_out_of_range_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line, before anything is opened or written; no line of a recipe is blamed for them."""
    verb = ["finetune", "imagenet64", "--from-scratch"] if "--stage" in arguments else ["pretrain", "imagenet64"]
    assert main([*verb, *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert ".yaml line" not in said


def test_words_for_numbers_are_told_in_types_that_a_reader_knows(capsys: pytest.CaptureFixture[str]) -> None:
    """Not as the function of pydantic's that checks them."""
    with pytest.raises(SystemExit):
        main(["pretrain", "digits", "--training.micro-batch", "many"])
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "Error parsing --training.micro-batch" in said
    assert "<class 'int'>: invalid literal for int() with base 10: 'many'" in said
    assert "Annotated" not in said


CHECKED_WITH_THE_MODEL = {
    "steps",
    "levels",
    "guidance",
    "scales",
    "interval",
    "interval_low",
    "interval_high",
    "width",
    "between",
}
CHECKED_BY_THE_VERB = {"sigma_rel", "tolerance", "channels", "range"}
REQUIRED = {"prepare": ["set", "out", "--image-size", "8"], "reference": ["set", "--out", "out"]}


def number_options() -> Iterator[tuple[str, str, Any]]:
    """Every option of a verb that is a number, or several, and its type."""
    for verb, kind in VERBS.items():
        for name, hint in get_type_hints(kind, include_extras=True).items():
            if {int, float} & set(pieces(hint)):
                yield verb, name, hint


@pytest.mark.parametrize(("verb", "name", "hint"), list(number_options()))
def test_a_hostile_number_of_a_verb_is_refused_before_any_work(
    verb: str, name: str, hint: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that is named here is there: refused is what was looked at first."""
    if name in CHECKED_WITH_THE_MODEL | CHECKED_BY_THE_VERB and not any(isinstance(p, Between) for p in pieces(hint)):
        return
    flag = f"--{name.replace('_', '-')}"
    for value in ("-1", f"{10**30}", *(("nan", "inf", "1e400") if float in set(pieces(hint)) else ())):
        first = REQUIRED.get(verb, [] if verb == "quickstart" else ["run"])
        assert main([verb, *first, flag, value, *(["--out", "out"] if verb == "convert" else [])]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {flag} "), said
        assert "must be" in said, said


def test_numbers_of_a_verb_out_of_range_are_found_all_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "run", "--count", "-3", "--seed", "-1", "--ema", "2"]) == 2
    said = capsys.readouterr().err
    assert all(words in said for words in ("--count -3: must be at least 1", "--seed -1:", "--ema 2.0:"))
    assert "--batch-size" not in said


@pytest.mark.parametrize("value", ["lr: true", "betas: [yes, 0.9]", "lr_steps: [[on, 0.1]]", "warmup_steps: off"])
def test_true_is_no_number(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text is one: YAML reads 1e-4 so."""
    recipe = tmp_path / "mine.yaml"
    for written, place in ((value, value.split(":")[0]), ("lr: 1e-30", "--optimizer.lr 1e-30: must be at least")):
        recipe.write_text(f"base: small\ndiffusion:\n  optimizer: {{{written}}}\n")
        assert main(["finetune", str(recipe), "--from-scratch", "--out", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err
        assert all(words in said for words in (place, "mine.yaml line 3"))
        assert ("a number is expected" in said) == (written == value)


@pytest.mark.parametrize("key", ["on", "1", "~", "2024-01-01"])
def test_what_yaml_does_not_read_as_a_name_is_none(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"base: small\n{key}: 3\n")
    assert main(["finetune", str(recipe), "--from-scratch", "--out", str(tmp_path / "run")]) == 2
    assert f"'{key}' is no name of a setting (line 2)" in capsys.readouterr().err
