"""Plain vision transformers as encoders: MoCo v3, DINO, DINOv2, MAE and what timm saves, from safetensors files.

Their network is our encoder without the time token, for images `(x - mean) / std`. At the lowest level of noise ours
sees the same: `c_in` undoes the factor 2 of its normalisation.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from epg.checkpoint.refit import resized_grid
from epg.cost.shape import NetworkShape
from epg.errors import ArtefactError
from epg.networks.encoder import PATCHES
from epg.storage.artefact import read_tensors

# Where a checkpoint keeps the backbone; the first that is there counts.
PREFIXES = (
    "",
    "module.base_encoder.",
    "base_encoder.",
    "teacher.backbone.",
    "teacher.",
    "module.",
    "backbone.",
    "model.",
)
NAMES = (
    (r"patch_embed\.proj\.", "patch_embedding."),
    (r"cls_token$", "cls_token"),
    (r"blocks\.(\d+)\.attn\.(qkv|proj)\.weight$", r"blocks.\1.attention.\2.weight"),
    (r"blocks\.(\d+)\.attn\.proj\.bias$", r"blocks.\1.attention.proj.bias"),
    (r"blocks\.(\d+)\.((norm1|norm2|mlp\.fc1|mlp\.fc2)\.(weight|bias))$", r"blocks.\1.\2"),
    (r"norm\.", "norm."),
)
POSITIONS = "pos_embed"
SCALE = r"blocks\.\d+\.ls[12]\.gamma"


def backbone(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a plain ViT in a safetensors file, by their names in it without a prefix; None for another file.

    Told from the release's encoders by the tokens: one besides the patches, not two.
    """
    if path.suffix != ".safetensors":
        return None
    tensors = read_tensors(path)
    for prefix in PREFIXES:
        found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        positions = found.get(POSITIONS)
        if "blocks.0.attn.qkv.weight" in found and positions is not None and positions.ndim == 3:
            square = math.isqrt(max(0, positions.shape[1] - 1)) ** 2 == positions.shape[1] - 1
            return found if square else None
    return None


def fitted(
    tensors: Mapping[str, Tensor], shape: NetworkShape, path: Path
) -> tuple[dict[str, Tensor], tuple[str, ...], str]:
    """The encoder's tensors, float32, the names that were dropped, and what was done, for the user.

    Positions are resized bicubically; the time token's begins at 0. Scales of DINOv2's layers are multiplied into the
    weights before them. The biases of qkv, which our attention has not, are dropped. Raises ArtefactError for channels
    or patches of another size; other shapes are compared when the weights are handed over.
    """
    kept: dict[str, Tensor] = {}
    dropped = []
    for name, tensor in tensors.items():
        ours = next((re.sub(old, new, name) for old, new in NAMES if re.match(old, name)), None)
        if ours is not None:
            kept[ours] = scaled(name, tensor.float(), tensors)
        elif name != POSITIONS and not re.fullmatch(SCALE, name):
            dropped.append(name)
    patches, wanted = kept.get("patch_embedding.weight"), (shape.in_channels, shape.patch_size, shape.patch_size)
    if patches is None or patches.shape[1:] != wanted:
        size = "no" if patches is None else "x".join(map(str, patches.shape[1:]))
        raise ArtefactError(
            f"--encoder {path}: a ViT with {size} patches; this recipe has {'x'.join(map(str, wanted))}. Choose "
            "--model.patch-size (and --data.channels) as the ViT has them."
        )
    positions, before = tensors[POSITIONS].float(), math.isqrt(tensors[POSITIONS].shape[1] - 1)
    side = shape.sample_size // shape.patch_size
    kept["position_embedding"] = resized(positions, side)
    resizing = "" if before == side else f", positions resized from {before}x{before} to {side}x{side}"
    groups = sorted({re.sub(r"\d+", "*", name) for name in dropped})
    notes = (
        f"A plain ViT: {len(kept)} tensors kept{resizing}, the time token's position begins at 0; dropped: "
        f"{', '.join(groups) or 'nothing'}. "
    )
    return kept, tuple(dropped), notes


def scaled(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """The last layer of a branch times the branch's scale (`ls1`, `ls2`), where there is one."""
    found = re.match(r"(blocks\.\d+)\.(attn\.proj|mlp\.fc2)\.", name)
    scale = tensors.get(f"{found[1]}.ls{1 if found[2] == 'attn.proj' else 2}.gamma") if found else None
    return tensor if scale is None else scale.float().view(-1, *[1] * (tensor.ndim - 1)) * tensor


def resized(positions: Tensor, side: int) -> Tensor:
    """Position embedding (1, 1 + S S, D) of CLS and patches as ours of CLS, time and patches, (1, 2 + side side, D)."""
    out = torch.zeros(1, side**2 + 2, positions.shape[2])
    out[:, :1] = positions[:, :1]
    out[:, PATCHES] = resized_grid(positions[:, 1:], side)
    return out
