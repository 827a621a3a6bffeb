"""How well noisy images can be read in an encoder, and whether that tells how good generators on it become.

The time t of flow matching is the share of noise: its level is s = t / (1 - t) in the network's units. Encoders are
probed as by `epg probe`: a linear classifier on the CLS token, trained and tested at that level, the noise of an image
being the same for all encoders.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from epg.analysis.probe import TESTED_ON, TRAINED_ON, linear_accuracies
from epg.distributed import pick_device
from epg.evaluation.noisy_features import open_encoder
from epg.evaluation.voting import labelled_splits, take
from epg.study.plan import Cell

FEWEST = 5  # points that are ranked
DISTANCES = ("fid", "fd")  # keys of metrics begin so; the first one of a generator is taken


def readable(run: Path, shares: Sequence[float], device: str) -> dict[str, Any]:
    """Accuracies of the linear probe of a run's encoder by share of noise: numbers as in receipts, by `key_of`.

    Raises UserError where the images have no labels.
    """
    encoder = open_encoder(run, device=pick_device(device))
    config = encoder.config
    levels = {share / (1 - share) / config.shift: share for share in shares}  # unshifted
    train, test = labelled_splits(encoder, config.data.source, seed=0)
    splits = take(train, TRAINED_ON, "train"), take(test, TESTED_ON, "test")
    return {
        key_of(levels[found.level]): {
            "name": f"linear probe at {levels[found.level]:.0%} noise",
            "value": found.value,
            "error": found.error,
            "better": "higher",
        }
        for found in linear_accuracies(encoder, *splits, list(levels))
    }


def key_of(share: float) -> str:
    return f"probe/{share:g}"


@dataclass(frozen=True)
class Ranks:
    """Probes of encoders beside the Frechet distances of the generators that begin with them and differ in nothing
    else; a point for each encoder and seed."""

    stage: str
    arms: tuple[str, ...]
    """The generators."""
    metric: str
    """Which distance."""
    points: int
    spearman: dict[str, float | None]
    """Rank correlation by the probe's key; -1: the better an encoder is read, the lower the distance. None where there
    are fewer points than FEWEST, or all have one rank."""
    within_seeds: dict[str, float | None]
    """The same of probes and distances less their means over the encoders of a seed: a seed moves all of its arms."""

    def text(self) -> str:
        """A line."""
        of = f"{self.stage} ({', '.join(self.arms)}), {self.points} points"
        if self.points < FEWEST:
            return f"{of}: too few to rank, {FEWEST} are needed"
        return f"{of}: {said(self.spearman)}; within seeds {said(self.within_seeds)}"


def said(found: Mapping[str, float | None]) -> str:
    """Correlations with their shares of noise."""
    told = {float(key.partition("/")[2]): "undefined" if rho is None else f"{rho:+.2f}" for key, rho in found.items()}
    return ", ".join(f"{rho} at {share:.0%}" for share, rho in told.items())


def rank_correlations(cells: Sequence[Cell], numbers: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[Ranks]:
    """Of every group of generators that differ in encoder and seed alone.

    Args:
        numbers: those of cells that are done, by arm and seed.

    A generator that begins with the momentum encoder is left out: not that encoder was probed.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        encoder = isinstance(cell.begins, Cell) and not cell.begins.config.objective.samples
        if encoder and cell.probe and cell.config.objective.begins != "momentum":
            alike = cell.config.model_copy(update={"seed": 0}).model_dump_json()
            groups.setdefault(alike, []).append(cell)
    return [_ranks(group, numbers) for group in groups.values()]


def _ranks(group: Sequence[Cell], numbers: Mapping[tuple[str, int], Mapping[str, Any]]) -> Ranks:
    done = [cell for cell in group if (cell.arm, cell.seed) in numbers]
    keys = dict.fromkeys(key for cell in done for key in numbers[cell.arm, cell.seed])
    metric = next((key for key in keys if key.startswith(DISTANCES)), "")
    read = [
        (cell, numbers[cell.begins.arm, cell.seed])
        for cell in done
        if isinstance(cell.begins, Cell) and (cell.begins.arm, cell.seed) in numbers
    ]
    seeds = [cell.seed for cell, _ in read]
    distances = [numbers[cell.arm, cell.seed][metric]["value"] for cell, _ in read]
    probes = {key: [probe[key]["value"] for _, probe in read] for key in map(key_of, group[0].probe)}
    spearman = {key: _spearman(values, distances) for key, values in probes.items()}
    apart = _less_means(distances, seeds)
    within = {key: _spearman(_less_means(values, seeds), apart) for key, values in probes.items()}
    arms = tuple(dict.fromkeys(cell.arm for cell in group))
    return Ranks(group[0].config.stage, arms, metric, len(read), spearman, within)


def _less_means(values: Sequence[float], seeds: Sequence[int]) -> list[float]:
    means = {s: fmean(v for v, seed in zip(values, seeds, strict=True) if seed == s) for s in set(seeds)}
    return [value - means[seed] for value, seed in zip(values, seeds, strict=True)]


def _spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    if len(a) < FEWEST or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    from scipy.stats import spearmanr

    rho = float(spearmanr(a, b).statistic)
    return rho if math.isfinite(rho) else None
