import copy

import pytest
import torch
from torch import nn

from epg.training.ema import EMA
from tests.helpers import randomize, tiny_epg


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_closed_form(decay):
    """e_n = decay^n w_0 + (1 - decay) sum_i decay^(n - i) w_i."""
    network = nn.Linear(3, 2)
    weights = [network.weight.detach().clone()]
    ema = EMA(network, [decay])
    for step in range(1, 6):
        randomize(network, step)
        weights.append(network.weight.detach().clone())
        ema.update()
    expected = decay**5 * weights[0]
    expected = expected + sum((1 - decay) * decay ** (5 - i) * weights[i] for i in range(1, 6))
    assert torch.allclose(ema.shadows[decay]["weight"], expected, atol=1e-6)


def test_several_decays_are_independent():
    network = tiny_epg()
    both, single = EMA(network, [0.9, 0.5]), EMA(network, [0.5])
    for step in range(3):
        randomize(network, step)
        both.update()
        single.update()
    a, b, c = both.state_dict(0.5), single.state_dict(0.5), both.state_dict(0.9)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.allclose(a["encoder.cls_token"], c["encoder.cls_token"])


def test_no_decay_at_all():
    ema = EMA(nn.Linear(2, 2), [])
    ema.update()
    assert ema.shadows == {}


def test_applied_restores():
    network = tiny_epg()
    ema = EMA(network, [0.5])
    randomize(network, 1)
    ema.update()
    own = copy.deepcopy(network.state_dict())
    with ema.applied(0.5):
        inside = copy.deepcopy(network.state_dict())
    assert all(torch.equal(inside[k], v) for k, v in ema.state_dict(0.5).items())
    assert all(torch.equal(network.state_dict()[k], v) for k, v in own.items())
    assert not torch.equal(inside["encoder.cls_token"], own["encoder.cls_token"])


def test_applied_restores_after_an_error():
    network = tiny_epg()
    ema = EMA(network, [0.5])
    randomize(network, 1)
    own = copy.deepcopy(network.state_dict())
    with pytest.raises(RuntimeError, match="inside"), ema.applied(0.5):
        raise RuntimeError("inside")
    assert all(torch.equal(network.state_dict()[k], v) for k, v in own.items())


def test_state_dict_is_complete_and_loads():
    network, other = tiny_epg(), tiny_epg(seed=1)
    ema = EMA(network, [0.9])
    assert ema.state_dict(0.9).keys() == network.state_dict().keys()
    restored = EMA(other, [0.9])
    restored.load(0.9, ema.state_dict(0.9))
    assert all(torch.equal(v, restored.shadows[0.9][k]) for k, v in ema.shadows[0.9].items())
    other.load_state_dict(ema.state_dict(0.9))


def test_buffers_are_taken_as_they_are():
    network = nn.BatchNorm1d(2)
    ema = EMA(network, [0.9])
    network.running_mean += 3
    assert ema.state_dict(0.9)["running_mean"].tolist() == [3, 3]


def test_shadows_own_their_memory():
    network = nn.Linear(2, 2)
    ema = EMA(network, [0.9])
    before = ema.shadows[0.9]["weight"].clone()
    randomize(network)
    assert torch.equal(ema.shadows[0.9]["weight"], before)


def test_shadows_of_a_half_precision_network_are_float32():
    """In bfloat16 steps of 1e-4 would vanish."""
    network = nn.Linear(4, 4).bfloat16()
    ema = EMA(network, [0.9999])
    with torch.no_grad():
        network.weight += 1
    before = ema.shadows[0.9999]["weight"].clone()
    ema.update()
    assert ema.shadows[0.9999]["weight"].dtype == torch.float32
    assert (ema.shadows[0.9999]["weight"] - before).mean().item() == pytest.approx(1e-4, rel=0.01)
