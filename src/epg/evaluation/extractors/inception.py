"""Inception-2015-12-05, the network that FID, sFID and the Inception score are defined with, through torch-fidelity.

torch-fidelity's port of the TensorFlow graph takes uint8 images, resizes them as TensorFlow 1 did and applies the
published weights; we add the tensor of sFID with a hook. ADM's evaluator reads it as `mixed_6/conv:0`: the output
(after batch normalisation and ReLU) of the 1x1 branch of the seventh Inception block. The blocks of the graph are
mixed, mixed_1 ... mixed_10; those of the port Mixed_5b, 5c, 5d, 6a, 6b, 6c, 6d, 6e, 7a, 7b, 7c: so mixed_6 is
Mixed_6d, which is also where torch-fidelity's converter puts its weights. TensorFlow's tensor is (N, 17, 17, 192) with
the channels last; ADM keeps the first seven channels and flattens: 17 * 17 * 7 = 2023 numbers.
"""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epg.errors import ArtefactError, UserError
from epg.evaluation import FEATURES, LOGITS, SPATIAL
from epg.evaluation.extractors.extractor import Extractor
from epg.evaluation.extractors.weights import Published, find_published, read_weights
from epg.extras import install
from epg.storage.artefact import fingerprint

WEIGHTS = Published(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "--inception",
)
LAYERS = ["2048", "logits_unbiased"]  # pool_3, and the logits without their bias
SPATIAL_LAYER = "Mixed_6d.branch1x1"  # mixed_6/conv of the TensorFlow graph
SPATIAL_SHAPE = (192, 17, 17)
SPATIAL_CHANNELS = 7


def inception(path: Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """pool_3 (2048), mixed_6/conv (2023) and the logits without bias (1008).

    Args:
        path: a state dict with torch-fidelity's names; None takes the published weights from cache or web. Other
            weights than the published ones are for tests: the extractor's sha256 tells them apart.

    Raises:
        UserError: torch-fidelity is not installed. ArtefactError: weights that are missing, damaged or others.
    """
    file = find_published(WEIGHTS) if path is None else path
    network = load(read_weights(file, WEIGHTS.flag), str(file)).to(device, memory_format=torch.channels_last)
    captured: list[Tensor] = []
    network.get_submodule(SPATIAL_LAYER).register_forward_hook(lambda _module, _input, output: captured.append(output))

    def compute(images: Tensor) -> dict[str, Tensor]:
        captured.clear()
        pool, logits = network(colour(images).to(device))
        assert captured[0].shape[1:] == SPATIAL_SHAPE, captured[0].shape
        spatial = captured[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1)  # (N, 17, 17, 7), as TensorFlow has them
        outputs = {FEATURES: pool, SPATIAL: spatial.flatten(1), LOGITS: logits}
        return {name: tensor.float().cpu() for name, tensor in outputs.items()}

    preprocessing = "grey as RGB; TensorFlow 1 bilinear resize to 299x299; (x - 128) / 128; float32"
    sha256 = fingerprint(file)["sha256"]
    other = f"Inception's weights are another file (sha256 {sha256[:16]}...) than the published one: these are no FIDs"
    return Extractor("inception", sha256, preprocessing, compute, note="" if sha256 == WEIGHTS.sha256 else other)


def load(weights: dict[str, Tensor], where: str) -> Any:
    """torch-fidelity's network with these weights. Raises UserError, ArtefactError."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UserError(
            f"--features inception: needs torch-fidelity, which is not installed: {install('eval')}. Without it "
            "there are --features classifier and encoder=RUN, which need no download."
        ) from error
    # The constructor insists on unpickling a file: it gets what we have read safely, and nothing else.
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    buffer.seek(0)
    try:
        return FeatureExtractorInceptionV3("inception-v3-compat", LAYERS, feature_extractor_weights_path=buffer)
    except RuntimeError as error:  # names or shapes that do not fit
        reason = " ".join(str(error).split())[:300]
        raise ArtefactError(
            f"{WEIGHTS.flag} {where}: not the weights of Inception-2015-12-05 in torch-fidelity's layout ({reason})"
        ) from error


def colour(images: Tensor) -> Tensor:
    """(N, 1 or 3, H, W) -> (N, 3, H, W)."""
    return images.expand(-1, 3, -1, -1)
