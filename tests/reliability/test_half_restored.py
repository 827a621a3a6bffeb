"""R6: every field and every tensor of a checkpoint is mandatory and typed; nothing is restored by halves."""

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from epg.checkpoint import checkpoint, manifest, saving
from epg.checkpoint.manifest import signed
from epg.errors import ArtefactError
from epg.runs import Run, prepare_run, train
from epg.storage import artefact
from epg.training import snapshot
from tests.training.test_loop import tiny

CONFIG = tiny("diffusion", training={"steps": 2, "power_ema": [0.1]})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(CONFIG, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def saved(run: Run) -> Path:
    return checkpoint.find(run.folder).path


def fields(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every field of nested mappings."""
    for key, value in content.items():
        yield (*place, key)
        if isinstance(value, dict):
            yield from fields(value, (*place, key))


def changed(content: Any, place: tuple[Any, ...], how: str) -> Any:
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    value = inner.pop(place[-1])
    if how == "rename":
        inner[f"{place[-1]}_"] = value
    elif how == "retype":
        inner[place[-1]] = [value] if isinstance(value, dict) else {"a": 1} if value is None else _another_type(value)
    return content


def _another_type(value: Any) -> Any:
    return 7 if isinstance(value, str | list) else float(value) if type(value) is int else str(value)


@pytest.mark.parametrize("how", ["delete", "rename", "retype"])
def test_every_field_of_the_state(saved: Path, how: str) -> None:
    content = json.loads((saved / "state.json").read_text())
    places = list(fields(content))
    assert len(places) > 80
    for place in places:
        if how == "delete" and ".".join(place[1:]) in manifest.ADDED_SETTINGS:  # older checkpoints lack it
            manifest.check_state(changed(content, place, how), "state.json")
            continue
        with pytest.raises(ArtefactError) as error:
            manifest.check_state(changed(content, place, how), "state.json")
        assert place[-1] in str(error.value), place
        assert error.value.exit_code == 77


@pytest.mark.parametrize("how", ["delete", "rename", "retype"])
def test_every_field_of_the_manifest(saved: Path, how: str) -> None:
    content = json.loads((saved / "manifest.json").read_text())
    places = [place for place in fields(content) if place[0] not in ("digest", "versions") or len(place) == 1]
    for place in places:
        if place == ("digest",):
            continue
        new = signed(changed(content, place, how))
        path = write(saved.parent / "other" / saved.name, saved, {"manifest.json": artefact.encode_json(new)})
        with pytest.raises(ArtefactError):
            checkpoint.read(path)


def write(path: Path, saved: Path, replaced: dict[str, bytes]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for file in saved.iterdir():
        (path / file.name).write_bytes(replaced.get(file.name, file.read_bytes()))
    return path


def test_an_unknown_field_is_an_error(saved: Path) -> None:
    content = json.loads((saved / "state.json").read_text())
    for place in [(), *(p for p in fields(content) if isinstance(_at(content, p), dict))]:
        extended = copy.deepcopy(content)
        _at(extended, place)["curriculum"] = 3
        with pytest.raises(ArtefactError, match=r"curriculum"):
            manifest.check_state(extended, "state.json")


def _at(content: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        content = content[key]
    return content


def resave(folder: Path, found: checkpoint.Checkpoint, groups: dict[str, dict[str, Tensor]]) -> None:
    """The same checkpoint with other tensors, and a manifest that is right about them."""
    state = {k: v for k, v in found.state.items() if k not in ("format", "step")}
    saving.save(folder / "checkpoints", found.step, groups, state, keep=2)


def tensor_cases(groups: dict[str, dict[str, Tensor]]) -> Iterator[tuple[str, dict[str, dict[str, Tensor]]]]:
    """Each tensor deleted, renamed, of another type, of another shape: (its name, what is left)."""
    for group, named in groups.items():
        for name, tensor in named.items():
            rest = {k: t for k, t in named.items() if k != name}
            other = torch.float64 if tensor.is_floating_point() else torch.int32
            for new in (
                rest,
                {**rest, f"{name}_": tensor},
                {**rest, name: tensor.to(other)},
                {**rest, name: tensor[None]},
            ):
                yield name, {**groups, group: new}
        yield "extra", {**groups, group: {**named, "extra": torch.zeros(1)}}


def test_every_tensor(run: Run) -> None:
    """Checked against what a trainer expects, without the detour over the disk."""
    found = checkpoint.find(run.folder)
    trainer = prepare_run(CONFIG, run.folder).trainer
    groups = {name: found.tensors(name) for name in found.groups}
    assert groups.keys() == {"model", "optimizer", "ema-0.99", "power-0.1"}
    assert len(snapshot.read_groups(found, trainer.objective, trainer.learner.optimizer, trainer.learner.ema)) == 4

    class Altered(checkpoint.Checkpoint):
        def tensors(self, name: str) -> dict[str, Tensor]:
            return altered[name]

    cases = 0
    for name, altered in tensor_cases(groups):  # noqa: B007
        with pytest.raises(ArtefactError, match=name.replace(".", r"\.")):
            snapshot.read_groups(
                Altered(found.path, found.state, found.manifest),
                trainer.objective,
                trainer.learner.optimizer,
                trainer.learner.ema,
            )
        cases += 1
    assert cases > 4 * 100


@pytest.mark.parametrize("problem", ["group missing", "group unknown", "tensor missing"])
def test_nothing_is_restored_by_halves(problem: str, run: Run, tmp_path: Path) -> None:
    found = checkpoint.find(run.folder)
    groups = {name: found.tensors(name) for name in found.groups}
    if problem == "group missing":
        del groups["ema-0.99"]
    elif problem == "group unknown":
        groups["ema-0.5"] = groups["ema-0.99"]
    else:
        groups["optimizer"].popitem()
    resave(tmp_path, found, groups)
    trainer = prepare_run(CONFIG, tmp_path).trainer
    before = {k: t.clone() for k, t in trainer.objective.state_dict().items()}
    with pytest.raises(ArtefactError, match="ema-0" if "group" in problem else "missing: network"):
        trainer.restore()
    assert trainer.step == 0
    assert all(torch.equal(before[k], t) for k, t in trainer.objective.state_dict().items())


def test_control_a_forgiving_restore_would_pass(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check stands against: with the check left out, half a checkpoint is taken without a word."""
    found = checkpoint.find(run.folder)
    groups = {name: found.tensors(name) for name in found.groups}
    groups["ema-0.99"]["leftover"] = torch.zeros(1)
    resave(tmp_path, found, groups)
    trainer = prepare_run(CONFIG, tmp_path).trainer
    with pytest.raises(ArtefactError, match="unexpected: leftover"):
        trainer.restore()
    monkeypatch.setattr(snapshot, "read_groups", lambda found, *_: {n: found.tensors(n) for n in found.groups})
    trainer.restore()
    assert trainer.step == 2


def test_another_number_of_threads_is_reported(run: Run, tmp_path: Path) -> None:
    trainer = prepare_run(CONFIG, run.folder).trainer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.restore()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=f"written with {threads} CPU threads, continued with {threads + 1}"):
            trainer.restore()
    finally:
        torch.set_num_threads(threads)
