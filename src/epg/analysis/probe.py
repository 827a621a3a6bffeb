"""How much an encoder knows of images under noise: linear probe and k-NN accuracy by noise level (`epg probe`).

The paper's claim is that representation consistency carries the semantics of clean images to every noise level. Three
questions at each level: how well a linear classifier does that is trained at this level, how well one does that was
trained on almost clean images (the features of noisy images must then be the *same*, not only informative), and how
well the nearest neighbours vote. Random weights and plain pixels are asked the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from epg.analysis.report import analysis_folder, curve, new_figure, publish
from epg.distributed import pick_device
from epg.errors import UserError
from epg.evaluation.noisy_features import Features, NoisyEncoder, Pool, open_encoder
from epg.evaluation.voting import Labels, Split, labelled_splits, nearest_vote, take
from epg.progress import reporting
from epg.randomness import permutation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (0.002, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)  # unshifted
PENALTIES = (0.001, 0.01, 0.1, 1.0)  # inverse strength C of the linear probe, chosen on a fifth of the training images
TRAINED_ON, TESTED_ON = 10_000, 5_000  # images, at most
LINEAR, TRANSFERRED, VOTE = "linear", "linear, trained clean", "k-NN"


@dataclass(frozen=True)
class Accuracy:
    """One number of the study."""

    features: str
    """What was probed: the encoder, random weights, pixels."""
    method: str
    """linear; linear, trained clean; k-NN."""
    level: float
    """Unshifted noise level."""
    value: float
    """Share of test images whose class was named."""
    error: float
    """Binomial standard error."""


def linear_probe(train: Features, labels: Labels, seed: int = 0) -> Callable[[Features], Labels]:
    """A multinomial logistic regression on standardised features (N, D); gives the classes of others.

    The strength of its L2 penalty is the one that does best on a fifth of the training images, after which it is
    fitted to all of them.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fitted(penalty: float, x: Features, y: Labels) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=500)).fit(x, y)

    order = permutation(len(train), seed, "linear probe")
    held_out, rest = np.split(order, [max(1, len(train) // 5)])
    scores = [fitted(c, train[rest], labels[rest]).score(train[held_out], labels[held_out]) for c in PENALTIES]
    return fitted(PENALTIES[int(np.argmax(scores))], train, labels).predict


def probe(
    encoder: NoisyEncoder,
    train: Split,
    test: Split,
    *,
    levels: Sequence[float] = LEVELS,
    pool: Pool = "cls",
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Accuracy]:
    """Accuracies of the encoder, of random weights and of pixels at every level, lowest level first.

    Raises UserError for training images of a single class or a level that is not positive.
    """
    if len(np.unique(train.labels)) < 2:
        raise UserError("--data: a probe needs labels of at least two classes")
    if not levels or not all(level > 0 for level in levels):
        raise UserError(f"--levels {' '.join(f'{level:g}' for level in levels)}: must be positive")
    untrained = encoder.untrained(seed)
    spaces: dict[str, Callable[[Split, float], Features]] = {
        "encoder": lambda s, level: encoder.features(s.images, s.noise, level, pool),
        untrained.name: lambda s, level: untrained.features(s.images, s.noise, level, pool),
        "pixels": lambda s, level: encoder.pixels(s.images, s.noise, level),
    }
    results = []
    for name, features in spaces.items():
        for result in _by_level(name, features, train, test, sorted(levels), seed):
            results.append(result)
            if on_progress:
                on_progress(len(results), len(spaces) * len(levels) * 3)
    return results


def _by_level(
    name: str,
    features: Callable[[Split, float], Features],
    train: Split,
    test: Split,
    levels: Sequence[float],
    seed: int,
) -> Iterator[Accuracy]:
    clean: Callable[[Features], Labels] | None = None
    for level in levels:
        x, y = features(train, level), features(test, level)
        classify = linear_probe(x, train.labels, seed)
        clean = clean or classify
        named = {LINEAR: classify(y), TRANSFERRED: clean(y), VOTE: nearest_vote(x, train.labels, y)}
        for method, predicted in named.items():
            yield _accuracy(name, method, level, predicted, test)


def linear_accuracies(
    encoder: NoisyEncoder, train: Split, test: Split, levels: Sequence[float], pool: Pool = "cls", seed: int = 0
) -> Iterator[Accuracy]:
    """Those of the linear probe trained at each level alone, of the encoder alone, as in `probe`."""
    for level in levels:
        x, y = (encoder.features(split.images, split.noise, level, pool) for split in (train, test))
        yield _accuracy("encoder", LINEAR, level, linear_probe(x, train.labels, seed)(y), test)


def _accuracy(name: str, method: str, level: float, predicted: Labels, test: Split) -> Accuracy:
    value = float((predicted == test.labels).mean())
    return Accuracy(name, method, level, value, (value * (1 - value) / len(test.labels)) ** 0.5)


def run_probe(
    encoder: Path,
    *,
    data: str | None = None,
    recipe: str | None = None,
    ema: float | None = None,
    levels: Sequence[float] = LEVELS,
    pool: Pool = "cls",
    train_count: int = TRAINED_ON,
    test_count: int = TESTED_ON,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
) -> list[Accuracy]:
    """Prints the table; writes `probe.json` and `probe.png` into `out` (by default `analysis` beside it).

    Args:
        data: labelled images; None takes the encoder's own training set. The probes are trained on its train split
            and tested on its test split, or on a fifth of it where there is none.
    """
    if recipe is not None and not encoder.is_file():
        raise UserError(f"--recipe: for a weight file, which does not say; {encoder} has its own")
    opened = open_encoder(encoder, recipe=recipe, ema=ema, device=pick_device(device))
    source = data or opened.config.data.source
    train, test = labelled_splits(opened, source, seed)
    with reporting("probing", images=0) as report:
        results = probe(
            opened,
            take(train, train_count, "train", seed),
            take(test, test_count, "test", seed),
            levels=levels,
            pool=pool,
            seed=seed,
            on_progress=report,
        )
    settings = {
        "encoder": encoder.resolve().name,
        "data": Path(source).name,
        "train": {"count": min(train_count, len(train)), "fingerprint": train.fingerprint()},
        "test": {"count": min(test_count, len(test)), "fingerprint": test.fingerprint()},
        "pool": pool,
        "seed": seed,
    }
    content = {**settings, "accuracies": [asdict(r) for r in results]}
    publish(out or analysis_folder(encoder), "probe", content, draw(results), table(results))
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
            curve(axes, [r.level for r in row], [100 * r.value for r in row], [100 * r.error for r in row], features)
        axes.set(title=method, xlabel="noise level (unshifted)", xscale="log")
    panels[0].set(ylabel="accuracy (%)", ylim=(0, 100))
    panels[-1].legend(fontsize=8)
    return figure
