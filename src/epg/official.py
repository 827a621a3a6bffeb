"""Weights of the authors' release: their state dicts into our networks, every key accounted for.

Depth, width and number of classes are read from the tensors; image size, patch size and heads leave no trace in them
(only the number of tokens does), so the caller names them.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from epg.errors import ArtefactError
from epg.networks import EPG, RCM, Encoder, Projector

# The release's names -> ours, first match wins.
ENCODER_NAMES = (
    (r"^patch_embed\.proj\.", "encoder.patch_embedding."),
    (r"^cls_token$", "encoder.cls_token"),
    (r"^pos_embed$", "encoder.position_embedding"),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.blocks.\1.attention."),
    (r"^blocks\.", "encoder.blocks."),
    (r"^norm\.", "encoder.norm."),
)
RCM_NAMES = (*ENCODER_NAMES, (r"^projection_head\.", "projector."))
EPG_NAMES = (
    *ENCODER_NAMES,
    (r"^class_embed\.", "class_embedding."),
    (r"^encoder_to_decoder\.", "decoder.from_encoder."),
    (r"^decoder_blocks\.(\d+)\.attn\.", r"decoder.blocks.\1.attention."),
    (r"^decoder_blocks\.(\d+)\.adaLN_modulation\.1\.", r"decoder.blocks.\1.modulation."),
    (r"^decoder_blocks\.", "decoder.blocks."),
    (r"^out_norm\.", "decoder.norm."),
    (r"^out\.", "decoder.out."),
)


def load_rcm(path: str | Path, *, image_size: int, patch_size: int, encoder_heads: int) -> RCM:
    """A pre-trained encoder with its projector, from safetensors or a `.pth` state dict."""
    weights = read_state_dict(path)
    projector = [require(weights, f"projection_head.{i}.weight", path) for i in (0, 6)]
    network = RCM(
        build_encoder(weights, path, image_size, patch_size, encoder_heads),
        Projector(projector[0].shape[1], hidden=projector[0].shape[0], out=projector[1].shape[0]),
    )
    fill(network, weights, RCM_NAMES, path)
    return network


def load_epg(path: str | Path, *, image_size: int, patch_size: int, encoder_heads: int, decoder_heads: int) -> EPG:
    """A generator, from safetensors or a `.pth` state dict."""
    weights = read_state_dict(path)
    classes = weights.get("class_embed.weight")
    decoder_width = require(weights, "out_norm.weight", path).shape[0]
    network = EPG(
        build_encoder(weights, path, image_size, patch_size, encoder_heads),
        decoder_width=decoder_width,
        mlp_ratio=require(weights, "decoder_blocks.0.mlp.fc1.weight", path).shape[0] / decoder_width,
        decoder_heads=decoder_heads,
        num_classes=0 if classes is None else classes.shape[0] - 1,
    )
    fill(network, weights, EPG_NAMES, path)
    return network


def build_encoder(
    weights: Mapping[str, Tensor], path: str | Path, image_size: int, patch_size: int, heads: int
) -> Encoder:
    """The encoder whose depth, width and channels these tensors have, not yet filled."""
    patches = require(weights, "patch_embed.proj.weight", path)  # (D, C, patch, patch)
    tokens = require(weights, "pos_embed", path).shape[1]
    if patches.shape[-1] != patch_size or (image_size // patch_size) ** 2 + 2 != tokens:
        raise ArtefactError(
            f"{path}: holds patches of {patches.shape[-1]} pixels and {tokens - 2} of them, but image size "
            f"{image_size} with patch size {patch_size} was asked for. Pass the sizes it was trained with."
        )
    hidden = require(weights, "blocks.0.mlp.fc1.weight", path).shape[0]
    depth = 1 + max(int(m[1]) for k in weights if (m := re.match(r"blocks\.(\d+)\.", k)))
    return Encoder(
        image_size=image_size,
        patch_size=patch_size,
        channels=patches.shape[1],
        depth=depth,
        width=patches.shape[0],
        heads=heads,
        mlp_ratio=hidden / patches.shape[0],
    )


def fill(
    network: nn.Module, weights: Mapping[str, Tensor], names: tuple[tuple[str, str], ...], path: str | Path
) -> None:
    """Loads the renamed tensors; a key or shape too many or too few is an error that lists them."""
    renamed = {rename(key, names): value for key, value in weights.items()}
    ours = network.state_dict()
    problems = [f"missing {key}" for key in ours.keys() - renamed.keys()]
    problems += [f"unexpected {key}" for key in renamed.keys() - ours.keys()]
    problems += [
        f"{key} is {tuple(renamed[key].shape)}, not {tuple(ours[key].shape)}"
        for key in ours.keys() & renamed.keys()
        if renamed[key].shape != ours[key].shape
    ]
    if problems:
        raise ArtefactError(f"{path}: not the weights of this architecture: " + "; ".join(sorted(problems)))
    network.load_state_dict(renamed)


def rename(key: str, names: tuple[tuple[str, str], ...]) -> str:
    """Our name of the release's `key`; an unknown key keeps its own and is then reported as unexpected."""
    for pattern, replacement in names:
        if re.search(pattern, key):
            return re.sub(pattern, replacement, key)
    return key


def require(weights: Mapping[str, Tensor], key: str, path: str | Path) -> Tensor:
    if key not in weights:
        raise ArtefactError(f"{path}: no tensor {key!r}; is this a state dict of the release?")
    return weights[key]


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a `.pth` that holds nothing but tensors (`weights_only=True`)."""
    path = Path(path)
    if not path.is_file():
        raise ArtefactError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ArtefactError(f"{path}: cannot be read as a state dict of tensors ({error})") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ArtefactError(f"{path}: not a state dict (a mapping of names to tensors)")
    return weights
