"""DINOv2 and CLIP through transformers: FD-DINOv2 (Stein et al. 2023) and CMMD (Jayasumana et al. 2024).

transformers' own implementation and files of weights without code; torch-fidelity would fetch and run the code of
another repository for DINOv2. The images are prepared here, as each paper's code does it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from epg.errors import ArtefactError, UserError
from epg.evaluation import FEATURES
from epg.evaluation.extractors.extractor import Extractor
from epg.evaluation.extractors.inception import colour
from epg.extras import install
from epg.storage.artefact import digest_of

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std
CLIPS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DINOV2_SIDE = 224


def dinov2(path: Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """CLS features of DINOv2 ViT-L/14, after its final norm.

    Args:
        path: a folder of `save_pretrained`; None takes `facebook/dinov2-large` from the Hub or its cache.

    Raises UserError where transformers is missing, ArtefactError where the weights are.
    """
    network = _load("Dinov2Model", path, "facebook/dinov2-large", "dinov2").to(device)
    x = prepared(DINOV2_SIDE, IMAGENET, antialias=True, device=device)

    def compute(images: Tensor) -> dict[str, Tensor]:
        return {FEATURES: network(pixel_values=x(images)).last_hidden_state[:, 0].float().cpu()}

    told = f"grey as RGB; bicubic with antialiasing to {DINOV2_SIDE}x{DINOV2_SIDE}; ImageNet's mean and std; CLS"
    return Extractor("dinov2", digest_of(network.state_dict()), told, compute)


def clip(path: Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """Image embeddings of CLIP ViT-L/14 at 336, of length 1: the features of CMMD.

    `path` and errors as for `dinov2`; None takes `openai/clip-vit-large-patch14-336`.
    """
    network = _load("CLIPVisionModelWithProjection", path, "openai/clip-vit-large-patch14-336", "clip").to(device)
    side = int(network.config.image_size)
    x = prepared(side, CLIPS, antialias=False, device=device)

    def compute(images: Tensor) -> dict[str, Tensor]:
        return {FEATURES: F.normalize(network(pixel_values=x(images)).image_embeds, dim=1).float().cpu()}

    told = f"grey as RGB; bicubic to {side}x{side}; CLIP's mean and std; projected embedding of length 1"
    return Extractor("clip", digest_of(network.state_dict()), told, compute)


def prepared(
    side: int, scale: tuple[tuple[float, ...], ...], *, antialias: bool, device: torch.device | str
) -> Callable[[Tensor], Tensor]:
    """From uint8 images to what a network of this input size, mean and std takes."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in scale)

    def prepare(images: Tensor) -> Tensor:
        x = colour(images).to(device).float() / 255
        return (F.interpolate(x, (side, side), mode="bicubic", antialias=antialias).clamp(0, 1) - mean) / std

    return prepare


def _load(kind: str, path: Path | None, repository: str, flag: str) -> Any:
    """A model of transformers, ready to use, from a folder or the Hub."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"--features {flag}: needs transformers, which is not installed: {install('eval')}") from error
    if path is not None and not (path / "config.json").is_file():
        raise ArtefactError(f"--features {flag}={path}: no folder with a config.json; save one with save_pretrained")
    try:
        model = getattr(transformers, kind).from_pretrained(path or repository, weights_only=True)
    except Exception as error:  # of the Hub's client, of files, of configurations: a dozen classes
        reason = " ".join(str(error).split())[:300]
        raise ArtefactError(
            f"--features {flag}: {path or repository} cannot be loaded ({reason}). Offline, download the repository "
            f"{repository} elsewhere (hf download {repository}) and pass --features {flag}=FOLDER"
        ) from error
    return model.requires_grad_(False).eval()
