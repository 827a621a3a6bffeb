"""`epg study`: a grid of runs with a shared stage 1, resumed after a kill, by several processes, with its table."""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from epg.analysis.probe import LINEAR, run_probe
from epg.cli import main
from epg.errors import UserError
from epg.evaluation.receipt import read
from epg.study import claims, plan
from epg.study.command import needed
from epg.study.plan import Cell, cells_of, read_study
from epg.study.readability import rank_correlations
from epg.training.tracking import read_log
from tests import started

STUDIES = sorted((Path(__file__).parents[1] / "studies").glob("*.yaml"))
SMALL = {
    "model": {
        "encoder": {"depth": 1, "width": 16, "heads": 2},
        "decoder": {"width": 16, "heads": 2},
        "projector_hidden": 16,
        "projector_out": 8,
    },
    "training": {"batch_size": 16, "steps": 4, "preview_every": 0, "trackers": [], "checkpoint_every": 2},
    "optimizer": {"warmup_steps": 1},
    "evaluation": {"count": 20},
}
CONTENT = {
    "recipe": "digits",
    "seeds": [3, 4],
    "probe": [0.5],
    "settings": SMALL,
    "stages": {"diffusion": {"sampling": {"sampler": "euler", "steps": 2}}},
    "arms": {
        "RCM": {"stage": "pretraining"},
        "EPG": {"encoder": "RCM"},
        "scratch": {"settings": {"objective": {"label_dropout": 0.2}}},
    },
    "baseline": "scratch",
}
PROBED = ("encoder", LINEAR)


def written(folder: Path, **changes: object) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump({**CONTENT, **changes}, sort_keys=False))
    return file


class Running:
    """`epg study` in a process of its own, and what it says."""

    def __init__(self, file: Path, out: Path) -> None:
        self.log = out.with_name(f"{out.name}-{time.monotonic_ns()}.log")
        with self.log.open("w") as stream:
            words = ("-m", "epg.cli", "study", file, "--out", out)
            self.program = started.start(*words, stdout=stream, stderr=stream)

    def said(self) -> str:
        return self.log.read_text()


def results(out: Path) -> dict[str, dict]:
    """What each cell left, by file."""
    return {
        str(file.relative_to(out)): json.loads(file.read_text()) for file in sorted(out.glob("cells/*/result-*.json"))
    }


# From beginning to end ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study killed in its third run and continued, and its folder."""
    folder = tmp_path_factory.mktemp("study")
    file, out = written(folder), folder / "out"
    first = Running(file, out)
    deadline = time.monotonic() + 120
    while len(results(out)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    first.program.signal(signal.SIGKILL)
    first.program.wait()
    before = results(out)
    assert 2 <= len(before) < 6
    assert main(["study", str(file), "--out", str(out)]) == 0
    after = results(out)
    assert len(after) == 6
    assert {name: after[name] for name in before} == before, "what was done was done again"
    return file, out


def test_numbers_are_those_of_the_receipts(study: tuple[Path, Path]) -> None:
    out = study[1]
    found = json.loads((out / "tiny.json").read_text())
    arms = found["arms"]
    assert list(arms) == ["RCM", "EPG", "scratch"]
    by_cell = {(c["arm"], c["seed"]): out / c["folder"] / f"receipt-{c['judged']}.json" for c in found["cells"]}
    for arm in ("EPG", "scratch"):
        values = [read(by_cell[arm, seed]).metrics["fd_classifier"].value for seed in (3, 4)]
        summary = arms[arm]["fd_classifier"]
        assert summary["values"] == {"3": values[0], "4": values[1]}
        assert summary["mean"] == pytest.approx(statistics.fmean(values))
        assert summary["spread"] == pytest.approx(statistics.stdev(values))
    assert "fd_classifier" not in arms["RCM"]
    runs = {(c["arm"], c["seed"]): out / c["folder"] / "run" for c in found["cells"]}
    log = read_log(runs["RCM", 3])
    assert arms["RCM"]["feature_std/0.5"]["values"]["3"] == log[-1]["feature_std/0.5"]
    (probed,) = (a for a in run_probe(runs["RCM", 3], levels=[1.0], out=out) if (a.features, a.method) == PROBED)
    assert arms["RCM"]["probe/0.5"]["values"]["3"] == probed.value  # half of noise is a level of 1; the shift is 1
    times = {arm: [line["cpu_seconds"] for line in read_log(runs[arm, 4])] for arm in arms}
    together = sum(times["RCM"]) + sum(times["EPG"])
    assert arms["EPG"]["training_cpu_seconds"]["values"]["4"] == pytest.approx(together)
    assert arms["scratch"]["training_cpu_seconds"]["values"]["4"] == pytest.approx(sum(times["scratch"]))
    assert (out / "tiny.png").stat().st_size > 5000


def test_arms_that_share_a_run_sample_as_each_says(tmp_path: Path) -> None:
    """Not as the run's own settings, which are those of the arm that happened to train it."""
    arms = {"even": {"settings": {"sampling": {"grid": "uniform_t"}}}, "karras": {}}
    file = written(tmp_path, seeds=[3], arms=arms, baseline="karras")
    assert main(["study", str(file), "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 1
    receipts = [read(found) for found in (tmp_path / "out").glob("cells/*/receipt-*.json")]
    assert sorted(receipt.samples["sampling"]["grid"] for receipt in receipts) == ["karras", "uniform_t"]


def test_one_step_models_are_judged_in_one_step(tmp_path: Path) -> None:
    arms = {"RCM": {"stage": "pretraining"}, "one step": {"stage": "consistency", "encoder": "RCM"}}
    file = written(tmp_path, arms=arms, seeds=[3], baseline=None)
    assert main(["study", str(file), "--out", str(tmp_path / "out")]) == 0
    (receipt,) = (tmp_path / "out").glob("cells/*/receipt-*.json")
    assert read(receipt).samples["nfe"] == 1


def test_differences_are_of_pairs(study: tuple[Path, Path]) -> None:
    arms = json.loads((study[1] / "tiny.json").read_text())["arms"]
    epg, scratch = (arms[arm]["fd_classifier"]["values"] for arm in ("EPG", "scratch"))
    pairs = [epg[seed] - scratch[seed] for seed in ("3", "4")]
    summary = arms["EPG"]["fd_classifier"]
    assert summary["difference"] == pytest.approx(statistics.fmean(pairs))
    assert summary["difference_error"] == pytest.approx(statistics.stdev(pairs) / 2**0.5)
    assert arms["scratch"]["fd_classifier"]["difference"] is None


def test_generators_begin_with_the_shared_encoder_of_their_seed(study: tuple[Path, Path]) -> None:
    file, out = study
    for cell in cells_of(read_study(file), file):
        record = out / "cells" / cell.identity / "run" / "handover.json"
        assert record.exists() == (cell.arm == "EPG")
        if isinstance(cell.begins, Cell):
            assert cell.begins.identity in json.loads(record.read_text())["source"]
            assert cell.begins.seed == cell.seed


def test_the_table_and_a_second_call_that_does_nothing(
    study: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = study
    before = {path: path.stat().st_mtime_ns for path in out.glob("cells/**/*.safetensors")}
    assert main(["study", str(file), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Frechet" in printed
    assert "difference from scratch" in printed
    assert "diffusion (EPG), 2 points: too few to rank, 5 are needed" in printed
    assert "CPU s" in " ".join(printed.split())
    assert {path: path.stat().st_mtime_ns for path in out.glob("cells/**/*.safetensors")} == before
    assert main(["study", str(file), "--out", str(out), "--dry-run", "--only", "EPG"]) == 0
    printed = capsys.readouterr().out
    assert "4 cells, 4 runs" in printed
    assert "scratch" not in printed


def test_another_evaluation_trains_nothing_again(study: tuple[Path, Path], tmp_path: Path) -> None:
    out = study[1]
    other = written(tmp_path, labels="random")
    runs = sorted(path.name for path in (out / "cells").iterdir())
    assert main(["study", str(other), "--out", str(out), "--only", "EPG"]) == 0
    assert sorted(path.name for path in (out / "cells").iterdir()) == runs
    assert len(results(out)) == 8
    receipts = [read(path).samples for path in out.glob("cells/*/receipt-*.json")]
    assert len({json.dumps(r["labels"]) for r in receipts}) == 2


def test_ranks_of_probes_and_distances(tmp_path: Path) -> None:
    """Of generators that differ in encoder and seed alone; a distance that falls as the probe rises is -1."""
    arms = {
        "A": {"stage": "pretraining"},
        "B": {"stage": "pretraining", "settings": {"objective": {"tau2": 0.5}}},
        "on A": {"encoder": "A"},
        "on B": {"encoder": "B"},
        "longer": {"encoder": "B", "settings": {"training": {"steps": 5}}},
        "on the average": {"encoder": "B", "settings": {"objective": {"initial": "momentum"}}},
        "scratch": {},
    }
    file = written(tmp_path, arms=arms, seeds=[0, 1, 2], probe=[0.25, 0.5])
    cells = cells_of(read_study(file), file, images=False)
    generators = [cell for cell in cells if cell.config.objective.samples]
    found = {(cell.arm, cell.seed): {"fd_classifier": {"value": 10.0 - i}} for i, cell in enumerate(generators)}
    read = {"probe/0.25": {"value": 0.5}}
    order = [("A", 0), ("A", 1), ("A", 2), ("B", 0), ("B", 1), ("B", 2)]
    found |= {cell: read | {"probe/0.5": {"value": i}} for i, cell in enumerate(order)}
    both, longer = rank_correlations(cells, found)
    assert (both.arms, both.points, both.metric) == (("on A", "on B"), 6, "fd_classifier")
    assert both.spearman == {"probe/0.25": None, "probe/0.5": pytest.approx(-1)}
    assert both.text().endswith("undefined at 25%, -1.00 at 50%; within seeds undefined at 25%, -1.00 at 50%")
    shifted = {(arm, seed): dict(values) for (arm, seed), values in found.items()}
    for cell in generators:
        shifted[cell.arm, cell.seed]["fd_classifier"] = {"value": found[cell.arm, cell.seed]["fd_classifier"]["value"]}
        shifted[cell.arm, cell.seed]["fd_classifier"]["value"] += 100 * cell.seed
    moved, _ = rank_correlations(cells, shifted)
    assert moved.within_seeds["probe/0.5"] == pytest.approx(-1)
    assert moved.spearman["probe/0.5"] > 0
    assert (longer.arms, longer.points, longer.spearman["probe/0.5"]) == (("longer",), 3, None)
    del found["B", 2], found["on A", 0]
    both, _ = rank_correlations(cells, found)
    assert "4 points: too few to rank" in both.text()


def test_arms_may_go_on_with_a_generator(tmp_path: Path) -> None:
    """Each after the arm that it begins with, through as many as there are; the time is that of all."""
    arms = {
        "in one step": {"stage": "onestep", "generator": "EPG", "settings": {"evaluation": {"every": 0}}},
        "RCM": {"stage": "pretraining"},
        "EPG": {"encoder": "RCM"},
        "scratch": {},
    }
    file, out = written(tmp_path, arms=arms, seeds=[3]), tmp_path / "out"
    cells = {cell.arm: cell for cell in cells_of(read_study(file), file)}
    assert list(cells) == ["RCM", "EPG", "scratch", "in one step"]
    assert [c.arm for c in needed(list(cells.values()), ["in one step"])] == ["RCM", "EPG", "in one step"]
    assert main(["study", str(file), "--out", str(out), "--only", "in one step"]) == 0
    runs = {arm: out / "cells" / cell.identity / "run" for arm, cell in cells.items()}
    began = json.loads((runs["in one step"] / "handover.json").read_text())
    assert cells["EPG"].identity in began["generator"]["source"]
    assert cells["RCM"].identity in began["source"], "whose features are compared"
    found = json.loads((out / "tiny.json").read_text())
    times = [sum(line["cpu_seconds"] for line in read_log(runs[arm])) for arm in ("RCM", "EPG", "in one step")]
    assert found["arms"]["in one step"]["training_cpu_seconds"]["mean"] == pytest.approx(sum(times))
    assert [group["arms"] for group in found["rank_correlations"]] == [["EPG"]]


# Several processes ----------------------------------------------------------------------------------------------------


def test_two_processes_do_each_cell_once(tmp_path: Path) -> None:
    file, out = written(tmp_path), tmp_path / "out"
    both = [Running(file, out), Running(file, out)]
    assert [one.program.wait() for one in both] == [[0], [0]], [one.said() for one in both]
    began = [[line for line in one.said().splitlines() if line.startswith("[") and "cells/" in line] for one in both]
    assert all(began), "one did nothing"
    assert len(began[0] + began[1]) == 6, began
    assert len({line.partition("]")[2] for line in began[0] + began[1]}) == 6
    assert len(results(out)) == 6


def test_a_stop_signal_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    steps = {**SMALL, "training": {**SMALL["training"], "steps": 4000}}
    file, out = (
        written(tmp_path, seeds=[0], settings=steps, arms={"RCM": {"stage": "pretraining"}}, baseline=None),
        tmp_path / "out",
    )
    study = Running(file, out)
    deadline = time.monotonic() + 120
    while not list(out.glob("cells/*/run/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    study.program.signal(signal.SIGTERM)
    assert study.program.wait() == [75], study.said()
    assert not list(out.glob("cells/*/claim.json"))


def test_a_claim_is_for_one(tmp_path: Path) -> None:
    """Many at the same moment: one gets it; when it is done the next may."""
    got, ready = [], threading.Barrier(8)

    def claim() -> None:
        ready.wait()
        with claims.claimed(tmp_path) as ours:
            got.append(ours)
            time.sleep(0.3)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]
    with claims.claimed(tmp_path) as ours:
        assert ours
    assert list(tmp_path.iterdir()) == []


def test_claims_of_the_dead_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    file = tmp_path / claims.FILE
    mine = claims.socket.gethostname()

    def free(host: str, pid: int, age: float) -> bool:
        file.write_text(json.dumps({"host": host, "pid": pid, "token": "x"}))
        os.utime(file, (time.time() - age,) * 2)
        with claims.claimed(tmp_path) as ours:
            return ours

    assert free(mine, ended.pid, age=0)
    assert not free(mine, os.getpid(), age=0)
    assert not free("elsewhere", ended.pid, age=claims.STALE / 2)
    assert free("elsewhere", ended.pid, age=claims.STALE * 2)
    monkeypatch.setattr(claims, "BEAT", 0.05)
    file.unlink(missing_ok=True)
    with claims.claimed(tmp_path):
        os.utime(file, (0, 0))
        time.sleep(0.3)
        assert time.time() - file.stat().st_mtime < 60


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_a_failed_cell_is_named_and_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "vit.safetensors"
    weights.write_bytes(b"no weights")
    arms = {
        "broken": {"encoder": str(weights)},
        "RCM": {"stage": "pretraining"},
        "on it": {"encoder": "RCM"},
        "scratch": {},
    }
    file, out = written(tmp_path, arms=arms, seeds=[0]), tmp_path / "out"
    rcm = next(cell for cell in cells_of(read_study(file), file) if cell.arm == "RCM")
    in_the_way = out / "cells" / rcm.identity / "run"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the run's folder should be")
    assert main(["study", str(file), "--out", str(out)]) == 1
    err = capsys.readouterr().err
    assert "broken, seed 0: " in err
    found = json.loads((out / "tiny.json").read_text())
    assert list(found["arms"]) == ["scratch"]
    assert found["failed"].keys() == {"broken, seed 0", "RCM, seed 0", "on it, seed 0"}
    assert found["failed"]["on it, seed 0"] == "its encoder (RCM, seed 0) failed"
    in_the_way.unlink()
    assert main(["study", str(file), "--out", str(out), "--only", "on it"]) == 0  # what failed is tried again
    assert {"RCM", "on it"} <= json.loads((out / "tiny.json").read_text())["arms"].keys()


def test_everything_wrong_in_a_file_is_listed(tmp_path: Path) -> None:
    arms = {
        "a": {"encoder": "nowhere"},
        "b": {"stage": "painting"},
        "c": {"encoder": "d"},
        "d": {},
        "e": {"stage": "pretraining", "encoder": "f"},
        "f": {"stage": "pretraining"},
        "h": {"stage": "onestep"},
        "i": {"stage": "onestep", "generator": "f"},
        "j": {"generator": "k"},
        "k": {"generator": "j"},
        "l": {"generator": "d", "encoder": "f"},
    }
    with pytest.raises(UserError) as error:
        read_study(written(tmp_path, arms=arms, baseline="g", stages={"pretrain": {}}))
    for text in (
        "arms.a.encoder nowhere: neither an arm of this study nor a weight file",
        "arms.b.stage painting: choose one of pretraining, diffusion, consistency, onestep",
        "arms.c.encoder d: is a generator",
        "arms.e.encoder: pretraining begins without one",
        "arms.h.stage onestep: goes on from a generator; name its arm as `generator`",
        "arms.i.generator f: no arm of this study that trains a generator",
        "arms.j.generator k: leads back to j",
        "arms.l.generator: not with encoder",
        "baseline g: no arm of that name",
        "stages.pretrain: no such stage",
    ):
        assert text in str(error.value)
    with pytest.raises(UserError, match=r"arms\.a\.encodr: no such setting; did you mean encoder\? \(line \d+\)"):
        read_study(written(tmp_path, arms={"a": {"encodr": "x"}}))
    with pytest.raises(UserError, match="seed: no such setting; did you mean seeds"):
        read_study(written(tmp_path, seed=1))


def test_wrong_settings_of_an_arm_are_found_before_anything_runs(tmp_path: Path) -> None:
    arms = {"a": {"settings": {"optimizer": {"lrr": 1}}}, "b": {"settings": {"training": {"steps": -1}}}}
    file = written(tmp_path, arms=arms, baseline=None)
    with pytest.raises(UserError) as error:
        cells_of(read_study(file), file)
    assert "arm a: 1 wrong settings" in str(error.value)
    assert "--training.steps -1: must be at least 1" in str(error.value)
    assert main(["study", str(file), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


# Cells ----------------------------------------------------------------------------------------------------------------


def test_identity_is_of_what_a_run_depends_on(tmp_path: Path) -> None:
    def identities(**changes: object) -> list[str]:
        file = written(tmp_path, **changes)
        return [cell.identity for cell in cells_of(read_study(file), file)]

    first = identities()
    assert len(set(first)) == 6
    assert identities() == first
    assert identities(settings={**SMALL, "data": {"workers": 1}}) == first  # harmless
    assert identities(labels="random") == first
    assert not set(identities(settings={**SMALL, "data": {"fraction": 0.5}})) & set(first)
    longer = identities(stages={"pretraining": {"training": {"steps": 5}}})
    assert [a == b for a, b in zip(first, longer, strict=True)] == [False] * 4 + [True] * 2  # RCM, and EPG on it


def test_an_update_that_adds_a_setting_finds_what_was_trained_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys(**changes: object) -> list[str]:
        file = written(tmp_path, **changes)
        return [cell.identity + cell.judged for cell in cells_of(read_study(file), file)]

    used = {**SMALL, "optimizer": {"layer_decay": 0.5}, "sampling": {"grid": "uniform_t"}}
    before = keys(), keys(settings=used)
    for name in ("optimizer.layer_decay", "sampling.grid"):  # as if they had been there from the beginning
        monkeypatch.delitem(plan.ADDED_SETTINGS, name)
    assert not set(keys()) & set(before[0]), "an unused setting that came later is left out"
    assert keys(settings=used) == before[1]


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_studies_of_the_project(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = read_study(file)
    assert study.description
    cells = cells_of(study, file, images=False)
    assert len({(cell.identity, cell.judged) for cell in cells}) == len(cells)
    assert needed(cells, list(study.arms)) == cells
    if file.stem in ("table6", "figure3", "table3", "figure8", "table12", "table13"):
        assert {cell.config.model.num_classes for cell in cells} == {1000}
    assert main(["study", str(file), "--dry-run"]) == 0
    assert "PFLOP of training" in capsys.readouterr().out


def test_lengths_of_the_paper_s_studies() -> None:
    found = {file.stem: cells_of(read_study(file), file, images=False) for file in STUDIES}
    lengths = {name: {c.config.stage: c.steps for c in cells} for name, cells in found.items()}
    assert lengths["table13"] == {"pretraining": 300_000, "diffusion": 100_000, "consistency": 200_000}
    assert lengths["table12"]["pretraining"] == 600_000
    assert {(c.config.data.image_size, c.config.shift) for c in found["table6"]} == {(224, 3.5)}
    assert [c.steps for c in found["table3"]][1:] == [100_000, 200_000, 300_000]
    assert {c.config.training.batch_size for c in found["figure3"]} == {256, 512, 1024}
    assert {c.labels for c in found["table12"]} == {"random"}
