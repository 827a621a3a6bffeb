"""--resume and --override: from exactly there, with exactly these changes, or an error; and R10, setting by setting."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from epg.checkpoint import checkpoint
from epg.checkpoint.manifest import FORMAT, Manifest, make_manifest
from epg.cli import main
from epg.config import objectives, sections
from epg.config.objectives import Stage
from epg.config.settings import RunConfig
from epg.errors import ArtefactError, UserError
from epg.runs import prepare_run, train
from epg.samplers import SAMPLERS
from epg.training import resume
from epg.training.tracking import read_log
from tests.helpers import run_state, tiny_config
from tests.training.test_loop import assert_identical, tensors, tiny

STEPS = {"training": {"steps": 8, "checkpoint_every": 2, "keep": 9}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of eight steps with a checkpoint every two."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    train(tiny("diffusion", **STEPS), folder)
    return folder


@pytest.fixture
def half(run: Path, tmp_path: Path) -> Path:
    """The same run, as it was after four steps."""
    folder = shutil.copytree(run, tmp_path / "half")
    for step in (6, 8):
        shutil.rmtree(folder / "checkpoints" / f"step-{step:08d}")
    return folder


def events(folder: Path) -> list[dict[str, Any]]:
    return checkpoint.find(folder).state["history"]


# --resume -------------------------------------------------------------------------------------------------------------


def test_a_run_folder_is_continued_and_says_so(half: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny("diffusion", **STEPS), resume=half)
    said = capsys.readouterr().err
    assert re.search(r"resumed from .*half/checkpoints/step-00000004: step 4 of 8 \(64 images", said)
    assert "restored ema-0.99, model, optimizer, step" in said
    assert_identical(tensors(run), tensors(half))
    assert events(half) == []  # nothing out of the ordinary


def test_the_newest_checkpoint_may_be_named(half: Path, run: Path) -> None:
    train(tiny("diffusion", **STEPS), resume=half / "checkpoints" / "step-00000004")
    assert_identical(tensors(run), tensors(half))


def test_going_back_needs_a_folder_of_its_own(run: Path, tmp_path: Path) -> None:
    old = run / "checkpoints" / "step-00000002"
    with pytest.raises(UserError, match=r"has gone on to step 8.*--out"):
        train(tiny("diffusion", **STEPS), resume=old)
    train(tiny("diffusion", **STEPS), tmp_path / "branch", resume=old)
    assert_identical(tensors(run), tensors(tmp_path / "branch"))
    assert [line["step"] for line in read_log(tmp_path / "branch")] == [3, 4, 5, 6, 7, 8]
    (event,) = events(tmp_path / "branch")
    assert (event["step"], event["changed"]) == (2, {})
    assert event["resumed_from"] == checkpoint.read(old).manifest.digest


def test_the_same_command_again_goes_on_in_the_branch(run: Path, tmp_path: Path) -> None:
    old, branch = run / "checkpoints" / "step-00000002", tmp_path / "branch"
    train(tiny("diffusion", **STEPS), branch, resume=old)
    for step in (6, 8):  # as if it had been killed
        shutil.rmtree(branch / "checkpoints" / f"step-{step:08d}")
    train(tiny("diffusion", **STEPS), branch, resume=old)
    assert_identical(tensors(run), tensors(branch))
    assert len(events(branch)) == 1


def test_a_folder_with_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    train(tiny("diffusion", training={"steps": 2}), tmp_path / "other")
    with pytest.raises(UserError, match=r"--out .*other: holds another run, at step 2, that did not begin at --resume"):
        train(tiny("diffusion", **STEPS), tmp_path / "other", resume=run)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nowhere", "does not exist"),
        ("empty", "no checkpoint here"),
        ("run/export", "holds weights only"),
        ("run/export/model.safetensors", "holds weights only"),
        ("run/checkpoints/step-00000099", "does not exist"),
        ("run/checkpoints/step-00000003", "missing|cannot be read"),
    ],
)
def test_a_wrong_path_is_an_error_and_never_a_start_from_scratch(
    what: str, message: str, half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half.rename(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "run/checkpoints/step-00000003").mkdir()
    with pytest.raises(ArtefactError, match=rf"--resume .*(?:{message})"):
        prepare_run(tiny("diffusion", **STEPS), tmp_path / "new", resume=tmp_path / what)
    assert not (tmp_path / "new" / "checkpoints").exists()


@pytest.mark.parametrize("what", ["nowhere", "empty", "run/export", "run/checkpoints/step-00000004/model.safetensors"])
def test_a_wrong_path_leaves_no_folder(what: str, half: Path, tmp_path: Path) -> None:
    half.rename(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    config = tmp_path / "run" / "config.yaml"
    assert main(["finetune", str(config), "--resume", str(tmp_path / what)]) == 77
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["verify", str(tmp_path / "run")]) == 0


def test_a_damaged_checkpoint_that_was_named_is_an_error(half: Path) -> None:
    named = half / "checkpoints" / "step-00000004"
    file = named / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ArtefactError, match=r"--resume .*optimizer"):
        prepare_run(tiny("diffusion", **STEPS), half, resume=named)


def test_a_checkpoint_outside_a_run_needs_a_folder(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run / "checkpoints" / "step-00000004", tmp_path / "step-00000004")
    with pytest.raises(UserError, match=r"--resume .*: not inside a run folder.*--out"):
        train(tiny("diffusion", **STEPS), resume=copy)
    train(tiny("diffusion", **STEPS), tmp_path / "run", resume=copy)
    assert_identical(tensors(run), tensors(tmp_path / "run"))


def test_the_command_needs_no_encoder_to_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The weights, and the frozen encoder of the auxiliary loss, are in the checkpoint."""
    config = tmp_path / "config.yaml"
    train(tiny("pretraining", training={"steps": 1}), tmp_path / "encoder")
    settings = tiny("consistency", **STEPS)
    config.write_text(settings.to_yaml())
    train(settings, tmp_path / "straight", encoder=tmp_path / "encoder")
    branch = ["--out", str(tmp_path / "branch"), "--stage", "consistency"]
    old = tmp_path / "straight" / "checkpoints" / "step-00000004"
    assert main(["finetune", str(config), "--resume", str(old), *branch]) == 0
    assert "resumed from" in capsys.readouterr().err
    assert_identical(tensors(tmp_path / "straight"), tensors(tmp_path / "branch"))
    assert main(["finetune", str(config), "--resume", str(tmp_path / "nothing"), *branch]) == 77
    assert "--resume" in capsys.readouterr().err


def test_a_finished_run_says_that_nothing_is_left(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny("diffusion", **STEPS), resume=run)
    assert "nothing is left to do" in capsys.readouterr().err


# --override -----------------------------------------------------------------------------------------------------------


def test_a_named_setting_may_change_and_is_recorded(half: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = tiny("diffusion", **STEPS, optimizer={"warmup_steps": 2, "lr": 1e-4})
    with pytest.raises(UserError, match=r"(?s)optimizer\.lr: 0\.003 -> 0\.0001.*--override optimizer\.lr"):
        train(changed, half)
    train(changed, half, overrides=["optimizer.lr"])
    assert "changed from here on: optimizer.lr: 0.003 -> 0.0001" in capsys.readouterr().err
    assert events(half) == [{"step": 4, "resumed_from": None, "changed": {"optimizer.lr": [0.003, 0.0001]}}]
    assert read_log(half)[4]["lr"] == pytest.approx(read_log(run)[4]["lr"] / 30)
    train(changed, half, overrides=["optimizer.lr"])  # the same command again: nothing more has changed
    assert len(events(half)) == 1
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.0001 -> 0\.003"):  # it is the new one that counts now
        train(tiny("diffusion", **STEPS), half)


def test_on_the_command_line(half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(tiny("diffusion", **STEPS).to_yaml())
    command = ["finetune", str(config), "--resume", str(half), "--seed", "7", "--training.steps", "10"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "seed: 0 -> 7" in said
    assert "training.steps: 8 -> 10" in said
    assert main([*command, "--override", "seed"]) == 2
    assert "seed" not in capsys.readouterr().err.replace("--override", "")
    assert main([*command, "--override", "seed", "--override", "training.steps"]) == 0
    assert checkpoint.find(half).step == 10
    assert events(half)[0]["changed"] == {"seed": [0, 7], "training.steps": [8, 10]}


def test_images_may_change_if_named(half: Path) -> None:
    other = tiny("diffusion", **STEPS, data={"per_class": 20})
    with pytest.raises(UserError, match=r"data\.per_class: None -> 20"):
        prepare_run(other, half, overrides=["data.source"])
    run = prepare_run(other, half, overrides=["data.source", "data.per-class"])
    assert run.trainer.start is not None
    assert run.trainer.start.history[0]["changed"].keys() == {"data.per_class", "data.source"}


def test_overrides_that_make_no_sense(half: Path, tmp_path: Path) -> None:
    config = tiny("diffusion", **STEPS)
    with pytest.raises(UserError, match=r"--override optimizer\.rl: is no setting; did you mean optimizer\.lr\?"):
        prepare_run(config, half, overrides=["optimizer.rl"])
    with pytest.raises(UserError, match="--override: there is no run in"):
        prepare_run(config, tmp_path / "new", overrides=["optimizer.lr"])
    with pytest.raises(UserError, match=r"objective\.kind: diffusion -> consistency"):
        prepare_run(tiny("consistency", **STEPS), half, overrides=["objective"])


# R10: every setting ---------------------------------------------------------------------------------------------------

LITERALS = sorted(
    {
        value
        for module in (sections, objectives)
        for section in vars(module).values()
        if isinstance(section, type) and issubclass(section, sections.Section)
        for field in section.model_fields.values()
        for kind in (field.annotation, *get_args(field.annotation))
        for value in get_args(kind)
        if isinstance(value, str)
    }
    | SAMPLERS.keys()
)


def others(value: Any) -> Iterator[Any]:
    """Values of about the same type, for validation to choose from."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value + 2, value / 2, value / 2 + 0.1)
    elif isinstance(value, str):
        yield from (literal for literal in LITERALS if literal != value)
        yield f"{value}-other"
    elif isinstance(value, list):
        yield from ([other, *value[1:]] for other in others(value[0])) if value else [[[1, 0.5]]]
        yield [0.5]
        yield [0.1]
        yield ["wandb"]
        yield [1]
    else:
        yield from (1, 0.5, "other", [0.0, 100.0], *LITERALS)


def changed_one_by_one(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Every setting of a configuration, whatever there are, and a configuration in which it alone is another."""
    for name, value in config.flat().items():
        for other in others(value):
            content = config.model_dump(mode="json")
            section = content
            *path, last = name.split(".")
            for part in path:
                section = section[part]
            section[last] = other
            try:
                yield name, RunConfig.model_validate(content)
                break
            except ValidationError:
                continue
        else:
            assert name.endswith("kind"), f"no other value was found for {name}"  # it comes with other fields


def found(config: RunConfig, version: str | None = None) -> checkpoint.Checkpoint:
    state = {"format": FORMAT, "step": 4, **json.loads(json.dumps(run_state(config)))}
    content = make_manifest({}, state)
    if version is not None:
        content["versions"]["epg"] = version
    return checkpoint.Checkpoint(Path("run/checkpoints/step-00000004"), state, Manifest(**content))


@pytest.mark.parametrize("stage", ["pretraining", "diffusion", "consistency"])
def test_every_changed_setting_is_refused_unless_harmless_or_named(stage: Stage) -> None:
    config, refused, harmless = tiny_config(stage), set(), set()
    before, data = found(config), "0" * 64
    for name, changed in changed_one_by_one(config):
        if name == "data.source":  # the images count, not their address
            resume.continued(before, Path("run"), changed, data)
            continue
        if resume.belongs(name, resume.harmless(config)):
            assert resume.continued(before, Path("run"), changed, data).history == []
            harmless.add(name)
            continue
        with pytest.raises(UserError, match=rf"\n  {re.escape(name)}: "):
            resume.continued(before, Path("run"), changed, data)
        (event,) = resume.continued(before, Path("run"), changed, data, [name]).history
        assert event["changed"].keys() == {name}
        refused.add(name)
    assert len(refused) >= 20
    assert refused | harmless | {"data.source"} >= {n for n in config.flat() if not n.endswith("kind")}


@pytest.mark.parametrize(
    ("stage", "changes", "more", "refused"),
    [
        ("pretraining", {}, {"micro_batch": 16}, True),
        ("pretraining", {"micro_batch": 16}, {"micro_batch": 32}, False),  # the same on two processes
        ("pretraining", {}, {"micro_batch": 32}, False),  # which is what none means
        ("consistency", {}, {"micro_batch": 16}, True),
        ("diffusion", {}, {"micro_batch": 16}, False),
    ],
)
def test_negatives_may_not_change_in_silence(
    stage: Stage, changes: dict[str, Any], more: dict[str, Any], refused: bool
) -> None:
    """Contrastive losses and BatchNorm are of the images of a pass, over all processes."""
    before = found(tiny_config(stage, training=changes))
    if changes:  # written by two processes with 16 images each
        before.state["processes"] = 2
    config = tiny_config(stage, training=more)
    if not refused:
        assert resume.continued(before, Path("run"), config, "0" * 64).history == []
        return
    said = r"training\.micro_batch: a step in 1 passes -> a step in 2 passes"
    with pytest.raises(UserError, match=rf"(?s){said}.*--override training\.micro_batch"):
        resume.continued(before, Path("run"), config, "0" * 64)
    start = resume.continued(before, Path("run"), config, "0" * 64, ["training.micro-batch"])
    assert re.search(said, resume.describe(start, config, 100))


def test_consistency_without_its_contrastive_loss_may_be_cut_anew() -> None:
    alone = {"objective": {"auxiliary_weight": 0.0}}
    before = found(tiny_config("consistency", **alone))
    config = tiny_config("consistency", training={"micro_batch": 16}, **alone)
    assert resume.continued(before, Path("run"), config, "0" * 64).history == []


def test_other_images_and_another_major_version_are_refused() -> None:
    config = tiny_config()
    with pytest.raises(UserError, match=r"data\.source: images 000000000000 -> images 111111111111"):
        resume.continued(found(config), Path("run"), config, "1" * 64)
    with pytest.raises(UserError, match=r"epg: version 7 -> version 0"):
        resume.continued(found(config, "7.1"), Path("run"), config, "0" * 64)
    resume.continued(found(config, "0.99"), Path("run"), config, "0" * 64)


def test_control_comparing_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the values left out of the comparison, hardly anything would be refused."""
    monkeypatch.setattr(resume, "settings", lambda config, *_: dict.fromkeys(config.flat()))
    config = tiny_config()
    before = found(config)
    passed = [n for n, c in changed_one_by_one(config) if resume.continued(before, Path("run"), c, "0" * 64)]
    assert len(passed) > 40
