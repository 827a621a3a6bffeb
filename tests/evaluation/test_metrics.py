"""Every number against an independent, straightforward float64 computation with NumPy and SciPy."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from scipy.special import rel_entr, softmax

from epg.evaluation.metrics import frechet, kernels, manifolds, score
from epg.evaluation.metrics.frechet import Moments, MomentsAccumulator
from epg.evaluation.metrics.manifolds import Manifold


def features(n: int, d: int, *, seed: int = 0, shift: float = 0.0, decay: float = 0.0) -> np.ndarray:
    """Correlated, non-negative and far from the origin, as pool features are; `decay` thins the spectrum out."""
    rng = np.random.default_rng([seed, n, d])
    mixing = np.random.default_rng(d).normal(size=(d, d)) * np.exp(-decay * np.arange(d))[:, None] / np.sqrt(d)
    return (rng.normal(size=(n, d)) @ mixing + 3 + shift).astype(np.float32)


def frechet_by_square_root(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(sqrtm(c1 @ c2))
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(c1 + c2 - 2 * root))


def frechet_by_singular_values(x: np.ndarray, y: np.ndarray) -> float:
    """From the features, without any covariance: exact also where the covariances are singular."""
    (x, m1), (y, m2) = ((f.astype(np.float64), f.astype(np.float64).mean(0)) for f in (x, y))
    a, b = (x - m1) / np.sqrt(len(x) - 1), (y - m2) / np.sqrt(len(y) - 1)
    nuclear = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(np.square(m1 - m2).sum() + np.square(a).sum() + np.square(b).sum() - 2 * nuclear)


def test_frechet_of_diagonal_gaussians() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2."""
    s1, s2 = np.array([1.0, 2.0, 0.0]), np.array([3.0, 2.0, 0.5])
    a = Moments(9, np.array([0.0, 1.0, 2.0]), np.diag(s1**2))
    b = Moments(9, np.array([1.0, 1.0, 0.0]), np.diag(s2**2))
    assert frechet.frechet_distance(a, b) == pytest.approx(5 + 4 + 0 + 0.25, rel=1e-12)


def test_frechet_equals_scipys_square_root() -> None:
    x, y = features(700, 64), features(900, 64, seed=1, shift=0.1)
    assert frechet.frechet_between(x, y) == pytest.approx(frechet_by_square_root(x, y), rel=1e-6)


@pytest.mark.parametrize(
    ("n", "m", "d", "decay"),
    [
        (20, 30, 256, 0.0),  # far fewer images than dimensions, as in ten-minute evaluations
        (100, 2000, 256, 0.0),  # singular against regular
        (400, 500, 64, 0.2),  # spectrum over 11 orders of magnitude
        (400, 500, 64, 0.6),  # near-singular to rounding
    ],
)
def test_frechet_of_singular_covariances(n: int, m: int, d: int, decay: float) -> None:
    x, y = features(n, d, decay=decay), features(m, d, seed=1, decay=decay) * np.float32(1.1)
    assert frechet.frechet_between(x, y) == pytest.approx(frechet_by_singular_values(x, y), rel=1e-6)


@pytest.mark.parametrize(
    ("decay", "rank", "fast"),
    [
        (0.0, 96, True),
        (0.05, 96, True),  # spectrum over 4 orders of magnitude
        (0.3, 96, False),  # over 24, that is: singular to rounding
        (0.0, 40, False),  # of few images, and no root known, as in a file
    ],
)
def test_frechet_by_eigenvalues_only_where_they_are_exact(decay: float, rank: int, fast: bool) -> None:
    """Against the closed form for covariances with the same eigenvectors; singular ones are left to the exact way."""
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(rng.normal(size=(96, 96)))
    s1 = np.exp(-decay * np.arange(96)) * (np.arange(96) < rank)
    s2 = s1 * rng.uniform(0.5, 2, 96)
    a, b = (Moments(9, np.full(96, mean), vectors * s**2 @ vectors.T) for mean, s in ((0.0, s1), (0.1, s2)))
    assert frechet.frechet_distance(a, b) == pytest.approx(0.96 + np.square(s1 - s2).sum(), rel=1e-6)
    trace_root, doubt = frechet._by_eigenvalues(a, b)
    assert (doubt < 1e-6) == fast
    if fast:
        assert abs(trace_root - (s1 * s2).sum()) < doubt


@pytest.mark.parametrize("n", [5, 50, 400])
def test_frechet_of_identical_sets_is_zero(n: int) -> None:
    x = features(n, 64)
    assert frechet.frechet_between(x, x) == pytest.approx(0, abs=1e-11)
    assert frechet.frechet_between(x, x + np.float32(1)) == pytest.approx(64, rel=1e-6)


def test_constant_features_and_width() -> None:
    constant = np.ones((4, 3), dtype=np.float32)
    assert frechet.frechet_between(constant, constant * 2) == pytest.approx(3)
    with pytest.raises(ValueError, match=r"width 3 .* width 2"):
        frechet.frechet_distance(frechet.statistics(constant), frechet.statistics(constant[:, :2]))
    with pytest.raises(ValueError, match="at least two"):
        frechet.statistics(constant[:1])


def test_moments_do_not_depend_on_how_the_rows_arrive() -> None:
    x = features(2500, 16)
    whole = frechet.statistics(x)
    np.testing.assert_allclose(whole.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-10)
    for size in (1, 17, 64, 2500):
        accumulator = MomentsAccumulator()
        for start in range(0, len(x), size):
            accumulator.add(x[start : start + size])
        moments = accumulator.moments()
        np.testing.assert_array_equal(moments.mean, whole.mean)
        np.testing.assert_array_equal(moments.covariance, whole.covariance)


@pytest.mark.parametrize(("n", "d"), [(40, 200), (400, 20)])
def test_merged_moments_are_those_of_all(n: int, d: int) -> None:
    """With the root of few features (40 in 200 dimensions), and without one."""
    x, y = features(n, d), features(60, d, seed=1, shift=0.2)
    parts = frechet.merged([frechet.statistics(x[i::3]) for i in range(3)])
    np.testing.assert_allclose(parts.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)
    assert (parts.root is not None) == (n < d)
    expected = frechet_by_singular_values(x, y)
    assert frechet.frechet_distance(parts, frechet.statistics(y)) == pytest.approx(expected, rel=1e-9)
    stripped = Moments(parts.count, parts.mean, parts.covariance)  # by its eigenvalues
    assert frechet.frechet_distance(stripped, frechet.statistics(y)) == pytest.approx(expected, rel=1e-9)


def test_inception_score_in_consecutive_splits() -> None:
    logits = np.random.default_rng(0).normal(size=(1200, 30)).astype(np.float32) * 4
    p = softmax(logits.astype(np.float64), axis=1)
    expected = [np.exp(rel_entr(part, part.mean(0)).sum(1).mean()) for part in (p[:500], p[500:1000], p[1000:])]
    found = score.inception_score(logits, split=500)
    np.testing.assert_allclose(found.splits, expected, rtol=1e-9)
    assert found.value == pytest.approx(np.mean(expected), rel=1e-9)


def test_inception_score_at_its_ends() -> None:
    certain = np.full((50, 10), -1e4, dtype=np.float32)
    certain[np.arange(50), np.arange(50) % 10] = 0
    assert score.inception_score(certain).value == pytest.approx(10)  # sure of ten classes, equally often
    assert score.inception_score(certain[:1].repeat(9, 0)).value == pytest.approx(1)


def radii_by_sorting(x: np.ndarray, k: int) -> np.ndarray:
    return np.sort(cdist(x, x, "sqeuclidean"), 1)[:, k]  # the first is the image itself


@pytest.fixture(params=["few", "blocks", "copies"])
def two_sets(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    if request.param == "few":
        return features(9, 300), features(13, 300, seed=1)
    if request.param == "blocks":  # more rows than one block has
        return features(2300, 12), features(2600, 12, seed=1, shift=0.4)
    real = features(200, 40)
    copies = np.concatenate([real[:50], real[:50], real[:50], real[:50], features(40, 40, seed=1)])
    return real, copies  # memorised images, each four times: radii of zero


def test_precision_and_recall(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    real, fake = (x.astype(np.float64) for x in two_sets)
    distances = cdist(real, fake, "sqeuclidean")
    precision = (distances <= radii_by_sorting(real, 3)[:, None]).any(0).mean()
    recall = (distances <= radii_by_sorting(fake, 3)).any(1).mean()
    result = manifolds.precision_recall(Manifold(two_sets[0]), Manifold(two_sets[1]))
    assert (result.precision, result.recall) == (precision, recall)


def test_density_and_coverage(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    real, fake = (x.astype(np.float64) for x in two_sets)
    inside = cdist(real, fake, "sqeuclidean") < radii_by_sorting(real, 5)[:, None]
    result = manifolds.density_coverage(Manifold(two_sets[0], 5), Manifold(two_sets[1], 5))
    assert result.density == pytest.approx(inside.sum() / (5 * len(fake)), rel=1e-12)
    assert result.coverage == inside.any(1).mean()


def test_manifolds_of_identical_sets() -> None:
    x = features(300, 20)
    result = manifolds.precision_recall(Manifold(x), Manifold(x))
    assert (result.precision, result.recall) == (1, 1)
    with pytest.raises(ValueError, match="no 3 nearest"):
        Manifold(x[:3])


def test_precision_and_recall_are_not_swapped() -> None:
    """Samples of one mode of two: every sample is realistic, half of the reference is out of reach."""
    real = np.concatenate([features(300, 8), features(300, 8, seed=1, shift=50)])
    result = manifolds.precision_recall(Manifold(real), Manifold(features(300, 8, seed=2)))
    assert result.precision > 0.8
    assert 0.3 < result.recall <= 0.5


def test_kid_of_whole_sets_is_the_unbiased_estimate() -> None:
    x, y = features(60, 16), features(60, 16, seed=1, shift=0.2)
    a, b = x.astype(np.float64), y.astype(np.float64)

    def kernel(i: np.ndarray, j: np.ndarray) -> float:
        return float((i @ j / 16 + 1) ** 3)

    within = [np.mean([kernel(s[i], s[j]) for i in range(60) for j in range(60) if i != j]) for s in (a, b)]
    across = np.mean([kernel(i, j) for i in a for j in b])
    result = kernels.kernel_inception_distance(x, y, subsets=3, subset_size=60)
    assert result.value == pytest.approx(sum(within) - 2 * across, rel=1e-6)


def test_kid_subsets_are_keyed_and_average_to_zero_on_one_distribution() -> None:
    x, y = features(800, 16), features(800, 16, seed=1)
    first, again = (kernels.kernel_inception_distance(x, y, subset_size=100, seed=5) for _ in range(2))
    assert first == again
    assert kernels.kernel_inception_distance(x, y, subset_size=100, seed=6) != first
    spread = np.std(first.subsets)
    assert abs(first.value) < spread
    moved = kernels.kernel_inception_distance(x, y + np.float32(1), subset_size=100)
    assert moved.value > 10 * spread


def test_gaussian_mmd() -> None:
    x, y = features(50, 8), features(70, 8, seed=1, shift=1)
    means = [np.exp(-cdist(a, b, "sqeuclidean") / (2 * 2.0**2)).mean() for a, b in ((x, x), (y, y), (x, y))]
    expected = 1000 * (means[0] + means[1] - 2 * means[2])
    assert kernels.gaussian_mmd(x, y, sigma=2.0) == pytest.approx(expected, rel=1e-6)
    assert kernels.gaussian_mmd(x, x) == pytest.approx(0, abs=1e-9)
