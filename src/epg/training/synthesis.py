"""`epg ema`: the power-function average of any width, after training, from the averages in a run's checkpoints."""

from pathlib import Path

import torch
from torch import Tensor

from epg.config import parse
from epg.errors import ArtefactError, UserError
from epg.training import checkpoint, export
from epg.training.artefact import pickle_hint
from epg.training.ema import gamma_of, synthesis_weights


def synthesise(run: Path, sigma_rel: float, out: Path) -> list[tuple[int, float, float]]:
    """Writes the export `out` with the average of relative width `sigma_rel` at the run's newest step.

    Returns (step, width, weight) of every snapshot combined. The more checkpoints a run kept
    (`training.keep_every`), the closer the result to an average that had been tracked all along.

    Raises UserError for an impossible width, ArtefactError for a run without power-function averages.
    """
    if not 0 < sigma_rel < 0.28:
        raise UserError(f"--sigma-rel {sigma_rel}: must be between 0 and 0.28")
    found = [checkpoint.read(path) for path in checkpoint.listing(run / "checkpoints")]
    if not found:
        raise ArtefactError(f"{run}: no checkpoint here. Pass a run folder." + pickle_hint(run))
    newest = found[-1]
    widths = parse(newest.state["config"], str(newest.path)).training.power_ema
    if not widths:
        raise ArtefactError(f"{run}: keeps no power-function averages. Train with --training.power-ema 0.05 0.1")
    snapshots = [(one, width) for one in found for width in widths]
    kernels = [(float(one.step), gamma_of(width)) for one, width in snapshots]
    weights = synthesis_weights(kernels, newest.step, sigma_rel)
    combined: dict[str, Tensor] = {}
    for (one, width), weight in zip(snapshots, weights, strict=True):
        for name, tensor in one.tensors(f"power-{width}").items():
            if not tensor.is_floating_point():
                combined[name] = tensor
            else:
                combined[name] = combined.get(name, torch.zeros_like(tensor)).add(tensor, alpha=weight)
    export.write(out, newest.step, {f"power-{sigma_rel}": combined}, newest.state)
    return [(one.step, width, weight) for (one, width), weight in zip(snapshots, weights, strict=True)]
