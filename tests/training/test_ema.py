import copy
import json
import math

import pytest
import torch
from torch import nn

from epg.training.ema import EMA, gamma_of, is_short, synthesis_weights, warmed_decay
from tests.helpers import GOLDEN, randomize, tiny_epg


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_closed_form(decay):
    """e_n = decay^n w_0 + (1 - decay) sum_i decay^(n - i) w_i."""
    network = nn.Linear(3, 2)
    weights = [network.weight.detach().clone()]
    ema = EMA(network, [decay])
    for step in range(1, 6):
        randomize(network, step)
        weights.append(network.weight.detach().clone())
        ema.update(step)
    expected = decay**5 * weights[0]
    expected = expected + sum((1 - decay) * decay ** (5 - i) * weights[i] for i in range(1, 6))
    assert torch.allclose(ema.shadows[f"ema-{decay}"]["weight"], expected, atol=1e-6)


def test_an_average_longer_than_its_run_forgets_where_it_began():
    """Else 200 steps of 0.9996 would still be 92 % the random weights of the start."""
    network = nn.Linear(1, 1, bias=False)
    averages = {}
    for steps in (200, 25_000, None):
        nn.init.zeros_(network.weight)
        averages[steps] = EMA(network, [0.9996], total_steps=steps)
        nn.init.ones_(network.weight)
        for step in range(1, 201):
            averages[steps].update(step)
    found = {steps: ema.shadows["ema-0.9996"]["weight"].item() for steps, ema in averages.items()}
    assert found[200] > 0.9999
    assert found[25_000] == found[None] == pytest.approx(1 - 0.9996**200, rel=1e-4)


def test_a_warmed_average_ends_as_the_plain_one():
    assert warmed_decay(1, 0.9) == 2 / 11
    assert warmed_decay(80, 0.9) == 0.9
    assert [is_short(n, 0.99) for n in (999, 1000, None)] == [True, False, False]


def test_several_decays_are_independent():
    network = tiny_epg()
    both, single = EMA(network, [0.9, 0.5]), EMA(network, [0.5])
    for step in range(3):
        randomize(network, step)
        both.update(1)
        single.update(1)
    a, b, c = both.state_dict("ema-0.5"), single.state_dict("ema-0.5"), both.state_dict("ema-0.9")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.allclose(a["encoder.cls_token"], c["encoder.cls_token"])


def test_no_decay_at_all():
    ema = EMA(nn.Linear(2, 2), [])
    ema.update(1)
    assert ema.shadows == {}


def test_applied_restores():
    network = tiny_epg()
    ema = EMA(network, [0.5])
    randomize(network, 1)
    ema.update(1)
    own = copy.deepcopy(network.state_dict())
    with ema.applied("ema-0.5"):
        inside = copy.deepcopy(network.state_dict())
    assert all(torch.equal(inside[k], v) for k, v in ema.state_dict("ema-0.5").items())
    assert all(torch.equal(network.state_dict()[k], v) for k, v in own.items())
    assert not torch.equal(inside["encoder.cls_token"], own["encoder.cls_token"])


def test_applied_restores_after_an_error():
    network = tiny_epg()
    ema = EMA(network, [0.5])
    randomize(network, 1)
    own = copy.deepcopy(network.state_dict())
    with pytest.raises(RuntimeError, match="inside"), ema.applied("ema-0.5"):
        raise RuntimeError("inside")
    assert all(torch.equal(network.state_dict()[k], v) for k, v in own.items())


def test_state_dict_is_complete_and_loads():
    network, other = tiny_epg(), tiny_epg(seed=1)
    ema = EMA(network, [0.9])
    assert ema.state_dict("ema-0.9").keys() == network.state_dict().keys()
    restored = EMA(other, [0.9])
    restored.load("ema-0.9", ema.state_dict("ema-0.9"))
    assert all(torch.equal(v, restored.shadows["ema-0.9"][k]) for k, v in ema.shadows["ema-0.9"].items())
    other.load_state_dict(ema.state_dict("ema-0.9"))


def test_buffers_are_taken_as_they_are():
    network = nn.BatchNorm1d(2)
    ema = EMA(network, [0.9])
    network.running_mean += 3
    assert ema.state_dict("ema-0.9")["running_mean"].tolist() == [3, 3]


def test_shadows_own_their_memory():
    network = nn.Linear(2, 2)
    ema = EMA(network, [0.9])
    before = ema.shadows["ema-0.9"]["weight"].clone()
    randomize(network)
    assert torch.equal(ema.shadows["ema-0.9"]["weight"], before)


def test_shadows_of_a_half_precision_network_are_float32():
    """In bfloat16 steps of 1e-4 would vanish."""
    network = nn.Linear(4, 4).bfloat16()
    ema = EMA(network, [0.9999])
    with torch.no_grad():
        network.weight += 1
    before = ema.shadows["ema-0.9999"]["weight"].clone()
    ema.update(1)
    assert ema.shadows["ema-0.9999"]["weight"].dtype == torch.float32
    assert (ema.shadows["ema-0.9999"]["weight"] - before).mean().item() == pytest.approx(1e-4, rel=0.01)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_power_function_has_the_width_it_is_named_after(sigma_rel):
    """Standard deviation of the kernel (gamma + 1) s^gamma on (0, 1)."""
    gamma = gamma_of(sigma_rel)
    mean = (gamma + 1) / (gamma + 2)
    assert math.sqrt((gamma + 1) / (gamma + 3) - mean**2) == pytest.approx(sigma_rel, rel=1e-9)


def test_power_function_forgets_the_initialisation_and_follows_its_kernel():
    network = nn.Linear(1, 1, bias=False)
    ema = EMA(network, [], [0.1])
    steps = 2000
    for step in range(1, steps + 1):
        with torch.no_grad():
            network.weight.fill_(step / steps)  # the average of s / t under the kernel is (gamma + 1) / (gamma + 2)
        ema.update(step)
    gamma = gamma_of(0.1)
    assert ema.shadows["power-0.1"]["weight"].item() == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)


def test_synthesis_recovers_a_width_in_between():
    """Snapshots of two widths combine to the average of a third that was tracked directly."""
    network = nn.Linear(1, 1, bias=False)
    ema = EMA(network, [], [0.05, 0.1, 0.075])
    snapshots, values = [], []
    for step in range(1, 513):
        with torch.no_grad():
            network.weight.fill_(math.sin(step / 40) + step / 200)
        ema.update(step)
        if step % 32 == 0:
            for width in (0.05, 0.1):
                snapshots.append((float(step), gamma_of(width)))
                values.append(ema.shadows[f"power-{width}"]["weight"].item())
    direct = ema.shadows["power-0.075"]["weight"].item()
    weights = synthesis_weights(snapshots, 512, 0.075)
    error = abs(sum(w * v for w, v in zip(weights, values, strict=True)) - direct)
    assert error < 0.02
    assert error < 0.2 * min(abs(v - direct) for v in values[-2:])


def test_synthesis_weights_are_those_of_the_published_algorithm():
    """1 to 15 snapshots inside and outside the tracked widths; the numbers were computed by EDM2's released code
    (`training/phema.py`, `solve_posthoc_coefficients`)."""
    cases = json.loads((GOLDEN / "phema.json").read_text())
    assert {len(case["steps"]) for case in cases} == set(range(1, 16))
    for case in cases:
        snapshots = [(float(s), gamma_of(w)) for s, w in zip(case["steps"], case["widths"], strict=True)]
        found = synthesis_weights(snapshots, case["steps"][-1], case["sigma_rel"])
        assert found == pytest.approx(case["weights"], rel=1e-9, abs=1e-12)
        assert sum(found) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.0, 0.3])
def test_impossible_widths(sigma_rel):
    with pytest.raises(ValueError, match="sigma_rel"):
        gamma_of(sigma_rel)
