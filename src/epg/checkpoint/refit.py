"""The network of a trained generator for other classes, another image size, other patches: what of it is kept, resized,
and new."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from epg.cost.shape import NetworkShape
from epg.errors import UserError
from epg.labels import AS_NAME, class_numbers
from epg.networks import EPG
from epg.networks.build import without_numbers
from epg.networks.encoder import PATCHES
from epg.storage.artefact import match

POSITIONS, CLS_TOKEN = "encoder.position_embedding", "encoder.cls_token"
EMBEDDING, OUT, OUT_BIAS = "encoder.patch_embedding.weight", "decoder.out.weight", "decoder.out.bias"
CLASSES = "class_embedding.weight"
HEAD, HEAD_BIAS = "internal_head.weight", "internal_head.bias"
SPECTRUM = "spectrum."


@dataclass(frozen=True)
class Refit:
    """A generator's tensors for another shape."""

    tensors: dict[str, Tensor]
    resized: dict[str, str]
    """Names of those that are others than they were, and from what to what."""
    new: tuple[str, ...]
    """Names of the network's tensors that begin otherwise."""
    classes: str
    """Which rows of the class table are which, for people; empty where all are as they were."""

    @property
    def kept(self) -> list[str]:
        return [name for name in self.tensors if name not in self.resized]


def refit(
    tensors: dict[str, Tensor],
    old: NetworkShape,
    new: NetworkShape,
    old_names: Sequence[str],
    new_names: Sequence[str],
    where: str,
) -> Refit:
    """The state dict (float32) of an EPG of shape `old`, for one of shape `new`.

    Positions are resized bicubically where the number of patches changes. Where their size does, so are the matrices
    at both ends, such that an image that is scaled patch by patch (bilinearly) gives the same tokens, and the same
    tokens give the scaled image. Rows of the class table follow `class_rows`. The statistics of a spectrum are those of
    images, and are left to be measured. A head for internal guidance is new, or left behind, where one side has none.

    Raises ArtefactError for whatever else does not fit; errors begin with `where`.
    """
    dropped = (SPECTRUM,) if new.internal else (SPECTRUM, HEAD, HEAD_BIAS)
    made = {name: tensor for name, tensor in tensors.items() if not name.startswith(dropped)}
    resized: dict[str, str] = {}
    before, after = old.sample_size // old.patch_size, new.sample_size // new.patch_size
    if before != after:
        grid = resized_grid(made[POSITIONS][:, PATCHES], after)
        made[POSITIONS] = torch.cat([made[POSITIONS][:, : PATCHES.start], grid], dim=1)
        resized[POSITIONS] = f"{before}x{before} to {after}x{after} patches"
    if old.patch_size != new.patch_size:
        scaling = bilinear(old.patch_size, new.patch_size)
        made[EMBEDDING] = scaled_input(made[EMBEDDING], scaling)
        outputs = [name for name in (OUT, OUT_BIAS, HEAD, HEAD_BIAS) if name in made]
        made |= {name: scaled_output(made[name], scaling) for name in outputs}
        told = f"patches of {old.patch_size} to {new.patch_size} pixels"
        resized |= dict.fromkeys((EMBEDDING, *outputs), told)
    rows = class_rows(old.num_classes, new.num_classes, old_names, new_names)
    table = made.pop(CLASSES, None)
    told = ""
    if new.num_classes:
        null = made[CLS_TOKEN].new_zeros(new.encoder_width) if table is None else table[-1]
        kept = [null if table is None or row is None else table[row] for row in rows]
        made[CLASSES] = torch.stack([*kept, null])
        told = described(rows, old.num_classes, old_names, new_names)
        if told:
            resized[CLASSES] = told
    elif table is not None:  # exact for the encoder; the decoder's condition has to do without it
        made[CLS_TOKEN] = made[CLS_TOKEN] + table[-1]
        told = f'none of {old.num_classes} left; the row of "no class" is added to the CLS token'
        resized[CLS_TOKEN] = told
    with without_numbers():
        expected = EPG(new).state_dict()
    fresh = (SPECTRUM,) if old.internal else (SPECTRUM, HEAD, HEAD_BIAS)
    begin_otherwise = tuple(name for name in expected if name.startswith(fresh))
    match(made, {n: t for n, t in expected.items() if n not in begin_otherwise}, where, types=False)
    return Refit(made, resized, begin_otherwise, told)


# Classes --------------------------------------------------------------------------------------------------------------


def class_rows(old: int, new: int, old_names: Sequence[str], new_names: Sequence[str]) -> list[int | None]:
    """Which row of the table of `old` classes each of `new` classes takes: by name where both sides have names, else
    by number. None for a new class: it begins as "no class"."""
    if old and len(old_names) == old and len(new_names) == new:
        return [named(name, old_names) for name in new_names]
    return [number if number < old else None for number in range(new)]


def named(name: str, names: Sequence[str]) -> int | None:
    """The one of `names` that is this name, or one of whose synonyms it is; see `epg.labels`."""
    try:
        return class_numbers([AS_NAME + name], names)[0]
    except UserError:
        return None


def described(rows: Sequence[int | None], old: int, old_names: Sequence[str], new_names: Sequence[str]) -> str:
    """For people; empty where all rows are as they were."""
    if list(rows) == list(range(old)):
        return ""
    by_name = bool(old) and len(old_names) == old and len(new_names) == len(rows)
    kept = [i for i, row in enumerate(rows) if row is not None]
    fresh = [i for i, row in enumerate(rows) if row is None]
    names = list(new_names) if len(new_names) == len(rows) else [str(i) for i in range(len(rows))]
    parts = [f"{len(kept)} of {len(rows)} rows kept by {'name' if by_name else 'number'}{listed(names, kept)}"]
    if fresh:
        begin = 'as "no class"' if old else "at 0, as the network was without classes"
        parts.append(f"{len(fresh)} new{listed(names, fresh)}, which begin {begin}")
    gone = [i for i in range(old) if i not in rows]
    if gone:
        parts.append(f"{len(gone)} left behind{listed(list(old_names), gone) if old_names else ''}")
    return "; ".join(parts)


def listed(names: Sequence[str], chosen: Sequence[int], most: int = 4) -> str:
    """Some names in brackets; empty for none."""
    shown = [names[i] for i in chosen[:most]] + (["..."] if len(chosen) > most else [])
    return f" ({', '.join(shown)})" if shown else ""


# Sizes ----------------------------------------------------------------------------------------------------------------


def resized_grid(grid: Tensor, side: int) -> Tensor:
    """Position embedding of patches (1, S S, D) for another number of them, (1, side side, D), bicubically."""
    before = math.isqrt(grid.shape[1])
    if before == side:
        return grid
    square = grid.unflatten(1, (before, before)).permute(0, 3, 1, 2)  # (1, D, S, S)
    scaled = F.interpolate(square, size=(side, side), mode="bicubic", align_corners=False, antialias=side < before)
    return scaled.flatten(2).transpose(1, 2)


def bilinear(before: int, after: int) -> Tensor:
    """The matrix B (after^2, before^2), float64, that scales a patch."""
    one_each = torch.eye(before**2, dtype=torch.float64).view(-1, 1, before, before)
    scaled = F.interpolate(one_each, size=(after, after), mode="bilinear", antialias=after < before)
    return scaled.flatten(1).T


def scaled_input(weight: Tensor, scaling: Tensor) -> Tensor:
    """Patch embedding (D, C, p, p) for patches B x: `W B^+`, which gives of B x what W gave of x where B enlarges, and
    what comes nearest to it where it does not."""
    side = math.isqrt(len(scaling))
    return (weight.double().flatten(2) @ torch.linalg.pinv(scaling)).unflatten(2, (side, side)).to(weight)


def scaled_output(tensor: Tensor, scaling: Tensor) -> Tensor:
    """The last layer's weight (p p C, D) or bias (p p C,) for patches B x: `B W`."""
    patch = tensor.double().unflatten(0, (scaling.shape[1], -1))  # (p p, C, ...)
    return (scaling @ patch.flatten(1)).unflatten(1, patch.shape[1:]).flatten(0, 1).to(tensor)
