"""A small random network as an extractor: real features without any weights to download."""

from pathlib import Path

import torch
from torch import Tensor, nn

from epg.evaluation import FEATURES, LOGITS, SPATIAL
from epg.evaluation.extractors.extractor import Extractor


def random_extractor(name: str = "random", channels: int = 3, width: int = 12, classes: int = 4) -> Extractor:
    """Convolution, pooling and a head; weights depend on nothing but the sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv, head = nn.Conv2d(channels, width, 3, stride=2), nn.Linear(width, classes)

    def compute(images: Tensor) -> dict[str, Tensor]:
        maps = conv(images.float() / 127.5 - 1).relu()
        features = maps.mean((2, 3))
        return {FEATURES: features, SPATIAL: maps[:, :2].flatten(1), LOGITS: 20 * head(features)}

    names = tuple(f"class {i}" for i in range(classes))
    return Extractor(name, "0" * 64, "none", compute, class_names=names, held_out_accuracy=0.5)


def random_images(count: int, size: int = 8, channels: int = 3, seed: int = 0) -> Tensor:
    """Smooth uint8 pictures (N, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 2, 2, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return (255 * smooth).to(torch.uint8)


def random_inception(file: Path) -> Path:
    """Writes random weights in the published layout, scaled so that every layer stays alive."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unfilled(FeatureExtractorInceptionV3):  # type: ignore[misc,name-defined]
        """The network before any weights."""

        def load_state_dict(self, weights: object) -> None:
            pass

    torch.save({}, file)
    state = Unfilled("inception", ["2048"], feature_extractor_weights_path=str(file)).state_dict()
    g = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if name.endswith(("running_var", "bn.weight")):
            tensor.copy_(torch.rand(tensor.shape, generator=g) + 0.5)
        elif tensor.ndim == 4:
            tensor.copy_(torch.randn(tensor.shape, generator=g) * (2 / tensor[0].numel()) ** 0.5)
        elif tensor.is_floating_point():
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=g))
    torch.save(state, file)
    return file
