"""References on disk: folders of our own, and ADM's published `.npz`.

```
manifest.json             source, counts, image size, extractors with the sha256 of their weights; checksums
statistics.safetensors    EXTRACTOR.OUTPUT.mean, .covariance (float64) and EXTRACTOR.kept (float32 features)
```
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from epg.checkpoint.manifest import signed
from epg.circumstances import environment, now
from epg.errors import ArtefactError, DataError, OutputError, RunLockedError, UserError
from epg.evaluation import FEATURES, SPATIAL
from epg.evaluation.extraction import Collector, extract
from epg.evaluation.extractors.extractor import Extractor
from epg.evaluation.metrics.frechet import Moments
from epg.evaluation.npz import MAX_WIDTH, Npz, NpzSource
from epg.evaluation.reference import Reference, Statistics
from epg.evaluation.sources import Progress
from epg.storage import outputs
from epg.storage.artefact import fingerprint, read_json, read_tensors, write_json, write_tensors

FORMAT, KIND = 1, "epg reference"
MANIFEST, TENSORS = "manifest.json", "statistics.safetensors"


def save(reference: Reference, folder: Path) -> None:
    """Writes a folder that `load` reads, in place of a reference that was there. Raises OutputError."""
    tensors: dict[str, torch.Tensor] = {}
    described: dict[str, Any] = {}
    for name, statistics in reference.statistics.items():
        for output, moments in statistics.moments.items():
            tensors[f"{name}.{output}.mean"] = torch.from_numpy(moments.mean)
            tensors[f"{name}.{output}.covariance"] = torch.from_numpy(moments.covariance)
        if statistics.features is not None:
            tensors[f"{name}.kept"] = torch.from_numpy(statistics.features)
        counts = {output: moments.count for output, moments in statistics.moments.items()}
        described[name] = {"sha256": statistics.sha256, "preprocessing": statistics.preprocessing, "counts": counts}
    with outputs.replacing_folder(folder, foreign) as temporary:
        content = {
            "format": FORMAT,
            "kind": KIND,
            "name": reference.name,
            "extractors": described,
            "made": {"time": now(), "environment": environment()},
            "manifest": reference.manifest,
            "files": {TENSORS: write_tensors(temporary / TENSORS, tensors)},
        }
        write_json(temporary / MANIFEST, signed(content))


def foreign(folder: Path) -> str:
    """Why a folder is not, all of it, a reference as it was written; "" where it is (`outputs.replacing_folder`)."""
    for path in sorted(folder.iterdir()):
        if path.name not in (MANIFEST, TENSORS):
            return f"holds {path.name}, which is no part of a reference"
    try:
        load(folder)
    except ArtefactError as error:
        return f"holds something else, or what was changed since it was written ({error})"
    return ""


def is_saved(path: Path) -> bool:
    """Whether `save` has written this folder."""
    return (path / TENSORS).is_file() and (path / MANIFEST).is_file()


def load(folder: Path) -> Reference:
    """A saved reference, compared with its checksums. Raises ArtefactError."""
    content, _ = read_json(folder / MANIFEST)
    if content.get("kind") != KIND or content.get("format") != FORMAT:
        raise ArtefactError(f"{folder / MANIFEST}: not a reference of this version of epg; make it again")
    if signed(content) != content:
        raise ArtefactError(f"{folder / MANIFEST}: does not match its own checksum; the file is damaged or was changed")
    if fingerprint(folder / TENSORS) != content["files"][TENSORS]:
        raise ArtefactError(f"{folder / TENSORS}: does not match the manifest; the file is damaged")
    tensors = read_tensors(folder / TENSORS)
    statistics = {}
    for name, described in content["extractors"].items():
        moments = {
            output: Moments(count, *(tensors[f"{name}.{output}.{part}"].numpy() for part in ("mean", "covariance")))
            for output, count in described["counts"].items()
        }
        kept = tensors[f"{name}.kept"].numpy() if f"{name}.kept" in tensors else None
        statistics[name] = Statistics(name, described["sha256"], described["preprocessing"], moments, kept)
    return Reference(content["name"], statistics, content["manifest"], content["files"][TENSORS]["sha256"])


def load_cached(folder: Path) -> Reference | None:
    """A reference in the cache; None where there is none, or a damaged one."""
    if not is_saved(folder):
        return None
    try:
        return load(folder)
    except ArtefactError:
        with contextlib.suppress(OSError):
            for name in (MANIFEST, TENSORS):  # of the cache, where nobody else writes
                (folder / name).unlink()
            folder.rmdir()
        return None


def save_cached(reference: Reference, folder: Path) -> None:
    """Into the cache, under its name only when complete; without space or permission it is computed again next time."""
    with contextlib.suppress(OutputError, RunLockedError):  # also where another process is faster
        save(reference, folder)


def load_adm(
    path: Path, extractors: Sequence[Extractor], *, batch_size: int = 64, on_progress: Progress | None = None
) -> Reference:
    """ADM's published reference: FID and sFID from the statistics stored in it, precision and recall from its images.

    The statistics are of the whole data set; the images (10,000 for ImageNet) are there for precision and recall
    alone, and the evaluator of ADM does not use them for FID either. All processes must call it.

    Raises UserError for other extractors than Inception, DataError for a damaged archive.
    """
    wrong = [extractor.name for extractor in extractors if extractor.name != "inception"]
    if wrong:
        raise UserError(
            f"--features {wrong[0]}: {path} holds statistics of Inception. Pass the images themselves as --reference, "
            "or use --features inception"
        )
    npz = Npz(path)
    moments = {FEATURES: _moments(npz, "mu", "sigma")}
    if "mu_s" in npz:
        moments[SPATIAL] = _moments(npz, "mu_s", "sigma_s")
    manifest: dict[str, Any] = {"count": None, "source": {"kind": "adm", "name": path.name}}
    kept = None
    if "arr_0" in npz:
        source = NpzSource(path)
        collector = Collector()
        pixels = extract(source, extractors, collector, batch_size=batch_size, on_progress=on_progress)
        manifest |= {"image_size": source.shape[1], "channels": source.shape[0], "kept": source.count, "pixels": pixels}
        kept = collector.outputs("inception")[FEATURES] if pixels is not None else None
    statistics = Statistics("inception", "", "as published with ADM (TensorFlow)", moments, kept)
    return Reference(path.name, {"inception": statistics}, manifest, fingerprint(path)["sha256"])


def is_adm(path: Path) -> bool:
    """Whether an `.npz` holds statistics, and not only images."""
    return "mu" in Npz(path)


def _moments(npz: Npz, mean: str, covariance: str) -> Moments:
    mu, sigma = npz.small(mean, (MAX_WIDTH,)), npz.small(covariance, (MAX_WIDTH, MAX_WIDTH))
    expected = {"mu": 2048, "mu_s": 2023}[mean]
    if mu.shape != (expected,) or sigma.shape != (expected, expected):
        raise DataError(
            f"{npz.path}: {mean} {mu.shape} and {covariance} {sigma.shape}; {expected} and {expected}x{expected} are "
            "expected"
        )
    mu, sigma = mu.astype("float64"), sigma.astype("float64")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise DataError(f"{npz.path}: {mean} or {covariance} is not finite")
    return Moments(0, mu, sigma)  # it does not say of how many images
