"""From images to a receipt."""

import json

import pytest

from epg.evaluation.evaluate import evaluate
from epg.evaluation.metrics import Manifold, frechet_between, precision_recall
from epg.evaluation.reference import make_reference
from epg.evaluation.sources import TensorSource
from tests.evaluation.helpers import random_extractor, random_images


def test_numbers_are_those_of_the_features() -> None:
    extractor = random_extractor()
    real, fake = random_images(90), random_images(70, seed=1)
    reference = make_reference(TensorSource(real), [extractor])
    result = evaluate(TensorSource(fake), reference, [extractor])
    assert result is not None
    x, y = (extractor.compute(images)["features"].detach().numpy() for images in (real, fake))
    expected = precision_recall(Manifold(x), Manifold(y))
    assert set(result.metrics) == {"fd_random", "precision_random", "recall_random"}
    assert result.metrics["fd_random"].value == pytest.approx(frechet_between(x, y), rel=1e-6)
    assert result.metrics["precision_random"].value == pytest.approx(expected.precision)
    assert result.metrics["recall_random"].value == pytest.approx(expected.recall)
    assert "random" in result.metrics["fd_random"].name
    assert "FID" not in json.dumps(result.model_dump()["metrics"])
