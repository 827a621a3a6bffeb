"""The registry of metrics, and their errors: what they should be, whatever the order in which samples come."""

from pathlib import Path

import numpy as np
import pytest

from epg.cli import main
from epg.errors import UserError
from epg.evaluation.estimates import Estimate, some
from epg.evaluation.evaluate import evaluate
from epg.evaluation.measures import METRICS, Metric, Name, choose
from epg.evaluation.metrics.frechet import frechet_between, statistics
from epg.evaluation.metrics.uncertainty import GROUPS, frechet, groups_of, jackknife
from epg.evaluation.reference import make_reference
from epg.evaluation.sources import TensorSource
from tests.evaluation.helpers import random_extractor, random_images

DOCS = Path(__file__).parent.parent.parent / "docs" / "evaluation.md"


def test_groups_share_out_all_samples_and_no_period() -> None:
    groups = groups_of(103)
    assert sorted(np.concatenate(groups).tolist()) == list(range(103))
    assert {len(group) for group in groups} == {20, 21}
    assert all(len(set((group % GROUPS).tolist())) == GROUPS for group in groups)


def test_the_error_of_a_mean_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    errors = [jackknife(lambda i, v=v: float(v[i].mean()), len(v)) for v in values.reshape(10, 500)]  # type: ignore[misc]
    assert np.mean(np.square([e for e in errors if e is not None])) == pytest.approx(1 / 500, rel=0.5)


def test_classes_in_turn_do_not_inflate_the_error() -> None:
    """Groups of every fifth sample would hold two of ten classes each: an error ten times as large."""
    rng = np.random.default_rng(0)
    classes = np.arange(1000) % 10
    features = (rng.normal(size=(10, 6))[classes] * 5 + rng.normal(size=(1000, 6))).astype(np.float32)
    reference = statistics((rng.normal(size=(10, 6))[classes] * 5 + rng.normal(size=(1000, 6))).astype(np.float32))
    in_turn, shuffled = (frechet(f, reference) for f in (features, features[rng.permutation(1000)]))
    assert in_turn[0] == pytest.approx(shuffled[0], rel=1e-6)
    assert in_turn[1] is not None
    assert shuffled[1] is not None
    assert in_turn[1] == pytest.approx(shuffled[1], rel=1)


def test_a_new_metric_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its word to a receipt, with the key, name and checks that others have."""
    brightness = Metric(
        "distance of mean features",
        [Name("shift", "shift of the mean", "lower")],
        lambda e: [Estimate(float(np.abs(e.features.mean(0) - e.reference_features.mean(0)).max()), None, "")],
        never="inception",
        needs="images",
    )
    monkeypatch.setitem(METRICS, "shift", brightness)
    extractor, images = random_extractor(), random_images(40)
    reference = make_reference(TensorSource(images), [extractor])
    found = evaluate(TensorSource(images), reference, [extractor], ["shift", "fd"])
    assert found is not None
    assert list(found.metrics) == ["shift_random", "fd_random"]
    number = found.metrics["shift_random"]
    assert (number.name, number.better, number.error) == ("shift of the mean (random)", "lower", None)
    assert number.value == pytest.approx(0, abs=1e-6)
    with pytest.raises(UserError, match="--count 5: these metrics need at least 6 images"):
        evaluate(TensorSource(images[:5]), reference, [extractor], ["shift"])
    with pytest.raises(UserError, match="--metrics shift: not with inception"):
        choose(["shift"], ["inception"])


def test_fdr_is_a_mean_of_ratios_at_equal_counts() -> None:
    """Of 40 samples as many are taken as there are held-out images, and the same by every extractor."""
    images, real, samples = (random_images(count, seed=seed) for seed, count in enumerate((60, 25, 40)))
    extractors = [random_extractor("narrow", width=4), random_extractor("wide", width=6)]
    reference = make_reference(TensorSource(images), extractors)
    of = {e.name: [e.compute(x)["features"].detach().numpy() for x in (images, real, samples)] for e in extractors}
    held_out = {name: features[1] for name, features in of.items()}
    found = evaluate(TensorSource(samples), reference, extractors, ["fdr"], held_out=held_out)
    assert found is not None
    assert list(found.metrics) == ["fd_ratio_narrow", "fd_ratio_wide", "fdr"]
    ratios = {
        name: frechet_between(some(drawn, 25), seen) / frechet_between(real, seen)
        for name, (seen, real, drawn) in of.items()
    }
    for name, ratio in ratios.items():
        assert found.metrics[f"fd_ratio_{name}"].value == pytest.approx(ratio, rel=1e-6)
    mean = found.metrics["fdr"]
    assert (mean.name, mean.better) == ("FDr (narrow, wide)", "lower")
    assert mean.value == pytest.approx(sum(ratios.values()) / 2, rel=1e-6)
    assert mean.error_from.endswith("of 25 held-out images")
    with pytest.raises(UserError, match="--metrics fdr: needs real images that the reference does not contain"):
        evaluate(TensorSource(samples), reference, extractors, ["fdr"])


@pytest.mark.parametrize("verb", ["evaluate", "sweep"])
def test_help_and_docs_name_every_metric(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert f"{{{','.join(METRICS)}}}" in "".join(capsys.readouterr().out.replace("│", " ").split())
    docs = DOCS.read_text()
    assert [f"| `{word}` | {m.about} |" for word, m in METRICS.items() if f"| `{word}` | {m.about} |" not in docs] == []


def test_an_unknown_word_is_refused_before_anything_is_opened(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "digits", "--metrics", "fidd"]) == 2
    assert "--metrics fidd: unknown; choose from fid, sfid" in capsys.readouterr().err
