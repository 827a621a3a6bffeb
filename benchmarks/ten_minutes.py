"""What a few minutes on one GPU give: a generator of 32x32 photographs, from nothing to judged pictures.

    python benchmarks/ten_minutes.py --data data/cifar10 --seconds 480 --out ten-minutes

`--data` has a train and a test split. Every arm trains for an equal share of the time, everything included (compiling
too, without a cache of earlier kernels): `scratch` a diffusion model, `pretrained` an encoder first (a quarter of its
time) and then the diffusion model, `one-step` the same with a consistency model. The steps are planned from the
measured time of a step, and training stops by the clock. Into `--out` go the runs, grids of samples (guidance 1 and
2), beside each sample the nearest training image, and `ten_minutes.json`: denoising errors relative to the best
linear denoiser's, and FD-EfficientNet against the training images, of the samples, of the untrained class-wise
Gaussian (the linear part alone), and of real test images (the floor), all of equal counts. Any flag of the recipe's
diffusion stage works (`--optimizer.kind adamw`).
`--judge RUN` does the second half for a run that exists, `--judge samples.npz` for images that any program drew (uint8
arr_0, labels arr_1, as ADM's evaluator reads them).
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from epg.checkpoint.loading import load
from epg.config.objectives import Stage
from minutes.judging import baselines, examine, examine_archive
from minutes.study import Arm, Options, Study
from minutes.training import compiling_anew, recorded, train_for

STAGES: dict[Arm, tuple[tuple[Stage, float], ...]] = {
    "pretrained": (("pretraining", 0.25), ("diffusion", 0.75)),
    "scratch": (("diffusion", 1.0),),
    "one-step": (("pretraining", 0.25), ("consistency", 0.75)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, flags = tyro.cli(Options, args=given, return_unknown_args=True)
    study = Study(options, flags)
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "options": {
            **dataclasses.asdict(options),
            "out": options.out.name,
            "data": Path(options.data).name,
            "judge": [run.name for run in options.judge],
        },
        "flags": flags,
        "device": torch.cuda.get_device_name(study.device) if study.device.type == "cuda" else str(study.device),
        "torch": torch.__version__,
        "opening_seconds": study.elapsed,
        "arms": {},
    }
    judge = baselines(study, found) if options.features == "efficientnet" else None
    for run in options.judge:
        if run.suffix == ".npz":
            found["arms"][run.stem] = {"stages": [], **examine_archive(study, run, judge)}
        else:
            found["arms"][run.name] = {"stages": [recorded(run)], **examine(study, load(run), run.name, judge)}
        save(study, found)
    # Drawing takes about as long as judging; half a minute is for checkpoints and pictures.
    arms = () if options.judge else options.arms
    reserve = (4 * found.get("judging_seconds", 0.0) + min(15.0, options.seconds / 20)) * len(arms)
    share = max(0.0, options.seconds - study.elapsed - reserve) / max(1, len(arms))
    for arm in arms:
        stages, encoder = [], None
        for stage, part in STAGES[arm]:
            folder = Path(tempfile.mkdtemp(prefix=f"{arm}-{stage}-", dir=options.out))
            stages.append(train_for(study, stage, part * share, folder, encoder))
            encoder = folder
        found["arms"][arm] = {"stages": stages, **examine(study, load(folder), arm, judge)}
        save(study, found)
    show(found)


def save(study: Study, found: dict[str, Any]) -> None:
    found["seconds"] = study.elapsed
    (study.options.out / "ten_minutes.json").write_text(json.dumps(found, indent=1))


def show(found: dict[str, Any]) -> None:
    """The table."""
    title = f"{found['seconds']:.0f} s on {found['device']}, torch {found['torch']}"
    columns = ["steps x batch", "step", "MFU", "error / linear", "guidance", "FD-EfficientNet", "precision", "recall"]
    table = Table("", *columns, title=title)

    def numbers(of: dict[str, float]) -> list[str]:
        return [f"{of['fd_efficientnet']:.1f}", f"{of['precision']:.2f}", f"{of['recall']:.2f}"] if of else [""] * 3

    for name in ("real", "gaussian"):
        if name in found:
            table.add_row(name, "", "", "", "", "", *numbers(found[name]))
    for arm, results in found["arms"].items():
        for stage in results["stages"]:
            linear = " ".join(f"{v:.3f}" for k, v in (stage["linear"] or [{}])[-1].items() if k != "step")
            size = f"{stage['steps']:,} x {stage['batch_size']}"
            speed = [f"{1e3 * stage['step_seconds']:.1f} ms", f"{stage['mfu']:.0%}"] if "mfu" in stage else ["", ""]
            table.add_row(f"{arm}: {stage['stage']}", size, *speed, linear)
        for key, value in results.items():
            if isinstance(value, dict):
                table.add_row(arm, "", "", "", "", key.removeprefix("guidance "), *numbers(value))
    Console(width=160).print(table)


if __name__ == "__main__":
    with compiling_anew():
        main()
