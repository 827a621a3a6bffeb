import itertools
import math

import pytest
import torch

from epg import schedule as S

# Grids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 18, 32, 1281])
def test_karras_grid_falls_from_max_to_min(levels):
    grid = S.karras_grid(levels)
    assert grid.dtype == torch.float64
    assert grid.shape == (levels,)
    assert grid[0].item() == pytest.approx(80, rel=1e-12)
    assert grid[-1].item() == pytest.approx(0.002, rel=1e-12)
    assert (grid.diff() < 0).all()


def test_karras_is_even_in_the_seventh_root():
    steps = S.karras_grid(11).pow(1 / 7).diff()
    assert torch.allclose(steps, steps[:1].expand(10), rtol=1e-10)


def test_rho_1_is_a_linear_grid():
    assert torch.allclose(S.karras_grid(5, 1.0, 9.0, 1.0), torch.tensor([9.0, 7, 5, 3, 1], dtype=torch.float64))


def test_karras_continues_beyond_the_last_index():
    after = S.karras(1280, 1280, 0.002, 80.0, 7.0)
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    assert after == pytest.approx((low - (high - low) / 1279) ** 7, rel=1e-12)
    assert 0 < after < 0.002


@pytest.mark.parametrize("shift", [0.5, 1.0, 4.0])
def test_sampling_grid(shift):
    grid = S.sampling_grid(32, shift=shift)
    assert grid.shape == (33,)
    assert grid[-1] == 0
    assert torch.equal(grid[:-1], S.sampling_grid(32, shift=shift, to_zero=False))
    assert torch.allclose(grid[:-1], shift * S.karras_grid(32), rtol=1e-15)


def test_sampling_grid_takes_another_range():
    grid = S.sampling_grid(4, sigma_min=0.1, sigma_max=10.0, rho=3.0, to_zero=False)
    assert torch.equal(grid, S.karras_grid(4, 0.1, 10.0, 3.0))


def test_time_condition_and_input_scale():
    t = torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
    assert S.time_condition(t).tolist() == pytest.approx([250 * math.log(v) for v in (0.002, 1, 80)], rel=1e-12)
    assert S.input_scale(t).tolist() == pytest.approx([1 / math.hypot(v, 0.5) for v in (0.002, 1, 80)], rel=1e-12)


# Pre-training -------------------------------------------------------------------------------------------------------


def test_num_levels_doubles_in_seven_equal_periods():
    total = 7000
    found = [S.num_levels(k, total) for k in range(total)]
    assert sorted(set(found)) == [20 * 2**i + 1 for i in range(7)]
    for i in range(7):
        assert found[1000 * i] == 20 * 2**i + 1
        assert found[1000 * i + 999] == 20 * 2**i + 1


@pytest.mark.parametrize("total", [1, 2, 6, 7, 8, 100])
def test_num_levels_with_few_steps_stays_within_bounds(total):
    found = [S.num_levels(k, total) for k in range(total)]
    assert all(21 <= n <= 1281 for n in found)
    assert found == sorted(found)


def test_num_levels_is_capped():
    assert S.num_levels(10**9, 700) == 1281
    assert S.num_levels(699, 700, s0=10, s1=160) == 161


@pytest.mark.parametrize(("s0", "s1", "total"), [(20, 1000, 7000), (10, 150, 600_000), (30, 100, 999), (7, 7, 50)])
def test_num_levels_where_the_ratio_is_no_power_of_two(s0, s1, total):
    """The formula of improved consistency training, whose logarithm is not rounded."""
    period = math.floor(total / (math.log2(math.floor(s1 / s0)) + 1))
    for k in {*range(0, total, max(1, total // 997)), total - 1}:
        assert S.num_levels(k, total, s0, s1) == min(s0 * 2 ** math.floor(k / period), s1) + 1
    assert S.num_levels(total - 1, total, s0, s1) == s1 + 1  # the largest is reached


def test_tau2_ends():
    assert S.tau2(0, 900) == 0.2
    assert S.tau2(600, 900) == pytest.approx(0.1, abs=1e-15)
    assert S.tau2(900, 900) == pytest.approx(0.1, abs=1e-15)
    assert S.tau2(200, 900) == pytest.approx(0.2 - 0.1 * math.sin(math.pi / 6), rel=1e-12)
    found = [S.tau2(k, 900) for k in range(901)]
    assert found == sorted(found, reverse=True)


def test_temperature_is_linear_between_its_ends():
    sigma = torch.tensor([0.002, 40.001, 80.0], dtype=torch.float64)
    assert S.temperature(sigma, 0.2).tolist() == pytest.approx([0.1, 0.15, 0.2], rel=1e-12)


def test_constant_temperature_baseline():
    assert {S.tau2(k, 100, tau1=0.1, start=0.1) for k in range(101)} == {0.1}
    assert S.temperature(S.karras_grid(50), 0.1, 0.1).unique().tolist() == [0.1]


# Diffusion ----------------------------------------------------------------------------------------------------------


def test_lognormal():
    z = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log = S.lognormal(z, -1.2, 1.6).log()
    assert log.mean().item() == pytest.approx(-1.2, abs=0.015)  # 4 standard errors
    assert log.std().item() == pytest.approx(1.6, abs=0.011)


def test_nearest_level_equals_brute_force():
    grid = S.karras_grid(64)
    sigma = S.lognormal(torch.randn(5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64), -1.2, 1.6)
    sigma = torch.cat([sigma, grid, torch.tensor([1e-9, 0.0, 1e9], dtype=torch.float64)])
    brute = (sigma[:, None] - grid).abs().argmin(1)
    index = S.nearest_level(sigma, grid)
    assert index.dtype == torch.int64
    assert torch.equal(index, brute)


def test_nearest_level_on_ties_takes_a_nearest_one():
    grid = torch.tensor([8.0, 4.0, 2.0, 1.0])
    index = S.nearest_level(torch.tensor([6.0, 3.0, 1.5]), grid)
    assert index.tolist() == [1, 2, 3]


def test_nearest_level_is_nearest_in_sigma_not_in_its_logarithm():
    assert S.nearest_level(torch.tensor([4.0]), torch.tensor([10.0, 1.0])).item() == 1  # in ln t it were 10


@pytest.mark.parametrize("levels", [2, 10, 1280])
def test_denoising_weight_is_one_over_the_distance_to_the_next_level(levels):
    grid, ends = S.karras_grid(levels), (0.002, 80.0, 7.0)
    after_last = S.karras(levels, levels, *ends)
    weight = S.denoising_weight(grid, levels, *ends)
    assert torch.allclose(weight, 1 / (grid - grid.new_tensor([*grid[1:].tolist(), after_last])), rtol=1e-11)
    between = S.karras(torch.tensor([0.25, 0.5], dtype=torch.float64), levels, *ends)
    next_one = torch.tensor([S.karras(n, levels, *ends) for n in (1.25, 1.5)], dtype=torch.float64)
    assert torch.allclose(S.denoising_weight(between, levels, *ends), 1 / (between - next_one), rtol=1e-11)


# Flow matching ------------------------------------------------------------------------------------------------------


def test_times_of_the_straight_path():
    """z = (1 - t) x + t a eps is (1 - t) (x + s eps)."""
    t = torch.tensor([0.05, 0.5, 0.9], dtype=torch.float64)
    s = S.flow_level(t, 2.0)
    assert torch.allclose((1 - t) * s, 2 * t, rtol=1e-14)
    assert torch.allclose(S.flow_time(s, 2.0), t, rtol=1e-14)
    z = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.allclose(S.flow_time(S.uniform_time(z, 0.5), 0.5), torch.special.ndtr(z), rtol=1e-14)


def test_flow_grid_is_even_in_time_and_starts_at_the_highest_level():
    levels = [S.flow(n, 50, 80.0, 4.0, 1.0) for n in range(50)]
    times = torch.tensor([S.flow_time(4 * level) for level in levels] + [0.0], dtype=torch.float64)
    assert levels[0] == pytest.approx(80, rel=1e-12)
    assert times[0].item() == pytest.approx(0.9969, abs=5e-5)  # 320 / 321
    assert torch.allclose(times.diff(), times.diff()[:1].expand(50), rtol=1e-10)


# Consistency --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "stage"), [(0, 1), (99_999, 1), (100_000, 2), (650_000, 7)])
def test_consistency_stage(step, stage):
    assert S.consistency_stage(step) == stage
    assert S.consistency_stage(step, delta=3) == stage + 2


@pytest.mark.parametrize(
    ("dtype", "last"), [(torch.bfloat16, 7), (torch.float16, 10), (torch.float32, 23), (torch.float64, 52)]
)
def test_the_last_stage(dtype, last):
    """The paper's seven stages are what bfloat16 resolves."""
    assert S.last_stage(torch.finfo(dtype).eps) == last
    assert S.consistency_stage(10**9, last=last) == last
    assert S.consistency_stage(0, delta=1024, last=last) == last


@pytest.mark.parametrize("stage", [1, 4, 7, 20, 23, 30, 1024, 5000])
def test_the_gap_is_exact_at_every_stage(stage):
    """Float32 agrees with float64 to rounding, where the difference t - r has 8 % error at stage 20."""
    t = S.karras_grid(200)
    exact = [min(v * (1 + 8 / (1 + math.exp(v))) * 2.0**-stage, v - 0.002) for v in t.tolist()]
    assert S.consistency_gap(t, stage).tolist() == pytest.approx(exact, rel=1e-12, abs=1e-300)
    if stage <= 30:
        found = S.consistency_gap(t.float(), stage)[:-1]
        assert found.tolist() == pytest.approx(exact[:-1], rel=1e-5)
        assert (found > 0).all()


@pytest.mark.parametrize("stage", range(1, 12))
def test_consistency_target_level_is_below_t_and_not_below_sigma_min(stage):
    t = S.karras_grid(500)
    r = S.consistency_target_level(t, stage)
    assert (r >= 0.002).all()
    assert (r[:-1] < t[:-1]).all()
    assert r[-1].item() == pytest.approx(0.002, rel=1e-12)  # t = sigma_min: t == r


def test_consistency_target_level_closed_form():
    t = torch.tensor([10.0, 0.5], dtype=torch.float64)
    expected = [v * (1 - (1 + 8 / (1 + math.exp(v))) / 2**4) for v in (10, 0.5)]
    assert S.consistency_target_level(t, 4).tolist() == pytest.approx(expected, rel=1e-12)


def test_consistency_target_level_approaches_t():
    t = torch.tensor([5.0], dtype=torch.float64)
    gaps = [(t - S.consistency_target_level(t, stage)).item() for stage in range(4, 12)]
    assert all(b == pytest.approx(a / 2, rel=1e-9) for a, b in itertools.pairwise(gaps))
