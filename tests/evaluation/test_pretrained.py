"""DINOv2 and CLIP with tiny random networks: which output, which preparation of the images, what happens offline."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from epg.errors import ArtefactError
from epg.evaluation import FEATURES
from epg.evaluation.extractors import Choice, choices, open_extractor, pretrained
from epg.evaluation.measures import choose
from tests.evaluation.helpers import random_extractor, random_images

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tiny_dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def test_dinov2_gives_the_class_token(tiny_dinov2: Path) -> None:
    extractor = open_extractor(Choice("dinov2", tiny_dinov2))
    images = random_images(3, size=224)  # no resizing: the preparation is the normalisation alone
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in pretrained.IMAGENET)
    with torch.no_grad():
        network = transformers.Dinov2Model.from_pretrained(tiny_dinov2).eval()
        expected = network(pixel_values=(images / 255 - mean) / std).pooler_output
    torch.testing.assert_close(extractor.compute(images)[FEATURES], expected, rtol=1e-4, atol=1e-4)
    small = extractor.compute(random_images(2, size=32, channels=1))[FEATURES]
    assert small.shape == (2, 16)


def test_clip_gives_projections_of_length_one(tiny_clip: Path) -> None:
    extractor = open_extractor(Choice("clip", tiny_clip))
    images = random_images(3, size=28)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in pretrained.CLIPS)
    with torch.no_grad():
        network = transformers.CLIPVisionModelWithProjection.from_pretrained(tiny_clip).eval()
        expected = F.normalize(network(pixel_values=(images / 255 - mean) / std).image_embeds, dim=1)
    features = extractor.compute(images)[FEATURES]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))


def test_weights_identify_the_extractor(tiny_dinov2: Path, tmp_path: Path) -> None:
    first = pretrained.dinov2(tiny_dinov2)
    network = transformers.Dinov2Model.from_pretrained(tiny_dinov2)
    torch.nn.init.ones_(network.layernorm.bias)
    network.save_pretrained(tmp_path)
    assert pretrained.dinov2(tiny_dinov2).sha256 == first.sha256
    assert pretrained.dinov2(tmp_path).sha256 != first.sha256


def test_usual_metrics() -> None:
    extractors = [random_extractor(name) for name in ("dinov2", "clip")]
    chosen = choose(None, [e.name for e in extractors])
    assert {name: list(of) for name, of in chosen.items()} == {"dinov2": ["fd", "pr"], "clip": ["mmd"]}
    assert choices(["clip", "dinov2=x"]) == [Choice("clip"), Choice("dinov2", Path("x"))]


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as the variable does before the import
    with pytest.raises(ArtefactError, match=r"facebook/dinov2-large cannot be loaded .* --features dinov2=FOLDER"):
        pretrained.dinov2()
    with pytest.raises(ArtefactError, match=r"clip=.*nothing: no folder with a config.json"):
        pretrained.clip(tmp_path / "nothing")
