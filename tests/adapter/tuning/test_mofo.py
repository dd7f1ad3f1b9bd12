"""MoFO against its published rule, written out in numpy and float64."""

import copy

import numpy as np
import pytest
import torch

from adapter.tuning.mofo import MoFO

SHAPES = ((6, 5), (3, 4, 2), (1, 2), (7,))


def published(parameters, gradients, *, lr, betas, eps, decay, fraction):
    """algorithms_MoFO.py of YChen-zzz/MoFO: all steps over lists of gradients, entry by entry."""
    (b1, b2), p = betas, [x.copy() for x in parameters]
    m, v = [np.zeros_like(x) for x in p], [np.zeros_like(x) for x in p]
    for t, step in enumerate(gradients, 1):
        for i, g in enumerate(step):
            p[i] *= 1 - lr * decay
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g * g
            size = np.abs(m[i]).ravel()
            k = max(1, int(np.floor(fraction * size.size)))
            tau = np.sort(size)[::-1][k - 1] if p[i].ndim > 1 else 0.0
            for at in np.ndindex(p[i].shape):
                if abs(m[i][at]) >= tau:
                    denominator = np.sqrt(v[i][at]) / np.sqrt(1 - b2**t) + eps
                    p[i][at] -= lr / (1 - b1**t) * m[i][at] / denominator
    return p


@pytest.fixture
def world():
    rng = np.random.default_rng(1)
    start = [rng.normal(size=shape) for shape in SHAPES]
    return start, [[rng.normal(size=shape) for shape in SHAPES] for _ in range(8)]


def run(start, gradients, make):
    parameters = [torch.nn.Parameter(torch.tensor(x)) for x in start]
    optimizer = make(parameters)
    for step in gradients:
        for parameter, g in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(g)
        optimizer.step()
    return [p.detach().numpy() for p in parameters]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.35, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_published_rule(world, fraction, decay):
    found = run(
        *world, lambda p: MoFO(p, lr=0.02, betas=(0.8, 0.95), weight_decay=decay, fraction=fraction)
    )
    expected = published(
        *world, lr=0.02, betas=(0.8, 0.95), eps=1e-8, decay=decay, fraction=fraction
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_by_hand():
    """The first step of Adam is ± lr; only the two largest of four move."""
    start, gradient = [np.array([[1.0, 2.0], [3.0, 4.0]])], [np.array([[0.1, -0.4], [0.2, 0.3]])]
    [found] = run(start, [gradient], lambda p: MoFO(p, lr=0.01, fraction=0.5, eps=0.0))
    np.testing.assert_allclose(found, [[1.0, 2.01], [3.0, 3.99]], rtol=1e-14)


def test_all_of_it_is_adamw(world):
    found = run(*world, lambda p: MoFO(p, lr=0.02, weight_decay=0.1, fraction=1.0))
    adamw = run(*world, lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1))
    for one, other in zip(found, adamw, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


def test_no_more_than_the_fraction_moves_and_biases_in_full(world):
    start, gradients = world
    found = run(start, gradients[:1], lambda p: MoFO(p, lr=0.02, fraction=0.1))
    moved = [int((one != other).sum()) for one, other in zip(found, start, strict=True)]
    assert moved == [3, 2, 1, 7]


def test_its_state_can_be_kept(world):
    start, gradients = world
    first = [torch.nn.Parameter(torch.tensor(x)) for x in start]
    optimizer = MoFO(first, lr=0.02, fraction=0.3)
    for step in gradients[:4]:
        for parameter, g in zip(first, step, strict=True):
            parameter.grad = torch.tensor(g)
        optimizer.step()
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    fresh = MoFO(second, lr=0.02, fraction=0.3)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in gradients[4:]:
        for parameter, g in zip(second, step, strict=True):
            parameter.grad = torch.tensor(g)
        fresh.step()
    whole = run(start, gradients, lambda p: MoFO(p, lr=0.02, fraction=0.3))
    for one, other in zip(second, whole, strict=True):
        np.testing.assert_array_equal(one.detach().numpy(), other)


def test_a_closure_is_asked_and_what_has_no_gradient_stays():
    still, moving = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = MoFO([still, moving], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (moving * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(10)
    assert torch.equal(still, torch.ones(2, 2))
    assert moving[1, 1].item() == pytest.approx(0.9)


@pytest.mark.parametrize("fraction", [0.0, 1.5, -1.0])
def test_a_fraction_is_a_fraction(fraction):
    with pytest.raises(ValueError, match="not above 0 and at most 1"):
        MoFO([torch.nn.Parameter(torch.ones(1))], fraction=fraction)
