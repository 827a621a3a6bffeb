"""`epg ema`: the power-function average of any width, after training, from the averages in a run's checkpoints."""

import warnings
from pathlib import Path

from torch import Tensor

from epg.checkpoint import checkpoint, export
from epg.config.settings import parse
from epg.errors import ArtefactError, UserError
from epg.storage import outputs
from epg.storage.artefact import pickle_hint
from epg.training.ema import gamma_of, synthesis_weights


def synthesise(run: Path, sigma_rel: float, out: Path) -> list[tuple[int, float, float]]:
    """Writes the export `out` with the average of relative width `sigma_rel` at the run's newest step.

    Returns (step, width, weight) of every snapshot combined. The more checkpoints a run kept
    (`training.keep_every`), the closer the result to an average that had been tracked all along.

    Raises UserError for an impossible width, ArtefactError for a run without power-function averages.
    """
    if not 0 < sigma_rel < 0.28:
        raise UserError(f"--sigma-rel {sigma_rel}: must be between 0 and 0.28")
    of_steps = {checkpoint.step_of(path): path for path in checkpoint.listing(run / "checkpoints")}
    found = [checkpoint.read(path) for path in of_steps.values()]
    if not found:
        raise ArtefactError(f"{run}: no checkpoint here. Pass a run folder." + pickle_hint(run))
    newest = found[-1]
    widths = parse(newest.state["config"], str(newest.path)).training.power_ema
    if not widths:
        raise ArtefactError(f"{run}: keeps no power-function averages. Train with --training.power-ema 0.05 0.1")
    if not min(widths) <= sigma_rel <= max(widths):
        warnings.warn(
            f"--sigma-rel {sigma_rel}: outside the widths that {run} tracked ({', '.join(map(str, sorted(widths)))}), "
            "so only roughly what it is called; train with --training.power-ema on both sides of it",
            stacklevel=2,
        )
    snapshots = [(one, width) for one in found for width in dict.fromkeys(widths)]
    kernels = [(float(one.step), gamma_of(width)) for one, width in snapshots]
    weights = synthesis_weights(kernels, newest.step, sigma_rel)
    combined: dict[str, Tensor] = {}
    for (one, width), weight in zip(snapshots, weights, strict=True):
        for name, tensor in one.tensors(f"power-{width}").items():
            if not tensor.is_floating_point():
                combined[name] = tensor
            else:  # in double precision, as large weights of both signs can meet
                combined[name] = combined.get(name, 0) + weight * tensor.double()
    types = {name: tensor.dtype for name, tensor in newest.tensors(f"power-{widths[0]}").items()}
    made = {name: tensor.to(types[name]) for name, tensor in combined.items()}
    with outputs.replacing_folder(out, export.foreign) as folder:
        export.fill(folder, newest.step, {f"power-{sigma_rel}": made}, newest.state)
    return [(one.step, width, weight) for (one, width), weight in zip(snapshots, weights, strict=True)]
