"""References: made, saved, read back, damaged, and ADM's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from epg.errors import ArtefactError, DataError, UserError
from epg.evaluation.evaluate import evaluate
from epg.evaluation.metrics.frechet import frechet_between, statistics
from epg.evaluation.metrics.manifolds import Manifold, precision_recall
from epg.evaluation.reference import make_reference
from epg.evaluation.reference_files import MANIFEST, TENSORS, is_adm, load, load_adm, load_cached, save, save_cached
from epg.evaluation.sources import TensorSource
from tests.evaluation.helpers import random_extractor, random_images


def test_statistics_of_all_features_of_some() -> None:
    extractor, images = random_extractor(), random_images(300)
    made = make_reference(TensorSource(images), [extractor], kept=100)
    assert made is not None
    features = extractor.compute(images)["features"].detach().numpy()
    found = made.statistics["random"]
    np.testing.assert_allclose(found.moments["features"].covariance, np.cov(features, rowvar=False), rtol=1e-4)
    assert found.features is not None
    assert found.features.shape == (100, 12)
    places = [int(np.abs(features - row).sum(1).argmin()) for row in found.features]
    assert places == sorted(set(places))  # a hundred different ones, in their order
    assert max(places) > 250  # from everywhere: a set sorted by class must not leave classes out
    again = make_reference(TensorSource(images), [extractor], kept=100, seed=1)
    assert again is not None
    assert not np.array_equal(found.features, again.statistics["random"].features)


def test_a_saved_reference_gives_the_same_numbers(tmp_path: Path) -> None:
    extractors = [random_extractor("inception"), random_extractor("other")]
    made = make_reference(TensorSource(random_images(90)), extractors, kept=50)
    assert made is not None
    save(made, tmp_path / "reference")
    read = load(tmp_path / "reference")
    assert read.manifest == made.manifest
    assert len(read.sha256) == 64
    samples = TensorSource(random_images(40, seed=1))
    first, second = (evaluate(samples, r, extractors, ["fid", "sfid", "pr", "kid", "fd"]) for r in (made, read))
    assert first is not None
    assert second is not None
    assert first.metrics == second.metrics
    save(made, tmp_path / "reference")  # over itself
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds thesis\.tex, which is no part of a reference"):
        save(made, tmp_path / "own")


@pytest.mark.parametrize("file", [MANIFEST, TENSORS])
def test_damage_is_noticed(tmp_path: Path, file: str) -> None:
    made = make_reference(TensorSource(random_images(20)), [random_extractor()])
    assert made is not None
    save(made, tmp_path / "r")
    content = bytearray((tmp_path / "r" / file).read_bytes())
    place = content.index(b'"count": 20') + 9 if file == MANIFEST else len(content) - 50
    content[place] ^= 1
    (tmp_path / "r" / file).write_bytes(content)
    with pytest.raises(ArtefactError, match="damaged"):
        load(tmp_path / "r")


def test_the_cache_is_made_again_when_it_is_damaged(tmp_path: Path) -> None:
    made = make_reference(TensorSource(random_images(20)), [random_extractor()])
    assert made is not None
    place = tmp_path / "references" / "key"
    assert load_cached(place) is None
    save_cached(made, place)
    found = load_cached(place)
    assert found is not None
    assert found.manifest == made.manifest
    save_cached(made, place)  # another process was faster
    assert [p.name for p in place.parent.iterdir()] == ["key"]
    (place / TENSORS).write_bytes(b"")
    assert load_cached(place) is None
    save_cached(made, place)
    assert load_cached(place) is not None
    (tmp_path / "file").write_text("")
    save_cached(made, tmp_path / "file" / "key")  # nowhere to write: no error


def real_features(output: str) -> np.ndarray:
    """What the published statistics are made of."""
    return np.random.default_rng(0).normal(size=(60, {"features": 2048, "spatial": 2023}[output]))


def adm(file: Path, images: torch.Tensor | None = None, **changes: np.ndarray) -> Path:
    """An archive as ADM publishes them."""
    arrays: dict[str, np.ndarray] = {}
    for output, end in (("features", ""), ("spatial", "_s")):
        found = statistics(real_features(output))
        arrays |= {f"mu{end}": found.mean, f"sigma{end}": found.covariance}
    if images is not None:
        arrays["arr_0"] = images.permute(0, 2, 3, 1).numpy()
    np.savez(file, **(arrays | changes))
    return file


def wide_extractor():  # type: ignore[no-untyped-def]
    """Features as wide as Inception's, from a random projection of the pixels."""
    base = random_extractor("inception")
    g = torch.Generator().manual_seed(0)
    projections = {n: torch.randn(192, d, generator=g) for n, d in (("features", 2048), ("spatial", 2023))}
    return replace(
        base, compute=lambda images: {n: images.flatten(1).float() @ p / 999 for n, p in projections.items()}
    )


def test_adms_statistics_for_fid_and_images_for_precision(tmp_path: Path) -> None:
    extractor, images, samples = wide_extractor(), random_images(40), random_images(30, seed=1)
    file = adm(tmp_path / "VIRTUAL_imagenet.npz", images)
    assert is_adm(file)
    reference = load_adm(file, [extractor])
    result = evaluate(TensorSource(samples), reference, [extractor], ["fid", "sfid", "pr"])
    assert result is not None
    outputs, real = extractor.compute(samples), extractor.compute(images)["features"].numpy()
    for key, output in (("fid", "features"), ("sfid", "spatial")):
        expected = frechet_between(real_features(output), outputs[output].numpy())
        assert result.metrics[key].value == pytest.approx(expected, rel=1e-6)
    expected_pr = precision_recall(Manifold(real), Manifold(outputs["features"].numpy()))
    assert result.metrics["precision"].value == expected_pr.precision
    assert result.metrics["recall"].value == expected_pr.recall


def test_adm_without_images_knows_no_precision(tmp_path: Path) -> None:
    extractor, samples = wide_extractor(), TensorSource(random_images(30))
    reference = load_adm(adm(tmp_path / "stats.npz"), [extractor])
    with pytest.raises(UserError, match=r"stats.npz: has mean and covariance but no images"):
        evaluate(samples, reference, [extractor], ["fid", "pr"])


def test_adm_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--features random: .* holds statistics of Inception"):
        load_adm(adm(tmp_path / "a.npz"), [random_extractor()])
    with pytest.raises(DataError, match=r"mu .*2048 and 2048x2048 are expected"):
        load_adm(adm(tmp_path / "b.npz", mu=np.zeros(64)), [wide_extractor()])
    with pytest.raises(DataError, match="not finite"):
        load_adm(adm(tmp_path / "c.npz", mu=np.full(2048, np.nan)), [wide_extractor()])
    with pytest.raises(DataError, match="holds Python objects"):
        load_adm(adm(tmp_path / "d.npz", mu=np.array([{}], dtype=object)), [wide_extractor()])
    reference = load_adm(adm(tmp_path / "e.npz", random_images(9)), [wide_extractor()])
    with pytest.raises(UserError, match="8x8 images, the samples are 16x16"):
        evaluate(TensorSource(random_images(9, size=16)), reference, [wide_extractor()], ["fid"])
