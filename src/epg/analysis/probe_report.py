"""`epg probe`: opens encoder and images, and shows the accuracies as table, figure and JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from epg.distributed import pick_device
from epg.errors import UserError
from epg.evaluation.noisy_features import Pool, open_encoder
from epg.evaluation.output import analysis_folder, new_figure, save_figure, write_json
from epg.evaluation.probe import LEVELS, LINEAR, TRANSFERRED, VOTE, Accuracy, labelled_splits, probe, take
from epg.progress import reporting

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_probe(
    path: Path,
    *,
    data: str | None = None,
    recipe: str | None = None,
    ema: float | None = None,
    levels: Sequence[float] = LEVELS,
    pool: Pool = "cls",
    train_count: int = 10_000,
    test_count: int = 5_000,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
) -> list[Accuracy]:
    """Prints the table; writes `probe.json` and `probe.png` into `out` (by default `analysis` beside it).

    Args:
        data: labelled images; None takes the encoder's own training set. The probes are trained on its train split
            and tested on its test split, or on a fifth of it where there is none.
    """
    if min(train_count, test_count) < 2:
        raise UserError(f"--train-count {train_count}, --test-count {test_count}: must be at least 2")
    if recipe is not None and not path.is_file():
        raise UserError(f"--recipe: for a weight file, which does not say; {path} has its own")
    encoder = open_encoder(path, recipe=recipe, ema=ema, device=pick_device(device))
    source = data or encoder.config.data.source
    train, test = labelled_splits(encoder, source, seed)
    with reporting("probing", images=0) as report:
        results = probe(
            encoder,
            take(train, train_count, "train", seed),
            take(test, test_count, "test", seed),
            levels=levels,
            pool=pool,
            seed=seed,
            on_progress=report,
        )
    out = out or analysis_folder(path)
    settings = {
        "encoder": path.resolve().name,
        "data": Path(source).name,
        "train": {"count": min(train_count, len(train)), "fingerprint": train.fingerprint()},
        "test": {"count": min(test_count, len(test)), "fingerprint": test.fingerprint()},
        "pool": pool,
        "seed": seed,
    }
    write_json({**settings, "accuracies": [asdict(r) for r in results]}, out / "probe.json")
    save_figure(draw(results), out / "probe.png")
    Console().print(table(results))
    print(f"numbers in {out / 'probe.json'}, figure in {out / 'probe.png'}")
    return results


def table(results: Sequence[Accuracy]) -> Table:
    """A row for everything that was probed, a column for every level."""
    levels = sorted({r.level for r in results})
    shown = Table("features", "probe", *(f"{level:g}" for level in levels), title="accuracy by noise level (unshifted)")
    for features in dict.fromkeys(r.features for r in results):
        for method in (LINEAR, TRANSFERRED, VOTE):
            row = {r.level: r for r in results if (r.features, r.method) == (features, method)}
            shown.add_row(features, method, *(f"{row[level].value:.1%}" for level in levels))
    return shown


def draw(results: Sequence[Accuracy]) -> "Figure":
    """One panel for each kind of probe, accuracy over the noise level, with standard errors."""
    figure = new_figure(11, 3.6)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, method in zip(panels, (LINEAR, TRANSFERRED, VOTE), strict=True):
        for features in dict.fromkeys(r.features for r in results):
            row = [r for r in results if (r.features, r.method) == (features, method)]
            values, errors = [100 * r.value for r in row], [100 * r.error for r in row]
            axes.errorbar([r.level for r in row], values, errors, marker="o", markersize=4, capsize=2, label=features)
        axes.set(title=method, xlabel="noise level (unshifted)", xscale="log")
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="accuracy (%)", ylim=(0, 100))
    panels[-1].legend(fontsize=8)
    return figure
