"""Evaluation while training: it changes nothing, survives interruption, and the best checkpoint stays."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from epg.checkpoint import checkpoint
from epg.checkpoint.best import Best, best_of, mark
from epg.checkpoint.loading import generator_of
from epg.cli import main
from epg.config.settings import RunConfig
from epg.distributed import rank
from epg.errors import InterruptedRunError, UserError
from epg.evaluation import receipt
from epg.evaluation.periodic import BLOCK, PeriodicEvaluation, draw
from epg.evaluation.receipt import Number, Receipt
from epg.runs import prepare_run, train
from epg.storage import files
from epg.training.tracking import read_log
from tests import started
from tests.helpers import tiny_config, tiny_epg
from tests.test_runs import folder_of_images
from tests.training.test_loop import CrashError, assert_identical, crash_after, tensors, tiny

ONCE = {"steps": 6, "checkpoint_every": 3}


def config(**changes: Any) -> RunConfig:
    evaluation = {"every": 2, "count": 40, **changes.pop("evaluation", {})}
    training = {**ONCE, **changes.pop("training", {})}
    return tiny("diffusion", evaluation=evaluation, training=training, sampling={"steps": 3}, **changes)


def records(run: Path) -> dict[str, dict[str, Any]]:
    """Receipts without what is different every time: times, and whether the reference came from the cache."""
    found = {}
    for file in sorted((run / "evaluations").iterdir()):
        found[file.name] = receipt.read(file).model_dump(exclude={"time", "seconds", "command"})
        found[file.name]["reference"]["sha256"] = ""
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with evaluations after steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("straight")
    train(config(), folder)
    return folder


def test_evaluations_change_nothing_in_the_weights(straight: Path, tmp_path: Path) -> None:
    train(tiny("diffusion", training=ONCE, sampling={"steps": 3}), tmp_path)
    assert_identical(tensors(straight), tensors(tmp_path))
    with_, without = read_log(straight), read_log(tmp_path)
    assert [line["step"] for line in with_] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in with_] == [line["loss"] for line in without]


def test_what_is_recorded_is_what_the_checkpoint_gives(straight: Path, tmp_path: Path) -> None:
    """`epg evaluate` of the newest checkpoint, with as many samples, gives the very numbers of the last evaluation."""
    found = receipt.read(straight / "evaluations" / "step-00000006.json")
    assert (
        main(["evaluate", str(straight), "--count", "40", "--batch-size", "32", "--out", str(tmp_path / "e.json")]) == 0
    )
    alone = receipt.read(tmp_path / "e.json")
    assert alone.samples["pixels"] == found.samples["pixels"]
    assert {key: alone.metrics[key] for key in found.metrics} == found.metrics
    assert found.samples["ema"] == alone.samples["ema"] == "ema-0.99"


class Interrupting:
    """Raises in an evaluation of a step, after so many calls from within it, as a crash there would."""

    def __init__(self, examination: Callable[..., Any], step: int, calls: int, act: Callable[[], None]) -> None:
        self.examination, self.step, self.calls, self.act = examination, step, calls, act

    def __call__(self, step: int, between: Callable[[], None]) -> Receipt | None:
        count = 0

        def counted() -> None:
            nonlocal count
            count += 1
            if (step, count) == (self.step, self.calls):
                self.act()
            between()

        return self.examination(step, counted)  # type: ignore[no-any-return]


def crash() -> None:
    raise CrashError


@pytest.mark.parametrize(("step", "calls"), [(2, 1), (4, 3), (6, 1), (6, 3)])
def test_a_crash_in_an_evaluation_leaves_no_trace(step: int, calls: int, straight: Path, tmp_path: Path) -> None:
    """While samples are drawn, and while features are computed."""
    run = prepare_run(config(), tmp_path)
    assert isinstance(run.trainer.evaluation, PeriodicEvaluation)
    run.trainer.evaluation.examination = Interrupting(run.trainer.evaluation.examination, step, calls, crash)
    with pytest.raises(CrashError):
        run.trainer.run()
    assert not (tmp_path / "evaluations" / f"step-{step:08d}.json").exists()
    train(config(), tmp_path)
    assert_identical(tensors(straight), tensors(tmp_path))
    assert records(tmp_path) == records(straight)
    assert (tmp_path / "best.json").read_bytes() == (straight / "best.json").read_bytes()
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_crash_between_evaluations_forgets_what_did_not_come_to_pass(straight: Path, tmp_path: Path) -> None:
    run = prepare_run(config(), tmp_path)
    crash_after(run.trainer, 5)
    with pytest.raises(CrashError):
        run.trainer.run()
    for path in checkpoint.listing(tmp_path / "checkpoints")[-1:]:
        files.discard(path)  # as if step 4 had never been written, though it was evaluated
    made_up = receipt.read(tmp_path / "evaluations" / "step-00000004.json")
    better = made_up.metrics["fd_classifier"].model_copy(update={"value": 0.0})
    made_up.model_copy(update={"metrics": {"fd_classifier": better}}).write(
        tmp_path / "evaluations" / "step-00000004.json"
    )
    mark(tmp_path, Best(step=4, checkpoint="", metric="fd_classifier", value=0.0, better="lower"))
    train(config(), tmp_path)
    assert records(tmp_path) == records(straight)
    assert best_of(tmp_path) == best_of(straight)


def test_a_signal_in_an_evaluation_stops_at_once_and_resumes_there(straight: Path, tmp_path: Path) -> None:
    run = prepare_run(config(), tmp_path)
    assert isinstance(run.trainer.evaluation, PeriodicEvaluation)
    examination = run.trainer.evaluation.examination
    act = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    run.trainer.evaluation.examination = Interrupting(examination, 4, 1, act)
    with pytest.raises(InterruptedRunError, match="after step 4"):
        run.trainer.run()
    assert checkpoint.find(tmp_path).step == 4
    train(config(), tmp_path)
    assert_identical(tensors(straight), tensors(tmp_path))
    assert records(tmp_path) == records(straight)


class Scores:
    """An examination whose result is known beforehand."""

    def __init__(self, values: dict[int, float], better: Any = "lower") -> None:
        self.values, self.better = values, better

    def __call__(self, step: int, between: Callable[[], None]) -> Receipt:
        number = Number(name="score", value=self.values[step], better=self.better)
        return Receipt(metrics={"score": number}, samples={}, reference={}, extractors={})


@pytest.mark.parametrize(("better", "best"), [("lower", 3), ("higher", 1)])
def test_the_best_checkpoint_is_marked_and_kept(better: str, best: int, tmp_path: Path) -> None:
    """Only the last two are kept otherwise."""
    every = {"evaluation": {"every": 1}, "training": {"steps": 8, "keep": 2, "checkpoint_every": 8}}
    scores = {1: 0.9, 2: 0.5, 3: 0.2, 4: 0.4, 5: 0.3, 6: 0.6, 7: 0.8, 8: 0.7}
    run = prepare_run(config(**every), tmp_path)
    run.trainer.evaluation = PeriodicEvaluation(tmp_path, 1, 8, 0, Scores(scores, better))
    run.trainer.run()
    assert [checkpoint.step_of(p) for p in checkpoint.listing(tmp_path / "checkpoints")] == [best, 7, 8]
    held = best_of(tmp_path)
    assert held is not None
    assert (held["step"], held["value"], held["metric"]) == (best, scores[best], "score")
    assert checkpoint.read(tmp_path / held["checkpoint"]).step == best
    assert main(["verify", str(tmp_path)]) == 0
    assert main(["sample", str(tmp_path / held["checkpoint"]), "--count", "1", "--out", str(tmp_path / "s")]) == 0


def test_a_mark_is_whole_or_not_there(tmp_path: Path) -> None:
    assert best_of(tmp_path) is None
    best = Best(step=3, checkpoint="checkpoints/step-00000003", metric="fid", value=1.5, better="lower")
    mark(tmp_path, best)
    mark(tmp_path, best)
    assert best_of(tmp_path) == best
    for text in ("", "{", "[]", '{"step": 3}', json.dumps({**best, "step": "3"})):
        (tmp_path / "best.json").write_text(text)
        assert best_of(tmp_path) is None
    mark(tmp_path, None)
    assert not list(tmp_path.iterdir())


def test_a_write_that_failed_is_not_marked(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000002").mkdir(parents=True)
    evaluation = PeriodicEvaluation(tmp_path, 1, 8, 0, Scores({1: 0.1, 2: 0.5}))
    evaluation(1, lambda: None, lambda: False)
    assert best_of(tmp_path) is None
    evaluation(2, lambda: None, lambda: True)
    held = best_of(tmp_path)
    assert held is not None
    assert held["step"] == 2


def test_an_unknown_metric_costs_the_mark_and_not_the_run(tmp_path: Path) -> None:
    evaluation = PeriodicEvaluation(tmp_path, 1, 8, 0, Scores({1: 0.1}), "fid")
    with pytest.warns(UserWarning, match=r"--evaluation\.best fid: not measured; choose from score"):
        assert evaluation(1, lambda: None, lambda: True) == {"evaluation/score": 0.1}
    assert not evaluation.missing(1)


def test_images_without_labels_are_compared_by_the_encoder(tmp_path: Path) -> None:
    images = folder_of_images(tmp_path / "images", classes=1, each=20) / "class0"
    data = {"data": {"source": str(images)}}
    with pytest.raises(UserError, match=r"--evaluation\.every: these images have no labels.*--evaluation\.features"):
        prepare_run(config(**data), tmp_path / "scratch")
    short = {"steps": 2, "checkpoint_every": 2}
    train(tiny("pretraining", training=short, **data), tmp_path / "encoder")
    train(config(training=short, **data), tmp_path / "run", encoder=tmp_path / "encoder")
    assert "fd_encoder" in receipt.read(tmp_path / "run/evaluations/step-00000002.json").metrics
    one_step = tiny("onestep", training=short, evaluation={"count": 40}, **data)
    train(one_step, tmp_path / "one", base=tmp_path / "run")  # in these features, so that they judge nothing
    assert "fd_random" in receipt.read(tmp_path / "one/evaluations/step-00000002.json").metrics


def test_stage_1_is_evaluated_by_its_neighbours(tmp_path: Path) -> None:
    training = {"steps": 4, "checkpoint_every": 4}
    plain = tiny("pretraining", training=training)
    train(plain, tmp_path / "plain")
    train(plain.model_copy(update={"evaluation": config().evaluation}), tmp_path / "run")
    assert_identical(tensors(tmp_path / "plain"), tensors(tmp_path / "run"))
    found = [receipt.read(f) for f in sorted((tmp_path / "run" / "evaluations").iterdir())]
    assert [list(r.metrics) for r in found] == [["knn_0.002", "knn_0.5"]] * 2
    assert 0.3 < found[0].metrics["knn_0.002"].value <= 1  # random features of clean digits are worth something


def drawn(world: int, out: str) -> None:
    if world > 1:
        torch.distributed.init_process_group("gloo")
    tiny_model = generator_of(tiny_config(), tiny_epg())
    calls = []
    images = draw(tiny_model, BLOCK + 20, 5, lambda: calls.append(1))
    torch.save((images, len(calls)), f"{out}/{world}-{rank()}.pt")


def test_two_processes_draw_the_images_of_one(tmp_path: Path) -> None:
    drawn(1, str(tmp_path))
    started.call(drawn, 2, tmp_path, processes=2)
    alone, calls = torch.load(tmp_path / "1-0.pt", weights_only=True)
    model = generator_of(tiny_config(), tiny_epg())
    labels = model.make_labels(BLOCK + 20, balanced=True)
    assert alone.shape == (BLOCK + 20, 1, 8, 8)
    assert (alone.int() - model.sample(labels, seed=5).int()).abs().max() <= 1
    assert calls == 2
    for number in range(2):
        images, calls = torch.load(tmp_path / f"2-{number}.pt", weights_only=True)
        assert torch.equal(images, alone)
        assert calls == 1
