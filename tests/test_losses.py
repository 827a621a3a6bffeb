import math

import pytest
import torch
import torch.nn.functional as F

from epg import losses


def vectors(n: int, d: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_nt_xent_against_cross_entropy(temperature):
    q, k = vectors(8), vectors(8, seed=1)
    similarity = torch.stack([torch.stack([F.cosine_similarity(a, b, dim=0) for b in k]) for a in q])
    expected = F.cross_entropy(similarity / temperature, torch.arange(8), reduction="none")
    assert torch.allclose(losses.nt_xent(q, k, temperature), expected, rtol=1e-4, atol=1e-5)


def test_nt_xent_of_two_samples():
    """Similarities 1 and 0: -log(e^(1/tau) / (e^(1/tau) + e^0)) for both."""
    e = torch.eye(2)
    expected = math.log(1 + math.exp(-1 / 0.5))
    assert losses.nt_xent(e, e, 0.5).tolist() == pytest.approx([expected] * 2, rel=1e-6)
    assert losses.nt_xent(e, e.flip(0), 0.5).tolist() == pytest.approx([expected + 2] * 2, rel=1e-6)


def test_nt_xent_does_not_depend_on_length():
    q, k = vectors(5), vectors(5, seed=1)
    assert torch.allclose(losses.nt_xent(7 * q, 0.3 * k, 0.2), losses.nt_xent(q, k, 0.2), rtol=1e-5)


def test_nt_xent_with_one_sample_is_zero():
    assert losses.nt_xent(vectors(1), vectors(1, seed=1), 0.1).tolist() == [0]


def test_nt_xent_carries_no_gradient_to_targets():
    q, k = vectors(4).requires_grad_(), vectors(4, seed=1).requires_grad_()
    losses.nt_xent(q, k, 0.1).sum().backward()
    assert k.grad is None
    assert q.grad is not None
    assert q.grad.abs().max() > 0


def test_nt_xent_of_half_precision_inputs_is_float32():
    q, k = vectors(8).bfloat16(), vectors(8, seed=1).bfloat16()
    out = losses.nt_xent(q, k, 0.1)
    assert out.dtype == torch.float32
    assert torch.equal(out, losses.nt_xent(q.float(), k.float(), 0.1))


def test_nt_xent_under_autocast_is_float32():
    """Similarities rounded to bfloat16 and divided by 0.1 would be wrong by several hundredths."""
    q, k = vectors(64, 256), vectors(64, 256) + 0.5 * vectors(64, 256, seed=1)
    expected = losses.nt_xent(q, k, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        out = losses.nt_xent(q, k, 0.1)
    assert out.dtype == torch.float32
    assert torch.allclose(out, expected, atol=1e-5)


def test_nt_xent_keeps_float64():
    assert losses.nt_xent(vectors(3, dtype=torch.float64), vectors(3, dtype=torch.float64), 0.1).dtype == torch.float64


def test_x_prediction():
    images, denoised = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    denoised[0] = 2.0
    denoised[1, 0, 0, 0] = 6.0
    assert losses.x_prediction(denoised, images, torch.tensor([1.5, 10.0])).tolist() == [6.0, 30.0]


def test_consistency_closed_form():
    online, target = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    online[0] += 1  # d = 4
    online[1, 0, 0, 0] = 0.03  # d = 0.0009
    expected = [2 * 4 / math.sqrt(4 + 0.06**2), 3 * 0.0009 / math.sqrt(0.0009 + 0.06**2)]
    assert losses.consistency(online, target, torch.tensor([2.0, 3.0])).tolist() == pytest.approx(expected, rel=1e-5)


def test_consistency_gradient_treats_the_denominator_as_constant():
    online = torch.tensor([0.3]).view(1, 1, 1, 1).requires_grad_()
    losses.consistency(online, torch.zeros(1, 1, 1, 1), torch.ones(1), c=0.4).sum().backward()
    assert online.grad is not None
    assert online.grad.item() == pytest.approx(2 * 0.3 / 0.5, rel=1e-6)


def test_consistency_is_zero_with_finite_gradient_where_nothing_differs():
    online = torch.ones(1, 1, 2, 2, requires_grad=True)
    loss = losses.consistency(online, torch.ones(1, 1, 2, 2), torch.ones(1))
    loss.sum().backward()
    assert loss.item() == 0
    assert online.grad is not None
    assert not online.grad.any()


def test_zero_weight_is_zero_loss():
    assert losses.consistency(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.zeros(1)).item() == 0
