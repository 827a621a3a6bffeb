"""The Inception path with random weights: torch-fidelity's own tensors, the right layer for sFID, safe files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import Tensor

from epg.cli import main
from epg.errors import ArtefactError
from epg.evaluation import FEATURES, LOGITS, SPATIAL, receipt
from epg.evaluation.extractors import weights
from epg.evaluation.extractors.inception import SPATIAL_LAYER, WEIGHTS, inception
from epg.evaluation.image_folder import ImageFolder
from epg.evaluation.metrics.frechet import frechet_between
from tests.evaluation.helpers import random_inception
from tests.evaluation.test_sources import write_folder
from tests.helpers import relative

fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_inception(tmp_path_factory.mktemp("weights") / "random-inception.pth")


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """Four crops of two real photographs, uint8 (4, 3, 96, 96)."""
    pictures = [torch.from_numpy(p.copy()).permute(2, 0, 1) for p in load_sample_images().images]
    return torch.stack([p[:, y : y + 96, y : y + 96] for p in pictures for y in (50, 200)])


def test_every_output_is_torch_fidelitys(random_weights: Path, photographs: Tensor) -> None:
    own = fidelity.FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased", "logits"], feature_extractor_weights_path=str(random_weights)
    )
    pool, unbiased, biased = own(photographs)
    extractor = inception(random_weights)
    ours = extractor.compute(photographs)
    widths = {FEATURES: 2048, SPATIAL: 2023, LOGITS: 1008}
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == {n: (4, w) for n, w in widths.items()}
    assert relative(ours[FEATURES], pool) < 1e-5
    assert relative(ours[LOGITS], unbiased) < 1e-5
    assert relative(biased, unbiased) > 1e-4  # the bias would have been noticed
    assert (pool.std(0) > 0).double().mean() > 0.5  # the images are told apart: not everything died on the way
    assert "than the published one" in extractor.note


def test_the_layer_of_sfid_is_mixed_6_conv(random_weights: Path, photographs: Tensor) -> None:
    """Without our hook: block by block, as torch-fidelity calls them; the seventh block is TensorFlow's mixed_6."""
    network = fidelity.FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=str(random_weights)
    )
    blocks = [name for name, _ in network.named_children() if name.startswith("Mixed_")]
    assert len(blocks) == 11  # mixed, mixed_1 ... mixed_10
    assert f"{blocks[6]}.branch1x1" == SPATIAL_LAYER
    x = fidelity.interpolate_bilinear_2d_like_tensorflow1x(photographs.float(), size=(299, 299), align_corners=False)
    x = (x - 128) / 128
    for name, layer in network.named_children():
        if name == blocks[6]:
            break
        x = layer(x)
    branch = network.get_submodule(SPATIAL_LAYER)(x)
    assert branch.shape == (4, 192, 17, 17)
    assert branch.min() == 0  # after the ReLU
    assert torch.equal(branch, network.get_submodule(blocks[6])(x)[:, :192])  # first in the block's concatenation
    spatial = inception(random_weights).compute(photographs)[SPATIAL].view(4, 17, 17, 7)
    for row, column, channel in [(0, 0, 0), (3, 11, 6), (16, 2, 5)]:  # channels last, as in TensorFlow
        torch.testing.assert_close(
            spatial[:, row, column, channel], branch[:, channel, row, column], rtol=1e-5, atol=1e-5
        )
    assert relative(spatial.permute(0, 3, 1, 2), branch[:, :7]) < 1e-5


def test_from_the_command_line(random_weights: Path, photographs: Tensor, tmp_path: Path) -> None:
    """A reference of a folder, then samples against it: FID, IS and precision as ADM names them."""
    real = write_folder(tmp_path / "real", torch.cat([photographs, photographs.flip(3)]))
    fake = write_folder(tmp_path / "fake", torch.cat([photographs, photographs.flip(2)]))
    weights_flag = ["--inception", str(random_weights)]
    made = ["reference", str(real), "--image-size", "96", "--out", str(tmp_path / "reference"), *weights_flag]
    assert main(made) == 0
    arguments = ["evaluate", str(fake), "--reference", str(tmp_path / "reference"), *weights_flag]
    words = ["--metrics", "fid", "is", "pr"]  # not sfid, which takes as long again
    assert main([*arguments, *words, "--out", str(tmp_path / "receipt.json")]) == 0
    found = receipt.read(tmp_path / "receipt.json")
    assert list(found.metrics) == ["fid", "inception_score", "precision", "recall"]
    assert any("another file" in warning for warning in found.warnings)
    x, y = (inception(random_weights).compute(ImageFolder(f).read(0, 8)) for f in (real, fake))
    expected = frechet_between(x[FEATURES].numpy(), y[FEATURES].numpy())
    assert found.metrics["fid"].value == pytest.approx(expected, rel=1e-5)


def test_grey_images_count_as_grey_colours(random_weights: Path, photographs: Tensor) -> None:
    grey = photographs[:2, :1]
    extractor = inception(random_weights)
    outputs, repeated = extractor.compute(grey), extractor.compute(grey.repeat(1, 3, 1, 1))
    assert all(torch.equal(outputs[name], repeated[name]) for name in outputs)


def test_safetensors_hold_the_same_weights(random_weights: Path, photographs: Tensor, tmp_path: Path) -> None:
    save_file(torch.load(random_weights, weights_only=True), tmp_path / "inception.safetensors")
    outputs = inception(tmp_path / "inception.safetensors").compute(photographs[:1])
    assert relative(outputs[FEATURES], inception(random_weights).compute(photographs[:1])[FEATURES]) < 1e-6


@pytest.mark.filterwarnings("ignore")  # of TorchScript, about itself
def test_code_in_weight_files_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save(Evil(), tmp_path / "pickle.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("pickle.pth", "script.pth", "tensor.pth", "text.pth"):
        with pytest.raises(ArtefactError, match=rf"--inception .*{name}: (cannot be read as|not) a state dict"):
            inception(tmp_path / name)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ArtefactError, match="no such file"):
        inception(tmp_path / "missing.pth")


def test_weights_of_another_network_are_refused(random_weights: Path, tmp_path: Path) -> None:
    state = torch.load(random_weights, weights_only=True)
    del state["fc.weight"]
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(ArtefactError, match="not the weights of Inception-2015-12-05"):
        inception(tmp_path / "partial.pth")


def test_offline_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No network: port 9 of this machine answers nothing."""
    monkeypatch.setenv("EPG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ArtefactError) as caught:
        inception()
    expected = tmp_path / "cache" / WEIGHTS.name
    for part in (str(expected), WEIGHTS.sha256, WEIGHTS.url, "--inception PATH"):
        assert part in str(caught.value)
    expected.write_bytes(b"an error page")
    fidelitys = tmp_path / "torch" / "hub" / "checkpoints" / WEIGHTS.name
    fidelitys.parent.mkdir(parents=True)
    fidelitys.write_bytes(b"found and refused")
    with pytest.raises(ArtefactError, match="cannot be downloaded"):
        inception()
    told = capsys.readouterr().err
    assert f"{expected}: damaged" in told
    assert f"{fidelitys}: damaged" in told


def test_downloads_are_checked(tmp_path: Path, random_weights: Path) -> None:
    """From a file address, with the right and with a wrong checksum."""
    sha256 = weights.fingerprint(random_weights)["sha256"]
    right = weights.Published("right.pth", random_weights.as_uri(), sha256, "--inception")
    weights.download(right, tmp_path / "cache" / "right.pth")
    assert (tmp_path / "cache" / "right.pth").read_bytes() == random_weights.read_bytes()
    wrong = weights.Published("wrong.pth", random_weights.as_uri(), "0" * 64, "--inception")
    with pytest.raises(ArtefactError, match="not the published file"):
        weights.download(wrong, tmp_path / "cache" / "wrong.pth")
    assert not (tmp_path / "cache" / "wrong.pth").exists()
