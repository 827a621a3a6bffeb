"""Extractors without a download: the cached classifier and the run's own encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from epg.checkpoint import export
from epg.data.dataset import open_dataset
from epg.errors import UserError
from epg.evaluation import FEATURES, LOGITS
from epg.evaluation.extractors import Choice, choices, indomain, open_extractor
from epg.evaluation.extractors.indomain import classifier, encoder, images_and_labels, with_held_out
from epg.networks.encoder import CLS
from epg.objectives.base import normalizer_for
from epg.schedule import input_scale, time_condition
from tests.helpers import run_state, tiny_config, tiny_epg


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def digits(split: str = "train"):  # type: ignore[no-untyped-def]
    return open_dataset("digits", image_size=8, channels=1, split=split)


def test_classifier_is_trained_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indomain, "FEWEST_STEPS", 60)
    trained = []
    train = indomain.train_classifier
    monkeypatch.setattr(indomain, "train_classifier", lambda *a, **k: trained.append(1) or train(*a, **k))
    first = classifier(digits(), digits("test"))
    assert first.held_out_accuracy is not None
    assert first.held_out_accuracy > 0.8
    second = classifier(digits(), digits("test"))
    assert (second.sha256, second.held_out_accuracy) == (first.sha256, first.held_out_accuracy)
    assert len(trained) == 1
    images, labels = images_and_labels(digits("test"))
    outputs = [e.compute(images) for e in (first, second)]
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in (FEATURES, LOGITS))
    assert (outputs[0][LOGITS].argmax(1) == labels).double().mean() == pytest.approx(first.held_out_accuracy)
    (file,) = (cache / "classifiers").iterdir()
    file.write_bytes(file.read_bytes()[:-9])  # damaged: trained again
    assert classifier(digits(), digits("test")).sha256 == first.sha256
    assert len(trained) == 2
    classifier(*with_held_out(digits()))  # other images: another classifier
    assert len(trained) == 3


def test_held_out_images_are_not_trained_on() -> None:
    kept, held_out = with_held_out(digits())
    assert len(held_out) == len(digits()) // 5
    assert set(kept.indices).isdisjoint(held_out.indices)
    assert len(kept) + len(held_out) == len(digits())


def test_encoder_is_the_runs_own(tmp_path: Path) -> None:
    """CLS features of clean images at sigma_min, step by step."""
    config = tiny_config()
    network = tiny_epg(config)
    state = run_state(config, ["a", "b", "c"])
    export.write(tmp_path / "run" / "export", 7, {"model": {}, "ema-0.9": network.state_dict()}, state)
    extractor = encoder(tmp_path / "run")
    images, _ = images_and_labels(digits("test"), np.arange(40))
    t = torch.full((40,), config.shift * config.noise.sigma_min)
    x = input_scale(t, config.noise.sigma_data).view(-1, 1, 1, 1) * normalizer_for(config).encode(images)
    with torch.no_grad():
        unconditional = network.class_embedding.weight[network.null_class].expand(40, -1)
        expected = network.encoder(x, time_condition(t), unconditional)[0][:, CLS]
    torch.testing.assert_close(extractor.compute(images)[FEATURES], expected, rtol=1e-5, atol=1e-5)
    assert extractor.shape == (1, 8, 8)
    assert "diffusion" in extractor.preprocessing


def test_words_of_features() -> None:
    path = Path("weights.pth")
    assert choices(["inception", "encoder=runs/a"], path) == [
        Choice("inception", path),
        Choice("encoder", Path("runs/a")),
    ]
    for words, inception, message in [
        (["vgg"], None, "--features vgg: unknown; choose from inception"),
        (["encoder"], None, "of which run"),
        (["inception=x"], None, "--inception PATH"),
        (["inception", "inception"], None, "named twice"),
        (["classifier"], path, "--inception: does nothing"),
    ]:
        with pytest.raises(UserError, match=message):
            choices(words, inception)
    with pytest.raises(UserError, match="pass the data set itself"):
        open_extractor(Choice("classifier"))
