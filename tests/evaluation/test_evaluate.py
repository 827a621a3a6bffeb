"""From images to a receipt: the numbers, what they do not depend on, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from epg.checkpoint.loading import generator_of
from epg.errors import ArtefactError, UserError
from epg.evaluation import receipt
from epg.evaluation.evaluate import evaluate
from epg.evaluation.metrics.frechet import frechet_between
from epg.evaluation.metrics.manifolds import Manifold, precision_recall
from epg.evaluation.metrics.score import inception_score
from epg.evaluation.receipt import Receipt
from epg.evaluation.reference import Reference, make_reference
from epg.evaluation.sources import GeneratorSource, TensorSource
from epg.sampling import Request, fitted
from tests.evaluation.helpers import random_extractor, random_images
from tests.helpers import tiny_config, tiny_epg


def reference_of(count: int = 90, name: str = "random", **options: int) -> Reference:
    made = make_reference(TensorSource(random_images(count)), [random_extractor(name)], **options)
    assert made is not None
    return made


def judge(
    images: torch.Tensor,
    words: list[str] | None = None,
    *,
    name: str = "random",
    labels: torch.Tensor | None = None,
    batch_size: int = 64,
) -> Receipt:
    result = evaluate(
        TensorSource(images, labels), reference_of(name=name), [random_extractor(name)], words, batch_size=batch_size
    )
    assert result is not None
    return result


def values(result: Receipt) -> dict[str, float]:
    return {key: number.value for key, number in result.metrics.items()}


def test_numbers_are_those_of_the_features() -> None:
    result = judge(random_images(70, seed=1))
    extractor = random_extractor()
    x, y = (
        extractor.compute(images)["features"].detach().numpy()
        for images in (random_images(90), random_images(70, seed=1))
    )
    expected = precision_recall(Manifold(x), Manifold(y))
    assert set(result.metrics) == {"fd_random", "precision_random", "recall_random"}
    assert result.metrics["fd_random"].value == pytest.approx(frechet_between(x, y), rel=1e-6)
    assert result.metrics["precision_random"].value == pytest.approx(expected.precision)
    assert result.metrics["recall_random"].value == pytest.approx(expected.recall)


def test_inceptions_numbers_have_the_papers_names() -> None:
    """Whatever extractor is called inception; the names of others say what they are and never FID."""
    result = judge(random_images(70, seed=1), ["fid", "sfid", "is", "pr", "dc", "kid"], name="inception")
    assert list(result.metrics) == [
        *("fid", "sfid", "inception_score", "precision", "recall", "density", "coverage", "kid")
    ]
    extractor = random_extractor()
    outputs = [extractor.compute(images) for images in (random_images(90), random_images(70, seed=1))]
    spatial, logits = ([o[name].detach().numpy() for o in outputs] for name in ("spatial", "logits"))
    assert result.metrics["sfid"].value == pytest.approx(frechet_between(*spatial), rel=1e-5)
    assert result.metrics["inception_score"].value == pytest.approx(inception_score(logits[1]).value, rel=1e-5)
    other = judge(random_images(70, seed=1), ["fd", "pr", "dc", "kid", "mmd"])
    assert all("random" in key and "(random)" in number.name for key, number in other.metrics.items())
    assert "FID" not in json.dumps([number.name for number in other.metrics.values()])
    assert "KID" not in json.dumps([number.name for number in other.metrics.values()])


def test_batch_size_changes_nothing() -> None:
    images = random_images(100, seed=1)
    words = ["fid", "sfid", "is", "pr", "kid"]
    first, *others = (judge(images, words, name="inception", batch_size=size) for size in (1, 17, 64))
    for other in others:
        assert other.samples["pixels"] == first.samples["pixels"]
        assert values(other) == pytest.approx(values(first), rel=1e-9, abs=0)


def test_errors_shrink_with_the_number_of_samples() -> None:
    """And are of the size of the actual spread between independent sets of samples."""
    few = [judge(random_images(200, seed=seed), ["fd"]).metrics["fd_random"] for seed in range(1, 9)]
    many = judge(random_images(3200, seed=1), ["fd"]).metrics["fd_random"]
    told = np.mean([number.error for number in few])
    spread = np.std([number.value for number in few], ddof=1)
    assert 0.3 < told / spread < 3
    assert many.error is not None
    assert many.error < 0.6 * told


def test_accuracy_by_class() -> None:
    images = random_images(60, seed=1)
    predicted = random_extractor("classifier").compute(images)["logits"].argmax(1)
    labels = predicted.clone()
    labels[:6] = (labels[:6] + 1) % 4
    result = judge(images, ["accuracy"], name="classifier", labels=labels)
    assert result.metrics["accuracy"].value == pytest.approx(0.9)
    assert sum(c.count for c in result.classes) == 60
    assert sum(c.count * c.accuracy for c in result.classes) == pytest.approx(54)
    wrong = next(c for c in result.classes if c.accuracy < 1)
    confused = predicted[(labels == wrong.label) & (predicted != labels)]
    assert wrong.most_often_taken_for == f"class {confused.bincount().argmax()}"


def test_samples_of_a_generator() -> None:
    """Drawn as they are judged; the receipt says everything that they depend on."""
    config = tiny_config()
    model = generator_of(config, tiny_epg(config))
    extractor = random_extractor(channels=1)
    made = make_reference(TensorSource(random_images(60, channels=1)), [extractor])
    labels = model.make_labels(40, balanced=True)
    source = GeneratorSource(fitted(model, Request(count=40, seed=3, batch_size=16)))
    result = evaluate(source, made, [extractor], ["fd"])
    assert result is not None
    images = model.sample(labels, seed=3)
    fake, real = (extractor.compute(x)["features"].detach().numpy() for x in (images, random_images(60, channels=1)))
    assert result.metrics["fd_random"].value == pytest.approx(frechet_between(real, fake), rel=1e-4)
    assert result.samples["seed"] == 3
    assert result.samples["sampling"]["sampler"] == "heun"
    assert result.samples["nfe"] == model.count_evaluations()
    assert result.samples["count"] == 40


def test_notes_of_what_should_not_be_overlooked() -> None:
    extractor = replace(random_extractor(), note="not the published weights")
    grey = TensorSource(random_images(20, channels=1).expand(-1, 3, -1, -1).contiguous())
    reference = replace(reference_of(), manifest={"image_size": 8, "channels": 1})
    result = evaluate(grey, reference, [extractor], ["pr"], warnings=["JPEG"])
    assert result is not None
    assert result.warnings == ["JPEG", "not the published weights", "the samples are in colour, the reference is grey"]
    assert result.metrics["precision_random"].value <= 1


def test_receipt_is_read_back(tmp_path: Path) -> None:
    result = judge(random_images(20, seed=1))
    result.write(tmp_path / "new" / "receipt.json")
    assert receipt.read(tmp_path / "new" / "receipt.json") == result
    assert any("20 samples" in warning for warning in result.warnings)
    for content in (b"{}", b"[", b'{"metrics": 3}', b"\xff"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(ArtefactError, match=r"bad.json: not a receipt"):
            receipt.read(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("words", "name", "message"),
    [
        (["fid"], "random", "--metrics fid: is defined with Inception's features"),
        (["fd"], "inception", "is called fid"),
        (["accuracy"], "random", "use --features classifier"),
        (["accuracy"], "classifier", "no labels"),
        (["mse"], "random", "--metrics mse: unknown; choose from fid"),
    ],
)
def test_metrics_that_do_not_fit(words: list[str], name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        judge(random_images(20), words, name=name)


def test_features_that_are_not_finite() -> None:
    broken = replace(random_extractor(), compute=lambda images: {"features": torch.full((len(images), 4), torch.nan)})
    with pytest.raises(ArtefactError, match="--features random: its features are not finite"):
        evaluate(TensorSource(random_images(20)), reference_of(), [broken], ["fd"])


def test_references_that_do_not_fit() -> None:
    samples, extractor = TensorSource(random_images(20)), random_extractor()
    with pytest.raises(UserError, match="8x8 images, the samples are 16x16"):
        evaluate(TensorSource(random_images(20, size=16)), reference_of(), [extractor])
    with pytest.raises(UserError, match="has no statistics of random, only of other"):
        evaluate(samples, reference_of(name="other"), [extractor])
    with pytest.raises(UserError, match="those of other weights"):
        evaluate(samples, reference_of(), [replace(extractor, sha256="1" * 64)])
    with pytest.raises(UserError, match="other preprocessing"):
        evaluate(samples, reference_of(), [replace(extractor, preprocessing="another resize")])
    with pytest.raises(UserError, match="has 5 images; these metrics need at least 6"):
        evaluate(samples, reference_of(5), [extractor])
    with pytest.raises(UserError, match=r"takes 8x8 grey images, but those of .* are 8x8 colour"):
        evaluate(samples, reference_of(), [replace(extractor, shape=(1, 8, 8))])
    with pytest.raises(UserError, match="at least 6 images"):
        evaluate(TensorSource(random_images(5)), reference_of(), [extractor])
    bare = reference_of()
    statistics = {"random": replace(bare.statistics["random"], features=None)}
    with pytest.raises(UserError, match="no images; precision, recall"):
        evaluate(samples, replace(bare, statistics=statistics), [extractor])
    assert evaluate(samples, replace(bare, statistics=statistics), [extractor], ["fd"]) is not None
