"""Other people's models, called what they are: a folder by its `config.json`, weights by the names of their tensors."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from epg.errors import ArtefactError
from epg.storage.artefact import read_json

TAKEN = "Here go runs of epg, their checkpoints and exports, pipeline folders, and the authors' files"
# The first pattern that a name of a tensor matches says whose the weights are.
WEIGHTS = (
    (r"(base|momentum)_encoder\.|predictor\.", "a MoCo v3 checkpoint"),
    (r"encoder_[qk]\.", "a MoCo checkpoint"),
    (r"(student|teacher)\.|backbone\.|dino_head\.|head\.last_layer\.", "a DINO checkpoint"),
    (r"blocks\.\d+\.ls[12]\.gamma$|register_tokens$|mask_token$|norm_pre\.", "a ViT of DINOv2, MAE or timm"),
    (r"(vit|dinov2|dinov3|beit|deit|clip)\.|embeddings\.|encoder\.layer\.\d+\.|layer\.\d+\.", "a transformers model"),
    (r"vision_model\.|visual\.|text_model\.", "a CLIP model"),
    (r"x_embedder\.|t_embedder\.|y_embedder\.", "a diffusion transformer such as DiT, SiT or JiT"),
    (r"(down|up|mid)_blocks?\.|input_blocks\.|output_blocks\.", "a U-Net"),
    (r"conv_proj\.|encoder\.layers\.", "a ViT of torchvision"),
    (r"layer[1-4]\.\d+\.conv\d|features\.\d+\.", "a convolutional network of torchvision"),
    (r"(head|fc)\.(weight|bias)$", "a classifier such as timm's"),
)


def folder(path: Path) -> str:
    """What a folder of somebody else holds; "" where it does not say."""
    if not path.is_dir():
        return ""
    for name in ("model_index.json", "config.json", "adapter_config.json"):
        try:
            content, _ = read_json(path / name)
        except ArtefactError:
            continue
        called = content.get("_class_name")
        called = called[-1] if isinstance(called, list) and called else called
        if name == "model_index.json":
            return f"a diffusers pipeline ({called})"
        if "model_type" in content:
            return f"a transformers model of type {content['model_type']}"
        if "architectures" in content:
            return f"a transformers model ({', '.join(map(str, content['architectures']))})"
        if called is not None:
            return f"a diffusers model ({called})"
        if "pretrained_cfg" in content or isinstance(content.get("architecture"), str):
            return f"a timm model ({content.get('architecture', 'of unknown kind')})"
        if name == "adapter_config.json":
            return "an adapter (PEFT)"
    return ""


def weights(tensors: Mapping[str, Tensor]) -> str:
    """Whose weights these are, by their names; "" where that does not show."""
    for pattern, what in WEIGHTS:
        if any(re.match(pattern, name) for name in tensors):
            return what
    positions = tensors.get("pos_embed")
    tokens = positions.shape[1] if positions is not None and positions.ndim == 3 else 0
    if tokens > 1 and math.isqrt(tokens - 1) ** 2 == tokens - 1:
        return "a ViT with one token besides its patches, as DINO, MAE, DeiT and timm have it (ours has two)"
    return ""


def refuse_folder(path: Path, taken: str = TAKEN) -> None:
    """Raises ArtefactError for somebody else's folder."""
    if what := folder(path):
        raise ArtefactError(f"{path}: {what}. {taken}.")
