"""Weights of the authors' release: their state dicts into our networks and back, every key accounted for.

All sizes are read from the tensors except the numbers of heads, which leave no trace in them and come from a recipe.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from epg.config.objectives import Stage
from epg.config.recipe import recipe_names, run_config, stages_of
from epg.config.settings import RunConfig
from epg.errors import ArtefactError, UserError
from epg.networks.build import build_epg, build_rcm
from epg.storage.artefact import match

# The release's names and ours, first match wins, either way round; {} is a number.
Names = tuple[tuple[str, str], ...]
ENCODER_NAMES: Names = (
    ("patch_embed.proj.", "encoder.patch_embedding."),
    ("cls_token", "encoder.cls_token"),
    ("pos_embed", "encoder.position_embedding"),
    ("blocks.{}.attn.", "encoder.blocks.{}.attention."),
    ("blocks.", "encoder.blocks."),
    ("norm.", "encoder.norm."),
)
RCM_NAMES: Names = (*ENCODER_NAMES, ("projection_head.", "projector."))
EPG_NAMES: Names = (
    *ENCODER_NAMES,
    ("class_embed.", "class_embedding."),
    ("encoder_to_decoder.", "decoder.from_encoder."),
    ("decoder_blocks.{}.attn.", "decoder.blocks.{}.attention."),
    ("decoder_blocks.{}.adaLN_modulation.1.", "decoder.blocks.{}.modulation."),
    ("decoder_blocks.", "decoder.blocks."),
    ("out_norm.", "decoder.norm."),
    ("out.", "decoder.out."),
)


# Names ----------------------------------------------------------------------------------------------------------------


def rename(key: str, names: Names) -> str:
    """Our name of the release's `key`; an unknown key keeps its own and is then reported as unexpected."""
    return _replaced(key, names)


def restore(key: str, names: Names) -> str:
    """The release's name of our `key`."""
    return _replaced(key, tuple((ours, theirs) for theirs, ours in names))


def _replaced(key: str, names: Names) -> str:
    for old, new in names:
        pattern = "^" + re.escape(old).replace(r"\{\}", r"(\d+)")
        if re.search(pattern, key):
            return re.sub(pattern, new.replace("{}", r"\1"), key)
    return key


# Whole networks -------------------------------------------------------------------------------------------------------


def recognise(weights: Mapping[str, Tensor], path: str | Path, stage: Stage | None, recipe: str | None) -> RunConfig:
    """The configuration whose architecture these tensors have: of the recipe named, or of the first that fits.

    Args:
        weights: under the release's names.
        stage: what the generator was trained as, which its tensors do not say; None is the recipe's, or diffusion.

    Raises:
        ArtefactError: not weights of the release, or of an architecture that differs or that no recipe has.
    """
    encoder = "projection_head.0.weight" in weights
    if stage is not None and encoder != (stage == "pretraining"):
        raise ArtefactError(f"{path}: holds {'an encoder' if encoder else 'a generator'}, not weights of {stage}")
    found = sizes_of(weights, path, encoder)
    differences = []
    for name in recipe_names() if recipe is None else [recipe]:
        offered = stages_of(name)
        wanted: Stage = "pretraining" if encoder else stage or ("diffusion" if "diffusion" in offered else offered[-1])
        if wanted not in offered:
            differences.append(f"  {name} has no {wanted}")
            continue
        config = run_config(name, wanted)
        expected = config.flat()
        wrong = [
            f"  {size}: {found[size]} in the file, {expected[size]} in {name}"
            for size in found
            if size != "model.num_classes" and found[size] != expected[size]
        ]
        if not wrong:
            return config if encoder else with_classes(config, int(found["model.num_classes"]))
        differences += wrong
    if recipe is not None:
        raise ArtefactError(f"{path}: of another architecture than --recipe {recipe}:\n" + "\n".join(differences))
    sizes = "\n".join(f"  {size}: {value}" for size, value in found.items())
    raise ArtefactError(
        f"{path}: no recipe has this architecture. Write one as a .yaml file, with the numbers of heads, and pass it "
        f"as --recipe:\n{sizes}"
    )


def with_classes(config: RunConfig, classes: int) -> RunConfig:
    """The configuration for this number of classes; without any there is nothing to guide towards."""
    sampling = config.sampling if classes else config.sampling.model_copy(update={"guidance": 1.0})
    model = config.model.model_copy(update={"num_classes": classes})
    return config.model_copy(update={"model": model, "sampling": sampling})


def sizes_of(weights: Mapping[str, Tensor], path: str | Path, encoder: bool) -> dict[str, int | float]:
    """Every size that shows in the tensors, by the name of its setting. Raises ArtefactError."""
    patches = require(weights, "patch_embed.proj.weight", path, 4)  # (D, C, patch, patch)
    tokens = require(weights, "pos_embed", path, 3).shape[1]  # (1, T, D)
    width, channels, patch = patches.shape[:3]
    side = math.isqrt(max(0, tokens - 2))
    if side == 0 or side**2 + 2 != tokens:
        raise ArtefactError(f"{path}: {tokens} tokens are no square of patches and two more")
    hidden = require(weights, "blocks.0.mlp.fc1.weight", path, 2).shape[0]
    sizes: dict[str, int | float] = {
        "data.image_size": side * patch,
        "data.channels": channels,
        "model.patch_size": patch,
        "model.encoder.depth": 1 + max(int(m[1]) for key in weights if (m := re.match(r"blocks\.(\d{1,4})\.", key))),
        "model.encoder.width": width,
        "model.mlp_ratio": hidden / width,
    }
    if encoder:
        sizes["model.projector_hidden"] = require(weights, "projection_head.0.weight", path, 2).shape[0]
        sizes["model.projector_out"] = require(weights, "projection_head.6.weight", path, 2).shape[0]
    else:
        classes = weights.get("class_embed.weight")
        sizes["model.decoder.width"] = require(weights, "out_norm.weight", path, 1).shape[0]
        sizes["model.num_classes"] = 0 if classes is None else classes.shape[0] - 1
    return sizes


def from_release(weights: Mapping[str, Tensor], config: RunConfig, path: str | Path) -> dict[str, Tensor]:
    """Our state dict, float32, every key and shape compared with the architecture. Raises ArtefactError."""
    names, build = (EPG_NAMES, build_epg) if config.objective.samples else (RCM_NAMES, build_rcm)
    renamed = {rename(key, names): t.float() if t.is_floating_point() else t for key, t in weights.items()}
    with torch.device("meta"):
        expected = build(config.model, config.data).state_dict()
    match(renamed, expected, str(path), types=False)
    return renamed


def to_release(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Our state dict under the release's names. Raises UserError for a tensor that the release has no name for."""
    unknown = sorted(key for key in tensors if restore(key, names) == key)
    if unknown:
        raise UserError(f"--to release: the authors' network has no {unknown[0]} ({len(unknown)} such tensors)")
    return {restore(key, names): tensor.contiguous() for key, tensor in tensors.items()}


def require(weights: Mapping[str, Tensor], key: str, path: str | Path, dimensions: int) -> Tensor:
    if key not in weights or weights[key].ndim != dimensions or not weights[key].numel():
        raise ArtefactError(
            f"{path}: no tensor {key!r} of {dimensions} dimensions; is this a state dict of the release?"
        )
    return weights[key]
